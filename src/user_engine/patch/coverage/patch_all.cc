// Preloaded into a program: before main, patches every function of the modules that SPILE_PATCH_ALL
// names (parts of their paths, separated by commas). A detour is only the displaced code; where
// flags are said to be dead, it destroys them. If the program still works, windows, relocation and
// flag liveness were right. SPILE_PATCH_ALL_VERBOSE=1 tells counts.
#include <fmt/format.h>
#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include "user_engine/patch/coverage/elf_code.h"

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

/// Plain byte stores: the C library's memcpy may be what is being patched.
void store(uint8_t* to, const PatchBytes& bytes) {
  for (size_t i = 0; i < bytes.size(); ++i) *const_cast<volatile uint8_t*>(to + i) = bytes[i];
}

struct Prepared {
  uint8_t* site;
  PatchBytes bytes;
};

/// Writes the detours; what is left to do is one store a site.
std::vector<Prepared> prepare(const Loaded& module) {
  std::vector<Prepared> prepared;
  const auto code = read_elf_code(module.path, module.base);
  if (!code) {
    fmt::print(stderr, "spile_patch_all: {}\n", code.error().message);
    return prepared;
  }
  const auto plans = plan_sites(code->module, code->entries);
  uint8_t* next = map_near(module.text_start, module.text_end, plans.size() * 64);
  std::set<uint64_t> seen;
  for (const Outcome& plan : plans) {
    if (!plan || next == nullptr || !seen.insert(plan->site.value).second) continue;
    const TargetAddr detour(reinterpret_cast<uint64_t>(next));
    const uint8_t destroy_flags[] = {0x39, 0xe3};  // cmp %esp,%ebx
    const size_t prefix = plan->probed.front().flags_live ? 0 : sizeof destroy_flags;
    const auto copy = displaced_code(*plan, detour + prefix);
    const auto jump = patch_bytes(*plan, detour);
    if (!copy || !jump) continue;
    std::memcpy(next, destroy_flags, prefix);
    std::memcpy(next + prefix, copy->bytes.data(), copy->bytes.size());
    next += prefix + copy->bytes.size();
    prepared.push_back({reinterpret_cast<uint8_t*>(plan->site.value), *jump});
  }
  if (std::getenv("SPILE_PATCH_ALL_VERBOSE") != nullptr) {
    fmt::print(stderr, "spile_patch_all: {}: {} of {}\n", module.path, prepared.size(),
               plans.size());
  }
  return prepared;
}

[[gnu::constructor]] void patch_all() {
  std::vector<Loaded> modules;
  dl_iterate_phdr(add_module, &modules);
  std::vector<Prepared> prepared;
  for (const Loaded& module : modules) {
    if (!is_wanted(module)) continue;
    const auto more = prepare(module);
    prepared.insert(prepared.end(), more.begin(), more.end());
  }
  // Page by page, all before the first store: mprotect itself may be among what is patched.
  std::set<uint64_t> pages;
  for (const Prepared& p : prepared)
    pages.insert(reinterpret_cast<uint64_t>(p.site) & ~uint64_t{4095});
  for (const uint64_t page : pages) {
    mprotect(reinterpret_cast<void*>(page), 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
  }
  for (const Prepared& p : prepared) store(p.site, p.bytes);
}

}  // namespace
}  // namespace spile::patch
