#include "lang/syntax/attach_point.h"

#include <gtest/gtest.h>

#include "lang/syntax/parser.h"

namespace spile::lang {
namespace {

using ast::ProbeType;

struct Read {
  std::vector<ast::AttachPoint> points;
  std::string error;
};

Read read(std::string_view text, std::vector<std::string> positional = {}) {
  Diagnostics diagnostics;
  Read out;
  out.points =
      read_attach_point(text, {0, static_cast<uint32_t>(text.size())}, positional, diagnostics);
  if (diagnostics.has_errors()) out.error = diagnostics.all()[0].message;
  EXPECT_EQ(out.points.empty(), diagnostics.has_errors()) << text;
  return out;
}

ast::AttachPoint one(std::string_view text, std::vector<std::string> positional = {}) {
  Read out = read(text, std::move(positional));
  EXPECT_EQ(out.points.size(), 1u) << text << ": " << out.error;
  return out.points.empty() ? ast::AttachPoint{} : std::move(out.points[0]);
}

TEST(AttachPoint, NormalisesAliasesAndCase) {
  EXPECT_EQ(one("BEGIN").text, "BEGIN");
  EXPECT_EQ(one("begin").type, ProbeType::kBegin);
  EXPECT_EQ(one("u:/a:f").type, ProbeType::kUprobe);
  EXPECT_EQ(one("U:/a:f").type, ProbeType::kUsdt);
  EXPECT_EQ(one("KPROBE:f").type, ProbeType::kKprobe);
  EXPECT_EQ(one("kr:f").type, ProbeType::kKretprobe);
  EXPECT_EQ(one("kfunc:f").text, "fentry:f");
  EXPECT_EQ(one("i:s:1").text, "interval:s:1");
}

TEST(AttachPoint, ReadsOffsetsAndAddresses) {
  const auto offset = one("uprobe:/bin/bash:main+0x10");
  EXPECT_EQ(offset.function, "main");
  EXPECT_EQ(offset.offset, 16u);
  EXPECT_EQ(one("uprobe:/bin/bash:0x1234").address, 0x1234u);
  EXPECT_EQ(one("kprobe:0xffffffff81000000").address, 0xffffffff81000000u);
  EXPECT_EQ(one("kprobe:mod:f+3").target, "mod");
}

TEST(AttachPoint, KeepsQuotedParts) {
  const auto point = one("uprobe:\"/opt/my app:x\":\"ns::f(int)\\\"\"");
  EXPECT_EQ(point.target, "/opt/my app:x");
  EXPECT_EQ(point.function, "ns::f(int)\"");
  EXPECT_TRUE(point.parts[1].is_quoted);
  EXPECT_EQ(one("u:/a:cpp:\"operator+\"").function, "operator+");
}

TEST(AttachPoint, PutsPositionalParametersIn) {
  EXPECT_EQ(one("uprobe:$1:f$2", {"/bin/x", "oo"}).text, "uprobe:/bin/x:foo");
  EXPECT_EQ(one("uprobe:/x:\"$1\"", {"a"}).function, "$1");
  EXPECT_EQ(one("kprobe:$1", {"a:b"}).function, "a:b");  // a parameter adds no parts
  EXPECT_EQ(read("kprobe:$1").error, "the probe needs $1, but 0 parameters were given");
  EXPECT_EQ(read("kprobe:$99999999999999999999").error,
            "the probe needs $99999999999999999999, but 0 parameters were given");
}

TEST(AttachPoint, MultipliesByAWildcardInTheProvider) {
  const Read out = read("k*:vfs_read");
  ASSERT_EQ(out.points.size(), 2u);
  EXPECT_EQ(out.points[0].text, "kprobe:vfs_read");
  EXPECT_EQ(out.points[1].text, "kretprobe:vfs_read");
  EXPECT_EQ(read("u*:/bin/x:f").points.size(), 3u);
  EXPECT_EQ(read("zz*:f").error, "unknown probe type 'zz*'");
}

TEST(AttachPoint, ReadsTimers) {
  EXPECT_EQ(one("interval:s:5").period_ns, 5'000'000'000u);
  EXPECT_EQ(one("interval:ms:5").period_ns, 5'000'000u);
  EXPECT_EQ(one("interval:hz:100").period_ns, 10'000'000u);
  EXPECT_EQ(one("interval:hz:100").frequency_hz, 100u);
  EXPECT_EQ(one("profile:100us").period_ns, 100'000u);
  EXPECT_EQ(one("interval:5000").period_ns, 5'000u);
}

TEST(AttachPoint, ReadsExclusions) {
  const auto point = one("!uprobe:/a/b:strlen");
  EXPECT_TRUE(point.is_excluded);
  EXPECT_EQ(point.target, "/a/b");
  EXPECT_EQ(point.function, "strlen");
  EXPECT_FALSE(one("uprobe:/a/b:strlen").is_excluded);
}

TEST(AttachPoint, ReadsWatchedArguments) {
  const auto point = one("asyncwatchpoint:f+arg2:8:w");
  EXPECT_EQ(point.function, "f");
  EXPECT_EQ(point.watch_length, 8u);
}

TEST(AttachPoint, ReadsUsdtAndSourceLines) {
  const auto usdt = one("usdt:/bin/x:ns:name");
  EXPECT_EQ(usdt.usdt_namespace, "ns");
  EXPECT_EQ(usdt.function, "name");
  const auto line = one("uprobe:/bin/x@dir/main.c:12:3");
  EXPECT_EQ(line.target, "/bin/x");
  EXPECT_EQ(line.source_file, "dir/main.c");
  EXPECT_EQ(line.source_line, 12u);
  EXPECT_EQ(line.source_column, 3u);
  EXPECT_EQ(one("uprobe:/opt/app@1.2/bin/x:f").target, "/opt/app@1.2/bin/x");
}

TEST(AttachPoint, RefusesWrongFormsWithTheRightOne) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"BEGIN:x", "this is not how BEGIN is written"},
      {"uprobe", "this is not how uprobe is written"},
      {"uprobe::f", "this is not how uprobe is written"},
      {"uprobe:/a:std::string", "this is not how uprobe is written"},
      {"uprobe:/a:b:c:d", "this uprobe has too many parts"},
      {"uprobe:/a:f+x", "'x' is not an offset"},
      {"uretprobe:/a:f+4", "uretprobe takes no offset: it fires when the function returns"},
      {"kretprobe:0x10", "kretprobe takes no address"},
      {"tracepoint:x", "this is not how tracepoint is written"},
      {"interval:s", "this is not how interval is written"},
      {"interval:s:0", "'0' is not a positive number"},
      {"interval:min:1", "'min' is not a unit: use s, ms, us or hz"},
      {"interval:s:99999999999999", "this period is too long"},
      {"interval:hz:99999999", "the highest frequency is 1000000 hz"},
      {"interval:10ns", "the shortest period is 1000 ns"},
      {"watchpoint:0x1:3:r", "a watched length is 1, 2, 4 or 8"},
      {"watchpoint:0x1:4:q", "a mode is made of r, w and x"},
      {"uprobe:/a:\"f", "this quote is never closed"},
      {"foo:bar", "unknown probe type 'foo'"},
  };
  for (const auto& [text, message] : cases) EXPECT_EQ(read(text).error, message) << text;
}

TEST(AttachPoint, OffersTheNearestType) {
  Diagnostics diagnostics;
  read_attach_point("tracepiont:a:b", {0, 14}, {}, diagnostics);
  EXPECT_EQ(diagnostics.all()[0].hint, "did you mean 'tracepoint'?");
}

TEST(AttachPoint, IsReadAloneForListing) {
  Diagnostics diagnostics;
  EXPECT_EQ(parse_attach_point(Source("-l", "uprobe:libc:mal*"), {}, diagnostics).size(), 1u);
  EXPECT_FALSE(diagnostics.has_errors());
  EXPECT_TRUE(parse_attach_point(Source("-l", "k:f { }"), {}, diagnostics).empty());
  EXPECT_TRUE(diagnostics.has_errors());
}

}  // namespace
}  // namespace spile::lang
