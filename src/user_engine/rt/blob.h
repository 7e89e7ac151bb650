// The runtime blob as data: what the tracer copies to offset 0 of every code region.
//
// It is position-independent, has no relocations, no writable data and no undefined symbols (the
// build checks), needs RtConsts at offset abi::kConstsOffset and then runs anywhere.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

namespace spile::rt {

/// The image, at most abi::kMaxBlobBytes.
std::span<const uint8_t> blob_bytes();

/// Entries for detours, beside those of eBPF's helpers (rt/pending.h), each (slot, number); take
/// returns 1 or 0; leave has (slot, number, target, KnownCode, whether target is an address).
inline constexpr int32_t kNotePending = 65001, kTakePending = 65002, kArmPending = 65003,
                         kArrivePending = 65004, kLeavePending = 65005, kNoteAgainPending = 65006;
/// In the dynamic loader, takes nothing (rt/loader_gate.h).
inline constexpr int32_t kAwaitTracer = 65007;

/// Offset of a helper's entry in the image, by its eBPF number (bpf::Helper); nothing for one that
/// is not in the blob.
///
/// Calling convention: u64 helper(rdi, rsi, rdx, rcx, r8), the C ABI: the result is in rax; rbx,
/// rbp, r12-r15 are kept; rax, rcx, rdx, rsi, rdi, r8-r11 and flags are not. No SIMD or x87 state
/// is touched, DF is left clear, the stack need not be aligned. Helpers call nothing.
std::optional<uint32_t> helper_offset(int32_t bpf_helper);

/// Bytes of stack below its caller's stack pointer that a helper uses, return address included.
std::optional<uint32_t> helper_stack_bytes(int32_t bpf_helper);

/// The largest of them. The build asserts that it is at most kMaxHelperStackBytes.
uint32_t max_helper_stack_bytes();
inline constexpr uint32_t kMaxHelperStackBytes = 400;

}  // namespace spile::rt
