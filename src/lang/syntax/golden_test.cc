// testdata/*.bt against their .tokens and .ast. SPILE_REBASE=1 rewrites those. And mutations of all
// of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>

#include "lang/syntax/lexer.h"
#include "lang/syntax/parser.h"
#include "lang/syntax/print.h"

namespace spile::lang {
namespace {

namespace fs = std::filesystem;

std::string read_file(const fs::path& path) {
  const std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

std::vector<fs::path> scripts() {
  std::vector<fs::path> out;
  for (const auto& entry : fs::directory_iterator(SPILE_TESTDATA)) {
    if (entry.path().extension() == ".bt") out.push_back(entry.path());
  }
  std::ranges::sort(out);
  return out;
}

void expect_golden(fs::path path, std::string_view extension, const std::string& text) {
  path.replace_extension(extension);
  if (std::getenv("SPILE_REBASE") != nullptr) std::ofstream(path, std::ios::binary) << text;
  EXPECT_EQ(read_file(path), text) << path << " differs; SPILE_REBASE=1 rewrites it";
}

const ParseOptions kOptions{.positional = {"/bin/one", "two"}};

TEST(Golden, TokensAndTreesAreAsRecorded) {
  ASSERT_FALSE(scripts().empty());
  for (const fs::path& path : scripts()) {
    const Source source(path.filename(), read_file(path));
    Diagnostics of_lexer, of_parser;
    expect_golden(path, ".tokens", print_tokens(source, lex(source, of_lexer)));
    expect_golden(path, ".ast", print_ast(parse(source, kOptions, of_parser)));
    EXPECT_EQ(render(source, of_parser), "");
  }
}

/// One random change of the kind that typing and hostile editing make.
void mutate(std::string& text, const std::vector<std::string>& all, std::mt19937& random) {
  const auto below = [&](size_t n) { return n == 0 ? 0 : random() % n; };
  constexpr std::string_view kBytes = "{}()[];,:?.=+-*/%&|^~!<>\"\\$@# \n\t'x0_\xff";
  const size_t at = below(text.size() + 1);
  switch (below(6)) {
    case 0: text.erase(at, below(8)); break;
    case 1: text.insert(at, 1, kBytes[below(kBytes.size())]); break;
    case 2: text.insert(at, text.substr(below(text.size() + 1), below(40))); break;
    case 3: text.resize(at); break;
    case 4:
      if (at < text.size()) text[at] = static_cast<char>(random());
      break;
    default: {
      const std::string& other = all[below(all.size())];
      text.insert(at, other.substr(below(other.size() + 1), below(60)));
    }
  }
}

TEST(Mutations, NeverHurtTheParser) {
  std::vector<std::string> all;
  for (const fs::path& path : scripts()) all.push_back(read_file(path));
  std::mt19937 random(20240607);
  for (int round = 0; round < 6000; round++) {
    std::string text = all[random() % all.size()];
    for (unsigned changes = 1 + random() % 6; changes > 0; changes--) mutate(text, all, random);
    const Source source("mutant", text);
    Diagnostics diagnostics;
    const ast::Program program = parse(source, kOptions, diagnostics);
    ASSERT_FALSE(print_ast(program).empty());
    for (const Diagnostic& d : diagnostics) {
      ASSERT_LE(d.span.begin, d.span.end) << d.message << "\n" << text;
      ASSERT_LE(d.span.end, source.size()) << d.message << "\n" << text;
      ASSERT_FALSE(render(source, d).empty());
    }
  }
}

}  // namespace
}  // namespace spile::lang
