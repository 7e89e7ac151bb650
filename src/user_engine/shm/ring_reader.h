// Reads records out of the rings of one or more regions, in time order across CPUs.
//
// A pass over the rings takes the time first (the horizon). A record that is not yet visible when a
// ring is looked at will carry a later time than the horizon, so what is older can be handed out in
// order; the rest waits for the next pass. A record that is still being written holds back what is
// later than itself, for order_wait at most.
//
// The shared memory is hostile: positions are private, every length is checked, bodies are copied
// before they are looked at, and one pass over a ring ends after one lap. A ring that makes no
// sense is given up and counted.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "abi/ring.h"
#include "user_engine/shm/region.h"

namespace spile::shm {

/// What is known about the thread that reserved a record and has not finished it.
enum class OwnerState {
  kGone,       ///< it no longer exists: the record will never be finished
  kMayFinish,  ///< it is stopped, or known to be inside a hit: wait
  kUnknown,    ///< it lives; whether it will come back to the record is not known: wait for
               ///< abandon_after
};

/// Asked with the thread id as the target itself sees it (its pid namespace); 0: the id could not
/// be had.
using OwnerProbe = std::function<OwnerState(uint32_t tid_inside)>;

struct ReaderOptions {
  std::chrono::milliseconds order_wait{
      20};  ///< how long an unfinished record holds back later ones
  std::chrono::milliseconds owner_check_after{20};
  std::chrono::milliseconds abandon_after{10'000};
  size_t max_pending_bytes = size_t{64} << 20;  ///< above it order is given up
};

struct ReaderStats {
  uint64_t records = 0;
  uint64_t abandoned = 0;      ///< records whose owner never finished them: lost
  uint64_t corrupt_rings = 0;  ///< rings given up
};

/// One record's body. `tsc` is the time-stamp counter when it was reserved.
using RecordVisitor = std::function<void(uint64_t tsc, std::span<const uint8_t> body)>;

class RingReader {
 public:
  explicit RingReader(ReaderOptions options = {}) : options_(options) {}

  /// Reads ring map `map` of `region` too. The region's memory must outlive the reader or be
  /// removed first. Errors: invalid if the map is no ring.
  Result<void> add(const Region& region, size_t map, OwnerProbe owner);
  /// Reads what is left of a region's rings and forgets them.
  void remove(const Region& region);

  /// One pass: hands out what can be handed out in order. Returns how many records.
  size_t poll(const RecordVisitor& visit);
  /// The last pass, when nobody writes any more: everything, unfinished records counted as
  /// abandoned.
  size_t finish(const RecordVisitor& visit);

  const ReaderStats& stats() const { return stats_; }

 private:
  struct Source {
    const uint8_t* region = nullptr;  ///< identity of the region only
    abi::RingHead* head = nullptr;
    uint8_t* data = nullptr;
    uint64_t size = 0;
    uint64_t position =
        abi::kRingFirstPosition;  ///< private: the shared consumer_pos is only written
    std::shared_ptr<OwnerProbe> owner;
    uint64_t busy_position = 0;  ///< 0: not waiting for a record
    std::chrono::steady_clock::time_point busy_since;
    uint64_t busy_bound = 0;
    bool corrupt = false;
  };
  struct Item {
    uint64_t tsc;
    uint64_t order;  ///< of arrival: keeps records with equal times stable
    size_t offset;   ///< in bytes_
    uint32_t length;
  };

  uint64_t drain(Source& source, uint64_t horizon, bool last);
  bool skip_busy(Source& source, uint64_t header, bool last);
  uint64_t busy_bound(Source& source, uint64_t horizon);
  void take(Source& source, uint64_t length);
  void release(Source& source, uint64_t length);
  size_t pass(const RecordVisitor& visit, bool last);
  size_t hand_out(uint64_t bound, const RecordVisitor& visit);
  void keep_from(size_t first);

  ReaderOptions options_;
  ReaderStats stats_;
  std::vector<Source> sources_;
  std::vector<Item> items_;
  std::vector<uint8_t> bytes_;
  uint64_t arrivals_ = 0;
  uint64_t last_bound_ = 0;
};

}  // namespace spile::shm
