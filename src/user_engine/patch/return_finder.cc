// Following a function to every place where its calls may return: see exits.h.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "user_engine/patch/entrances.h"
#include "user_engine/patch/exits.h"
#include "user_engine/patch/window.h"
#include "x86/format.h"

namespace spile::patch {
namespace {

using x86::Kind;

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

/// endbr64; jmp *slot(%rip): an entry of the procedure linkage table.
struct Stub {
  TargetAddr jump, slot;
};

std::optional<Stub> stub_at(const CodeMap& map, TargetAddr at) {
  auto bytes = map.text_from(at);
  auto shape = x86::decode_shape(bytes);
  if (shape && shape->kind == Kind::kEndbr) {
    at += shape->length;
    bytes = bytes.subspan(shape->length);
    shape = x86::decode_shape(bytes);
  }
  if (!shape || shape->kind != Kind::kJmpIndirect || !shape->rip_relative) return std::nullopt;
  return Stub{at, shape->rip_target(at)};
}

}  // namespace

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
  if (!leaves.empty())
    text += fmt::format("{}{} through a pointer", text.empty() ? "" : ", ",
                        count(leaves.size(), "jump"));
  if (open_leaves > 0)
    text +=
        fmt::format(", {} to where is seen when it runs",
                    open_leaves == leaves.size() ? "going" : fmt::format("{} going", open_leaves));
  return text;
}

/// Everything that one function can get to by jumps.
class ReturnFinder::Walk {
 public:
  enum class Follow : uint8_t {
    kNowhere,   ///< only direct jumps: what they lead to is all that is asked for
    kPointers,  ///< also pointers at known places
    kTables,    ///< also functions that tables hold
  };

  Walk(ReturnFinder& finder, const CodeMap& home, TargetAddr function, Follow follow)
      : finder_(finder), home_(home), follow_(follow) {
    out_.function = function;
  }

  std::expected<Returns, Refusal> run() {
    if (!reach_all()) return std::unexpected(std::move(*refusal_));
    return finish();
  }

  /// Regions that can be got to; nullopt: some way cannot be followed.
  std::optional<size_t> count_regions() {
    return reach_all() ? std::optional(regions_.size()) : std::nullopt;
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

  bool reach_all() {
    region_ = home_.region_at(out_.function);
    const FunctionSpan* f = home_.function_at(out_.function);
    const bool is_stub = follow_ == Follow::kNowhere && stub_at(home_, out_.function).has_value();
    if (!is_stub && (f == nullptr || f->start != out_.function)) {
      refuse({RefusalKind::kNoFunction,
              out_.function,
              {},
              fmt::format("no function begins at {}", out_.function)});
    } else {
      visit(out_.function, {}, Way::kOther);
    }
    while (!pending_.empty() && !refusal_) {
      const Step step = pending_.back();
      pending_.pop_back();
      follow(step);
    }
    return !refusal_;
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
    if (const auto stub = stub_at(*map, target)) return visit_stub(*map, target, *stub, from, way);
    const Region region = map->region_at(target);
    if (region.is_gap) {
      return refuse({RefusalKind::kNoFunction, target, text_at(*map, target),
                     fmt::format("a jump leads to {}, where no function is known", target)});
    }
    note_edge(*map, region, target, from, way);
    if (!regions_.emplace(region.start.value, region).second) return;
    if (regions_.size() > kMaxReturnRegions) {
      return refuse(
          {RefusalKind::kUnknownJump,
           target,
           {},
           fmt::format("its tail jumps lead through more than {} functions", kMaxReturnRegions)});
    }
    note_foreign(*map, region);
    pending_.push_back({map, region});
  }

  /// A jump alone: an entry of the linkage table, or a function that calls a hook.
  void visit_stub(const CodeMap& map, TargetAddr at, const Stub& stub, TargetAddr from, Way way) {
    if (from.value != 0) out_.plain = false;
    regions_.emplace(at.value, Region{at, stub.jump + 1});
    if (finder_.source_.is_loaders_slot(stub.slot))
      return visit_slot(map, at, stub.slot, from, way);
    leave(map, {stub.jump, PointerPath{stub.slot, {0}}});
  }

  /// What the pointer leads to now is followed where that is possible. Anything else is seen when
  /// it happens.
  void leave(const CodeMap& map, const PointerJump& jump) {
    out_.plain = false;
    out_.leaves.push_back(jump.at);
    all_are_tail_jumps_ &= jump.is_at_entry_depth;
    if (follow_ == Follow::kNowhere) return;
    if (!jump.path || !follow_pointer(map, jump)) open_leaves_.insert(jump.at);
  }

  /// True: the place of the pointer is known, and what it leads to now is followed.
  bool follow_pointer(const CodeMap& map, const PointerJump& jump) {
    const auto targets = guess(jump);
    bool all = jump.path->base.has_value() && !targets.empty();
    for (const TargetAddr target : targets) {
      if (map.region_at(jump.at).contains(target)) continue;
      const auto behind = finder_.regions_behind(target);
      if (behind && regions_.size() + *behind <= kMaxReturnRegions)
        visit(target, jump.at, Way::kJump);
      else
        all = false;
    }
    return all;
  }

  std::vector<TargetAddr> guess(const PointerJump& jump) {
    if (jump.path->base || follow_ != Follow::kTables)
      return finder_.source_.pointer_targets(*jump.path);
    const auto& all = finder_.source_.table_targets(jump.at, jump.path->offsets.back());
    const size_t taken = std::min(all.size(), guesses_left_);
    guesses_left_ -= taken;
    return {all.begin(), all.begin() + static_cast<std::ptrdiff_t>(taken)};
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
    return (!region.is_gap && region.start == target) || stub_at(*map, target).has_value();
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
      if (finder_.source_.is_loaders_slot(jump.slot))
        visit_slot(*step.map, jump.at, jump.slot, jump.at, Way::kJump);
      else
        leave(*step.map, {jump.at, PointerPath{jump.slot, {0}}});
    }
    for (const PointerJump& jump : exits.pointers) leave(*step.map, jump);
    for (const TargetAddr part : exits.parts) visit(part, step.region.start, Way::kOther);
    for (const TargetAddr pad : finder_.source_.landing_pads(step.region.start))
      visit(pad, step.region.start, Way::kOther);
  }

  void visit_from(const Step& step, TargetAddr from, TargetAddr target, Way way) {
    if (step.map->is_text(target)) {
      // Within one module there is no need to search for the module.
      if (const auto stub = stub_at(*step.map, target))
        return visit_stub(*step.map, target, *stub, from, way);
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
    } else if (way == Way::kOther && from.value != 0) {
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
      if (!arrival.is_certain || arrival.jumps.empty() || loops) continue;
      if (start == out_.function.value)
        out_.reenters = true;
      else
        out_.arrivals.push_back(TargetAddr(start));
      out_.jumps.insert(out_.jumps.end(), arrival.jumps.begin(), arrival.jumps.end());
    }
    make_set(out_.jumps);
    std::erase_if(out_.jumps,
                  [&](TargetAddr a) { return std::ranges::binary_search(out_.leaves, a); });
  }

  static void make_set(std::vector<TargetAddr>& all) {
    std::ranges::sort(all);
    const auto tail = std::ranges::unique(all);
    all.erase(tail.begin(), tail.end());
  }

  std::expected<Returns, Refusal> finish() {
    make_set(out_.rets);
    make_set(out_.leaves);
    out_.open_leaves = open_leaves_.size();
    const bool is_all_open = !out_.leaves.empty() && all_are_tail_jumps_;
    if (out_.rets.empty() && (!is_all_open || follow_ == Follow::kPointers))
      return std::unexpected(nothing_to_watch());
    if (out_.rets.size() > kMaxReturnSites) {
      return std::unexpected(Refusal{
          RefusalKind::kTooShort,
          out_.function,
          {},
          fmt::format("it returns at {} places, more than {}", out_.rets.size(), kMaxReturnSites)});
    }
    if (is_entered_elsewhere()) out_.plain = false;
    if (!out_.plain) choose_arrivals();
    if (!out_.leaves.empty()) {
      for (const auto& [start, region] : regions_) out_.known.push_back(region);
    }
    for (const auto& [start, name] : names_) out_.tail_targets.emplace_back(name);
    return std::move(out_);
  }

  Refusal nothing_to_watch() const {
    if (out_.leaves.empty()) {
      return {RefusalKind::kTooShort,
              out_.function,
              {},
              fmt::format("{} never returns", home_.describe(out_.function))};
    }
    const TargetAddr at = out_.leaves.front();
    const CodeMap* map = finder_.source_.code_at(at);
    return {RefusalKind::kUnknownJump, at, text_at(*map, at),
            fmt::format("{} only leaves through a pointer, `{}`: where it returns is not known "
                        "before it runs",
                        home_.describe(out_.function), text_at(*map, at))};
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
  Follow follow_;
  size_t guesses_left_ = kMaxTableTargets;
  std::set<TargetAddr> open_leaves_;
  bool all_are_tail_jumps_ = true;
  Region region_;
  std::map<uint64_t, Region> regions_;  ///< that were got to, by start
  std::set<uint64_t> own_parts_;
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
  auto found = Walk(*this, map_, function, Walk::Follow::kPointers).run();
  if (found || found.error().kind != RefusalKind::kUnknownJump) return found;
  auto wider = Walk(*this, map_, function, Walk::Follow::kTables).run();
  return wider ? wider : found;
}

std::optional<size_t> ReturnFinder::regions_behind(TargetAddr target) {
  const auto known = behind_.find(target.value);
  if (known != behind_.end()) return known->second;
  const CodeMap* map = source_.code_at(target);
  std::optional<size_t> count;
  if (map != nullptr && map->is_text(target))
    count = Walk(*this, *map, target, Walk::Follow::kNowhere).count_regions();
  behind_[target.value] = count;
  return count;
}

const RegionExits& ReturnFinder::exits_of(const CodeMap& map, const Region& region) {
  const auto known = exits_.find(region.start.value);
  if (known != exits_.end()) return known->second;
  return exits_.emplace(region.start.value, region_exits(map, region)).first->second;
}

}  // namespace spile::patch
