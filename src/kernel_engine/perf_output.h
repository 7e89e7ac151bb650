// Programs that send records through the ring buffer -> the same through a perf buffer. Pure.
//
// In the ring a record is made in place: reserve, fill, submit. A perf buffer copies records that
// were made elsewhere. So a map of one value a CPU stands in for the ring's memory: reserve becomes
// a look for this CPU's value, submit becomes perf_event_output of it, and a full buffer goes the
// way that a failed reserve goes, with the same counting.
//
// clang-format off
//   call ringbuf_reserve      *(u64*)(r10-504) = 0; r2 = r10-504; r1 = scratch; call map_lookup_elem
//                             if r0 != 0: r1 = exchange(r0->taken, 1)
//                                         if r1 == 0: r0 = &r0->record; else: r0 = 0
//   if r0 != 0 goto filled    unchanged
//   lost: ...                 unchanged
//   call ringbuf_submit       *(u64*)(r10-504) = r1; r4 = r1; r5 = size; r1 = context; r2 = buffer; r3 = this CPU
//                             call perf_event_output; taken = 0; if r0 != 0 goto lost
// clang-format on
//
// Between the two another program of this CPU may come: one at an interrupt, at what our own
// program calls or faults on, and, since uprobe programs may be preempted (6.0), one of another
// thread. So the value begins with a word that says it is taken; who finds it taken has lost its
// record, and counts that. Every path from a reserve leads to a submit, which gives it back.
#pragma once

#include <cstdint>

#include "base/error.h"
#include "bpf/insn.h"

namespace spile::kernel_engine {

/// How the scratch value is claimed.
enum class Claim : uint8_t {
  kExchange,  ///< in one instruction (5.12)
  /// By a look and a store. Kernels that lack the instruction do not preempt programs: who comes
  /// between the two has gone again before the store.
  kLookAndStore
};

/// Bytes of the scratch value before the record.
inline constexpr uint32_t kScratchHeader = 8;

bool sends_records(const bpf::Program& code);

/// `ring` and `scratch` are map indices. The context is kept at r10-512, the key and then
/// the record's address at r10-504.
/// Errors:  unsupported  the program needs these bytes of its stack itself
///          internal     it does not send as our code generator does
Result<bpf::Program> with_perf_output(const bpf::Program& code, int ring, int scratch, Claim claim);

}  // namespace spile::kernel_engine
