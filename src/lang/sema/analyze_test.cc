#include "lang/sema/analyze.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "lang/sema/config.h"
#include "lang/sema/fake_world.h"
#include "lang/sema/typed_print.h"
#include "lang/syntax/parser.h"

namespace spile::lang {
namespace {

struct Outcome {
  std::optional<typed::Program> program;
  std::string text;  ///< the diagnostics as a user sees them
};

Outcome analyze_script(const std::string& script, CompileOptions options = {}) {
  Source source("stdin", script);
  Diagnostics diagnostics;
  ast::Program program = parse(source, {options.positional}, diagnostics);
  EXPECT_FALSE(diagnostics.has_errors()) << script << "\n" << render(source, diagnostics);
  FakeWorld world;
  Outcome outcome;
  outcome.program = analyze(program, world, options, diagnostics);
  outcome.text = render(source, diagnostics);
  return outcome;
}

void expect_accepted(const std::string& script, CompileOptions options = {}) {
  Outcome outcome = analyze_script(script, std::move(options));
  EXPECT_TRUE(outcome.program.has_value()) << script << "\n" << outcome.text;
}

/// The script is refused, once, and the message holds `message`.
void expect_refused(const std::string& script, const std::string& message, size_t errors = 1) {
  Outcome outcome = analyze_script(script);
  EXPECT_FALSE(outcome.program.has_value()) << script;
  EXPECT_NE(outcome.text.find(message), std::string::npos)
      << script << "\nwanted: " << message << "\ngot: " << outcome.text;
  size_t found = 0;
  for (size_t at = 0; (at = outcome.text.find("ERROR", at)) != std::string::npos; ++at) ++found;
  EXPECT_EQ(found, errors) << script << "\n" << outcome.text;
}

std::string typed_text(const std::string& script, CompileOptions options = {}) {
  Outcome outcome = analyze_script(script, std::move(options));
  EXPECT_TRUE(outcome.program.has_value()) << script << "\n" << outcome.text;
  return outcome.program ? print_typed(*outcome.program) : "";
}

/// The type of a map as the dump prints it.
void expect_map(const std::string& script, const std::string& line) {
  std::string text = typed_text(script);
  EXPECT_NE(text.find("map " + line + "\n"), std::string::npos) << script << "\n" << text;
}

void expect_typed(const std::string& script, const std::string& part, CompileOptions options = {}) {
  std::string text = typed_text(script, std::move(options));
  EXPECT_NE(text.find(part), std::string::npos) << script << "\nwanted: " << part << "\ngot:\n"
                                                << text;
}

// ---- refusals by name
// -------------------------------------------------------------------------------------------------

TEST(Sema, RefusesProbeTypesThatAreNotBuiltByName) {
  expect_refused("self:signal:SIGHUP { exit(); }", "self: there is no probe for 'SIGHUP'");
  expect_refused("watchpoint:vfs_read+arg1:8:w { exit(); }",
                 "a watchpoint on an argument of a function is not built yet");
  expect_refused("fentry:bpf:7:program { exit(); }", "a probe on a BPF program is not built yet");
  expect_refused("iter:task:pin { exit(); }", "a pinned iterator is not built yet");
}
TEST(Sema, RefusesFunctionsAndBuiltinsThatAreNotBuiltByName) {
  expect_refused("BEGIN { debugf(\"x\"); }", "debugf() is not built yet");
  expect_refused("BEGIN { dw_ustack(); }", "dw_ustack() is not built yet");
  expect_refused("BEGIN { print(config); }", "config is not built yet");
  expect_refused("BEGIN { print(pid(other)); }", "pid() with an argument is not built yet");
  expect_refused("BEGIN { print(comm(1)); }", "comm() with an argument is not built yet");
}

TEST(Sema, ImportsModulesOfTheStandardLibraryInBlocks) {
  expect_map("BEGIN { import \"stdlib/strings\"; import \"stdlib/process.bt\"; @ = 1; }",
             "@[] : value int64");
  expect_refused("BEGIN { import \"stdlib/string\"; }", "there is no module 'stdlib/string'");
  expect_refused("BEGIN { import \"strings\"; }", "there is no module 'strings'");
}

TEST(Sema, LeavesOutTestsAndBenchmarksInATrace) {
  expect_map("test:a { nonsense(); } bench:b { $x = nothing; } BEGIN { @ = 1; }",
             "@[] : value int64");
  expect_refused("test:a { exit(); }", "--test runs tests");
}

TEST(Sema, GivesEnumConstantsTheirType) {
  const char* const kEnum = "enum color { RED, GREEN = 5 }; ";
  expect_map(std::string(kEnum) + "BEGIN { @ = GREEN; }", "@[] : value enum color");
  expect_map(std::string(kEnum) + "BEGIN { @ = (enum color)pid; @ = RED; }",
             "@[] : value enum color");
  expect_map(std::string(kEnum) + "BEGIN { @ = GREEN; @ = 7; }", "@[] : value int64");
  expect_map(std::string(kEnum) + "BEGIN { @ = GREEN + 1; }", "@[] : value int64");
  expect_map(std::string(kEnum) + "enum other { BLUE }; BEGIN { @ = GREEN; @ = BLUE; }",
             "@[] : value int64");
}

TEST(Sema, ReadsAggregationsThatAreOneNumber) {
  expect_map("BEGIN { @c = count(); @x = @c; }", "@x[] : value uint64");
  expect_map("BEGIN { @c[1] = sum(-2); @x = @c[1]; }", "@x[] : value int64");
  expect_refused("BEGIN { @c = hist(1); $x = @c; }",
                 "reading @c, a map of hist(), is not built yet");
  expect_map("BEGIN { @c[1] = stats(-2); @x = @c[1]; }", "@x[] : value int64");
  expect_refused("BEGIN { @c[1] = stats(2); print(@c[1]); }",
                 "print() of one key of a map of stats() is not built yet");
}

TEST(Sema, WarnsOfTheChildOfNoCommand) {
  Outcome without = analyze_script("BEGIN { @x = cpid; }");
  EXPECT_NE(without.text.find("there is no child process without -c"), std::string::npos)
      << without.text;
}

TEST(Sema, RefusesAddressesOfNamesWhereThePlaceIsNotOne) {
  expect_refused("uretprobe:libc:fopen { print(uaddr(\"state\")); }",
                 "uaddr() is only there in uprobe and usdt");
  expect_refused("uprobe:libc:fopen, uprobe:libc:fclose { print(uaddr(\"state\")); }",
                 "uaddr() in a clause of several probes is not built yet");
  expect_refused("uprobe:libc:fopen { print(uaddr(\"nothing\")); }",
                 "no variable is called nothing");
}

TEST(Sema, RefusesSeriesThatMakeNoSense) {
  expect_map("BEGIN { @s[1] = tseries(-1, 10ms, 5, \"avg\"); }",
             "@s[int64] : tseries() int64 every 10000000 ns, the last 5");
  expect_refused("BEGIN { @s = tseries(1, 0, 5); }", "the interval must be positive");
  expect_refused("BEGIN { @s = tseries(1, 1s, 0); }", "1 to 1000 intervals are kept, not 0");
  expect_refused("BEGIN { @s = tseries(1, 1s, 5, \"median\"); }", "'median' is no way");
  expect_refused("BEGIN { @s = tseries(1, 1s, 5); @s = tseries(1, 1s, 6); }",
                 "@s has other intervals elsewhere");
  expect_refused("BEGIN { @s = tseries(1, 1s, 5); print((1, @s)); }", "reading @s");
  expect_refused("BEGIN { $x = tseries(1, 1s, 5); }", "can only be put into a map");
}

TEST(Sema, RefusesToCompareMoreBytesThanThereAre) {
  expect_refused("BEGIN { print(memcmp(\"abc\", \"abcdef\", 5)); }",
                 "memcmp: 5 bytes, and string[4] has 4");
  expect_refused("BEGIN { print(memcmp(1, \"a\", 1)); }", "has no bytes to compare");
  expect_refused("BEGIN { print(memcmp(\"a\", \"a\", -1)); }", "the length is 0 to 1024");
}

// ---- names
// ------------------------------------------------------------------------------------------------------------

TEST(Sema, OffersTheNearestFunction) {
  expect_refused("BEGIN { prntf(\"x\"); }", "unknown function 'prntf'");
  expect_refused("BEGIN { prntf(\"x\"); }", "did you mean 'printf'?");
}

TEST(Sema, OffersTheNearestBuiltin) {
  expect_refused("BEGIN { print(comn); }", "unknown name 'comn'");
  expect_refused("BEGIN { print(comn); }", "did you mean 'comm'?");
}

TEST(Sema, OffersTheNearestFunctionOfALibrary) {
  expect_refused("uprobe:libc:fopne { exit(); }", "libc has no function 'fopne'");
  expect_refused("uprobe:libc:fopne { exit(); }", "did you mean libc:fopen?");
  expect_refused("kprobe:vfs_raed { exit(); }", "did you mean vfs_read or vfs_write?");
  expect_refused("tracepoint:sched:sched_swich { exit(); }", "did you mean sched:sched_switch?");
}

TEST(Sema, OffersTheNearestField) {
  expect_refused("tracepoint:sched:sched_switch { print(args.prev_pd); }",
                 "has no field 'prev_pd'");
  expect_refused("tracepoint:sched:sched_switch { print(args.prev_pd); }",
                 "did you mean 'prev_pid'?");
}

TEST(Sema, ReportsSeveralErrorsInOneRun) {
  expect_refused("BEGIN { foo(); bar(); print(nothing); }", "unknown function 'foo'", 3);
}

TEST(Sema, ReportsOneFaultOfASharedClauseOnce) {
  expect_refused("BEGIN, END, interval:s:1 { foo(); }", "unknown function 'foo'");
}

// ---- contexts
// ---------------------------------------------------------------------------------------------------------

TEST(Sema, KnowsWhatEachProbeHas) {
  expect_refused("BEGIN { print(arg0); }", "arg0 is only there where functions are probed");
  expect_refused("tracepoint:sched:sched_switch { print(arg0); }", "use its fields: args.name");
  expect_refused("kprobe:vfs_read { print(retval); }",
                 "retval is only there in kretprobe, uretprobe and fexit");
  expect_refused("uprobe:libc:fopen { print(retval); }",
                 "retval is only there in kretprobe, uretprobe and fexit");
  expect_refused("uretprobe:libc:fopen { print(arg6); }",
                 "only the first six arguments are in registers");
  expect_refused("uprobe:libc:fopen { print(duration); }",
                 "duration is only there in uretprobe and kretprobe");
  expect_accepted("kretprobe:vfs_read { print((arg0, duration)); }");
  expect_refused("profile:hz:9 { print(arg0); }", "arg0 is only there where functions are probed");
  expect_refused("uprobe:libc:fopen, uretprobe:libc:fopen { print(retval); }",
                 "retval is only there in kretprobe, uretprobe and fexit");
  expect_refused("kprobe:vfs_read { print(arg6); }",
                 "only the first six arguments are in registers");
  expect_refused("BEGIN { print(args.x); }", "args is only there in tracepoint, rawtracepoint");
  expect_refused("BEGIN { print(func); }",
                 "func is only there in uprobe, uretprobe, kprobe, kretprobe");
  expect_refused("tracepoint:sched:sched_switch { print(args.common_pid); }",
                 "hides the first 8 bytes");
  expect_typed("tracepoint:odd:packed { print(args.list); }", "context-bytes at 16 : uint32[2]");
}

// ---- structs, C definitions
// ------------------------------------------------------------------------------------------------

TEST(SemaStructs, FieldsAreReadWhereTheKernelKeepsThem) {
  expect_typed("BEGIN { print(curtask->pid); }", "load : int32");
  expect_typed("kprobe:vfs_read { @ = ((struct task_struct *)arg0)->real_parent->comm; }",
               ": string[16]");
  expect_map("kprobe:vfs_read { @ = ((struct task_struct *)arg0)->se.load; }",
             "@[] : value uint64");
  expect_map("kprobe:vfs_read { $t = (struct task_struct *)arg0; @ = $t.as_byte; }",
             "@[] : value uint64");
  expect_map("kprobe:vfs_read { @ = ((struct task_struct *)arg0)->level; }", "@[] : value int64");
  expect_map("kprobe:vfs_read { @ = (*(struct task_struct *)arg0).words[arg1]; }",
             "@[] : value uint64");
}

TEST(SemaStructs, KnowsSizesAndOffsets) {
  expect_typed("BEGIN { print(sizeof(struct task_struct)); }", "number 96");
  expect_typed("BEGIN { print(offsetof(struct task_struct, se.runs)); }", "number 56");
  expect_typed("BEGIN { print(offsetof(struct task_struct, as_byte)); }", "number 64");
  expect_typed("kprobe:vfs_read { print((struct entity *)arg0 + 3); }", "number 48");
  expect_typed("BEGIN { print(sizeof(sector_t)); print(sizeof(unsigned)); }", "number 8");
}

TEST(SemaStructs, LaysOutTheScriptsOwn) {
  const std::string own =
      "struct inner { char c; short s; };\n"
      "struct own { char a; struct inner in; int list[3]; unsigned low : 3, high : 7; int : 0; "
      "long last; char name[5]; union { int u; char v; }; struct own *next; };\n";
  const auto offset = [&](const char* path, const char* wanted) {
    expect_typed(own + "BEGIN { print(offsetof(struct own, " + path + ")); }",
                 std::string("number ") + wanted);
  };
  offset("in.s", "4");
  offset("list", "8");
  offset("last", "24");
  offset("name", "32");
  offset("u", "40");
  offset("next", "48");
  expect_typed(own + "BEGIN { print(sizeof(struct own)); }", "number 56");
  expect_typed(
      "struct p { char a; int b; } __attribute__((packed));\nBEGIN { print(sizeof(struct "
      "p)); }",
      "number 5");
}

TEST(SemaStructs, ParametersComeFromDebugInformation) {
  expect_typed("uprobe:libc:fopen { print(str(args.mode)); }", "truncate");
  expect_map("uprobe:libc:fclose { @ = args.stream->fd; }", "@[] : value int64");
  expect_map("uprobe:libc:fclose { @ = ((struct file *)arg0)->name; }", "@[] : value string[8]");
  expect_accepted("uprobe:libc:f* { print(str(arg0)); }");
  expect_refused("uprobe:libc:f* { print(args.mode); }", "args.mode is another parameter in");
  expect_refused("uprobe:libc:fopen { print(args.nam); }", "did you mean 'name'?");
  expect_refused("uprobe:libc:fclose { print(args.x); }", "it is not passed in a register");
  expect_refused("uprobe:libc:malloc { print(args.size); }", "has no debug information");
  expect_accepted("uretprobe:libc:fopen { print(str(args.name)); print(retval); }");
}

TEST(SemaStructs, RefusesWhatIsNotThere) {
  expect_refused("BEGIN { print(curtask->pidd); }", "struct task_struct has no field 'pidd'");
  expect_refused("BEGIN { print(curtask->pidd); }", "did you mean 'pid'?");
  expect_refused("kprobe:vfs_read { print(((struct file *)arg0)->f_pos); }",
                 "unknown type 'struct file'");
  expect_refused("BEGIN { print(curtask->next->x); }", "what struct opaque consists of");
  expect_refused("BEGIN { print(*curtask->next); }", "what struct opaque consists of");
  expect_refused("BEGIN { print(curtask->words[4]); }", "the array has 4 elements");
  expect_refused("kprobe:vfs_read { print(arg0->x); }", "uint64 has no field 'x'");
  expect_refused("struct a { struct b b; };\nBEGIN { exit(); }", "the size of 'struct b'");
  expect_refused("struct a { int x : 40; };\nBEGIN { exit(); }", "'x' has 40 bits");
  expect_refused("struct a { nothing x; };\nBEGIN { exit(); }", "unknown type 'nothing'");
}

TEST(SemaStructs, HeadersConstantsAndConditions) {
  expect_typed("#include <linux/socket.h>\nBEGIN { print(AF_INET6); }", "number 10");
  expect_refused("BEGIN { print(AF_INET6); }", "unknown name 'AF_INET6'");
  expect_typed("BEGIN { print(TCP_CLOSE); }", "number 7");
  expect_typed("#define TWO (1 + 1)\n#define FOUR (TWO * TWO)\nBEGIN { print(FOUR); }", "number 4");
  expect_refused("#define A B\n#define B A\nBEGIN { print(A); }", "#define A needs itself");
  expect_typed("enum e { X = 3, Y, Z = X << 2 };\nBEGIN { print(Y); print(Z); }", "number 12");
  expect_typed(
      "#ifndef BPFTRACE_HAVE_BTF\n#define A 1\n#else\n#define A 2\n#endif\nBEGIN { "
      "print(A); }",
      "number 2");
  expect_typed(
      "#define V 3\n#if V > 2 && defined(V)\n#define A 5\n#elif 1\n#define A "
      "6\n#endif\nBEGIN { print(A); }",
      "number 5");
  expect_typed(
      "#define L (5 * 2)\n#if L > 3\n#define A 5\n#endif\nstruct s { int x[L + 1]; };\nBEGIN { "
      "print(A); print(sizeof(struct s)); }",
      "number 44");
  expect_refused("#define A B\n#define B A\n#if A\n#endif\nBEGIN { exit(); }", "nested too deeply");
  expect_refused("#include \"own.h\"\nBEGIN { exit(); }", "only headers of the system");
  expect_refused("#if 1\nBEGIN { exit(); }", "#if without #endif");
  expect_refused("#if 0\nBEGIN { exit(); }\n#endif\nEND { exit(); }",
                 "#if around a probe is not built yet");
}

// ---- macros, blocks, settings
// ----------------------------------------------------------------------------------------------

TEST(SemaMacros, AreHygienic) {
  expect_accepted("macro add(a, b) { a + b } BEGIN { $a = 1; print(add($a, 2)); }");
  expect_accepted("macro set($x) { $x = 5; } BEGIN { $y = 1; set($y); print($y); }");
  expect_accepted("macro bump(@m, k) { @m[k] = count(); } BEGIN { bump(@c, 1); bump(@d, comm); }");
  expect_accepted("macro five { 5 } BEGIN { print(five + five()); }");
  expect_accepted("macro own() { $t = 1; $t } BEGIN { $t = \"text\"; print(own()); print($t); }");
  expect_refused("macro peek() { $t } BEGIN { $t = 1; print(peek()); }", "undefined variable $t");
  expect_refused("macro store() { @m = 1; } BEGIN { @m = 2; store(); }",
                 "@m is none of its parameters");
  expect_refused("macro set($x) { $x = 5; } BEGIN { set(3); }", "fit none of its forms");
  expect_refused("macro loop(a) { loop(a) } BEGIN { print(loop(1)); }", "levels deep");
}

TEST(SemaMacros, AreChosenByWhatTheyAreGiven) {
  const std::string two = "macro what(@m) { \"map\" } macro what(x) { \"value\" } ";
  expect_typed(two + "BEGIN { @m = 1; print(what(@m)); }", "text \"map\"");
  expect_typed(two + "BEGIN { print(what(1)); }", "text \"value\"");
}

TEST(SemaBlocks, HaveTheValueOfTheirLastExpression) {
  expect_map("BEGIN { @ = { $x = 3; $x + 1 }; }", "@[] : value int64");
  expect_map("BEGIN { @ = if pid > 1 { \"many\" } else { \"one\" }; }", "@[] : value string[5]");
  expect_refused("BEGIN { @ = { $x = 3; }; }", "this has no value to assign");
  expect_refused("BEGIN { @ = if pid > 1 { 1 } else { \"one\" }; }",
                 "one side has int64, the other string[4]");
}

TEST(SemaLoops, StandInEachOther) {
  expect_accepted(
      "BEGIN { for ($i : 0..pid) { for ($j : $i..pid) { while ($j) { @ = count(); } } } }");
  expect_refused(
      "macro m(@c) { while (pid) { while (pid) { while (pid) { @c = count(); } } } } "
      "BEGIN { while (pid) { while (pid) { while (pid) { while (pid) { m(@c); } } } } }",
      "more than 6 loops inside of each other");
}

TEST(SemaLoops, WalkThroughMapsWithKeys) {
  expect_map("BEGIN { @x[1, \"a\"] = 2; for ($kv : @x) { @y[$kv.0.1] = $kv.1; } }",
             "@y[string[2]] : value int64");
  expect_map("BEGIN { @c[comm] = count(); for ($kv : @c) { @y = $kv; } }",
             "@y[] : value (string[16],uint64)");
  expect_refused("BEGIN { @x = 1; for ($kv : @x) { } }", "@x has no keys to walk through");
  expect_refused("BEGIN { @x[1] = 1; for ($kv : @x[1]) { } }", "without a key");
  expect_refused("BEGIN { for ($kv : @x) { } }", "nothing is ever put into @x");
  expect_refused("BEGIN { @h[1] = hist(1); for ($kv : @h) { } }", "a map of hist()");
  expect_refused("BEGIN { @s[1] = stats(1); print(len(@s)); }", "a map of stats()");
  expect_refused("BEGIN { for ($kv : pid) { } }", "'for' goes over a range or a map");
}

TEST(SemaBooleans, AreWhatComparisonsGive) {
  expect_map("BEGIN { @ = pid == 1; }", "@[] : value bool");
  expect_map("BEGIN { @ = !pid && comm == \"x\"; }", "@[] : value bool");
  expect_map("BEGIN { @ = true; @ = 3; }", "@[] : value int64");
  expect_map("BEGIN { @ = (pid > 1) + 1; }", "@[] : value int64");
  expect_map("BEGIN { @x[1] = 1; @ = delete(@x, 1); }", "@[] : value bool");
  expect_map("BEGIN { @x[1] = 1; @[has_key(@x, 1)] = 1; }", "@[bool] : value int64");
}

TEST(SemaFunctions, AreLoweredWhereTheyAreCalled) {
  const char* const kAdd = "fn add($a : uint8, $b : int64) : int64 { $b += 1; return $a + $b; } ";
  expect_map(std::string(kAdd) + "BEGIN { $b = 5; @ = add(pid, $b) + add(2, $b); }",
             "@[] : value int64");
  expect_map("fn note($k : int64) { @n[$k] = count(); } BEGIN { note(3); note(4); }",
             "@n[int64] : count() uint64");
  expect_refused(std::string(kAdd) + "BEGIN { print(add(1)); }", "fit none of its forms");
  expect_map("fn f($a : int64) : int64 { if ($a) { return 1; } return 2; } BEGIN { @ = f(1); }",
             "@[] : value int64");
  expect_refused("fn f($a : int64) : int64 { while ($a) { return 1; } return 2; } BEGIN { f(1); }",
                 "a return inside of a loop of a function");
  expect_refused("fn f($a : int64) : int64 { return $b; } BEGIN { $b = 1; f(1); }",
                 "undefined variable $b");
  expect_refused("fn f($a : int64) : int64 { return f($a); } BEGIN { f(1); }", "32 levels deep");
}

TEST(SemaEvents, AreRecordsAsAWhole) {
  expect_map("tracepoint:sched:sched_switch { @ = args; }",
             "@[] : value (prev_comm=string[16],prev_pid=int64,prev_prio=int64,prev_state=int64,"
             "next_comm=string[16],next_pid=int64)");
  expect_refused("kprobe:vfs_read { print(args); }", "args as a whole");
}

TEST(SemaChecks, AreMadeBeforeTheScriptRuns) {
  expect_refused("BEGIN { fail(\"only %d and %s\", 3, \"x\"); }", "only 3 and x");
  expect_accepted("BEGIN { if ($1 > 3) { fail(\"no\"); } }");
  expect_refused("BEGIN { fail(\"%d\", pid); }", "not known before the script runs");
  expect_refused("BEGIN { static_assert(1 == 2, \"one is not two\"); }", "one is not two");
  expect_refused("BEGIN { static_assert(pid == 2, \"x\"); }", "not known before the script runs");
  expect_refused("BEGIN { if comptime (pid) { } }", "not known before the script runs");
  expect_refused("BEGIN { @ = comptime pid; }", "not known before the script runs");
  expect_refused("BEGIN { pton(\"1.2.3\"); }", "'1.2.3' is no IPv4 or IPv6 address");
}

TEST(SemaObjects, ComeFromPlaces) {
  expect_map("BEGIN { @ = curtask->words; }", "@[] : value uint32[4]");
  expect_map("BEGIN { @ = curtask->se; @b = @.runs; }", "@[] : value struct entity");
  expect_refused("BEGIN { @ = curtask->se; @ = curtask->words; }", "it cannot hold");
  expect_refused("BEGIN { $a = pton(\"1.2.3.4\"); print($a[pid]); }", "must be a constant");
  expect_refused("BEGIN { print(pton(\"1.2.3.4\") == 5); }", "cannot compare uint8[4] with int64");
  expect_refused("BEGIN { $x = 1; print(&$x); }", "the address of a variable or map (&)");
  expect_refused("BEGIN { print(&pid); }", "this has no address");
}

TEST(SemaBlocks, RecordsAreTuplesWithNames) {
  expect_map("BEGIN { @ = (a=1, b=\"x\"); }", "@[] : value (a=int64,b=string[2])");
  expect_accepted("BEGIN { $r = (a=1, b=\"x\"); print($r.a); print($r.b); @[$r] = 1; }");
  expect_refused("BEGIN { print((a=1, a=2)); }", "has a field 'a' already");
  expect_refused("BEGIN { $r = (a=1, b=2); print($r.c); }", "has no field 'c'");
}

TEST(SemaSettings, ProbesThatAreMissing) {
  expect_accepted("kprobe:vfs_read, kprobe:gone { exit(); }");
  expect_refused("kprobe:gone { exit(); } kprobe:vfs_read { exit(); }", "no function 'gone'");
  CompileOptions options;
  options.missing_probes = MissingProbes::kWarn;
  expect_accepted("kprobe:gone { exit(); } kprobe:vfs_read { exit(); }", options);
  EXPECT_FALSE(analyze_script("kprobe:gone { exit(); }", options).program);
  options.missing_probes = MissingProbes::kError;
  EXPECT_FALSE(analyze_script("kprobe:vfs_read, kprobe:gone { exit(); }", options).program);
}

TEST(SemaSettings, AreReadFromTheScript) {
  const auto applied = [](const std::string& text, CompileOptions options = {}) {
    Source source("stdin", "config = { " + text + " } BEGIN { exit(); }");
    Diagnostics diagnostics;
    const ast::Program program = parse(source, {}, diagnostics);
    apply_config(program, options, diagnostics);
    return std::pair(options, render(source, diagnostics));
  };
  EXPECT_EQ(applied("max_strlen = 64; BPFTRACE_MAX_MAP_KEYS = 7").first.max_strlen, 64u);
  EXPECT_EQ(applied("max_strlen = 64; BPFTRACE_MAX_MAP_KEYS = 7").first.max_map_keys, 7u);
  EXPECT_FALSE(applied("print_maps_on_exit = false").first.prints_maps);
  EXPECT_EQ(applied("missing_probes = warn").first.missing_probes, MissingProbes::kWarn);
  EXPECT_EQ(applied("stack_mode = perf").first.stack_mode, bundle::StackMode::kPerf);
  EXPECT_EQ(applied("license = \"GPL\"; lazy_symbolication = true").second, "");
  EXPECT_NE(applied("max_strln = 64").second.find("did you mean 'max_strlen'?"), std::string::npos);
  EXPECT_NE(applied("max_strlen = 1").second.find("a number from 8 to 4096"), std::string::npos);
  EXPECT_NE(applied("missing_probes = perhaps").second.find("error, warn or ignore"),
            std::string::npos);
  CompileOptions fixed;
  fixed.fixed = {"max_strlen"};
  EXPECT_EQ(applied("max_strlen = 64", fixed).first.max_strlen, 128u);
}

TEST(Sema, ChecksEveryAttachPointOfAClause) {
  expect_refused("kprobe:vfs_read, tracepoint:sched:sched_switch { print(arg0); }",
                 "arg0 is not there in a tracepoint");
}

TEST(Sema, SplitsAStaticTracepointByTheArgumentsThatAreUsed) {
  auto clauses = [](const std::string& script) {
    Outcome outcome = analyze_script(script);
    EXPECT_TRUE(outcome.program) << script << "\n" << outcome.text;
    return outcome.program ? outcome.program->clauses.size() : 0;
  };
  EXPECT_EQ(clauses("usdt:redis-server:db:query_start { @ = count(); }"), 1u);
  EXPECT_EQ(clauses("usdt:redis-server:db:query_start { @ = sum(arg1); }"), 1u);  // $5 both times
  EXPECT_EQ(clauses("usdt:redis-server:db:query_start { @ = sum(arg0); }"), 2u);
  EXPECT_EQ(clauses("usdt:redis-server:*:query_* { @ = sum(arg0); }"), 3u);
}

TEST(Sema, ExpandsStaticTracepointsToTheirPlaces) {
  Outcome outcome = analyze_script("usdt:redis-server:query_start { @[probe, arg0] = count(); }");
  ASSERT_TRUE(outcome.program) << outcome.text;
  ASSERT_EQ(outcome.program->probes.size(), 2u);
  const bundle::Probe& probe = outcome.program->probes[1];
  EXPECT_EQ(probe.name, "usdt:/usr/bin/redis-server:db:query_start");
  EXPECT_EQ(probe.kind, bundle::ProbeKind::kUsdt);
  EXPECT_EQ(probe.address, 0x1100u);
  EXPECT_EQ(probe.semaphore, 0x4000u);
  EXPECT_EQ(probe.module, "db");
}

TEST(Sema, ReadsArgumentsWhereTheNoteSays) {
  const std::string done = "usdt:redis-server:db:query_done { @ = ";
  expect_refused("usdt:redis-server:db:query_start { @ = arg2; }",
                 "has 2 arguments: there is no arg2");
  expect_refused(done + "arg2; }", "arg2 of usdt:db:query_done cannot be read: '8f@%xmm0'");
  expect_refused(done + "arg3; }", "has 3 arguments: there is no arg3");
  expect_refused("usdt:redis-server:query_strat { exit(); }",
                 "did you mean redis-server:db:query_start?");
  expect_refused("usdt:redis-server:db:query_done { print(func); }",
                 "func is only there in uprobe");
  expect_refused("usdt:redis-server:db:query_done { print(retval); }", "retval is only there in");
  expect_map(done + "arg0; }", "@[] : value uint64");
}

TEST(Sema, ReadsNamedArgumentsOfStaticTracepoints) {
  const std::string reply = "usdt:redis-server:db:reply { ";
  expect_map(reply + "@ = args.id; }", "@[] : value int64");
  expect_map(reply + "@[args.id, args.ok] = count(); }", "@[(int64,uint64)] : count() uint64");
  expect_map(reply + "@[str(args.path)] = count(); }", "@[string[128]] : count() uint64");
  expect_accepted(reply + "print(*args.path); print(args->id); }");
  expect_refused(reply + "print(args.pat); }", "usdt:db:reply has no argument 'pat'");
  expect_refused(reply + "print(args.pat); }", "did you mean 'path'?");
  expect_refused("usdt:redis-server:db:query_start { print(args.name); }",
                 "usdt:db:query_start does not say what its arguments are called");
}

TEST(Sema, SplitsStaticTracepointsByWhatTheirNamesMean) {
  auto clauses = [](const std::string& script) {
    Outcome outcome = analyze_script(script);
    EXPECT_TRUE(outcome.program) << script << "\n" << outcome.text;
    return outcome.program ? outcome.program->clauses.size() : 0;
  };
  EXPECT_EQ(clauses("usdt:redis-server:db:reply* { @ = count(); }"), 1u);
  EXPECT_EQ(clauses("usdt:redis-server:db:reply* { @ = sum(args.id); }"), 2u);  // edi twice
  // The first place has `path` at another index than the others, which differ among themselves.
  EXPECT_EQ(clauses("usdt:redis-server:db:reply* { print(args.path); }"), 3u);
  EXPECT_EQ(
      clauses(
          "usdt:redis-server:db:reply, usdt:redis-server:db:reply_late { print(str(args.path)); }"),
      2u);
}

TEST(Sema, LeavesOutWhatIsExcluded) {
  auto names = [](const std::string& script) {
    Outcome outcome = analyze_script(script);
    std::vector<std::string> found;
    if (outcome.program) {
      for (const bundle::Probe& probe : outcome.program->probes) found.push_back(probe.name);
    }
    return found;
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(names("uprobe:libc:f*, !uprobe:libc:fopen { exit(); }"),
            Names{"uprobe:/usr/lib/libc.so.6:fclose"});
  EXPECT_EQ(names("!uprobe:libc:fopen, uprobe:libc:f* { exit(); }"),
            Names{"uprobe:/usr/lib/libc.so.6:fclose"});
  EXPECT_EQ(names("kprobe:vfs_*, !kprobe:vfs_w* { exit(); }"), Names{"kprobe:vfs_read"});
  EXPECT_EQ(names("tracepoint:syscalls:*, !tracepoint:syscalls:*read { exit(); }"),
            Names{"tracepoint:syscalls:sys_enter_openat"});
  EXPECT_EQ(names("usdt:redis-server:query_*, !usdt:redis-server:db:query_start { exit(); }"),
            Names{"usdt:/usr/bin/redis-server:db:query_done"});
  EXPECT_EQ(
      names("uprobe:libc:f*, !uprobe:libc:fopen { @ = 1; } uprobe:libc:fopen { @ = 2; }").size(),
      2u);  // of its own clause only
  expect_refused("uprobe:libc:f*, !uprobe:libc:f* { exit(); }",
                 "every probe of this clause is excluded");
  expect_refused("!uprobe:libc:fopen { exit(); }", "every probe of this clause is excluded");
  expect_refused("uprobe:libc:f*, !uprobe:libc:nosuch { exit(); }", "nosuch");
}

TEST(Sema, FindsFunctionsByCppName) {
  Outcome outcome = analyze_script("uprobe:redis-server:cpp:\"ns::f\" { @[func] = count(); }");
  ASSERT_TRUE(outcome.program) << outcome.text;
  ASSERT_EQ(outcome.program->probes.size(), 2u);
  EXPECT_EQ(outcome.program->probes[0].symbol, "_ZN2ns1fEi");
  EXPECT_EQ(outcome.program->probes[0].function, "ns::f(int)");
  expect_refused("uprobe:redis-server:cpp:\"ns::g\" { exit(); }", "no C++ function");
}

TEST(Sema, ExpandsGlobs) {
  Outcome outcome =
      analyze_script("uprobe:libc:f* { @[func] = count(); } kprobe:vfs_* { @k = count(); }");
  ASSERT_TRUE(outcome.program);
  ASSERT_EQ(outcome.program->probes.size(), 4u);
  EXPECT_EQ(outcome.program->probes[0].name, "uprobe:/usr/lib/libc.so.6:fopen");
  EXPECT_EQ(outcome.program->probes[1].symbol, "fclose");
  EXPECT_EQ(outcome.program->probes[2].name, "kprobe:vfs_read");
  EXPECT_EQ(outcome.program->clauses.size(), 2u);
}

TEST(Sema, OneProgramServesTracepointsThatKeepTheUsedFieldsAtOnePlace) {
  Outcome outcome = analyze_script("tracepoint:syscalls:* { @[args.__syscall_nr] = count(); }");
  ASSERT_TRUE(outcome.program);
  EXPECT_EQ(outcome.program->clauses.size(), 1u);
  EXPECT_EQ(outcome.program->clauses[0].probes.size(), 2u);
  EXPECT_EQ(outcome.program->clauses[0].context.size_bytes, 40u);
}

TEST(Sema, TracepointsThatKeepAFieldElsewhereGetTheirOwnProgram) {
  Outcome outcome = analyze_script(
      "tracepoint:sched:sched_switch, tracepoint:sched:sched_process_exec { @ = count(); }");
  ASSERT_TRUE(outcome.program);
  EXPECT_EQ(outcome.program->clauses.size(), 1u);
  expect_refused("tracepoint:sched:* { @[args.prev_pid] = count(); }",
                 "tracepoint:sched:sched_process_exec has no field 'prev_pid'");
  outcome = analyze_script(
      "tracepoint:syscalls:sys_enter_openat, tracepoint:sched:sched_process_exec { "
      "@[args.filename] = count(); }");
  EXPECT_FALSE(outcome.program);  // an address here, a string there
}

// ---- types
// ------------------------------------------------------------------------------------------------------------

TEST(Sema, InfersMapsOverTheWholeScript) {
  expect_map("BEGIN { print(@x[1]); } END { @x[2] = str(0); }", "@x[int64] : value string[128]");
  expect_map("BEGIN { $a = @x; @y = $a; } END { @x = comm; }", "@y[] : value string[16]");
  expect_map("kprobe:vfs_read { @start[tid] = nsecs; }", "@start[uint64] : value uint64");
}

TEST(Sema, WidensNumbersAndStrings) {
  expect_map("BEGIN { @x = pid; @x = -1; }", "@x[] : value int64");
  expect_map("BEGIN { @x = pid; @x = 1; }", "@x[] : value uint64");
  expect_map("BEGIN { @x = \"abc\"; @x = comm; }", "@x[] : value string[16]");
  expect_map("BEGIN { @[\"a\", 1] = 1; @[comm, pid] = 2; }",
             "@[(string[16],uint64)] : value int64");
  expect_map("BEGIN { @[(\"a\", 1)] = 1; @[\"bcd\", 2] = 1; }",
             "@[(string[4],int64)] : value int64");
}

TEST(Sema, ADifferenceIsSigned) {
  expect_map("BEGIN { @x = nsecs - @s; @s = nsecs; }", "@x[] : value int64");
  expect_map("BEGIN { @x = nsecs + 1; }", "@x[] : value uint64");
}

TEST(Sema, RefusesMixedTypes) {
  expect_refused("BEGIN { @x = 1; @x = \"a\"; }",
                 "@x holds int64 elsewhere, it cannot hold string[2] as well");
  expect_refused("BEGIN { $x = 1; $x = \"a\"; }",
                 "$x holds int64 elsewhere, it cannot hold string[2] as well");
  expect_refused("BEGIN { @x[1] = 1; @x[\"a\"] = 1; }",
                 "the key of @x is string[2] here and int64 elsewhere");
  expect_refused("BEGIN { @x[1] = 1; @x[1, 2] = 1; }",
                 "the key of @x is (int64,int64) here and int64 elsewhere");
  expect_refused("BEGIN { @x = 1; @x[1] = 1; }",
                 "@x is used with a key in one place and without in another");
  expect_refused("BEGIN { @x = 1; @x = count(); }",
                 "@x holds a value elsewhere, it cannot hold count() as well");
  expect_refused("BEGIN { @x = hist(1); @x = lhist(1, 0, 10, 1); }",
                 "@x holds hist() elsewhere, it cannot hold lhist() as well");
  expect_refused("BEGIN { print(1 ? 2 : \"a\"); }",
                 "'?:' has int64 on one side and string[2] on the other");
}

TEST(Sema, StopsTypesThatGrowWithoutEnd) {
  Outcome outcome = analyze_script("BEGIN { @x = (1, @x); @x = (1, 2); }");
  EXPECT_FALSE(outcome.program);
  outcome = analyze_script("BEGIN { @x = (@y, @y); @y = (@x, @x); @x = (1, 1); }");
  EXPECT_FALSE(outcome.program);
}

TEST(Sema, ReadsMapsThatFeedEachOther) {
  expect_map("BEGIN { @a = @b; @b = @a + 1; }", "@a[] : value int64");
  expect_map("BEGIN { @a = @b; @b = @a + nsecs; }", "@b[] : value uint64");
  expect_refused("BEGIN { @a = @b; @b = @a; }", "the type of @a is not known", 2);
}

TEST(Sema, RefusesUndefinedNames) {
  expect_refused("BEGIN { print($x); }", "undefined variable $x");
  expect_refused("BEGIN { $count = 1; print($cuont); }", "did you mean $count?");
  Outcome outcome = analyze_script("BEGIN { if (pid) { $x = 1; } print($x); }");
  EXPECT_TRUE(outcome.program);
  EXPECT_NE(outcome.text.find("WARNING: $x is used behind the block"), std::string::npos);
  EXPECT_NE(outcome.text.find("put 'let $x;' before that block"), std::string::npos);
  expect_refused("BEGIN { print(@x + 1); }",
                 "undefined map: @x is read, but nothing is ever put into it");
  expect_refused("BEGIN { clear(@x); }", "undefined map: nothing is ever put into @x");
  expect_refused("BEGIN { $x = 1; if (1) { let $x = 2; } }", "$x exists already");
}

TEST(Sema, ChecksOperands) {
  expect_refused("BEGIN { print(\"a\" + 1); }", "'+' needs a number, not string[2]");
  expect_refused("BEGIN { print(comm < \"b\"); }", "'<' cannot compare string[16] with string[2]");
  expect_refused("BEGIN { print(comm == 1); }", "'==' cannot compare string[16] with int64");
  expect_refused("BEGIN { if (comm) { exit(); } }", "a condition needs a number, not string[16]");
  expect_refused("BEGIN /comm/ { exit(); }", "a condition needs a number, not string[16]");
  expect_refused("BEGIN { print(1 / 0); }", "division by zero");
  expect_refused("BEGIN { print(pid % 0); }", "division by zero");
  expect_refused("BEGIN { @x = 1; @x /= 0; }", "division by zero");
  expect_refused("BEGIN { print(pid << 64); }", "a shift by 64");
  expect_typed("uprobe:libc:fopen { print(*arg0); }", "load : uint64");
  expect_refused("BEGIN { print(*comm); }", "'*' needs a pointer, not string[16]");
  expect_refused("BEGIN { print(!comm); }", "'!' needs a number, not string[16]");
  expect_refused("BEGIN { $x = printf(\"a\"); }", "this has no value to assign");
  expect_refused("BEGIN { break; }", "'break' outside of a loop");
}

TEST(Sema, ChecksArgumentCounts) {
  expect_refused("BEGIN { exit(1, 2); }", "exit() takes 0 to 1 arguments, 2 given");
  expect_refused("BEGIN { @ = count(1); }", "count() takes no argument, 1 given");
  expect_refused("BEGIN { @ = sum(); }", "sum() takes 1 argument, 0 given");
  expect_refused("BEGIN { @ = lhist(1, 2); }", "lhist() takes 4 arguments, 2 given");
  expect_refused("BEGIN { printf(); }", "printf() takes 1 to 128 arguments, 0 given");
}

TEST(Sema, ChecksAggregations) {
  expect_refused("BEGIN { count(); }", "count() can only be put into a map");
  expect_refused("BEGIN { $x = hist(1); }", "hist() can only be put into a map");
  expect_refused("BEGIN { @ = sum(comm); }", "sum() needs a number, not string[16]");
  expect_refused("BEGIN { @ = lhist(1, 10, 0, 1); }",
                 "the maximum must be larger than the minimum");
  expect_refused("BEGIN { @ = lhist(1, 0, 10, 0); }", "the step must be positive");
  expect_refused("BEGIN { @ = lhist(1, 0, 10000, 1); }", "10000 buckets, 1000 are the most");
  expect_refused("BEGIN { @ = lhist(1, 0, pid, 1); }", "must be a constant");
  expect_refused("BEGIN { @ = lhist(1, 0, 10, 1); @ = lhist(1, 0, 20, 1); }",
                 "has other bounds elsewhere");
  expect_accepted("BEGIN { @ = hist(1, 5); }");
  expect_refused("BEGIN { @ = hist(1, 6); }", "hist: 0 to 5 bits, not 6");
  expect_refused("BEGIN { @ = hist(1, 2); @ = hist(1, 3); }", "hist: @ has 2 bits elsewhere");
  expect_refused("BEGIN { @ += count(); }", "count() adds by itself");
}

// ---- printf
// -----------------------------------------------------------------------------------------------------------

TEST(Sema, ChecksFormatsAgainstArguments) {
  expect_refused("BEGIN { printf(\"%d\"); }", "the format takes 1 argument, 0 given");
  expect_refused("BEGIN { printf(\"%d %d\", 1); }", "the format takes 2 arguments, 1 given");
  expect_refused("BEGIN { printf(\"x\", 1); }", "the format takes 0 arguments, 1 given");
  expect_refused("BEGIN { printf(\"%s\", 1); }", "'%s' takes a string, not int64");
  expect_refused("uprobe:libc:fopen { printf(\"%s\", arg0); }",
                 "str(...) reads the string at an address");
  expect_refused("BEGIN { printf(\"%5d\", comm); }", "'%5d' takes a number, not string[16]");
  expect_refused("BEGIN { printf(\"%r\", comm); }", "'%r' takes a buffer, not string[16]");
  expect_refused("BEGIN { printf(\"%y\", 1); }", "unknown conversion 'y'");
  expect_refused("BEGIN { printf(\"%\"); }", "the conversion is missing");
  expect_refused("BEGIN { printf(\"%*d\", 1, 2); }", "a width from an argument is not built yet");
  expect_refused("BEGIN { printf(\"%99999d\", 1); }", "the width is larger than");
  expect_refused("BEGIN { $f = \"%d\"; printf($f, 1); }",
                 "the format of printf() must be a string literal");
}

TEST(Sema, AcceptsEveryConversion) {
  expect_accepted(
      "uprobe:libc:fopen { printf(\"%d %i %u %o %x %X %c %p %s %ld %lld %-10s %5d %05x %lu %hhx %r "
      "%rx %rh %% %+d %#x %.3s\", 1, 2, 3, "
      "4, 5, 6, 7, arg0, comm, 8, 9, probe, 10, 11, 12, 13, buf(arg0, 4), buf(arg0, 4), buf(arg0, "
      "4), 14, 15, str(arg0)); }");
}

// ---- positional parameters
// --------------------------------------------------------------------------------------------

TEST(Sema, PositionalParametersAreWhatTheContextWants) {
  CompileOptions options;
  options.positional = {"42", "abc", "-7"};
  expect_typed("BEGIN { print($1); }", "number 42 : int64", options);
  expect_typed("BEGIN { print($3); }", "number -7 : int64", options);
  expect_typed("BEGIN { print(str($1)); }", "text \"42\" : string[3]", options);
  expect_typed("BEGIN { print(str($2 + 1)); }", "text \"bc\" : string[3]", options);
  expect_typed("BEGIN { printf(\"%s\", $1); }", "text \"42\"", options);
  expect_typed("BEGIN { if (comm == $1) { exit(); } }", "text \"42\"", options);
  expect_typed("BEGIN { print($#); }", "number 3", options);
  expect_typed("BEGIN { print($9); }", "number 0", options);
  expect_typed("BEGIN { print(str($9)); }", "text \"\"", options);
}

// ---- folding
// ----------------------------------------------------------------------------------------------------------

TEST(Sema, FoldsConstants) {
  expect_typed("BEGIN { print(1 + 2 * 3); }", "number 7 : int64");
  expect_typed("BEGIN { print(-7 / 2); }", "number -3 : int64");
  expect_typed("BEGIN { print(-7 % 3); }", "number -1 : int64");
  expect_typed("BEGIN { print(1 - 2); }", "number -1 : int64");
  expect_typed("BEGIN { print(-1 >> 4); }", "number -1 : int64");
  expect_typed("BEGIN { print(18446744073709551615 / 2); }", "number 9223372036854775807 : uint64");
  expect_typed("BEGIN { print((uint8)300); }", "number 44 : uint8");
  expect_typed("BEGIN { print((int8)200); }", "number -56 : int8");
  expect_typed("BEGIN { print(1 < 2 ? 10 : 20); }", "number 10");
  expect_typed("BEGIN { print(0 && pid); }", "number 0");
  expect_typed("BEGIN { print(\"a\" == \"a\"); }", "number 1");
  expect_typed("BEGIN { print(sizeof(uint32)); }", "number 4");
}

TEST(Sema, DumpsTheTypedProgram) {
  EXPECT_EQ(typed_text("kprobe:vfs_read /pid == 7/ { $x = arg2 - 1; @[comm] = hist($x); "
                       "printf(\"%d\\n\", $x); }"),
            R"(map @[string[16]] : hist() int64
probe 0: kprobe:vfs_read
clause for probes 0 (registers, 168 bytes)
  if
    compare == unsigned : bool
      builtin pid : uint32
      number 7 : int64
  then
    let $x : int64
    set $x
      arithmetic - : int64
        context at 96 : uint64
        number 1 : int64
    aggregate @
      key builtin comm : string[16]
      variable $x : int64
    printf "%d\n"
      variable $x : int64
)");
}

TEST(Sema, AcceptsTheLanguageCore) {
  for (const char* script : {
           "BEGIN { } END { exit(); } interval:s:1 { print(@); clear(@); zero(@); @ = 1; }",
           "BEGIN { @x++; ++@x; @x--; @y[1]++; }",
           "BEGIN { $x = 1; $x++; $x += 2; $x <<= 1; $x |= 4; print($x); }",
           "BEGIN { let $x : uint8 = 300; let $y; $y = 1; let $z = comm; print(($x, $y, $z)); }",
           "BEGIN { unroll(3) { @a = count(); } while (@n < 3) { @n++; break; } for ($i : 0..3) { "
           "continue; } }",
           "uprobe:libc:fopen { @[str(arg0), pid, func, probe] = count(); }",
           "uprobe:libc:fopen { print(*(uint32 *)arg0); print(((uint64 *)arg0)[2]); }",
           "BEGIN { $t = (1, \"a\"); print($t.1); @t = $t; print(@t.0); }",
           "BEGIN { @x[1, \"a\"] = 1; delete(@x[1, \"a\"]); delete(@x, (1, \"a\")); if "
           "(has_key(@x, (1, \"b\"))) { exit(1); } }",
           "BEGIN { pid == 1 ? printf(\"a\") : exit(); }",
           "BEGIN { print(pid ?: 7); print(nsecs(boot)); print(elapsed()); time(); time(\"%H\"); }",
           "tracepoint:syscalls:sys_enter_openat { join(args.filename); printf(\"%s\", "
           "str(args->filename)); }",
           "let @m = hash(10); BEGIN { @m[1] = 2; }",
       }) {
    expect_accepted(script);
  }
}

// ---- stacks, symbols, registers, override
// ---------------------------------------------------------------------------

TEST(Stack, IsThereWhereThereIsAHit) {
  for (const char* probe : {"uprobe:libc:fopen", "kprobe:vfs_read", "kretprobe:vfs_read",
                            "tracepoint:sched:sched_switch"}) {
    expect_accepted(std::string(probe) +
                    " { @[ustack] = count(); @k[kstack(perf, 3)] = count(); }");
  }
  expect_refused("BEGIN { print(ustack); }", "ustack is only there in uprobe");
  expect_refused("interval:s:1 { @[kstack] = count(); }", "kstack is only there in uprobe");
}

TEST(Stack, TakesAModeAndThenADepth) {
  expect_accepted(
      "uprobe:libc:fopen { print(ustack()); print(ustack(bpftrace)); print(ustack(raw, 127)); }");
  expect_refused("uprobe:libc:fopen { print(ustack(0)); }", "a stack has 1 to 127 frames");
  expect_refused("uprobe:libc:fopen { print(ustack(128)); }", "a stack has 1 to 127 frames");
  expect_refused("uprobe:libc:fopen { print(ustack(arg0 + 1)); }", "must be a constant");
  expect_refused("uprobe:libc:fopen { print(ustack(5, perf)); }", "a mode and then how many");
  expect_refused("uprobe:libc:fopen { print(ustack(wide)); }", "'wide' is no stack mode");
  expect_refused("uprobe:libc:fopen { print(ustack(build_id)); }", "build_id is not built yet");
  expect_refused("uprobe:libc:fopen { print(ustack(perf, 1, 2)); }", "takes 0 to 2 arguments");
}

TEST(Stack, IsNoNumberAndOneMapHoldsOneSort) {
  expect_refused("uprobe:libc:fopen { @ = ustack + 1; }", "needs a number");
  expect_refused("uprobe:libc:fopen { if (ustack) { exit(); } }", "");
  expect_refused("uprobe:libc:fopen { printf(\"%d\", ustack); }", "takes a number");
  expect_refused("uprobe:libc:fopen { @[ustack] = 1; @[ustack(3)] = 1; }", "");
  expect_refused("uprobe:libc:fopen { @[ustack] = 1; @[kstack] = 1; }", "");
}

TEST(Symbol, IsOfAnAddress) {
  expect_accepted("uprobe:libc:fopen { @[usym(arg0), ksym(arg1)] = count(); }");
  expect_accepted("BEGIN { printf(\"%s\", ksym(kaddr(\"vfs_read\"))); }");
  expect_refused("BEGIN { print(usym(\"main\")); }", "usym() needs a number");
  expect_refused("BEGIN { print(kaddr(\"nothing\")); }", "the kernel has no function 'nothing'");
  expect_refused("BEGIN { print(kaddr(1)); }", "must be a string literal");
}

TEST(Reg, IsAName) {
  EXPECT_NE(typed_text("uprobe:libc:fopen { @ = reg(\"ip\"); }").find("at 128"), std::string::npos);
  expect_refused("uprobe:libc:fopen { @ = reg(\"rip\"); }", "there is no register 'rip'");
  expect_refused("BEGIN { @ = reg(\"ip\"); }", "reg() is only there in uprobe");
}

TEST(Override, NeedsUnsafeAndAFunction) {
  CompileOptions unsafe;
  unsafe.allow_unsafe = true;
  expect_refused("uprobe:libc:fopen { override(0); }", "changes what the traced program does");
  expect_refused("uprobe:libc:fopen { override(0); }", "--unsafe allows it");
  expect_accepted("uprobe:libc:fopen { override(0); } kprobe:vfs_read { override(-1); }", unsafe);
  EXPECT_NE(analyze_script("tracepoint:sched:sched_switch { override(1); }", unsafe)
                .text.find("only there in uprobe and kprobe"),
            std::string::npos);
}

}  // namespace
}  // namespace spile::lang
