#include "lang/syntax/diagnostic.h"

#include <gtest/gtest.h>

#include <array>

namespace spile::lang {
namespace {

TEST(Source, KnowsLinesAndColumns) {
  const Source source("t", "ab\n\ncd");
  EXPECT_EQ(source.line_count(), 3u);
  EXPECT_EQ(source.position(0), (Position{1, 1}));
  EXPECT_EQ(source.position(2), (Position{1, 3}));
  EXPECT_EQ(source.position(3), (Position{2, 1}));
  EXPECT_EQ(source.position(5), (Position{3, 2}));
  EXPECT_EQ(source.position(999), (Position{3, 3}));
  EXPECT_EQ(source.line(1), "ab");
  EXPECT_EQ(source.line(2), "");
  EXPECT_EQ(source.line(3), "cd");
  EXPECT_EQ(source.line(4), "");
  EXPECT_EQ(source.text({1, 100}), "b\n\ncd");
  EXPECT_EQ(source.text({100, 1}), "");
}

TEST(Render, ShowsTheLineAndAMarker) {
  const Source source("stdin", "BEGIN { foo(1); }");
  Diagnostics diagnostics;
  diagnostics.error({8, 11}, "Unknown function: foo").with_hint("did you mean '{}'?", "for");
  EXPECT_EQ(render(source, diagnostics),
            "stdin:1:9-12: ERROR: Unknown function: foo\n"
            "BEGIN { foo(1); }\n"
            "        ~~~\n"
            "HINT: did you mean 'for'?\n");
}

TEST(Render, ShowsNoSourceForSeveralLines) {
  const Source source("a.bt", "BEGIN {\n\n}");
  EXPECT_EQ(render(source, Diagnostic{Severity::kWarning, {0, 10}, "long", ""}),
            "a.bt:1-3: WARNING: long\n");
}

TEST(Render, MarksAnEmptySpanWithOneTilde) {
  const Source source("s", "ab");
  EXPECT_EQ(render(source, Diagnostic{Severity::kError, {2, 2}, "end", ""}),
            "s:1:3-4: ERROR: end\nab\n  ~\n");
}

TEST(Render, LetsNoControlCharacterThrough) {
  const Source source("s", "a\x1b[2J\tb");
  const std::string text = render(source, Diagnostic{Severity::kError, {0, 1}, "bad \x1b", ""});
  EXPECT_EQ(text.find('\x1b'), std::string::npos);
  EXPECT_NE(text.find("a?[2J b\n"), std::string::npos);
}

TEST(Render, ShowsOnlyAPartOfAVeryLongLine) {
  const Source source("s", std::string(100'000, 'x') + "!" + std::string(100'000, 'y'));
  const std::string text =
      render(source, Diagnostic{Severity::kError, {100'000, 100'001}, "here", ""});
  EXPECT_LT(text.size(), 1000u);
  EXPECT_NE(text.find("x!y"), std::string::npos);
}

TEST(Render, SortsByPlaceAndColoursOnRequest) {
  const Source source("s", "abc");
  Diagnostics diagnostics;
  diagnostics.error({2, 3}, "second");
  diagnostics.warning({0, 1}, "first");
  const std::string text = render(source, diagnostics, {.colour = true});
  EXPECT_LT(text.find("first"), text.find("second"));
  EXPECT_NE(text.find("\x1b[31m"), std::string::npos);
}

TEST(Diagnostics, KeepsAFewAndCountsAll) {
  const Source source("s", "abc");
  Diagnostics diagnostics;
  for (int i = 0; i < 1000; i++) diagnostics.error({0, 1}, "fault {}", i).with_hint("x");
  EXPECT_EQ(diagnostics.all().size(), Diagnostics::kMaxKept);
  EXPECT_EQ(diagnostics.error_count(), 1000u);
  EXPECT_NE(render(source, diagnostics).find("950 more errors are not shown"), std::string::npos);
}

TEST(Render, NamesTheFileThatAPlaceIsIn) {
  const Source source(
      {{"main.bt", "one\ntwo"}, {"a.bt", "three\nfour"}, {"empty.bt", ""}, {"b.bt", "five"}},
      {1, 2, 3, 0});
  Diagnostics diagnostics;
  const auto at = [&](std::string_view word) {
    const auto begin = static_cast<uint32_t>(source.text().find(word));
    diagnostics.error({begin, begin + static_cast<uint32_t>(word.size())}, "here");
  };
  for (const char* word : {"one", "two", "three", "four", "five"}) at(word);
  EXPECT_EQ(render(source, diagnostics),
            "main.bt:1:1-4: ERROR: here\none\n~~~\n"
            "main.bt:2:1-4: ERROR: here\ntwo\n~~~\n"
            "a.bt:1:1-6: ERROR: here\nthree\n~~~~~\n"
            "a.bt:2:1-5: ERROR: here\nfour\n~~~~\n"
            "b.bt:1:1-5: ERROR: here\nfive\n~~~~\n");
  EXPECT_EQ(source.text(source.part_span(1)), "three\nfour");
  EXPECT_EQ(source.text(source.part_span(2)), "");
}

TEST(Nearest, FindsTypingErrorsOnly) {
  constexpr auto kNames =
      std::to_array<std::string_view>({"uprobe", "uretprobe", "kprobe", "interval"});
  EXPECT_EQ(nearest("uprob", kNames), "uprobe");
  EXPECT_EQ(nearest("intervall", kNames), "interval");
  EXPECT_EQ(nearest("UPROBE", kNames), "uprobe");
  EXPECT_EQ(nearest("xyz", kNames), "");
  EXPECT_EQ(nearest("", kNames), "");
  EXPECT_EQ(nearest(std::string(100'000, 'u'), kNames), "");
}

}  // namespace
}  // namespace spile::lang
