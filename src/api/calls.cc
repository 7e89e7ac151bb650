// The memory of Calls: the rest of it is on the hit path (hooks.cc).
#include <sys/mman.h>

#include <cstdlib>

#include "api/hooks.h"
#include "api/readers.h"

namespace spile::api {

bool Calls::make(const Shape& shape) {
  buckets_ = shape.buckets;
  ways_ = shape.ways;
  stride_ = (sizeof(Call) + shape.data_bytes + 15) / 16 * 16;
  memory_ = static_cast<uint8_t*>(std::calloc(buckets_ * ways_, stride_));
  if (memory_ == nullptr || !shape.has_own) return memory_ != nullptr;
  // Address space for every thread that may come; pages for those that do.
  own_scale_ = (sizeof(Own) + kOwnWays * stride_ + kReaderBytes - 1) / kReaderBytes;
  void* own = ::mmap(nullptr, kMaxReaders * kReaderBytes * own_scale_, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (own != MAP_FAILED) own_memory_ = static_cast<uint8_t*>(own);
  return true;
}

Calls::~Calls() {
  std::free(memory_);
  if (own_memory_ != nullptr) ::munmap(own_memory_, kMaxReaders * kReaderBytes * own_scale_);
}

}  // namespace spile::api
