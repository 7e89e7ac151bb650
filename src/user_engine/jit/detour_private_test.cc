// Hits on a private stack: nothing of the target's stack is written, nothing is lost but where it
// is counted, and no stack stays taken for ever.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/time.h>

#include <atomic>
#include <barrier>
#include <chrono>
#include <csignal>
#include <thread>

#include "abi/private_stack.h"
#include "user_engine/jit/test_site.h"

namespace spile::jit {
namespace {

using namespace testing;
using bpf::Builder;
using bpf::Helper;
using bpf::Program;
using bpf::Reg;
namespace regs = bpf::x86_64_regs;

/// The pool of abi/private_stack.h in memory of this process.
class Pool {
 public:
  explicit Pool(World& world) {
    void* memory = mmap(nullptr, abi::kPrivatePoolBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    memory_ = Mapping(memory, abi::kPrivatePoolBytes);
    const uint64_t first = reinterpret_cast<uint64_t>(control(0));
    words_ = world.page.put(bytes_of({first, first + abi::kPrivatePoolBytes, 0}));
  }

  abi::PrivateStackControl* control(uint32_t i) {
    return reinterpret_cast<abi::PrivateStackControl*>(
        memory_.data() + abi::private_control_offset(i * abi::kPrivateStackBytes));
  }
  PrivateStacks stacks() const { return {words_, words_ + 8, words_ + 16}; }
  uint64_t missed() const { return reinterpret_cast<const uint64_t*>(words_.value)[2]; }
  uint64_t begin() const { return reinterpret_cast<uint64_t>(memory_.data()); }

  uint32_t taken() {
    uint32_t count = 0;
    for (uint32_t i = 0; i < abi::kPrivateStacks; ++i)
      count += control(i)->taken != 0 || control(i)->owner_sp != 0;
    return count;
  }
  void take_all(uint64_t owner_sp) {
    for (uint32_t i = 0; i < abi::kPrivateStacks; ++i) {
      control(i)->taken = 1;
      control(i)->owner_sp = owner_sp;
    }
  }

 private:
  static std::vector<uint8_t> bytes_of(const std::vector<uint64_t>& words) {
    auto* begin = reinterpret_cast<const uint8_t*>(words.data());
    return {begin, begin + words.size() * 8};
  }

  Mapping memory_;
  TargetAddr words_;
};

/// A site whose hits have no room on their own stack.
struct TightSite {
  explicit TightSite(std::vector<uint8_t> code = kLeaRet) : site(world, std::move(code), 0) {}

  DetourSpec spec(std::vector<DetourProgram> programs) {
    DetourSpec spec = site.spec(std::move(programs));
    spec.stack_limit_bytes = 0;
    spec.private_stacks = pool.stacks();
    return spec;
  }
  Body counter() {
    map = world.add_per_cpu_array(1, 16);
    return world.compile(count_program(map), as_engine(world.env()));
  }
  Body busy() {
    map = world.add_per_cpu_array(1, 16);
    return world.compile(busy_program(map), as_engine(world.env()));
  }
  uint64_t hits() { return world.map(map).sum(0); }

  World world;
  Pool pool{world};
  Site site;
  int map = 0;
};

void expect_state_kept_but_vector_15(Site& site) {
  expect_state_kept(site, kLeaAdds, true);
}

TEST(DetourPrivateStack, KeepsEveryRegisterAndFlag) {
  for (CpuNumber cpu : {CpuNumber::kRdpid, CpuNumber::kLsl}) {
    for (uint32_t inline_limit : {0u, 4096u}) {
      for (bool is_busy : {false, true}) {
        TightSite tight;
        Body body = is_busy ? tight.busy() : tight.counter();
        DetourSpec spec = tight.spec({{&body, 0}});
        spec.inline_limit_bytes = inline_limit;
        spec.cpu = cpu;
        Detour detour = tight.site.patch(spec);
        EXPECT_TRUE(detour.on_private_stack);
        EXPECT_EQ(detour.stack_bytes, 0u);
        expect_state_kept_but_vector_15(tight.site);
        EXPECT_EQ(tight.hits(), 256u);
        EXPECT_EQ(tight.pool.taken(), 0u) << "stacks are given back";
        EXPECT_EQ(tight.pool.missed(), 0u);
      }
    }
  }
}

TEST(DetourPrivateStack, IsLeftAloneWhereThereIsRoom) {
  TightSite tight;
  Body body = tight.counter();
  DetourSpec spec = tight.spec({{&body, 0}});
  spec.stack_limit_bytes = abi::kMaxHitStackBytes;
  Detour detour = tight.site.patch(spec);
  EXPECT_FALSE(detour.on_private_stack);
  expect_state_kept(tight.site);
}

TEST(DetourPrivateStack, WritesNothingBelowTheStackPointer) {
  for (bool is_private : {true, false}) {
    TightSite tight;
    Body body = tight.busy();
    DetourSpec spec = tight.spec({{&body, 0}});
    if (!is_private) spec.stack_limit_bytes = abi::kMaxHitStackBytes;
    tight.site.patch(spec);
    std::vector<uint64_t> stack(2048, 0x5a5a5a5a5a5a5a5a);
    uint64_t* top = stack.data() + stack.size() - 8;
    uint64_t rsp = reinterpret_cast<uint64_t>(top);
    asm volatile("mov %%rsp, %%rbx\n mov %0, %%rsp\n call *%1\n mov %%rbx, %%rsp\n"
                 : "+r"(rsp)
                 : "r"(tight.site.code().value)
                 : "rax", "rbx", "xmm15", "memory", "cc");
    size_t untouched = 0;
    while (stack[untouched] == 0x5a5a5a5a5a5a5a5a) ++untouched;
    EXPECT_EQ(&stack[untouched] == top - 1, is_private) << "only the call's return address";
    EXPECT_EQ(tight.hits(), 1u);
  }
}

TEST(DetourPrivateStack, ProgramsSeeTheTargetsState) {
  std::vector<int16_t> offsets;
  for (int16_t offset = 0; offset < regs::kSize; offset += 8) offsets.push_back(offset);
  for (bool flags_live : {true, false}) {
    TightSite tight;
    int map = tight.world.add_array(32);
    Body body =
        tight.world.compile(store_context_program(map, offsets), as_engine(tight.world.env()));
    DetourSpec spec = tight.spec({{&body, 0}});
    spec.flags_live = flags_live;
    tight.site.patch(spec);
    auto seen = [&](int offset) {
      return *tight.world.map(map).value(static_cast<uint32_t>(offset / 8));
    };
    CpuState state = distinct_state(5, kArithmeticFlags);
    run_with_state(tight.site.code().value, state);
    EXPECT_EQ(seen(regs::kAx), state.gpr[kRax]);
    EXPECT_EQ(seen(regs::kDi), state.gpr[kRdi]);
    EXPECT_EQ(seen(regs::kR15), state.gpr[kR15]);
    EXPECT_EQ(seen(regs::kIp), tight.site.address().value);
    EXPECT_EQ(seen(regs::kFlags), state.flags);
    EXPECT_GE(seen(regs::kSp) - tight.pool.begin(), abi::kPrivatePoolBytes);
    EXPECT_LT(reinterpret_cast<uint64_t>(&state) - seen(regs::kSp), 4096u);
  }
}

TEST(DetourPrivateStack, AReturnIsSeenAsIfItHadReturned) {
  uint64_t sp[2] = {}, ip[2] = {};
  for (int i = 0; i < 2; ++i) {
    TightSite tight;
    int map = tight.world.add_array(4);
    Body body = tight.world.compile(store_context_program(map, {regs::kIp, regs::kSp}),
                                    as_engine(tight.world.env()));
    DetourSpec spec = tight.spec({{&body, 0, 8, 0}});
    if (i == 1) spec.stack_limit_bytes = abi::kMaxHitStackBytes;
    tight.site.patch(spec);
    run_with_state(tight.site.code().value, distinct_state(1, 0));
    ip[i] = *tight.world.map(map).value(0);
    sp[i] = *tight.world.map(map).value(1);
  }
  EXPECT_EQ(ip[0], ip[1]) << "the caller's address";
  EXPECT_EQ(sp[0], sp[1]);
}

/// Where rdi is odd: the function returns rsi instead.
Program override_program() {
  Builder b;
  auto out = b.new_label();
  b.mov(Reg::r6, Reg::r1);
  b.load(8, Reg::r2, Reg::r6, regs::kDi);
  b.alu_imm(bpf::kAnd, Reg::r2, 1);
  b.jump_if_imm(bpf::kJeq, Reg::r2, 0, out);
  b.load(8, Reg::r2, Reg::r6, regs::kSi);
  b.mov(Reg::r1, Reg::r6);
  b.call(Helper::kOverrideReturn);
  b.bind(out);
  b.mov_imm(Reg::r0, 0);
  b.exit();
  return *std::move(b).finish();
}

TEST(DetourPrivateStack, AnOverrideReturnsToTheCaller) {
  TightSite tight;
  Body body = tight.world.compile(override_program(), as_engine(tight.world.env()));
  DetourSpec spec = tight.spec({{&body, 0}});
  spec.at_entry = spec.may_override = true;
  tight.site.patch(spec);
  for (uint64_t i = 0; i < 64; ++i) {
    CpuState before = distinct_state(i, 0);
    before.gpr[kRdi] = i;
    CpuState after = run_with_state(tight.site.code().value, before);
    before.gpr[kRax] = i % 2 == 1 ? before.gpr[kRsi] : before.gpr[kRax] + kLeaAdds;
    ASSERT_EQ(after.gpr, before.gpr) << i;
  }
  EXPECT_EQ(tight.pool.taken(), 0u);
}

TEST(DetourPrivateStack, SwitchedOffDoesNothing) {
  TightSite tight;
  Body body = tight.busy();
  DetourSpec spec = tight.spec({{&body, 0}});
  Detour detour = tight.site.patch(spec);
  ASSERT_EQ(detour.gates.size(), 1u);
  auto* word = reinterpret_cast<uint64_t*>((spec.at + detour.gates[0].offset).value);
  *word = detour.gates[0].closed;
  expect_state_kept(tight.site);
  EXPECT_EQ(tight.hits(), 0u);
  *word = detour.gates[0].open;
  expect_state_kept_but_vector_15(tight.site);
  EXPECT_EQ(tight.hits(), 256u);
}

TEST(DetourPrivateStack, IsNeverLongerThanItsBound) {
  TightSite tight;
  std::vector<int16_t> offsets;
  for (int16_t offset = 0; offset < regs::kSize; offset += 8) offsets.push_back(offset);
  int map = tight.world.add_array(32);
  Body all = tight.world.compile(store_context_program(map, offsets), as_engine(tight.world.env()));
  Body busy = tight.busy();
  Body overriding = tight.world.compile(override_program(), as_engine(tight.world.env()));
  DetourSpec spec = tight.spec({{&all, 0}, {&busy, 1}, {&overriding, 2}, {&all, UINT64_MAX}});
  spec.at_entry = spec.may_override = true;
  spec.cpu = CpuNumber::kLsl;
  spec.hits = HitCounter{TargetAddr(uint64_t{1} << 46), 24, 0xfff};
  auto detour = emit_detour(spec);
  ASSERT_TRUE(detour) << detour.error().message;
  RecordProperty("bytes", static_cast<int>(detour->displaced_offset));
  EXPECT_LE(detour->displaced_offset, kMaxDetourBytes + 4 * kMaxProgramCallBytes);
}

// ---- none is free

TEST(DetourPrivateStack, AHitWithoutAStackIsSkippedAndCounted) {
  TightSite tight;
  Body body = tight.counter();
  tight.site.patch(tight.spec({{&body, 0}}));
  tight.pool.take_all(0x1000);
  expect_state_kept_but_vector_15(tight.site);
  EXPECT_EQ(tight.hits(), 0u);
  EXPECT_EQ(tight.pool.missed(), 256u);
}

TEST(DetourPrivateStack, FindsTheLastFreeOne) {
  TightSite tight;
  Body body = tight.counter();
  tight.site.patch(tight.spec({{&body, 0}}));
  tight.pool.take_all(0x1000);
  *tight.pool.control(abi::kPrivateStacks - 1) = {};
  expect_state_kept_but_vector_15(tight.site);
  EXPECT_EQ(tight.hits(), 256u);
  EXPECT_EQ(tight.pool.taken(), abi::kPrivateStacks - 1);
}

/// Calls the site with the stack pointer where it is each time.
__attribute__((noinline)) void call_site(TargetAddr code) {
  asm volatile("call *%0" ::"r"(code.value) : "rax", "xmm15", "memory", "cc");
}

TEST(DetourPrivateStack, TakesOverTheStackOfAHitThatNeverEnded) {
  TightSite tight;
  int map = tight.world.add_array(1);
  Body body =
      tight.world.compile(store_context_program(map, {regs::kSp}), as_engine(tight.world.env()));
  tight.site.patch(tight.spec({{&body, 0}}));
  uint64_t sp = 0;
  for (int round = 0; round < 2; ++round) {
    if (round == 1) {
      tight.pool.take_all(0x1000);
      tight.pool.control(200)->owner_sp = sp;  // the last that is searched from any CPU of 128
    }
    call_site(tight.site.code());
    sp = *tight.world.map(map).value(0);
  }
  EXPECT_EQ(tight.pool.missed(), 0u);
  EXPECT_EQ(tight.pool.taken(), abi::kPrivateStacks - 1) << "and gave it back";
}

// ---- threads and signals

TEST(DetourPrivateStack, CountsExactlyInManyThreads) {
  TightSite tight;
  Body body = tight.busy();
  tight.site.patch(tight.spec({{&body, 0}}));
  constexpr int kThreads = 6, kCalls = 300'000;
  std::barrier all_ready(kThreads);
  {
    std::vector<std::jthread> running;
    for (int t = 0; t < kThreads; ++t) {
      running.emplace_back([&] {
        all_ready.arrive_and_wait();
        for (int i = 0; i < kCalls; ++i) call_site(tight.site.code());
      });
    }
  }
  EXPECT_EQ(tight.hits() + tight.pool.missed(), uint64_t{kThreads} * kCalls);
  EXPECT_EQ(tight.pool.missed(), 0u) << "256 stacks are enough for 6 threads";
  EXPECT_EQ(tight.pool.taken(), 0u);
}

TargetAddr signal_target;
std::atomic<uint64_t> signal_hits;

/// The handler has a stack of its own, as Go's have, and interrupts every instruction of the way to
/// the private stack and back.
TEST(DetourPrivateStack, NestsInSignalHandlers) {
  TightSite tight;
  Body body = tight.busy();
  tight.site.patch(tight.spec({{&body, 0}}));
  signal_target = tight.site.code();
  signal_hits = 0;
  std::vector<uint8_t> memory(64 << 10);
  stack_t alternate{memory.data(), 0, memory.size()}, no_alternate{nullptr, SS_DISABLE, 0};
  sigaltstack(&alternate, nullptr);
  struct sigaction action{}, old{};
  action.sa_flags = SA_ONSTACK;
  action.sa_handler = [](int) {
    call_site(signal_target);
    signal_hits.fetch_add(1);
  };
  sigaction(SIGALRM, &action, &old);
  itimerval every_100us{{0, 100}, {0, 100}}, never{};
  setitimer(ITIMER_REAL, &every_100us, nullptr);
  uint64_t calls = 0;
  auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(300);
  while (std::chrono::steady_clock::now() < until) {
    for (uint64_t i = 0; i < 1000; ++i) {
      uint64_t rax = i;
      asm volatile("call *%1" : "+a"(rax) : "r"(signal_target.value) : "xmm15", "memory", "cc");
      ASSERT_EQ(rax, i + kLeaAdds);
      ++calls;
    }
  }
  setitimer(ITIMER_REAL, &never, nullptr);
  sigaction(SIGALRM, &old, nullptr);
  sigaltstack(&no_alternate, nullptr);
  EXPECT_GT(signal_hits.load(), 10u);
  EXPECT_EQ(tight.hits(), calls + signal_hits.load());
  EXPECT_EQ(tight.pool.missed(), 0u);
  EXPECT_EQ(tight.pool.taken(), 0u);
}

/// One for all, taken over and over: it is never given to two hits at once.
TEST(DetourPrivateStack, TooFewStacksLoseHitsAndCountThem) {
  TightSite tight;
  Body body = tight.busy();
  tight.site.patch(tight.spec({{&body, 0}}));
  tight.pool.take_all(0x1000);
  *tight.pool.control(abi::kPrivateStacks - 1) = {};
  constexpr int kThreads = 4, kCalls = 20'000;
  std::barrier all_ready(kThreads);
  std::atomic<uint64_t> wrong = 0;
  {
    std::vector<std::jthread> running;
    for (int t = 0; t < kThreads; ++t) {
      running.emplace_back([&] {
        all_ready.arrive_and_wait();
        for (uint64_t i = 0; i < kCalls; ++i) {
          uint64_t rax = i;
          asm volatile("call *%1"
                       : "+a"(rax)
                       : "r"(tight.site.code().value)
                       : "xmm15", "memory", "cc");
          wrong += rax != i + kLeaAdds;
        }
      });
    }
  }
  EXPECT_EQ(wrong.load(), 0u);
  EXPECT_EQ(tight.hits() + tight.pool.missed(), uint64_t{kThreads} * kCalls);
  EXPECT_GT(tight.hits(), 0u);
  EXPECT_EQ(tight.pool.taken(), abi::kPrivateStacks - 1);
}

// ---- a figure: printed, not asserted

TEST(DetourPrivateStackFigures, NanosecondsAddedToAHit) {
  for (bool is_private : {false, true}) {
    TightSite tight;
    Body body = tight.counter();
    DetourSpec spec = tight.spec({{&body, 0}});
    if (!is_private) spec.stack_limit_bytes = abi::kMaxHitStackBytes;
    tight.site.patch(spec);
    double best = 1e9;
    for (int round = 0; round < 7; ++round) {
      constexpr int kCalls = 200'000;
      auto start = std::chrono::steady_clock::now();
      for (int i = 0; i < kCalls; ++i) call_site(tight.site.code());
      std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
      best = std::min(best, took.count() / kCalls);
    }
    std::printf("  per-CPU counter on %s stack: %.2f ns a call\n",
                is_private ? "a private" : "the target's", best);
  }
}

}  // namespace
}  // namespace spile::jit
