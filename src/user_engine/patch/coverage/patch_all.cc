// Preloaded into a program: before main, patches every function of the modules that SPILE_PATCH_ALL
// names (parts of their paths, separated by commas). A detour is only the displaced code; where
// flags are said to be dead, it destroys them. If the program still works, windows, relocation and
// flag liveness were right. SPILE_PATCH_ALL_INSTRUCTIONS=1 patches every instruction of them.
// SPILE_PATCH_ALL_VERBOSE=1 tells counts.
#include <fmt/format.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "user_engine/patch/code_map.h"
#include "user_engine/patch/coverage/elf_code.h"
#include "user_engine/patch/placement.h"

namespace spile::patch {
namespace {

struct Loaded {
  std::string path;
  uint64_t base = 0, text_start = UINT64_MAX, text_end = 0;
};

int add_module(dl_phdr_info* info, size_t, void* list) {
  Loaded module{info->dlpi_name, info->dlpi_addr};
  if (module.path.empty()) module.path = "/proc/self/exe";
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& p = info->dlpi_phdr[i];
    if (p.p_type != PT_LOAD || (p.p_flags & PF_X) == 0) continue;
    module.text_start = std::min(module.text_start, info->dlpi_addr + p.p_vaddr);
    module.text_end = std::max(module.text_end, info->dlpi_addr + p.p_vaddr + p.p_memsz);
  }
  static_cast<std::vector<Loaded>*>(list)->push_back(module);
  return 0;
}

bool is_wanted(const Loaded& module) {
  const char* wanted = std::getenv("SPILE_PATCH_ALL");
  if (wanted == nullptr) return false;
  char real[4096] = {};
  const std::string path = realpath(module.path.c_str(), real) != nullptr ? real : module.path;
  std::string rest = wanted;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    if (path.find(rest.substr(0, comma)) != std::string::npos) return true;
    rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
  }
  return false;
}

/// Memory for detours within reach of all of [start, end).
uint8_t* map_near(uint64_t start, uint64_t end, size_t size) {
  constexpr uint64_t kStep = 1 << 20, kReach = (uint64_t{1} << 31) - (1 << 24);
  for (uint64_t at = (end + kStep) & ~(kStep - 1); at + size < start + kReach; at += kStep) {
    void* p = mmap(reinterpret_cast<void*>(at), size, PROT_READ | PROT_WRITE | PROT_EXEC,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (p != MAP_FAILED) return static_cast<uint8_t*>(p);
  }
  return nullptr;
}

std::vector<StoneSpace::Range> free_ranges() {
  constexpr uint64_t kLowest = 1 << 16, kHighest = uint64_t{0x7fff} << 32, kRoom = 256 << 20;
  std::vector<StoneSpace::Range> free;
  uint64_t at = kLowest;
  std::FILE* maps = std::fopen("/proc/self/maps", "re");
  char line[4096];
  while (maps != nullptr && std::fgets(line, sizeof line, maps) != nullptr) {
    uint64_t start = 0, end = 0;
    if (std::sscanf(line, "%" SCNx64 "-%" SCNx64, &start, &end) != 2) continue;
    if (std::strstr(line, "[stack]") != nullptr) start -= kRoom;
    if (start > at && start < kHighest) free.push_back({TargetAddr(at), TargetAddr(start)});
    if (std::strstr(line, "[heap]") != nullptr) end += kRoom;
    at = std::max(at, end);
  }
  if (maps != nullptr) std::fclose(maps);
  return free;
}

bool map_stones(const StoneSpace& space) {
  for (const auto& range : space.pages()) {
    void* at = reinterpret_cast<void*>(range.start.value);
    void* got =
        mmap(at, static_cast<size_t>(range.end - range.start), PROT_READ | PROT_WRITE | PROT_EXEC,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (got != at) return false;
  }
  return true;
}

/// Every instruction of the functions, or only the first.
std::vector<TargetAddr> places(const ElfCode& code) {
  if (std::getenv("SPILE_PATCH_ALL_INSTRUCTIONS") == nullptr) return code.entries;
  const CodeMap map(code.module);
  std::vector<TargetAddr> all;
  for (const TargetAddr entry : code.entries) {
    const Sweep swept = sweep(map, map.region_at(entry));
    for (const SweptInsn& insn : swept.insns) all.push_back(swept.address(insn));
  }
  return all;
}

/// Makes the detours and stones of one module; what is left to do is in `edits`.
class Preparation {
 public:
  explicit Preparation(const Loaded& module) : module_(module) {}

  std::vector<Edit> run() {
    auto code = read_elf_code(module_.path, module_.base);
    if (!code) {
      fmt::print(stderr, "spile_patch_all: {}\n", code.error().message);
      return {};
    }
    const auto wanted = places(*code);
    const Plans plans = plan_windows(code->module, wanted);
    std::vector<const SitePlan*> sites;
    size_t size = 0;
    for (const SitePlan& plan : plans.sites) {
      sites.push_back(&plan);
      size += displaced_size_bytes(plan).value_or(0) + 2 * plan.heads.size();
    }
    next_ = map_near(module_.text_start, module_.text_end, size + size / 4 + (1 << 20));
    StoneSpace space(free_ranges(), 1 << 14);
    const Placements placements = place_short_sites(code->module, sites, space);
    if (next_ == nullptr || !map_stones(space)) return {};
    for (size_t i = 0; i < sites.size(); ++i) {
      if (placements.refused.contains(i)) continue;
      const auto placed = placements.placed.find(i);
      add(*sites[i], placed == placements.placed.end() ? nullptr : &placed->second);
    }
    for (const Evicted& e : placements.evicted) add(e.plan, &e.placement);
    if (std::getenv("SPILE_PATCH_ALL_VERBOSE") != nullptr) {
      fmt::print(stderr,
                 "spile_patch_all: {}: {} places, {} windows, {} placed, {} moved, {} refused\n",
                 module_.path, wanted.size(), sites.size(), placements.placed.size(),
                 placements.evicted.size(), placements.refused.size());
    }
    return std::move(edits_);
  }

 private:
  void add(const SitePlan& plan, const Placement* placement) {
    const TargetAddr detour(reinterpret_cast<uint64_t>(next_));
    uint8_t* const start = next_;
    const auto starts = plan.segment_starts();
    for (size_t i = 0; i < starts.size(); ++i) {
      const auto head = std::ranges::find(plan.probed, starts[i], &ProbedHead::offset);
      if (head != plan.probed.end() && !head->flags_live) put(kDestroyFlags);
      const auto copy = displaced_segment(plan, i, TargetAddr(reinterpret_cast<uint64_t>(next_)));
      if (!copy) {
        // A placed one may be relied on by others: that would need a plan without this site.
        if (placement != nullptr) std::abort();
        next_ = start;
        return;
      }
      put(copy->bytes);
    }
    if (placement != nullptr) {
      const auto stone = stone_bytes(placement->stone, detour);
      std::memcpy(reinterpret_cast<void*>(placement->stone.value), stone.data(), stone.size());
      edits_.insert(edits_.end(), placement->edits.begin(), placement->edits.end());
    } else if (const auto jump = patch_bytes(plan, detour)) {
      edits_.push_back({plan.site, {}, {jump->begin(), jump->end()}});
    }
  }

  void put(std::span<const uint8_t> bytes) {
    std::memcpy(next_, bytes.data(), bytes.size());
    next_ += bytes.size();
  }

  static constexpr uint8_t kDestroyFlags[] = {0x39, 0xe3};  // cmp %esp,%ebx
  const Loaded& module_;
  uint8_t* next_ = nullptr;
  std::vector<Edit> edits_;
};

/// Plain byte stores, and nothing called: the C library's memcpy may be what is being patched. The
/// memory of `edits` is not freed for the same reason.
[[gnu::noinline]] void store_all(const Edit* edit, const Edit* end) {
  for (; edit != end; ++edit) {
    auto* to = reinterpret_cast<volatile uint8_t*>(edit->at.value);
    const uint8_t* from = edit->after.data();
    const size_t size = edit->after.size();
    for (size_t i = 0; i < size; ++i) to[i] = from[i];
  }
}

[[gnu::constructor]] void patch_all() {
  static std::vector<Loaded> modules;
  dl_iterate_phdr(add_module, &modules);
  static std::vector<Edit> edits;
  for (const Loaded& module : modules) {
    if (!is_wanted(module)) continue;
    const auto more = Preparation(module).run();
    edits.insert(edits.end(), more.begin(), more.end());
  }
  std::ranges::stable_sort(edits, {}, &Edit::level);
  // Page by page, all before the first store: mprotect itself may be among what is patched.
  std::set<uint64_t> pages;
  for (const Edit& e : edits) pages.insert(e.at.value & ~uint64_t{4095});
  for (const uint64_t page : pages) {
    mprotect(reinterpret_cast<void*>(page), 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
  }
  store_all(edits.data(), edits.data() + edits.size());
}

}  // namespace
}  // namespace spile::patch
