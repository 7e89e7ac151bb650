// What scripts with structs, conversions, records, blocks and macros do, in our interpreter.
#include <gtest/gtest.h>

#include <cstring>

#include "lang/codegen/test_compile.h"
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

uint64_t address(const void* p) {
  return reinterpret_cast<uint64_t>(p);
}

struct Registers {
  uint64_t words[bpf::x86_64_regs::kSize / 8] = {};
};
Registers arguments(uint64_t a0, uint64_t a1 = 0, uint64_t a2 = 0) {
  Registers regs;
  regs.words[bpf::x86_64_regs::kDi / 8] = a0;
  regs.words[bpf::x86_64_regs::kSi / 8] = a1;
  regs.words[bpf::x86_64_regs::kDx / 8] = a2;
  return regs;
}

/// Runs the first program of a uprobe or BEGIN script once.
std::unique_ptr<Machine> ran(const std::string& script, const Registers& regs = {}) {
  CompileOptions options;
  options.allow_unsafe = true;
  auto machine = std::make_unique<Machine>(must_compile(script, options));
  auto result = machine->run(0, &regs);
  EXPECT_TRUE(result.has_value()) << script << "\n" << result.error().message;
  return machine;
}

int64_t result_of(const std::string& code, const Registers& regs = {}) {
  return static_cast<int64_t>(ran("uprobe:libc:fopen { " + code + " }", regs)->number("@r"));
}

std::string text_of(const Machine& machine, const std::string& map) {
  const auto all = machine.contents(map);
  return all.empty() ? "" : reinterpret_cast<const char*>(all.begin()->second.data());
}

/// As FakeWorld describes struct task_struct.
struct Task {
  int32_t pid = 0, tgid = 0;
  const Task *real_parent = nullptr, *group_leader = nullptr;
  char comm[16] = {};
  uint32_t bits = 0, unused = 0;
  struct {
    uint64_t load = 0;
    uint16_t runs = 0;
  } se;
  uint64_t as_word = 0;
  uint32_t words[4] = {};
  const void* next = nullptr;
};
static_assert(sizeof(Task) == 96);

class Structs : public testing::Test {
 protected:
  Structs() {
    std::strcpy(parent_.comm, "the parent");
    parent_.pid = 11;
    parent_.tgid = 12;
    task_.pid = -7;
    task_.real_parent = &parent_;
    task_.group_leader = &task_;
    std::strcpy(task_.comm, "child");
    task_.bits = 5u << 2 | 0x1fu << 5;  // flag 5, level -1
    task_.se.load = 0x123456789abcdef0;
    task_.se.runs = 0xffff;
    task_.as_word = 0x0102030405060708;
    for (uint32_t i = 0; i < 4; ++i) task_.words[i] = 100 + i;
    regs_ = arguments(address(&task_), 2);
  }
  int64_t read(const std::string& expr) {
    return result_of("$t = (struct task_struct *)arg0; @r = " + expr + ";", regs_);
  }
  Task task_, parent_;
  Registers regs_;
};

TEST_F(Structs, FieldsHaveTheirSizeAndSign) {
  EXPECT_EQ(read("$t->pid"), -7);
  EXPECT_EQ(read("$t.pid"), -7);
  EXPECT_EQ(read("(*$t).se.runs"), 0xffff);
  EXPECT_EQ(read("$t->se.load"), 0x123456789abcdef0);
  EXPECT_EQ(read("$t->real_parent->tgid"), 12);
  EXPECT_EQ(read("$t->group_leader->real_parent->pid"), 11);
}

TEST_F(Structs, AnonymousMembersBitfieldsAndArrays) {
  EXPECT_EQ(read("$t->as_word"), 0x0102030405060708);
  EXPECT_EQ(read("$t->as_byte"), 8);
  EXPECT_EQ(read("$t->flag"), 5);
  EXPECT_EQ(read("$t->level"), -1);
  EXPECT_EQ(read("$t->words[3]"), 103);
  EXPECT_EQ(read("$t->words[arg1]"), 102);
  EXPECT_EQ(read("((struct task_struct *)(arg0 - 96))[1].pid"), -7);
  EXPECT_EQ(read("{ $se = $t->se; $se.runs }"), 0xffff);
}

TEST_F(Structs, CharArraysAreStrings) {
  auto machine =
      ran("uprobe:libc:fopen { @r = ((struct task_struct *)arg0)->real_parent->comm; }", regs_);
  EXPECT_EQ(text_of(*machine, "@r"), "the parent");
}

TEST_F(Structs, ANullPointerOnTheWayIsCountedAndZero) {
  task_.real_parent = nullptr;
  auto machine =
      ran("uprobe:libc:fopen { @r = ((struct task_struct *)arg0)->real_parent->tgid; }", regs_);
  EXPECT_EQ(machine->number("@r"), 0u);
  EXPECT_EQ(machine->lost(bundle::Counter::kReadFailed), 1u);
}

TEST_F(Structs, TheCurrentTaskIsTheKernels) {
  Machine machine(must_compile("BEGIN { @r = ppid; @c = pcomm; }"));
  machine.task = address(&task_);
  ASSERT_TRUE(machine.run(0));
  EXPECT_EQ(machine.number("@r"), 12u);
  EXPECT_EQ(text_of(machine, "@c"), "the parent");
  EXPECT_EQ(machine.bundle().needs_kernel, "curtask");
}

TEST(OwnStructs, AreLaidOutAsTheCompilerDoes) {
  struct Own {
    char a;
    struct {
      char c;
      short s;
    } in;
    int list[3];
    unsigned low : 3, high : 7;
    int : 0;
    long last;
    char name[5];
    union {
      int u;
      char v;
    };
  } own = {'a', {'c', -2}, {1, 2, 3}, 5, 77, -9, "name", {1234567}};
  const std::string definition =
      "struct own { char a; struct { char c; short s; } in; int list[3]; unsigned low : 3, high : "
      "7; int : 0; long last; char name[5]; union { int u; char v; }; };\n";
  const auto read = [&](const std::string& field) {
    auto machine = ran(definition + "uprobe:libc:fopen { @r = ((struct own *)arg0)->" + field +
                           "; @size = sizeof(struct own); }",
                       arguments(address(&own)));
    EXPECT_EQ(machine->number("@size"), sizeof own);
    return static_cast<int64_t>(machine->number("@r"));
  };
  EXPECT_EQ(read("a"), 'a');
  EXPECT_EQ(read("in.s"), -2);
  EXPECT_EQ(read("list[2]"), 3);
  EXPECT_EQ(read("low"), 5);
  EXPECT_EQ(read("high"), 77);
  EXPECT_EQ(read("last"), -9);
  EXPECT_EQ(read("u"), 1234567);
}

// ---- conversions

TEST(Conversions, SwapBytesOfTheirOwnSize) {
  EXPECT_EQ(result_of("@r = bswap((uint16)arg0);", arguments(0x9900001234)), 0x3412);
  EXPECT_EQ(result_of("@r = bswap((uint32)arg0);", arguments(0x9912345678)), 0x78563412);
  EXPECT_EQ(result_of("@r = bswap(arg0);", arguments(0x0102030405060708)), 0x0807060504030201);
  EXPECT_EQ(result_of("$p = (uint16)arg0; $p = bswap($p); @r = $p;", arguments(0x5000)), 0x50);
}

TEST(Conversions, InternetAddressesHaveTheirFamily) {
  const uint8_t four[4] = {10, 0, 0, 1};
  auto machine = ran("uprobe:libc:fopen { @r = ntop(*(uint32 *)arg0); @f = ntop(10, (uint32)5); }",
                     arguments(address(four)));
  const Bytes inet = machine->contents("@r").begin()->second;
  EXPECT_EQ(word(inet), 2u);
  EXPECT_EQ(std::memcmp(inet.data() + 8, four, 4), 0);
  EXPECT_EQ(word(machine->contents("@f").begin()->second), 10u);
}

TEST(Conversions, MacAddressesAreSixBytes) {
  const uint8_t mac[8] = {1, 2, 3, 4, 5, 6, 0xee, 0xee};
  EXPECT_EQ(ran("uprobe:libc:fopen { @r = macaddr(arg0); }", arguments(address(mac)))->number("@r"),
            0x060504030201u);
}

TEST(Texts, HaveALength) {
  const char* const texts[] = {"",         "a",         "1234567",
                               "12345678", "123456789", "the length of a string"};
  for (const char* text : texts) {
    EXPECT_EQ(result_of("@r = strlen(str(arg0));", arguments(address(text))),
              static_cast<int64_t>(std::strlen(text)))
        << text;
  }
  const std::string longer(200, 'x');
  EXPECT_EQ(result_of("@r = strlen(str(arg0));", arguments(address(longer.c_str()))), 127);
  EXPECT_EQ(result_of("@r = strlen(str(arg0, 3));", arguments(address("abcdef"))), 3);
  EXPECT_EQ(result_of("@r = strlen(comm);"), 6);
}

TEST(Texts, CompareTheirFirstBytes) {
  const auto differs = [](const char* left, const char* right, int n) {
    return result_of("@r = strncmp(str(arg0), str(arg1), " + std::to_string(n) + ");",
                     arguments(address(left), address(right)));
  };
  EXPECT_EQ(differs("abc", "abd", 2), 0);
  EXPECT_NE(differs("abc", "abd", 3), 0);
  EXPECT_EQ(differs("abc", "abc", 100), 0);
  EXPECT_NE(differs("abc", "abcd", 100), 0);
  EXPECT_EQ(differs("0123456789abc", "0123456789xyz", 10), 0);
  EXPECT_NE(differs("0123456789abc", "0123456789xyz", 11), 0);
  EXPECT_EQ(differs("", "x", 0), 0);
  EXPECT_EQ(result_of("@r = strncmp(comm, \"testing\", 4) == 0;"), 1);
}

TEST(Texts, AreFoundInOthers) {
  const auto found = [](const char* text, const std::string& needle) {
    return result_of("@r = strstr(str(arg0), \"" + needle + "\");", arguments(address(text)));
  };
  EXPECT_EQ(found("libc.so.6", "libc"), 0);
  EXPECT_EQ(found("libc.so.6", ".so"), 4);
  EXPECT_EQ(found("libc.so.6", "6"), 8);
  EXPECT_EQ(found("libc.so.6", ".7"), -1);
  EXPECT_EQ(found("0123456789", "23456789"), 2);
  EXPECT_EQ(found("", "a"), -1);
  EXPECT_EQ(found("/usr/bin/containerd-shim", "containerd-shim"), 9);
}

// ---- copies of structs

struct Own {
  char name[5];
  char c;
  int32_t list[3];
  int16_t bits;  // a : 4, b : 9
  const void* p;
};
const char* const kOwnText =
    "struct in { short a : 4, b : 9; }; struct own { char name[5]; char c; int list[3]; struct in "
    "i; "
    "void *p; };\n";
const Own kOwn{{'f', 'i', 'v', 'e', '!'}, 'x', {7, -8, 9}, int16_t{3 | 100 << 4}, &kOwn};

int64_t of_own(const std::string& code) {
  const Registers regs = arguments(address(&kOwn));
  const std::string script = kOwnText;
  return static_cast<int64_t>(
      ran(script + "uprobe:libc:fopen { $p = (struct own *)arg0; " + code + " }", regs)
          ->number("@r"));
}

TEST(Copies, HaveTheFieldsOfTheOriginal) {
  EXPECT_EQ(of_own("@x = *$p; @r = @x.list[1];"), -8);
  EXPECT_EQ(of_own("@x = *$p; @r = @x.c;"), 'x');
  EXPECT_EQ(of_own("@x = *$p; $y = @x; @r = $y.i.b * 10 + $y.i.a;"), 1003);
  EXPECT_EQ(of_own("@x = *$p; $l = @x.list; @r = $l[2];"), 9);
  EXPECT_EQ(of_own("@x = *$p; @r = @x.p == arg0;"), 1);
  EXPECT_EQ(of_own("@x = *$p; @r = @x.name == \"five\";"), 1);  // four bytes and a NUL
}

TEST(Copies, AreKeysAndAreCompared) {
  EXPECT_EQ(of_own("@k[$p->list] = 5; @r = @k[$p->list];"), 5);
  EXPECT_EQ(of_own("@k[*$p, 1] = 5; for ($kv : @k) { @r = $kv.0.0.list[0] * 10 + $kv.0.1; }"), 71);
  EXPECT_EQ(of_own("@x = *$p; @r = (@x == *$p) * 10 + (@x.list == $p->list);"), 11);
  EXPECT_EQ(of_own("$t = ($p->i, $p->list); @r = $t.1[0];"), 7);
}

TEST(Copies, AreOfThatMoment) {
  Own own = kOwn;
  auto machine =
      ran(std::string(kOwnText) + "uprobe:libc:fopen { $p = (struct own *)arg0; @x = *$p; @n++; }",
          arguments(address(&own)));
  own.list[0] = 1000;
  int32_t kept = 0;
  std::memcpy(&kept, machine->contents("@x").begin()->second.data() + offsetof(Own, list), 4);
  EXPECT_EQ(kept, 7);
  EXPECT_EQ(machine->number("@n"), 1u);
}

TEST(Copies, OfWhatCannotBeReadAreZeroAndCounted) {
  auto machine = ran(
      std::string(kOwnText) + "uprobe:libc:fopen { $p = (struct own *)arg0; @x = *$p; @r = @x.c; }",
      arguments(8));
  EXPECT_EQ(machine->number("@r"), 0u);
  EXPECT_EQ(machine->contents("@x").begin()->second, Bytes(32));
  EXPECT_EQ(machine->lost(bundle::Counter::kReadFailed), 1u);
}

TEST(Addresses, OfFieldsAreWhereTheyAre) {
  EXPECT_EQ(of_own("$q = &$p->list; @r = (uint64)$q - arg0;"), offsetof(Own, list));
  EXPECT_EQ(of_own("$q = &$p->c; @r = *$q;"), 'x');
}

TEST(Defines, TakeParameters) {
  EXPECT_EQ(static_cast<int64_t>(
                ran("#define ADD(a, b) ((a) + (b))\n#define TWICE( x ) ADD(x, x)\n#define "
                    "FIVE() 5\nuprobe:libc:fopen { @r = TWICE(arg0) * ADD(1, FIVE()); }",
                    arguments(7))
                    ->number("@r")),
            84);
}

TEST(Messages, SayWhereTheyAreFrom) {
  CompileOptions options;
  options.locate = [](uint32_t begin, uint32_t end) {
    return bundle::ScriptPlace{"x.bt", begin, end, "x.bt:1"};
  };
  const bundle::Bundle bundle =
      must_compile("BEGIN { errorf(\"%d\", 1); assert(pid == 1, \"one\"); }", options);
  ASSERT_GE(bundle.actions.size(), 2u);
  EXPECT_EQ(bundle.actions[0].kind, bundle::ActionKind::kErrorf);
  EXPECT_EQ(bundle.actions[0].place.line, 8u);
  EXPECT_EQ(bundle.actions[1].kind, bundle::ActionKind::kErrorf);
  EXPECT_EQ(bundle.actions[1].place.text, "x.bt:1");
}

TEST(Texts, ContainOthers) {
  const auto contains = [](const char* text, const std::string& needle) {
    return result_of("@r = strcontains(str(arg0), \"" + needle + "\");", arguments(address(text)));
  };
  EXPECT_EQ(contains("libc.so.6", ".so"), 1);
  EXPECT_EQ(contains("libc.so.6", "libc"), 1);
  EXPECT_EQ(contains("libc.so.6", ".6"), 1);
  EXPECT_EQ(contains("libc.so.6", "6"), 1);
  EXPECT_EQ(contains("libc.so.6", ".7"), 0);
  EXPECT_EQ(contains("ababac", "abac"), 1);
  EXPECT_EQ(contains("0123456789", "23456789"), 1);
  EXPECT_EQ(contains("0123456789", "23456780"), 0);
  EXPECT_EQ(contains("", "a"), 0);
  EXPECT_EQ(contains("/usr/bin/containerd-shim-runc-v2", "containerd-shim"), 1);
  EXPECT_EQ(contains("/usr/bin/containers-shim-runc-v2", "containerd-shim"), 0);
  EXPECT_EQ(contains("ab0123456789", "aa0123456789"), 0);
  EXPECT_EQ(contains("x01234567801234567890", "1234567890"), 1);
}

// ---- buckets, figures

TEST(FineHistogram, BucketsAgreeWithTheirBounds) {
  for (const uint32_t bits : {0u, 1u, 3u, 5u}) {
    for (const uint64_t n :
         {uint64_t{0}, uint64_t{1}, uint64_t{2}, uint64_t{7}, uint64_t{8}, uint64_t{31},
          uint64_t{32}, uint64_t{33}, uint64_t{1000}, uint64_t{123456789}, uint64_t{INT64_MAX}}) {
      auto machine =
          ran("uprobe:libc:fopen { @h = hist(arg0, " + std::to_string(bits) + "); }", arguments(n));
      uint32_t bucket = 0;
      for (const auto& [key, value] : machine->contents("@h")) {
        if (word(value) != 0) std::memcpy(&bucket, key.data(), 4);
      }
      ASSERT_GT(bucket, 0u);
      EXPECT_LE(bundle::hist_bucket_low(bits, bucket), n) << bits << " bits";
      if (bucket + 1 < bundle::hist_bucket_count(bits)) {
        EXPECT_GT(bundle::hist_bucket_low(bits, bucket + 1), n) << bits << " bits";
      }
    }
  }
}

TEST(Aggregations, AreReadOverAllCpus) {
  EXPECT_EQ(result_of("@c = count(); @c = count(); @r = @c;"), 4);
  EXPECT_EQ(result_of("@s[comm] = sum((int64)arg0 - 10); @r = @s[comm];", arguments(3)), -14);
  EXPECT_EQ(result_of("@a = avg((int32)arg0); @a = avg((int32)-9); @r = @a;", arguments(3)), -3);
  EXPECT_EQ(result_of("@m = min((int64)arg0 - 10); @m = min(5); @r = @m;", arguments(3)), -7);
  EXPECT_EQ(result_of("@m = max(arg0); @m = max(5); @r = @m;", arguments(3)), 5);
  EXPECT_EQ(result_of("@c[1] = count(); @r = @c[2];"), 0);
  EXPECT_EQ(result_of("@m[1] = min(-3); @r = @m[2];"), 0);
  EXPECT_EQ(result_of("@a[1] = avg(3); @r = @a[2];"), 0);
  EXPECT_EQ(result_of("@c = count(); if (@c > 1) { @r = 1; }"), 1);
}

TEST(Stats, CountAndAddUp) {
  auto machine = ran("uprobe:libc:fopen { @s = stats(arg0); @s = stats(5); }", arguments(37));
  const Bytes value = machine->contents("@s").begin()->second;
  EXPECT_EQ(word(value, 0), 2u);
  EXPECT_EQ(word(value, 8), 42u);
}

// ---- records, blocks, macros, loops

TEST(Records, AreReadByName) {
  EXPECT_EQ(result_of("$r = (a=arg0, b=comm, c=(1, 2)); @r = $r.a + $r.c.1;", arguments(40)), 42);
  EXPECT_EQ(result_of("@m = (a=arg0, b=5); @r = @m.b;", arguments(40)), 5);
}

TEST(Texts, AreComparedByTheirBytes) {
  EXPECT_EQ(result_of("@r = memcmp(\"abd\", \"abc\", 3);"), 1);
  EXPECT_EQ(result_of("@r = memcmp(\"abb\", \"abc\", 3);"), -1);
  EXPECT_EQ(result_of("@r = memcmp(\"abX\", \"abY\", 2);"), 0);
  EXPECT_EQ(result_of("@r = memcmp(\"a\", \"b\", 0);"), 0);
  EXPECT_EQ(result_of("@r = memcmp(\"\\xff\", \"a\", 1);"), 0xff - 'a');
  const char long_text[] = "a text of more than one word, then X";
  EXPECT_EQ(result_of("@r = memcmp(str(arg0), \"a text of more than one word, then Y\", 36);",
                      arguments(address(long_text))),
            -1);
  struct Pair {
    int32_t left, right;
  } one = {1, 2}, other = {1, 3};
  const std::string script =
      "struct pair { int left; int right; } uprobe:libc:fopen { $a = (struct pair *)arg0; "
      "$b = (struct pair *)arg1; @r = memcmp(*$a, *$b, 8); @s = memcmp(*$a, *$b, 4); }";
  auto machine = ran(script, arguments(address(&one), address(&other)));
  EXPECT_EQ(static_cast<int64_t>(machine->number("@r")), -1);
  EXPECT_EQ(machine->number("@s"), 0u);
}

TEST(Texts, BehindPointersAreRead) {
  const char text[] = "seven77";
  EXPECT_EQ(result_of("@r = strlen((int8 *)arg0);", arguments(address(text))), 7);
  EXPECT_EQ(result_of("@r = strcap((int8 *)arg0);", arguments(address(text))), 7);
  EXPECT_EQ(result_of("@r = strcap(comm);"), 16);
  EXPECT_EQ(result_of("@r = default_str_length();"), 128);
  EXPECT_EQ(result_of("@r = strncmp((int8 *)arg0, \"seven\", 5);", arguments(address(text))), 0);
}

TEST(Errors, AreTheLastNumbers) {
  EXPECT_EQ(result_of("@r = is_err(arg0);", arguments(static_cast<uint64_t>(-1))), 1);
  EXPECT_EQ(result_of("@r = is_err(arg0);", arguments(static_cast<uint64_t>(-4095))), 1);
  EXPECT_EQ(result_of("@r = is_err(arg0);", arguments(static_cast<uint64_t>(-4096))), 0);
  EXPECT_EQ(result_of("@r = is_err(arg0);", arguments(4096)), 0);
}

TEST(Addresses, OfVariablesFollowTheProbe) {
  // As if the file were loaded where its "state", which has link address 0x4000, is ours.
  const uint32_t state[2] = {0x12345678, 0xffffffff};
  Registers regs;
  regs.words[bpf::x86_64_regs::kIp / 8] = address(&state) - 0x4000 + 0x1000;
  EXPECT_EQ(static_cast<uint64_t>(result_of("@r = uaddr(\"state\");", regs)), address(&state));
  EXPECT_EQ(result_of("@r = *uaddr(\"state\");", regs), 0x12345678);
  auto behind = ran("uprobe:libc:fopen+16 { @r = uaddr(\"state\"); }", regs);
  EXPECT_EQ(behind->number("@r"), address(&state) - 16);
}

TEST(Clocks, OfAtomicTimeAreOffset) {
  EXPECT_GE(result_of("$a = nsecs; @r = nsecs(tai) - $a;"), 37'000'000'000);
  EXPECT_GE(result_of("$a = nsecs; @r = nsecs(sw_tai) - $a;"), 37'000'000'000);
}

TEST(Statistics, AreReadAsTheirAverage) {
  EXPECT_EQ(result_of("@s = stats(-10); @s = stats(-20); @r = @s;"), -15);
  EXPECT_EQ(result_of("@k[1] = stats(7); @r = @k[1] > 6;"), 1);
}

/// The words of the slot that the present interval has; FakeWorld says which: number 2, as 3.
std::vector<uint64_t> slot_of(const Machine& machine) {
  const auto all = machine.contents("@s");
  const auto found = all.find(Machine::bytes_of(2));
  if (found == all.end()) return {};
  return {word(found->second), word(found->second, 8), word(found->second, 16)};
}

using Words = std::vector<uint64_t>;

TEST(Series, KeepWhatTheyAreToldTo) {
  const auto words_of = [](const std::string& how) {
    Machine machine(must_compile("uprobe:libc:fopen { @s = tseries(arg0, 1000d, 4" + how + "); }"));
    machine.now_ns = 77;
    for (uint64_t n : {5, 9, 2}) {
      const Registers regs = arguments(n);
      EXPECT_TRUE(machine.run(0, &regs));
    }
    return slot_of(machine);
  };
  EXPECT_EQ(words_of(""), (Words{3, 2, 77}));
  EXPECT_EQ(words_of(", \"sum\""), (Words{3, 0, 16}));
  EXPECT_EQ(words_of(", \"avg\""), (Words{3, 3, 16}));
  EXPECT_EQ(words_of(", \"max\""),
            (Words{3, bundle::rank_for_max(bundle::MapRole::kMax, false, 9), 1}));
  EXPECT_EQ(words_of(", \"min\""),
            (Words{3, bundle::rank_for_max(bundle::MapRole::kMin, false, 2), 1}));
}

TEST(Series, TakeSlotsOfIntervalsThatAreOver) {
  Machine machine(must_compile("uprobe:libc:fopen { @s = tseries(arg0, 1000d, 4, \"sum\"); }"));
  const int map = machine.map_index("@s");
  const auto after = [&](uint64_t first_word) {
    machine.set_array(map, 2, first_word);
    const Registers regs = arguments(5);
    EXPECT_TRUE(machine.run(0, &regs));
    return slot_of(machine);
  };
  EXPECT_EQ(after(0), (Words{3, 0, 5}));
  EXPECT_EQ(after(3), (Words{3, 0, 10}));
  EXPECT_EQ(after(1), (Words{3, 0, 5})) << "of an older interval";
  EXPECT_EQ(after(~uint64_t{2}), (Words{3, 0, 5})) << "claimed by one that died";
  EXPECT_EQ(machine.lost(bundle::Counter::kMapFull), 0u);
  EXPECT_EQ(after(7), (Words{7, 0, 5})) << "we are late";
  EXPECT_EQ(after(~uint64_t{7}), (Words{~uint64_t{7}, 0, 5})) << "we are late";
  EXPECT_EQ(machine.lost(bundle::Counter::kMapFull), 0u);
  EXPECT_EQ(after(~uint64_t{3}), (Words{~uint64_t{3}, 0, 5})) << "being claimed";
  EXPECT_EQ(machine.lost(bundle::Counter::kMapFull), 1u);
}

TEST(Series, HaveKeys) {
  Machine machine(
      must_compile("uprobe:libc:fopen { @s[arg0] = tseries(arg1, 1000d, 4, \"sum\"); if (arg0 == "
                   "7) { delete(@s, 7); } }"));
  for (uint64_t n : {1, 2, 7}) {
    const Registers regs = arguments(n, n * 10);
    EXPECT_TRUE(machine.run(0, &regs));
  }
  const auto all = machine.contents("@s");
  ASSERT_EQ(all.size(), 2u);
  EXPECT_EQ(word(all.at(Machine::key({2, 2})), 16), 20u);
}

TEST(Blocks, HaveValuesAndOwnVariables) {
  EXPECT_EQ(result_of("@r = { $x = arg0; $x + 1 };", arguments(41)), 42);
  EXPECT_EQ(result_of("@r = if arg0 > 3 { 10 } else if arg0 > 1 { 20 } else { 30 };", arguments(2)),
            20);
  EXPECT_EQ(result_of("@r = (arg0 + 1) * { $y = 3; $y * arg0 } - { @n++ };", arguments(2)), 18);
  EXPECT_EQ(result_of("printf(\"%d %s\", { @r++; 5 }, { $t = comm; $t });"), 1);
}

TEST(Blocks, OfAStringAreTheString) {
  auto machine =
      ran("uprobe:libc:fopen { @r = if arg0 { comm } else { \"other\" }; }", arguments(1));
  EXPECT_EQ(text_of(*machine, "@r"), "tester");
}

TEST(Macros, SeeWhatTheyAreGiven) {
  const auto with = [](const std::string& macros, const std::string& code) {
    return static_cast<int64_t>(
        ran(macros + " uprobe:libc:fopen { " + code + " }", arguments(7))->number("@r"));
  };
  EXPECT_EQ(with("macro add(a, b) { a + b }", "@r = add(arg0, add(1, 2));"), 10);
  EXPECT_EQ(with("macro set($x) { $x = 5; }", "$y = 1; set($y); @r = $y;"), 5);
  EXPECT_EQ(with("macro put(@m, v) { @m = v; }", "put(@r, 9);"), 9);
  EXPECT_EQ(with("macro own() { $t = 1; $t }", "$t = 30; @r = own() + $t;"), 31);
  EXPECT_EQ(with("macro twice(e) { e + e }", "$n = 0; $s = twice($n++); @r = $n * 10 + $s;"), 21);
  EXPECT_EQ(with("macro outer(e) { $x = 100; inner(e) + $x } macro inner(e) { $x = 1000; e + $x }",
                 "$x = 1; @r = outer($x);"),
            1101);
  EXPECT_EQ(with("macro five { 5 }", "@r = five + five();"), 10);
}

TEST(OpenRanges, RunFromAToB) {
  EXPECT_EQ(result_of("for ($i : arg0..arg1) { @r += $i; }", arguments(3, 7)), 3 + 4 + 5 + 6);
  EXPECT_EQ(result_of("@r = 1; for ($i : arg0..arg1) { @r += $i; }", arguments(7, 3)), 1);
  EXPECT_EQ(result_of("$n = arg1; for ($i : arg0..$n) { $n = 100; if ($i == 2) { continue; } if "
                      "($i == 5) { break; } @r += $i; }",
                      arguments(0, 50)),
            0 + 1 + 3 + 4);
}

TEST(OpenRanges, EndAfterTheMostRoundsAndCountIt) {
  auto machine =
      ran("uprobe:libc:fopen { for ($i : 0..arg0) { @r++; } @end = 1; }", arguments(1000000));
  EXPECT_EQ(machine->number("@r"), 65536u);
  EXPECT_EQ(machine->number("@end"), 1u);
  EXPECT_EQ(machine->lost(bundle::Counter::kLoopCut), 1u);
}

TEST(Signals, AreSentByNumber) {
  EXPECT_EQ(ran("uprobe:libc:fopen { signal(\"SIGUSR1\"); }")->sent_signal, 10u);
  EXPECT_EQ(ran("uprobe:libc:fopen { signal(arg0); }", arguments(9))->sent_signal, 9u);
  EXPECT_EQ(ran("uprobe:libc:fopen { signal(9); }")->bundle().needs_kernel, "signal()");
}

TEST(Commands, OfStringsNeedTheKernelEngine) {
  EXPECT_EQ(ran("uprobe:libc:fopen { system(\"echo %d\", arg0); }")->bundle().needs_kernel, "");
  EXPECT_EQ(ran("uprobe:libc:fopen { system(\"echo %s\", comm); }")->bundle().needs_kernel,
            "system() with a string");
}

TEST(Options, NamedParametersTakeTheTypeOfTheirDefault) {
  CompileOptions options;
  options.named = {{"count", "42"}, {"name", "spile"}, {"flag", ""}};
  Machine machine(must_compile(
      "BEGIN { @a = getopt(\"count\", 1); @b = getopt(\"other\", 7); @c = getopt(\"flag\"); @d = "
      "getopt(\"name\", \"none\"); @e = getopt(\"unset\"); }",
      options));
  ASSERT_TRUE(machine.run(0));
  EXPECT_EQ(machine.number("@a"), 42u);
  EXPECT_EQ(machine.number("@b"), 7u);
  EXPECT_EQ(machine.number("@c"), 1u);
  EXPECT_EQ(text_of(machine, "@d"), "spile");
  EXPECT_EQ(machine.number("@e"), 0u);
}

}  // namespace
}  // namespace spile::lang
