// The handlers of each kind of registration, as a site calls them. Runs on the hit path: built for
// general registers.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "api/hit.h"

namespace spile::api {

int run_kprobe(Hook* hook, Site* site, spile_regs* regs);
void run_kprobe_behind(Hook* hook, Site* site, spile_regs* regs);

/// Calls under way of which the return is waited for, by the stack slot of their return address. A
/// slot belongs to one call at a time: an entry that finds its own slot taken has found what a call
/// that did not return (exception, longjmp) has left.
struct Call {
  std::atomic<uint64_t> slot;  ///< 0: free
  const uint64_t* thread;      ///< its word, in the table for all threads
  uint64_t function;
  uint64_t return_address;  ///< 0: its return is not wanted
  // data follows
  void* data() { return this + 1; }
};

/// A table for all threads, in which a place is claimed by an atomic operation, and before it a few
/// places for each thread, which need none: only their thread begins calls there. A call may end on
/// another thread (a coroutine): whoever does not find it at home looks everywhere.
class Calls {
 public:
  struct Shape {
    size_t buckets = 1;  ///< a power of two; found by the slot
    size_t ways = 1;     ///< calls in each
    size_t data_bytes = 0;
    bool has_own = false;  ///< places of each thread, too
  };
  /// False: no memory.
  bool make(const Shape& shape);
  ~Calls();
  Calls() = default;
  Calls(const Calls&) = delete;
  Calls& operator=(const Calls&) = delete;

  /// Among the thread's own places that were in use before; nullptr: none is free, or it has none.
  Call* begin_own(uint64_t slot);
  /// Among all; nullptr: as many calls are under way as there is room for.
  Call* begin_anywhere(uint64_t slot);
  static void begin(Call* call, uint64_t function, uint64_t return_address) {
    call->function = function;
    call->return_address = return_address;
  }
  /// A call is its function, the slot, and what the slot holds: a call that has not returned may
  /// have left the first two, and the entry of a later one may not have been seen.
  Call* find_own(uint64_t slot, uint64_t function) const;
  /// nullptr: the entry of this call was not seen.
  Call* find_anywhere(uint64_t slot, uint64_t function) const;
  static void end(Call* call) { call->slot.store(0, std::memory_order_release); }

 private:
  static constexpr size_t kOwnWays = 8;
  struct Own {
    std::atomic<size_t> used_bytes;  ///< calls from here on have never been taken
    uint64_t reserved;
    // kOwnWays calls follow
    uint8_t* calls() { return reinterpret_cast<uint8_t*>(this + 1); }
  };
  Own* own_of(size_t place_in_table) const {
    return reinterpret_cast<Own*>(own_memory_ + place_in_table * own_scale_);
  }
  Call* find_in(Own* own, uint64_t slot, uint64_t function, uint64_t return_address) const;
  Call* find_shared(uint64_t slot, uint64_t function, uint64_t return_address) const;
  Call* find_elsewhere(uint64_t slot, uint64_t function, uint64_t return_address) const;
  Own* my_own() const;
  Call* begin_further_own(uint64_t slot);
  Call* begin_shared(uint64_t slot);
  Call* at(size_t bucket, size_t way) const;
  Call* reap(size_t bucket, uint64_t slot);
  size_t bucket_of(uint64_t slot) const {
    return (slot >> 3) * 0x9e3779b97f4a7c15ull >> 32 & (buckets_ - 1);
  }

  uint8_t *memory_ = nullptr, *own_memory_ = nullptr;
  size_t buckets_ = 1, ways_ = 0, stride_ = 0;
  size_t own_scale_ = 0;  ///< own bytes for each byte of the table of readers
};

struct ReturnProbe {  ///< of one function
  Hook entry, exit;
  spile_kretprobe* user = nullptr;
  Calls calls;
};
int run_kretprobe_entry(Hook* hook, Site* site, spile_regs* regs);
int run_kretprobe_exit(Hook* hook, Site* site, spile_regs* regs);

struct FprobeHead {
  spile_fprobe* user = nullptr;
  Calls calls;
};
struct FprobeFunction {
  Hook entry, exit;
  FprobeHead* all = nullptr;
  uint64_t address = 0;
};
int run_fprobe_entry(Hook* hook, Site* site, spile_regs* regs);
/// Of one without an exit handler.
int run_fprobe_entry_only(Hook* hook, Site* site, spile_regs* regs);
int run_fprobe_exit(Hook* hook, Site* site, spile_regs* regs);

}  // namespace spile::api
