#include "user_engine/estimate.h"

#include <gtest/gtest.h>

#include "bpf/builder.h"
#include "user_engine/code_image.h"

namespace spile::user_engine {
namespace {

using bpf::Builder;
using bpf::Helper;
using bpf::Reg;

bundle::Bundle with_program(bpf::Program code) {
  bundle::Bundle bundle;
  bundle.programs.push_back(
      {.name = "uprobe_0", .code = std::move(code), .context = bundle::ContextKind::kRegs});
  bundle.probes.push_back({.kind = bundle::ProbeKind::kUprobe, .program = 0});
  return bundle;
}

Result<double> estimate(const bundle::Bundle& bundle) {
  std::vector<bpf::Analysis> analyses;
  for (const auto& program : bundle.programs) {
    auto analysis = bpf::check(program.code, check_env(bundle, program));
    EXPECT_TRUE(analysis) << analysis.error().message;
    if (analysis) analyses.push_back(std::move(*analysis));
  }
  return estimate_hit_ns(bundle, analyses);
}

bpf::Program rounds(int count) {
  Builder b;
  auto again = b.new_label();
  b.mov_imm(Reg::r6, count);
  b.bind(again);
  b.call(Helper::kKtimeGetNs);
  b.store(8, Reg::r10, -8, Reg::r0);
  b.alu_imm(bpf::kSub, Reg::r6, 1);
  b.jump_if_imm(bpf::kJne, Reg::r6, 0, again);
  b.mov_imm(Reg::r0, 0);
  b.exit();
  return *std::move(b).finish();
}

TEST(Estimate, OfMoreWorkIsMore) {
  auto little = estimate(with_program(rounds(1))), much = estimate(with_program(rounds(2000)));
  ASSERT_TRUE(little) << little.error().message;
  ASSERT_TRUE(much) << much.error().message;
  EXPECT_GT(*little, 0);
  EXPECT_GT(*much, *little);
}

TEST(Estimate, OfAProgramThatOverridesEnds) {
  Builder b;
  b.mov_imm(Reg::r2, 5);
  b.call(Helper::kOverrideReturn);
  b.mov_imm(Reg::r0, 0);
  b.exit();
  auto ns = estimate(with_program(*std::move(b).finish()));
  ASSERT_TRUE(ns) << ns.error().message;
  EXPECT_GT(*ns, 0);
}

TEST(Estimate, WithoutUprobesIsNone) {
  bundle::Bundle bundle = with_program(rounds(1));
  bundle.probes[0].kind = bundle::ProbeKind::kBegin;
  auto ns = estimate(bundle);
  ASSERT_TRUE(ns);
  EXPECT_EQ(*ns, 0);
}

}  // namespace
}  // namespace spile::user_engine
