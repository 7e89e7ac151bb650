// The journal: who attached to this process, how far it got, and which mappings it made.
//
// It lies in the shared data region so that a later, unprivileged tracer can read and write it.
// State changes are the last write of a step (release), so that an adopter sees every entry that
// the state speaks of:
//
//   kInit --> kMapped --> kPatching --> kAttached --> kDetaching --> kDetached
//                             |                          ^
//                             +--------------------------+     (a failed or abandoned attach rolls
//                             back)
//
//   kInit       mappings are being made, no code byte of the target has changed
//   kMapped     all regions are listed; no code byte has changed
//   kPatching   site entries [0, site_count) are complete; any of them may be written or not
//   kAttached   every site that is kPatched holds its jump
//   kDetaching  sites are being restored
//   kDetached   no site holds a jump; the regions remain until no thread can come back into them
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace spile::abi {

inline constexpr uint64_t kJournalMagic = 0x6c616e726a6c7073;  // "spljrnal"
inline constexpr uint32_t kJournalVersion = 2;
inline constexpr uint32_t kMaxRegions = 16;
inline constexpr uint32_t kMaxSemaphores = 128;

enum class JournalState : uint32_t { kInit, kMapped, kPatching, kAttached, kDetaching, kDetached };

enum class RegionKind : uint32_t { kNone, kCode, kData, kPerThread, kPending, kStackPool };

/// One mapping made in the target. Written by the tracer.
struct RegionEntry {
  uint64_t address;  ///< in the target
  uint64_t size;     ///< bytes
  uint64_t inode;    ///< of its memfd as /proc/PID/maps prints it; 0 for private memory
  RegionKind kind;
  uint32_t reserved;
};
static_assert(sizeof(RegionEntry) == 32);

/// Adding 1 cannot be done twice without harm, so both values are written down before the counter
/// changes: whoever comes after a tracer that died sees by the counter whether it had changed.
enum class SemaphoreState : uint32_t {
  kListed,    ///< not touched yet
  kRaising,   ///< it goes from `before` to `after`
  kRaised,    ///< the process has one more than without us
  kLowering,  ///< it goes from `before` to `after`
  kLowered,   ///< done with
};

/// The counter of a static tracepoint (USDT), in data of the target. Written by the tracer.
struct SemaphoreEntry {
  uint64_t address;  ///< of the 16-bit counter, in the target
  uint64_t site;     ///< of a SiteEntry that goes with it: while that holds our bytes, so does this
  SemaphoreState state;
  uint16_t before, after;
};
static_assert(sizeof(SemaphoreEntry) == 24);

/// Written by the tracer. Process ids are those of the tracer's pid namespace.
struct Journal {
  uint64_t magic;
  uint32_t version;
  JournalState state;  ///< written last in each step, with release
  uint32_t tracer_pid;
  uint32_t target_pid;
  uint64_t
      tracer_start_time;  ///< field 22 of /proc/PID/stat: tells a living tracer from a recycled pid
  uint64_t target_start_time;
  uint32_t site_count;  ///< entries of the site table in use
  uint32_t region_count;
  uint64_t stub_address;  ///< where injected stub bytes may be left over in the target; 0: nowhere
  uint32_t stub_size;
  uint32_t semaphore_count;  ///< entries of `semaphores` in use
  RegionEntry regions[kMaxRegions];
  SemaphoreEntry semaphores[kMaxSemaphores];
};
static_assert(sizeof(Journal) == 64 + 32 * kMaxRegions + 24 * kMaxSemaphores);
static_assert(offsetof(Journal, regions) % 8 == 0 && offsetof(Journal, semaphores) % 8 == 0);

}  // namespace spile::abi
