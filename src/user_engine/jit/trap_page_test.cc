// The trap page as the kernel uses it: installed in this process, or in a child that it ends.
#include "user_engine/jit/trap_page.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <vector>

#include "abi/trap.h"
#include "user_engine/jit/test_machine.h"

namespace spile::jit {
namespace {

using namespace testing;

constexpr uint8_t kInt3 = 0xcc, kRet = 0xc3;

/// A trap page of this process, and the action it took SIGTRAP from.
class Installed {
 public:
  explicit Installed(std::span<const TrapSite> sites) {
    size_ = trap_page_bytes(sites.size());
    memory_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    base_ = TargetAddr(reinterpret_cast<uint64_t>(memory_));
    auto bytes = make_trap_page(base_, sites);
    EXPECT_TRUE(bytes.has_value()) << bytes.error().message;
    std::memcpy(memory_, bytes->data(), bytes->size());
    mprotect(memory_, size_, PROT_READ | PROT_EXEC);
    action((base_ + abi::kTrapActionOffset).value, &before_);
  }
  ~Installed() {
    action(reinterpret_cast<uint64_t>(&before_), nullptr);
    munmap(memory_, size_);
  }
  TargetAddr base() const { return base_; }

 private:
  static void action(uint64_t to, abi::KernelSigaction* former) {
    EXPECT_EQ(syscall(SYS_rt_sigaction, SIGTRAP, to, former, 8), 0);
  }
  void* memory_;
  size_t size_;
  TargetAddr base_;
  abi::KernelSigaction before_{};
};

TEST(TrapPage, EntersTheDetourWithTheStateOfTheTrap) {
  CodePage code;
  // not %r11; ret: what a probed instruction and its detour would do.
  const uint8_t moved[] = {0x49, 0xf7, 0xd3, kRet};
  const uint8_t trap[] = {kInt3, kRet};
  const TargetAddr detour = code.put(moved), site = code.put(trap);
  const TrapSite sites[] = {{site, detour, kRet}};
  Installed page(sites);
  for (uint64_t seed = 1; seed < 200; seed++) {
    for (uint64_t flags : {kArithmeticFlags, kDirectionFlag, kAlignmentFlag | 1, uint64_t{0}}) {
      const CpuState state = distinct_state(seed, flags);
      EXPECT_EQ(run_with_state(site.value, state), run_with_state(detour.value, state));
    }
  }
}

TEST(TrapPage, FindsEverySiteOfMany) {
  CodePage code;
  std::vector<TrapSite> sites;
  // Neighbours, and addresses whose low halves are alike: these meet in the table.
  std::vector<uint8_t> row(600, kInt3);
  const TargetAddr first = code.put(row);
  for (size_t i = 0; i < row.size(); i++) {
    // mov $i, %eax; ret
    const uint8_t detour[] = {0xb8, static_cast<uint8_t>(i), static_cast<uint8_t>(i >> 8), 0, 0,
                              kRet};
    sites.push_back({first + i, code.put(detour), 0});
  }
  for (uint64_t i = 1; i < 600; i++)
    sites.push_back({TargetAddr(first.value + (i << 32)), first, 0});
  Installed page(sites);
  for (size_t i = 0; i < row.size(); i++) {
    const auto after = run_with_state((first + i).value, distinct_state(i, 0));
    EXPECT_EQ(after.gpr[kRax], i);
  }
}

void die_by(void (*act)()) {
  CodePage code;
  const uint8_t ret[] = {kRet};
  const TargetAddr site = code.put(ret);
  const TrapSite sites[] = {{site, site, 0}};
  Installed page(sites);
  act();
}

TEST(TrapPageDeath, ATrapThatIsNotOursEndsTheProcess) {
  EXPECT_EXIT(die_by([] { asm volatile("int3"); }), ::testing::KilledBySignal(SIGTRAP), "");
  EXPECT_EXIT(die_by([] { raise(SIGTRAP); }), ::testing::KilledBySignal(SIGTRAP), "");
  EXPECT_EXIT(die_by([] { kill(getpid(), SIGTRAP), pause(); }), ::testing::KilledBySignal(SIGTRAP),
              "");
}

TEST(TrapPage, NothingInterruptsTheHandler) {
  CodePage code;
  const uint8_t ret[] = {kRet};
  const TargetAddr site = code.put(ret);
  const TrapSite sites[] = {{site, site, 0}};
  auto page = make_trap_page(site, sites);
  ASSERT_TRUE(page.has_value());
  abi::KernelSigaction action;
  std::memcpy(&action, &(*page)[abi::kTrapActionOffset], sizeof action);
  EXPECT_EQ(action.mask, ~uint64_t{0});
  EXPECT_EQ(action.flags & uint64_t{SA_ONSTACK}, uint64_t{SA_ONSTACK});
}

TEST(TrapPage, RefusesMoreSitesThanTheTableHolds) {
  std::vector<TrapSite> sites(abi::kMaxTrapSlots / 2 + 1);
  for (size_t i = 0; i < sites.size(); i++) sites[i].site = TargetAddr(i + 1);
  auto page = make_trap_page(TargetAddr(4096), sites);
  ASSERT_FALSE(page.has_value());
  EXPECT_EQ(page.error().code, ErrorCode::kUnsupported);
}

}  // namespace
}  // namespace spile::jit
