// The site table: which code bytes of the target were changed, and what was there before.
//
// One entry an edit (patch/placement.h): the jump of a site, or a place that it leads over. Entries
// of a lower level are written first and undone last.
//
// Written ahead: an entry is complete before its bytes change. An adopter (spile detach, or the
// next attach) takes nothing in it on trust: it restores a site only where the target's memory
// holds `patched`, `patched` is a jump into the code memfd, and `original` equals the bytes of the
// module's file.
#pragma once

#include <stdint.h>

namespace spile::abi {

enum class SiteState : uint8_t {
  kEmpty = 0,
  kPlanned = 1,   ///< filled in, memory not yet written: it holds `original`
  kPatched = 2,   ///< memory holds `patched`
  kRestored = 3,  ///< memory holds `original` again
  kForeign = 4,   ///< memory held neither: somebody else changed it; left alone
};

inline constexpr uint32_t kMaxSiteBytes = 16;
inline constexpr uint32_t kNoProbe = 0xffffffff;

/// Written by the tracer.
struct SiteEntry {
  uint64_t address;      ///< of the first changed byte, in the target
  uint64_t file_offset;  ///< of the same byte in its module's file
  uint64_t detour;       ///< address in a code region that the jump goes to
  uint32_t cookie;  ///< of the first probe on this site: index into Bundle::probes, or kNoProbe
  uint8_t length;   ///< changed bytes, 1..kMaxSiteBytes
  SiteState state;  ///< written last, with release
  uint8_t is_site;  ///< 1: at the probed instruction. 0: a place that its jump leads over
  uint8_t level;    ///< order of writing: see above
  uint8_t original[kMaxSiteBytes];
  uint8_t patched[kMaxSiteBytes];
};
static_assert(sizeof(SiteEntry) == 64);

}  // namespace spile::abi
