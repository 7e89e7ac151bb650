#include "user_engine/patch/ways_in.h"

#include <algorithm>

namespace spile::patch {
namespace {

/// "f" of "f.cold" and "f.part.0".
std::string_view base_name(std::string_view name) {
  return name.substr(0, name.find('.'));
}

void sort_by_target(std::vector<Entrance>& list) {
  std::stable_sort(list.begin(), list.end(),
                   [](const Entrance& a, const Entrance& b) { return a.target < b.target; });
}

auto first_at_or_behind(const std::vector<Entrance>& list, TargetAddr from) {
  return std::lower_bound(list.begin(), list.end(), from,
                          [](const Entrance& e, TargetAddr a) { return e.target < a; });
}

Areas make_areas(const CodeMap& map, std::vector<Areas::Stretch> stretches) {
  std::vector<TargetAddr> starts;
  for (const Areas::Stretch& s : stretches) {
    for (TargetAddr at = s.start; at < s.end;) {
      const auto start = map.first_start_in(at, s.end);
      if (!start) break;
      starts.push_back(*start);
      at = *start + 1;
    }
  }
  return {std::move(stretches), starts};
}

}  // namespace

WaysIn::WaysIn(const CodeMap& map, std::vector<Areas::Stretch> stretches, const PlanRules& rules)
    : map_(map), rules_(rules) {
  const Areas areas = make_areas(map, std::move(stretches));
  if (areas.empty()) return;
  if (rules.direct_branches || rules.code_references)
    entrances_ = find_references(map, areas, rules);
  if (rules.shared_bytes) {
    const auto shared = find_shared_bytes(map, areas, entrances_, rules);
    entrances_.insert(entrances_.end(), shared.begin(), shared.end());
  }
  add_readers();
  // What only reads a function's first byte does not enter it.
  std::erase_if(entrances_, [&](const Entrance& e) { return areas.is_site(e.target); });
  if (rules.jump_tables) {
    TableScan tables = find_table_targets(map, areas);
    entrances_.insert(entrances_.end(), tables.entrances.begin(), tables.entrances.end());
    add_unresolved(std::move(tables.unresolved));
  }
  sort_by_target(entrances_);
  sort_by_target(readers_);
}

void WaysIn::add_readers() {
  for (Entrance byte : entrances_) {
    for (unsigned i = 0; i < byte.read_bytes; ++i, byte.target += 1) readers_.push_back(byte);
  }
}

/// An indirect jump goes anywhere in its function, and in the function that its cold part was split
/// from.
void WaysIn::add_unresolved(std::vector<Entrance> jumps) {
  unresolved_ = std::move(jumps);
  for (size_t i = 0; i < unresolved_.size(); ++i) {
    unresolved_regions_.emplace(unresolved_[i].target.value, i);
    const FunctionSpan* f = map_.function_at(unresolved_[i].target);
    if (f != nullptr && !f->name.empty()) unresolved_names_.emplace(base_name(f->name), i);
  }
}

std::optional<Entrance> WaysIn::into(TargetAddr from, TargetAddr to) const {
  if (to <= from) return std::nullopt;
  std::optional<Entrance> first;
  const auto consider = [&](Entrance e) {
    if (!first || e.target < first->target) first = e;
  };
  if (rules_.other_functions) {
    if (const auto start = map_.first_start_in(from, to))
      consider({*start, *start, RefusalKind::kOtherFunction, true});
  }
  if (rules_.code_pointers) {
    const auto& pointers = map_.module().code_pointers;
    const auto it = std::lower_bound(pointers.begin(), pointers.end(), from);
    if (it != pointers.end() && *it < to) consider({*it, *it, RefusalKind::kCodePointer, true});
  }
  if (const auto it = first_at_or_behind(entrances_, from);
      it != entrances_.end() && it->target < to)
    consider(*it);
  return first;
}

const Entrance* WaysIn::reader_of(TargetAddr from, TargetAddr to) const {
  const auto it = first_at_or_behind(readers_, from);
  return it != readers_.end() && it->target < to ? &*it : nullptr;
}

TargetAddr WaysIn::untouched_to(TargetAddr from, TargetAddr to) const {
  if (const auto way = into(from, to)) to = way->target;
  if (const Entrance* reader = reader_of(from, to)) to = reader->target;
  return to;
}

const Entrance* WaysIn::unresolved(TargetAddr at) const {
  if (unresolved_.empty()) return nullptr;
  if (const auto it = unresolved_regions_.find(map_.region_at(at).start.value);
      it != unresolved_regions_.end())
    return &unresolved_[it->second];
  const FunctionSpan* f = map_.function_at(at);
  if (f == nullptr || f->name.empty()) return nullptr;
  const auto it = unresolved_names_.find(base_name(f->name));
  return it == unresolved_names_.end() ? nullptr : &unresolved_[it->second];
}

}  // namespace spile::patch
