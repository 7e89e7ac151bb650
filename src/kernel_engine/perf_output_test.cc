#include "kernel_engine/perf_output.h"

#include <gtest/gtest.h>

#include "bpf/builder.h"
#include "bpf/disasm.h"

namespace spile::kernel_engine {
namespace {

using bpf::Builder;
using bpf::Helper;
using bpf::Reg;

constexpr int kRing = 3, kScratch = 7, kCounters = 1;

/// One record as the code generator sends it; what is lost is counted.
void send(Builder& code, int32_t size) {
  const auto reserved = code.new_label(), done = code.new_label();
  code.load_map(Reg::r1, kRing);
  code.mov_imm(Reg::r2, size);
  code.mov_imm(Reg::r3, 0);
  code.call(Helper::kRingbufReserve);
  code.jump_if_imm(bpf::kJne, Reg::r0, 0, reserved);
  code.load_map(Reg::r1, kCounters);
  code.jump(done);
  code.bind(reserved);
  code.mov(Reg::r7, Reg::r0);
  code.store_imm(4, Reg::r7, 4, size);
  code.mov(Reg::r1, Reg::r7);
  code.mov_imm(Reg::r2, 0);
  code.call(Helper::kRingbufSubmit);
  code.bind(done);
}

bpf::Program finish(Builder code) {
  code.mov_imm(Reg::r0, 0);
  code.exit();
  auto program = std::move(code).finish();
  EXPECT_TRUE(program);
  return std::move(*program);
}

TEST(PerfOutput, LeavesOtherProgramsAlone) {
  Builder code;
  const bpf::Program program = finish(std::move(code));
  EXPECT_FALSE(sends_records(program));
  EXPECT_EQ(*with_perf_output(program, kRing, kScratch, Claim::kExchange), program);
}

TEST(PerfOutput, MakesRecordsInTheScratchMapAndCopiesThemOut) {
  Builder code;
  send(code, 24);
  auto out = with_perf_output(finish(std::move(code)), kRing, kScratch, Claim::kExchange);
  ASSERT_TRUE(out) << out.error().message;
  EXPECT_FALSE(sends_records(*out));
  EXPECT_FALSE(std::ranges::any_of(*out, [](const bpf::Insn& insn) {
    return insn.code == (bpf::kClassJmp | bpf::kCall) && insn.imm == 132;
  }));
  const bpf::Program& p = *out;
  // 0: *(u64*)(r10-512) = r1
  EXPECT_EQ(p[0].off, -512);
  // The look for the scratch value, then the test that was there.
  const auto lookup = std::ranges::find_if(
      p, [](const bpf::Insn& insn) { return insn.code == 0x85 && insn.imm == 1; });
  ASSERT_NE(lookup, p.end());
  EXPECT_EQ((lookup - 2)->imm, kScratch);
  const auto test = lookup + 8;
  EXPECT_EQ(lookup + 2 + (lookup + 1)->off, test) << "no value: as no room";
  EXPECT_EQ((lookup + 3)->imm, bpf::kXchg);
  EXPECT_EQ(lookup + 5 + (lookup + 4)->off, test - 1) << "free: r0 becomes the record";
  EXPECT_EQ((lookup + 5)->imm, 0) << "taken: as no room";
  EXPECT_EQ(lookup + 7 + (lookup + 6)->off, test);
  EXPECT_EQ((test - 1)->imm, 8);
  EXPECT_EQ(test->code, bpf::kClassJmp | bpf::kJne);
  EXPECT_EQ((test + 1 + test->off)->dst(), 7) << "filled: r7 = r0";
  // perf_event_output of 24 bytes; what fails is lost.
  const auto output = std::ranges::find_if(
      p, [](const bpf::Insn& insn) { return insn.code == 0x85 && insn.imm == 25; });
  ASSERT_NE(output, p.end());
  EXPECT_EQ((output - 3)->imm, kRing);
  EXPECT_EQ((output - 5)->imm, 24);
  EXPECT_EQ((output + 2)->off, -8) << "given back";
  const auto full = output + 3;
  EXPECT_EQ(full->code, bpf::kClassJmp | bpf::kJne);
  EXPECT_EQ(full + 1 + full->off, test + 1) << "to where the counting of what is lost begins";
}

/// Kernels without the exchange.
TEST(PerfOutput, ClaimsByALookAndAStore) {
  Builder code;
  send(code, 24);
  auto out = with_perf_output(finish(std::move(code)), kRing, kScratch, Claim::kLookAndStore);
  ASSERT_TRUE(out) << out.error().message;
  const auto lookup = std::ranges::find_if(
      *out, [](const bpf::Insn& insn) { return insn.code == 0x85 && insn.imm == 1; });
  const auto test = lookup + 8;
  EXPECT_EQ(test->code, bpf::kClassJmp | bpf::kJne);
  EXPECT_EQ(lookup + 2 + (lookup + 1)->off, test) << "no value: as no room";
  EXPECT_EQ(lookup + 4 + (lookup + 3)->off, lookup + 6) << "free: taken = 1";
  EXPECT_EQ((lookup + 6)->imm, 1);
  EXPECT_EQ((lookup + 7)->imm, 8);
  EXPECT_EQ(lookup + 6 + (lookup + 5)->off, test) << "taken: as no room";
}

TEST(PerfOutput, KeepsJumpsOverAndBetweenRecords) {
  Builder code;
  const auto end = code.new_label();
  code.jump_if_imm(bpf::kJeq, Reg::r1, 0, end);
  send(code, 16);
  send(code, 4000);
  code.bind(end);
  auto out = with_perf_output(finish(std::move(code)), kRing, kScratch, Claim::kExchange);
  ASSERT_TRUE(out);
  const bpf::Program& p = *out;
  EXPECT_EQ(1 + 1 + p[1].off, static_cast<int>(p.size()) - 2) << "over both, to r0 = 0";
  std::vector<int32_t> sizes;
  for (size_t i = 5; i < p.size(); i++) {
    if (p[i].code == 0x85 && p[i].imm == 25) sizes.push_back(p[i - 5].imm);
  }
  EXPECT_EQ(sizes, std::vector<int32_t>({16, 4000}));
}

TEST(PerfOutput, RefusesAProgramThatNeedsItsWholeStack) {
  Builder code;
  code.store_imm(8, Reg::r10, -496, 0);
  send(code, 16);
  EXPECT_TRUE(with_perf_output(finish(code), kRing, kScratch, Claim::kExchange));
  code.store_imm(8, Reg::r10, -504, 0);
  EXPECT_FALSE(with_perf_output(finish(code), kRing, kScratch, Claim::kExchange));
}

TEST(PerfOutput, RefusesToGuessAtOtherForms) {
  Builder code;
  code.load_map(Reg::r1, kRing);
  code.mov_imm(Reg::r2, 16);
  code.mov_imm(Reg::r3, 0);
  code.call(Helper::kRingbufReserve);
  code.mov(Reg::r1, Reg::r0);
  code.call(Helper::kRingbufSubmit);
  EXPECT_FALSE(with_perf_output(finish(std::move(code)), kRing, kScratch, Claim::kExchange));
}

}  // namespace
}  // namespace spile::kernel_engine
