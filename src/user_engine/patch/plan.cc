#include "user_engine/patch/plan.h"

#include <fmt/format.h>

#include <algorithm>

#include "user_engine/patch/code_map.h"
#include "user_engine/patch/ways_in.h"
#include "user_engine/patch/window.h"

namespace spile::patch {
namespace {

/// Finds the window of one place after the other, in order of address.
class WindowSearch {
 public:
  explicit WindowSearch(const Scene& scene) : scene_(scene) {}

  /// The window of `place` alone; it may begin earlier. No byte below `from` is part of it.
  std::expected<Window, Refusal> find(TargetAddr place, TargetAddr from) {
    Window window(scene_, place);
    auto why = window.take_full(place);
    if (!why) return window;
    if (!may_be_elsewhere(why->kind)) return std::unexpected(std::move(*why));
    const auto starts = earlier_starts(place, from);
    for (const TargetAddr start : starts) {
      Window earlier(scene_, start);
      if (!earlier.take_full(place)) return earlier;
    }
    if (scene_.rules.puns) {
      if (auto best = longest_short(place, starts)) return std::move(*best);
    }
    return std::unexpected(std::move(*why));  // it says more than those that came after it
  }

  /// Where the bytes of `window` end that no other window may have.
  static TargetAddr end_of(const SitePlan& plan) {
    return std::max(plan.window_end(), plan.site + plan.written);
  }

 private:
  /// Not: what is wrong with the place itself.
  static bool may_be_elsewhere(RefusalKind kind) {
    switch (kind) {
      case RefusalKind::kNoFunction:
      case RefusalKind::kNotAnInstruction:
      case RefusalKind::kKnownCode:
      case RefusalKind::kRestoreRt:
      case RefusalKind::kBreakpoint: return false;
      default: return true;
    }
  }

  /// Instructions from which control only ever goes on to `place`, the nearest first.
  std::vector<TargetAddr> earlier_starts(TargetAddr place, TargetAddr from) {
    std::vector<TargetAddr> starts;
    const FunctionSpan* function = scene_.map.function_at(place);
    if (place == function->start || scene_.ways.unresolved(place) != nullptr) return starts;
    const Sweep& code = scene_.sweeps.around(place);
    const SweptInsn* insn = code.covering(place);
    if (insn == nullptr || code.address(*insn) != place || !code.is_trustworthy()) return starts;
    for (TargetAddr next = place; insn != code.insns.data(); next = starts.back()) {
      --insn;
      const TargetAddr start = code.address(*insn);
      const bool leaves = insn->shape.ends_flow() || insn->shape.kind == x86::Kind::kCall ||
                          insn->shape.kind == x86::Kind::kCallIndirect;
      if (leaves || start < from || start + kMaxWindowBytes <= place) break;
      if (scene_.ways.into(start + 1, next + 1)) break;
      starts.push_back(start);
    }
    return starts;
  }

  /// The short window with the most bytes of its own.
  std::optional<Window> longest_short(TargetAddr place, std::span<const TargetAddr> starts) {
    std::optional<Window> best;
    const auto consider = [&](TargetAddr start) {
      if (start + kPatchBytes <= place) return;
      Window window(scene_, start);
      if (window.take_short(place, false)) return;
      if (!best || window.plan().written > best->plan().written) best = std::move(window);
    };
    consider(place);
    for (const TargetAddr start : starts) consider(start);
    return best;
  }

  const Scene& scene_;
};

/// One call of plan_sites, plan_windows or plan_short.
class Planner {
 public:
  Planner(const ModuleCode& module, const PlanRules& rules)
      : map_(module), rules_(rules), sweeps_(map_) {}

  std::vector<Outcome> run_alone(std::span<const TargetAddr> addresses) {
    prepare(addresses);
    std::vector<Outcome> outcomes;
    outcomes.reserve(addresses.size());
    for (const TargetAddr address : addresses) outcomes.push_back(alone(address));
    return outcomes;
  }

  Plans run_together(std::span<const TargetAddr> addresses) {
    prepare(addresses);
    spots_.reserve(places_.size());
    plans_.sites.reserve(places_.size());
    plans_.outcomes.reserve(addresses.size());
    for (const TargetAddr place : places_) spots_.push_back(together(place));
    close();
    for (const TargetAddr address : addresses) {
      const auto it = std::lower_bound(places_.begin(), places_.end(), place_of(address));
      plans_.outcomes.push_back(spots_[static_cast<size_t>(it - places_.begin())]);
    }
    return std::move(plans_);
  }

  Outcome run_short(TargetAddr address) {
    prepare({&address, 1});
    Window window(*scene_, place_of(address));
    if (auto why = window.take_short(place_of(address), true))
      return std::unexpected(std::move(*why));
    window.add_probe(place_of(address));
    return window.finish();
  }

  std::vector<Outcome> run_traps(std::span<const TargetAddr> addresses) {
    prepare(addresses);
    std::vector<Outcome> outcomes;
    outcomes.reserve(addresses.size());
    for (const TargetAddr address : addresses) outcomes.push_back(trap(place_of(address)));
    return outcomes;
  }

 private:
  Outcome trap(TargetAddr place) {
    Window window(*scene_, place);
    if (auto why = window.take_trap()) return std::unexpected(std::move(*why));
    window.add_probe(place);
    return window.finish();
  }

  /// Behind an endbr64, unless its bytes are part of another instruction.
  TargetAddr place_of(TargetAddr address) {
    const TargetAddr behind = skip_endbr(map_, address);
    if (behind == address) return behind;
    const FunctionSpan* f = map_.function_at(address);
    if (f == nullptr || f->start == address) return behind;
    const Sweep& code = sweeps_.around(address);
    const SweptInsn* insn = code.covering(address);
    return insn != nullptr && code.address(*insn) == address ? behind : address;
  }

  void prepare(std::span<const TargetAddr> addresses) {
    for (const TargetAddr address : addresses) places_.push_back(place_of(address));
    std::sort(places_.begin(), places_.end());
    places_.erase(std::unique(places_.begin(), places_.end()), places_.end());
    std::vector<Areas::Stretch> stretches;
    for (const TargetAddr place : places_) {
      const FunctionSpan* f = map_.function_at(place);
      if (f == nullptr) continue;
      // Only inside a function may the window begin earlier.
      const bool entry = place == f->start || place == skip_endbr(map_, f->start);
      const TargetAddr from = entry ? place : std::max(f->start, place - kMaxWindowBytes);
      const TargetAddr to = place + kPatchBytes;
      if (!stretches.empty() && from <= stretches.back().end)
        stretches.back().end = to;
      else
        stretches.push_back({from, to});
    }
    ways_.emplace(map_, std::move(stretches), rules_);
    scene_.emplace(Scene{map_, *ways_, sweeps_, rules_});
    search_.emplace(*scene_);
  }

  Outcome alone(TargetAddr address) {
    const TargetAddr place = place_of(address);
    auto window = search_->find(place, TargetAddr(0));
    if (!window) return std::unexpected(std::move(window.error()));
    window->add_probe(place);
    return window->finish();
  }

  std::expected<Spot, Refusal> together(TargetAddr place) {
    const bool apart = !rules_.other_sites || !open_;
    if (!apart && open_->has_head(place)) return probe_in_open(place);
    const TargetAddr taken = apart ? TargetAddr(0) : WindowSearch::end_of(open_->plan());
    if (!apart && place < taken) return std::unexpected(overlap(place));
    if (!apart && place == taken && extend_open(place)) return probe_in_open(place);
    auto window = search_->find(place, taken);
    const bool is_short = window && window->plan().mechanism == Mechanism::kShort;
    if ((!window || is_short) && !apart && extend_open(place)) return probe_in_open(place);
    if (!window) return std::unexpected(std::move(window.error()));
    close();
    open_.emplace(std::move(*window));
    return probe_in_open(place);
  }

  bool extend_open(TargetAddr place) {
    return open_->plan().mechanism != Mechanism::kShort &&
           place < open_->plan().site + kMaxWindowBytes && !open_->extend(place);
  }

  Spot probe_in_open(TargetAddr place) {
    open_->add_probe(place);
    return {plans_.sites.size(), static_cast<uint8_t>(place - open_->plan().site)};
  }

  void close() {
    if (open_) plans_.sites.push_back(open_->finish());
    open_.reset();
  }

  Refusal overlap(TargetAddr place) const {
    Refusal r{RefusalKind::kOtherSite, open_->plan().site, {}, {}};
    r.reason = fmt::format("{} is overwritten by the jump of another probe, at {}",
                           map_.describe(place), map_.describe(open_->plan().site));
    return r;
  }

  CodeMap map_;
  PlanRules rules_;
  Sweeps sweeps_;
  std::vector<TargetAddr> places_;
  std::optional<WaysIn> ways_;
  std::optional<Scene> scene_;
  std::optional<WindowSearch> search_;
  std::optional<Window> open_;  ///< the last window: the next place may be part of it
  std::vector<std::expected<Spot, Refusal>> spots_;  ///< one a place
  Plans plans_;
};

}  // namespace

std::string_view to_string(Mechanism mechanism) {
  switch (mechanism) {
    case Mechanism::kEntryNops: return "entry nops";
    case Mechanism::kJump: return "jump";
    case Mechanism::kPadding: return "jump into padding";
    case Mechanism::kShort: return "short site";
    case Mechanism::kTrap: return "int3 with slot";
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
    case RefusalKind::kSharedBytes: return "bytes of two instruction streams";
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
  return Planner(module, rules).run_alone(sites);
}

Plans plan_windows(const ModuleCode& module,
                   std::span<const TargetAddr> addresses,
                   const PlanRules& rules) {
  return Planner(module, rules).run_together(addresses);
}

Outcome plan_entry(const ModuleCode& module, TargetAddr site, const PlanRules& rules) {
  return std::move(plan_sites(module, {&site, 1}, rules).front());
}

Outcome plan_short(const ModuleCode& module, TargetAddr site, const PlanRules& rules) {
  return Planner(module, rules).run_short(site);
}

std::vector<Outcome> plan_traps(const ModuleCode& module,
                                std::span<const TargetAddr> addresses,
                                const PlanRules& rules) {
  return Planner(module, rules).run_traps(addresses);
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
