#include "user_engine/rt/blob.h"

#include <algorithm>

#include "user_engine/rt/blob_data.h"

namespace spile::rt {
namespace {

std::span<const HelperEntry> entries() {
  return {kHelperEntries, kHelperEntryCount};
}

const HelperEntry* find_entry(int32_t number) {
  const auto found = std::ranges::find(entries(), number, &HelperEntry::number);
  return found == entries().end() ? nullptr : &*found;
}

}  // namespace

std::span<const uint8_t> blob_bytes() {
  return {kBlobImage, kBlobImageBytes};
}

std::optional<uint32_t> helper_offset(int32_t bpf_helper) {
  const HelperEntry* entry = find_entry(bpf_helper);
  return entry == nullptr ? std::nullopt : std::optional(entry->offset);
}

std::optional<uint32_t> helper_stack_bytes(int32_t bpf_helper) {
  const HelperEntry* entry = find_entry(bpf_helper);
  return entry == nullptr ? std::nullopt : std::optional(entry->stack_bytes);
}

uint32_t max_helper_stack_bytes() {
  return std::ranges::max(entries(), {}, &HelperEntry::stack_bytes).stack_bytes;
}

}  // namespace spile::rt
