// What is moved is what would be made there.
#include <gtest/gtest.h>

#include "user_engine/jit/detour.h"
#include "user_engine/jit/test_site.h"

namespace spile::jit {
namespace {

using namespace testing;
using bpf::Builder;
using bpf::Helper;
using bpf::Program;
using bpf::Reg;
namespace regs = bpf::x86_64_regs;

/// Counts under a key that the hit decides: its cookie, its ip, or nothing of it.
Program program_that_reads(int map, std::string_view what) {
  Builder b;
  auto out = b.new_label();
  b.mov(Reg::r6, Reg::r1);
  b.mov_imm(Reg::r0, 0);
  if (what == "cookie") b.call(Helper::kGetAttachCookie);
  if (what == "ip") b.load(8, Reg::r0, Reg::r6, regs::kIp);
  if (what == "sp") b.load(8, Reg::r0, Reg::r6, regs::kSp);
  b.alu_imm(bpf::kAnd, Reg::r0, 7);
  b.store(4, Reg::r10, -4, Reg::r0);
  b.load_map(Reg::r1, map);
  b.mov(Reg::r2, Reg::r10);
  b.alu_imm(bpf::kAdd, Reg::r2, -4);
  b.call(Helper::kMapLookupElem);
  b.jump_if_imm(bpf::kJeq, Reg::r0, 0, out);
  b.mov_imm(Reg::r1, 1);
  b.atomic(8, bpf::kAtomicAdd, Reg::r0, 0, Reg::r1);
  b.bind(out);
  b.mov_imm(Reg::r0, 0);
  b.exit();
  return std::move(b).finish().value();
}

/// What making the spec's detour would be asked to do differently.
struct Change {
  const char* name;
  void (*make)(DetourSpec&);
};
constexpr Change kChanges[] = {
    {"nothing", [](DetourSpec&) {}},
    {"another place", [](DetourSpec& s) { s.at += 4096; }},
    {"a place in the next word", [](DetourSpec& s) { s.at += 8; }},
    {"a place inside a word", [](DetourSpec& s) { s.at += 3; }},
    {"another site", [](DetourSpec& s) { s.site += 0x123; }},
    {"another cookie", [](DetourSpec& s) { s.programs[0].cookie += 3; }},
    {"live flags", [](DetourSpec& s) { s.flags_live = !s.flags_live; }},
    {"a function's entry", [](DetourSpec& s) { s.at_entry = !s.at_entry; }},
    {"never inlined", [](DetourSpec& s) { s.inline_limit_bytes = 0; }},
    {"behind a ret", [](DetourSpec& s) { s.programs[0].popped_bytes = 8; }},
    {"twice", [](DetourSpec& s) { s.programs.push_back(s.programs[0]); }},
    {"not counted", [](DetourSpec& s) { s.hits.reset(); }},
    {"counted elsewhere", [](DetourSpec& s) { s.hits->storage += 64; }},
    {"without the CPU's number", [](DetourSpec& s) { s.cpu = CpuNumber::kLsl; }},
};

class DetourMaker_ : public ::testing::TestWithParam<const char*> {};

/// Each detour is made by one maker right after another that differs from it in one thing.
TEST_P(DetourMaker_, MakesTheSameBytesAsOneAlone) {
  World world;
  int map = world.add_per_cpu_array(8);
  Body body = world.compile(program_that_reads(map, GetParam()), as_engine(world.env()));
  Site site(world, kLeaRet, 0);
  DetourSpec first = site.spec({{&body, 2}});
  first.at = TargetAddr((first.at.value + 15) & ~uint64_t{15});
  first.hits = HitCounter{TargetAddr(reinterpret_cast<uint64_t>(world.map(map).value(0))), 64, 7};
  DetourMaker maker;
  for (const Change& change : kChanges) {
    for (const Change& then : kChanges) {
      if (std::string_view(change.name) == "not counted") continue;
      SCOPED_TRACE(std::string(change.name) + ", then " + then.name);
      DetourSpec spec = first;
      change.make(spec);
      ASSERT_TRUE(maker.make(spec));
      then.make(spec);
      const auto made = maker.make(spec), alone = emit_detour(spec);
      ASSERT_TRUE(made);
      ASSERT_TRUE(alone);
      ASSERT_EQ(made->bytes, alone->bytes);
      EXPECT_EQ(made->gates, alone->gates);
      EXPECT_FALSE(made->gates.empty());
      EXPECT_EQ(made->displaced_offset, alone->displaced_offset);
      EXPECT_EQ(made->stack_bytes, alone->stack_bytes);
      EXPECT_EQ(made->inlined, alone->inlined);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(, DetourMaker_, ::testing::Values("nothing", "cookie", "ip", "sp"));

/// A rel32 that does not reach is made anew in another form, or refused; never cut off.
TEST(DetourMaker, RefusesAPlaceOutOfReachAsOneAloneDoes) {
  World world;
  int map = world.add_per_cpu_array(8);
  Body body = world.compile(program_that_reads(map, "nothing"), as_engine(world.env()));
  Site site(world, kLeaRet, 0);
  DetourSpec spec = site.spec({{&body, 0}});
  spec.inline_limit_bytes = 0;
  DetourMaker maker;
  ASSERT_TRUE(maker.make(spec));
  spec.at += uint64_t{1} << 40;
  spec.displaced = [](TargetAddr) -> Result<std::vector<uint8_t>> {
    return std::vector<uint8_t>(1);
  };
  auto far = maker.make(spec), alone = emit_detour(spec);
  ASSERT_FALSE(alone);
  ASSERT_FALSE(far);
  EXPECT_EQ(far.error().message, alone.error().message);
}

}  // namespace
}  // namespace spile::jit
