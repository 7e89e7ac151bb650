#include "user_engine/target/inject.h"

#include <fcntl.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <optional>

#include "os/step.h"
#include "user_engine/target/stub.h"
#include "user_engine/target/test_program.h"
#include "user_engine/target/threads_inside.h"

namespace spile::target {
namespace {

constexpr uid_t kNobody = 65534;

std::string waiter() {
  return build_program("waiter.c", "cc -O1");
}

#define REQUIRE_PROGRAM(program, source, flags)             \
  const std::string program = build_program(source, flags); \
  if (program.empty()) GTEST_SKIP() << "cannot build with " << flags

/// Code, data and private memory below the main program.
Result<std::vector<RegionSpec>> plan_regions(const Target& target) {
  SPILE_TRY(const auto maps, target.maps());
  SPILE_TRY(const auto modules, target.modules());
  SPILE_TRY(const auto rules, gap_rules(target));
  std::vector<AddressRange> near;
  for (const Module& m : modules) {
    if (m.main_program) near.push_back({m.start, m.end});
  }
  SPILE_TRY(const TargetAddr at, find_gap(maps, rules, near, 0x40000));
  return std::vector<RegionSpec>{{RegionSpec::Kind::kCode, "spile-code", at, 0x10000},
                                 {RegionSpec::Kind::kData, "spile-data", at + 0x10000, 0x20000},
                                 {RegionSpec::Kind::kPrivate, "", at + 0x30000, 0x1000}};
}

/// The whole use: open, plan, stop, map, fill, detach.
Result<std::vector<RemoteMemory>> attach(pid_t pid) {
  return while_busy([&] {
    return with_tracer_thread([&]() -> Result<std::vector<RemoteMemory>> {
      SPILE_TRY(const Target target, Target::open(pid));
      SPILE_TRY(const auto specs, plan_regions(target));
      SPILE_TRY(StoppedProcess process, StoppedProcess::stop(target));
      SPILE_TRY(auto regions, map_shared(process, specs));
      process.detach();
      return regions;
    });
  });
}

Result<size_t> unmap_everything(pid_t pid) {
  return while_busy([&] {
    return with_tracer_thread([&]() -> Result<size_t> {
      SPILE_TRY(const Target target, Target::open(pid));
      SPILE_TRY(StoppedProcess process, StoppedProcess::stop(target));
      SPILE_TRY(const size_t wiped, clean_leftover_stubs(process));
      SPILE_TRY(const auto maps, target.maps());
      std::vector<AddressRange> ranges;
      for (const auto& map : our_mappings(maps)) ranges.push_back({map.start, map.end});
      if (!ranges.empty()) SPILE_TRY_VOID(unmap(process, ranges));
      return wiped;
    });
  });
}

/// Oracle: no executable byte of the target differs from its file.
std::string text_unchanged(pid_t pid) {
  auto target = Target::open(pid);
  if (!target) return target.error().message;
  auto modules = target->modules();
  if (!modules) return modules.error().message;
  for (const Module& module : *modules) {
    if (module.vdso) continue;
    auto differences = target->compare_text(module);
    if (!differences) return differences.error().message;
    if (!differences->empty())
      return fmt::format("{} differs at {}", module.path, differences->front().start);
    for (const Segment& s : module.segments) {
      if (!s.exec) continue;
      // Behind the file's part: the places that stubs use.
      std::vector<uint8_t> last(4096);
      if (!target->memory().read(s.end - 4096, last)) return "cannot read the last page";
      static const std::string_view kMagic = "spile:stub";
      if (std::string_view(reinterpret_cast<char*>(last.data()), last.size()).find(kMagic) !=
          std::string_view::npos) {
        return "a stub is left in " + module.path;
      }
    }
  }
  return "text-unchanged";
}

std::string describe(const Error& error) {
  return fmt::format("{} ({})", error.message, to_string(error.code));
}

/// Attach with checks of what both sides see.
void attach_and_check(const std::vector<std::string>& command, uid_t uid = 0) {
  Program program = Program::start(command, uid);
  ASSERT_TRUE(program.ready());
  auto regions = attach(program.pid());
  ASSERT_TRUE(regions) << describe(regions.error());
  ASSERT_EQ(regions->size(), 3u);
  auto target = Target::open(program.pid());
  ASSERT_TRUE(target) << describe(target.error());
  auto maps = target->maps();
  ASSERT_TRUE(maps);
  for (const RemoteMemory& region : *regions) {
    const bool code = region.spec.kind == RegionSpec::Kind::kCode;
    auto map = std::find_if(maps->begin(), maps->end(),
                            [&](auto& m) { return m.contains(region.spec.address); });
    ASSERT_NE(map, maps->end());
    EXPECT_EQ(map->exec, code);
    EXPECT_EQ(map->write, !code);
    EXPECT_EQ(map->shared, region.spec.kind != RegionSpec::Kind::kPrivate);
    if (!region.local) continue;
    std::memcpy(region.local.data() + 100, "hello", 5);
    uint8_t seen[5];
    ASSERT_TRUE(target->memory().read(region.spec.address + 100, seen));
    EXPECT_EQ(std::memcmp(seen, "hello", 5), 0);
  }
  EXPECT_EQ(text_unchanged(program.pid()), "text-unchanged");
  auto wiped = unmap_everything(program.pid());
  ASSERT_TRUE(wiped) << describe(wiped.error());
  EXPECT_EQ(*wiped, 0u);
  EXPECT_TRUE(our_mappings(*target->maps()).empty());
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(MapShared, WorksOnADynamicProgram) {
  attach_and_check({waiter(), "read"});
}
TEST(MapShared, WorksOnAProgramThatComputes) {
  attach_and_check({waiter(), "spin"});
}
TEST(MapShared, WorksOnAProgramInPoll) {
  attach_and_check({waiter(), "poll"});
}
TEST(MapShared, WorksOnAProgramInPpollWithAMask) {
  attach_and_check({waiter(), "ppoll"});
}
TEST(MapShared, WorksOnAProgramInEpollWait) {
  attach_and_check({waiter(), "epoll"});
}
TEST(MapShared, RaisesAFullDescriptorLimitForAMoment) {
  attach_and_check({waiter(), "full"});
}
TEST(MapShared, WorksOnAStaticProgram) {
  REQUIRE_PROGRAM(program, "waiter.c", "cc -O1 -static");
  attach_and_check({program, "read"});
}
TEST(MapShared, WorksOnAStaticPie) {
  REQUIRE_PROGRAM(program, "waiter.c", "cc -O1 -static-pie");
  attach_and_check({program, "poll"});
}
TEST(MapShared, WorksOnAProgramWithoutPie) {
  REQUIRE_PROGRAM(program, "waiter.c", "cc -O1 -no-pie");
  attach_and_check({program, "spin"});
}
TEST(MapShared, WorksOnMusl) {
  REQUIRE_PROGRAM(program, "waiter.c", "musl-gcc -O1");
  attach_and_check({program, "poll"});
}
TEST(MapShared, WorksOnStaticMusl) {
  REQUIRE_PROGRAM(program, "waiter.c", "musl-gcc -O1 -static");
  attach_and_check({program, "spin"});
}
TEST(MapShared, WorksOnGo) {
  REQUIRE_PROGRAM(program, "waiter.go", "go build");
  attach_and_check({program});
}
TEST(MapShared, WorksOnManySleepingThreads) {
  REQUIRE_PROGRAM(program, "sleepers.c", "cc -O1 -pthread");
  attach_and_check({program});
}

/// Runs `work` in a child process with the rights of an ordinary user; true when it reported
/// success.
bool as_nobody(const std::function<bool()>& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (::setgroups(0, nullptr) != 0 || ::setgid(kNobody) != 0 || ::setuid(kNobody) != 0)
      ::_exit(2);
    ::prctl(PR_SET_DUMPABLE, 1);
    ::_exit(work() ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return status == 0;
}

TEST(MapShared, WorksWithoutPrivilegeOnAProgramOfTheSameUser) {
  if (::geteuid() != 0) GTEST_SKIP() << "changing the user needs root";
  const std::string program = waiter();
  EXPECT_TRUE(as_nobody([&] {
    attach_and_check({program, "read"});
    return !testing::Test::HasFailure();
  }));
}

TEST(MapShared, WorksOnAJobStoppedProgramWhichStaysStopped) {
  Program program = Program::start({waiter(), "poll"});
  ASSERT_TRUE(program.ready());
  ::kill(program.pid(), SIGSTOP);
  while (program.state() != 'T') ::usleep(100);
  auto regions = attach(program.pid());
  ASSERT_TRUE(regions) << describe(regions.error());
  EXPECT_EQ(program.state_after_waiting_for('T'), 'T');
  ::kill(program.pid(), SIGCONT);
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(MapShared, MakesAnOpenRestartableSequenceAbort) {
  REQUIRE_PROGRAM(file, "sequence.c", "cc -O1");
  Program program = Program::start({file});
  if (!program.ready()) GTEST_SKIP() << "this libc registers no rseq";
  for (int i = 0; i < 20; ++i) {
    auto regions = attach(program.pid());
    ASSERT_TRUE(regions) << describe(regions.error());
    ASSERT_TRUE(unmap_everything(program.pid()));
  }
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(MapShared, SealsTheFiles) {
  if (::geteuid() != 0) GTEST_SKIP() << "/proc/PID/map_files needs root";
  Program program = Program::start({waiter(), "read"});
  ASSERT_TRUE(program.ready());
  auto regions = attach(program.pid());
  ASSERT_TRUE(regions) << describe(regions.error());
  const int base = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
  for (const RemoteMemory& region : *regions) {
    if (!region.local) continue;
    const uint64_t at = region.spec.address.value;
    auto fd = os::open_read_write(fmt::format("/proc/{}/map_files/{:x}-{:x}", program.pid(), at,
                                              at + region.spec.size_bytes));
    ASSERT_TRUE(fd) << describe(fd.error());
    const int seals = ::fcntl(fd->get(), F_GET_SEALS);
    EXPECT_EQ(seals & base, base);
    EXPECT_NE(::ftruncate(fd->get(), 0), 0);
    if (region.spec.kind != RegionSpec::Kind::kCode) continue;
    EXPECT_NE(seals & 0x10, 0) << "F_SEAL_FUTURE_WRITE";
    EXPECT_EQ(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd->get(), 0), MAP_FAILED);
  }
  EXPECT_EQ(program.finish(), "exit-success");
}

uint64_t allocated_bytes(const Fd& file) {
  struct stat st{};
  EXPECT_EQ(::fstat(file.get(), &st), 0);
  return static_cast<uint64_t>(st.st_blocks) * 512;
}

TEST(MapShared, AllocatesLargeRegionsWhileTheTargetRuns) {
  Program program = Program::start({waiter(), "spin"});
  ASSERT_TRUE(program.ready());
  auto regions = with_tracer_thread([&]() -> Result<std::vector<RemoteMemory>> {
    SPILE_TRY(const Target target, Target::open(program.pid()));
    SPILE_TRY(const auto maps, target.maps());
    SPILE_TRY(const TargetAddr at, find_gap(maps, {}, {}, 64 << 20));
    const RegionSpec specs[] = {
        {RegionSpec::Kind::kCode, "spile-code", at, 8 << 20, false, true},
        {RegionSpec::Kind::kData, "spile-data", at + (8 << 20), 24 << 20, false, true}};
    SPILE_TRY(StoppedProcess process, StoppedProcess::stop(target));
    return map_shared(process, specs);
  });
  ASSERT_TRUE(regions) << describe(regions.error());
  for (RemoteMemory& region : *regions) {
    EXPECT_LT(allocated_bytes(region.file), region.spec.size_bytes / 8) << "in the stop";
    ASSERT_TRUE(allocate_pages(region));
    std::memset(region.local.data(), 0x5a, region.local.size());
    auto byte = os::ProcessMemory::open(program.pid())
                    ->read_value<uint8_t>(region.spec.address + region.spec.size_bytes - 1);
    ASSERT_TRUE(byte);
    EXPECT_EQ(*byte, 0x5a);
  }
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(MapShared, RefusesAnAddressThatIsTakenAndLeavesNothing) {
  Program program = Program::start({waiter(), "read"});
  ASSERT_TRUE(program.ready());
  auto done = with_tracer_thread([&]() -> Result<std::vector<RemoteMemory>> {
    SPILE_TRY(const Target target, Target::open(program.pid()));
    SPILE_TRY(auto specs, plan_regions(target));
    SPILE_TRY(const auto maps, target.maps());
    specs[2].address = maps.front().start;
    SPILE_TRY(StoppedProcess process, StoppedProcess::stop(target));
    return map_shared(process, specs);
  });
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, ErrorCode::kBusy) << done.error().message;
  EXPECT_TRUE(our_mappings(*os::read_maps(program.pid())).empty());
  EXPECT_EQ(text_unchanged(program.pid()), "text-unchanged");
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(MapShared, RestoresTheDescriptorLimit) {
  Program program = Program::start({waiter(), "full"});
  ASSERT_TRUE(program.ready());
  ASSERT_TRUE(attach(program.pid()));
  auto limit = os::get_limit(program.pid(), RLIMIT_NOFILE);
  ASSERT_TRUE(limit);
  EXPECT_EQ(limit->soft, 3u);
  EXPECT_EQ(limit->hard, 64u);
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(MapShared, PrivateMemoryIsEmptyInForkedChildren) {
  Program program = Program::start({waiter(), "read"});
  ASSERT_TRUE(program.ready());
  auto regions = attach(program.pid());
  ASSERT_TRUE(regions) << describe(regions.error());
  std::ifstream smaps(fmt::format("/proc/{}/smaps", program.pid()));
  const std::string begin = fmt::format("{:x}-", (*regions)[2].spec.address.value);
  std::string flags;
  bool is_there = false;
  for (std::string line; flags.empty() && std::getline(smaps, line);) {
    is_there = is_there || line.starts_with(begin);
    if (is_there && line.starts_with("VmFlags:")) flags = line + " ";
  }
  EXPECT_NE(flags.find(" wf "), std::string::npos) << flags;
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(Unmap, RefusesWhatAThreadExecutes) {
  Program program = Program::start({waiter(), "read"});
  ASSERT_TRUE(program.ready());
  auto regions = attach(program.pid());
  ASSERT_TRUE(regions) << describe(regions.error());
  const RegionSpec& code = regions->front().spec;
  const AddressRange range{code.address, code.address + code.size_bytes};
  auto done = while_busy([&] {
    return with_tracer_thread([&]() -> Result<void> {
      SPILE_TRY(const Target target, Target::open(program.pid()));
      SPILE_TRY(StoppedProcess process, StoppedProcess::stop(target));
      const os::Registers home = process.threads().front().registers;
      os::Registers inside = home;
      inside.rip = range.start.value + 8;
      inside.orig_rax = os::kNoSystemCall;
      SPILE_TRY_VOID(process.set_registers(0, inside));
      auto gone = unmap(process, {&range, 1});
      EXPECT_FALSE(gone);
      if (!gone) {
        EXPECT_EQ(gone.error().code, ErrorCode::kUnsafe) << describe(gone.error());
      }
      return process.set_registers(0, home);
    });
  });
  ASSERT_TRUE(done) << describe(done.error());
  EXPECT_EQ(our_mappings(*os::read_maps(program.pid())).size(), 2u);
  ASSERT_TRUE(unmap_everything(program.pid()));
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(StubPlaces, AreWhereNothingIs) {
  Program program = Program::start({waiter(), "read"});
  ASSERT_TRUE(program.ready());
  auto target = Target::open(program.pid());
  ASSERT_TRUE(target) << describe(target.error());
  const auto maps = *target->maps();
  const auto places = find_stub_places(maps, target->memory());
  ASSERT_FALSE(places.empty());
  for (const StubPlace& place : places) {
    std::vector<uint8_t> bytes(stub_layout().size);
    ASSERT_TRUE(target->memory().read(place.address, bytes));
    EXPECT_TRUE(std::ranges::all_of(bytes, [](uint8_t b) { return b == 0; }));
  }
  // One byte that is somebody's: the place is no longer one.
  const uint8_t used[] = {1};
  ASSERT_TRUE(target->memory().write(places.front().address + stub_layout().size - 1, used));
  for (const StubPlace& place : find_stub_places(maps, target->memory()))
    EXPECT_NE(place.address, places.front().address);
  EXPECT_EQ(program.finish(), "exit-success");
}

// ---- threads that are not borrowed
// -----------------------------------------------------------------------------------

/// Some byte of code that is an int3, or looks like one.
std::optional<TargetAddr> find_int3(const Target& target) {
  auto modules = target.modules();
  if (!modules) return std::nullopt;
  for (const Module& module : *modules) {
    for (const Segment& s : module.segments) {
      std::vector<uint8_t> code(s.exec ? static_cast<size_t>(s.end - s.start) : 0);
      code.resize(target.memory().read_some(s.start, code));
      const auto found = std::ranges::find(code, uint8_t{0xcc});
      if (found != code.end()) return s.start + static_cast<uint64_t>(found - code.begin());
    }
  }
  return std::nullopt;
}

/// Makes the only thread look as if it had just run the int3 at `at`: the signal is on its way.
void pretend_trap(StoppedProcess& process, TargetAddr at) {
  const StoppedThread& thread = process.threads().front();
  os::Registers registers = thread.registers;
  registers.rip = at.value + 1;
  registers.orig_rax = os::kNoSystemCall;
  ASSERT_TRUE(process.set_registers(0, registers));
  ASSERT_EQ(::tgkill(process.target().pid(), thread.tid, SIGTRAP), 0);
}

TEST(Borrowing, LeavesAThreadAloneThatIsAboutToGetTheSignalOfAnInt3) {
  Program program = Program::start({waiter(), "trap"});
  ASSERT_TRUE(program.ready());
  auto done = while_busy([&] {
    return with_tracer_thread([&]() -> Result<void> {
      SPILE_TRY(const Target target, Target::open(program.pid()));
      SPILE_TRY(const auto specs, plan_regions(target));
      SPILE_TRY(StoppedProcess process, StoppedProcess::stop(target));
      const os::Registers home = process.threads().front().registers;
      const auto at = find_int3(target);
      if (!at) return fail(ErrorCode::kNotFound, "no int3 in the program");
      pretend_trap(process, *at);
      auto mapped = map_shared(process, specs);
      EXPECT_FALSE(mapped) << "killed in this moment, the tracer would leave a signal that comes "
                              "from the stub";
      if (!mapped) {
        EXPECT_EQ(mapped.error().code, ErrorCode::kBusy) << describe(mapped.error());
      }
      return process.set_registers(0, home);
    });
  });
  ASSERT_TRUE(done) << describe(done.error());
  EXPECT_TRUE(our_mappings(*os::read_maps(program.pid())).empty());
  EXPECT_EQ(program.finish(), "exit-success");
}

TEST(Borrowing, LeavesAThreadAloneThatRedirectsItsSystemCalls) {
  REQUIRE_PROGRAM(file, "dispatch.c", "cc -O1");
  Program program = Program::start({file});
  if (!program.ready()) GTEST_SKIP() << "no C library to exempt";
  bool is_known = false;
  auto done = while_busy([&] {
    return with_tracer_thread([&]() -> Result<std::vector<RemoteMemory>> {
      SPILE_TRY(const Target target, Target::open(program.pid()));
      SPILE_TRY(const auto specs, plan_regions(target));
      SPILE_TRY(StoppedProcess process, StoppedProcess::stop(target));
      is_known = os::ptrace_user_dispatch(program.pid());
      return is_known ? map_shared(process, specs) : std::vector<RemoteMemory>();
    });
  });
  if (!is_known) GTEST_SKIP() << "this kernel does not tell (before 6.4), or has no such calls";
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, ErrorCode::kUnsupported) << describe(done.error());
  EXPECT_EQ(program.finish(), "exit-success");
}

// ---- the tracer dies
// -------------------------------------------------------------------------------------------------

/// How many steps a whole attach takes in this process.
uint64_t count_steps(const std::vector<std::string>& command) {
  Program program = Program::start(command);
  EXPECT_TRUE(program.ready());
  os::kill_at_step(0);
  auto regions = attach(program.pid());
  EXPECT_TRUE(regions) << describe(regions.error());
  const uint64_t steps = os::steps_taken();
  EXPECT_EQ(program.finish(), "exit-success");
  return steps;
}

/// Attaches from a process that kills itself before step `number`; false when it lived to the end.
bool attach_and_die(pid_t pid, uint64_t number) {
  const pid_t tracer = ::fork();
  if (tracer == 0) {
    os::kill_at_step(number);
    (void)attach(pid);
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(tracer, &status, 0);
  return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

/// A thread may still be on its way home through the stub: then its bytes stay until it is out.
Result<size_t> clean_up(pid_t pid) {
  size_t wiped_in_all = 0;
  for (int i = 0;; ++i) {
    SPILE_TRY(const size_t wiped, unmap_everything(pid));
    wiped_in_all += wiped;
    if (i == 200 || text_unchanged(pid) == "text-unchanged") return wiped_in_all;
    ::usleep(2000);
  }
}

void survive_every_step(const std::vector<std::string>& command,
                        uint64_t stride = 1,
                        uint64_t first = 1) {
  const uint64_t steps = count_steps(command);
  ASSERT_GT(steps, 20u);
  size_t wiped_in_all = 0;
  for (uint64_t number = first; number <= steps; number += stride) {
    SCOPED_TRACE(fmt::format("killed before step {} of {}", number, steps));
    Program program = Program::start(command);
    ASSERT_TRUE(program.ready());
    attach_and_die(program.pid(), number);
    ::usleep(500);
    auto wiped = clean_up(program.pid());
    ASSERT_TRUE(wiped) << describe(wiped.error());
    wiped_in_all += *wiped;
    EXPECT_EQ(text_unchanged(program.pid()), "text-unchanged");
    EXPECT_TRUE(our_mappings(*os::read_maps(program.pid())).empty());
    ASSERT_EQ(program.finish(), "exit-success");
  }
  EXPECT_GT(wiped_in_all, 0u) << "no death fell between the first and the last step of the stub";
}

TEST(TracerDies, AtAnyStepATargetInReadSurvives) {
  survive_every_step({waiter(), "read"});
}
TEST(TracerDies, AtAnyStepATargetInPollSurvives) {
  survive_every_step({waiter(), "poll"}, 2);
}
TEST(TracerDies, AtAnyStepATargetInPpollSurvives) {
  survive_every_step({waiter(), "ppoll"}, 2);
}
// Between INTERRUPT and the cured registers (steps 2 to 5) epoll_wait returns EINTR, as after any
// SIGSTOP and SIGCONT.
TEST(TracerDies, AfterTheCureATargetInEpollWaitSurvives) {
  survive_every_step({waiter(), "epoll"}, 2, 6);
}
TEST(TracerDies, AtAnyStepATargetThatComputesSurvives) {
  survive_every_step({waiter(), "spin"}, 3);
}
TEST(TracerDies, AtAnyStepAStaticMuslTargetSurvives) {
  REQUIRE_PROGRAM(program, "waiter.c", "musl-gcc -O1 -static");
  survive_every_step({program, "poll"}, 3);
}
TEST(TracerDies, AtAnyStepAGoTargetSurvives) {
  REQUIRE_PROGRAM(program, "waiter.go", "go build");
  survive_every_step({program}, 5);
}

TEST(TracerDies, WithoutPrivilegeTooTheTargetSurvives) {
  if (::geteuid() != 0) GTEST_SKIP() << "changing the user needs root";
  const std::string program = waiter();
  EXPECT_TRUE(as_nobody([&] {
    survive_every_step({program, "poll"}, 3);
    return !testing::Test::HasFailure();
  }));
}

TEST(TracerDies, WhileAJobStoppedTargetStaysStopped) {
  const uint64_t steps = count_steps({waiter(), "read"});
  for (uint64_t number = 1; number <= steps; number += 3) {
    SCOPED_TRACE(fmt::format("killed before step {} of {}", number, steps));
    Program program = Program::start({waiter(), "read"});
    ASSERT_TRUE(program.ready());
    ::kill(program.pid(), SIGSTOP);
    while (program.state() != 'T') ::usleep(100);
    attach_and_die(program.pid(), number);
    // A thread that was on its way home gets there when it has a processor.
    EXPECT_EQ(program.state_after_waiting_for('T'), 'T');
    ::kill(program.pid(), SIGCONT);
    ASSERT_EQ(program.finish(), "exit-success");
  }
}

// ---- the target dies
// -------------------------------------------------------------------------------------------------

pid_t g_victim;
uint64_t g_fatal_step;
void kill_the_target(uint64_t number, const char*) {
  if (number == g_fatal_step) ::kill(g_victim, SIGKILL);
}

TEST(TargetDies, AtAnyStepTheTracerReturnsAnError) {
  const uint64_t steps = count_steps({waiter(), "read"});
  for (uint64_t number = 1; number <= steps; ++number) {
    SCOPED_TRACE(fmt::format("killed before step {} of {}", number, steps));
    Program program = Program::start({waiter(), "read"});
    ASSERT_TRUE(program.ready());
    g_victim = program.pid();
    g_fatal_step = number;
    os::kill_at_step(0);
    os::set_step_hook(kill_the_target);
    auto regions = attach(program.pid());
    os::set_step_hook(nullptr);
    // Nobody has waited for a call of the dead until that was overdue.
    if (!regions) {
      EXPECT_EQ(regions.error().message.find("does not return"), std::string::npos)
          << regions.error().message;
    }
    if (number + 4 < steps) {
      EXPECT_FALSE(regions);
    }
  }
}

// ---- signals
// ---------------------------------------------------------------------------------------------------------

pid_t g_receiver;
int g_signal;
uint64_t g_signal_step;
void send_a_signal(uint64_t number, const char*) {
  if (number != g_signal_step) return;
  ::kill(g_receiver, g_signal);
  ::usleep(500);  // a thread that runs gets to its signal-delivery stop
}

/// Sends `signal` before each step in turn; `after` sees the program right after the detach.
void signal_at_every_step(const std::vector<std::string>& command,
                          int signal,
                          const std::function<void(Program&)>& after) {
  const uint64_t steps = count_steps({waiter(), "read"});
  for (uint64_t number = 1; number <= steps; ++number) {
    SCOPED_TRACE(fmt::format("signal before step {} of {}", number, steps));
    Program program = Program::start(command);
    ASSERT_TRUE(program.ready());
    g_receiver = program.pid();
    g_signal = signal;
    g_signal_step = number;
    os::kill_at_step(0);
    os::set_step_hook(send_a_signal);
    auto regions = attach(program.pid());
    os::set_step_hook(nullptr);
    // Before the target is held the signal may end it, as it should.
    ASSERT_TRUE(regions || number <= 2) << describe(regions.error());
    after(program);
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST(Signals, ThatArriveAtAnyStepAreDelivered) {
  // The only thing that ends this program's sigsuspend is SIGUSR2.
  signal_at_every_step({waiter(), "pause"}, SIGUSR2,
                       [](Program& program) { ASSERT_EQ(program.finish(), "exit-success"); });
}

TEST(Signals, ThatAProgramHandlesArriveExactlyOnce) {
  signal_at_every_step({waiter(), "count"}, SIGUSR1,
                       [](Program& program) { ASSERT_EQ(program.finish(), "exit-success"); });
}

TEST(Signals, SurviveATracerThatDiesRightAfterThem) {
  const uint64_t steps = count_steps({waiter(), "read"});
  for (uint64_t number = 2; number <= steps; ++number) {
    SCOPED_TRACE(fmt::format("killed before step {} of {}", number, steps));
    Program program = Program::start({waiter(), "count"});
    ASSERT_TRUE(program.ready());
    g_receiver = program.pid();
    g_signal = SIGUSR1;
    g_signal_step = number - 1;
    os::set_step_hook(send_a_signal);
    attach_and_die(program.pid(), number);
    os::set_step_hook(nullptr);
    ASSERT_EQ(program.finish(), "exit-success");
  }
}

TEST(Signals, StopAtAnyStepStopsTheTarget) {
  signal_at_every_step({waiter(), "read"}, SIGSTOP, [](Program& program) {
    EXPECT_EQ(program.state_after_waiting_for('T'), 'T');
    ::kill(program.pid(), SIGCONT);
    ASSERT_EQ(program.finish(), "exit-success");
  });
}

TEST(Seccomp, IsRefusedWithoutTheRightToSuspendIt) {
  if (::geteuid() != 0) GTEST_SKIP() << "changing the user needs root";
  REQUIRE_PROGRAM(program, "filtered.c", "cc -O1");
  EXPECT_TRUE(as_nobody([&] {
    Program target = Program::start({program});
    if (!target.ready()) return false;
    auto regions = attach(target.pid());
    if (regions || regions.error().code != ErrorCode::kDenied) return false;
    return target.finish() == "exit-success";
  }));
}

TEST(Seccomp, IsSuspendedByRoot) {
  if (::geteuid() != 0) GTEST_SKIP() << "PTRACE_O_SUSPEND_SECCOMP needs root";
  REQUIRE_PROGRAM(program, "filtered.c", "cc -O1");
  attach_and_check({program});
}

// ---- the stub
// ----------------------------------------------------------------------------------------------------------

TEST(WayHome, RestartsAnInterruptedCallAsTheKernelWould) {
  const std::array<uint8_t, 2> syscall_bytes{0x0f, 0x05}, int80{0xcd, 0x80};
  StoppedThread thread;
  thread.registers.rip = 0x1002;
  thread.registers.orig_rax = 7;
  thread.registers.rax = static_cast<uint64_t>(os::kErestartSys);
  EXPECT_EQ(way_home(thread, syscall_bytes).rip, 0x1000u);
  EXPECT_EQ(way_home(thread, syscall_bytes).rax, 7u);
  thread.registers.rax = static_cast<uint64_t>(os::kErestartRestartBlock);
  EXPECT_EQ(way_home(thread, syscall_bytes).rax, 219u);
  EXPECT_EQ(way_home(thread, int80).rax, 0u);
  thread.registers.orig_rax = os::kNoSystemCall;  // user code that happens to hold such a number
  EXPECT_EQ(way_home(thread, syscall_bytes).rip, 0x1002u);
}

}  // namespace
}  // namespace spile::target
