// System calls made by a stopped target: shared memory mapped into it, and taken out again.
//
// The problem: between "registers set" and "registers restored" a killed tracer would leave a
// thread with foreign registers, and kill the target. Seen. The way out is a stub that restores by
// itself (stub.S): some 200 bytes in the unused end of an executable page, holding a `syscall`, a
// fixed tail and a copy of the thread's registers.
//
//   enter:  one SETREGS sets rip to the stub's `syscall` with number and arguments; all else is as
//   before tail:   close the memory file that is open, put the signal mask back, load every
//   register, jump to where the
//           thread was, or to the interrupted system call once more (with restart_syscall where the
//           kernel would)
//
// While the tracer lives it takes the thread at the exit of each call (PTRACE_SYSCALL) and moves
// it, again by one SETREGS, to the next call, so the tail never runs. When the tracer dies at any
// moment, the kernel lets the thread go and the tail takes it home: what stays are the mappings
// made so far and the stub's bytes, which nobody executes and which find_leftover_stubs()
// recognises. The stub uses no stack (Go stacks may have no room), no flags, no memory that can be
// written by the target; signals are blocked while it runs, so none is delivered in between.
//
// Only memfd_create, mmap, munmap, mprotect, madvise, membarrier, rt_sigaction and close are ever
// injected: a call that sleeps would overwrite the restart state of the interrupted one. A thread
// that has run into an int3 and has not got its SIGTRAP yet is not borrowed: the tail puts its mask
// back, and the signal's frame would hold an address of the stub.
//
// Limits: under a seccomp filter the stub's calls are judged by the filter once a dying tracer no
// longer suspends it. We choose a thread without a filter; where all have one we need
// CAP_SYS_ADMIN, and a tracer that is killed within those microseconds costs the target its life if
// the filter kills for the call under way, close or rt_sigprocmask. A raised RLIMIT_NOFILE stays
// raised when the tracer dies in that moment.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "abi/trap.h"
#include "base/address.h"
#include "base/error.h"
#include "base/fd.h"
#include "user_engine/target/process.h"
#include "user_engine/target/stopped.h"

namespace spile::target {

/// A mapping to be made in the target.
struct RegionSpec {
  enum class Kind {
    kCode,     ///< memory file, R-X in the target for ever (sealed), RW for us until we unmap it
    kData,     ///< memory file, RW for both, of fixed size (sealed)
    kPrivate,  ///< private anonymous RW memory, zeroed in forked children (MADV_WIPEONFORK) unless
               ///< kept_by_fork; we have no view of it
  };
  Kind kind = Kind::kData;
  std::string name;         ///< of the memory file, at most 31 bytes; starts with kRegionPrefix
  TargetAddr address;       ///< page aligned, from find_gap()
  uint64_t size_bytes = 0;  ///< whole pages
  bool populate = true;     ///< let the target's page tables be filled now, not at the first hit
  /// For large regions (0.5 ms a MiB): pages are not allocated while the target stands still.
  /// Nothing may touch the region before allocate_pages() has succeeded; goes with populate =
  /// false.
  bool allocate_later = false;
  bool kept_by_fork = false;  ///< kPrivate: a forked child has a copy, as of any memory
  /// Where the region is scattered: its pieces, one after the other in the file. `address` is then
  /// that of the first and `size_bytes` the sum. Empty: one piece.
  std::vector<AddressRange> pieces = {};

  void add_piece(const AddressRange& range) {
    if (pieces.empty()) address = range.start;
    pieces.push_back(range);
    size_bytes += range.size();
  }
};

struct RemoteMemory {
  RegionSpec spec;
  Mapping local;  ///< our RW view, zeroed; none for kPrivate
  Fd file;        ///< with allocate_later: the memory file, until allocate_pages()
};

/// The pages of a region with `allocate_later`; the target may run meanwhile.
/// Errors:  internal   no memory: unmap the region again
Result<void> allocate_pages(RemoteMemory& region);

/// Maps all regions or none.
///
/// Errors:  busy         something is mapped there meanwhile: find another gap and try again
///          denied       seccomp and no CAP_SYS_ADMIN; a limit of the target (RLIMIT_NOFILE,
///          RLIMIT_AS) that we
///                       may not raise
///          unsupported  no room for the stub; the kernel lacks something
///          target gone
Result<std::vector<RemoteMemory>> map_shared(StoppedProcess& process,
                                             std::span<const RegionSpec> specs);

/// The actions of signals as the kernel has them. `scratch`: memory of the target that may be
/// written to. Errors: those of injecting; internal, the kernel's own.
Result<std::vector<abi::KernelSigaction>> signal_actions(StoppedProcess& process,
                                                         std::span<const int> signals,
                                                         TargetAddr scratch);

/// Sets an action; `action` is the address of an abi::KernelSigaction in the target. Errors: as
/// signal_actions.
Result<void> set_signal_action(StoppedProcess& process, int signal, TargetAddr action);

/// Unmaps ranges. Threads whose open restartable sequence lies in them get it cleared first.
/// Errors:  unsafe   a thread's rip is inside one of them; nothing was unmapped
Result<void> unmap(StoppedProcess& process, std::span<const AddressRange> ranges);

/// membarrier(PRIVATE_EXPEDITED_SYNC_CORE) in the target, registration included. Not needed after a
/// full stop.
Result<void> synchronize_cores(StoppedProcess& process);

/// Stub bytes that a killed tracer left behind.
struct LeftoverStub {
  TargetAddr address;
  uint64_t size_bytes = 0;
  bool running = false;  ///< a thread is still on its way home through it
};
std::vector<LeftoverStub> find_leftover_stubs(const StoppedProcess& process);
/// Wipes them, except those that a thread is still in. Returns how many were wiped.
Result<size_t> clean_leftover_stubs(StoppedProcess& process);

}  // namespace spile::target
