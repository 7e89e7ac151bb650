#include "user_engine/target/process.h"

#include <grp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <functional>

#include "user_engine/target/test_program.h"

namespace spile::target {
namespace {

std::string odd() {
  return build_program("odd.c", "cc -O1 -pthread");
}

os::MapEntry map(uint64_t start, uint64_t end, std::string path = "/x") {
  os::MapEntry entry;
  entry.start = TargetAddr(start);
  entry.end = TargetAddr(end);
  entry.path = std::move(path);
  return entry;
}

constexpr uint64_t kGuard = 64 << 10;

TEST(FindGap, PrefersThePlaceRightBelow) {
  const std::vector maps{map(0x5555'0000'0000, 0x5555'0010'0000)};
  const AddressRange near{maps[0].start, maps[0].end};
  auto at = find_gap(maps, {}, {&near, 1}, 0x20000);
  ASSERT_TRUE(at);
  EXPECT_EQ(at->value, 0x5555'0000'0000 - kGuard - 0x20000);
}

TEST(FindGap, KeepsOutOfTheGigabyteAboveTheBreak) {
  // Nothing fits below a program at 4 MiB; above it come the break and the room it needs.
  const std::vector maps{map(0x40'0000, 0x50'0000), map(0x51'0000, 0x53'0000, "[heap]")};
  const AddressRange near{maps[0].start, maps[0].end};
  auto at = find_gap(maps, {0x51'0000}, {&near, 1}, 0x80'0000);
  ASSERT_TRUE(at);
  EXPECT_GE(at->value, 0x51'0000 + (1ull << 30));
  EXPECT_LT(at->value + 0x80'0000 - 0x40'0000, 1ull << 31);
  // The same for a break that has not been used yet.
  auto unused = find_gap({maps[0]}, {0x51'0000}, {&near, 1}, 0x80'0000);
  ASSERT_TRUE(unused);
  EXPECT_GE(unused->value, 0x51'0000 + (1ull << 30));
}

TEST(FindGap, KeepsAwayFromTheStack) {
  const std::vector maps{map(0x7fff'0000'0000, 0x7fff'0002'1000, "[stack]"),
                         map(0x7fff'0100'0000, 0x7fff'0110'0000)};
  const AddressRange near{maps[1].start, maps[1].end};
  GapRules rules;
  rules.stack_limit_bytes = 64 << 20;
  for (uint64_t size = 0x1000; size < (1 << 26); size *= 4) {
    auto at = find_gap(maps, rules, {&near, 1}, size);
    ASSERT_TRUE(at);
    const bool in_stack =
        at->value + size > 0x7fff'0002'1000 - (64 << 20) && at->value < 0x7fff'0002'1000 + kGuard;
    EXPECT_FALSE(in_stack) << fmt::format("{}", *at);
  }
}

TEST(FindGap, ReachesEveryByteOfEveryRange) {
  const std::vector maps{map(0x7000'0000'0000, 0x7000'1000'0000),
                         map(0x7000'6000'0000, 0x7000'7000'0000)};
  const AddressRange near[] = {{maps[0].start, maps[0].end}, {maps[1].start, maps[1].end}};
  auto at = find_gap(maps, {}, near, 0x1000'0000);
  ASSERT_TRUE(at);
  EXPECT_LT(0x7000'7000'0000 - at->value, 1ull << 31);
  EXPECT_LT(at->value + 0x1000'0000 - 0x7000'0000'0000, 1ull << 31);
}

TEST(FindGap, RefusesRangesFurtherApartThanAJump) {
  const AddressRange near[] = {{TargetAddr(0x1000'0000), TargetAddr(0x1001'0000)},
                               {TargetAddr(0x2'0000'0000), TargetAddr(0x2'0001'0000)}};
  auto at = find_gap({}, {}, near, 0x1000);
  ASSERT_FALSE(at);
  EXPECT_EQ(at.error().code, ErrorCode::kUnsupported);
}

TEST(FindGap, RefusesAFullNeighbourhood) {
  const std::vector maps{map(0x10000, 0x2'0000'0000)};
  const AddressRange near{TargetAddr(0x4000'0000), TargetAddr(0x4100'0000)};
  EXPECT_FALSE(find_gap(maps, {}, {&near, 1}, 0x1000));
}

TEST(Open, RefusesWhatIsNoProcess) {
  EXPECT_EQ(Target::open(0).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(Target::open(0x3ffffff).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(Target::open(::getpid()).error().code, ErrorCode::kUnsupported);
}

TEST(Open, RefusesAKernelThread) {
  auto status = os::read_status(2);
  if (!status || status->has_memory) GTEST_SKIP() << "no kernel threads in this pid namespace";
  EXPECT_EQ(Target::open(2).error().code, ErrorCode::kUnsupported);
}

TEST(Open, NamesTheProcessOfAThread) {
  Program program = Program::start({build_program("sleepers.c", "cc -O1 -pthread")});
  ASSERT_TRUE(program.ready());
  auto tids = os::list_threads(program.pid());
  ASSERT_TRUE(tids);
  auto target = Target::open(tids->back());
  ASSERT_FALSE(target);
  EXPECT_NE(target.error().message.find(std::to_string(program.pid())), std::string::npos)
      << target.error().message;
}

TEST(Open, RefusesAZombie) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  while (os::read_status(child)->state != 'Z') ::usleep(100);
  EXPECT_EQ(Target::open(child).error().code, ErrorCode::kTargetGone);
  ::waitpid(child, nullptr, 0);
}

TEST(Open, RefusesA32BitProgram) {
  const std::string program = build_program("tiny32.S", "cc -m32 -nostdlib -static");
  if (program.empty()) GTEST_SKIP() << "cannot build 32-bit programs";
  Program target = Program::start({program});
  for (int i = 0; i < 50'000; ++i) {  // until it is that program, or has ended for it could not be
    auto exe = os::read_link(fmt::format("/proc/{}/exe", target.pid()));
    if (!exe || *exe == program || target.state() == 'Z') break;
    ::usleep(200);
  }
  auto opened = Target::open(target.pid());
  ASSERT_FALSE(opened);
  if (opened.error().code == ErrorCode::kTargetGone)
    GTEST_SKIP() << "this kernel runs no 32-bit programs";
  EXPECT_NE(opened.error().message.find("32-bit"), std::string::npos) << opened.error().message;
}

/// What an ordinary user is told about `pid`.
std::string told_to_nobody(pid_t pid) {
  int ends[2];
  EXPECT_EQ(::pipe(ends), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    if (::setgroups(0, nullptr) != 0 || ::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(2);
    auto target = Target::open(pid);
    const std::string text = target ? "opened" : target.error().message;
    [[maybe_unused]] ssize_t n = ::write(ends[1], text.data(), text.size());
    ::_exit(0);
  }
  ::close(ends[1]);
  char buffer[512];
  const ssize_t n = ::read(ends[0], buffer, sizeof buffer);
  ::close(ends[0]);
  ::waitpid(child, nullptr, 0);
  return std::string(buffer, n > 0 ? static_cast<size_t>(n) : 0);
}

TEST(Open, SaysWhyAnotherUsersProcessIsDenied) {
  if (::geteuid() != 0) GTEST_SKIP() << "changing the user needs root";
  Program program = Program::start({odd()});
  ASSERT_TRUE(program.ready());
  const std::string told = told_to_nobody(program.pid());
  EXPECT_NE(told.find("belongs to user 0"), std::string::npos) << told;
}

TEST(Open, SaysWhyAnUndumpableProcessIsDenied) {
  if (::geteuid() != 0) GTEST_SKIP() << "changing the user needs root";
  Program program = Program::start({odd(), "undumpable"}, 65534);
  ASSERT_TRUE(program.ready());
  const std::string told = told_to_nobody(program.pid());
  EXPECT_NE(told.find("not dumpable"), std::string::npos) << told;
}

TEST(Modules, AreFoundWithTheirFiles) {
  Program program = Program::start({odd()});
  ASSERT_TRUE(program.ready());
  auto target = Target::open(program.pid());
  ASSERT_TRUE(target) << target.error().message;
  auto modules = target->modules();
  ASSERT_TRUE(modules);
  int main_programs = 0, vdsos = 0;
  for (const Module& m : *modules) {
    main_programs += m.main_program ? 1 : 0;
    vdsos += m.vdso ? 1 : 0;
    EXPECT_FALSE(m.build_id.empty()) << m.path;
    if (m.vdso) continue;
    EXPECT_FALSE(m.host_path.empty()) << m.path;
    EXPECT_TRUE(target->compare_text(m)->empty()) << m.path;
  }
  EXPECT_EQ(main_programs, 1);
  EXPECT_EQ(vdsos, 1);
  EXPECT_GE(modules->size(), 4u);  // program, libc, loader, vdso
}

TEST(Modules, OfARemovedProgramAreStillReadable) {
  const std::string copy = odd() + "-removed";
  std::filesystem::copy_file(odd(), copy);
  Program program = Program::start({copy});
  ASSERT_TRUE(program.ready());
  std::filesystem::remove(copy);
  auto target = Target::open(program.pid());
  ASSERT_TRUE(target) << target.error().message;
  auto modules = target->modules();
  ASSERT_TRUE(modules);
  for (const Module& m : *modules) {
    if (!m.main_program) continue;
    EXPECT_TRUE(m.deleted);
    EXPECT_FALSE(m.host_path.empty());
    EXPECT_TRUE(target->compare_text(m)->empty());
  }
}

TEST(Modules, ShowWhereTextWasPatched) {
  Program program = Program::start({odd()});
  ASSERT_TRUE(program.ready());
  auto target = Target::open(program.pid());
  ASSERT_TRUE(target) << target.error().message;
  auto modules = target->modules();
  ASSERT_TRUE(modules);
  const Module& m =
      *std::find_if(modules->begin(), modules->end(), [](auto& x) { return x.main_program; });
  const Segment& text =
      *std::find_if(m.segments.begin(), m.segments.end(), [](auto& s) { return s.exec; });
  const uint8_t patch[] = {0xcc, 0xcc, 0xcc};
  std::vector<uint8_t> before(3);
  ASSERT_TRUE(target->memory().read(text.start + 4, before));
  ASSERT_TRUE(target->memory().write(text.start + 4, patch));
  auto differences = target->compare_text(m);
  ASSERT_TRUE(differences);
  ASSERT_EQ(differences->size(), 1u);
  EXPECT_GE(differences->front().start, text.start + 4);
  EXPECT_LE(differences->front().memory.size(), 3u);
}

TEST(Alive, EndsWithAnExec) {
  Program program = Program::start({odd(), "exec", "1"});  // one exec, then it waits
  auto target = Target::open(program.pid());
  if (!target) GTEST_SKIP() << target.error().message;
  for (int i = 0; i < 200 && target->alive(); ++i) ::usleep(500);
  // Opened before or after the exec: only the former dies; both must answer.
  if (!target->alive()) {
    uint8_t byte;
    auto read = target->memory().read(TargetAddr(0x400000), {&byte, 1});
    ASSERT_FALSE(read);
    EXPECT_EQ(read.error().code, ErrorCode::kTargetGone);
  }
}

}  // namespace
}  // namespace spile::target
