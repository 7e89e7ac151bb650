#include "lang/syntax/lexer.h"

#include <gtest/gtest.h>

#include "lang/syntax/print.h"

namespace spile::lang {
namespace {

std::vector<TokenKind> kinds(std::string_view text) {
  Diagnostics diagnostics;
  std::vector<TokenKind> out;
  for (const Token& token : lex(Source("t", std::string(text)), diagnostics))
    out.push_back(token.kind);
  return out;
}

std::string first_error(std::string_view text) {
  Diagnostics diagnostics;
  const Source source("t", std::string(text));
  lex(source, diagnostics);
  return diagnostics.has_errors() ? diagnostics.all()[0].message : "";
}

uint64_t number(std::string_view text) {
  const auto value = read_number(text);
  return value ? value->value : 999'999;
}

TEST(Number, ReadsEveryForm) {
  EXPECT_EQ(number("0"), 0u);
  EXPECT_EQ(number("42"), 42u);
  EXPECT_EQ(number("0x2A"), 42u);
  EXPECT_EQ(number("0x1d"), 29u);
  EXPECT_EQ(number("052"), 42u);
  EXPECT_EQ(number("1e6"), 1'000'000u);
  EXPECT_EQ(number("1_000_000"), 1'000'000u);
  EXPECT_EQ(number("5ULL"), 5u);
  EXPECT_EQ(number("500ms"), 500'000'000u);
  EXPECT_EQ(number("2h"), 7'200'000'000'000u);
  EXPECT_EQ(number("18446744073709551615"), UINT64_MAX);
  EXPECT_EQ(number("0xffffffffffffffff"), UINT64_MAX);
  EXPECT_TRUE(read_number("7u")->is_unsigned);
  EXPECT_TRUE(read_number("7us")->is_duration);
  EXPECT_FALSE(read_number("7us")->is_unsigned);
}

TEST(Number, RefusesWhatDoesNotFitOrIsNone) {
  EXPECT_EQ(read_number("18446744073709551616").error(), NumberFault::kTooLarge);
  EXPECT_EQ(read_number("1e20").error(), NumberFault::kTooLarge);
  EXPECT_EQ(read_number("1e99999999999999999999").error(), NumberFault::kTooLarge);
  EXPECT_EQ(read_number("300000d").error(), NumberFault::kTooLarge);
  EXPECT_EQ(read_number("08").error(), NumberFault::kOctalDigit);
  EXPECT_EQ(read_number("12abc").error(), NumberFault::kSuffix);
  EXPECT_EQ(read_number("0x").error(), NumberFault::kSyntax);
  EXPECT_EQ(read_number("1_").error(), NumberFault::kSyntax);
  EXPECT_EQ(read_number("").error(), NumberFault::kSyntax);
  EXPECT_EQ(read_number("x").error(), NumberFault::kSyntax);
  EXPECT_EQ(number("0e9999999999"), 0u);  // and does not loop
}

TEST(Lexer, TellsAPredicateFromADivision) {
  using enum TokenKind;
  EXPECT_EQ(kinds("BEGIN / 4 / 2 / { }"),
            (std::vector{kAttachWord, kPredicateBegin, kInteger, kSlash, kInteger, kPredicateEnd,
                         kLeftBrace, kRightBrace, kEnd}));
  EXPECT_EQ(kinds("k:f/1/{}"), kinds("k:f / 1 / {}"));
  EXPECT_EQ(kinds("k:f/1/ /* x */ {}"), kinds("k:f / 1 / {}"));
}

TEST(Lexer, KeepsSlashesAndStarsInPaths) {
  Diagnostics diagnostics;
  const auto tokens = lex(Source("t", "u:/usr/lib/*//x.so:f /1/ {}"), diagnostics);
  EXPECT_EQ(tokens[0].text, "u:/usr/lib/*//x.so:f");
  EXPECT_EQ(tokens[1].kind, TokenKind::kPredicateBegin);
}

TEST(Lexer, ReadsADefinitionNamedLikeAKeywordAsAProbe) {
  using enum TokenKind;
  EXPECT_EQ(kinds("config {}")[0], kAttachWord);
  EXPECT_EQ(kinds("config = {}")[0], kIdentifier);
  EXPECT_EQ(kinds("let:x {}")[0], kAttachWord);
  EXPECT_EQ(kinds("structure {}")[0], kAttachWord);
}

TEST(Lexer, AcceptsABlockExpressionInAPredicate) {
  Diagnostics diagnostics;
  lex(Source("t", "k:f / { 1 } == 1 / { }"), diagnostics);
  EXPECT_FALSE(diagnostics.has_errors());
  EXPECT_EQ(kinds("k:f / { 1 } == 1 / { }").size(), 11u);
}

TEST(Lexer, ReplacesEscapes) {
  Diagnostics diagnostics;
  const auto tokens = lex(Source("t", R"(BEGIN { "a\n\t\r\"\\\x41\101\0z\x7" })"), diagnostics);
  EXPECT_EQ(tokens[2].text, std::string("a\n\t\r\"\\AA\0z\x07", 11));
  EXPECT_FALSE(diagnostics.has_errors());
}

TEST(Lexer, ReportsBrokenWords) {
  EXPECT_EQ(first_error("BEGIN { \"abc\n }"), "this string is never closed");
  EXPECT_EQ(first_error("BEGIN { \"abc\\"), "this string is never closed");
  EXPECT_EQ(first_error("BEGIN { \"\\q\" }"), "unknown escape in a string");
  EXPECT_EQ(first_error("BEGIN { /* "), "this comment is never closed");
  EXPECT_EQ(first_error("BEGIN { $ }"), "a name, a number or # must follow '$'");
  EXPECT_EQ(first_error("BEGIN { $0 }"), "positional parameters are $1 to $999999");
  EXPECT_EQ(first_error("BEGIN { 12abc }"), "'12abc' is not a number");
  EXPECT_EQ(first_error("BEGIN { 09 }"),
            "09 starts with 0, so it is octal, and has a digit above 7");
  EXPECT_EQ(first_error("BEGIN { 'a' }"), "unexpected character '");
  EXPECT_EQ(first_error("BEGIN { \x01 }"), "unexpected byte 0x01");
  EXPECT_EQ(first_error("struct x { int a; "), "this struct has no end");
}

TEST(Lexer, EndsEveryScriptWithOneEnd) {
  for (const std::string_view text :
       {"", " ", "#!", "/", "BEGIN", "BEGIN {", "}", "\"", "u:\"", "@", "$", "u:\"\\", "#"}) {
    const auto all = kinds(text);
    ASSERT_FALSE(all.empty()) << text;
    EXPECT_EQ(all.back(), TokenKind::kEnd) << text;
    EXPECT_EQ(std::count(all.begin(), all.end(), TokenKind::kEnd), 1) << text;
  }
}

TEST(Lexer, CutsAScriptThatIsTooLong) {
  Diagnostics diagnostics;
  const Source source("t", std::string(Source::kMaxBytes + 1, ' '));
  lex(source, diagnostics);
  EXPECT_TRUE(diagnostics.has_errors());
}

}  // namespace
}  // namespace spile::lang
