// What compiled scripts do: in our interpreter, and where permitted in the kernel.
#include <gtest/gtest.h>

#include <cstring>

#include "bundle/pending.h"
#include "lang/codegen/test_compile.h"
#include "lang/codegen/test_kernel.h"
#include "lang/codegen/test_machine.h"

namespace spile::lang {
namespace {

using Bytes = Machine::Bytes;

uint64_t word(const Bytes& bytes, size_t at = 0) {
  uint64_t value = 0;
  EXPECT_LE(at + 8, bytes.size());
  if (at + 8 <= bytes.size()) std::memcpy(&value, bytes.data() + at, 8);
  return value;
}
std::string text_at(const Bytes& bytes, size_t at) {
  return std::string(reinterpret_cast<const char*>(bytes.data()) + at,
                     strnlen(reinterpret_cast<const char*>(bytes.data()) + at, bytes.size() - at));
}
/// The user's part of a record: a number or string field of it.
uint64_t number_field(const Machine& machine, const Bytes& record, size_t field) {
  return word(record,
              machine.bundle().actions.at(word(record) & 0xffffffff).fields.at(field).offset);
}
std::string text_field(const Machine& machine, const Bytes& record, size_t field) {
  return text_at(record,
                 machine.bundle().actions.at(word(record) & 0xffffffff).fields.at(field).offset);
}

struct Registers {
  uint64_t words[bpf::x86_64_regs::kSize / 8] = {};
  uint64_t& at(int offset) { return words[offset / 8]; }
};
Registers arguments(uint64_t a0, uint64_t a1 = 0, uint64_t a2 = 0) {
  Registers regs;
  regs.at(bpf::x86_64_regs::kDi) = a0;
  regs.at(bpf::x86_64_regs::kSi) = a1;
  regs.at(bpf::x86_64_regs::kDx) = a2;
  return regs;
}
uint64_t address(const void* p) {
  return reinterpret_cast<uint64_t>(p);
}

void run_ok(Machine& machine, size_t program = 0, const void* context = nullptr) {
  auto result = machine.run(program, context);
  ASSERT_TRUE(result.has_value()) << result.error().message;
}

// ---- numbers
// ----------------------------------------------------------------------------------------------------------

struct Calculation {
  const char* code;  ///< leaves its result in @r
  int64_t expected;
};

const Calculation kCalculations[] = {
    // Division has the sign of both, the remainder that of the dividend.
    {"$a = (int64)-7; $b = (int64)2; @r = $a / $b;", -3},
    {"$a = (int64)7; $b = (int64)-2; @r = $a / $b;", -3},
    {"$a = (int64)-7; $b = (int64)-2; @r = $a / $b;", 3},
    {"$a = (int64)-7; $b = (int64)2; @r = $a % $b;", -1},
    {"$a = (int64)7; $b = (int64)-2; @r = $a % $b;", 1},
    {"$a = (int64)-7; @r = $a / 2;", -3},
    {"$a = (int64)-7; @r = $a % 2;", -1},
    {"$a = (int64)-7; @r = $a / -7;", 1},
    {"$a = (int64)-9223372036854775807 - 1; $b = (int64)-1; @r = $a / $b;", INT64_MIN},
    {"$a = (int64)-9223372036854775807 - 1; $b = (int64)-1; @r = $a % $b;", 0},
    {"$a = (int64)-5; $b = (int64)0; @r = $a / $b;", 0},
    {"$a = (int64)-5; $b = (int64)0; @r = $a % $b;", -5},
    {"$a = (uint64)18446744073709551615; @r = $a / 2;", INT64_MAX},
    {"$a = (uint64)18446744073709551615; $b = (uint64)10; @r = $a % $b;", 5},
    // Shifts by sign of the left side.
    {"$a = (int64)-16; @r = $a >> 2;", -4},
    {"$a = (uint64)18446744073709551600; @r = $a >> 60;", 15},
    {"$a = (int64)-1; $b = (uint64)63; @r = $a >> $b;", -1},
    {"$a = (int64)1; $b = 63; @r = $a << $b;", INT64_MIN},
    // Comparison by sign.
    {"$a = (int64)-1; @r = $a < 0;", 1},
    {"$a = (int64)-1; $b = (int64)1; @r = $a < $b;", 1},
    {"$a = (uint64)18446744073709551615; @r = $a > 0;", 1},
    {"$a = (uint64)18446744073709551615; $b = (uint64)1; @r = $a > $b;", 1},
    {"$a = (uint64)18446744073709551615; $b = (uint64)1; @r = $a <= $b;", 0},
    {"$a = (int64)-1; $b = (uint32)1; @r = $a >= $b;", 0},
    {"$a = 5; @r = $a == 5;", 1},
    {"$a = 5; @r = $a != 5;", 0},
    {"$a = 0x123456789ab; @r = $a == 0x123456789ab;", 1},
    {"$a = 0x80000000; @r = $a > 0x7fffffff;", 1},
    {"$a = (uint64)5; @r = $a < 0xffffffffffffffff;", 1},
    // Precedence, unary, bits.
    {"$a = 2; @r = $a + 3 * 4;", 14},
    {"$a = 2; $b = 3; @r = ($a + $b) * ($a - $b);", -5},
    {"$a = 10; $b = 3; @r = $a - $b - 2;", 5},
    {"$a = 100; $b = 7; $c = 2; @r = $a / $b / $c;", 7},
    {"$a = 1; @r = ~$a;", -2},
    {"$a = 1; @r = -$a;", -1},
    {"$a = 5; @r = !$a + !0;", 1},
    {"$a = 0xff; $b = 0x0f; @r = $a & $b | 0x100 ^ 0x1;", 0x10f},
    // A deep right side needs every register and then the stack.
    {"$a = 1; @r = pid - (pid - (pid - (pid - (pid - (pid - $a)))));", 1},
    {"@r = (pid + tid) * (pid - tid) - ((pid + 1) * (pid - (tid + cpu * (pid - tid)))) * 0 - (pid "
     "+ tid) * (pid - tid);",
     0},
    // Truth.
    {"$a = 5; $b = 0; @r = $a && $b;", 0},
    {"$a = 5; $b = 6; @r = $a && $b;", 1},
    {"$a = 0; $b = 6; @r = $a || $b;", 1},
    {"$a = 0; @r = !($a || $a) && (1 || $a);", 1},
    {"$n = 0; $a = 0; $b = $a && $n++; @r = $n;", 0},
    {"$n = 0; $a = 1; $b = $a || $n++; @r = $n;", 0},
    {"$n = 0; $a = 1; $b = $a && $n++; @r = $n;", 1},
    {"$a = 3; @r = $a > 2 ? 10 : 20;", 10},
    {"$a = 1; @r = $a > 2 ? 10 : 20;", 20},
    {"$a = 0; @r = $a ?: 9;", 9},
    {"$a = 4; @r = $a ?: 9;", 4},
    {"$n = 0; $b = $n++ ?: 7; @r = $n * 10 + $b;", 17},
    // Casts.
    {"$a = 300; @r = (uint8)$a;", 44},
    {"$a = 200; @r = (int8)$a;", -56},
    {"$a = 70000; @r = (uint16)$a;", 4464},
    {"$a = 40000; @r = (int16)$a;", -25536},
    {"$a = 4294967299; @r = (uint32)$a;", 3},
    {"$a = 4294967295; @r = (int32)$a;", -1},
    {"$a = 7; @r = (bool)$a;", 1},
    {"let $x : uint8 = 255; $x++; @r = $x;", 0},
    {"let $x : int8 = 127; $x += 1; @r = $x;", -128},
    // Variables.
    {"$x = 5; @r = $x++ * 100 + $x;", 506},
    {"$x = 5; @r = ++$x * 100 + $x--;", 606},
    {"$x = 5; $x += 2; $x *= 3; $x -= 1; $x /= 4; $x %= 3; $x <<= 4; $x >>= 1; $x |= 1; $x ^= 3; "
     "$x &= 0xfe; @r = $x;",
     18},
    {"let $x; @r = $x;", 0},
    {"let $x; if (pid) { $x = 3; } @r = $x;", 3},
    // Maps as numbers.
    {"@r++; @r++; @r--;", 1},
    {"@a = 5; @r = @a++ * 100 + @a;", 506},
    {"@a = 5; @r = --@a * 100 + @a;", 404},
    {"@a = 6; @r = @a-- * 100 + @a;", 605},
    {"@a += 5; @a *= 3; @a -= 1; @a /= 4; @a %= 2; @a <<= 4; @a |= 1; @a ^= 3; @a &= 0xfe; @a >>= "
     "1; @r = @a;",
     9},
    {"@a = -7; @a /= 2; @r = @a;", -3},
    {"@a[1] = 3; @a[2] = 4; @r = @a[1] * 10 + @a[2] + @a[3];", 34},
    {"@a[\"x\", 1] = 3; @a[\"yy\", 1] = 4; @r = @a[\"x\", 1] * 10 + @a[\"yy\", 1] + @a[\"x\", 2];",
     34},
    {"@a[1] = 1; delete(@a[1]); @r = @a[1] + has_key(@a, 1) * 10;", 0},
    {"@a[1] = 1; @r = has_key(@a, 1) * 10 + has_key(@a, 2);", 10},
    {"@a = 3; delete(@a); @r = @a;", 0},
    // Loops.
    {"for ($i : 0..5) { @r += $i; }", 10},
    {"for ($i : -2..3) { @r += $i * $i; }", 10},
    {"for ($i : 0..10) { if ($i == 3) { continue; } if ($i == 6) { break; } @r += $i; }", 12},
    {"for ($i : 0..3) { for ($j : 0..3) { if ($j == 2) { break; } @r += 1; } }", 6},
    {"for ($i : 0..3) { $i = 100; @r += 1; }", 3},
    {"$i = 0; while ($i < 7) { $i++; if ($i == 2) { continue; } @r += $i; }", 26},
    {"unroll(5) { @r += 2; }", 10},
    {"$n = 0; unroll(3) { $k = $n; $n = $n + $k + 1; } @r = $n;", 7},
    {"for ($i : 0..1000) { @r += $i; }", 499500},
    {"$n = 300; for ($i : 0..$n) { for ($j : $i..300) { if ($j == $i + 2) { break; } @r++; } }",
     599},
    {"$n = 100; for ($i : 0..$n) { $n = 5; if ($i == 3) { continue; } if ($i == 60) { break; } @r "
     "+= "
     "$i; }",
     1767},
    {"$i = 0; while ($i < 5000) { $i += 1; if ($i % 2 == 0) { continue; } @r += 1; }", 2500},
    {"for ($i : 0..200) { @r = $i; if ($i == 150) { return; } } @r = -1;", 150},
    {"for ($i : 0..200) { $k = 0; while ($k < 100) { $k++; if ($i == 3 && $k == 70) { exit(); } "
     "@r++; "
     "} } @r = -1;",
     369},
    {"$s = \"\"; for ($i : 0..50) { $s = $i == 40 ? \"forty\" : $s; } @r = $s == \"forty\";", 1},
    {"for ($i : 0..100) { $t = (pid ? $i : 0, \"x\"); @r += $t.0; }", 4950},
    // Walks through maps.
    {"@x[3] = 30; @x[4] = 40; for ($kv : @x) { @r += $kv.0 * 1000 + $kv.1; }", 7070},
    {"@x[\"a\", 1] = (5, \"b\"); for ($kv : @x) { @r = ($kv.0.0 == \"a\") * 100 + $kv.0.1 * 10 + "
     "$kv.1.0 + ($kv.1.1 == \"b\"); }",
     116},
    {"@x[1] = 1; @x[2] = 2; @x[3] = 3; for ($kv : @x) { if ($kv.1 == 2) { continue; } @r += $kv.1; "
     "}",
     4},
    {"for ($i : 0..100) { @x[$i] = $i; } for ($kv : @x) { @n++; if (@n == 10) { break; } } @r = "
     "@n;",
     10},
    {"for ($i : 0..100) { @x[$i] = $i; } for ($kv : @x) { if ($kv.0 % 2) { delete(@x, $kv.0); } "
     "@n++; "
     "} @r = @n * 1000 + len(@x);",
     100050},
    {"@x[1] = 5; @y[2] = 6; for ($a : @x) { for ($b : @y) { @r = $a.1 * 10 + $b.1; @x[1] = 9; } }",
     56},
    {"@x[1] = 1; for ($kv : @x) { for ($i : 0..100) { if ($i == 7) { @r = 77; return; } } } @r = "
     "0;",
     77},
    {"@x[1] = 1; delete(@x, 1); @r = 3; for ($kv : @x) { @r = 4; }", 3},
    {"@r = len(@x); @x[1] = 1; @x[2] = 1; @r = @r * 10 + len(@x);", 2},
    // Booleans, copies of arrays, what is known before the script runs.
    {"$b = pid > 0; $c = !$b; @r = (int64)$b * 10 + (int64)$c;", 10},
    {"@a[pid > 0] = 5; @r = @a[true];", 5},
    {"$t = (1, \"a\", pid > 0); @r = ($t == (1, \"a\", true)) * 10 + ($t != (2, \"a\", true));",
     11},
    {"@k[pton(\"10.0.0.1\")] = 7; @r = @k[pton(\"10.0.0.1\")] * 10 + @k[pton(\"10.0.0.2\")];", 70},
    {"$a = pton(\"10.20.30.40\"); @r = $a[1] * 10 + ($a == pton(\"10.20.30.40\"));", 201},
    {"@x[1] = 5; $d = delete(@x, 1); $e = delete(@x, 1); @r = $d * 10 + $e;", 10},
    {"@x[1] = 42; let $v; if (find(@x, 1, $v)) { @r = $v; } if (find(@x, 2, $v)) { @r = 0; }", 42},
    {"if comptime (1 == 2) { @r = 1; } else { @r = comptime (2 * 3); }", 6},
    {"@r = is_str(comm) * 10 + is_integer(comm) + is_literal(3) * 100 + is_ptr((int8 *)pid);", 111},
    {"if (1 == 2) { fail(\"never\"); } static_assert(sizeof(int32) == 4, \"four\"); @r = 4;", 4},
    {"$s = comm; @r = strstr(\"abcdef\", \"cd\") * 10 + strstr(\"abc\", \"x\");", 19},
    {"@r = twice(20) + twice(pid - pid + 1);", 42},
    {"@r = kind(pid - pid + 15) * 10000 + kind(7) * 1000 + kind(twice(11)) * 100 + kind(5);",
     12405},
    {"for ($i : 0..200) { @r += kind(pid - pid + $i); }", 1172},
    // Numbers, texts and arrays as each other's bytes.
    {"$n = (uint32)(pid - pid) + 0x01020304; $a = (uint8[4])(uint32)$n; @r = $a[0] * 10 + $a[3];",
     41},
    {"@r = (int64)(int32)(uint8[4])(uint32)(0xfffffffe + pid - pid);", -2},
    {"$a = (uint16[2])pton(\"1.2.3.4\"); @r = $a[1];", 0x0403},
    {"$s = comm; $a = (int8[])$s; @r = sizeof($a) * 1000 + (int64)($a[15] == 0);", 16001},
    {"$s = (string[3])\"abcdef\"; @r = ($s == \"ab\") * 10 + strlen($s);", 12},
    {"@m = \"abcdef\"; @m = \"abcdefghijkl\"; $s = (string[4])@m; @r = ($s == \"abc\") * 10 + "
     "strlen($s);",
     13},
    {"@k[(uint8[2])(uint16)(pid - pid + 5)] = 3; @r = @k[(uint8[2])(uint16)5];", 3},
    // Pointers move by what they point to.
    {"$p = (uint32 *)(pid - pid + 100); $q = $p++; ++$p; $p += 3; $p -= 1; @r = (uint64)$p * 1000 "
     "+ (uint64)$q;",
     116100},
    {"@p = (uint16 *)100; @p++; @p += 5; @p -= 2; --@p; @r = (int64)@p;", 106},
    // The empty tuple is a value like others.
    {"@e[()] = 4; $t = (); @r = @e[$t] * 10 + ($t == ());", 41},
    {"$t = ((), 5); @e = $t; @r = @e.1;", 5},
    // Control flow.
    {"@r = 1; if (pid == 0) { @r = 2; } else if (pid) { @r = 3; } else { @r = 4; }", 3},
    {"@r = 1; return; @r = 2;", 1},
    {"@r = 1; exit(); @r = 2;", 1},
    {"@r = 1; if (pid) { exit(); } @r = 2;", 1},
    {"@r = 5; pid ? exit() : print(1); @r = 2;", 5},
    // Strings.
    {"$s = \"hello\"; @r = ($s == \"hello\") * 10 + ($s == \"hell\") + ($s == \"helloo\") + ($s != "
     "\"x\");",
     11},
    {"$s = \"a string of 26 characters\"; $t = \"a string of 26 characters\"; @r = $s == $t;", 1},
    {"$s = \"a string of 26 characters\"; $t = \"a string of 26 characterz\"; @r = $s == $t;", 0},
    {"$s = \"abc\"; $t = \"abc is a longer string\"; @r = ($s == $t) * 10 + ($s != $t);", 1},
    {"@m = \"xyz\"; @r = (@m == \"xyz\") * 10 + (@n == \"\") ; @n = \"abc\";", 11},
    {"$s = pid ? \"yes\" : \"definitely not\"; @r = $s == \"yes\";", 1},
    {"@k[\"abc\"] = 1; @k[\"a much longer key than abc\"] = 2; @r = @k[\"abc\"] * 10 + @k[\"a much "
     "longer key than abc\"];",
     12},
    {"$c = comm; @k[$c] = 7; @k[\"a key that makes all keys longer\"] = 8; @r = @k[comm];", 7},
    // Tuples.
    {"$t = (1, \"two\", (3, 4)); @r = $t.0 * 100 + ($t.1 == \"two\") * 10 + $t.2.1;", 114},
    {"$t = (1, 2); $t = ($t.1, $t.0); @r = $t.0 * 10 + $t.1;", 21},
    {"@t = (\"a\", 5); @t = (\"a much longer string\", 6); $u = @t; @r = $u.1 * 10 + ($u.0 == \"a "
     "much longer string\");",
     61},
    {"@k[(1, (2, 3))] = 5; @r = @k[1, (2, 3)];", 5},
};

void PrintTo(const Calculation& calculation, std::ostream* out) {
  *out << calculation.code;
}

class Calculates : public testing::TestWithParam<Calculation> {
 protected:
  std::string script() const {
    return std::string(
               "fn twice($n : int64) : int64 { $n += $n; return $n; } "
               "fn kind($n : int64) : int64 { if ($n > 10) { if ($n > 20) { return 3; } return 1; "
               "} "
               "else if ($n > 5) { return 2; } $n += 100; return $n; } BEGIN { ") +
           GetParam().code + " }";
  }
};

TEST_P(Calculates, InTheInterpreter) {
  Machine machine(must_compile(script()));
  run_ok(machine);
  EXPECT_EQ(static_cast<int64_t>(machine.number("@r")), GetParam().expected) << script();
  for (auto counter :
       {bundle::Counter::kRingLost, bundle::Counter::kMapFull, bundle::Counter::kReadFailed}) {
    EXPECT_EQ(machine.lost(counter), 0u);
  }
}

TEST_P(Calculates, InTheKernel) {
  if (!why_no_kernel().empty()) GTEST_SKIP() << why_no_kernel();
  CompileOptions options;
  options.calls_loops = true;
  Machine machine(must_compile(script(), options));  // only for the index of @r
  auto kernel = KernelBundle::load(machine.bundle());
  ASSERT_TRUE(kernel.has_value()) << script() << "\n" << kernel.error().message;
  auto ran = kernel->run(0);
  ASSERT_TRUE(ran.has_value()) << ran.error().message;
  auto value = kernel->lookup(machine.map_index("@r"), Bytes(8), 8);
  ASSERT_TRUE(value.has_value()) << script() << "\n" << value.error().message;
  EXPECT_EQ(static_cast<int64_t>(word(*value)), GetParam().expected) << script();
}

INSTANTIATE_TEST_SUITE_P(Codes, Calculates, testing::ValuesIn(kCalculations));

// ---- static tracepoints
// -------------------------------------------------------------------------------------------------------

/// query_start of the fake world: -4@%edi and -4@$5 at one place, -4@-20(%rbp), -4@$5 and 1@%ah at
/// the other. query_done: 1@(%rax,%rcx,8) and 8@g(%rip).
TEST(Usdt, ReadsEachPlaceWithItsOwnProgram) {
  Machine machine(must_compile(
      "usdt:redis-server:query_start { @r = arg0; @five = arg1; @low = (int32)arg0; }"));
  namespace regs = bpf::x86_64_regs;
  Registers in_register = arguments(0xffffffff'fffffff9);  // only the low half counts
  in_register.at(regs::kDi) = 0x00000001'fffffff9;
  const int32_t local[6] = {-70};  // 20 bytes below the frame pointer of this frame
  Registers on_stack;
  on_stack.at(regs::kBp) = address(local) + 20;
  ASSERT_EQ(machine.bundle().programs.size(), 2u);
  run_ok(machine, 0, &in_register);
  EXPECT_EQ(static_cast<int64_t>(machine.number("@r")), -7);
  EXPECT_EQ(machine.number("@five"), 5u);
  run_ok(machine, 1, &on_stack);
  EXPECT_EQ(static_cast<int64_t>(machine.number("@r")), -70);
  EXPECT_EQ(static_cast<int64_t>(machine.number("@low")), -70);
  EXPECT_EQ(machine.number("@five"), 5u);
}

TEST(Usdt, ReadsIndexedAndSymbolicMemory) {
  Machine machine(must_compile("usdt:redis-server:query_done { @r = arg0; @g = arg1; }"));
  namespace regs = bpf::x86_64_regs;
  const uint64_t table[4] = {0, 0, 0xfe, 0};
  const uint64_t global = 77;
  Registers at;
  at.at(regs::kAx) = address(table);
  at.at(regs::kCx) = 2;
  at.at(regs::kIp) = address(&global) - 0x2000;  // so far is the symbol from the tracepoint
  run_ok(machine, 0, &at);
  EXPECT_EQ(machine.number("@r"), 0xfeu);
  EXPECT_EQ(machine.number("@g"), 77u);
}

TEST(Usdt, CountsAReadThatFails) {
  Machine machine(must_compile("usdt:redis-server:query_done { @r = arg0 + 1; }"));
  Registers nowhere;
  run_ok(machine, 0, &nowhere);
  EXPECT_EQ(machine.number("@r"), 1u);
  EXPECT_EQ(machine.lost(bundle::Counter::kReadFailed), 1u);
}

TEST(Usdt, GivesPlacesOfOneNameOneCookie) {
  Machine machine(must_compile("usdt:redis-server:query_start /arg1 == 5/ { @r = arg1; }"));
  EXPECT_EQ(machine.bundle().programs.size(), 1u);
  bundle::Bundle high = must_compile("usdt:redis-server:query_st* { @r = arg0; }");
  EXPECT_EQ(high.probes[0].cookie, 0);
  EXPECT_EQ(high.probes[1].cookie, 0);  // of one name: one cookie
  EXPECT_NE(high.probes[0].program, high.probes[1].program);
}

// ---- aggregations
// -------------------------------------------------------------------------------------------------------

/// Runs a uprobe clause once for each number as arg0.
Machine& feed(Machine& machine, std::initializer_list<int64_t> numbers) {
  for (int64_t number : numbers) {
    Registers regs = arguments(static_cast<uint64_t>(number));
    run_ok(machine, 0, &regs);
  }
  return machine;
}

TEST(Aggregates, CountsAndSums) {
  Machine machine(
      must_compile("uprobe:libc:malloc { @c = count(); @s = sum(arg0); @k[arg0] = count(); @a = "
                   "avg(arg0); @b[1] = avg(arg0); }"));
  feed(machine, {3, 5, 3});
  EXPECT_EQ(machine.number("@c"), 3u);
  EXPECT_EQ(machine.number("@s"), 11u);
  EXPECT_EQ(word(machine.contents("@k")[Machine::key({3})]), 2u);
  EXPECT_EQ(word(machine.contents("@k")[Machine::key({5})]), 1u);
  EXPECT_EQ(word(machine.contents("@a")[Machine::bytes_of(0)], 0), 3u);
  EXPECT_EQ(word(machine.contents("@a")[Machine::bytes_of(0)], 8), 11u);
  EXPECT_EQ(word(machine.contents("@b")[Machine::key({1})], 8), 11u);
}

/// min() and max() of some numbers as the bundle says they are read.
void expect_extremes(const char* cast,
                     bool is_signed,
                     std::initializer_list<int64_t> numbers,
                     int64_t min,
                     int64_t max) {
  Machine machine(must_compile(fmt::format(
      "uprobe:libc:malloc {{ @n = min({0}arg0); @x = max({0}arg0); @k[1] = max({0}arg0); }}",
      cast)));
  EXPECT_EQ(machine.bundle().maps[static_cast<size_t>(machine.map_index("@n"))].value.is_signed,
            is_signed);
  feed(machine, numbers);
  Bytes n = machine.contents("@n")[Machine::bytes_of(0)],
        x = machine.contents("@x")[Machine::bytes_of(0)];
  using bundle::MapRole;
  EXPECT_EQ(static_cast<int64_t>(bundle::number_of_rank(MapRole::kMin, is_signed, word(n))), min);
  EXPECT_EQ(static_cast<int64_t>(bundle::number_of_rank(MapRole::kMax, is_signed, word(x))), max);
  EXPECT_EQ(word(machine.contents("@k")[Machine::key({1})]), word(x));
  EXPECT_EQ(word(n, 8), 1u);
  EXPECT_EQ(word(x, 8), 1u);
}

TEST(Aggregates, FindsExtremes) {
  expect_extremes("", false, {5, 3, 9}, 3, 9);
  expect_extremes("", false, {0}, 0, 0);
  expect_extremes("", false, {-1, 7}, 7, -1);  // unsigned: -1 is the largest
  expect_extremes("(int64)", true, {5, -3, 9}, -3, 9);
  expect_extremes("(int64)", true, {-5, -3}, -5, -3);
  expect_extremes("(int64)", true, {INT64_MIN, INT64_MAX}, INT64_MIN, INT64_MAX);
}

TEST(Aggregates, PutsPowersOfTwoIntoTheirBuckets) {
  Machine machine(must_compile("uprobe:libc:malloc { @ = hist(arg0); @k[7] = hist(arg0); }"));
  for (int bit = 0; bit < 63; ++bit) {
    for (uint64_t value : {uint64_t{1} << bit, (uint64_t{1} << bit) + ((uint64_t{1} << bit) - 1)}) {
      Machine one(machine.bundle());
      feed(one, {static_cast<int64_t>(value)});
      auto bucket = static_cast<uint32_t>(bit + 2);
      EXPECT_EQ(word(one.contents("@")[Machine::bytes_of(bucket)]), 1u) << value;
      EXPECT_EQ(word(one.contents("@k")[Machine::key({7, bucket})]), 1u) << value;
    }
  }
  feed(machine, {0, -1, INT64_MIN});
  EXPECT_EQ(word(machine.contents("@")[Machine::bytes_of(1)]), 1u);
  EXPECT_EQ(word(machine.contents("@")[Machine::bytes_of(0)]), 2u);
  EXPECT_EQ(machine.bundle().maps[0].max_entries, 65u);
}

TEST(Aggregates, PutsNumbersIntoLinearBuckets) {
  Machine machine(must_compile(
      "uprobe:libc:malloc { @ = lhist(arg0, -10, 25, 10); @k[1] = lhist(arg0, -10, 25, 10); }"));
  EXPECT_EQ(machine.bundle().maps[0].max_entries, 6u);  // below, -10, 0, 10, 20, from 25 on
  struct {
    int64_t value;
    uint32_t bucket;
  } const cases[] = {{-11, 0}, {INT64_MIN, 0}, {-10, 1}, {-1, 1}, {0, 2},        {9, 2},
                     {10, 3},  {20, 4},        {24, 4},  {25, 5}, {INT64_MAX, 5}};
  for (auto [value, bucket] : cases) {
    Machine one(machine.bundle());
    feed(one, {value});
    EXPECT_EQ(word(one.contents("@")[Machine::bytes_of(bucket)]), 1u) << value;
    EXPECT_EQ(word(one.contents("@k")[Machine::key({1, bucket})]), 1u) << value;
  }
}

TEST(Aggregates, DeletesEveryBucketOfAKey) {
  Machine machine(
      must_compile("uprobe:libc:malloc { @h[arg0] = hist(arg1); @l[arg0] = lhist(arg1, 0, 10, 1); }"
                   "uprobe:libc:fopen { delete(@h[arg0]); delete(@l[arg0]); }"));
  for (uint64_t key : {1, 2}) {
    for (uint64_t value : {0, 1, 5, 1000}) {
      Registers regs = arguments(key, value);
      run_ok(machine, 0, &regs);
    }
  }
  Registers regs = arguments(1);
  run_ok(machine, 1, &regs);
  EXPECT_EQ(machine.contents("@h").size(), 4u);
  EXPECT_EQ(machine.contents("@l").size(), 4u);
  for (const auto& [key, value] : machine.contents("@h")) EXPECT_EQ(word(key), 2u);
}

TEST(Aggregates, LoseNothingWhenAnotherCpuMakesTheKeyFirst) {
  Machine machine(must_compile("uprobe:libc:malloc { @c[arg0] = count(); @m[arg0] += 2; @x++; }"));
  machine.before_update = [&](int map, const Bytes& key) { machine.set(map, key, 40); };
  feed(machine, {1});
  EXPECT_EQ(machine.number("@c"), 41u);
  EXPECT_EQ(machine.number("@m"), 42u);
  EXPECT_EQ(machine.number("@x"), 41u);
}

TEST(Aggregates, CountsUpdatesThatFindTheMapFull) {
  Machine machine(
      must_compile("uprobe:libc:malloc { @c[arg0] = count(); @v[arg0] = 1; @m[arg0]++; @h[arg0] = "
                   "hist(1); @x[arg0] = max(1); }"));
  machine.maps_are_full = true;
  feed(machine, {1, 2});
  EXPECT_EQ(machine.lost(bundle::Counter::kMapFull), 10u);
  EXPECT_TRUE(machine.contents("@c").empty());
}

// ---- strings, memory
// ----------------------------------------------------------------------------------------------------

TEST(Memory, ReadsStringsAndPadsKeys) {
  Machine machine(must_compile(
      "uprobe:libc:fopen { @[str(arg0)] = count(); @v = str(arg0, 3); @w[str(arg0, arg1)] = 1; }"));
  std::string path = "/etc/services";
  for (int i = 0; i < 2; ++i) {
    Registers regs = arguments(address(path.data()), 4);
    run_ok(machine, 0, &regs);
  }
  Bytes key(path.begin(), path.end());
  key.resize(128);
  ASSERT_EQ(machine.contents("@").size(), 1u);
  EXPECT_EQ(word(machine.contents("@")[key]), 2u);
  EXPECT_EQ(text_at(machine.contents("@v").begin()->second, 0), "/et");
  EXPECT_EQ(machine.bundle().maps[static_cast<size_t>(machine.map_index("@v"))].value_size, 8u);
  Bytes four = {'/', 'e', 't', 'c'};
  four.resize(128);
  EXPECT_TRUE(machine.contents("@w").contains(four));
}

TEST(Memory, PadsKeysAndValuesOnAStackThatWasUsed) {
  Machine machine(must_compile(
      "uprobe:libc:fopen { @a[str(arg0)] = str(arg0); @b[str(arg1)] = str(arg1); @c[comm, "
      "str(arg1, 20)] = comm; @c[\"a long text in the key\", str(arg0)] = str(arg0);"
      "{ $s = str(arg0); $t = str(arg1); @d[$t] = $t; } @e[buf(arg1, 2)] = 1; @f[pid ? str(arg1) : "
      "str(arg0)] = 1;"
      "@a[str(arg0)] = str(arg0); { $c = comm; @g[$c, 1] = 1; } @g[\"a text that makes all keys "
      "longer\", 2] = 1; }"));
  std::string longer(100, 'x'), shorter = "ab";
  Registers regs = arguments(address(longer.data()), address(shorter.data()));
  run_ok(machine, 0, &regs);
  Bytes expected = {'a', 'b'};
  expected.resize(128);
  EXPECT_EQ(machine.contents("@b").begin()->first, expected);
  EXPECT_EQ(machine.contents("@b").begin()->second, expected);
  EXPECT_EQ(machine.contents("@d").begin()->first, expected);
  EXPECT_EQ(machine.contents("@d").begin()->second, expected);
  EXPECT_EQ(machine.contents("@f").begin()->first, expected);
  EXPECT_EQ(machine.contents("@e").begin()->first, (Bytes{2, 0, 0, 0, 'a', 'b', 0, 0}));
  Bytes copied = {'t', 'e', 's', 't', 'e', 'r'};
  copied.resize(40);
  copied.resize(48, 0);
  copied[40] = 1;
  EXPECT_TRUE(machine.contents("@g").contains(copied));
  Bytes comm_key = {'t', 'e', 's', 't', 'e', 'r'};
  comm_key.resize(24);  // the longest text of this part has 23 bytes
  comm_key.insert(comm_key.end(), expected.begin(), expected.end());
  EXPECT_TRUE(machine.contents("@c").contains(comm_key));
}

TEST(Memory, AnUnreadableStringIsEmptyAndCounted) {
  Machine machine(
      must_compile("uprobe:libc:fopen { @[str(arg0)] = count(); printf(\"%s\", str(arg0)); @e = "
                   "str(arg0) == \"\"; @b[buf(arg0, 6)] = 1; @n = *(uint32 *)arg0; }"));
  Registers regs = arguments(0);
  run_ok(machine, 0, &regs);
  EXPECT_TRUE(machine.contents("@").contains(Bytes(128)));
  ASSERT_EQ(machine.records.size(), 1u);
  EXPECT_EQ(text_field(machine, machine.records[0], 0), "");
  EXPECT_EQ(machine.number("@e"), 1u);
  EXPECT_EQ(machine.number("@n"), 0u);
  EXPECT_TRUE(machine.contents("@b").contains(Bytes(16)));  // length 0
  EXPECT_EQ(machine.lost(bundle::Counter::kReadFailed), 5u);
}

TEST(Memory, ComparesStringsOfTheTarget) {
  Machine machine(must_compile(
      "uprobe:libc:fopen { @r = (str(arg0) == \"abc\") * 8 + (str(arg0) == \"ab\") * 4 + "
      "(str(arg0) == \"abcd\") * 2 + (str(arg0, 2) == \"ab\"); @q = str(arg0) == str(arg1); }"));
  struct {
    const char *text, *other;
    uint64_t r, q;
  } const cases[] = {{"abc", "abc", 9, 1}, {"ab", "abc", 5, 0}, {"abcd", "abcd", 3, 1},
                     {"", "", 0, 1},       {"x", "", 0, 0},     {"abce", "abce", 1, 1}};
  for (const auto& one : cases) {
    Registers regs = arguments(address(one.text), address(one.other));
    run_ok(machine, 0, &regs);
    EXPECT_EQ(machine.number("@r"), one.r) << one.text;
    EXPECT_EQ(machine.number("@q"), one.q) << one.text;
  }
}

TEST(Memory, NoStringMatchesALiteralThatDoesNotFit) {
  CompileOptions options;
  options.max_strlen = 8;
  Machine machine(must_compile(
      "uprobe:libc:fopen { @r = str(arg0) == \"12345678\"; @s = str(arg0) == \"1234567\"; }",
      options));
  const char* text = "12345678";
  Registers regs = arguments(address(text));
  run_ok(machine, 0, &regs);
  EXPECT_EQ(machine.number("@r"), 0u);
  EXPECT_EQ(machine.number("@s"), 1u);  // what str() can hold of it
}

TEST(Memory, LoadsNumbersThroughPointers) {
  Machine machine(
      must_compile("uprobe:libc:fopen { @a = *(uint32 *)arg0; @b = *(int8 *)arg0; @c = ((int16 "
                   "*)arg0)[1]; @d = **(int32 **)arg1; @e = *((uint8 *)arg0 + 3); }"));
  const uint32_t value = 0xfedc80ff;
  const void* pointer = &value;
  Registers regs = arguments(address(&value), address(&pointer));
  run_ok(machine, 0, &regs);
  EXPECT_EQ(machine.number("@a"), 0xfedc80ffu);
  EXPECT_EQ(static_cast<int64_t>(machine.number("@b")), -1);
  EXPECT_EQ(static_cast<int64_t>(machine.number("@c")), static_cast<int16_t>(0xfedc));
  EXPECT_EQ(static_cast<int64_t>(machine.number("@d")), static_cast<int32_t>(value));
  EXPECT_EQ(machine.number("@e"), 0xfeu);
}

TEST(Memory, ReadsBuffers) {
  Machine machine(
      must_compile("uprobe:libc:fopen { printf(\"%r %r\", buf(arg0, 3), buf(arg0, arg1)); @ = "
                   "buf(arg0, arg1); }"));
  std::string text = "abcdefgh";
  Registers regs = arguments(address(text.data()), 5);
  run_ok(machine, 0, &regs);
  ASSERT_EQ(machine.records.size(), 1u);
  const auto& fields = machine.bundle().actions[0].fields;
  const Bytes& record = machine.records[0];
  EXPECT_EQ(record[fields[0].offset], 3);
  EXPECT_EQ(std::memcmp(&record[fields[0].offset + 4], "abc", 3), 0);
  EXPECT_EQ(record[fields[1].offset], 5);
  EXPECT_EQ(std::memcmp(&record[fields[1].offset + 4], "abcde", 5), 0);
  EXPECT_EQ(machine.contents("@").begin()->second[4], 'a');
  EXPECT_EQ(machine.contents("@").begin()->second[9], 0);
}

TEST(Memory, ClampsLengths) {
  CompileOptions options;
  options.max_strlen = 16;
  Machine machine(
      must_compile("uprobe:libc:fopen { @b = buf(arg0, arg1); @s = str(arg0, arg1); }", options));
  std::string text(64, 'x');
  for (uint64_t length : {uint64_t{1000}, ~uint64_t{0}}) {
    Registers regs = arguments(address(text.data()), length);
    run_ok(machine, 0, &regs);
    EXPECT_EQ(machine.contents("@b").begin()->second[0], 16);
    EXPECT_EQ(text_at(machine.contents("@s").begin()->second, 0), std::string(15, 'x'));
  }
}

// ---- contexts
// -----------------------------------------------------------------------------------------------------------

TEST(Contexts, ReadFieldsOfEvents) {
  Machine machine(
      must_compile("tracepoint:sched:sched_switch { @p = args.prev_pid; @s = args.prev_state; "
                   "@c[args.prev_comm, args.next_comm] = 1; }"));
  struct {
    uint64_t common = 0;
    char prev_comm[16] = "one";
    int32_t prev_pid = -5, prev_prio = 120;
    int64_t prev_state = -2;
    char next_comm[16] = "fifteen_letters";
    int32_t next_pid = 7, pad = 0;
  } event;
  run_ok(machine, 0, &event);
  EXPECT_EQ(static_cast<int64_t>(machine.number("@p")), -5);
  EXPECT_EQ(static_cast<int64_t>(machine.number("@s")), -2);
  Bytes key = machine.contents("@c").begin()->first;
  EXPECT_EQ(text_at(key, 0), "one");
  EXPECT_EQ(text_at(key, 16), "fifteen_letters");
}

TEST(Contexts, ReadArraysOfEvents) {
  Machine machine(must_compile(
      "tracepoint:odd:packed { $a = args.list; @r = $a[0] * 10 + $a[1]; @k[args.list] = 1; "
      "@same = args.list == $a; @one = args.list[1]; }"));
  struct {
    uint64_t common = 0, before = 0;
    uint32_t list[2] = {4, 2};
    uint64_t behind = ~0ull;
  } event;
  run_ok(machine, 0, &event);
  EXPECT_EQ(machine.number("@r"), 42u);
  EXPECT_EQ(machine.number("@same"), 1u);
  EXPECT_EQ(machine.number("@one"), 2u);
  const Bytes key = machine.contents("@k").begin()->first;
  EXPECT_EQ(key.size(), 8u);
  EXPECT_EQ(word(key), (uint64_t{2} << 32) | 4);
}

TEST(Contexts, ReadStringsThatFollowTheRecord) {
  Machine machine(
      must_compile("tracepoint:sched:sched_process_exec { printf(\"%s %d\", args.filename, "
                   "args.pid); @ = args.filename == \"/bin/true\"; }"));
  struct {
    uint64_t common = 0;
    uint32_t where = 10u << 16 | 20;
    int32_t pid = 42, old_pid = 41;
    char text[12] = "/bin/true";
  } __attribute__((packed)) event;
  run_ok(machine, 0, &event);
  ASSERT_EQ(machine.records.size(), 1u);
  EXPECT_EQ(text_field(machine, machine.records[0], 0), "/bin/true");
  EXPECT_EQ(number_field(machine, machine.records[0], 1), 42u);
  EXPECT_EQ(machine.number("@"), 1u);
}

TEST(Contexts, ReadUnalignedFields) {
  Machine machine(must_compile("tracepoint:odd:packed { @u = args.unaligned; @s = args.small; }"));
  uint8_t event[24] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 4, 3, 2, 1};
  run_ok(machine, 0, event);
  EXPECT_EQ(machine.number("@u"), 0x01020304u);
  EXPECT_EQ(static_cast<int64_t>(machine.number("@s")), -1);
}

TEST(Contexts, KnowWhichProbeHit) {
  Machine machine(must_compile(
      "uprobe:libc:f* { @[probe, func] = count(); } interval:s:1, BEGIN { @p = probe; }"));
  ASSERT_EQ(machine.bundle().programs.size(), 3u);
  Registers regs;
  machine.cookie = 1;
  run_ok(machine, 0, &regs);
  EXPECT_TRUE(machine.contents("@").contains(Machine::key({1, 1})));
  run_ok(machine, 1);
  EXPECT_EQ(machine.number("@p"), 2u);
  run_ok(machine, 2);
  EXPECT_EQ(machine.number("@p"), 3u);
  EXPECT_EQ(machine.bundle().probes[2].interval_ns, 1'000'000'000u);
  for (const auto& probe : machine.bundle().probes) EXPECT_GE(probe.program, 0);
}

TEST(Contexts, HaveTheirBuiltins) {
  Machine machine(
      must_compile("BEGIN { printf(\"%d %d %d %d %d %d %d %d %s\", pid, tid, uid, gid, cpu, nsecs, "
                   "nsecs(boot), elapsed, comm); }"));
  machine.set_array(machine.bundle().start_map, 0, 2'000'000'000);
  EXPECT_TRUE(machine.bundle().uses_elapsed);
  run_ok(machine);
  ASSERT_EQ(machine.records.size(), 1u);
  const uint64_t expected[] = {1234, 5678,          1000,          100,
                               3,    5'000'000'000, 9'000'000'000, 3'000'000'000};
  for (size_t i = 0; i < 8; ++i)
    EXPECT_EQ(number_field(machine, machine.records[0], i), expected[i]) << i;
  EXPECT_EQ(text_field(machine, machine.records[0], 8), "tester");
}

TEST(Contexts, FilterPids) {
  CompileOptions options;
  options.pid_filter = {7, 1234};
  Machine machine(must_compile(
      "kprobe:vfs_read { @k = count(); } uprobe:libc:fopen { @u = count(); }", options));
  Registers regs;
  for (uint32_t pid : {7, 8, 1234}) {
    machine.pid = pid;
    run_ok(machine, 0, &regs);
    run_ok(machine, 1, &regs);
  }
  EXPECT_EQ(machine.number("@k"), 2u);
  EXPECT_EQ(machine.number("@u"), 3u);  // uprobes are attached to processes
}

TEST(Contexts, APredicateDecides) {
  Machine machine(
      must_compile("uprobe:libc:malloc /arg0 > 10 && comm == \"tester\"/ { @ = count(); }"));
  feed(machine, {5, 11, 12});
  machine.comm = "other";
  feed(machine, {13});
  EXPECT_EQ(machine.number("@"), 2u);
}

// ---- records
// ------------------------------------------------------------------------------------------------------------

TEST(Records, HoldTheArguments) {
  Machine machine(
      must_compile("uprobe:libc:fopen { printf(\"%d %s %s %s %d\\n\", arg1, \"a literal\", "
                   "str(arg0), arg1 > 3 ? \"big\" : \"small\", -1); }"));
  const char* text = "path";
  Registers regs = arguments(address(text), 4);
  run_ok(machine, 0, &regs);
  ASSERT_EQ(machine.records.size(), 1u);
  const Bytes& record = machine.records[0];
  const bundle::Action& action = machine.bundle().actions[0];
  EXPECT_EQ(action.format, "%d %s %s %s %d\n");
  EXPECT_EQ(word(record) >> 32, action.record_size);
  EXPECT_EQ(record.size(), action.record_size);
  EXPECT_EQ(action.record_size % 8, 0u);
  EXPECT_EQ(number_field(machine, record, 0), 4u);
  EXPECT_EQ(text_field(machine, record, 1), "a literal");
  EXPECT_EQ(text_field(machine, record, 2), "path");
  EXPECT_EQ(text_field(machine, record, 3), "big");
  EXPECT_EQ(static_cast<int64_t>(number_field(machine, record, 4)), -1);
}

TEST(Records, AFullRingIsCountedAndEffectsStillHappen) {
  Machine machine(
      must_compile("BEGIN { printf(\"%d\", @x++); print(@x); printf(\"a\"); exit(); }"));
  machine.ring_is_full = true;
  run_ok(machine);
  EXPECT_EQ(machine.lost(bundle::Counter::kRingLost), 3u);
  EXPECT_EQ(machine.number("@x"), 1u);
}

TEST(Records, ActionsOfMapsThatFindTheRingFullLeaveWord) {
  Machine machine(
      must_compile("BEGIN { @x = 1; printf(\"a\"); clear(@x); time(); zero(@x); "
                   "print(@x); clear(@x); exit(); }"));
  run_ok(machine);
  const auto word_of = [&](size_t action) {
    const auto counter = bundle::pending_counter(machine.bundle(), action);
    return counter ? static_cast<int>(machine.lost(static_cast<bundle::Counter>(*counter))) : -1;
  };
  for (size_t action : {1, 3, 4, 5}) EXPECT_EQ(word_of(action), 0) << action;
  machine.ring_is_full = true;
  run_ok(machine);
  run_ok(machine);
  for (size_t action : {1, 3, 4, 5}) EXPECT_EQ(word_of(action), 2) << action;
  for (size_t action : {0, 2, 6}) EXPECT_EQ(word_of(action), -1) << action;
  EXPECT_EQ(machine.lost(bundle::Counter::kRingLost), 2u * 3);  // printf, time, exit
}

TEST(Records, AnExitThatFindsTheRingFullIsLeftAmongTheCounters) {
  for (auto [text, status] : std::initializer_list<std::pair<const char*, uint64_t>>{
           {"BEGIN { exit(); }", 0},
           {"BEGIN { exit(3); }", 3},
           {"BEGIN { $x = 260; exit($x); }", 260}}) {
    Machine machine(must_compile(text));
    run_ok(machine);
    EXPECT_EQ(machine.lost(bundle::Counter::kExit), 0u) << text;
    machine.ring_is_full = true;
    run_ok(machine);
    EXPECT_EQ(machine.lost(bundle::Counter::kExit), bundle::kExitAsked | status) << text;
  }
}

TEST(Records, DescribeEveryAction) {
  Machine machine(
      must_compile("BEGIN { @x[1] = 1; print(@x, 5, 2); clear(@x); zero(@x); time(\"%H\"); "
                   "print((1, \"a\")); exit(3); }"));
  run_ok(machine);
  const auto& actions = machine.bundle().actions;
  ASSERT_EQ(machine.records.size(), 6u);
  using bundle::ActionKind;
  const ActionKind kinds[] = {ActionKind::kPrintMap, ActionKind::kClearMap,   ActionKind::kZeroMap,
                              ActionKind::kTime,     ActionKind::kPrintValue, ActionKind::kExit};
  for (size_t i = 0; i < 6; ++i)
    EXPECT_EQ(actions[word(machine.records[i]) & 0xffffffff].kind, kinds[i]);
  EXPECT_EQ(actions[0].map, 0);
  EXPECT_EQ(actions[0].top, 5u);
  EXPECT_EQ(actions[0].div, 2u);
  EXPECT_EQ(number_field(machine, machine.records[5], 0), 3u);
  EXPECT_EQ(actions[4].fields[0].type.kind, bundle::ValueKind::kTuple);
}

TEST(Records, JoinEndsAtTheNullAddress) {
  Machine machine(
      must_compile("tracepoint:syscalls:sys_enter_openat { join(args.filename, \",\"); }"));
  const char* argv[] = {"one", "two", "", "four", nullptr, "five"};
  uint64_t event[6] = {0, 0, 0, address(argv), 0, 0};
  run_ok(machine, 0, event);
  ASSERT_EQ(machine.records.size(), 1u);
  EXPECT_EQ(number_field(machine, machine.records[0], 0), 4u);
  EXPECT_EQ(text_field(machine, machine.records[0], 1), "one");
  EXPECT_EQ(text_field(machine, machine.records[0], 4), "four");
  EXPECT_EQ(machine.bundle().actions[0].format, ",");
}

// ---- the bundle
// -----------------------------------------------------------------------------------------------------------

TEST(Bundles, ListScriptMapsByNameAndInternalOnesAfter) {
  bundle::Bundle bundle =
      must_compile("BEGIN { @z = 1; @a[comm] = count(); printf(\"x\"); @m = elapsed; }");
  ASSERT_GE(bundle.maps.size(), 6u);
  EXPECT_EQ(bundle.maps[0].name, "@a");
  EXPECT_EQ(bundle.maps[1].name, "@m");
  EXPECT_EQ(bundle.maps[2].name, "@z");
  for (size_t i = 3; i < bundle.maps.size(); ++i) EXPECT_EQ(bundle.maps[i].name, "");
  EXPECT_EQ(bundle.maps[0].kind, bundle::MapKind::kPerCpuHash);
  EXPECT_EQ(bundle.maps[2].kind, bundle::MapKind::kHash);
  EXPECT_EQ(bundle.maps[static_cast<size_t>(bundle.ring_map)].max_entries, 1u << 20);
  EXPECT_EQ(bundle.programs[0].name, "BEGIN_0");
}

TEST(Bundles, SayHowMuchStackIsMissing) {
  Compiled compiled = compile_script(
      "uprobe:libc:fopen { @[str(arg0), str(arg1), str(arg2), str(arg3), str(arg4)] = count(); }");
  EXPECT_FALSE(compiled.bundle.has_value());
  EXPECT_NE(compiled.text.find("bytes of stack are needed, eBPF has 512"), std::string::npos)
      << compiled.text;
  EXPECT_NE(compiled.text.find("BPFTRACE_MAX_STRLEN"), std::string::npos) << compiled.text;
}

TEST(Bundles, ReuseTheStackOfEarlierStatements) {
  std::string script = "uprobe:libc:fopen { ";
  for (int i = 0; i < 20; ++i) script += fmt::format("@k{}[str(arg0), str(arg1)] = count(); ", i);
  EXPECT_TRUE(compile_script(script + "}").bundle.has_value());
}

TEST(Bundles, AreTheSameEveryTime) {
  const std::string script =
      "uprobe:libc:f* { @[probe] = hist(arg0); printf(\"%s\", str(arg1)); } END { print(@); }";
  bundle::Bundle a = must_compile(script), b = must_compile(script);
  ASSERT_EQ(a.programs.size(), b.programs.size());
  for (size_t i = 0; i < a.programs.size(); ++i) EXPECT_EQ(a.programs[i].code, b.programs[i].code);
  EXPECT_EQ(a.maps, b.maps);
}

/// As Linux 6.1 does: the name and its NUL, and what lies behind stays.
TEST(Comm, AsAKeyIsPaddedWhateverTheKernelLeaves) {
  Machine machine(must_compile("uprobe:libc:fopen { @t[1] = arg0; @[comm] = count(); }"));
  machine.pads_comm = false;
  Registers one = arguments(0x1111111111111111), other = arguments(0x2222222222222222);
  run_ok(machine, 0, &one);
  run_ok(machine, 0, &other);
  EXPECT_EQ(machine.contents(0).size(), 1u);
  EXPECT_EQ(machine.contents(1).size(), 1u);
}

// ---- stacks and symbols
// ---------------------------------------------------------------------------------------------

TEST(Stack, OfTheUserIsItsIdAndItsProcess) {
  Machine machine(
      must_compile("uprobe:libc:fopen { printf(\"%s\", ustack(5)); @[ustack(5)] = 1; }"));
  Registers regs;
  run_ok(machine, 0, &regs);
  EXPECT_EQ(machine.stack_flags, uint64_t{bpf::kUserStack});
  ASSERT_EQ(machine.records.size(), 1u);
  EXPECT_EQ(number_field(machine, machine.records[0], 0), 42u);
  EXPECT_EQ(word(machine.records[0], 16), 1234u);
  EXPECT_TRUE(machine.contents(0).contains(Machine::key({42, 1234})));
  EXPECT_TRUE(machine.bundle().reads_symbols);
  EXPECT_GE(bundle::stack_map(machine.bundle(), 5), 0);
  EXPECT_EQ(machine.bundle().needs_kernel, "");
}

TEST(Stack, OfTheKernelIsItsIdAlone) {
  Machine machine(must_compile("kprobe:vfs_read { @[kstack] = 1; }"));
  Registers regs;
  run_ok(machine, 0, &regs);
  EXPECT_EQ(machine.stack_flags, 0u);
  EXPECT_TRUE(machine.contents(0).contains(Machine::key({42})));
  EXPECT_EQ(machine.bundle().needs_kernel, "kstack");
}

TEST(Stack, ThatFindsNoRoomIsCounted) {
  Machine machine(must_compile("uprobe:libc:fopen { @[ustack] = 1; }"));
  Registers regs;
  machine.stack = -17;  // -EEXIST
  run_ok(machine, 0, &regs);
  EXPECT_EQ(machine.lost(bundle::Counter::kStackLost), 1u);
  machine.stack = -14;  // -EFAULT: there is none
  run_ok(machine, 0, &regs);
  EXPECT_EQ(machine.lost(bundle::Counter::kStackLost), 1u);
}

TEST(Stack, OfEachDepthHasAMapOfItsOwn) {
  bundle::Bundle bundle = must_compile(
      "uprobe:libc:fopen { @[ustack(2)] = 1; @b[ustack(perf, 2)] = 1; print(ustack); }");
  EXPECT_NE(bundle::stack_map(bundle, 2), bundle::stack_map(bundle, 127));
  size_t maps = 0;
  for (const auto& map : bundle.maps) maps += map.kind == bundle::MapKind::kStacks;
  EXPECT_EQ(maps, 2u);
}

TEST(Symbol, IsAnAddressAndOfTheUserItsProcess) {
  Machine machine(must_compile(
      "uprobe:libc:fopen { @u[usym(arg0)] = 1; @k[ksym(arg1)] = 1; @r = reg(\"dx\"); }"));
  Registers regs = arguments(0x1111, 0x2222, 0x3333);
  run_ok(machine, 0, &regs);
  EXPECT_TRUE(machine.contents(0).contains(Machine::key({0x2222})));  // @k comes first
  EXPECT_TRUE(machine.contents(2).contains(Machine::key({0x1111, 1234})));
  EXPECT_EQ(word(machine.contents(1).begin()->second), 0x3333u);
}

// ---- the entry of the call
// -------------------------------------------------------------------------------------------------

/// A uretprobe with its entry program, on a stack.
class Returning {
 public:
  explicit Returning(const std::string& body, const std::string& probes = "uretprobe:libc:fopen")
      : machine(must_compile(probes + " " + body)) {
    EXPECT_EQ(machine.bundle().programs.size(), 2u);
    EXPECT_EQ(2 * machine.bundle().named_probes(), machine.bundle().probes.size());
  }
  void enter(uint64_t slot, uint64_t a0, uint64_t a1 = 0) {
    Registers regs = arguments(a0, a1);
    regs.at(bpf::x86_64_regs::kSp) = slot;
    run_ok(machine, 1, &regs);
  }
  void leave(uint64_t slot, uint64_t result) {
    Registers regs;
    regs.at(bpf::x86_64_regs::kSp) = slot + 8;
    regs.at(bpf::x86_64_regs::kAx) = result;
    run_ok(machine, 0, &regs);
  }
  size_t under_way() const { return machine.contents(static_cast<int>(script_maps())).size(); }
  size_t script_maps() const {
    return static_cast<size_t>(std::ranges::count_if(
        machine.bundle().maps, [](const auto& map) { return !map.name.empty(); }));
  }
  uint64_t value(std::initializer_list<uint64_t> key) {
    const auto all = machine.contents(0);
    const auto it = all.find(Machine::key(key));
    return it == all.end() ? ~uint64_t{0} : word(it->second);
  }
  Machine machine;
};

TEST(Session, ArgumentsAreThoseOfTheEntry) {
  Returning call("{ @[arg1, arg0] = retval; }");
  call.enter(0x7000, 11, 22);
  call.leave(0x7000, 33);
  EXPECT_EQ(call.value({22, 11}), 33u);
  EXPECT_EQ(call.under_way(), 0u) << "taken out";
}

TEST(Session, DurationIsTheTimeBetween) {
  Returning call("{ @[1] = duration; }");
  call.enter(0x7000, 1);
  call.machine.now_ns += 1234;
  call.leave(0x7000, 0);
  EXPECT_EQ(call.value({1}), 1234u);
}

TEST(Session, CallsThatNestAreToldApart) {
  Returning call("{ @[arg0] = retval; }");
  for (uint64_t depth = 0; depth < 5; ++depth) call.enter(0x7000 - 32 * depth, depth);
  EXPECT_EQ(call.under_way(), 5u);
  for (uint64_t depth = 5; depth-- > 0;) call.leave(0x7000 - 32 * depth, 100 + depth);
  for (uint64_t depth = 0; depth < 5; ++depth) EXPECT_EQ(call.value({depth}), 100 + depth);
}

TEST(Session, FunctionsAndProcessesAtOneSlotAreToldApart) {
  Returning call("{ @[arg0] = retval; }", "uretprobe:libc:fopen, uretprobe:libc:fclose");
  call.enter(0x7000, 1);
  call.machine.cookie = 1;
  call.enter(0x7000, 2);
  call.machine.pid++;
  call.enter(0x7000, 3);
  call.leave(0x7000, 13);
  call.machine.pid--;
  call.leave(0x7000, 12);
  call.machine.cookie = 0;
  call.leave(0x7000, 11);
  for (uint64_t i = 1; i <= 3; ++i) EXPECT_EQ(call.value({i}), 10 + i);
}

TEST(Session, AThreadThatMovedTakesTheSameCall) {
  Returning call("{ @[arg0] = retval; }");
  call.enter(0x7000, 1);
  call.machine.tid++;
  call.leave(0x7000, 2);
  EXPECT_EQ(call.value({1}), 2u) << "a coroutine";
}

TEST(Session, ALeftOverEntryGoesWithTheNextCallThere) {
  Returning call("{ @[arg0] = retval; }");
  call.enter(0x7000, 1);  // left by an exception
  call.enter(0x7000, 2);
  call.leave(0x7000, 3);
  EXPECT_EQ(call.value({2}), 3u);
  EXPECT_EQ(call.value({1}), ~uint64_t{0});
  EXPECT_EQ(call.under_way(), 0u);
}

TEST(Session, AReturnWithoutAnEntryIsNotTold) {
  Returning call("{ @[arg0] = retval; }");
  call.leave(0x7000, 3);
  EXPECT_TRUE(call.machine.contents(0).empty()) << "the call is older than the probe";
}

TEST(Session, AnEntryWithoutRoomIsCounted) {
  Returning call("{ @[arg0] = retval; }");
  call.machine.maps_are_full = true;
  call.enter(0x7000, 1);
  EXPECT_EQ(call.machine.lost(bundle::Counter::kMapFull), 1u);
  call.leave(0x7000, 3);
  EXPECT_TRUE(call.machine.contents(0).empty());
}

TEST(Session, OnlyWhoAsksPays) {
  const bundle::Bundle bundle =
      must_compile("uprobe:libc:fopen { @a[arg0] = 1; } uretprobe:libc:fopen { @b[retval] = 1; }");
  EXPECT_EQ(bundle.programs.size(), 2u);
  EXPECT_EQ(bundle.probes.size(), 2u);
}

TEST(Override, PassesItsValueOn) {
  CompileOptions options;
  options.allow_unsafe = true;
  Machine machine(must_compile("uprobe:libc:fopen /arg0 == 7/ { override(arg0 - 10); }", options));
  Registers no = arguments(1), yes = arguments(7);
  run_ok(machine, 0, &no);
  EXPECT_EQ(machine.overridden, 0u);
  run_ok(machine, 0, &yes);
  EXPECT_EQ(static_cast<int64_t>(machine.overridden), -3);
}

}  // namespace
}  // namespace spile::lang
