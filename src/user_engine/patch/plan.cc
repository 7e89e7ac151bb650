#include "user_engine/patch/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <unordered_map>

#include "user_engine/patch/code_map.h"
#include "user_engine/patch/entrances.h"
#include "user_engine/patch/window.h"
#include "x86/format.h"

namespace spile::patch {
namespace {

/// Plans of one call, by the address that is patched.
class Planner {
 public:
  Planner(const ModuleCode& module, const PlanRules& rules) : map_(module), rules_(rules) {}

  std::vector<Outcome> run(std::span<const TargetAddr> sites) {
    choose_windows(sites);
    refuse_code_pointers();
    refuse_entrances();
    try_puns();
    refuse_overlaps();
    std::vector<Outcome> out;
    out.reserve(sites.size());
    for (const TargetAddr site : sites) out.push_back(outcomes_.at(skip_endbr(map_, site).value));
    return out;
  }

  Outcome run_pun(TargetAddr site) {
    const TargetAddr place = skip_endbr(map_, site);
    order_.push_back(place);
    outcomes_.emplace(place.value, choose_pun(map_, place, rules_));
    only_puns_ = true;
    refuse_code_pointers();
    refuse_entrances();
    return std::move(outcomes_.at(place.value));
  }

 private:
  /// Each rule looks only at what the rules before it left.
  std::vector<TargetAddr> accepted() const {
    std::vector<TargetAddr> sites;
    for (const auto& [address, outcome] : outcomes_) {
      if (outcome && (!only_puns_ || outcome->mechanism == Mechanism::kShort))
        sites.push_back(TargetAddr(address));
    }
    return sites;
  }

  void choose_windows(std::span<const TargetAddr> sites) {
    for (const TargetAddr site : sites) {
      const TargetAddr place = skip_endbr(map_, site);
      if (outcomes_.contains(place.value)) continue;
      order_.push_back(place);
      outcomes_.emplace(place.value, choose_window(map_, place, rules_));
    }
  }

  /// Places where five bytes are too many, but where the first instruction alone may be replaced:
  /// its own bytes change, the rest of the jump's distance is made of the bytes that follow.
  /// Nothing can enter an instruction but at its start, so loops, jump tables, landing pads and
  /// returns into the bytes behind it all stay right.
  void try_puns() {
    if (!rules_.puns) return;
    for (const TargetAddr site : order_) {
      Outcome& outcome = outcomes_.at(site.value);
      if (outcome || !may_be_punned(outcome.error().kind)) continue;
      auto pun = choose_pun(map_, site, rules_);
      if (!pun) continue;
      refused_before_.emplace(site.value, std::move(outcome.error()));
      outcome = std::move(pun);
    }
    if (refused_before_.empty()) return;
    only_puns_ = true;
    refuse_code_pointers();
    refuse_entrances();
    only_puns_ = false;
    // The first reason says more than that of the last resort.
    for (auto& [address, refusal] : refused_before_) {
      if (Outcome& outcome = outcomes_.at(address); !outcome)
        outcome = std::unexpected(std::move(refusal));
    }
  }

  static bool may_be_punned(RefusalKind kind) {
    switch (kind) {
      case RefusalKind::kTooShort:
      case RefusalKind::kDirectBranch:
      case RefusalKind::kJumpTable:
      case RefusalKind::kUnknownJump:
      case RefusalKind::kCodePointer:
      case RefusalKind::kCodeReference:
      case RefusalKind::kEndbrInside:
      case RefusalKind::kOtherFunction:
      case RefusalKind::kPageBoundary:
      case RefusalKind::kReserved:
      case RefusalKind::kCall:
      case RefusalKind::kInstruction:
      case RefusalKind::kUndecodable: return true;
      default: return false;
    }
  }

  /// End of the bytes at `site` that change.
  TargetAddr end_of_change(TargetAddr site) const {
    const Outcome& outcome = outcomes_.at(site.value);
    return site + (outcome ? outcome->written : kPatchBytes);
  }

  void refuse_code_pointers() {
    if (!rules_.code_pointers) return;
    const auto& pointers = map_.module().code_pointers;
    for (auto& [address, outcome] : outcomes_) {
      const TargetAddr site(address);
      const auto it = std::lower_bound(pointers.begin(), pointers.end(), site + 1);
      if (!outcome || it == pointers.end() || *it >= end_of_change(site)) continue;
      refuse(outcome, {*it, *it, RefusalKind::kCodePointer, true});
    }
  }

  void refuse_entrances() {
    const WindowSet windows(accepted());
    if (rules_.direct_branches || rules_.code_references)
      refuse_all(windows, find_references(map_, windows, rules_));
    if (!rules_.jump_tables) return;
    const TableScan tables = find_table_targets(map_, windows);
    refuse_all(windows, tables.entrances);
    // An unknown table leads to some instruction: never inside one.
    if (!only_puns_) refuse_unresolved(tables.unresolved);
  }

  void refuse_all(const WindowSet& windows, const std::vector<Entrance>& entrances) {
    for (const Entrance& e : entrances) {
      for (const TargetAddr site : windows.sites_around(e.target)) {
        if (e.target < end_of_change(site)) refuse(outcomes_.at(site.value), e);
      }
      if (windows.is_site(e.target) && e.kind == RefusalKind::kCodeReference)
        refuse(outcomes_.at(e.target.value), e);
    }
  }

  /// An indirect jump goes anywhere in its function, and in the function that its cold part was
  /// split from.
  void refuse_unresolved(const std::vector<Entrance>& unresolved) {
    std::unordered_map<std::string_view, const Entrance*> by_name;
    std::unordered_map<uint64_t, const Entrance*> by_region;
    for (const Entrance& e : unresolved) {
      by_region.emplace(e.target.value, &e);
      const FunctionSpan* f = map_.function_at(e.target);
      if (f != nullptr && !f->name.empty()) by_name.emplace(base_name(f->name), &e);
    }
    for (auto& [address, outcome] : outcomes_) {
      if (!outcome) continue;
      const auto region = by_region.find(map_.region_at(TargetAddr(address)).start.value);
      const auto name = by_name.find(base_name(map_.function_at(TargetAddr(address))->name));
      if (region != by_region.end()) {
        refuse(outcome, *region->second);
      } else if (name != by_name.end()) {
        refuse(outcome, *name->second);
      }
    }
  }

  /// "f" of "f.cold" and "f.part.0".
  static std::string_view base_name(std::string_view name) {
    return name.substr(0, name.find('.'));
  }

  void refuse_overlaps() {
    if (!rules_.other_sites) return;
    std::map<TargetAddr, TargetAddr> taken;  // start -> end of windows, none overlapping
    for (const TargetAddr site : order_) {
      Outcome& outcome = outcomes_.at(site.value);
      if (!outcome) continue;
      const TargetAddr end = std::max(outcome->window_end(), site + kPatchBytes);
      const auto next = taken.lower_bound(site);
      const bool hits_next = next != taken.end() && next->first < end;
      const bool hits_previous = next != taken.begin() && std::prev(next)->second > site;
      if (hits_next || hits_previous) {
        const TargetAddr other = hits_next ? next->first : std::prev(next)->first;
        refuse(outcome, {other, other, RefusalKind::kOtherSite, true});
      } else {
        taken.emplace(site, end);
      }
    }
  }

  void refuse(Outcome& outcome, const Entrance& e) {
    if (!outcome) return;
    Refusal r{e.kind, e.source, {}, reason_for(e)};
    if (const auto bytes = map_.text_from(e.source); !bytes.empty())
      r.instruction = x86::format_insn(bytes, e.source);
    outcome = std::unexpected(std::move(r));
  }

  std::string reason_for(const Entrance& e) const {
    const std::string source = map_.describe(e.source), target = map_.describe(e.target);
    switch (e.kind) {
      case RefusalKind::kDirectBranch:
        return fmt::format("{} at {} {} into the window, to {}", text(e.source), source,
                           e.certain ? "jumps" : "may jump", target);
      case RefusalKind::kCodeReference:
        return fmt::format("{} at {} {} the window's bytes at {}", text(e.source), source,
                           e.certain ? "uses" : "may use", target);
      case RefusalKind::kJumpTable:
        return fmt::format("a jump table of {} leads into the window, to {}", source, target);
      case RefusalKind::kUnknownJump:
        return fmt::format("{} at {} may go anywhere in the function: its table was not found",
                           text(e.source), source);
      case RefusalKind::kCodePointer:
        return fmt::format("data holds a pointer into the window, to {}", target);
      case RefusalKind::kOtherSite:
        return fmt::format("the window overlaps that of another probe, at {}", source);
      default: return fmt::format("the function does not decode at {}", source);
    }
  }

  std::string text(TargetAddr at) const {
    return fmt::format("`{}`", x86::format_insn(map_.text_from(at), at));
  }

  CodeMap map_;
  PlanRules rules_;
  std::vector<TargetAddr> order_;
  std::unordered_map<uint64_t, Outcome> outcomes_;
  std::unordered_map<uint64_t, Refusal>
      refused_before_;  ///< why a punned site takes no ordinary jump
  bool only_puns_ = false;
};

}  // namespace

std::string_view to_string(Mechanism mechanism) {
  switch (mechanism) {
    case Mechanism::kEntryNops: return "entry nops";
    case Mechanism::kJump: return "jump";
    case Mechanism::kPadding: return "jump into padding";
    case Mechanism::kShort: return "short site";
  }
  return "?";
}

std::string_view to_string(RefusalKind kind) {
  switch (kind) {
    case RefusalKind::kNoFunction: return "no function";
    case RefusalKind::kUndecodable: return "undecodable";
    case RefusalKind::kNotAnInstruction: return "inside an instruction";
    case RefusalKind::kTooShort: return "too short";
    case RefusalKind::kDirectBranch: return "branch into the window";
    case RefusalKind::kJumpTable: return "jump table into the window";
    case RefusalKind::kUnknownJump: return "unknown indirect jump";
    case RefusalKind::kCodePointer: return "code pointer into the window";
    case RefusalKind::kCodeReference: return "code reference into the window";
    case RefusalKind::kEndbrInside: return "endbr64 inside the window";
    case RefusalKind::kOtherFunction: return "another function begins inside";
    case RefusalKind::kOtherSite: return "another probe's window";
    case RefusalKind::kPageBoundary: return "page boundary";
    case RefusalKind::kReserved: return "reserved";
    case RefusalKind::kKnownCode: return "code known to be special";
    case RefusalKind::kRestoreRt: return "signal trampoline";
    case RefusalKind::kBreakpoint: return "foreign breakpoint";
    case RefusalKind::kCall: return "call returns into the patch";
    case RefusalKind::kInstruction: return "instruction cannot be moved";
  }
  return "?";
}

std::vector<Outcome> plan_sites(const ModuleCode& module,
                                std::span<const TargetAddr> sites,
                                const PlanRules& rules) {
  return Planner(module, rules).run(sites);
}

Outcome plan_entry(const ModuleCode& module, TargetAddr site, const PlanRules& rules) {
  return std::move(plan_sites(module, {&site, 1}, rules).front());
}

Outcome plan_short(const ModuleCode& module, TargetAddr site, const PlanRules& rules) {
  return Planner(module, rules).run_pun(site);
}

Plans plan_windows(const ModuleCode& module,
                   std::span<const TargetAddr> addresses,
                   const PlanRules& rules) {
  Plans plans;
  auto outcomes = plan_sites(module, addresses, rules);
  std::map<TargetAddr, SitePlan> by_site;
  for (const Outcome& o : outcomes) {
    if (o) by_site.emplace(o->site, *o);
  }
  std::map<TargetAddr, size_t> index;
  for (auto& [site, plan] : by_site) {
    index.emplace(site, plans.sites.size());
    plans.sites.push_back(std::move(plan));
  }
  for (Outcome& o : outcomes) {
    if (o)
      plans.outcomes.emplace_back(Spot{index.at(o->site), 0});
    else
      plans.outcomes.emplace_back(std::unexpected(std::move(o.error())));
  }
  return plans;
}

std::vector<uint8_t> SitePlan::segment_starts() const {
  std::vector<uint8_t> starts;
  if (probed.empty() || probed.front().offset != 0) starts.push_back(0);
  for (const ProbedHead& head : probed) starts.push_back(head.offset);
  return starts;
}

Result<x86::RelocatedCode> displaced_code(const SitePlan& plan, TargetAddr address) {
  SPILE_TRY(auto code, x86::relocate(plan.window, plan.site, address));
  SPILE_TRY_VOID(x86::append_jump_back(code));
  return code;
}

Result<x86::RelocatedCode> displaced_segment(const SitePlan& plan,
                                             size_t segment,
                                             TargetAddr address) {
  const auto starts = plan.segment_starts();
  const size_t begin = starts.at(segment);
  const bool is_last = segment + 1 == starts.size();
  const size_t end = is_last ? plan.window.size() : starts[segment + 1];
  SPILE_TRY(auto code, x86::relocate(std::span(plan.window).subspan(begin, end - begin),
                                     plan.site + begin, address));
  if (is_last) SPILE_TRY_VOID(x86::append_jump_back(code));
  return code;
}

Result<size_t> displaced_size_bytes(const SitePlan& plan) {
  // Displacements have one size wherever they point, so any reachable place has the answer. A
  // branch from one segment back to the window's start is as long as one inside it at least.
  size_t size = 0;
  for (size_t i = 0; i < plan.segment_starts().size(); ++i) {
    SPILE_TRY(const auto code, displaced_segment(plan, i, plan.site));
    size += code.bytes.size();
  }
  return size;
}

Result<PatchBytes> patch_bytes(const SitePlan& plan, TargetAddr detour) {
  if (plan.written < kPatchBytes)
    return fail(ErrorCode::kInvalid, "the site at {} needs a placement", plan.site);
  return x86::encode_jmp(plan.site, detour);
}

Result<TargetAddr> rip_after_attach(const SitePlan& plan,
                                    std::span<const Segment> segments,
                                    TargetAddr rip,
                                    bool in_syscall) {
  for (const Segment& segment : segments) {
    for (const x86::MovedInsn& insn : segment.displaced.insns) {
      const bool behind = rip == segment.displaced.original + insn.old_offset + insn.old_bytes;
      if (in_syscall && behind && x86::is_system_call(insn.kind)) {
        return segment.displaced.address + insn.new_offset + insn.old_bytes;
      }
    }
  }
  if (rip <= plan.site || rip >= plan.site + plan.written) return rip;
  for (const Segment& segment : segments) {
    if (rip == segment.displaced.original) return segment.entry;
    const bool inside = rip > segment.displaced.original &&
                        rip < segment.displaced.original + segment.displaced.original_bytes;
    if (!inside) continue;
    if (const auto moved = segment.displaced.to_relocated(rip)) return *moved;
  }
  return fail(ErrorCode::kUnsafe, "a thread is at {}, inside the bytes to patch", rip);
}

std::optional<x86::ResumePoint> rip_after_detach(const x86::RelocatedCode& displaced,
                                                 TargetAddr rip) {
  return displaced.to_original(rip);
}

}  // namespace spile::patch
