#include "user_engine/patch/coverage/process_model.h"

namespace spile::patch {
namespace {

constexpr uint64_t kMiB = 1 << 20, kGiB = 1 << 30;
constexpr uint64_t kLowest = 64 << 10, kHighest = uint64_t{0x7fff} << 32;

uint64_t page_down(uint64_t a) {
  return a & ~(StoneSpace::kPageBytes - 1);
}

}  // namespace

StoneSpace process_model(const ElfCode& code, size_t max_pages) {
  uint64_t before = code.start.value, behind = page_down(code.end.value + 4095);
  if (code.is_program) {
    behind += kGiB + 16 * kMiB;  // the break begins up to 32 MiB behind the program
  } else {
    before -= 256 * kMiB;
    behind += 24 * kMiB;
  }
  std::vector<StoneSpace::Range> free;
  if (page_down(before) > kLowest)
    free.push_back({TargetAddr(kLowest), TargetAddr(page_down(before))});
  free.push_back({TargetAddr(behind), TargetAddr(kHighest)});
  return {std::move(free), max_pages};
}

}  // namespace spile::patch
