// Memory for detours near the code that they belong to. Write-once: what a detour is made of is
// never changed or used again, since a thread, or a forked child, may still be in it.
//
//   [ code, R-X, shared memory file ][ slots, RW-, private ]     and the same code a second time,
//   RW-, elsewhere
//
// No page is writable and executable at once. The file's pages are shared with forked children,
// which only read them: a child makes new chunks of its own.
#pragma once

#include <cstdint>
#include <span>

#include "base/address.h"
#include "base/error.h"

namespace spile::api {

/// What a detour's call reads: the argument and the function. Changed while threads run, each word
/// at once.
struct CallSlot {
  uint64_t argument = 0, function = 0;
};

struct CodePiece {
  TargetAddr at;            ///< where it runs
  std::span<uint8_t> view;  ///< where it is written
  std::span<CallSlot> slots;
};

/// Room for `code_bytes` and `slot_count`, within reach of all of [near_start, near_end).
/// Errors: unsupported, no room there; those of the system calls.
Result<CodePiece> take_code_memory(TargetAddr near_start,
                                   TargetAddr near_end,
                                   size_t code_bytes,
                                   size_t slot_count);

}  // namespace spile::api
