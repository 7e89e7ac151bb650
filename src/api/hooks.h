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
  const uint64_t* thread;      ///< reader_word() of the caller
  uint64_t function, return_address;
  // data follows
  void* data() { return this + 1; }
};

class Calls {
 public:
  /// `buckets` (a power of two) of `ways` calls each, found by the slot. False: no memory.
  bool make(size_t buckets, size_t ways, size_t data_bytes);
  ~Calls();
  Calls() = default;
  Calls(const Calls&) = delete;
  Calls& operator=(const Calls&) = delete;

  /// nullptr: as many calls are under way as there is room for.
  Call* begin(uint64_t slot, uint64_t function, uint64_t return_address);
  /// nullptr: the entry of this call was not seen, or not wanted.
  Call* find(uint64_t slot, uint64_t function);
  static void end(Call* call) { call->slot.store(0, std::memory_order_release); }

 private:
  Call* at(size_t bucket, size_t way) const;
  Call* reap(size_t bucket, uint64_t slot);
  size_t bucket_of(uint64_t slot) const {
    return (slot >> 3) * 0x9e3779b97f4a7c15ull >> 32 & (buckets_ - 1);
  }

  uint8_t* memory_ = nullptr;
  size_t buckets_ = 1, ways_ = 0, stride_ = 0;
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
int run_fprobe_exit(Hook* hook, Site* site, spile_regs* regs);

}  // namespace spile::api
