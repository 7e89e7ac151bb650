// The engine on real processes: children of this test that call a function and count their calls
// themselves. Bundles are made by hand, so that what fails here is not the language.
#include "user_engine/user_engine.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include "bpf/builder.h"
#include "os/process.h"
#include "user_engine/code_image.h"
#include "user_engine/detach.h"
#include "user_engine/late.h"
#include "user_engine/target/process.h"
#include "user_engine/test_worker.h"

namespace spile::user_engine {
namespace {

using namespace testing;
using bpf::Builder;
using bpf::Helper;
using bpf::Reg;
using bundle::Bundle;

TEST(UserEngine, CountsEveryCallOfARunningProcess) {
  Worker worker;
  worker.run(10);
  Snapshot before = Snapshot::of(worker.pid());
  {
    auto trace = attach_or_fail(counting_bundle(), {.pids = {worker.pid()}}, true);
    ASSERT_TRUE(trace);
    worker.run(100'000);
    EXPECT_EQ(total(*trace), 100'000u);
    EXPECT_EQ(trace->stats()->hits, 100'000u);
    ASSERT_TRUE(trace->detach());
    EXPECT_TRUE(trace->take_warnings().empty());
    worker.run(1000);
    EXPECT_EQ(total(*trace), 100'000u) << "hits after detach";
  }
  expect_same(before, Snapshot::of(worker.pid()));
}

TEST(UserEngine, CountsExactlyWithEightThreads) {
  Worker worker(8);
  auto trace = attach_or_fail(counting_bundle(), {.pids = {worker.pid()}});
  ASSERT_TRUE(trace);
  worker.run(200'000);
  EXPECT_EQ(total(*trace), 8u * 200'000u);
}

TEST(UserEngine, AttachesAndDetachesUnderLoad) {
  Worker worker(2);
  worker.run(1);
  Snapshot before = Snapshot::of(worker.pid());
  worker.start(20'000'000);
  uint64_t seen = 0;
  for (int i = 0; i < 50; i++) {
    auto trace = attach_or_fail(counting_bundle(), {.pids = {worker.pid()}});
    ASSERT_TRUE(trace);
    usleep(500);
    // On a busy machine the worker may not have run in any of these moments.
    for (int more = 0; more < 2000 && seen + total(*trace) == 0; more++) usleep(500);
    auto detached = trace->detach();
    ASSERT_TRUE(detached) << detached.error().message;
    for (const auto& warning : trace->take_warnings()) ADD_FAILURE() << warning;
    seen += total(*trace);
  }
  worker.join();
  EXPECT_GT(seen, 0u) << "no hit at all";
  // Threads of the worker have come and gone: only the code and the descriptors must be as before.
  Snapshot after = Snapshot::of(worker.pid());
  EXPECT_TRUE(before.code == after.code);
  EXPECT_EQ(before.descriptors, after.descriptors);
}

TEST(UserEngine, HandsOutRecordsInOrder) {
  Bundle bundle = counting_bundle();
  bundle.maps.push_back({.name = "",
                         .kind = bundle::MapKind::kRing,
                         .role = bundle::MapRole::kRing,
                         .max_entries = 1 << 20});
  bundle.ring_map = 1;
  bundle.programs[0].code = record_program(1);
  Worker worker;
  auto trace = attach_or_fail(bundle, {.pids = {worker.pid()}});
  ASSERT_TRUE(trace);
  worker.run(1000);
  std::vector<uint64_t> arguments;
  std::set<uint64_t> who;
  for (int i = 0; i < 100 && arguments.size() < 1000; i++) {
    auto count = trace->poll(std::chrono::milliseconds(50), [&](std::span<const uint8_t> record) {
      uint64_t argument = 0, pid_tgid = 0;
      std::memcpy(&argument, record.data() + 8, 8);
      std::memcpy(&pid_tgid, record.data() + 16, 8);
      arguments.push_back(argument);
      who.insert(pid_tgid);
    });
    ASSERT_TRUE(count) << count.error().message;
  }
  std::vector<uint64_t> expected;
  for (uint64_t i = 0; i < 1000; i++) expected.push_back(i);
  EXPECT_EQ(arguments, expected);
  auto pid = static_cast<uint64_t>(worker.pid());
  EXPECT_EQ(who, std::set<uint64_t>{pid << 32 | pid});
}

TEST(UserEngine, RefusesASecondTracerAndNamesTheFirst) {
  Worker worker;
  auto trace = attach_or_fail(counting_bundle(), {.pids = {worker.pid()}});
  ASSERT_TRUE(trace);
  auto second = make_engine({})->attach(kept(counting_bundle()), {.pids = {worker.pid()}});
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, ErrorCode::kBusy);
  EXPECT_NE(second.error().message.find(std::to_string(getpid())), std::string::npos)
      << second.error().message;
  worker.run(100);
  EXPECT_EQ(total(*trace), 100u);
}

TEST(UserEngine, LeavesWhatALivingTracerHoldsToIt) {
  Worker worker;
  auto trace = attach_or_fail(counting_bundle(), {.pids = {worker.pid()}});
  ASSERT_TRUE(trace);
  Snapshot during = Snapshot::of(worker.pid());
  auto taken = detach_leftovers(worker.pid());
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().code, ErrorCode::kBusy);
  EXPECT_NE(taken.error().message.find(std::to_string(getpid())), std::string::npos)
      << taken.error().message;
  expect_same(during, Snapshot::of(worker.pid()));
  worker.run(100);
  EXPECT_EQ(total(*trace), 100u);
  EXPECT_TRUE(trace->detach());
}

size_t data_regions(pid_t pid) {
  auto maps = os::read_maps(pid);
  return maps ? static_cast<size_t>(std::ranges::count_if(
                    target::our_mappings(*maps), [](const os::MapEntry& m) { return !m.exec; }))
              : 0;
}

/// Attaches, lets the other side have a go, and detaches: 0 attached, 1 refused because of the
/// other tracer, 2 anything else. A tracer that has gone again by the time of the refusal cannot be
/// named; its jump was seen.
int attach_once(pid_t pid, pid_t other, const char* symbol) {
  Bundle bundle = counting_bundle();
  bundle.probes[0].symbol = symbol;
  auto trace = make_engine({})->attach(kept(std::move(bundle)), {.pids = {pid}});
  if (!trace) {
    const std::string& text = trace.error().message;
    bool named = trace.error().code == ErrorCode::kBusy &&
                 text.find(std::to_string(other)) != std::string::npos;
    bool seen = trace.error().code == ErrorCode::kUnsafe &&
                text.find("another tool has patched it") != std::string::npos;
    if (!named && !seen) fmt::print(stderr, "attach: {}\n", text);
    return named || seen ? 1 : 2;
  }
  usleep(3000);
  if (data_regions(pid) != 1) fmt::print(stderr, "two tracers in one process\n"), _exit(2);
  auto detached = (*trace)->detach();
  auto warnings = (*trace)->take_warnings();
  if (!detached) fmt::print(stderr, "detach: {}\n", detached.error().message);
  for (const auto& warning : warnings) fmt::print(stderr, "detach: {}\n", warning);
  return detached && warnings.empty() ? 0 : 2;
}

/// Leaves what a killed tracer leaves, which both will want to take out first.
void die_attached(pid_t pid) {
  pid_t tracer = fork();
  if (tracer == 0) {
    auto trace = make_engine({})->attach(kept(counting_bundle()), {.pids = {pid}});
    _exit(trace ? 0 : 1);
  }
  int status = 0;
  EXPECT_EQ(waitpid(tracer, &status, 0), tracer);
  EXPECT_EQ(status, 0);
}

TEST(UserEngine, OfTwoTracersThatStartTogetherTheSecondIsRefusedOrComesLater) {
  Worker worker;
  worker.run(1);
  Snapshot before = Snapshot::of(worker.pid());
  worker.start(200'000'000);
  for (int round = 0; round < 40; round++) {
    if (round % 4 == 3) die_attached(worker.pid());
    pid_t tracers[2] = {};
    int go[2][2];
    for (int i = 0; i < 2; i++) {
      ASSERT_EQ(pipe2(go[i], O_CLOEXEC), 0);
      tracers[i] = fork();
      if (tracers[i] != 0) continue;
      pid_t other = 0;
      // At two places: where both want one, the second sees by its bytes that somebody was there.
      const char* symbol =
          i == 0 || round % 2 == 0 ? "spile_engine_test_hot" : "spile_engine_test_cold";
      _exit(read(go[i][0], &other, sizeof other) == sizeof other
                ? attach_once(worker.pid(), other, symbol)
                : 3);
    }
    for (int i = 0; i < 2; i++)
      EXPECT_EQ(write(go[i][1], &tracers[1 - i], sizeof(pid_t)),
                static_cast<ssize_t>(sizeof(pid_t)));
    int statuses[2] = {};
    for (int i = 0; i < 2; i++) EXPECT_EQ(waitpid(tracers[i], &statuses[i], 0), tracers[i]);
    for (int status : statuses)
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) <= 1)
          << "round " << round << ", status " << status;
    for (auto& ends : go) close(ends[0]), close(ends[1]);
  }
  worker.join();
  expect_same(before, Snapshot::of(worker.pid()));
}

/// Without the flag every nsecs is a system call, and nothing else tells.
TEST(UserEngine, TheTargetIsToldWhetherItsTimeStampCounterIsTheClock) {
  Worker worker;
  worker.run(1);
  auto trace = attach_or_fail(counting_bundle(), {.pids = {worker.pid()}}, true);
  ASSERT_TRUE(trace);
  auto target = target::Target::open(worker.pid());
  ASSERT_TRUE(target);
  int regions = 0;
  for (const os::MapEntry& m : target::our_mappings(*target->maps())) {
    if (!m.exec) continue;
    auto consts = target->memory().read_value<abi::RtConsts>(m.start + abi::kConstsOffset);
    if (!consts || consts->magic != abi::kConstsMagic) continue;  // a page of stones
    EXPECT_EQ((consts->flags & abi::kTscIsClock) != 0, shm::tsc_is_clock());
    regions++;
  }
  EXPECT_GT(regions, 0);
  ASSERT_TRUE(trace->detach());
}

TEST(UserEngine, AnAttachThatFailsHalfwayLeavesNothing) {
  Bundle bundle = counting_bundle();
  shm::Clock clock = shm::Clock::start();
  AttachContext context{
      .bundle = &bundle,
      .analyses = {*bpf::check(bundle.programs[0].code, check_env(bundle, bundle.programs[0]))},
      .clock = &clock};
  Worker worker(2);
  worker.run(1);
  Snapshot before = Snapshot::of(worker.pid());
  worker.start(20'000'000);
  int calls = 0;
  context.before_patch = [&]() -> Result<void> {
    calls++;
    return fail(ErrorCode::kInternal, "on purpose");
  };
  auto attached = user_engine::attach(worker.pid(), context);
  ASSERT_FALSE(attached);
  EXPECT_NE(attached.error().message.find("on purpose"), std::string::npos)
      << attached.error().message;
  EXPECT_EQ(calls, 1);
  auto target = target::Target::open(worker.pid());
  ASSERT_TRUE(target);
  EXPECT_TRUE(target::our_mappings(*target->maps()).empty()) << "taken out in the same stop";
  // Busy: the same again, and in the end it works.
  context.before_patch = [&]() -> Result<void> {
    if (calls++ < 3) return fail(ErrorCode::kBusy, "on purpose");
    return {};
  };
  auto later = user_engine::attach(worker.pid(), context);
  ASSERT_TRUE(later) << later.error().message;
  EXPECT_EQ(calls, 4);
  ASSERT_TRUE(detach(**later));
  worker.join();
  Snapshot after = Snapshot::of(worker.pid());
  EXPECT_TRUE(before.code == after.code);
  EXPECT_EQ(before.descriptors, after.descriptors);
}

/// Whether the process has code of a file of this name.
bool has_loaded(pid_t pid, std::string_view name) {
  auto maps = os::read_maps(pid);
  return maps && std::ranges::any_of(*maps, [&](const os::MapEntry& m) {
           return m.exec && m.path.find(name) != std::string::npos;
         });
}

constexpr const char* kOtherLibrary = "libresolv.so.2";

TEST(UserEngine, ALibraryUnloadedInMidAttachIsAwaitedAndTheOthersAreProbed) {
  void* library = dlopen(kOtherLibrary, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) GTEST_SKIP() << dlerror();
  Told process([&](auto wait) {
    if (!wait() || dlclose(library) != 0) return 1;
    while (has_loaded(getpid(), kOtherLibrary)) usleep(1000);
    if (!wait()) return 1;
    for (long i = 0; i < 100; i++) {
      if (spile_engine_test_hot(i, 7) != i * 3 + 7) return 2;
    }
    return dlopen(kOtherLibrary, RTLD_NOW) != nullptr && wait() ? 0 : 3;
  });
  auto target = target::Target::open(process.pid());
  ASSERT_TRUE(target);
  Bundle bundle = counting_bundle();
  auto modules = target->modules();
  ASSERT_TRUE(modules);
  for (const target::Module& m : *modules) {
    if (m.path.find(kOtherLibrary) == std::string::npos) continue;
    for (auto kind : {bundle::ProbeKind::kUprobe, bundle::ProbeKind::kUretprobe}) {
      bundle.probes.push_back(
          {.kind = kind, .name = "late", .path = m.path, .symbol = "__loc_ntoa", .program = 0});
    }
  }
  ASSERT_EQ(bundle.probes.size(), 3u);
  shm::Clock clock = shm::Clock::start();
  AttachContext context{.bundle = &bundle, .analyses = *check_programs(bundle), .clock = &clock};
  int attempts = 0;
  // Behind the plan, before the stop.
  context.begin = [&](shm::Region&) -> Result<void> {
    if (attempts++ > 0) return {};
    process.go();
    while (has_loaded(process.pid(), kOtherLibrary)) usleep(1000);
    return {};
  };
  auto attached = user_engine::attach(process.pid(), context);
  ASSERT_TRUE(attached) << attached.error().message;
  EXPECT_EQ(attempts, 2);
  // The function's, and where the loader tells.
  EXPECT_EQ((*attached)->sites.size(), 2u);
  EXPECT_TRUE((*attached)->refused.empty());
  ASSERT_EQ((*attached)->warnings.size(), 1u);
  EXPECT_NE((*attached)->warnings[0].find(kOtherLibrary), std::string::npos)
      << (*attached)->warnings[0];
  // It comes back: looked for like one that had never been there.
  // Nobody answers the loader, so calls may have gone before the probes: told.
  (*attached)->awaits = false;
  LateLibraries late(LateLibraries::Clock::now());
  late.look(**attached, context);
  process.go();
  while ((*attached)->sites.size() < 3) {
    late.look(**attached, context);
    usleep(1000);
  }
  late.end(**attached);
  const auto said = late.take_warnings();
  EXPECT_TRUE(std::ranges::any_of(
      said, [](const std::string& line) { return line.contains("its calls before that"); }));
  ASSERT_TRUE(detach(**attached));
  process.go();
  EXPECT_EQ(process.wait(), 0);
  dlclose(library);
}

TEST(UserEngine, UndoneInOneStopAnAttachLeavesNothing) {
  Bundle bundle = counting_bundle();
  shm::Clock clock = shm::Clock::start();
  AttachContext context{
      .bundle = &bundle,
      .analyses = {*bpf::check(bundle.programs[0].code, check_env(bundle, bundle.programs[0]))},
      .clock = &clock};
  Worker worker;
  worker.run(1);
  Snapshot before = Snapshot::of(worker.pid());
  auto attached = user_engine::attach(worker.pid(), context);
  ASSERT_TRUE(attached) << attached.error().message;
  auto undone = target::with_tracer_thread([&]() -> Result<void> {
    SPILE_TRY(auto process, target::StoppedProcess::stop(*(*attached)->target));
    return undo_in_stop(process, (*attached)->sites, (*attached)->semaphores, (*attached)->ranges);
  });
  EXPECT_TRUE(undone) << undone.error().message;
  expect_same(before, Snapshot::of(worker.pid()));
  worker.run(100);
}

TEST(UserEngine, NeedsAProcess) {
  auto attached = make_engine({})->attach(kept(counting_bundle()), {});
  ASSERT_FALSE(attached);
  EXPECT_EQ(attached.error().code, ErrorCode::kInvalid);
}

TEST(UserEngine, RunsBeginWithoutAProcess) {
  Bundle bundle = counting_bundle();
  bundle.probes = {{.kind = bundle::ProbeKind::kBegin, .name = "BEGIN", .program = 0}};
  bundle.programs[0].context = bundle::ContextKind::kNone;
  auto trace = attach_or_fail(bundle, {});
  ASSERT_TRUE(trace);
  EXPECT_EQ(total(*trace), 1u);
}

bool has_our_mappings(pid_t pid) {
  auto maps = os::read_maps(pid);
  return maps && !target::our_mappings(*maps).empty();
}

TEST(UserEngine, CleansChildrenOfATargetThatHasEnded) {
  int ready[2];
  ASSERT_EQ(pipe2(ready, O_CLOEXEC), 0);
  Told parent([&](auto wait) {
    if (!wait()) return 1;
    pid_t child = fork();
    if (child == 0) {
      pause();
      _exit(0);
    }
    return write(ready[1], &child, sizeof child) == sizeof child ? 0 : 1;
  });
  auto trace = attach_or_fail(counting_bundle(), {.pids = {parent.pid()}});
  ASSERT_TRUE(trace);
  parent.go();
  pid_t child = 0;
  ASSERT_EQ(read(ready[0], &child, sizeof child), static_cast<ssize_t>(sizeof child));
  EXPECT_EQ(parent.wait(), 0);
  EXPECT_TRUE(has_our_mappings(child)) << "the test shows nothing if the child was never traced";
  ASSERT_TRUE(trace->detach());
  EXPECT_FALSE(has_our_mappings(child));
  auto left = journal_sites(child);
  EXPECT_TRUE(left && left->empty());
  kill(child, SIGKILL);
  close(ready[0]);
  close(ready[1]);
}

/// A hostile process maps a file with our name over an address that is precious to another process,
/// which has the same file elsewhere. Cleaning the first one up must not reach the second.
TEST(UserEngine, AHostileProcessCannotAimTheCleanUpAtAnother) {
  constexpr size_t kBytes = 1 << 16;
  int file = memfd_create("spile-data", MFD_CLOEXEC);
  ASSERT_GE(file, 0);
  ASSERT_EQ(ftruncate(file, kBytes), 0);
  void* precious =
      mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(precious, MAP_FAILED);
  std::memset(precious, 42, kBytes);
  Told hostile([&](auto wait) {
    void* at = mmap(precious, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0);
    return at == precious && wait() ? 0 : 1;
  });
  Told victim([&](auto wait) {
    void* elsewhere = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (elsewhere == MAP_FAILED || !wait()) return 1;
    const auto* bytes = static_cast<const uint8_t*>(precious);
    return std::all_of(bytes, bytes + kBytes, [](uint8_t b) { return b == 42; }) ? 0 : 2;
  });
  usleep(50'000);
  ASSERT_TRUE(has_our_mappings(hostile.pid()));
  ASSERT_TRUE(has_our_mappings(victim.pid()));
  auto report = detach_leftovers(hostile.pid());
  ASSERT_TRUE(report) << report.error().message;
  EXPECT_EQ(report->processes, 1u) << "the other process is not even looked at";
  EXPECT_TRUE(has_our_mappings(victim.pid())) << "not ours to take";
  hostile.go();
  victim.go();
  EXPECT_EQ(victim.wait(), 0);
  hostile.wait();
  munmap(precious, kBytes);
  close(file);
}

}  // namespace
}  // namespace spile::user_engine
