// Probes that only the kernel has: counters, clocks, watchpoints, and what BTF describes.
#include <gtest/gtest.h>

#include "lang/sema/analyze.h"
#include "lang/sema/fake_world.h"
#include "lang/sema/typed_print.h"
#include "lang/syntax/parser.h"

namespace spile::lang {
namespace {

struct Outcome {
  std::optional<typed::Program> program;
  std::string text;
};

Outcome analyze_script(const std::string& script) {
  Source source("stdin", script);
  Diagnostics diagnostics;
  ast::Program program = parse(source, {}, diagnostics);
  FakeWorld world;
  Outcome outcome;
  if (!diagnostics.has_errors()) outcome.program = analyze(program, world, {}, diagnostics);
  outcome.text = render(source, diagnostics);
  return outcome;
}

void expect_refused(const std::string& script, const std::string& message) {
  Outcome outcome = analyze_script(script);
  EXPECT_FALSE(outcome.program.has_value()) << script;
  EXPECT_NE(outcome.text.find(message), std::string::npos) << script << "\n" << outcome.text;
}

/// The probes of a script; empty where it is refused.
std::vector<bundle::Probe> probes_of(const std::string& script) {
  Outcome outcome = analyze_script(script);
  EXPECT_TRUE(outcome.program.has_value()) << script << "\n" << outcome.text;
  return outcome.program ? outcome.program->probes : std::vector<bundle::Probe>();
}

std::string typed_text(const std::string& script) {
  Outcome outcome = analyze_script(script);
  EXPECT_TRUE(outcome.program.has_value()) << script << "\n" << outcome.text;
  return outcome.program ? print_typed(*outcome.program) : "";
}

TEST(KernelProbes, CountersHaveTheirDefaultsAndAliases) {
  auto probes = probes_of("software:cs { exit(); } s:faults:7 { exit(); } h:cycles { exit(); }");
  ASSERT_EQ(probes.size(), 3u);
  EXPECT_EQ(probes[0].name, "software:context-switches:1000");
  EXPECT_EQ(probes[0].symbol, "context-switches");
  EXPECT_EQ(probes[0].event_count, 1000u);
  EXPECT_EQ(probes[1].name, "software:page-faults:7");
  EXPECT_EQ(probes[1].event_count, 7u);
  EXPECT_EQ(probes[2].symbol, "cpu-cycles");
  EXPECT_EQ(probes[2].kind, bundle::ProbeKind::kHardware);
}

TEST(KernelProbes, OffersTheNearestCounter) {
  expect_refused("software:page-fault:1 { exit(); }", "did you mean 'page-faults'?");
  expect_refused("hardware:page-faults:1 { exit(); }", "no hardware event 'page-faults'");
}

TEST(KernelProbes, AProfileHasItsPeriod) {
  auto probes = probes_of("profile:hz:100, profile:ms:5 { @ = count(); }");
  ASSERT_EQ(probes.size(), 2u);
  EXPECT_EQ(probes[0].interval_ns, 10'000'000u);
  EXPECT_EQ(probes[1].interval_ns, 5'000'000u);
  EXPECT_EQ(probes[0].program, probes[1].program);
}

TEST(KernelProbes, WatchpointsAreWhatTheProcessorCan) {
  auto probes = probes_of("watchpoint:0x1000:8:rw { exit(); }");
  ASSERT_EQ(probes.size(), 1u);
  EXPECT_EQ(probes[0].address, 0x1000u);
  EXPECT_EQ(probes[0].watch_length, 8u);
  expect_refused("watchpoint:0x1000:8:r { exit(); }", "x86-64 cannot watch for 'r'");
  expect_refused("watchpoint:0x1000:8:wx { exit(); }", "x86-64 cannot watch for 'wx'");
  expect_refused("watchpoint:0x1004:8:w { exit(); }", "not a multiple of the 8 bytes");
}

TEST(KernelProbes, NumbersAreCutToTheirTypeAndPointersCopied) {
  EXPECT_NE(typed_text("fentry:vfs_open { @ = args.fd; }").find("truncate"), std::string::npos);
  EXPECT_EQ(typed_text("fentry:vfs_open { @ = args.name; }").find("truncate"), std::string::npos);
  expect_refused("fentry:vfs_open { @ = args.pair; }", "an argument of type 'struct pair'");
  expect_refused("fentry:vfs_open { @ = args.nam; }", "did you mean 'name'?");
}

TEST(KernelProbes, TheResultIsThereAtTheExitAlone) {
  EXPECT_NE(typed_text("fexit:vfs_open { @ = retval; }").find("at 32"), std::string::npos);
  expect_refused("fentry:vfs_open { @ = retval; }", "retval is only there in");
  expect_refused("fexit:nothing_back { @ = retval; }", "fexit:nothing_back returns nothing");
}

TEST(KernelProbes, ArgumentsAreCountedInWords) {
  // fd, name and the two words of pair.
  EXPECT_NE(typed_text("fexit:vfs_open { @ = arg3; }").find("at 24"), std::string::npos);
  expect_refused("fexit:vfs_open { @ = arg4; }", "has 4 arguments: there is no arg4");
  expect_refused("rawtracepoint:sched_switch { @ = arg2; }", "has 2 arguments");
}

TEST(KernelProbes, AnIteratorHasItsContext) {
  EXPECT_NE(typed_text("iter:task { @[ctx->task] = count(); }").find("at 8"), std::string::npos);
  expect_refused("iter:task { @ = ctx.file; }", "iter:task has no argument 'file'");
  expect_refused("iter:task { @ = args.task; }", "args as a whole");
}

TEST(KernelProbes, OneProgramServesWhatIsReadAlike) {
  auto shared = probes_of("fexit:* { @ = arg0; }");
  ASSERT_EQ(shared.size(), 2u);
  EXPECT_EQ(analyze_script("fexit:* { @ = arg0; }").program->clauses.size(), 1u);
}

TEST(KernelProbes, RegistersAreThereWhereTheHitInterruptedCode) {
  EXPECT_TRUE(analyze_script("profile:hz:9 { @[reg(\"ip\"), kstack] = count(); }").program);
  expect_refused("profile:hz:9 { @ = func; }", "func is only there in");
  expect_refused("fentry:vfs_open { @ = reg(\"ip\"); }", "reg() is only there in");
}

}  // namespace
}  // namespace spile::lang
