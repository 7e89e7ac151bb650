// The expected texts are what bpftrace 0.17 prints for the same arguments, where it takes the
// conversion.
#include "output/format.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>

namespace spile::output {
namespace {

using bundle::RecordField;
using bundle::ValueKind;

/// A record that is filled argument by argument.
class Arguments {
 public:
  Arguments& number(uint64_t bits, uint32_t size = 8, bool is_signed = true) {
    return add({ValueKind::kInt, size, is_signed, {}, {}}, &bits, size);
  }
  Arguments& string(std::string text, uint32_t size = 16) {
    text.resize(size);
    return add({ValueKind::kString, size, true, {}, {}}, text.data(), size);
  }
  Arguments& buffer(std::string_view text, uint32_t claimed) {
    std::string data(reinterpret_cast<const char*>(&claimed), 4);
    data += text;
    return add({ValueKind::kBuffer, static_cast<uint32_t>(data.size()), true, {}, {}}, data.data(),
               data.size());
  }
  Result<std::string> with(std::string_view format) const {
    return format_printf(format, fields_, record_, bundle::Bundle());
  }
  std::string text(std::string_view format) const {
    auto out = with(format);
    return out ? *out : "error: " + out.error().message;
  }
  std::vector<uint8_t>& record() { return record_; }

 private:
  Arguments& add(bundle::ValueType type, const void* data, size_t size) {
    fields_.push_back({std::move(type), static_cast<uint32_t>(record_.size())});
    const auto* from = static_cast<const uint8_t*>(data);
    record_.insert(record_.end(), from, from + size);
    return *this;
  }
  std::vector<uint8_t> record_ = std::vector<uint8_t>(8);
  std::vector<RecordField> fields_;
};

std::string one(std::string_view format, uint64_t bits) {
  return Arguments().number(bits).text(format);
}
constexpr auto kMinus1 = static_cast<uint64_t>(-1);

TEST(Printf, CutsNumbersAsTheirLengthSays) {
  EXPECT_EQ(one("%d", 5'000'000'000), "705032704");
  EXPECT_EQ(one("%u", 5'000'000'000), "705032704");
  EXPECT_EQ(one("%ld", 5'000'000'000), "5000000000");
  EXPECT_EQ(one("%lld", kMinus1 - 4), "-5");
  EXPECT_EQ(one("%i", 7), "7");
  EXPECT_EQ(one("%hhx", 300), "2c");
  EXPECT_EQ(one("%hd", 70000), "4464");
  EXPECT_EQ(one("%hhd", 300), "44");
  EXPECT_EQ(one("%hx", 70000), "1170");
  EXPECT_EQ(one("%x", kMinus1), "ffffffff");
  EXPECT_EQ(one("%X", kMinus1), "FFFFFFFF");
  EXPECT_EQ(one("%lX", kMinus1), "FFFFFFFFFFFFFFFF");
  EXPECT_EQ(one("%o", 8), "10");
  EXPECT_EQ(one("%zu", 5'000'000'000), "5000000000");
  EXPECT_EQ(one("%lu", kMinus1), "18446744073709551615");
  EXPECT_EQ(one("%jd", kMinus1), "-1");
}

TEST(Printf, KnowsFlagsWidthAndPrecision) {
  EXPECT_EQ(one("%-5d|", 5), "5    |");
  EXPECT_EQ(one("%05d", 5), "00005");
  EXPECT_EQ(one("%05x", 255), "000ff");
  EXPECT_EQ(one("%#x", 255), "0xff");
  EXPECT_EQ(one("%#o", 8), "010");
  EXPECT_EQ(one("%+d", 5), "+5");
  EXPECT_EQ(one("% d", 5), " 5");
  EXPECT_EQ(one("%8.3d|", 5), "     005|");
  EXPECT_EQ(one("%.0d|", 0), "|");
  EXPECT_EQ(one("%5c|", 'a'), "    a|");
  EXPECT_EQ(one("%-3c|", 'b'), "b  |");
  EXPECT_EQ(one("%c", 0), std::string(1, '\0'));
}

TEST(Printf, ShowsPointersAsGlibcDoes) {
  EXPECT_EQ(one("%p", 0xffff), "0xffff");
  EXPECT_EQ(one("%10p", 5), "       0x5");
  EXPECT_EQ(one("%p", 0), "(nil)");
}

TEST(Printf, ShowsStrings) {
  EXPECT_EQ(Arguments().string("ab").string("cd").string("efgh").text("%-8s|%8s|%.2s|%%"),
            "ab      |      cd|ef|%");
  EXPECT_EQ(Arguments().string("abcd", 4).text("%10.3s|"), "       abc|");
  EXPECT_EQ(Arguments().string("abcd", 4).text("[%s]"), "[abcd]");
  EXPECT_EQ(Arguments().number(5).text("%s"), "5");
}

TEST(Printf, ShowsBuffers) {
  EXPECT_EQ(Arguments().buffer("a\x01\\\"b", 5).text("%r"), "a\\x01\\\"b");
  EXPECT_EQ(Arguments().buffer("ab", 2).text("%rx"), "\\x61\\x62");
  EXPECT_EQ(Arguments().buffer("ab", 2).text("%rh"), "61 62");
  EXPECT_EQ(Arguments().buffer("abcd", 2).text("%r|"), "ab|");
  EXPECT_EQ(Arguments().buffer("ab", 2).text("%-4r|%%r"), "ab  |%r");
}

TEST(Printf, SaysPercentAndPlainText) {
  EXPECT_EQ(Arguments().text("100%%\n"), "100%\n");
  EXPECT_EQ(Arguments().text(""), "");
  EXPECT_EQ(Arguments().number(1, 4).number(2, 1).text("%d %d %%"), "1 2 %");
}

TEST(Printf, IsNotMisledByAHugeWidth) {
  EXPECT_LE(one("%999999999999d", 5).size(), 4096u);
  EXPECT_LE(one("%.999999999999d", 5).size(), 4096u);
  EXPECT_LE(Arguments().string("x").text("%99999999999s").size(), 4096u);
}

TEST(Printf, RefusesARecordThatIsTooShort) {
  Arguments arguments;
  arguments.number(5).record().resize(12);
  EXPECT_EQ(arguments.with("%d").error().code, ErrorCode::kCorrupt);
}

TEST(Printf, RefusesABufferThatClaimsMoreThanItHas) {
  EXPECT_EQ(Arguments().buffer("ab", 3).with("%r").error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(Arguments().buffer("ab", UINT32_MAX).with("%rx").error().code, ErrorCode::kCorrupt);
}

TEST(Printf, RefusesAFormatThatDoesNotFit) {
  EXPECT_EQ(Arguments().with("%d").error().code, ErrorCode::kInternal);
  EXPECT_EQ(Arguments().number(1).with("%q").error().code, ErrorCode::kInternal);
  EXPECT_EQ(Arguments().number(1).with("%").error().code, ErrorCode::kInternal);
  EXPECT_EQ(Arguments().string("x").with("%d").error().code, ErrorCode::kInternal);
}

TEST(Time, IsFormattedInTheLocalZone) {
  setenv("TZ", "UTC", 1);
  tzset();
  EXPECT_EQ(format_time("%H:%M:%S\n", 3661), "01:01:01\n");
  EXPECT_EQ(format_time("", 0), "");
  EXPECT_EQ(format_time("%Y-%m-%d", 0), "1970-01-01");
  std::string many;
  for (int i = 0; i < 1000; i++) many += "%Y";
  EXPECT_EQ(format_time(many, 0).size(), 4000u);
}

}  // namespace
}  // namespace spile::output
