// What blob/embed.cmake generates from the linked blob.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spile::rt {

struct HelperEntry {
  int32_t number;        ///< bpf helper
  uint32_t offset;       ///< in the image
  uint32_t stack_bytes;  ///< return address included
};

extern const uint8_t kBlobImage[];
extern const size_t kBlobImageBytes;
extern const HelperEntry kHelperEntries[];
extern const size_t kHelperEntryCount;

}  // namespace spile::rt
