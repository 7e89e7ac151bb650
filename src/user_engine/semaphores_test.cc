#include "user_engine/semaphores.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

namespace spile::user_engine {
namespace {

using State = abi::SemaphoreState;

Semaphore semaphore(State state, uint16_t before = 0, uint16_t after = 0) {
  return {TargetAddr(0x1000), TargetAddr(0x2000), state, before, after};
}

TEST(LoweredValue, TakesOneAwayFromWhatWeRaised) {
  EXPECT_EQ(lowered_value(semaphore(State::kRaised, 0, 1), 1), 0);
  EXPECT_EQ(lowered_value(semaphore(State::kRaised, 0, 1), 3), 2);  // two others have come
}

TEST(LoweredValue, NeverGoesBelowZero) {
  EXPECT_EQ(lowered_value(semaphore(State::kRaised, 0, 1), 0), std::nullopt);
}

TEST(LoweredValue, LeavesWhatWasNotRaisedYet) {
  EXPECT_EQ(lowered_value(semaphore(State::kListed), 2), std::nullopt);
  EXPECT_EQ(lowered_value(semaphore(State::kRaising, 2, 3), 2), std::nullopt);
}

TEST(LoweredValue, FinishesWhatATracerDiedIn) {
  EXPECT_EQ(lowered_value(semaphore(State::kRaising, 2, 3), 3), 2);
  EXPECT_EQ(lowered_value(semaphore(State::kLowering, 3, 2), 3), 2);
}

TEST(LoweredValue, DoesNotLowerTwice) {
  EXPECT_EQ(lowered_value(semaphore(State::kLowering, 3, 2), 2), std::nullopt);
  EXPECT_EQ(lowered_value(semaphore(State::kLowered, 3, 2), 2), std::nullopt);
}

/// Our own process as the target: counters and a journal in our memory.
class OwnMemory : public ::testing::Test {
 protected:
  Semaphore of(volatile uint16_t& counter) {
    return {TargetAddr(reinterpret_cast<uint64_t>(&counter)), TargetAddr(0x2000)};
  }
  std::optional<TargetAddr> journal_address() {
    return TargetAddr(reinterpret_cast<uint64_t>(&journal_));
  }
  void raise(std::vector<Semaphore> semaphores) {
    list_semaphores(semaphores, journal_);
    auto raised = raise_semaphores(memory_, journal_);
    ASSERT_TRUE(raised) << raised.error().message;
  }
  Result<void> lower(bool is_patched = true) {
    return lower_semaphores(memory_, listed_semaphores(journal_), journal_address(),
                            [=](TargetAddr site) { return is_patched && site.value == 0x2000; });
  }

  os::ProcessMemory memory_ = *os::ProcessMemory::open(getpid());
  abi::Journal journal_{};
  volatile uint16_t one_ = 0, other_ = 4;
};

TEST_F(OwnMemory, IsRaisedAndAsBeforeAfterwards) {
  raise({of(one_), of(other_)});
  EXPECT_EQ(one_, 1);
  EXPECT_EQ(other_, 5);
  EXPECT_EQ(journal_.semaphores[1].state, State::kRaised);
  EXPECT_TRUE(lower());
  EXPECT_EQ(one_, 0);
  EXPECT_EQ(other_, 4);
  EXPECT_EQ(journal_.semaphores[0].state, State::kLowered);
  EXPECT_TRUE(lower());
  EXPECT_EQ(other_, 4);
}

TEST_F(OwnMemory, StaysWhereOurPatchIsGone) {
  raise({of(other_)});
  EXPECT_TRUE(lower(false));
  EXPECT_EQ(other_, 5);
}

TEST_F(OwnMemory, AtItsLimitIsRefused) {
  one_ = UINT16_MAX;
  list_semaphores(std::vector{of(one_)}, journal_);
  EXPECT_EQ(raise_semaphores(memory_, journal_).error().code, ErrorCode::kUnsupported);
  EXPECT_EQ(one_, UINT16_MAX);
}

TEST_F(OwnMemory, UnreadableIsAnErrorOfRaisingAndGoneWhenLowering) {
  Semaphore nowhere{TargetAddr(8), TargetAddr(0x2000)};
  list_semaphores(std::vector{nowhere}, journal_);
  EXPECT_FALSE(raise_semaphores(memory_, journal_));
  journal_.semaphores[0].state = State::kRaised;
  EXPECT_TRUE(lower());
}

/// Counters that can be read but not written: a mapping of a file that was opened for reading. What
/// a change's note says then is what it says to who comes after a tracer that died there.
class Unwritable : public OwnMemory {
 protected:
  void SetUp() override {
    const int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    ASSERT_GE(file, 0);
    page_ = mmap(nullptr, 4096, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    ASSERT_NE(page_, MAP_FAILED);
    list_semaphores(std::vector{of(*static_cast<uint16_t*>(page_))}, journal_);
  }
  void TearDown() override { munmap(page_, 4096); }
  const abi::SemaphoreEntry& entry() const { return journal_.semaphores[0]; }

  void* page_ = nullptr;
  static constexpr uint16_t kMagic = 0x457f;  ///< how an ELF file begins
};

TEST_F(Unwritable, ARiseIsNotedBeforeItIsMade) {
  ASSERT_FALSE(raise_semaphores(memory_, journal_));
  EXPECT_EQ(entry().state, State::kRaising);
  EXPECT_EQ(entry().before, kMagic);
  EXPECT_EQ(entry().after, kMagic + 1);
  EXPECT_EQ(lowered_value(listed_semaphores(journal_)[0], kMagic), std::nullopt);
}

TEST_F(Unwritable, AFallIsNotedBeforeItIsMade) {
  journal_.semaphores[0].state = State::kRaised;
  ASSERT_FALSE(lower());
  EXPECT_EQ(entry().state, State::kLowering);
  EXPECT_EQ(entry().before, kMagic);
  EXPECT_EQ(entry().after, kMagic - 1);
}

/// A forked copy of this process, for what reads a target.
class Child : public OwnMemory {
 protected:
  void SetUp() override {
    pid_ = fork();
    if (pid_ == 0) {
      while (true) pause();
    }
    auto target = target::Target::open(pid_);
    ASSERT_TRUE(target) << target.error().message;
    target_.emplace(std::move(*target));
  }
  void TearDown() override {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

  pid_t pid_ = 0;
  std::optional<target::Target> target_;
};

TEST_F(Child, MoreThanTheJournalHoldsAreRefused) {
  std::vector<Semaphore> many(abi::kMaxSemaphores + 1, of(one_));
  EXPECT_EQ(check_semaphores(many, *target_).error().code, ErrorCode::kUnsupported);
  many.pop_back();
  EXPECT_TRUE(check_semaphores(many, *target_));
}

TEST_F(Child, ACounterThatIsNotThereIsRefused) {
  Semaphore nowhere{TargetAddr(8), TargetAddr(0x2000)};
  EXPECT_EQ(check_semaphores(std::vector{nowhere}, *target_).error().code, ErrorCode::kCorrupt);
}

TEST_F(Child, AJournalIsBelievedOnlyWhereAFileNamesTheCounter) {
  raise({of(other_)});
  auto believed = believed_semaphores(*target_, journal_);
  ASSERT_EQ(believed.size(), 1u);
  EXPECT_EQ(believed[0].state, State::kLowered);  // no note of this test program names it
}

}  // namespace
}  // namespace spile::user_engine
