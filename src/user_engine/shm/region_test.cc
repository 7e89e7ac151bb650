#include "user_engine/shm/region.h"

#include <gtest/gtest.h>
#include <time.h>

#include <algorithm>
#include <limits>
#include <thread>

#include "bpf/builder.h"
#include "user_engine/rt/cpu.h"
#include "user_engine/shm/clock.h"
#include "user_engine/shm/helpers.h"
#include "user_engine/shm/maps.h"
#include "user_engine/shm/region_for_test.h"
#include "user_engine/shm/ring_reader.h"

namespace spile::shm {
namespace {

using bundle::MapKind;

Result<RegionLayout> plan(std::vector<bundle::MapSpec> maps, RegionOptions options = {.cpus = 4}) {
  bundle::Bundle bundle;
  bundle.maps = std::move(maps);
  return plan_region(bundle, options);
}

ErrorCode code_of(const Result<RegionLayout>& layout) {
  EXPECT_FALSE(layout);
  return layout ? ErrorCode::kInternal : layout.error().code;
}

TEST(Region, MapsDoNotOverlap) {
  const auto layout =
      plan({map_spec(MapKind::kHash, 5, 12, 100), ring_spec(65536),
            map_spec(MapKind::kPerCpuHash, 8, 8, 3), map_spec(MapKind::kArray, 4, 1, 7),
            map_spec(MapKind::kPerCpuArray, 4, 24, 9)},
           {.cpus = 3, .site_capacity = 1000});
  ASSERT_TRUE(layout);
  EXPECT_EQ(layout->cpu_slots, 4u);
  std::vector<std::pair<uint64_t, uint64_t>> ranges = {
      {layout->sites_offset, layout->sites_offset + 1000 * sizeof(abi::SiteEntry)}};
  const auto add = [&](uint64_t at, uint64_t bytes) { ranges.emplace_back(at, at + bytes); };
  for (const abi::RtMap& map : layout->maps) {
    if (map.kind == abi::RtMapKind::kRing) {
      add(map.rings, map.ring_stride * 4);
      continue;
    }
    const uint64_t values = std::max(map.max_entries, map.capacity);
    add(map.values, std::max(map.per_cpu_stride * (map.cpu_mask + 1), map.value_stride * values));
    if (map.heads == 0) continue;
    add(map.heads, sizeof(abi::HashHead) + 8 * (uint64_t{map.bucket_mask} + 1));
    add(map.entries, uint64_t{map.entry_stride} * map.capacity);
  }
  std::ranges::sort(ranges);
  for (size_t i = 1; i < ranges.size(); ++i) EXPECT_LE(ranges[i - 1].second, ranges[i].first);
  EXPECT_GE(ranges.front().first, abi::kStatsOffset + 4 * sizeof(abi::CpuStats));
  EXPECT_LE(ranges.back().second, layout->size_bytes);
  EXPECT_EQ(layout->size_bytes % 4096, 0u);
}

TEST(Region, RefusesMapsThatNobodyCanHave) {
  EXPECT_EQ(code_of(plan({map_spec(MapKind::kHash, 0, 8, 1)})), ErrorCode::kInvalid);
  EXPECT_EQ(code_of(plan({map_spec(MapKind::kHash, 5000, 8, 1)})), ErrorCode::kInvalid);
  EXPECT_EQ(code_of(plan({map_spec(MapKind::kHash, 8, 0, 1)})), ErrorCode::kInvalid);
  EXPECT_EQ(code_of(plan({map_spec(MapKind::kHash, 8, 1 << 20, 1)})), ErrorCode::kInvalid);
  EXPECT_EQ(code_of(plan({map_spec(MapKind::kHash, 8, 8, 0)})), ErrorCode::kInvalid);
  EXPECT_EQ(code_of(plan({map_spec(MapKind::kHash, 8, 8, 1 << 30)})), ErrorCode::kInvalid);
  EXPECT_EQ(code_of(plan({map_spec(MapKind::kArray, 8, 8, 1)})), ErrorCode::kInvalid);
  EXPECT_EQ(code_of(plan({ring_spec(5000)})), ErrorCode::kInvalid);
  EXPECT_EQ(code_of(plan({ring_spec(2048)})), ErrorCode::kInvalid);
}

TEST(Region, RefusesMoreMemoryThanAllowed) {
  const auto layout = plan({map_spec(MapKind::kPerCpuHash, 4096, 65536, 1 << 24)}, {.cpus = 1024});
  EXPECT_EQ(code_of(layout), ErrorCode::kUnsupported);
  EXPECT_NE(layout.error().message.find("@test"), std::string::npos);
}

TEST(Region, RingsShareWhatIsAllowed) {
  const auto layout =
      plan({ring_spec(1 << 24)}, {.cpus = 256, .max_ring_bytes = uint64_t{1} << 26});
  ASSERT_TRUE(layout);
  EXPECT_EQ(layout->maps[0].ring_size, 1u << 18);
}

TEST(Region, TheHeaderIsCheckedByAnAdopter) {
  TestRegion r({map_spec(MapKind::kHash, 8, 8, 10)});
  ASSERT_TRUE(check_header(r.memory().bytes()));
  EXPECT_EQ(check_header(r.memory().bytes())->site_capacity, 4u);
  auto* header = reinterpret_cast<abi::DataHeader*>(r.memory().data());
  header->sites_offset = r.memory().size() - 4096;
  header->site_capacity = 65;
  EXPECT_EQ(check_header(r.memory().bytes()).error().code, ErrorCode::kCorrupt);
  header->sites_offset = std::numeric_limits<uint64_t>::max() - 4095;
  EXPECT_EQ(check_header(r.memory().bytes()).error().code, ErrorCode::kCorrupt);
  header->version = 99;
  EXPECT_EQ(check_header(r.memory().bytes()).error().code, ErrorCode::kUnsupported);
  header->magic = 0;
  EXPECT_EQ(check_header(r.memory().bytes()).error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(check_header(r.memory().bytes().first(100)).error().code, ErrorCode::kCorrupt);
}

TEST(Region, ProgramsThatTheTracerRunsUseTheSharedMaps) {
  TestRegion r({map_spec(MapKind::kHash, 8, 8, 10), ring_spec(65536)});
  using namespace bpf;
  Builder b;
  // @[5] = 9; then a record of 8 bytes that holds 3.
  b.store_imm(8, Reg::r10, -8, 5);
  b.store_imm(8, Reg::r10, -16, 9);
  b.load_map(Reg::r1, 0);
  b.mov(Reg::r2, Reg::r10);
  b.alu_imm(kAdd, Reg::r2, -8);
  b.mov(Reg::r3, Reg::r10);
  b.alu_imm(kAdd, Reg::r3, -16);
  b.mov_imm(Reg::r4, 0);
  b.call(Helper::kMapUpdateElem);
  b.load_map(Reg::r1, 1);
  b.mov_imm(Reg::r2, 8);
  b.mov_imm(Reg::r3, 0);
  b.call(Helper::kRingbufReserve);
  b.store_imm(8, Reg::r0, 0, 3);
  b.mov(Reg::r1, Reg::r0);
  b.mov_imm(Reg::r2, 0);
  b.call(Helper::kRingbufSubmit);
  b.mov_imm(Reg::r0, 0);
  b.exit();
  const auto program = std::move(b).finish();
  ASSERT_TRUE(program);
  const HelperTable helpers = make_helpers(r.region());
  const auto maps = map_addresses(r.region());
  const auto result = run(*program, 0, {.helpers = &helpers, .maps = maps});
  ASSERT_TRUE(result) << result.error().message;
  const auto entries = snapshot(r.region(), 0);
  ASSERT_EQ(entries->size(), 1u);
  EXPECT_EQ((*entries)[0].values[0][0], 9);
  RingReader reader;
  ASSERT_TRUE(reader.add(r.region(), 1, {}));
  EXPECT_EQ(reader.poll([](uint64_t, std::span<const uint8_t> body) { EXPECT_EQ(body[0], 3); }),
            1u);
}

uint64_t monotonic_ns() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(t.tv_nsec);
}

TEST(Clock, TellsTheKernelsTimeToAFewMicroseconds) {
  if (!tsc_is_clock()) GTEST_SKIP() << "the clocksource is not tsc";
  TestRegion r({});
  Clock clock = Clock::start();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  clock.refresh(r.region().time_page());
  for (int i = 0; i < 20; ++i) {
    const uint64_t before = monotonic_ns();
    const uint64_t told = clock.to_ns(rt::read_tsc());
    const uint64_t after = monotonic_ns();
    EXPECT_GE(told + 20'000, before);
    EXPECT_LE(told, after + 20'000);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (i % 5 == 0) clock.refresh(r.region().time_page());
  }
}

/// A machine whose counter runs at 2 GHz: moments by their nanoseconds.
ClockSample at_2ghz(uint64_t ns, int64_t clock_error_ns = 0) {
  return {2 * ns, ns + static_cast<uint64_t>(clock_error_ns)};
}
constexpr uint64_t kMs = 1'000'000;

TEST(Clock, MakesSmallErrorsGoodWithoutAJump) {
  TestRegion r({});
  Clock clock = Clock::start(at_2ghz(100 * kMs));
  clock.refresh(r.region().time_page(), at_2ghz(200 * kMs));
  EXPECT_NEAR(static_cast<double>(clock.to_ns(2 * 300 * kMs)), 300.0 * kMs, 10);
  // The kernel steered its clock by 50 us: time goes on from where it was, a little faster.
  clock.refresh(r.region().time_page(), at_2ghz(300 * kMs, 50'000));
  EXPECT_NEAR(static_cast<double>(clock.to_ns(2 * 300 * kMs)), 300.0 * kMs, 10);
  const uint64_t later = clock.to_ns(2 * 1300 * kMs);
  EXPECT_GT(later, 1300 * kMs + 40'000);
  EXPECT_LT(later, 1300 * kMs + 600'000);
}

TEST(Clock, JumpsWhenTheTwoClocksParted) {
  TestRegion r({});
  Clock clock = Clock::start(at_2ghz(100 * kMs));
  clock.refresh(r.region().time_page(), at_2ghz(200 * kMs));
  // As after a suspend in which the counter ran on: the clock is 5 s behind what the line tells.
  const ClockSample woken = {2 * 8000 * kMs, 3000 * kMs};
  clock.refresh(r.region().time_page(), woken);
  EXPECT_EQ(clock.to_ns(woken.tsc), woken.ns);
  EXPECT_NEAR(static_cast<double>(clock.to_ns(woken.tsc + 2 * 100 * kMs)), 3100.0 * kMs, 100)
      << "the old rate";
}

TEST(Clock, ALineIsValidForFiveSeconds) {
  TestRegion r({});
  Clock clock = Clock::start(at_2ghz(100 * kMs));
  clock.refresh(r.region().time_page(), at_2ghz(200 * kMs));
  const abi::TimePage& page = r.region().time_page();
  EXPECT_NEAR(static_cast<double>(page.line[page.sequence & 1].valid_until_tsc), 2 * 5200.0 * kMs,
              1000);
}

TEST(Clock, AnotherRegionGetsTheSameLine) {
  TestRegion a({}), b({});
  Clock clock = Clock::start();
  clock.refresh(a.region().time_page());
  clock.publish(b.region().time_page());
  EXPECT_EQ(a.region().time_page().line[1].base_ns, b.region().time_page().line[1].base_ns);
  EXPECT_EQ(b.region().time_page().sequence, 1u);
}

}  // namespace
}  // namespace spile::shm
