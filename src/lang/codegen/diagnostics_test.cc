// Wrong scripts and what their users are told: the files of tests/diagnostics.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "lang/codegen/test_compile.h"

namespace spile::lang {
namespace {

struct Case {
  std::string title, script, expected;
};

std::string next_line(std::string_view& text) {
  const size_t end = std::min(text.find('\n'), text.size());
  std::string line(text.substr(0, end));
  text.remove_prefix(std::min(end + 1, text.size()));
  return line;
}

std::vector<Case> read_cases(const std::string& path) {
  std::ifstream file(path);
  const std::string all((std::istreambuf_iterator<char>(file)), {});
  std::vector<Case> cases;
  std::string* part = nullptr;
  for (std::string_view rest = all; !rest.empty();) {
    const std::string line = next_line(rest);
    if (line.starts_with("=== ")) {
      cases.push_back({line.substr(4), "", ""});
      part = &cases.back().script;
    } else if (line == "---") {
      part = &cases.back().expected;
    } else if (part != nullptr) {
      *part += line + "\n";
    }
  }
  // An empty line stands between a case and the next.
  for (Case& one : cases) {
    while (one.expected.ends_with("\n\n")) one.expected.pop_back();
    if (one.expected == "\n") one.expected.clear();
    if (!one.script.empty()) one.script.pop_back();
  }
  return cases;
}

void write_cases(const std::string& path, const std::vector<Case>& cases) {
  std::ofstream file(path);
  for (const Case& one : cases) {
    if (&one != cases.data()) file << "\n";
    file << "=== " << one.title << "\n" << one.script << "\n---\n" << one.expected;
  }
}

TEST(Diagnostics, AreAsRecorded) {
  const bool rebase = std::getenv("SPILE_REBASE") != nullptr;
  size_t count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(SPILE_DIAGNOSTICS)) {
    if (entry.path().extension() != ".txt") continue;
    std::vector<Case> cases = read_cases(entry.path());
    for (Case& one : cases) {
      const Compiled compiled = compile_script(one.script);
      EXPECT_FALSE(compiled.bundle) << one.title << " is no fault\n" << one.script;
      if (rebase) {
        one.expected = compiled.text;
      } else {
        EXPECT_EQ(compiled.text, one.expected) << entry.path() << ": " << one.title;
      }
      count++;
    }
    if (rebase) write_cases(entry.path(), cases);
  }
  EXPECT_GE(count, 150u);
}

/// On kernels from before 5.17. The place is the loop's, also in a function.
TEST(Diagnostics, NameTheLoopThatThisKernelCannotMake) {
  CompileOptions old_kernel{.calls_loops = true, .has_loop_calls = false};
  const std::string reason = "loops of more than 32 rounds and walks through maps need Linux 5.17";
  for (const auto& [script, place] :
       {std::pair{"BEGIN { $n = 0; if (pid > 1) { while ($n < pid) { $n++; } } }", "stdin:1:32"},
        std::pair{"BEGIN { @ = 1;\n for ($i : 0..33) { @++; } }", "stdin:2:2"},
        std::pair{"BEGIN { @x[1] = 1; for ($kv : @x) { print($kv.0); } }", "stdin:1:20"},
        std::pair{"fn f($n : int64) : int64 { while ($n > 9) { $n--; } return $n; }\n"
                  "BEGIN { @ = f(pid); }",
                  "stdin:1:28"}}) {
    const Compiled compiled = compile_script(script, old_kernel);
    EXPECT_FALSE(compiled.bundle) << script;
    EXPECT_NE(compiled.text.find(reason), std::string::npos) << compiled.text;
    EXPECT_NE(compiled.text.find(place), std::string::npos) << compiled.text;
  }
  EXPECT_TRUE(compile_script("BEGIN { for ($i : 0..32) { @++; } }", old_kernel).bundle);
}

}  // namespace
}  // namespace spile::lang
