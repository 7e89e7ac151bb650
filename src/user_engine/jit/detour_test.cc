#include "user_engine/jit/detour.h"

#include <gtest/gtest.h>
#include <sys/time.h>

#include <atomic>
#include <barrier>
#include <chrono>
#include <csignal>
#include <functional>
#include <thread>

#include "user_engine/jit/print.h"
#include "user_engine/jit/test_site.h"
#include "x86/decode.h"

namespace spile::jit {
namespace {

using namespace testing;
using bpf::Builder;
using bpf::Helper;
using bpf::Program;
using bpf::Reg;
namespace regs = bpf::x86_64_regs;

// ---- nothing changes for the target
// ----------------------------------------------------------------------------

TEST(Detour, CounterKeepsEveryRegisterAndFlag) {
  for (uint32_t inline_limit : {0u, 256u}) {
    World world;
    int map = world.add_per_cpu_array(1);
    Body body = world.compile(count_program(map), as_engine(world.env()));
    Site site(world, kLeaRet, 0);
    DetourSpec spec = site.spec({{&body, 0}});
    spec.inline_limit_bytes = inline_limit;
    Detour detour = site.patch(spec);
    EXPECT_EQ(detour.inlined, inline_limit != 0);
    expect_state_kept(site);
    EXPECT_EQ(world.map(map).sum(0), 256u);
  }
}

TEST(Detour, BusyProgramKeepsEveryRegisterAndFlag) {
  for (bool inline_lookups : {true, false}) {
    for (uint32_t inline_limit : {0u, 4096u}) {
      World world;
      int map = world.add_per_cpu_array(1, 16);
      JitEnv env = as_engine(world.env());
      env.inline_lookups = inline_lookups;
      Body body = world.compile(busy_program(map), env);
      Site site(world, kLeaRet, 0);
      DetourSpec spec = site.spec({{&body, 0}});
      spec.inline_limit_bytes = inline_limit;
      site.patch(spec);
      expect_state_kept(site);
      EXPECT_EQ(world.map(map).sum(0), 256u);
    }
  }
}

TEST(Detour, HitCounterKeepsEveryRegisterAndFlagAndCounts) {
  World world;
  int map = world.add_per_cpu_array(1);
  Site site(world, kLeaRet, 0);
  DetourSpec spec = site.spec({});
  spec.hits = HitCounter{TargetAddr(reinterpret_cast<uint64_t>(world.map(map).value(0))),
                         world.map(map).cpu_stride, kTestCpus - 1};
  site.patch(spec);
  expect_state_kept(site);
  EXPECT_EQ(world.map(map).sum(0), 256u);
}

TEST(Detour, DeadFlagsAreNotSaved) {
  World world;
  int map = world.add_per_cpu_array(1);
  Body body = world.compile(count_program(map), as_engine(world.env()));
  Site site(world, kLeaRet, 0);
  DetourSpec live = site.spec({{&body, 0}}), dead = live;
  dead.flags_live = false;
  EXPECT_LT(emit_detour(dead)->bytes.size(), emit_detour(live)->bytes.size());
  site.patch(dead);
  CpuState before = distinct_state(3, 0);
  CpuState after = run_with_state(site.code().value, before);
  before.gpr[kRax] += kLeaAdds;
  EXPECT_EQ(after.gpr, before.gpr);
  EXPECT_EQ(after.flags & ~kArithmeticFlags, before.flags & ~kArithmeticFlags);
}

/// Fills all 128 bytes below rsp, has the site in between, and adds them up again.
std::vector<uint8_t> red_zone_leaf(size_t& site_offset) {
  std::vector<uint8_t> code = {0x31, 0xc0};  // xor %eax,%eax
  for (int i = 1; i <= 16; ++i) {            // movq $i,-8*i(%rsp)
    code.insert(code.end(), {0x48, 0xc7, 0x44, 0x24, static_cast<uint8_t>(-8 * i),
                             static_cast<uint8_t>(i), 0, 0, 0});
  }
  site_offset = code.size();
  code.insert(code.end(), {0x48, 0x8d, 0x80, 0x44, 0x33, 0x22, 0x11});  // the lea
  for (int i = 1; i <= 16; ++i)
    code.insert(code.end(), {0x48, 0x03, 0x44, 0x24, static_cast<uint8_t>(-8 * i)});
  code.push_back(0xc3);
  return code;
}

TEST(Detour, StepsOverTheRedZone) {
  for (uint32_t inline_limit : {0u, 4096u}) {
    World world;
    int map = world.add_per_cpu_array(1, 16);
    Body body = world.compile(busy_program(map), as_engine(world.env()));
    size_t offset = 0;
    auto code = red_zone_leaf(offset);
    Site site(world, code, offset);
    DetourSpec spec = site.spec({{&body, 0}});
    spec.inline_limit_bytes = inline_limit;
    site.patch(spec);
    CpuState after = run_with_state(site.code().value, distinct_state(1, 0));
    EXPECT_EQ(after.gpr[kRax], kLeaAdds + 16 * 17 / 2);
    EXPECT_EQ(world.map(map).sum(0), 1u);
  }
}

TEST(Detour, WritesOnlyItsOwnStack) {
  World world;
  int map = world.add_per_cpu_array(1, 16);
  JitEnv env = as_engine(world.env());
  env.helpers.at(static_cast<int32_t>(Helper::kKtimeGetNs)).stack_bytes = 512;
  Body body = world.compile(busy_program(map), env);
  Site site(world, kLeaRet, 0);
  Detour detour = site.patch({{&body, 0}});
  // A stack of our own, filled with a pattern: what lies deeper than the stated bound stays as it
  // is.
  std::vector<uint64_t> stack(2048, 0x5a5a5a5a5a5a5a5a);
  auto top = reinterpret_cast<uint64_t>(stack.data() + stack.size()) - 64;
  asm volatile("mov %%rsp, %%rbx\n mov %0, %%rsp\n call *%1\n mov %%rbx, %%rsp\n"
               : "+r"(top)
               : "r"(site.code().value)
               : "rax", "rbx", "memory", "cc");
  size_t untouched = 0;
  while (stack[untouched] == 0x5a5a5a5a5a5a5a5a) ++untouched;
  uint64_t rsp_at_site = top - 8;
  uint64_t used = rsp_at_site - reinterpret_cast<uint64_t>(stack.data() + untouched);
  EXPECT_LE(used, detour.stack_bytes);
  EXPECT_GT(used, abi::kRedZoneBytes);
}

// ---- notes of calls
// --------------------------------------------------------------------------------------------

struct PendingCall {
  uint64_t slot, number;
  bool operator==(const PendingCall&) const = default;
};
std::vector<PendingCall> noted, asked;
uint64_t take_answers = 0;  ///< a bit a number

void note_call(uint64_t slot, uint64_t number) {
  noted.push_back({slot, number});
}
uint64_t take_call(uint64_t slot, uint64_t number) {
  asked.push_back({slot, number});
  return take_answers >> number & 1;
}

struct LeavingCall {
  uint64_t number, target, known, is_address;
  bool operator==(const LeavingCall&) const = default;
};
std::vector<LeavingCall> left;
void leave_call(
    uint64_t /*slot*/, uint64_t number, uint64_t target, uint64_t known, uint64_t is_address) {
  left.push_back({number, target, known, is_address});
}

/// Calls a function of this test as if it were blob code: SSE state, DF and AC stay as they are.
///   mov $function,%r11; push %rbp; mov %rsp,%rbp; sub $528,%rsp; and $-16,%rsp; fxsave (%rsp)
///   pushfq; pushfq; andl $~AC,(%rsp); popfq; cld; sub $8,%rsp; call *%r11; add $8,%rsp; popfq
///   fxrstor (%rsp); leave; ret
HelperCode far_call(World& world, const void* function) {
  std::vector<uint8_t> code = {0x49, 0xbb};
  auto address = reinterpret_cast<uint64_t>(function);
  for (int i = 0; i < 8; ++i) code.push_back(static_cast<uint8_t>(address >> (8 * i)));
  const std::vector<uint8_t> rest = {0x55, 0x48, 0x89, 0xe5, 0x48, 0x81, 0xec, 0x10, 0x02, 0x00,
                                     0x00, 0x48, 0x83, 0xe4, 0xf0, 0x0f, 0xae, 0x04, 0x24, 0x9c,
                                     0x9c, 0x81, 0x24, 0x24, 0xff, 0xff, 0xfb, 0xff, 0x9d, 0xfc,
                                     0x48, 0x83, 0xec, 0x08, 0x41, 0xff, 0xd3, 0x48, 0x83, 0xc4,
                                     0x08, 0x9d, 0x0f, 0xae, 0x0c, 0x24, 0xc9, 0xc3};
  code.insert(code.end(), rest.begin(), rest.end());
  return {world.page.put(code), 700};
}

struct PendingSite {
  PendingSite() {
    noted.clear();
    asked.clear();
    auto note = far_call(world, reinterpret_cast<const void*>(&note_call));
    auto take = far_call(world, reinterpret_cast<const void*>(&take_call));
    auto leave = far_call(world, reinterpret_cast<const void*>(&leave_call));
    pending = {note, take, take, note, leave, note};
  }
  DetourSpec spec(std::vector<DetourProgram> programs) {
    DetourSpec spec = site.spec(std::move(programs));
    spec.pending = pending;
    return spec;
  }
  World world;
  PendingCalls pending;
  Site site{world, kLeaRet, 0};
};

TEST(Detour, NotesTheCallsThatBeginHereAndKeepsTheState) {
  PendingSite p;
  DetourSpec spec = p.spec({});
  spec.calls = {{CallEvent::Kind::kNote, 3}, {CallEvent::Kind::kArrive, 70}};
  p.site.patch(spec);
  expect_state_kept(p.site);
  ASSERT_EQ(noted.size(), 512u);
  EXPECT_EQ(noted[0].number, 3u);
  EXPECT_EQ(noted[1], (PendingCall{noted[0].slot, 70}));
  EXPECT_EQ(noted[0].slot % 8, 0u) << "where the return address is";
}

/// Only the operand of the jump is looked at: the site itself is an instruction like any other.
TEST(Detour, ACallThatLeavesTellsWhereTheJumpGoes) {
  struct Jump {
    std::vector<uint8_t> bytes;
    std::function<uint64_t(const CpuState&, uint64_t site)> target;
    uint64_t is_address;
  };
  const Jump kJumps[] = {
      {{0xff, 0xe0}, [](const CpuState& s, uint64_t) { return s.gpr[kRax]; }, 0},
      {{0x41, 0xff, 0xe3}, [](const CpuState& s, uint64_t) { return s.gpr[kR11]; }, 0},
      {{0xff, 0x60, 0x18}, [](const CpuState& s, uint64_t) { return s.gpr[kRax] + 0x18; }, 1},
      {{0x41, 0xff, 0xa4, 0xc1, 0x00, 0xff, 0xff, 0xff},  // jmp *-0x100(%r9,%rax,8)
       [](const CpuState& s, uint64_t) { return s.gpr[kR9] + 8 * s.gpr[kRax] - 0x100; },
       1},
      {{0xff, 0x24, 0xcd, 0x00, 0x10, 0x00, 0x00},  // jmp *0x1000(,%rcx,8)
       [](const CpuState& s, uint64_t) { return 8 * s.gpr[kRcx] + 0x1000; },
       1},
      {{0xff, 0x25, 0x10, 0x00, 0x00, 0x00},
       [](const CpuState&, uint64_t site) { return site + 0x16; },
       1},
      {{0x64, 0xff, 0x20}, [](const CpuState&, uint64_t) { return uint64_t{0}; }, 0},
  };
  for (const Jump& jump : kJumps) {
    PendingSite p;
    left.clear();
    DetourSpec spec = p.spec({});
    spec.calls = {{CallEvent::Kind::kLeave, 9, TargetAddr(0x123456789a)}};
    spec.site_insn = jump.bytes;
    p.site.patch(spec);
    expect_state_kept(p.site);
    ASSERT_EQ(left.size(), 256u);
    const CpuState state = distinct_state(0, 0);
    EXPECT_EQ(left[0], (LeavingCall{9, jump.target(state, p.site.address().value), 0x123456789a,
                                    jump.is_address}))
        << ::testing::PrintToString(jump.bytes) << " " << left[0].target;
  }
}

TEST(Detour, RunsAProgramOnlyIfItsCallWasNoted) {
  for (uint32_t inline_limit : {0u, 256u}) {
    PendingSite p;
    int map = p.world.add_per_cpu_array(4);
    Body body = p.world.compile(count_program(map), as_engine(p.world.env()));
    DetourSpec spec = p.spec({{&body, 0, 8, 5}});
    spec.inline_limit_bytes = inline_limit;
    p.site.patch(spec);
    take_answers = 0;
    expect_state_kept(p.site);
    EXPECT_EQ(p.world.map(map).sum(0), 0u);
    take_answers = 1 << 5;
    expect_state_kept(p.site);
    EXPECT_EQ(p.world.map(map).sum(0), 256u);
    EXPECT_EQ(asked.size(), 512u);
  }
}

TEST(Detour, ProgramsOfOneCallShareItsNoteAndOthersDoNot) {
  PendingSite p;
  int map = p.world.add_per_cpu_array(4);
  Body zero = p.world.compile(count_program(map, 0), as_engine(p.world.env()));
  Body one = p.world.compile(count_program(map, 1), as_engine(p.world.env()));
  Body two = p.world.compile(count_program(map, 2), as_engine(p.world.env()));
  p.site.patch(p.spec({{&zero, 0, 8, 0}, {&one, 0, 8, 1}, {&one, 0, 8, 1}, {&two, 0, 8, 2}}));
  take_answers = 1 << 1;
  run_with_state(p.site.code().value, distinct_state(1, 0));
  EXPECT_EQ(p.world.map(map).sum(0), 1u);
  EXPECT_EQ(p.world.map(map).sum(1), 2u);
  EXPECT_EQ(p.world.map(map).sum(2), 0u);
  ASSERT_EQ(asked.size(), 2u);
  EXPECT_EQ(asked[0].slot, asked[1].slot);
}

uint64_t notes_left = 0;
uint64_t take_one(uint64_t, uint64_t) {
  return notes_left == 0 ? 0 : notes_left--;
}

TEST(Detour, ACallThatCameBackToItsEntryReturnsAsOften) {
  for (const bool repeats : {false, true}) {
    PendingSite p;
    int map = p.world.add_per_cpu_array(4);
    Body one = p.world.compile(count_program(map, 1), as_engine(p.world.env()));
    p.pending.take = far_call(p.world, reinterpret_cast<const void*>(&take_one));
    p.site.patch(p.spec({{&one, 0, 8, 1, repeats}, {&one, 0, 8, 1, repeats}}));
    notes_left = 3;
    run_with_state(p.site.code().value, distinct_state(1, 0));
    EXPECT_EQ(p.world.map(map).sum(1), repeats ? 6u : 2u);
    EXPECT_EQ(notes_left, repeats ? 0u : 2u);
  }
}

TEST(Detour, CountsAHitOnlyWhereAProgramRan) {
  PendingSite p;
  int map = p.world.add_per_cpu_array(1), hits = p.world.add_per_cpu_array(1);
  Body body = p.world.compile(count_program(map), as_engine(p.world.env()));
  DetourSpec spec = p.spec({{&body, 0, 8, 1}});
  spec.hits = HitCounter{TargetAddr(reinterpret_cast<uint64_t>(p.world.map(hits).value(0))),
                         p.world.map(hits).cpu_stride, kTestCpus - 1};
  p.site.patch(spec);
  for (take_answers = 0; take_answers <= 2; take_answers += 2)
    run_with_state(p.site.code().value, distinct_state(1, 0));
  EXPECT_EQ(p.world.map(hits).sum(0), 1u);
}

TEST(Detour, AReturnIsSeenAsIfItHadReturned) {
  World world;
  int map = world.add_array(4);
  Body body =
      world.compile(store_context_program(map, {regs::kIp, regs::kSp}), as_engine(world.env()));
  Site site(world, kLeaRet, 0);
  site.patch({{&body, 0, 0, 0}});
  run_with_state(site.code().value, distinct_state(1, 0));
  const uint64_t sp_at_site = *world.map(map).value(1);
  World other;
  map = other.add_array(4);
  body = other.compile(store_context_program(map, {regs::kIp, regs::kSp}), as_engine(other.env()));
  Site returning(other, kLeaRet, 0);
  returning.patch({{&body, 0, 24, 0}});
  run_with_state(returning.code().value, distinct_state(1, 0));
  EXPECT_EQ(*other.map(map).value(1), sp_at_site + 24);
  EXPECT_NE(*other.map(map).value(0), returning.address().value) << "the caller's address";
}

TEST(Detour, RefusesNotesWithoutCodeForThem) {
  World world;
  Site site(world, kLeaRet, 0);
  DetourSpec spec = site.spec({});
  spec.calls = {{CallEvent::Kind::kArm, 1}};
  auto detour = emit_detour(spec);
  ASSERT_FALSE(detour);
  EXPECT_EQ(detour.error().code, ErrorCode::kInvalid);
}

// ---- what programs see
// -----------------------------------------------------------------------------------------

TEST(Detour, EveryContextSlotIsExact) {
  World world;
  std::vector<int16_t> offsets;
  for (int16_t offset = 0; offset < regs::kSize; offset += 8) offsets.push_back(offset);
  int map = world.add_array(32);
  Body body = world.compile(store_context_program(map, offsets), as_engine(world.env()));
  Site site(world, kLeaRet, 0);
  site.patch({{&body, 0}});
  auto seen = [&](int offset) { return *world.map(map).value(static_cast<uint32_t>(offset / 8)); };
  for (uint64_t flags : {uint64_t{0}, kArithmeticFlags, kDirectionFlag | 1}) {
    CpuState state = distinct_state(flags, flags);
    run_with_state(site.code().value, state);
    constexpr int kOrder[16] = {regs::kAx,  regs::kCx,  regs::kDx,  regs::kBx,
                                regs::kSp,  regs::kBp,  regs::kSi,  regs::kDi,
                                regs::kR8,  regs::kR9,  regs::kR10, regs::kR11,
                                regs::kR12, regs::kR13, regs::kR14, regs::kR15};
    for (int i = 0; i < 16; ++i) {
      if (i == kRsp) continue;
      EXPECT_EQ(seen(kOrder[i]), state.gpr[i]) << i;
    }
    EXPECT_EQ(seen(regs::kIp), site.address().value);
    EXPECT_EQ(seen(regs::kFlags), state.flags);
    EXPECT_EQ(seen(regs::kCs), 0x33u);
    EXPECT_EQ(seen(regs::kSs), 0x2bu);
    EXPECT_EQ(seen(regs::kOrigAx), UINT64_MAX);
    // rsp at the site points to the return address of the thunk's call.
    EXPECT_EQ(seen(regs::kSp) % 8, 0u);
    EXPECT_LT(reinterpret_cast<uint64_t>(&state) - seen(regs::kSp), 4096u);
  }
}

TEST(Detour, EachSlotAloneIsExactWhereProgramsAreInlined) {
  for (int16_t offset = 0; offset < regs::kSize; offset += 8) {
    World world;
    int map = world.add_array(1);
    Body body = world.compile(store_context_program(map, {offset}), as_engine(world.env()));
    Site site(world, kLeaRet, 0);
    Detour detour = site.patch({{&body, 0}});
    EXPECT_TRUE(detour.inlined);
    CpuState before = distinct_state(7, kArithmeticFlags);
    uint64_t together = 0;
    {
      World other;
      int all = other.add_array(1);
      Body called = other.compile(store_context_program(all, {offset}), as_engine(other.env()));
      Site twin(other, kLeaRet, 0);
      DetourSpec spec = twin.spec({{&called, 0}});
      spec.inline_limit_bytes = 0;
      spec.site = site.address();
      twin.patch(spec);
      run_with_state(twin.code().value, before);
      together = *other.map(all).value(0);
    }
    expect_state_kept(site);
    run_with_state(site.code().value, before);
    EXPECT_EQ(*world.map(map).value(0), together) << offset;
  }
}

Program cookie_program(int map, uint32_t key) {
  Builder b;
  auto out = b.new_label();
  b.mov(Reg::r6, Reg::r1);
  b.store_imm(4, Reg::r10, -4, static_cast<int32_t>(key));
  b.mov(Reg::r2, Reg::r10);
  b.alu_imm(bpf::kAdd, Reg::r2, -4);
  b.load_map(Reg::r1, map);
  b.call(Helper::kMapLookupElem);
  b.jump_if_imm(bpf::kJeq, Reg::r0, 0, out);
  b.mov(Reg::r7, Reg::r0);
  b.mov(Reg::r1, Reg::r6);
  b.call(Helper::kGetAttachCookie);
  b.store(8, Reg::r7, 0, Reg::r0);
  b.bind(out);
  b.mov_imm(Reg::r0, 0);
  b.exit();
  return *std::move(b).finish();
}

TEST(Detour, RunsSeveralProgramsInOrderEachWithItsCookie) {
  World world;
  int map = world.add_array(4), counter = world.add_per_cpu_array(1, 16);
  Body first = world.compile(cookie_program(map, 0), as_engine(world.env()));
  Body busy = world.compile(busy_program(counter), as_engine(world.env()));
  Body second = world.compile(cookie_program(map, 1), as_engine(world.env()));
  Body last = world.compile(cookie_program(map, 0), as_engine(world.env()));
  Site site(world, kLeaRet, 0);
  Detour detour = site.patch({{&first, 11}, {&busy, 12}, {&second, 0xfffffffff}, {&last, 13}});
  EXPECT_FALSE(detour.inlined);
  expect_state_kept(site);
  EXPECT_EQ(*world.map(map).value(0), 13u);
  EXPECT_EQ(*world.map(map).value(1), 0xfffffffffu);
  EXPECT_EQ(world.map(counter).sum(0), 256u);
}

TEST(Detour, LaterProgramsSeeTheRegistersOfTheHit) {
  World world;
  int map = world.add_array(32), counter = world.add_per_cpu_array(1, 16);
  Body busy = world.compile(busy_program(counter), as_engine(world.env()));
  Body look =
      world.compile(store_context_program(map, {regs::kAx, regs::kDi, regs::kR11, regs::kFlags}),
                    as_engine(world.env()));
  Site site(world, kLeaRet, 0);
  site.patch({{&busy, 0}, {&look, 0}});
  CpuState state = distinct_state(9, 0x41);
  run_with_state(site.code().value, state);
  EXPECT_EQ(*world.map(map).value(0), state.gpr[kRax]);
  EXPECT_EQ(*world.map(map).value(1), state.gpr[kRdi]);
  EXPECT_EQ(*world.map(map).value(2), state.gpr[kR11]);
  EXPECT_EQ(*world.map(map).value(3), state.flags);
}

// ---- exact under threads and signals
// ---------------------------------------------------------------------------

void call_in_threads(TargetAddr code, int threads, int calls_each) {
  auto function = reinterpret_cast<void (*)()>(code.value);
  std::barrier all_ready(threads);
  std::vector<std::jthread> running;
  for (int t = 0; t < threads; ++t) {
    running.emplace_back([&all_ready, function, calls_each] {
      all_ready.arrive_and_wait();
      for (int i = 0; i < calls_each; ++i)
        asm volatile("call *%0" ::"r"(function) : "rax", "memory", "cc");
    });
  }
}

TEST(Detour, CountsExactlyInManyThreads) {
  World world;
  // The plain array is the hard case: all CPUs add to one word.
  for (int map : {world.add_per_cpu_array(1), world.add_array(1)}) {
    Body body = world.compile(count_program(map), as_engine(world.env()));
    Site site(world, kLeaRet, 0);
    site.patch({{&body, 0}});
    call_in_threads(site.code(), 6, 1'000'000);
    EXPECT_EQ(world.map(map).sum(0), 6'000'000u);
  }
}

void (*signal_target)();
std::atomic<uint64_t> signal_hits;

TEST(Detour, NestsInSignalHandlers) {
  World world;
  int map = world.add_per_cpu_array(1, 16);
  Body body = world.compile(busy_program(map), as_engine(world.env()));
  Site site(world, kLeaRet, 0);
  site.patch({{&body, 0}});
  signal_target = reinterpret_cast<void (*)()>(site.code().value);
  signal_hits = 0;
  struct sigaction action{}, old{};
  action.sa_handler = [](int) {
    asm volatile("call *%0" ::"r"(signal_target) : "rax", "memory", "cc");
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
      asm volatile("sub $128, %%rsp\n call *%1\n add $128, %%rsp"
                   : "+a"(rax)
                   : "r"(signal_target)
                   : "memory", "cc");
      ASSERT_EQ(rax, i + kLeaAdds);
      ++calls;
    }
  }
  setitimer(ITIMER_REAL, &never, nullptr);
  sigaction(SIGALRM, &old, nullptr);
  EXPECT_GT(signal_hits.load(), 10u);
  EXPECT_EQ(world.map(map).sum(0), calls + signal_hits.load());
}

// ---- bytes and bounds
// ------------------------------------------------------------------------------------------

TEST(Detour, IsOnlyTheDisplacedCodeWhereNothingIsToBeDone) {
  World world;
  Builder b;
  b.mov_imm(Reg::r0, 0);
  b.exit();
  Body body = world.compile(*std::move(b).finish(), as_engine(world.env()));
  Site site(world, kLeaRet, 0);
  Detour detour = site.patch({{&body, 0}});
  EXPECT_EQ(detour.displaced_offset, 0u);
  EXPECT_EQ(detour.bytes.size(), 12u);
  EXPECT_EQ(detour.stack_bytes, 0u);
  expect_state_kept(site);
}

TEST(Detour, DisplacedCodeBeginsWhereItSays) {
  World world;
  int map = world.add_per_cpu_array(1);
  Body body = world.compile(count_program(map), as_engine(world.env()));
  Site site(world, kLeaRet, 0);
  DetourSpec spec = site.spec({{&body, 0}});
  Detour detour = site.patch(spec);
  EXPECT_TRUE(std::equal(kLeaRet.begin(), kLeaRet.begin() + 7,
                         detour.bytes.begin() + detour.displaced_offset));
  // A thread moved there runs the displaced instruction without a hit.
  CpuState before = distinct_state(1, 0);
  CpuState after = run_with_state((spec.at + detour.displaced_offset).value, before);
  EXPECT_EQ(after.gpr[kRax], before.gpr[kRax] + kLeaAdds);
  EXPECT_EQ(world.map(map).sum(0), 0u);
}

TEST(Detour, IsNeverLongerThanItsBound) {
  World world;
  int map = world.add_array(32), counter = world.add_per_cpu_array(1, 16);
  std::vector<int16_t> offsets;
  for (int16_t offset = 0; offset < regs::kSize; offset += 8) offsets.push_back(offset);
  Body all = world.compile(store_context_program(map, offsets), as_engine(world.env()));
  Body busy = world.compile(busy_program(counter), as_engine(world.env()));
  Body cookie = world.compile(cookie_program(map, 0), as_engine(world.env()));
  Site site(world, kLeaRet, 0);
  DetourSpec spec = site.spec({{&all, 0}, {&busy, 1}, {&cookie, 2}, {&cookie, UINT64_MAX}});
  spec.cpu = CpuNumber::kLsl;
  spec.hits = HitCounter{TargetAddr(uint64_t{1} << 46), 24, 0xfff};
  EXPECT_LE(emit_detour(spec)->displaced_offset, kMaxDetourBytes + 4 * kMaxProgramCallBytes);
}

TEST(DetourRefuses, ProgramsThatNeedMoreStackThanTheSiteHas) {
  World world;
  int map = world.add_per_cpu_array(1, 16);
  JitEnv env = as_engine(world.env());
  env.helpers.at(static_cast<int32_t>(Helper::kKtimeGetNs)).stack_bytes = 400;
  Body body = world.compile(busy_program(map), env);
  Site site(world, kLeaRet, 0);
  DetourSpec spec = site.spec({{&body, 0}});
  EXPECT_TRUE(emit_detour(spec));
  spec.stack_limit_bytes = 700;
  auto detour = emit_detour(spec);
  ASSERT_FALSE(detour);
  EXPECT_EQ(detour.error().code, ErrorCode::kUnsafe);
  EXPECT_NE(detour.error().message.find("where 700 may be used"), std::string::npos)
      << detour.error().message;
}

TEST(DetourRefuses, ABodyOutOfReach) {
  World world, far(CodePage::Where::kFar);
  int map = world.add_per_cpu_array(1);
  Body body = world.compile(count_program(map), as_engine(world.env()));
  body.base = far.page.address();
  Site site(world, kLeaRet, 0);
  DetourSpec spec = site.spec({{&body, 0}});
  spec.inline_limit_bytes = 0;
  EXPECT_FALSE(emit_detour(spec));
}

TEST(DetourRefuses, MissingParts) {
  DetourSpec spec;
  EXPECT_FALSE(emit_detour(spec));
  spec.displaced = [](TargetAddr) -> Result<std::vector<uint8_t>> {
    return std::vector<uint8_t>{};
  };
  spec.programs = {{nullptr, 0}};
  EXPECT_FALSE(emit_detour(spec));
}

TEST(Detour, PassesOnWhyTheDisplacedCodeCannotBeMade) {
  DetourSpec spec;
  spec.at = spec.site = TargetAddr(0x401000);
  spec.displaced = [](TargetAddr) -> Result<std::vector<uint8_t>> {
    return fail(ErrorCode::kUnsupported, "xbegin");
  };
  auto detour = emit_detour(spec);
  ASSERT_FALSE(detour);
  EXPECT_EQ(detour.error().message, "displaced code of 0x401000: xbegin");
}

// ---- override_return
// --------------------------------------------------------------------------------------------

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

DetourSpec at_a_start(DetourSpec spec) {
  spec.at_entry = spec.may_override = true;
  return spec;
}

/// lea 0x11223344(%rax),%rax; xor %edi,%edi; ret: shows whether the function ran.
const std::vector<uint8_t> kLeaXorRet = {0x48, 0x8d, 0x80, 0x44, 0x33,
                                         0x22, 0x11, 0x31, 0xff, 0xc3};

TEST(DetourOverride, ReturnsTheValueAndKeepsEveryOtherRegister) {
  for (uint32_t inline_limit : {0u, 4096u}) {
    for (bool flags_live : {true, false}) {
      World world;
      int map = world.add_per_cpu_array(1);
      Body body = world.compile(override_program(), as_engine(world.env()));
      Body counter = world.compile(count_program(map), as_engine(world.env()));
      Site site(world, kLeaXorRet, 0);
      DetourSpec spec = at_a_start(site.spec({{&body, 0}}));
      if (inline_limit == 0) spec.programs.push_back({&counter, 1});
      spec.inline_limit_bytes = inline_limit;
      spec.flags_live = flags_live;
      site.patch(spec);
      for (uint64_t i = 0; i < 64; ++i) {
        CpuState before = distinct_state(i, 0);
        before.gpr[kRdi] = i;
        CpuState after = run_with_state(site.code().value, before, {}, i % 2 * 8);
        if (i % 2 == 1) {
          before.gpr[kRax] = before.gpr[kRsi];
        } else {
          before.gpr[kRax] += kLeaAdds;
          before.gpr[kRdi] = 0;
        }
        ASSERT_EQ(after.gpr, before.gpr) << i;
        ASSERT_EQ(after.xmm, before.xmm) << i;
      }
      EXPECT_EQ(world.map(map).sum(0), inline_limit == 0 ? 64u : 0u) << "the other runs, too";
    }
  }
}

TEST(DetourOverride, ThatDoesNotHappenKeepsEveryRegisterAndFlag) {
  World world;
  Body body = world.compile(override_program(), as_engine(world.env()));
  Site site(world, kLeaRet, 0);
  site.patch(at_a_start(site.spec({{&body, 0}})));
  for (uint64_t flags = 0; flags < 64; ++flags) {
    uint64_t arithmetic = (flags & 1) | (flags >> 1 & 1) << 2 | (flags >> 2 & 1) << 4 |
                          (flags >> 3 & 1) << 6 | (flags >> 4 & 1) << 7 | (flags >> 5 & 1) << 11;
    CpuState before = distinct_state(flags, arithmetic);
    before.gpr[kRdi] &= ~uint64_t{1};
    CpuState after = run_with_state(site.code().value, before);
    before.gpr[kRax] += kLeaAdds;
    ASSERT_EQ(after.gpr, before.gpr);
    ASSERT_EQ(after.flags, before.flags);
  }
}

TEST(DetourOverride, IsForgottenByTheNextHit) {
  World world;
  Body body = world.compile(override_program(), as_engine(world.env()));
  Site site(world, kLeaRet, 0);
  site.patch(at_a_start(site.spec({{&body, 0}})));
  CpuState odd = distinct_state(1, 0), even = distinct_state(2, 0);
  odd.gpr[kRdi] = 1;
  even.gpr[kRdi] = 2;
  EXPECT_EQ(run_with_state(site.code().value, odd).gpr[kRax], odd.gpr[kRsi]);
  EXPECT_EQ(run_with_state(site.code().value, even).gpr[kRax], even.gpr[kRax] + kLeaAdds);
}

TEST(DetourOverride, IsRefusedWhereTheFunctionMayHaveBegun) {
  World world;
  Body body = world.compile(override_program(), as_engine(world.env()));
  Site site(world, kLeaRet, 0);
  DetourSpec spec = site.spec({{&body, 0}});
  spec.at_entry = true;  // likely is not enough
  auto detour = emit_detour(spec);
  ASSERT_FALSE(detour);
  EXPECT_EQ(detour.error().code, ErrorCode::kUnsafe);
  EXPECT_NE(detour.error().message.find("override()"), std::string::npos);
}

// ---- gates
// --------------------------------------------------------------------------------------------------

void store_word(const DetourSpec& spec, const Gate& gate, uint64_t word) {
  __atomic_store_n(reinterpret_cast<uint64_t*>((spec.at + gate.offset).value), word,
                   __ATOMIC_RELEASE);
}

/// Where instructions begin in the detour's code before its displaced instructions.
std::vector<size_t> instruction_starts(std::span<const uint8_t> code) {
  std::vector<size_t> starts;
  for (size_t at = 0; at < code.size();) {
    starts.push_back(at);
    auto insn = x86::decode(code.subspan(at));
    if (!insn) break;
    at += insn->length;
  }
  return starts;
}

TEST(DetourGate, SkipsEverythingAndKeepsEveryRegisterAndFlag) {
  for (uint32_t inline_limit : {0u, 4096u}) {
    World world;
    int map = world.add_per_cpu_array(1, 16), hits = world.add_per_cpu_array(1);
    Body body = world.compile(busy_program(map), as_engine(world.env()));
    Site site(world, kLeaRet, 0);
    DetourSpec spec = site.spec({{&body, 0}});
    spec.inline_limit_bytes = inline_limit;
    spec.hits = HitCounter{TargetAddr(reinterpret_cast<uint64_t>(world.map(hits).value(0))),
                           world.map(hits).cpu_stride, kTestCpus - 1};
    Detour detour = site.patch(spec);
    ASSERT_EQ(detour.gates.size(), 1u);
    store_word(spec, detour.gates[0], detour.gates[0].closed);
    expect_state_kept(site);
    EXPECT_EQ(world.map(map).sum(0), 0u);
    EXPECT_EQ(world.map(hits).sum(0), 0u);
    store_word(spec, detour.gates[0], detour.gates[0].open);
    expect_state_kept(site);
    EXPECT_EQ(world.map(map).sum(0), 256u);
    EXPECT_EQ(world.map(hits).sum(0), 256u);
  }
}

TEST(DetourGate, OfEachProgramSkipsThatProgram) {
  for (bool counts_hits : {false, true}) {
    World world;
    int map = world.add_per_cpu_array(3), hits = world.add_per_cpu_array(1);
    std::vector<Body> bodies;
    std::vector<DetourProgram> programs;
    for (uint32_t i = 0; i < 3; ++i)
      bodies.push_back(world.compile(count_program(map, i), as_engine(world.env())));
    for (const Body& body : bodies) programs.push_back({&body, 0});
    Site site(world, kLeaRet, 0);
    DetourSpec spec = site.spec(programs);
    if (counts_hits)
      spec.hits = HitCounter{TargetAddr(reinterpret_cast<uint64_t>(world.map(hits).value(0))),
                             world.map(hits).cpu_stride, kTestCpus - 1};
    Detour detour = site.patch(spec);
    ASSERT_EQ(detour.gates.size(), 4u) << "one for all, one each";
    for (const Gate& gate : detour.gates) {
      if (gate.programs == 1 && gate.first_program == 1) store_word(spec, gate, gate.closed);
    }
    expect_state_kept(site);
    EXPECT_EQ(world.map(map).sum(0), 256u);
    EXPECT_EQ(world.map(map).sum(1), 0u);
    EXPECT_EQ(world.map(map).sum(2), 256u);
    EXPECT_EQ(world.map(hits).sum(0), counts_hits ? 256u : 0u);
  }
}

/// Else a call that began while its probe was off would be told later, or one that began before
/// never be forgotten.
TEST(DetourGate, LeavesNotesOfCallsToBeMadeAndTaken) {
  PendingSite p;
  int map = p.world.add_per_cpu_array(2);
  Body always = p.world.compile(count_program(map, 0), as_engine(p.world.env()));
  Body noted_only = p.world.compile(count_program(map, 1), as_engine(p.world.env()));
  DetourSpec spec = p.spec({{&always, 0, 0, 0}, {&noted_only, 0, 8, 1}});
  spec.calls = {{CallEvent::Kind::kNote, 3}};
  Detour detour = p.site.patch(spec);
  ASSERT_EQ(detour.gates.size(), 2u);
  for (const Gate& gate : detour.gates) store_word(spec, gate, gate.closed);
  take_answers = 1 << 1;
  expect_state_kept(p.site);
  EXPECT_EQ(noted.size(), 256u);
  EXPECT_EQ(asked.size(), 256u);
  EXPECT_EQ(p.world.map(map).sum(0) + p.world.map(map).sum(1), 0u);
  for (const Gate& gate : detour.gates) store_word(spec, gate, gate.open);
  run_with_state(p.site.code().value, distinct_state(1, 0));
  EXPECT_EQ(p.world.map(map).sum(0), 1u);
  EXPECT_EQ(p.world.map(map).sum(1), 1u);
}

/// Wherever the detour lies: a word is stored by one aligned store, and no thread stands where an
/// instruction no longer begins.
TEST(DetourGate, IsOneAlignedWordAndMovesNoInstruction) {
  PendingSite p;
  int map = p.world.add_per_cpu_array(4);
  Body body = p.world.compile(count_program(map), as_engine(p.world.env()));
  size_t gates = 0;
  for (uint64_t shift = 0; shift < 16; ++shift) {
    for (uint32_t number : {0u, 1u}) {
      for (uint64_t cookie : {uint64_t{0}, uint64_t{1} << 40}) {
        DetourSpec spec = p.spec({{&body, 0, 0, 0}, {&body, cookie, 0, 0}, {&body, 0, 8, number}});
        spec.at = spec.at + shift;
        auto detour = emit_detour(spec);
        ASSERT_TRUE(detour) << detour.error().message;
        std::vector<uint8_t> code(detour->bytes.begin(),
                                  detour->bytes.begin() + detour->displaced_offset);
        const auto starts = instruction_starts(code);
        for (const Gate& gate : detour->gates) {
          EXPECT_EQ((spec.at + gate.offset).value % 8, 0u);
          ASSERT_LE(gate.offset + 8, code.size());
          EXPECT_EQ(std::memcmp(&code[gate.offset], &gate.open, 8), 0);
          auto closed = code;
          std::memcpy(&closed[gate.offset], &gate.closed, 8);
          EXPECT_NE(closed, code);
          EXPECT_EQ(instruction_starts(closed), starts) << "shift " << shift;
          ++gates;
        }
      }
    }
  }
  EXPECT_GT(gates, 64u);
}

// ---- figures: printed, not asserted
// ----------------------------------------------------------------------------

double ns_per_call(TargetAddr code) {
  double best = 1e9;
  for (int round = 0; round < 7; ++round) {
    constexpr int kCalls = 200'000;
    auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < kCalls; ++i)
      asm volatile("call *%0" ::"r"(code.value), "D"(5) : "rax", "memory", "cc");
    std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
    best = std::min(best, took.count() / kCalls);
  }
  return best;
}

/// The site in a function that lies beside its maps, as in a target.
void measure(const char* name,
             double bare,
             const std::function<Program(int)>& make,
             bool inline_lookups,
             uint32_t inline_limit,
             bool flags_live = true) {
  World world;
  int map = world.add_per_cpu_array(64);
  std::vector<uint8_t> storage(world.map(map).storage.size());
  TargetAddr at = world.page.put(storage);
  JitEnv env = as_engine(world.env());
  env.inline_lookups = inline_lookups;
  env.maps[map].array->storage = at;
  env.base = world.page.next();
  Body body = world.compile(make(map), env);
  Site site(world, kLeaRet, 0);
  DetourSpec spec = site.spec({{&body, 0}});
  spec.inline_limit_bytes = inline_limit;
  spec.flags_live = flags_live;
  site.patch(spec);
  std::printf("  %-58s +%.2f ns\n", name, ns_per_call(site.code()) - bare);
}

void measure_off(double bare) {
  World world;
  int map = world.add_per_cpu_array(64);
  Body body = world.compile(count_program(map), as_engine(world.env()));
  Site site(world, kLeaRet, 0);
  DetourSpec spec = site.spec({{&body, 0}});
  Detour detour = site.patch(spec);
  auto start = std::chrono::steady_clock::now();
  constexpr int kTimes = 100'000;
  for (int i = 0; i < kTimes; i++) {
    const Gate& gate = detour.gates[0];
    store_word(spec, gate, i % 2 != 0 ? gate.closed : gate.open);
  }
  std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
  std::printf("  %-58s %.2f ns\n", "a gate's store", took.count() / kTimes);
  std::printf("  %-58s +%.2f ns\n", "switched off", ns_per_call(site.code()) - bare);
}

TEST(DetourFigures, NanosecondsAddedToACall) {
  World world;
  Site bare_site(world, kLeaRet, 0);
  double bare = ns_per_call(bare_site.code());
  std::printf("  bare call %.2f ns\n", bare);
  auto empty = [](int) {
    Builder b;
    b.mov_imm(Reg::r0, 0);
    b.exit();
    return *std::move(b).finish();
  };
  auto count = [](int map) { return count_program(map); };
  auto hist = [](int map) { return indexed_count_program(map, regs::kDi); };
  auto argument = [](int map) { return store_context_program(map, {regs::kDi}); };
  measure("empty program", bare, empty, true, 256);
  measure("per-CPU counter, inlined", bare, count, true, 256);
  measure("per-CPU counter, inlined, flags dead", bare, count, true, 256, false);
  measure("per-CPU counter, body called", bare, count, true, 0);
  measure("per-CPU counter, lookup helper called", bare, count, false, 0);
  measure("per-CPU array, key from a register, inlined", bare, hist, true, 256);
  measure("argument stored to a per-CPU array, inlined", bare, argument, true, 256);
  measure_off(bare);
}

}  // namespace
}  // namespace spile::jit
