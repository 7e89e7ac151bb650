#include "elf/unwind.h"

#include <dlfcn.h>
#include <link.h>
#include <unwind.h>

#include <algorithm>
#include <set>
#include <sstream>
#include <stdexcept>

#include "elf/symbol.h"
#include "elf/test_files.h"

namespace {

// Where exceptions really continue: the personality routine tells the unwinder by this call, which
// we stand before.
std::vector<uintptr_t> g_landed;

}  // namespace

extern "C" void _Unwind_SetIP(_Unwind_Context* context, _Unwind_Ptr ip) {
  using SetIp = void (*)(_Unwind_Context*, _Unwind_Ptr);
  static const auto real = reinterpret_cast<SetIp>(::dlsym(RTLD_NEXT, "_Unwind_SetIP"));
  g_landed.push_back(ip);
  real(context, ip);
}

namespace spile::elf {
namespace {

using namespace testing;

struct Loud {
  int* count;
  ~Loud() { ++*count; }
};

[[gnu::noinline]] void thrower(int kind) {
  if (kind == 0) throw std::runtime_error("x");
  if (kind == 1) throw 5;
}

[[gnu::noinline]] int catches(int kind) {
  int count = 0;
  try {
    Loud loud{&count};
    thrower(kind);
  } catch (const std::runtime_error&) {
    return count + 10;
  } catch (int) {
    return count + 20;
  }
  return count;
}

[[gnu::noinline]] int passes_on(int kind) {
  int count = 0;
  try {
    Loud outer{&count};
    return catches(kind) + (kind == 2 ? throw 7 : 0);
  } catch (...) {
    return count + 100;
  }
}

uintptr_t own_bias() {
  uintptr_t bias = 0;
  ::dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        *static_cast<uintptr_t*>(out) = info->dlpi_addr;
        return 1;  // the first is the program
      },
      &bias);
  return bias;
}

TEST(UnwindTable, KnowsEveryPlaceWhereAnExceptionLands) {
  g_landed.clear();
  EXPECT_EQ(passes_on(0), 11);
  EXPECT_EQ(passes_on(1), 21);
  EXPECT_EQ(passes_on(2), 101);
  ASSERT_GE(g_landed.size(), 3u);

  auto file = File::open("/proc/self/exe");
  ASSERT_TRUE(file);
  auto table = UnwindTable::read(*file);
  ASSERT_TRUE(table) << table.error().message;
  auto all = table->all_landing_pads();
  ASSERT_TRUE(all) << all.error().message;
  const LoadBias bias{own_bias()};
  for (const uintptr_t ip : g_landed) {
    const auto pad = bias.to_link(TargetAddr(ip));
    EXPECT_TRUE(std::ranges::binary_search(*all, pad)) << fmt::format("{}", pad);
  }
}

TEST(UnwindTable, GivesTheLandingPadsOfOneFunction) {
  auto file = File::open("/proc/self/exe");
  ASSERT_TRUE(file);
  auto table = UnwindTable::read(*file);
  ASSERT_TRUE(table);
  const LoadBias bias{own_bias()};
  const auto* range = table->find(bias.to_link(TargetAddr(reinterpret_cast<uintptr_t>(&catches))));
  ASSERT_NE(range, nullptr);
  const auto pads = table->landing_pads(*range);
  ASSERT_TRUE(pads);
  EXPECT_FALSE(pads->empty());
  const auto* plain = table->find(bias.to_link(TargetAddr(reinterpret_cast<uintptr_t>(&own_bias))));
  ASSERT_NE(plain, nullptr);
  EXPECT_FALSE(plain->lsda && !table->landing_pads(*plain)->empty());
}

/// "start..end" of every FDE that readelf sees.
std::multiset<std::string> ranges_by_readelf(const std::string& path) {
  std::multiset<std::string> ranges;
  std::istringstream lines(
      output_of("readelf --debug-dump=frames-interp,no-follow-links -W " + path));
  for (std::string line; std::getline(lines, line);)
    if (const auto at = line.find(" pc="); at != std::string::npos)
      ranges.insert(line.substr(at + 4));
  return ranges;
}

TEST(UnwindTable, HasTheRangesOfReadelf) {
  if (!has_tool("readelf")) GTEST_SKIP() << "no readelf";
  for (const char* path : {kLibc, kLibstdcxx}) {
    auto file = File::open(path);
    ASSERT_TRUE(file);
    auto table = UnwindTable::read(*file);
    ASSERT_TRUE(table) << table.error().message;
    std::multiset<std::string> ours;
    for (const auto& r : table->functions())
      ours.insert(fmt::format("{:016x}..{:016x}", r.start.value, r.end.value));
    EXPECT_EQ(ours, ranges_by_readelf(path)) << path;
  }
}

TEST(UnwindTable, SeesTheSignalReturnFrame) {
  auto file = File::open(kLibc);
  ASSERT_TRUE(file);
  auto table = UnwindTable::read(*file);
  ASSERT_TRUE(table);
  EXPECT_EQ(std::ranges::count(table->functions(), true, &FunctionRange::is_signal_frame),
            1);  // __restore_rt
}

TEST(UnwindTable, IsTheSameWithoutSectionHeaders) {
  auto bytes = bytes_of(kLibstdcxx);
  auto whole = File::from_bytes(bytes, "whole");
  std::fill_n(bytes.begin() + 0x28, 8, uint8_t{0});  // e_shoff
  std::fill_n(bytes.begin() + 0x3c, 4, uint8_t{0});  // e_shnum, e_shstrndx
  auto bare = File::from_bytes(std::move(bytes), "bare");
  ASSERT_TRUE(whole && bare);
  auto with = UnwindTable::read(*whole), without = UnwindTable::read(*bare);
  ASSERT_TRUE(with && without) << without.error().message;
  EXPECT_EQ(with->functions().size(), without->functions().size());
  EXPECT_TRUE(std::ranges::equal(*with->all_landing_pads(), *without->all_landing_pads()));
}

TEST(UnwindTable, OfLibstdcxxHasPadsOnlyInsideFunctions) {
  auto file = File::open(kLibstdcxx);
  ASSERT_TRUE(file);
  auto table = UnwindTable::read(*file);
  ASSERT_TRUE(table);
  auto pads = table->all_landing_pads();
  ASSERT_TRUE(pads) << pads.error().message;
  EXPECT_GT(pads->size(), 1000u);
  for (const auto pad : *pads) EXPECT_NE(table->find(pad), nullptr) << fmt::format("{}", pad);
}

// ---- how functions are entered
// ---------------------------------------------------------------------------------

TEST(UnwindTable, KnowsWhichRangesAreEnteredByCalls) {
  auto file = File::open("/proc/self/exe");
  ASSERT_TRUE(file);
  auto table = UnwindTable::read(*file);
  ASSERT_TRUE(table);
  size_t calls = 0;
  for (const auto& function : table->functions()) calls += function.starts_at_call;
  EXPECT_GT(calls, table->functions().size() / 2);
  auto symbols = read_symbols(*file);
  ASSERT_TRUE(symbols);
  size_t cold = 0, thrown = 0;
  for (const auto& symbol : *symbols) {
    const FunctionRange* range = table->find(symbol.addr);
    if (range == nullptr || range->start != symbol.addr) continue;
    // GCC puts what is seldom run apart and jumps there, from the middle of a frame.
    if (symbol.name.find("catches") != std::string_view::npos) {
      bool is_cold = symbol.name.ends_with(".cold");
      EXPECT_EQ(range->starts_at_call, !is_cold) << symbol.name;
      (is_cold ? cold : thrown)++;
    }
  }
  EXPECT_GT(thrown, 0u);
#ifndef __SANITIZE_ADDRESS__  // then the compiler makes no such parts
  EXPECT_GT(cold, 0u) << "no .cold part of catches(): the test sees only one sort";
#endif
}

}  // namespace
}  // namespace spile::elf
