// The bytes of the self-restoring stub (stub.S) for one thread, and where in a target they may lie.
// Inside the module.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "base/address.h"
#include "os/ptrace.h"
#include "user_engine/target/inject.h"
#include "user_engine/target/stopped.h"

namespace spile::target {

/// Offsets in the stub.
struct StubLayout {
  uint64_t memfd = 0, after_memfd = 0;  ///< entry for memfd_create, address behind its `syscall`
  uint64_t call = 0, after_call = 0;    ///< entry for the other calls
  uint64_t name = 0, name_bytes = 0;
  uint64_t size = 0;
};
const StubLayout& stub_layout();

/// Registers with which the tail leaves: as they are, or where a system call is to be restarted, as
/// the kernel would set them for that. `before_rip` is the two bytes in front of rip.
os::Registers way_home(const StoppedThread& thread, std::span<const uint8_t, 2> before_rip);

/// A stub that leads home to `home` with signal mask `mask`.
std::vector<uint8_t> make_stub(const os::Registers& home, uint64_t mask);
/// The name field, for a write of its own.
std::vector<uint8_t> name_field(std::string_view name);

/// Executable bytes that belong to nobody: the end of a text segment's last page, behind the file's
/// part; the end of the vdso. Free (all zero) or holding a stub that was left behind.
struct StubPlace {
  TargetAddr address;
  uint64_t leftover_bytes = 0;  ///< size of the stub that lies there; 0: free
};
/// Best first: the main program, its libraries, the vdso.
std::vector<StubPlace> find_stub_places(const std::vector<os::MapEntry>& maps,
                                        const os::ProcessMemory& memory);

}  // namespace spile::target
