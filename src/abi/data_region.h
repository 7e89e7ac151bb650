// The data region: the memory that target and tracer share read-write.
//
//   offset 0         DataHeader            written by the tracer before it is mapped, then only
//   read
//          2048      32 bytes of scratch   kernel, asked by a tracer in a stop
//          3072      LoaderGate            target and tracer               loader_gate.h
//          4096      Journal               tracer                          journal.h
//          8192      TimePage              tracer                          time.h
//          9216      StrayCell[128]        target and tracer               stray.h
//          12288     CpuStats[cpu_slots]   target                          this file
//          sites     SiteEntry[...]        tracer                          site.h
//          maps      map storage           target and tracer               map.h
//          rings     rings                 target; consumer_pos: tracer    ring.h
//
// Every section starts on a page. The target may write any byte of it at any time, by accident or
// in malice. So:
//   * the blob takes sizes, masks and addresses only from the read-only constants in the code
//   region (code_region.h);
//   * the tracer takes them only from its own private copy of the layout;
//   * an adopter (another tracer, later) has only this header: it checks each offset against the
//   file's size.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "abi/journal.h"
#include "abi/loader_gate.h"
#include "abi/stray.h"
#include "abi/time.h"

namespace spile::abi {

inline constexpr uint64_t kDataMagic = 0x617461642d6c7073;  // "spl-data"
inline constexpr uint32_t kAbiVersion = 3;

struct DataHeader {
  uint64_t magic;
  uint32_t version;
  uint32_t header_bytes;   ///< sizeof(DataHeader)
  uint64_t size;           ///< bytes, whole region
  uint32_t cpu_slots;      ///< a power of two
  uint32_t site_capacity;  ///< entries in the site table
  uint64_t journal_offset;
  uint64_t time_offset;
  uint64_t stats_offset;
  uint64_t sites_offset;
  uint64_t maps_offset;
  uint64_t rings_offset;
  uint64_t trace_id;  ///< random, equal in all regions of one trace
};
static_assert(sizeof(DataHeader) == 88);

inline constexpr uint64_t kJournalOffset = 4096;
/// Behind the header: 32 bytes that the kernel writes an action to when a tracer asks for it.
inline constexpr uint64_t kScratchOffset = 2048;
inline constexpr uint64_t kTimeOffset = 8192;
inline constexpr uint64_t kStatsOffset = 12288;
static_assert(kTimeOffset + sizeof(TimePage) <= kStrayOffset &&
              kStrayOffset + kStrayCells * sizeof(StrayCell) <= kStatsOffset);
static_assert(kScratchOffset + 32 <= kLoaderGateOffset &&
              kLoaderGateOffset + sizeof(LoaderGate) <= kJournalOffset);
static_assert(sizeof(DataHeader) <= kScratchOffset && sizeof(Journal) <= 4096 &&
              sizeof(TimePage) <= 4096);

/// What happened on one CPU slot. Written by the target with locked additions; the tracer only
/// reads.
struct CpuStats {
  uint64_t hits;            ///< programs started
  uint64_t missed;          ///< hits that ran no program to its end (budget)
  uint64_t map_contended;   ///< map operations given up because others kept changing the same chain
  uint64_t ring_contended;  ///< reservations given up because others kept claiming
  uint64_t corrupt;         ///< shared memory held what nobody of ours writes
  uint64_t refused_calls;   ///< system calls not made because seccomp forbids them
  uint64_t unseen_returns;  ///< calls that went on where no return is watched (abi/pending.h)
  uint64_t reserved;
};
static_assert(sizeof(CpuStats) == 64);

/// More CPUs than this share slots (which stays exact: all additions are locked).
inline constexpr uint32_t kMaxCpuSlots = 1024;

}  // namespace spile::abi
