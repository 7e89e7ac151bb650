// get_stackid as the blob runs it, on stacks made by hand and on real ones.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "abi/hit_frame.h"
#include "user_engine/rt/stack_ops.h"
#include "user_engine/shm/code_for_test.h"
#include "user_engine/shm/maps.h"

namespace spile::shm {
namespace {

using bpf::Helper;
using bundle::MapKind;

constexpr uint64_t kCode = 0x400000;  ///< looks like an address of code

/// Memory that is no stack of ours: read by the kernel's copy. A page that cannot be read follows.
class FakeStack {
 public:
  static constexpr size_t kBytes = 1 << 16;
  FakeStack() {
    void* at =
        mmap(nullptr, kBytes + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memory_ = Mapping(at, kBytes + 4096);
    mprotect(memory_.data() + kBytes, 4096, PROT_NONE);
  }
  uint64_t at(uint64_t offset) const { return reinterpret_cast<uint64_t>(memory_.data()) + offset; }
  void set(uint64_t offset, uint64_t word) { memcpy(memory_.data() + offset, &word, 8); }
  /// A frame at `offset` whose caller's is at `next` (an address).
  void frame(uint64_t offset, uint64_t next, uint64_t return_address) {
    set(offset, next);
    set(offset + 8, return_address);
  }
  /// `count` frames of `size` bytes each, the last of which ends the chain.
  void chain(int count, uint64_t size) {
    for (int i = 0; i < count; ++i) {
      uint64_t offset = static_cast<uint64_t>(i) * size;
      frame(offset, i + 1 < count ? at(offset + size) : 0, kCode + static_cast<uint64_t>(i) + 1);
    }
  }

 private:
  Mapping memory_;
};

class Stacks : public testing::Test {
 protected:
  static bundle::MapSpec stacks_spec(uint32_t frames, uint32_t slots) {
    return map_spec(MapKind::kStacks, 4, frames * 8, slots);
  }

  abi::HitFrame hit(uint64_t bp, uint64_t sp = 0) const {
    abi::HitFrame frame = {};
    frame.ip = kCode;
    frame.bp = bp;
    frame.sp = sp;
    frame.at_entry = sp != 0;
    return frame;
  }
  int64_t id_of(const abi::HitFrame& frame, uint64_t map = 0, uint64_t flags = bpf::kUserStack) {
    return static_cast<int64_t>(code_.call(Helper::kGetStackid, &frame, code_.map(map), flags));
  }
  std::vector<uint64_t> frames_of(int64_t id, size_t map = 0) {
    auto frames = read_stack(r_.region(), map, static_cast<uint64_t>(id));
    EXPECT_TRUE(frames) << frames.error().message;
    return frames.value_or(std::vector<uint64_t>());
  }
  std::vector<uint64_t> walk(const abi::HitFrame& frame, uint64_t map = 0) {
    int64_t id = id_of(frame, map);
    EXPECT_GT(id, 0);
    return frames_of(id, map);
  }

  TestRegion r_{{stacks_spec(127, 1024), stacks_spec(3, 1024), stacks_spec(127, 1),
                 map_spec(MapKind::kHash, 8, 8, 4)}};
  TestCode code_{r_};
  FakeStack stack_;
};

TEST_F(Stacks, FollowTheChainOfFramePointers) {
  stack_.chain(4, 48);
  EXPECT_EQ(walk(hit(stack_.at(0))),
            (std::vector<uint64_t>{kCode, kCode + 1, kCode + 2, kCode + 3, kCode + 4}));
}

TEST_F(Stacks, AtAnEntryBeginWithTheReturnAddressAtTheStackPointer) {
  stack_.chain(2, 48);
  stack_.set(4096, kCode + 77);
  EXPECT_EQ(walk(hit(stack_.at(0), stack_.at(4096))),
            (std::vector<uint64_t>{kCode, kCode + 77, kCode + 1, kCode + 2}));
}

TEST_F(Stacks, OfFramesLargerAndSmallerThanWhatIsReadAtOnceAreTheSame) {
  for (uint64_t size : {16, 24, 104, 112, 120, 128, 136, 264, 4080}) {
    stack_.chain(12, size);
    auto frames = walk(hit(stack_.at(0)));
    ASSERT_EQ(frames.size(), 13u) << size;
    for (uint64_t i = 0; i < frames.size(); ++i) EXPECT_EQ(frames[i], kCode + i) << size;
  }
}

TEST_F(Stacks, OfAFrameOnTwoPagesAreRead) {
  stack_.frame(4088, stack_.at(8000), kCode + 1);
  stack_.frame(8000, 0, kCode + 2);
  EXPECT_EQ(walk(hit(stack_.at(4088))), (std::vector<uint64_t>{kCode, kCode + 1, kCode + 2}));
}

TEST_F(Stacks, EndAtWhatIsNoFrame) {
  const uint64_t last = FakeStack::kBytes - 8;
  const std::vector<uint64_t> nothing = {kCode};
  stack_.frame(1003, stack_.at(2000), kCode + 1);  // a frame pointer that is none: not aligned
  stack_.frame(2000, 0, kCode + 2);
  for (uint64_t bp :
       {uint64_t{0}, uint64_t{1}, uint64_t{8}, stack_.at(1003), uint64_t{0xdeadbeef000},
        stack_.at(FakeStack::kBytes), stack_.at(last), ~uint64_t{7}, ~uint64_t{15},
        uint64_t{1} << 63, (uint64_t{1} << 56) - 8, (uint64_t{1} << 56) - 16}) {
    EXPECT_EQ(walk(hit(bp)), nothing) << std::hex << bp;
  }
  stack_.frame(0, stack_.at(64), 0);  // a return address that cannot be one
  EXPECT_EQ(walk(hit(stack_.at(0))), nothing);
}

TEST_F(Stacks, WhoseStackPointerCannotBeReadHaveTheirAddressAlone) {
  stack_.chain(2, 48);
  EXPECT_EQ(walk(hit(stack_.at(0), stack_.at(FakeStack::kBytes))), std::vector<uint64_t>{kCode});
}

TEST_F(Stacks, EndInALoop) {
  stack_.frame(0, stack_.at(0), kCode + 1);  // its own caller
  EXPECT_EQ(walk(hit(stack_.at(0))).size(), 2u);
  stack_.frame(64, stack_.at(128), kCode + 2);
  stack_.frame(128, stack_.at(64), kCode + 3);
  EXPECT_LE(walk(hit(stack_.at(64))).size(), 2u + 2 * (rt::kMaxStackSwitches + 1));
}

TEST_F(Stacks, LeadFromOneStackToAnotherThatLiesLower) {
  stack_.frame(32768, stack_.at(32832), kCode + 1);  // a handler's stack
  stack_.frame(32832, stack_.at(64), kCode + 2);
  stack_.frame(64, stack_.at(128), kCode + 3);  // the stack that it interrupted
  stack_.frame(128, 0, kCode + 4);
  EXPECT_EQ(walk(hit(stack_.at(32768))).size(), 5u);
}

TEST_F(Stacks, HaveAtMostAsManyFramesAsAreKept) {
  stack_.chain(300, 32);
  EXPECT_EQ(walk(hit(stack_.at(0))).size(), 127u);
  EXPECT_EQ(walk(hit(stack_.at(0)), 1), (std::vector<uint64_t>{kCode, kCode + 1, kCode + 2}));
}

TEST_F(Stacks, ThatAreEqualHaveOneIdAndOthersHaveOthers) {
  stack_.chain(5, 48);
  int64_t five = id_of(hit(stack_.at(0)));
  EXPECT_EQ(id_of(hit(stack_.at(0))), five);
  stack_.chain(4, 48);
  EXPECT_NE(id_of(hit(stack_.at(0))), five);
}

TEST_F(Stacks, BeyondTheRoomAreRefused) {
  stack_.chain(5, 48);
  int64_t first = id_of(hit(stack_.at(0)), 2);
  EXPECT_GT(first, 0);
  stack_.chain(4, 48);
  EXPECT_EQ(id_of(hit(stack_.at(0)), 2), rt::kErrTooBig);
  stack_.chain(5, 48);
  EXPECT_EQ(id_of(hit(stack_.at(0)), 2), first) << "what is kept stays";
}

TEST_F(Stacks, OfTheKernelOrInAnotherSortOfMapAreRefused) {
  EXPECT_EQ(id_of(hit(0), 0, 0), rt::kErrInvalid);
  EXPECT_EQ(id_of(hit(0), 0, bpf::kUserStack | 3), rt::kErrInvalid);
  EXPECT_EQ(id_of(hit(0), 3), rt::kErrInvalid);
}

/// A thread that was killed between claiming a slot and filling it.
TEST_F(Stacks, ThatWereClaimedButNotFilledAreFilledByTheNext) {
  stack_.chain(3, 48);
  int64_t id = id_of(hit(stack_.at(0)));
  abi::StackHead* head = rt::stack_slot(r_.map(0), static_cast<uint64_t>(id));
  head->count = 0;
  rt::frames_of(head)[1] = 0;
  EXPECT_EQ(read_stack(r_.region(), 0, static_cast<uint64_t>(id)).error().code,
            ErrorCode::kCorrupt);
  EXPECT_EQ(id_of(hit(stack_.at(0))), id);
  EXPECT_EQ(frames_of(id).size(), 4u);
}

TEST_F(Stacks, ThatSomebodyScribbledOverAreFoundOut) {
  stack_.chain(3, 48);
  int64_t id = id_of(hit(stack_.at(0)));
  abi::StackHead* head = rt::stack_slot(r_.map(0), static_cast<uint64_t>(id));
  rt::frames_of(head)[2] ^= 1;
  auto frames = read_stack(r_.region(), 0, static_cast<uint64_t>(id));
  ASSERT_FALSE(frames);
  EXPECT_EQ(frames.error().code, ErrorCode::kCorrupt);
  head->count = ~uint64_t{0};
  EXPECT_FALSE(read_stack(r_.region(), 0, static_cast<uint64_t>(id)));
  EXPECT_EQ(read_stack(r_.region(), 0, 12345).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(read_stack(r_.region(), 3, 1).error().code, ErrorCode::kInvalid);
  EXPECT_EQ(read_stack(r_.region(), 99, 1).error().code, ErrorCode::kInvalid);
}

TEST_F(Stacks, WithoutTheKernelsCopyEndAtMemoryThatIsNotSurelyThere) {
  TestCode confined(r_, [](abi::RtConsts& consts) { consts.allowed_calls = 0; });
  stack_.chain(3, 48);
  abi::HitFrame frame = hit(stack_.at(0));
  auto id = confined.call(Helper::kGetStackid, &frame, confined.map(), bpf::kUserStack);
  EXPECT_EQ(frames_of(static_cast<int64_t>(id)), std::vector<uint64_t>{kCode});
  EXPECT_GE(r_.region().stats_untrusted().refused_calls, 1u);
}

/// fs offset of where libc keeps begin and size of this thread's stack; 0: not found.
int32_t stack_words_offset() {
  pthread_attr_t attributes;
  void* address = nullptr;
  size_t size = 0, guard = 0;
  if (pthread_getattr_np(pthread_self(), &attributes) != 0) return 0;
  pthread_attr_getstack(&attributes, &address, &size);
  pthread_attr_getguardsize(&attributes, &guard);
  pthread_attr_destroy(&attributes);
  const uint64_t begin = reinterpret_cast<uint64_t>(address) - guard;
  for (int32_t at = 16; at < 2296; at += 8) {
    if (rt::read_fs_u64(at) == begin && rt::read_fs_u64(at + 8) == size + guard) return at;
  }
  return 0;
}

class ThreadStacks : public Stacks {
 public:
  /// In a thread: its libc's offset found, system calls forbidden, so that only what is loaded
  /// plainly can be read. `shift` is added to the offset.
  template <typename Work>
  void in_thread(Work work, int32_t shift = 0) {
    std::thread([&] {
      const int32_t offset = stack_words_offset();
      ASSERT_NE(offset, 0) << "not where it was looked for";
      const TestCode confined(r_, [&](abi::RtConsts& consts) {
        consts.allowed_calls = 0;
        consts.main_stack_begin = consts.main_stack_end = 0;
        consts.stack_fs_offset = offset + shift;
      });
      work(confined);
    }).join();
  }
  /// A chain of `count` frames, 1 KiB apart, in `memory`.
  static uint64_t chain_in(uint8_t* memory, uint64_t count) {
    auto at = (reinterpret_cast<uint64_t>(memory) + 15) & ~uint64_t{15};
    for (uint64_t i = 0; i < count; ++i) {
      const uint64_t frame[2] = {i + 1 < count ? at + (i + 1) * 1024 : 0, kCode + i + 1};
      memcpy(reinterpret_cast<void*>(at + i * 1024), frame, sizeof frame);
    }
    return at;
  }
  size_t walked(const TestCode& code, uint64_t bp) {
    abi::HitFrame frame = hit(bp);
    auto id = code.call(Helper::kGetStackid, &frame, code.map(), bpf::kUserStack);
    return frames_of(static_cast<int64_t>(id)).size();
  }
};

TEST_F(ThreadStacks, AreLoadedPlainlyUpToTheControlBlock) {
  in_thread([&](const TestCode& code) {
    uint8_t frames[33 * 1024];
    EXPECT_EQ(walked(code, chain_in(frames, 32)), 33u);
  });
  EXPECT_EQ(r_.region().stats_untrusted().refused_calls, 0u);
}

TEST_F(ThreadStacks, AreNotWhereLibcDoesNotSay) {
  in_thread(
      [&](const TestCode& code) {
        uint8_t frames[33 * 1024];
        EXPECT_LT(walked(code, chain_in(frames, 32)), 8u);
      },
      8);
}

/// Words that look like libc's, of a block that the stack pointer is in and the control block is
/// not: what lies between the two may be anything.
TEST_F(ThreadStacks, AreNotWhereTheControlBlockIsOutside) {
  std::thread([&] {
    uint8_t frames[33 * 1024];
    static thread_local uint64_t words[2];
    const uint64_t at = reinterpret_cast<uint64_t>(frames), fs = rt::read_fs_u64(0);
    words[0] = (at - (1 << 16)) & ~uint64_t{4095};
    words[1] = at + sizeof frames - words[0];
    ASSERT_LT(words[0] + words[1], fs);
    const TestCode confined(r_, [&](abi::RtConsts& consts) {
      consts.allowed_calls = 0;
      consts.main_stack_begin = consts.main_stack_end = 0;
      consts.stack_fs_offset = static_cast<int32_t>(reinterpret_cast<uint64_t>(words) - fs);
    });
    EXPECT_LT(walked(confined, chain_in(frames, 32)), 8u);
  }).join();
}

/// Below the stack pointer, behind the control block, of another thread.
TEST_F(ThreadStacks, DoNotMakeOtherMemorySafe) {
  in_thread([&](const TestCode& code) {
    stack_.chain(3, 48);
    EXPECT_EQ(walked(code, stack_.at(0)), 1u);
    uint64_t control_block = rt::read_fs_u64(0);
    EXPECT_EQ(walked(code, (control_block + (1 << 20)) & ~uint64_t{15}), 1u);
    std::atomic<uint64_t> others = 0;
    std::atomic<bool> done = false;
    std::thread other([&] {
      uint8_t frames[33 * 1024];
      others = chain_in(frames, 32);
      while (!done) std::this_thread::yield();
    });
    while (others == 0) std::this_thread::yield();
    EXPECT_EQ(walked(code, others), 1u);
    done = true;
    other.join();
  });
}

/// On a signal stack or a coroutine what the control block says is of no use: the memory above the
/// stack pointer may be anything. Here it ends.
TEST_F(ThreadStacks, AreNotTakenForOtherStacks) {
  static ThreadStacks* self;
  static const TestCode* code;
  static size_t frames;
  self = this;
  constexpr size_t kAltBytes = 1 << 16;
  in_thread([&](const TestCode& confined) {
    code = &confined;
    // Below the thread's stack: its control block is above, and what is in between is not ours.
    const uint64_t begin = rt::read_fs_u64(stack_words_offset());
    void* memory = MAP_FAILED;
    for (uint64_t below = 1; below < 256 && memory == MAP_FAILED; ++below)
      memory =
          mmap(reinterpret_cast<void*>(begin - (below << 25)), kAltBytes, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    ASSERT_NE(memory, MAP_FAILED);
    stack_t alternate{.ss_sp = memory, .ss_flags = 0, .ss_size = kAltBytes}, off{};
    off.ss_flags = SS_DISABLE;
    sigaltstack(&alternate, nullptr);
    struct sigaction action = {}, before = {};
    action.sa_flags = SA_ONSTACK;
    action.sa_handler = [](int) {
      uint8_t chain[17 * 1024];
      frames = self->walked(*code, chain_in(chain, 16));
    };
    sigaction(SIGUSR1, &action, &before);
    raise(SIGUSR1);
    sigaction(SIGUSR1, &before, nullptr);
    sigaltstack(&off, nullptr);
    munmap(memory, kAltBytes);
  });
  EXPECT_GE(frames, 1u);
  EXPECT_LT(frames, 8u) << "its own page alone";
}

/// Many threads meet the same stacks for the first time.
TEST_F(Stacks, OfManyThreadsAreKeptOnce) {
  constexpr int kThreads = 8, kDepths = 40;
  stack_.chain(kDepths, 48);
  std::vector<std::thread> threads;
  std::vector<std::vector<int64_t>> ids(kThreads);
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int depth = 0; depth < kDepths; ++depth)
        ids[t].push_back(id_of(hit(stack_.at(static_cast<uint64_t>(depth) * 48))));
    });
  }
  for (auto& thread : threads) thread.join();
  for (int t = 1; t < kThreads; ++t) EXPECT_EQ(ids[t], ids[0]);
  for (int depth = 0; depth < kDepths; ++depth)
    EXPECT_EQ(frames_of(ids[0][depth]).size(), static_cast<size_t>(kDepths - depth + 1));
  size_t used = 0;
  for (uint64_t i = 0; i < 1024; ++i) used += rt::stack_slot(r_.map(0), i)->id != 0;
  EXPECT_EQ(used, static_cast<size_t>(kDepths));
}

/// The one who was killed at any instruction leaves a map that the next can go on with.
TEST_F(Stacks, SurviveAThreadThatIsKilledAtAnyInstruction) {
  stack_.chain(2, 48);
  abi::HitFrame frame = hit(stack_.at(0));
  int ended_early = 0;
  for (int steps = 1; steps < 4000; steps += 7) {
    memset(rt::stack_slot(r_.map(0), 0), 0, 1024 * r_.map(0).value_stride);
    pid_t child = fork();
    if (child == 0) {
      ptrace(PTRACE_TRACEME, 0, 0, 0);
      raise(SIGSTOP);
      id_of(frame);
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    const uint64_t blob = code_.begin();
    bool is_inside = false;
    int inside = 0;
    // To the helper, then so many instructions of it.
    for (int i = 0; i < 200000 && inside < steps; ++i) {
      ptrace(PTRACE_SINGLESTEP, child, 0, 0);
      waitpid(child, &status, 0);
      if (!WIFSTOPPED(status)) break;
      user_regs_struct regs = {};
      ptrace(PTRACE_GETREGS, child, 0, &regs);
      is_inside = regs.rip >= blob && regs.rip < blob + abi::kMaxBlobBytes;
      if (is_inside) ++inside;
      if (!is_inside && inside > 0) break;
    }
    bool was_inside = WIFSTOPPED(status) && is_inside;
    if (WIFSTOPPED(status)) {
      kill(child, SIGKILL);
      waitpid(child, &status, 0);
    }
    ended_early += was_inside;
    ASSERT_EQ(walk(frame), (std::vector<uint64_t>{kCode, kCode + 1, kCode + 2})) << steps;
    if (!was_inside) break;
  }
  EXPECT_GT(ended_early, 10);
}

}  // namespace
}  // namespace spile::shm
