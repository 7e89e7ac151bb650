// The memory of Calls: the rest of it is on the hit path (hooks.cc).
#include <cstdlib>

#include "api/hooks.h"

namespace spile::api {

bool Calls::make(size_t buckets, size_t ways, size_t data_bytes) {
  buckets_ = buckets;
  ways_ = ways;
  stride_ = (sizeof(Call) + data_bytes + 15) / 16 * 16;
  memory_ = static_cast<uint8_t*>(std::calloc(buckets * ways, stride_));
  return memory_ != nullptr;
}
Calls::~Calls() {
  std::free(memory_);
}

}  // namespace spile::api
