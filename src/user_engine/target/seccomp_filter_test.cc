#include "user_engine/target/seccomp_filter.h"

#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <random>

#include "user_engine/target/test_program.h"

namespace spile::target {
namespace {

using Filter = std::vector<sock_filter>;

sock_filter stmt(int code, uint32_t k) {
  return {static_cast<uint16_t>(code), 0, 0, k};
}
sock_filter jump(int code, uint32_t k, uint8_t yes, uint8_t no) {
  return {static_cast<uint16_t>(code), yes, no, k};
}
sock_filter load(uint32_t offset) {
  return stmt(BPF_LD | BPF_W | BPF_ABS, offset);
}
sock_filter ret(uint32_t action) {
  return stmt(BPF_RET | BPF_K, action);
}
constexpr uint32_t kNumber = offsetof(seccomp_data, nr), kArch = offsetof(seccomp_data, arch),
                   kArgument = offsetof(seccomp_data, args);
constexpr int kEqual = BPF_JMP | BPF_JEQ | BPF_K;

TEST(SeccompFilter, ListsOfForbiddenAndOfAllowedCallsAreRead) {
  const Filter forbids{load(kNumber), jump(kEqual, SYS_getpid, 0, 1), ret(SECCOMP_RET_ERRNO | 1),
                       ret(SECCOMP_RET_ALLOW)};
  EXPECT_FALSE(surely_allows(forbids, {SYS_getpid, {}}));
  EXPECT_TRUE(surely_allows(forbids, {SYS_gettid, {}}));
  const Filter allows{
      load(kArch),          jump(kEqual, AUDIT_ARCH_X86_64, 1, 0), ret(SECCOMP_RET_KILL),
      load(kNumber),        jump(kEqual, SYS_getpid, 0, 1),        ret(SECCOMP_RET_ALLOW),
      ret(SECCOMP_RET_TRAP)};
  EXPECT_TRUE(surely_allows(allows, {SYS_getpid, {}}));
  EXPECT_FALSE(surely_allows(allows, {SYS_gettid, {}}));
}

TEST(SeccompFilter, OnlyAllowIsAllow) {
  for (uint32_t action : {SECCOMP_RET_LOG, SECCOMP_RET_TRACE, SECCOMP_RET_USER_NOTIF,
                          SECCOMP_RET_TRAP, SECCOMP_RET_KILL_THREAD, SECCOMP_RET_ERRNO})
    EXPECT_FALSE(surely_allows(Filter{ret(action)}, {SYS_getpid, {}})) << action;
  EXPECT_TRUE(surely_allows(Filter{ret(SECCOMP_RET_ALLOW)}, {SYS_getpid, {}}));
  EXPECT_FALSE(surely_allows(Filter{}, {SYS_getpid, {}}));
}

TEST(SeccompFilter, AnArgumentThatDecidesIsFollowedBothWaysUnlessItIsKnown) {
  const Filter by_argument{load(kArgument), jump(kEqual, 16, 0, 1), ret(SECCOMP_RET_ALLOW),
                           ret(SECCOMP_RET_KILL)};
  EXPECT_FALSE(surely_allows(by_argument, {SYS_prctl, {}}));
  EXPECT_TRUE(surely_allows(by_argument, {SYS_prctl, 16}));
  EXPECT_FALSE(surely_allows(by_argument, {SYS_prctl, 15}));
  const Filter high_half{load(kArgument + 4), jump(kEqual, 0, 0, 1), ret(SECCOMP_RET_ALLOW),
                         ret(SECCOMP_RET_KILL)};
  EXPECT_TRUE(surely_allows(high_half, {SYS_prctl, 16}));
  EXPECT_FALSE(surely_allows(high_half, {SYS_prctl, 16ull << 32}));
}

TEST(SeccompFilter, PathsThatMeetKnowOnlyWhatBothKnow) {
  // A is the argument's doing: 0 or 1. What is returned is 0x7fff0000 only for 1.
  const Filter joined{load(kArgument),           jump(kEqual, 7, 0, 2),
                      stmt(BPF_LD | BPF_IMM, 1), stmt(BPF_JMP | BPF_JA, 1),
                      stmt(BPF_LD | BPF_IMM, 0), stmt(BPF_ALU | BPF_MUL | BPF_K, SECCOMP_RET_ALLOW),
                      stmt(BPF_RET | BPF_A, 0)};
  EXPECT_FALSE(surely_allows(joined, {SYS_read, {}}));
  EXPECT_TRUE(surely_allows(joined, {SYS_read, 7}));
  EXPECT_FALSE(surely_allows(joined, {SYS_read, 8}));
}

TEST(SeccompFilter, DamagedFiltersAllowNothing) {
  EXPECT_FALSE(surely_allows(Filter{load(kNumber)}, {SYS_read, {}})) << "runs off its end";
  EXPECT_FALSE(surely_allows(Filter{stmt(BPF_JMP | BPF_JA, 1000)}, {SYS_read, {}}));
  EXPECT_FALSE(surely_allows(Filter{stmt(BPF_ST, 16), ret(SECCOMP_RET_ALLOW)}, {SYS_read, {}}));
  EXPECT_FALSE(surely_allows(Filter{stmt(BPF_ALU | BPF_DIV | BPF_X, 0), ret(SECCOMP_RET_ALLOW)},
                             {SYS_read, {}}))
      << "a division by zero kills";
  std::mt19937 dice(7);
  for (int i = 0; i < 20'000; i++) {
    Filter filter(1 + dice() % 12);
    for (sock_filter& insn : filter)
      insn = {static_cast<uint16_t>(dice() & 0xff), static_cast<uint8_t>(dice() % 8),
              static_cast<uint8_t>(dice() % 8), static_cast<uint32_t>(dice() % 20)};
    (void)surely_allows(filter, {SYS_read, {}});
  }
}

TEST(SeccompFilter, TheFiltersOfAThreadAreReadAndAppliedToItsCalls) {
  const std::string program = build_program("filtered.c", "cc -O1");
  if (program.empty()) GTEST_SKIP() << "no compiler";
  Program target = Program::start({program});
  ASSERT_TRUE(target.ready());
  auto opened = Target::open(target.pid());
  ASSERT_TRUE(opened);
  const FilteredCall calls[] = {{SYS_getpid, {}}, {SYS_munmap, {}}, {SYS_memfd_create, {}}};
  auto allowed = with_tracer_thread([&]() -> Result<std::vector<bool>> {
    SPILE_TRY(auto process, StoppedProcess::stop(*opened));
    return allowed_calls(process, calls);
  });
  ASSERT_TRUE(allowed);
  EXPECT_EQ(*allowed, (std::vector<bool>{geteuid() == 0, false, false}));
  EXPECT_EQ(target.finish(), "exit-success");
}

}  // namespace
}  // namespace spile::target
