// Call stacks: walked by frame pointers, kept once each by their hash.
//
// A hit has no room for 127 addresses: the target's stack is bounded and scratch memory by CPU is
// not ours alone (we may be moved or interrupted). So the walk only hashes; where the hash is new,
// a second walk writes the addresses straight into the slot that the hash claimed. The id that
// programs get is the hash, so it means the same in every process of a trace.
//
// Invariants
//   * A slot's id goes from 0 to one hash, once. Its addresses are a function of that hash, so
//     whoever finds a slot claimed but not filled (its owner is slower, or was killed) writes the
//     same words. Nobody waits.
//   * `count` is stored after the addresses (release) and read before them (acquire).
//   * What a reader believes it has hashed again (shm::read_stack): a stack that changed between
//     the two walks, or scribbled memory, is found out.
//   * A frame is read as any other memory of the target (safe_read.h): garbage in rbp is an end,
//     never a fault. At most `frames` frames are read, loops included.
//
// Which frames: first the probed address. At a function's first instruction the caller's rbp is
// still there, so the return address at [sp] comes next; then the chain from rbp. Linux does so
// from 6.11 on where the first instruction is `push %rbp` or `endbr64`
// (arch/x86/events/core.c, is_uprobe_at_func_entry); we do it at every function's first
// instruction.
#pragma once

#include <stdint.h>

#include "abi/code_region.h"
#include "abi/hit_frame.h"
#include "abi/map.h"
#include "user_engine/rt/atomics.h"
#include "user_engine/rt/map_ops.h"
#include "user_engine/rt/safe_read.h"

namespace spile::rt {

/// Slots that one stack may look at before it is given up as one too many.
inline constexpr uint32_t kMaxStackProbes = 64;
/// How often a chain may lead to a lower address: from a signal stack or a coroutine to the stack
/// it came from. More is a loop or garbage.
inline constexpr uint32_t kMaxStackSwitches = 4;

inline uint64_t* frames_of(abi::StackHead* head) {
  return reinterpret_cast<uint64_t*>(head + 1);
}
inline abi::StackHead* stack_slot(const abi::RtMap& map, uint64_t number) {
  return reinterpret_cast<abi::StackHead*>(map.values +
                                           (number & map.bucket_mask) * map.value_stride);
}

inline uint64_t stack_hash_start(const abi::RtMap& map) {
  return map.seed;
}
/// A positive number that is never 0.
inline uint64_t stack_id_of(uint64_t hash) {
  return hash >> 2 | uint64_t{1} << 61;
}

/// Reads frames (saved rbp, return address), several with one system call where memory cannot be
/// loaded plainly: the stacks of threads beyond the page we are on.
class FrameReader {
 public:
  explicit FrameReader(const abi::RtConsts& consts) : consts_(consts) {}

  bool read(uint64_t at, uint64_t* first, uint64_t* second) {
    if (!is_user_range(at, kFrameBytes)) return false;
    if (plain_bytes(consts_, at) >= kFrameBytes) {
      *first = load_relaxed(reinterpret_cast<const uint64_t*>(at));
      *second = load_relaxed(reinterpret_cast<const uint64_t*>(at + 8));
      return true;
    }
    const bool is_held = held_ >= kFrameBytes && at - begin_ <= held_ - kFrameBytes;
    if (!is_held && !fill(at)) return false;
    *first = read_unaligned(bytes_ + (at - begin_), 8);
    *second = read_unaligned(bytes_ + (at - begin_) + 8, 8);
    return true;
  }

 private:
  /// A frame may lie on two pages; the window ends where nothing more can be read.
  bool fill(uint64_t at) {
    begin_ = at;
    held_ = 0;
    while (held_ < kFrameBytes && is_user_range(at, kWindowBytes)) {
      const uint64_t step = copy_step(consts_, bytes_ + held_, at + held_, kWindowBytes - held_);
      if (step == 0) break;
      held_ += step;
    }
    return held_ >= kFrameBytes;
  }

  static constexpr uint64_t kFrameBytes = 16, kWindowBytes = 64;
  const abi::RtConsts& consts_;
  uint64_t begin_ = 0, held_ = 0;
  uint8_t bytes_[kWindowBytes];
};

/// One walk. next() gives addresses from the innermost on.
class StackWalk {
 public:
  StackWalk(const abi::RtConsts& consts, const abi::HitFrame& hit)
      : reader_(consts), hit_(hit), frame_(hit.bp) {}

  bool next(uint64_t* address) {
    if (step_ == 0) {
      step_ = hit_.at_entry != 0 ? 1 : 2;
      *address = hit_.ip;
      return true;
    }
    // One place that reads, so that the code of reading is there once.
    const bool at_return_address = step_ == 1;
    const uint64_t at = at_return_address ? hit_.sp : frame_;
    if (!at_return_address && (at % 8 != 0 || switches_ > kMaxStackSwitches)) return false;
    uint64_t first = 0, second = 0;
    if (!reader_.read(at, &first, &second)) return false;
    *address = at_return_address ? first : second;
    if (!is_code(*address)) return false;
    if (at_return_address) {
      step_ = 2;
      return true;
    }
    if (first <= at) ++switches_;
    if (first == at) switches_ = kMaxStackSwitches + 1;
    frame_ = first;
    return true;
  }

 private:
  static bool is_code(uint64_t address) { return is_user_range(address, 1); }

  FrameReader reader_;
  const abi::HitFrame& hit_;
  uint64_t frame_;
  uint32_t switches_ = 0;
  int step_ = 0;
};

struct WalkedStack {
  uint64_t id, count;
};

/// Writes the addresses to `to` where it is not null.
inline WalkedStack walk_stack(const abi::RtConsts& consts,
                              const abi::RtMap& map,
                              const abi::HitFrame& hit,
                              uint64_t* to) {
  StackWalk walk(consts, hit);
  const uint64_t most = min_u64(map.value_size / 8, abi::kMaxStackFrames);
  uint64_t hash = stack_hash_start(map), count = 0, address = 0;
  while (count < most && walk.next(&address)) {
    hash = hash_word(hash, address);
    if (to != nullptr) store_relaxed(to + count, address);
    ++count;
  }
  return {stack_id_of(hash), count};
}

/// The slot that holds `id`, claimed for it if need be. Null: there is no room.
inline abi::StackHead* claim_stack(const abi::RtMap& map, uint64_t id) {
  for (uint32_t i = 0; i < kMaxStackProbes; ++i) {
    abi::StackHead* head = stack_slot(map, id + i);
    const uint64_t holds = load_acquire(&head->id);
    if (holds == id) return head;
    if (holds == 0 && compare_swap(&head->id, uint64_t{0}, id)) return head;
    if (holds == 0 && load_acquire(&head->id) == id) return head;
  }
  return nullptr;
}

/// The id of the stack at this hit, or -errno: -E2BIG where the map has no room for one more,
/// -EBUSY where the stack changed under us, -EINVAL for anything but the user's stack.
inline int64_t stack_id(const abi::RtConsts& consts,
                        const abi::RtMap& map,
                        const abi::HitFrame& hit,
                        uint64_t flags) {
  constexpr uint64_t kUserStackOnly = 1 << 8;
  if (map.kind != abi::RtMapKind::kStacks || flags != kUserStackOnly) return kErrInvalid;
  abi::StackHead* head = nullptr;
  uint64_t id = 0;
  int passes = 2;
  asm volatile("" : "+r"(passes));  // one copy of the walk in the code, one window on the stack
  for (int pass = 0; pass < passes; ++pass) {
    const WalkedStack walked =
        walk_stack(consts, map, hit, head == nullptr ? nullptr : frames_of(head));
    if (head != nullptr) {
      if (walked.id != id) return kErrBusy;
      store_release(&head->count, walked.count);
      break;
    }
    id = walked.id;
    head = claim_stack(map, id);
    if (head == nullptr) return kErrTooBig;
    if (load_acquire(&head->count) != 0) break;
  }
  return static_cast<int64_t>(id);
}

}  // namespace spile::rt
