#include "lang/fmt/format.h"

#include <gtest/gtest.h>

#include <algorithm>
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

std::string formatted(const std::string& text) {
  const Source source("stdin", text);
  Diagnostics diagnostics;
  auto out = format_script(source, diagnostics);
  return out ? *out : "ERROR " + out.error().message + render(source, diagnostics);
}

std::string tree(const std::string& text) {
  const Source source("stdin", text);
  Diagnostics diagnostics;
  return print_ast(parse(source, {.keeps_attach_words = true}, diagnostics));
}

/// The formatted text says the same, and formatting it again changes nothing.
std::string checked(const std::string& text) {
  const std::string once = formatted(text);
  EXPECT_EQ(tree(text), tree(once)) << once;
  EXPECT_EQ(formatted(once), once);
  return once;
}

TEST(Format, PutsBlanksWhereTheyBelong) {
  EXPECT_EQ(checked("BEGIN{@x [ 1,2 ]=$y+-1 ;}"), "BEGIN { @x[1, 2] = $y + -1; }\n");
  EXPECT_EQ(checked("BEGIN{$x=( uint64 ) -1;$p = ( struct a*)arg0}"),
            "BEGIN { $x = (uint64)-1; $p = (struct a *)arg0 }\n");
  EXPECT_EQ(checked("BEGIN{$x=a*b-*p&& !c;++ @n}"), "BEGIN { $x = a * b - *p && !c; ++@n }\n");
  EXPECT_EQ(checked("BEGIN{$y=(- $x)*( ! $a)+(* $p)+(-- $n)+((~$b));}"),
            "BEGIN { $y = (-$x) * (!$a) + (*$p) + (--$n) + ((~$b)); }\n");
  EXPECT_EQ(checked("BEGIN{let $x:uint8=1;$y=c?:d ? 1:2;}"),
            "BEGIN { let $x: uint8 = 1; $y = c ?: d ? 1 : 2; }\n");
  EXPECT_EQ(checked("BEGIN{for($i:0 .. 5){print($i);}}"),
            "BEGIN { for ($i : 0..5) { print($i); } }\n");
  EXPECT_EQ(checked("fn f($a:uint8,$b:int8):int64{return $a*sizeof(uint8*);}BEGIN{}"),
            "fn f($a: uint8, $b: int8) : int64 { return $a * sizeof(uint8 *); }\nBEGIN {}\n");
}

TEST(Format, NeverMakesOtherWordsOfTwo) {
  EXPECT_EQ(checked("BEGIN { $x = - -1; $y = - --$x; }"), "BEGIN { $x = - -1; $y = - --$x; }\n");
  EXPECT_EQ(checked("uprobe:f:g / *arg0 / { @ = & @x; }"), "uprobe:f:g / *arg0/ { @ = &@x; }\n");
  EXPECT_EQ(checked("kprobe:f/pid==1/{@=count();}"), "kprobe:f /pid == 1/ { @ = count(); }\n");
}

TEST(Format, OpensBlocksThatAreLongOrWereOpen) {
  EXPECT_EQ(checked("BEGIN { @a = 1; @b = 2; @c = 3; }"),
            "BEGIN {\n  @a = 1;\n  @b = 2;\n  @c = 3;\n}\n");
  EXPECT_EQ(checked("BEGIN {\n@a = 1 }\nEND { }"), "BEGIN {\n  @a = 1\n}\n\nEND {}\n");
  EXPECT_EQ(
      checked("BEGIN { if a {\n@a = 1 } else if b { @b=1 }\nelse { @c=1} @d=1 }"),
      "BEGIN {\n  if a {\n    @a = 1\n  } else if b {\n    @b = 1\n  } else {\n    @c = 1\n  }\n"
      "  @d = 1\n}\n");
  EXPECT_EQ(checked("BEGIN {\n$x = if c { 1 } else { 2 }; $y = { @z = 1;\n3 };\n}"),
            "BEGIN {\n  $x = if c { 1 } else { 2 };\n  $y = {\n    @z = 1;\n    3\n  };\n}\n");
  EXPECT_EQ(checked("config={a=1;\nb=yes}\nBEGIN{}"),
            "config = {\n  a = 1;\n  b = yes\n}\n\nBEGIN {}\n");
}

TEST(Format, BreaksLongLinesAtTheOutermostPlace) {
  EXPECT_EQ(
      checked("BEGIN { printf(\"%s is a text that fills the line quite well %d %d\\n\", comm, "
              "pid, some_function_of(tid, elapsed)); }"),
      "BEGIN {\n  printf(\"%s is a text that fills the line quite well %d %d\\n\", comm, pid,\n"
      "      some_function_of(tid, elapsed));\n}\n");
  EXPECT_EQ(checked("uprobe:/usr/lib/x86_64-linux-gnu/libcrypto.so.3:one_function, "
                    "uprobe:/usr/lib/x86_64-linux-gnu/libcrypto.so.3:another /pid == 1/ { @a = 1; "
                    "@b = 2; }"),
            "uprobe:/usr/lib/x86_64-linux-gnu/libcrypto.so.3:one_function,\n"
            "uprobe:/usr/lib/x86_64-linux-gnu/libcrypto.so.3:another /pid == 1/ {\n"
            "  @a = 1;\n  @b = 2;\n}\n");
}

TEST(Format, KeepsCommentsWhereTheyWere) {
  const std::string text =
      "#!/usr/bin/env spile\n// head\n\n/* two\n * lines */\nBEGIN // of the head\n{ // of the "
      "brace\n"
      "  // own\n  @a = f(1, // first\n    /* second */ 2); // behind\n\n\n  @b = 1;\n  // "
      "last\n}\n"
      "// end\n";
  EXPECT_EQ(
      checked(text),
      "#!/usr/bin/env spile\n// head\n\n/* two\n * lines */\nBEGIN // of the head\n"
      "{ // of the brace\n  // own\n  @a = f(1, // first\n      /* second */ 2); // behind\n\n"
      "  @b = 1;\n  // last\n}\n// end\n");
  EXPECT_EQ(checked("kprobe:a, // one\nkprobe:b /* two */ { }"),
            "kprobe:a, // one\nkprobe:b /* two */ {}\n");
}

TEST(Format, LeavesCAlone) {
  const std::string text =
      "#include <linux/sched.h>\n#define A  \\\n   1\nstruct x {\n\tint a; // tab\n};\n\nBEGIN "
      "{}\n";
  EXPECT_EQ(checked(text), text);
}

TEST(Format, RefusesWhatIsNoScript) {
  EXPECT_TRUE(formatted("BEGIN { @x = ; }").starts_with("ERROR stdin is not a script"));
}

/// What the last check of format_script rests on: it sees every word and every comment.
TEST(WordsAndComments, SeeWhatIsLost) {
  const auto of = [](const char* text) { return words_and_comments(Source("stdin", text)); };
  const std::string base = of("BEGIN { @a = 1; /* c */ }");
  EXPECT_EQ(of("BEGIN{@a=1;/* c */}"), base);
  EXPECT_EQ(of("BEGIN {\n@a = 1; /*  c  */\n}"), base);
  EXPECT_NE(of("BEGIN { @a = 1; }"), base);
  EXPECT_NE(of("BEGIN { @a = 1 /* c */ }"), base);
  EXPECT_NE(of("BEGIN { @a = 2; /* c */ }"), base);
}

size_t comments_of(const std::string& text) {
  const std::string all = words_and_comments(Source("", text));
  return static_cast<size_t>(std::ranges::count(all, '\n'));
}

/// Every script at hand: ours, those of the parser's tests, Debian's.
std::vector<fs::path> all_scripts() {
  std::vector<fs::path> out;
  const fs::path root = SPILE_SOURCE_ROOT;
  for (const fs::path& directory :
       {root / "tools/scripts", root / "src/lang/syntax/testdata", fs::path("/usr/sbin")}) {
    std::error_code absent;
    for (const auto& entry : fs::directory_iterator(directory, absent)) {
      if (entry.path().extension() == ".bt") out.push_back(entry.path());
    }
  }
  std::ranges::sort(out);
  return out;
}

TEST(Format, ChangesNoScriptAtHandButItsForm) {
  const std::vector<fs::path> scripts = all_scripts();
  ASSERT_GE(scripts.size(), 25u);
  for (const fs::path& path : scripts) {
    std::ostringstream text;
    text << std::ifstream(path, std::ios::binary).rdbuf();
    SCOPED_TRACE(path);
    const std::string once = checked(text.str());
    ASSERT_FALSE(once.starts_with("ERROR")) << once;
    EXPECT_EQ(comments_of(once), comments_of(text.str()));
    for (size_t begin = 0; begin < once.size();) {
      const size_t end = once.find('\n', begin);
      EXPECT_FALSE(end > begin && once[end - 1] == ' ') << once.substr(begin, end - begin);
      begin = end + 1;
    }
  }
}

std::string read_file(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

/// The script with other blanks, lines and comments between its words.
std::string disordered(const std::string& text, std::mt19937& random) {
  const Source source("stdin", text);
  Diagnostics unread;
  std::string out;
  uint32_t end = 0;
  for (const Token& token : lex(source, unread)) {
    const std::string_view gap = source.text({end, token.span.begin});
    const bool is_line = token.kind == TokenKind::kDirective || token.kind == TokenKind::kShebang ||
                         token.kind == TokenKind::kCDefinition;
    out += gap;
    // What stands alone, and what is bound to a word, keeps its place.
    if (!gap.empty() && !is_line) {
      constexpr std::string_view kGaps[] = {" ",
                                            "\n",
                                            "\n\n\n",
                                            "  /* one */ ",
                                            " // two\n",
                                            "\t",
                                            "\n/*\n * three\n */\n",
                                            "\n// four\n\n"};
      out += kGaps[random() % std::size(kGaps)];
    }
    out += source.text(token.span);
    end = token.span.end;
  }
  return out;
}

TEST(Format, ChangesNoDisorderedScriptButItsForm) {
  std::mt19937 random(7);
  for (const fs::path& path : all_scripts()) {
    for (int round = 0; round < 6; round++) {
      const std::string text = disordered(read_file(path), random);
      SCOPED_TRACE(path.string() + "\n" + text);
      const std::string once = checked(text);
      ASSERT_FALSE(once.starts_with("ERROR")) << once;
      ASSERT_EQ(comments_of(once), comments_of(text));
      if (HasFailure()) return;
    }
  }
}

/// Whatever else still is a script.
TEST(Format, ChangesNoMutantButItsForm) {
  std::mt19937 random(8);
  std::vector<std::string> all;
  for (const fs::path& path : all_scripts()) all.push_back(read_file(path));
  size_t scripts = 0;
  for (int round = 0; round < 3000; round++) {
    std::string text = all[random() % all.size()];
    constexpr std::string_view kBytes = "{}()[];,:?.=+-*/%&|^~!<>\"$@ \nx0";
    for (unsigned changes = 1 + random() % 3; changes > 0; changes--) {
      const size_t at = random() % (text.size() + 1);
      if (random() % 2 == 0)
        text.erase(at, 1 + random() % 3);
      else
        text.insert(at, 1, kBytes[random() % kBytes.size()]);
    }
    const std::string once = formatted(text);
    if (once.starts_with("ERROR stdin is not a script")) continue;
    scripts++;
    ASSERT_FALSE(once.starts_with("ERROR")) << once << text;
    ASSERT_EQ(tree(text), tree(once)) << text;
    ASSERT_EQ(formatted(once), once) << text;
  }
  EXPECT_GE(scripts, 500u);
}

/// The scripts of the tools are in this form.
TEST(Format, IsThatOfOurTools) {
  for (const auto& entry : fs::directory_iterator(fs::path(SPILE_SOURCE_ROOT) / "tools/scripts")) {
    if (entry.path().extension() != ".bt") continue;
    EXPECT_EQ(formatted(read_file(entry.path())), read_file(entry.path()))
        << "spile --fmt -i " << entry.path();
  }
}

}  // namespace
}  // namespace spile::lang
