#include "os/heap.h"

#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

namespace spile::os {

void expect_heap_use(uint64_t bytes) {
  constexpr uint64_t kHugePage = uint64_t{2} << 20, kMost = uint64_t{1} << 30;
  bytes = std::min(bytes, kMost) / kHugePage * kHugePage + kHugePage;
  // mallopt's arguments are int: 1 GiB fits.
  mallopt(M_MMAP_THRESHOLD, static_cast<int>(kMost));
  mallopt(M_TRIM_THRESHOLD, static_cast<int>(kMost));
  mallopt(M_TOP_PAD, static_cast<int>(kHugePage));
  const auto begin = reinterpret_cast<uint64_t>(sbrk(0));
  void* volatile stretch = std::malloc(bytes);  // at the heap's end: no page of it is touched
  std::free(stretch);
  const auto end = reinterpret_cast<uint64_t>(sbrk(0));
  const uint64_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  if (end > first + kHugePage) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
}

}  // namespace spile::os
