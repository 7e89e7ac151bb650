#include "user_engine/patch/exits.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "user_engine/patch/entrances.h"
#include "user_engine/patch/stack_depth.h"
#include "user_engine/patch/window.h"
#include "x86/format.h"

namespace spile::patch {
namespace {

using x86::Kind;
using x86::Shape;

constexpr uint64_t kMaxTableEntries = 4096;

std::string text_at(const CodeMap& map, TargetAddr at) {
  const auto bytes = map.text_from(at);
  return bytes.empty() ? std::string() : x86::format_insn(bytes, at);
}

bool is_cold_part(std::string_view name) {
  return name.find(".cold") != std::string_view::npos;
}

/// "f" of "f.cold" and "f.cold.3".
std::string_view hot_name(std::string_view name) {
  return name.substr(0, name.find(".cold"));
}

/// Finds out about one region.
class RegionScan {
 public:
  RegionScan(const CodeMap& map, const Region& region)
      : map_(map), region_(region), code_(sweep(map, region)) {}

  RegionExits run() {
    if (!code_.is_trustworthy()) {
      refuse(RefusalKind::kUndecodable, code_.decoded_to,
             fmt::format("{} does not decode, so a return may hide in it",
                         map_.describe(region_.start)));
      return std::move(out_);
    }
    depths_ = find_stack_depths(map_, code_, starts_function());
    tables_ = find_region_jumps(map_, code_);
    out_.parts = tables_.parts;
    if (depths_.switches_stack) {
      refuse(RefusalKind::kInstruction, *depths_.switches_stack,
             fmt::format("{} goes on on another stack", map_.describe(region_.start)));
    }
    for (size_t i = 0; i < code_.insns.size(); ++i) look(i);
    for (const SweptInsn& insn : code_.overlapped) look_overlapped(insn);
    run_into_next();
    return std::move(out_);
  }

 private:
  /// A part has no name, or that of its function and ".cold".
  bool starts_function() const {
    const FunctionSpan* f = map_.function_at(region_.start);
    return f != nullptr && f->start == region_.start && !f->name.empty() && !is_cold_part(f->name);
  }

  void refuse(RefusalKind kind, TargetAddr at, std::string reason) {
    if (!out_.refusal) out_.refusal = Refusal{kind, at, text_at(map_, at), std::move(reason)};
  }

  void look(size_t i) {
    const Shape& s = code_.insns[i].shape;
    const TargetAddr at = code_.address(code_.insns[i]);
    switch (s.kind) {
      case Kind::kRet: return ret(i, at);
      case Kind::kJmp:
      case Kind::kSwitch:
      case Kind::kJcc:
      case Kind::kLoop:
      case Kind::kXbegin: return leave(at, s.branch_target(at));
      case Kind::kJmpIndirect: return indirect(i, s, at);
      case Kind::kCall: return call(at, s);
      default: return;
    }
  }

  /// The row and its overlaps share most code: only a way out that the row does not show matters.
  void look_overlapped(const SweptInsn& insn) {
    const Shape& s = insn.shape;
    const TargetAddr at = code_.address(insn);
    const bool leaves =
        s.is_direct_branch() && s.kind != Kind::kCall && !region_.contains(s.branch_target(at));
    if (s.kind == Kind::kRet || s.kind == Kind::kJmpIndirect || s.kind == Kind::kFar || leaves) {
      refuse(RefusalKind::kUndecodable, at,
             "a way out of the function begins inside another instruction");
    }
  }

  void ret(size_t i, TargetAddr at) {
    const StackDepth& depth = depths_.before[i];
    if (depth.from_entry && depth.bytes.value_or(0) != 0) {
      refuse(RefusalKind::kInstruction, at,
             fmt::format("the return at {} pops what the function pushed: it is a jump",
                         map_.describe(at)));
    }
    if (i > 0 && writes_top_of_stack(code_.insns[i - 1])) {
      refuse(RefusalKind::kInstruction, at,
             fmt::format("the return at {} goes where the function has put it: it is a jump",
                         map_.describe(at)));
    }
    out_.rets.push_back(at);
  }

  /// mov %rax,(%rsp): the thunks of -mindirect-branch=thunk jump so.
  bool writes_top_of_stack(const SweptInsn& insn) const {
    const Shape& s = insn.shape;
    const bool is_top = s.modrm_offset != 0 && (s.modrm >> 6) == 0 && (s.modrm & 7) == 4 &&
                        (s.sib & 0x3f) == 0x24 && (s.rex & 3) == 0;
    const bool is_load = s.map != 0 || s.opcode == 0x8b || s.opcode == 0x8d || s.opcode == 0x85 ||
                         (s.opcode >= 0x38 && s.opcode <= 0x3b);
    return is_top && !is_load;
  }

  /// Subroutines of hand-written code that have no symbol of their own. call +0 only asks where it
  /// is.
  void call(TargetAddr at, const Shape& s) {
    const TargetAddr target = s.branch_target(at);
    out_.calls_itself |=
        region_.contains(target) && target != region_.start && target != at + s.length;
  }

  void leave(TargetAddr at, TargetAddr target) {
    if (!region_.contains(target)) out_.jumps.push_back({at, target});
    out_.loops_to_start |= target == region_.start || target == skip_endbr(map_, region_.start);
  }

  void indirect(size_t i, const Shape& s, TargetAddr at) {
    if (s.rip_relative) return out_.slots.push_back({at, s.rip_target(at)});
    if (depths_.before[i].bytes.value_or(0) != 0) return;  // the frame is still there
    if (has_notrack(s, at) || std::ranges::find(tables_.by_table, at) != tables_.by_table.end())
      return;
    if (read_absolute_table(s, at)) return;
    refuse(RefusalKind::kUnknownJump, at,
           fmt::format("{} may leave through the pointer of `{}`: where it returns then is not "
                       "known before it runs",
                       map_.describe(region_.start), text_at(map_, at)));
  }

  /// 3e ff /4: compilers for indirect branch tracking mark switches so, since no endbr64 is there.
  bool has_notrack(const Shape& s, TargetAddr at) const {
    const auto prefixes = map_.text_from(at).first(s.opcode_offset);
    return std::ranges::find(prefixes, 0x3e) != prefixes.end();
  }

  /// jmp *table(,%reg,8) with the table in constant data: modules at fixed addresses have it for
  /// switches and for arrays of functions.
  bool read_absolute_table(const Shape& s, TargetAddr at) {
    const bool by_sib = s.modrm_offset != 0 && (s.modrm >> 6) == 0 && (s.modrm & 7) == 4 &&
                        (s.sib >> 6) == 3 && (s.sib & 7) == 5 && s.disp_bytes == 4;
    if (!by_sib) return false;
    const TargetAddr table(static_cast<uint64_t>(s.disp));
    bool found = false;
    for (uint64_t i = 0; i < kMaxTableEntries; ++i) {
      const auto entry = map_.read<uint64_t>(table + i * sizeof(uint64_t));
      if (!entry || !map_.is_text(TargetAddr(*entry))) break;
      leave(at, TargetAddr(*entry));
      found = true;
    }
    return found;
  }

  /// Hand-written code may run on into the next symbol; a call at the end does not come back.
  void run_into_next() {
    auto last = std::find_if(code_.insns.rbegin(), code_.insns.rend(),
                             [](const SweptInsn& i) { return i.shape.kind != Kind::kNop; });
    if (last == code_.insns.rend()) return continue_at(region_.start, region_.end);
    const bool is_call = last->shape.kind == Kind::kCall || last->shape.kind == Kind::kCallIndirect;
    if (last->shape.ends_flow() || is_call) return;
    continue_at(code_.address(*last), region_.end);
  }

  void continue_at(TargetAddr from, TargetAddr next) {
    const Region gap = map_.region_at(next);
    if (gap.is_gap && gap.end > gap.start) {
      const auto bytes = map_.text_of(gap);
      if (x86::padding_bytes(bytes) == bytes.size()) next = gap.end;
    }
    out_.jumps.push_back({from, next, true});
  }

  const CodeMap& map_;
  Region region_;
  Sweep code_;
  StackDepths depths_;
  RegionJumps tables_;
  RegionExits out_;
};

/// endbr64; jmp *slot(%rip): an entry of the procedure linkage table.
std::optional<TargetAddr> slot_of_stub(const CodeMap& map, TargetAddr at) {
  auto bytes = map.text_from(at);
  auto shape = x86::decode_shape(bytes);
  if (shape && shape->kind == Kind::kEndbr) {
    at += shape->length;
    bytes = bytes.subspan(shape->length);
    shape = x86::decode_shape(bytes);
  }
  if (!shape || shape->kind != Kind::kJmpIndirect || !shape->rip_relative) return std::nullopt;
  return shape->rip_target(at);
}

}  // namespace

RegionExits region_exits(const CodeMap& map, const Region& region) {
  return RegionScan(map, region).run();
}

std::string Returns::describe() const {
  const auto count = [](size_t n, const char* what) {
    return fmt::format("{} {}{}", n, what, n == 1 ? "" : "s");
  };
  std::string text = own_rets > 0 ? count(own_rets, "return") : "";
  if (!tail_targets.empty()) {
    text +=
        fmt::format("{}{} to ", text.empty() ? "" : ", ", count(tail_targets.size(), "tail jump"));
    for (size_t i = 0; i < tail_targets.size() && i < 3; ++i)
      text += fmt::format("{}{}", i == 0 ? "" : ", ", tail_targets[i]);
    if (tail_targets.size() > 3) text += ", ...";
  }
  return text;
}

/// Everything that one function can get to by jumps.
class ReturnFinder::Walk {
 public:
  Walk(ReturnFinder& finder, TargetAddr function) : finder_(finder), home_(finder.map_) {
    out_.function = function;
  }

  std::expected<Returns, Refusal> run() {
    region_ = home_.region_at(out_.function);
    const FunctionSpan* f = home_.function_at(out_.function);
    if (f == nullptr || f->start != out_.function)
      return std::unexpected(Refusal{RefusalKind::kNoFunction,
                                     out_.function,
                                     {},
                                     fmt::format("no function begins at {}", out_.function)});
    visit(out_.function, {}, Way::kOther);
    while (!pending_.empty() && !refusal_) {
      const Step step = pending_.back();
      pending_.pop_back();
      follow(step);
    }
    if (refusal_) return std::unexpected(std::move(*refusal_));
    return finish();
  }

 private:
  /// A region to look at, and by which jump the way led there.
  struct Step {
    const CodeMap* map;
    Region region;
  };

  /// Who jumps to a region's start.
  struct Arrival {
    std::vector<TargetAddr> jumps;
    bool is_certain = true;
  };

  void refuse(Refusal refusal) {
    if (!refusal_) refusal_ = std::move(refusal);
  }

  /// `from`: the jump that leads there; `how` it may be announced.
  enum class Way : uint8_t { kJump, kOther };

  void visit(TargetAddr target, TargetAddr from, Way way) {
    const CodeMap* map = finder_.source_.code_at(target);
    if (map == nullptr || !map->is_text(target)) {
      return refuse(
          {RefusalKind::kNoFunction, from, text_at(home_, from),
           fmt::format("{} leads to {}, where no code is known", home_.describe(from), target)});
    }
    if (const auto slot = slot_of_stub(*map, target))
      return visit_slot(*map, target, *slot, from, way);
    const Region region = map->region_at(target);
    if (region.is_gap) {
      return refuse({RefusalKind::kNoFunction, target, text_at(*map, target),
                     fmt::format("a jump leads to {}, where no function is known", target)});
    }
    note_edge(*map, region, target, from, way);
    if (!seen_.insert(region.start.value).second) return;
    if (seen_.size() > kMaxReturnRegions) {
      return refuse(
          {RefusalKind::kUnknownJump,
           target,
           {},
           fmt::format("its tail jumps lead through more than {} functions", kMaxReturnRegions)});
    }
    note_foreign(*map, region);
    pending_.push_back({map, region});
  }

  void visit_slot(const CodeMap& map, TargetAddr at, TargetAddr slot, TargetAddr from, Way way) {
    if (!slots_.insert({slot.value, from.value}).second) return;
    const auto targets = finder_.source_.slot_targets(slot);
    const bool known = !targets.empty() && std::ranges::all_of(targets, [&](TargetAddr target) {
      return is_function(target);
    });
    if (!known) {
      return refuse({RefusalKind::kUnknownJump, at, text_at(map, at),
                     fmt::format("the jump at {} goes where the word at {} says, and what that is "
                                 "is not known",
                                 map.describe(at), slot)});
    }
    for (const TargetAddr target : targets) visit(target, from, way);
  }

  /// A word that is not filled in yet may hold anything, also another place of the code.
  bool is_function(TargetAddr target) const {
    const CodeMap* map = finder_.source_.code_at(target);
    if (map == nullptr || !map->is_text(target)) return false;
    const Region region = map->region_at(target);
    return (!region.is_gap && region.start == target) || slot_of_stub(*map, target).has_value();
  }

  /// Anything but the function and its parts with its name makes it tracked.
  void note_foreign(const CodeMap& map, const Region& region) {
    if (&map == &home_ && region.start == region_.start) return;
    const FunctionSpan* f = map.function_at(region.start);
    const std::string_view name = f == nullptr ? std::string_view() : f->name;
    if (&map == &home_ && is_cold_part(name) && is_own_name(hot_name(name))) {
      own_parts_.insert(region.start.value);
      return;
    }
    out_.plain = false;
    names_.emplace(region.start.value,
                   name.empty() ? fmt::format("{}", region.start) : std::string(name));
  }

  /// One of the names of the function.
  bool is_own_name(std::string_view name) const {
    const auto& functions = home_.module().functions;
    const auto aliases = std::ranges::equal_range(functions, out_.function, {}, &Function::start);
    return std::ranges::any_of(aliases, [&](const Function& f) { return f.name == name; });
  }

  void follow(const Step& step) {
    const RegionExits& exits = finder_.exits_of(*step.map, step.region);
    if (exits.refusal) return refuse(*exits.refusal);
    const bool is_own = step.region.start == region_.start ||
                        (step.map == &home_ && own_parts_.contains(step.region.start.value));
    if (is_own) out_.own_rets += exits.rets.size();
    if (is_own && exits.calls_itself) out_.plain = false;
    out_.rets.insert(out_.rets.end(), exits.rets.begin(), exits.rets.end());
    for (const JumpOut& jump : exits.jumps)
      visit_from(step, jump.at, jump.target, jump.runs_on ? Way::kOther : Way::kJump);
    for (const SlotJump& jump : exits.slots) {
      if (is_own) out_.plain = false;
      visit_slot(*step.map, jump.at, jump.slot, jump.at, Way::kJump);
    }
    for (const TargetAddr part : exits.parts) visit(part, step.region.start, Way::kOther);
    for (const TargetAddr pad : finder_.source_.landing_pads(step.region.start))
      visit(pad, step.region.start, Way::kOther);
  }

  void visit_from(const Step& step, TargetAddr from, TargetAddr target, Way way) {
    if (step.map->is_text(target)) {
      // Within one module there is no need to search for the module.
      if (const auto slot = slot_of_stub(*step.map, target)) {
        out_.plain = false;
        return visit_slot(*step.map, target, *slot, from, way);
      }
    }
    visit(target, from, way);
  }

  /// Remembers who leads to a function's start, and whether that can be announced always.
  void note_edge(
      const CodeMap& map, const Region& region, TargetAddr target, TargetAddr from, Way way) {
    const bool at_start = target == region.start || target == skip_endbr(map, region.start);
    Arrival& arrival = arrivals_[region.start.value];
    if (way == Way::kJump && at_start) {
      arrival.jumps.push_back(from);
    } else if (way == Way::kOther) {
      arrival.is_certain = false;
    }
    const FunctionSpan* f = map.function_at(region.start);
    const bool is_function =
        f != nullptr && f->start == region.start && !f->name.empty() && !is_cold_part(f->name);
    arrival.is_certain &= is_function;
  }

  /// An entry that is reached in any way but by a jump that can be watched would drop what is
  /// alive.
  void choose_arrivals() {
    for (auto& [start, arrival] : arrivals_) {
      const auto exits = finder_.exits_.find(start);
      const bool loops = exits != finder_.exits_.end() && exits->second.loops_to_start;
      if (!arrival.is_certain || arrival.jumps.empty() || loops || start == out_.function.value)
        continue;
      out_.arrivals.push_back(TargetAddr(start));
      out_.jumps.insert(out_.jumps.end(), arrival.jumps.begin(), arrival.jumps.end());
    }
    std::ranges::sort(out_.jumps);
    const auto tail = std::ranges::unique(out_.jumps);
    out_.jumps.erase(tail.begin(), tail.end());
  }

  std::expected<Returns, Refusal> finish() {
    std::ranges::sort(out_.rets);
    const auto tail = std::ranges::unique(out_.rets);
    out_.rets.erase(tail.begin(), tail.end());
    if (out_.rets.empty())
      return std::unexpected(
          Refusal{RefusalKind::kTooShort,
                  out_.function,
                  {},
                  fmt::format("{} never returns", home_.describe(out_.function))});
    if (out_.rets.size() > kMaxReturnSites) {
      return std::unexpected(Refusal{
          RefusalKind::kTooShort,
          out_.function,
          {},
          fmt::format("it returns at {} places, more than {}", out_.rets.size(), kMaxReturnSites)});
    }
    if (is_entered_elsewhere()) out_.plain = false;
    if (!out_.plain) choose_arrivals();
    for (const auto& [start, name] : names_) out_.tail_targets.emplace_back(name);
    return std::move(out_);
  }

  bool is_entered_elsewhere() const {
    const auto& all = finder_.entrances_;
    auto it = std::ranges::lower_bound(all, region_.start, {}, &BranchInto::target);
    for (; it != all.end() && it->target < region_.end; ++it) {
      if (!own_parts_.contains(home_.region_at(it->source).start.value)) return true;
    }
    return false;
  }

  ReturnFinder& finder_;
  const CodeMap& home_;
  Region region_;
  std::set<uint64_t> seen_, own_parts_;
  std::set<std::pair<uint64_t, uint64_t>> slots_;  ///< word, and the jump that leads there
  std::map<uint64_t, Arrival> arrivals_;           ///< by start of region
  std::map<uint64_t, std::string> names_;
  std::vector<Step> pending_;
  std::optional<Refusal> refusal_;
  Returns out_;
};

ReturnFinder::ReturnFinder(CodeSource& source,
                           const CodeMap& map,
                           std::span<const TargetAddr> functions)
    : source_(source), map_(map) {
  std::vector<Region> regions;
  for (const TargetAddr f : functions) regions.push_back(map.region_at(f));
  std::ranges::sort(regions, {}, &Region::start);
  const auto tail = std::ranges::unique(regions);
  regions.erase(tail.begin(), tail.end());
  entrances_ = find_branches_into(map, regions);
  std::ranges::sort(entrances_, {}, &BranchInto::target);
}

std::expected<Returns, Refusal> ReturnFinder::find(TargetAddr function) {
  return Walk(*this, function).run();
}

const RegionExits& ReturnFinder::exits_of(const CodeMap& map, const Region& region) {
  const auto known = exits_.find(region.start.value);
  if (known != exits_.end()) return known->second;
  return exits_.emplace(region.start.value, region_exits(map, region)).first->second;
}

}  // namespace spile::patch
