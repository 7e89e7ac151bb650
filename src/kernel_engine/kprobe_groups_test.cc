#include "kernel_engine/kprobe_groups.h"

#include <gtest/gtest.h>

#include "bpf/builder.h"
#include "bpf/interpreter.h"
#include "kernel_engine/session_program.h"

namespace spile::kernel_engine {
namespace {

using bpf::Builder;
using bpf::Helper;
using bpf::Reg;
using bundle::Bundle;
using bundle::ProbeKind;

bundle::Probe probe(ProbeKind kind, const std::string& symbol, int program) {
  bundle::Probe made{.kind = kind, .name = symbol, .symbol = symbol};
  made.program = program;
  return made;
}

/// r0 = a register of the context, or a cookie.
bpf::Program reading(int offset) {
  Builder b;
  b.load(8, Reg::r0, Reg::r1, static_cast<int16_t>(offset));
  b.exit();
  return *std::move(b).finish();
}

TEST(KprobeGroups, AProgramIsAGroup) {
  Bundle bundle;
  bundle.probes = {probe(ProbeKind::kKprobe, "a", 0), probe(ProbeKind::kBegin, "", 1),
                   probe(ProbeKind::kKretprobe, "a", 2), probe(ProbeKind::kKprobe, "b", 0)};
  auto groups = group_kprobes(bundle);
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_EQ(groups[0].probes, std::vector<size_t>({0, 3}));
  EXPECT_EQ(groups[1].moment, Moment::kReturn);
  EXPECT_FALSE(groups[0].partner) << "other functions return than are entered";
}

TEST(KprobeGroups, EntryAndReturnOfTheSameFunctionsArePartners) {
  Bundle bundle;
  bundle.probes = {probe(ProbeKind::kKprobe, "a", 0), probe(ProbeKind::kKprobe, "b", 0),
                   probe(ProbeKind::kKretprobe, "a", 1), probe(ProbeKind::kKretprobe, "b", 1)};
  auto groups = group_kprobes(bundle);
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_EQ(groups[0].partner, 1u);
  EXPECT_EQ(groups[1].partner, 0u);
  bundle.probes[1].offset = 8;
  EXPECT_FALSE(group_kprobes(bundle)[0].partner) << "a place inside a function has no return";
}

TEST(KprobeGroups, OneReturnHasOnePartner) {
  Bundle bundle;
  bundle.probes = {probe(ProbeKind::kKprobe, "a", 0), probe(ProbeKind::kKprobe, "a", 1),
                   probe(ProbeKind::kKretprobe, "a", 2)};
  auto groups = group_kprobes(bundle);
  EXPECT_EQ(groups[0].partner, 2u);
  EXPECT_FALSE(groups[1].partner);
}

TEST(KprobeGroups, FprobeKeepsArgumentsAlone) {
  Bundle bundle;
  namespace regs = bpf::x86_64_regs;
  EXPECT_TRUE(reads_only_arguments(bundle, {.name = "p", .code = reading(regs::kDi)}));
  EXPECT_FALSE(reads_only_arguments(bundle, {.name = "p", .code = reading(regs::kR12)}));
  EXPECT_FALSE(reads_only_arguments(bundle, {.name = "p", .code = reading(regs::kFlags)}));
}

TEST(KprobeGroups, NamesAreTheKernels) {
  auto one = probe(ProbeKind::kKprobe, "f", 0);
  EXPECT_EQ(kernel_name(one), "f");
  EXPECT_TRUE(is_plain_function(one));
  one.module = "m";
  EXPECT_EQ(kernel_name(one), "m:f");
  EXPECT_FALSE(is_plain_function(one)) << "f of another module is another function";
  one.address = 5;
  EXPECT_EQ(kernel_name(one), "");
}

TEST(KprobeGroups, FunctionsOfModulesAreApart) {
  Bundle bundle;
  bundle.probes = {probe(ProbeKind::kKprobe, "a", 0), probe(ProbeKind::kKprobe, "b", 0),
                   probe(ProbeKind::kKprobe, "c", 0)};
  bundle.probes[1].module = "m";
  auto [plain, others] = split_plain(bundle, group_kprobes(bundle)[0]);
  EXPECT_EQ(plain.probes, std::vector<size_t>({0, 2}));
  EXPECT_EQ(others.probes, std::vector<size_t>({1}));
}

TEST(Cookie, BecomesAConstant) {
  Builder b;
  b.call(Helper::kGetAttachCookie);
  b.exit();
  auto program = *std::move(b).finish();
  EXPECT_TRUE(calls(program, Helper::kGetAttachCookie));
  fix_cookie(program, 42);
  EXPECT_FALSE(calls(program, Helper::kGetAttachCookie));
  auto result = bpf::run(program, 0, {});
  ASSERT_TRUE(result) << result.error().message;
  EXPECT_EQ(result->r0, 42u);
}

/// The joined program with the kernel's answer put in place of its call.
uint64_t run_session(bool is_return) {
  Builder entry, at_return;
  auto skip = entry.new_label();
  entry.load(8, Reg::r0, Reg::r1, 0);
  entry.jump_if_imm(bpf::kJne, Reg::r0, 0, skip);
  entry.mov_imm(Reg::r0, 100);
  entry.bind(skip);
  entry.exit();
  at_return.load(8, Reg::r0, Reg::r1, 0);
  at_return.alu_imm(bpf::kAdd, Reg::r0, 1000);
  at_return.exit();
  auto joined = join_session(*std::move(entry).finish(), *std::move(at_return).finish(), 77);
  EXPECT_EQ(joined[1].src(), kPseudoKfuncCall);
  EXPECT_EQ(joined[1].imm, 77);
  // The upper bits of a bool are anything.
  joined[1] = {bpf::kClassAlu64 | bpf::kMov, 0, 0, is_return ? 0x101 : 0x100};
  const uint64_t context[] = {7};
  auto result = bpf::run(joined, reinterpret_cast<uint64_t>(context), {});
  EXPECT_TRUE(result) << (result ? "" : result.error().message);
  return result ? result->r0 : 0;
}

TEST(Session, RunsTheEntryProgramAtTheEntry) {
  EXPECT_EQ(run_session(false), 7u);
}
TEST(Session, RunsTheReturnProgramAtTheReturn) {
  EXPECT_EQ(run_session(true), 1007u);
}

}  // namespace
}  // namespace spile::kernel_engine
