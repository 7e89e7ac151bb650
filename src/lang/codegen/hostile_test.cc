// Scripts that nobody would write: whatever compiles must pass the checker, and nothing may crash.
#include <gtest/gtest.h>

#include <random>

#include "bpf/checker.h"
#include "lang/codegen/test_compile.h"
#include "lang/codegen/test_kernel.h"
#include "lang/codegen/test_machine.h"

namespace spile::lang {
namespace {

const char* const kSeeds[] = {
    "uprobe:libc:fopen /str(arg0) == \"abc\" && pid > 3/ { @[str(arg0), pid] = hist(arg1); "
    "printf(\"%s %d\\n\", comm, arg2 / (arg1 - 3)); }",
    "kprobe:vfs_read, kretprobe:vfs_read { @a[probe] += 2; $x = @a[probe]++ * 2; if ($x > 4) { "
    "delete(@a[probe]); } else { exit($x); } }",
    "BEGIN { let $s; $s = pid ? comm : \"text\"; for ($i : 0..9) { @[$s, $i] = count(); if ($i == "
    "3) { break; } } print(@, 3, 2); }",
    "tracepoint:sched:sched_switch { $t = (args.prev_comm, (args.next_pid, 2)); @t = $t; @[$t.1] = "
    "max($t.1.0); @c[cpu] = avg(args.prev_state); }",
    "interval:s:1 { $n = 0; while ($n < 5) { $n++; unroll(3) { @x ^= $n << 3; } } time(); "
    "clear(@x); @b = buf($n, 8); @p = (uint8 *)$n; @v = *@p; }",
    "END { @x = -1; @x[1] = \"s\"; @y = @z; @z = (1, @y); print($q); @w = $1 + $2; printf(\"%d "
    "%s\", 1, (1, 2)); }",
};

/// Replaces, drops, doubles or swaps words.
std::string mutate(std::mt19937& random) {
  auto any = [&](size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random); };
  auto words = [](const std::string& text) {
    std::vector<std::string> all;
    for (size_t at = 0; at < text.size();) {
      size_t end = at + 1;
      if (std::isalnum(static_cast<unsigned char>(text[at]))) {
        while (end < text.size() &&
               (std::isalnum(static_cast<unsigned char>(text[end])) || text[end] == '_'))
          ++end;
      }
      all.push_back(text.substr(at, end - at));
      at = end;
    }
    return all;
  };
  std::vector<std::string> script = words(kSeeds[any(std::size(kSeeds))]);
  std::vector<std::string> other = words(kSeeds[any(std::size(kSeeds))]);
  for (size_t edits = 1 + any(4); edits > 0 && script.size() > 4; --edits) {
    size_t at = any(script.size());
    switch (any(4)) {
      case 0: script[at] = other[any(other.size())]; break;
      case 1: script.erase(script.begin() + static_cast<long>(at)); break;
      case 2:
        script.insert(script.begin() + static_cast<long>(at), script[any(script.size())]);
        break;
      default: {
        size_t length = std::min(1 + any(12), other.size());
        size_t from = any(other.size() - length + 1);
        script.insert(script.begin() + static_cast<long>(at),
                      other.begin() + static_cast<long>(from),
                      other.begin() + static_cast<long>(from + length));
      }
    }
  }
  std::string text;
  for (const std::string& word : script) text += word;
  return text;
}

TEST(Hostile, WhateverCompilesPassesTheChecker) {
  std::mt19937 random(20240229);
  int compiled_count = 0;
  for (int i = 0; i < 6000; ++i) {
    std::string script = mutate(random);
    Compiled compiled = compile_script(script);
    if (!compiled.bundle) {
      EXPECT_NE(compiled.text.find("ERROR"), std::string::npos) << script;
      EXPECT_EQ(compiled.text.find("is not bound"), std::string::npos) << script << compiled.text;
      continue;
    }
    ++compiled_count;
    Machine machine(std::move(*compiled.bundle));
    for (const bundle::Program& program : machine.bundle().programs) {
      auto checked = bpf::check(program.code, machine.check_env(program));
      ASSERT_TRUE(checked.has_value()) << script << "\n" << checked.error().message;
    }
  }
  EXPECT_GT(compiled_count, 300);
}

/// Where the verifier gives up on loops is its own matter; anything else it refuses is our fault.
bool is_about_loops(const std::string& log) {
  for (const char* text : {"infinite loop", "too large", "too complex", "too many"}) {
    if (log.find(text) != std::string::npos) return true;
  }
  return false;
}

TEST(Hostile, WhateverCompilesPassesTheVerifier) {
  if (!why_no_kernel().empty()) GTEST_SKIP() << why_no_kernel();
  std::mt19937 random(42);
  for (int loaded_count = 0; loaded_count < 300;) {
    std::string script = mutate(random);
    CompileOptions options;
    options.calls_loops = true;
    Compiled compiled = compile_script(script, options);
    if (!compiled.bundle) continue;
    ++loaded_count;
    auto loaded = KernelBundle::load(*compiled.bundle);
    if (loaded) continue;
    EXPECT_TRUE(is_about_loops(loaded.error().message)) << script << "\n" << loaded.error().message;
  }
}

TEST(Hostile, DeepExpressionsEndInADiagnosticOrAProgram) {
  for (const char* wrap : {"(", "!", "-", "~"}) {
    std::string script = "BEGIN { @ = ";
    for (int i = 0; i < 190; ++i) script += wrap;
    script += "pid";
    if (*wrap == '(') script += std::string(190, ')');
    Compiled compiled = compile_script(script + "; }");
    EXPECT_TRUE(compiled.bundle.has_value() || !compiled.text.empty());
  }
  std::string chain = "BEGIN { @ = pid";
  for (int i = 0; i < 90; ++i) chain += " + (tid";
  Compiled compiled = compile_script(chain + std::string(90, ')') + "; }");
  EXPECT_FALSE(compiled.bundle.has_value());
  EXPECT_NE(compiled.text.find("bytes of stack"), std::string::npos) << compiled.text;
}

TEST(Hostile, HugeClausesAreRefusedInWords) {
  std::string nested = "@x = 1;";
  for (int i = 0; i < 50; ++i) nested = "unroll(100) { " + nested + " }";
  Compiled compiled = compile_script("BEGIN { " + nested + " }");
  EXPECT_FALSE(compiled.bundle.has_value());
  EXPECT_NE(compiled.text.find("this clause is too long"), std::string::npos) << compiled.text;
}

}  // namespace
}  // namespace spile::lang
