// Programs that send records through the ring buffer -> the same through a perf buffer. Pure.
//
// In the ring a record is made in place: reserve, fill, submit. A perf buffer copies records that
// were made elsewhere. So a map of one value a CPU stands in for the ring's memory: reserve becomes
// a look for this CPU's value, submit becomes perf_event_output of it, and a full buffer goes the
// way that a failed reserve goes, with the same counting.
//
//   call ringbuf_reserve      *(u32*)(r10-504) = 0; r2 = r10-504; r1 = scratch; call
//   map_lookup_elem if r0 != 0 goto filled    unchanged lost: ...                 unchanged call
//   ringbuf_submit       r4 = r1; r5 = size; r1 = context; r2 = buffer; r3 = this CPU
//                             call perf_event_output; if r0 != 0 goto lost
//
// The value is this CPU's alone only where no other program runs between the two. The kernel sees
// to that for what hangs on perf events and fprobe (bpf_prog_active); programs of uprobe.multi and
// of BTF links may interrupt each other, so they are not attached with a perf buffer.
#pragma once

#include "base/error.h"
#include "bpf/insn.h"

namespace spile::kernel_engine {

bool sends_records(const bpf::Program& code);

/// `ring` and `scratch` are map indices. The context is kept at r10-512, the key at r10-504.
/// Errors:  unsupported  the program needs these bytes of its stack itself
///          internal     it does not send as our code generator does
Result<bpf::Program> with_perf_output(const bpf::Program& code, int ring, int scratch);

}  // namespace spile::kernel_engine
