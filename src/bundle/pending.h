// Actions on maps that must not be lost: where one finds the ring full, it is counted in the
// counters map, and whoever reads the ring does it.
//
//   counters map   [0, Counter::kCount)  what was lost, by reason
//                  behind it             one word for each clear(), zero() and print() of a map in
//                                        the script, in the order of the actions
//
// The order among them is then lost, and several of one place become one: all of them say "do this
// to the map as it is".
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "bundle/bundle.h"

namespace spile::bundle {

inline bool is_of_a_map(const Action& action) {
  return action.kind == ActionKind::kPrintMap || action.kind == ActionKind::kClearMap ||
         action.kind == ActionKind::kZeroMap;
}

/// The counter in which `action` leaves word; nothing: a record that finds no room is lost.
inline std::optional<uint32_t> pending_counter(const Bundle& bundle, size_t action) {
  if (action >= bundle.actions.size() || !is_of_a_map(bundle.actions[action])) return std::nullopt;
  const auto begin = bundle.actions.begin();
  const auto before =
      std::count_if(begin, begin + static_cast<std::ptrdiff_t>(action), is_of_a_map);
  return static_cast<uint32_t>(Counter::kCount) + static_cast<uint32_t>(before);
}

/// There may be something to find among the counters.
inline bool may_leave_word(const Bundle& bundle) {
  return std::ranges::any_of(bundle.actions, [](const Action& action) {
    return action.kind == ActionKind::kExit || is_of_a_map(action);
  });
}

}  // namespace spile::bundle
