// Bytes that nobody runs: where the second half of a hop can be.
#pragma once

#include <map>
#include <vector>

#include "user_engine/patch/window.h"

namespace spile::patch {

/// Bytes that are never reached as they are.
struct HostArea {
  TargetAddr start, end;
  uint8_t level = 0;  ///< at least that of an edit in them
};

/// Padding behind code: nops and int3 that control does not fall into, that nothing enters, refers
/// to or reads, and that is not reserved.
class Padding {
 public:
  explicit Padding(const Scene& scene) : scene_(scene) {}

  /// All that lies in [from, to) from its first byte on. The ways into [from, to) must be known.
  std::vector<HostArea> in(TargetAddr from, TargetAddr to);

 private:
  struct Found {
    std::vector<HostArea> areas;  ///< whoever may enter them
    bool dead_at_end = false;     ///< control does not fall out of the region's end
  };
  const Found& of(const Region& region);
  Found look(const Region& region);
  /// The run of padding that begins at `at`.
  void add_run(const Region& region, TargetAddr at, Found& found) const;
  /// The part of `area` that is safe to change.
  HostArea safe_part(HostArea area) const;

  const Scene& scene_;
  std::map<TargetAddr, Found> regions_;
};

}  // namespace spile::patch
