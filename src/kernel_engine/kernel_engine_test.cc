// Needs root and bpf(2); skips with the reason where they are missing. Bundles are made by hand:
// the waist alone.
#include "kernel_engine/kernel_engine.h"

#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "bpf/builder.h"
#include "kernel_engine/features.h"
#include "kernel_engine/program.h"

namespace spile::kernel_engine {
namespace {

using bpf::Builder;
using bpf::Helper;
using bpf::Reg;
using bundle::Bundle;

/// counter[0] += 1 on this CPU.
bpf::Program count_program(int map) {
  Builder b;
  b.store_imm(4, Reg::r10, -4, 0);
  b.mov(Reg::r2, Reg::r10);
  b.alu_imm(bpf::kAdd, Reg::r2, -4);
  b.load_map(Reg::r1, map);
  b.call(Helper::kMapLookupElem);
  auto out = b.new_label();
  b.jump_if_imm(bpf::kJeq, Reg::r0, 0, out);
  b.mov_imm(Reg::r1, 1);
  b.atomic(8, bpf::kAtomicAdd, Reg::r0, 0, Reg::r1);
  b.bind(out);
  b.mov_imm(Reg::r0, 0);
  b.exit();
  return *std::move(b).finish();
}

/// One record of 16 bytes: header with action 7, then the cookie (or 0).
bpf::Program record_program(int ring, bool with_cookie) {
  Builder b;
  b.mov_imm(Reg::r7, 0);
  if (with_cookie) {
    b.call(Helper::kGetAttachCookie);
    b.mov(Reg::r7, Reg::r0);
  }
  b.load_map(Reg::r1, ring);
  b.mov_imm(Reg::r2, 16);
  b.mov_imm(Reg::r3, 0);
  b.call(Helper::kRingbufReserve);
  auto out = b.new_label();
  auto reserved = b.new_label();
  b.jump_if_imm(bpf::kJne, Reg::r0, 0, reserved);
  b.jump(out);
  b.bind(reserved);
  b.store_imm(4, Reg::r0, 0, 7);
  b.store_imm(4, Reg::r0, 4, 16);
  b.store(8, Reg::r0, 8, Reg::r7);
  b.mov(Reg::r1, Reg::r0);
  b.mov_imm(Reg::r2, 0);
  b.call(Helper::kRingbufSubmit);
  b.bind(out);
  b.mov_imm(Reg::r0, 0);
  b.exit();
  return *std::move(b).finish();
}

bundle::MapSpec counter_map() {
  return {.name = "@",
          .kind = bundle::MapKind::kPerCpuArray,
          .role = bundle::MapRole::kCount,
          .key_size = 4,
          .value_size = 8,
          .max_entries = 1};
}
bundle::MapSpec ring_map() {
  return {.name = "",
          .kind = bundle::MapKind::kRing,
          .role = bundle::MapRole::kRing,
          .max_entries = 1 << 16};
}

uint64_t total(const std::vector<engine::MapEntry>& entries) {
  uint64_t sum = 0;
  for (const auto& entry : entries) {
    for (const auto& value : entry.values) {
      uint64_t one = 0;
      std::memcpy(&one, value.data(), 8);
      sum += one;
    }
  }
  return sum;
}

#define ATTACH_OR_SKIP(trace, bundle, scope)                                   \
  auto trace##_result = make_engine({.measure = true})->attach(bundle, scope); \
  if (!trace##_result && trace##_result.error().code == ErrorCode::kDenied)    \
    GTEST_SKIP() << "SKIP: " << trace##_result.error().message;                \
  ASSERT_TRUE(trace##_result) << trace##_result.error().message;               \
  auto trace = std::move(*trace##_result)

TEST(KernelEngine, RunsBeginAndEndOnceEach) {
  Bundle bundle;
  bundle.maps = {counter_map()};
  bundle.programs = {{.name = "count", .code = count_program(0)}};
  bundle.probes = {{.kind = bundle::ProbeKind::kBegin, .name = "BEGIN", .program = 0},
                   {.kind = bundle::ProbeKind::kEnd, .name = "END", .program = 0}};
  ATTACH_OR_SKIP(trace, bundle, engine::Scope{});
  EXPECT_EQ(total(*trace->read_map(0)), 1u);
  ASSERT_TRUE(trace->run_end());
  EXPECT_EQ(total(*trace->read_map(0)), 2u);
  ASSERT_TRUE(trace->zero_map(0));
  EXPECT_EQ(total(*trace->read_map(0)), 0u);
}

TEST(KernelEngine, HandsOutRecordsInOrder) {
  Bundle bundle;
  bundle.maps = {ring_map()};
  bundle.ring_map = 0;
  bundle.programs = {{.name = "record", .code = record_program(0, false)}};
  bundle.probes = {{.kind = bundle::ProbeKind::kBegin, .name = "BEGIN", .program = 0},
                   {.kind = bundle::ProbeKind::kBegin, .name = "BEGIN", .program = 0}};
  ATTACH_OR_SKIP(trace, bundle, engine::Scope{});
  size_t seen = 0;
  auto count = trace->poll(std::chrono::milliseconds(100), [&](std::span<const uint8_t> record) {
    ASSERT_EQ(record.size(), 16u);
    EXPECT_EQ(record[0], 7);
    seen++;
  });
  ASSERT_TRUE(count);
  EXPECT_EQ(seen, 2u);
}

/// What runs off is nothing, whoever calls; programs are switched whole.
TEST(KernelEngine, SwitchesProbesOffAndOn) {
  if (access("/sys/kernel/tracing/events/syscalls", F_OK) != 0)
    GTEST_SKIP() << "SKIP: no tracefs with syscall events";
  Bundle bundle;
  bundle.maps = {counter_map()};
  bundle.programs = {{.name = "count",
                      .code = count_program(0),
                      .context = bundle::ContextKind::kTracepoint,
                      .context_size = 16}};
  for (const char* event : {"sys_enter_getpgid", "sys_exit_getpgid"})
    bundle.probes.push_back({.kind = bundle::ProbeKind::kTracepoint,
                             .name = event,
                             .symbol = event,
                             .module = "syscalls",
                             .program = 0});
  engine::Scope scope;
  scope.paused = true;
  ATTACH_OR_SKIP(trace, bundle, scope);
  auto call = [] {
    for (int i = 0; i < 1000; i++) getpgid(0);
  };
  call();
  EXPECT_EQ(total(*trace->read_map(0)), 0u);
  const std::vector<int> one = {1}, both = {0, 1};
  EXPECT_EQ(trace->switch_probes(one, true).error().code, ErrorCode::kUnsupported);
  call();
  EXPECT_EQ(total(*trace->read_map(0)), 0u) << "nothing has changed";
  ASSERT_TRUE(trace->switch_probes(both, true));
  call();
  ASSERT_TRUE(trace->switch_probes(both, false));
  const uint64_t counted = total(*trace->read_map(0));
  EXPECT_GE(counted, 2000u);
  call();
  // A program that ran at that moment, on another CPU, has ended meanwhile.
  EXPECT_LE(total(*trace->read_map(0)),
            counted + static_cast<uint64_t>(sysconf(_SC_NPROCESSORS_CONF)));
}

TEST(KernelEngine, CountsATracepoint) {
  if (access("/sys/kernel/tracing/events/syscalls", F_OK) != 0)
    GTEST_SKIP() << "SKIP: no tracefs with syscall events";
  Bundle bundle;
  bundle.maps = {counter_map()};
  bundle.programs = {{.name = "count",
                      .code = count_program(0),
                      .context = bundle::ContextKind::kTracepoint,
                      .context_size = 16}};
  bundle.probes = {{.kind = bundle::ProbeKind::kTracepoint,
                    .name = "t",
                    .symbol = "sys_enter_getpgid",
                    .module = "syscalls",
                    .program = 0}};
  ATTACH_OR_SKIP(trace, bundle, engine::Scope{});
  for (int i = 0; i < 1000; i++) getpgid(0);
  EXPECT_GE(total(*trace->read_map(0)), 1000u);
  ASSERT_TRUE(trace->detach());
  uint64_t after = total(*trace->read_map(0));
  for (int i = 0; i < 1000; i++) getpgid(0);
  EXPECT_EQ(total(*trace->read_map(0)), after);
  EXPECT_GE(trace->stats()->hits, 1000u);
}

extern "C" __attribute__((noinline)) int spile_kernel_engine_test_target(int x) {
  asm volatile("" : "+r"(x));
  return x + 1;
}

void counts_own_function(AttachPath path) {
  Bundle bundle;
  bundle.maps = {counter_map(), ring_map()};
  bundle.ring_map = 1;
  bundle.programs = {{.name = "count",
                      .code = count_program(0),
                      .context = bundle::ContextKind::kRegs,
                      .context_size = 168},
                     {.name = "record",
                      .code = record_program(1, true),
                      .context = bundle::ContextKind::kRegs,
                      .context_size = 168}};
  bundle::Probe probe{.kind = bundle::ProbeKind::kUprobe,
                      .name = "u",
                      .path = "/proc/self/exe",
                      .symbol = "spile_kernel_engine_test_target"};
  char exe[4096] = {};
  ASSERT_GT(readlink("/proc/self/exe", exe, sizeof exe - 1), 0);
  probe.path = exe;
  probe.program = 0;
  bundle.probes.push_back(probe);
  probe.program = 1;
  bundle.probes.push_back(probe);
  auto attached =
      make_engine({.measure = true, .attach_path = path})->attach(bundle, {.pids = {getpid()}});
  if (!attached && attached.error().code == ErrorCode::kDenied)
    GTEST_SKIP() << "SKIP: " << attached.error().message;
  ASSERT_TRUE(attached) << attached.error().message;
  auto trace = std::move(*attached);
  for (int i = 0; i < 100; i++) spile_kernel_engine_test_target(i);
  EXPECT_EQ(total(*trace->read_map(0)), 100u);
  std::vector<uint64_t> cookies;
  ASSERT_TRUE(trace->poll(std::chrono::milliseconds(100), [&](std::span<const uint8_t> record) {
    uint64_t cookie = 0;
    std::memcpy(&cookie, record.data() + 8, 8);
    cookies.push_back(cookie);
  }));
  EXPECT_EQ(cookies, std::vector<uint64_t>(100, 1));
  EXPECT_EQ(trace->sites().size(), 2u);
}

TEST(KernelEngine, CountsAUprobeByMultiLink) {
  if (!Features().uprobe_multi_with_pid()) GTEST_SKIP() << "SKIP: this kernel has no uprobe.multi";
  counts_own_function(AttachPath::kMulti);
}
TEST(KernelEngine, CountsAUprobeByPerfEvent) {
  counts_own_function(AttachPath::kLink);
}
TEST(KernelEngine, CountsAUprobeByIoctlAndItsCookieIsInTheCode) {
  counts_own_function(AttachPath::kIoctl);
}
TEST(KernelEngine, CountsAUprobeByATracefsEventAndItsCookieIsInTheCode) {
  counts_own_function(AttachPath::kTracefs);
}

/// Kernels since 5.17, by asking them; none has a helper of that number.
TEST(KernelEngine, AsksForWhatLoopsNeed) {
  if (!Features().programs()) GTEST_SKIP() << "SKIP: needs CAP_BPF and CAP_PERFMON";
  utsname names = {};
  uname(&names);
  int major = 0, minor = 0;
  ASSERT_EQ(sscanf(names.release, "%d.%d", &major, &minor), 2);
  if (std::pair(major, minor) < std::pair(5, 17)) GTEST_SKIP() << "SKIP: an older kernel";
  EXPECT_TRUE(Features().loops());
  EXPECT_TRUE(Features().exchange());
  EXPECT_FALSE(Features::has_helper(static_cast<Helper>(99'999)));
}

/// Both ways to claim the place for a record pass the verifier.
TEST(KernelEngine, LoadsProgramsThatSendThroughPerfBuffers) {
  auto maps = Maps::create({ring_map()}, RecordPath::kPerfBuffer, 64);
  if (!maps && maps.error().code == ErrorCode::kDenied)
    GTEST_SKIP() << "SKIP: " << maps.error().message;
  ASSERT_TRUE(maps) << maps.error().message;
  for (Claim claim : {Claim::kExchange, Claim::kLookAndStore}) {
    auto code = with_perf_output(record_program(0, true), 0, maps->scratch_map(), claim);
    ASSERT_TRUE(code) << code.error().message;
    auto loaded = load_program({.name = "record", .code = *code}, LoadType::kKprobe, *maps);
    EXPECT_TRUE(loaded) << loaded.error().message;
  }
}

TEST(KernelEngine, FiresAnInterval) {
  Bundle bundle;
  bundle.maps = {counter_map()};
  bundle.programs = {{.name = "count", .code = count_program(0)}};
  bundle.probes = {{.kind = bundle::ProbeKind::kInterval,
                    .name = "interval:ms:5",
                    .interval_ns = 5'000'000,
                    .program = 0}};
  ATTACH_OR_SKIP(trace, bundle, engine::Scope{});
  for (int i = 0; i < 100 && total(*trace->read_map(0)) < 3; i++) usleep(10'000);
  EXPECT_GE(total(*trace->read_map(0)), 3u);
}

TEST(KernelEngine, ShowsTheVerifiersReason) {
  Bundle bundle;
  Builder b;
  b.load(8, Reg::r0, Reg::r1, 0);  // r1 is a null-able nothing for a test run of no arguments
  b.load(8, Reg::r0, Reg::r0, 0);
  b.exit();
  bundle.programs = {{.name = "bad", .code = *std::move(b).finish()}};
  bundle.probes = {{.kind = bundle::ProbeKind::kBegin, .name = "BEGIN", .program = 0}};
  auto attached = make_engine({})->attach(bundle, {});
  ASSERT_FALSE(attached);
  if (attached.error().code == ErrorCode::kDenied)
    GTEST_SKIP() << "SKIP: " << attached.error().message;
  EXPECT_NE(attached.error().message.find("verifier"), std::string::npos)
      << attached.error().message;
}

TEST(KernelEngine, NamesAProbeThatDoesNotExist) {
  Bundle bundle;
  bundle.maps = {counter_map()};
  bundle.programs = {{.name = "count",
                      .code = count_program(0),
                      .context = bundle::ContextKind::kRegs,
                      .context_size = 168}};
  bundle.probes = {{.kind = bundle::ProbeKind::kUprobe,
                    .name = "u",
                    .path = "/bin/true",
                    .symbol = "no_such_function",
                    .program = 0}};
  auto attached = make_engine({})->attach(bundle, {});
  ASSERT_FALSE(attached);
  if (attached.error().code == ErrorCode::kDenied)
    GTEST_SKIP() << "SKIP: " << attached.error().message;
  EXPECT_NE(attached.error().message.find("no_such_function"), std::string::npos);
}

}  // namespace
}  // namespace spile::kernel_engine
