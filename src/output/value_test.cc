#include "output/value.h"

#include <gtest/gtest.h>

#include <cstring>

namespace spile::output {
namespace {

using bundle::ValueKind;
using bundle::ValueType;

std::vector<uint8_t> bytes(std::string_view text) {
  return {text.begin(), text.end()};
}

bundle::Bundle bundle_with_probe() {
  bundle::Bundle out;
  out.probes.push_back({.name = "uprobe:/bin/x:f", .function = "f"});
  return out;
}

Value read(const ValueType& type, const std::vector<uint8_t>& data) {
  auto value = read_value(type, data, bundle_with_probe());
  EXPECT_TRUE(value) << (value ? "" : value.error().message);
  return value ? *value : Value{};
}

ErrorCode fault(const ValueType& type, const std::vector<uint8_t>& data) {
  auto value = read_value(type, data, bundle_with_probe());
  EXPECT_FALSE(value);
  return value ? ErrorCode::kInvalid : value.error().code;
}

TEST(Value, ExtendsIntegersByTheirSign) {
  EXPECT_EQ(to_text(read({ValueKind::kInt, 1, true, {}, {}}, {0xff})), "-1");
  EXPECT_EQ(to_text(read({ValueKind::kInt, 1, false, {}, {}}, {0xff})), "255");
  EXPECT_EQ(to_text(read({ValueKind::kInt, 4, true, {}, {}}, {0, 0, 0, 0x80})), "-2147483648");
  EXPECT_EQ(to_text(read({ValueKind::kInt, 8, false, {}, {}}, std::vector<uint8_t>(8, 0xff))),
            "18446744073709551615");
  EXPECT_EQ(to_text(read({ValueKind::kInt, 8, true, {}, {}}, std::vector<uint8_t>(8, 0xff))), "-1");
}

TEST(Value, ShowsConstantsByNameAndAsNumbersInJson) {
  ValueType color{ValueKind::kEnum, 4, true, {}, {}};
  color.names = {"NONE", "RED"};
  color.values = {-1, 5};
  EXPECT_EQ(to_text(read(color, {5, 0, 0, 0})), "RED");
  EXPECT_EQ(to_text(read(color, {0xff, 0xff, 0xff, 0xff})), "NONE");
  EXPECT_EQ(to_text(read(color, {6, 0, 0, 0})), "6");
  EXPECT_EQ(to_json(read(color, {5, 0, 0, 0})), "5");
  EXPECT_TRUE(compare(read(color, {5, 0, 0, 0}), read(color, {0xff, 0xff, 0xff, 0xff})) > 0);
  EXPECT_EQ(fault(color, {5, 0}), ErrorCode::kCorrupt);
  color.values.pop_back();
  EXPECT_EQ(fault(color, {5, 0, 0, 0}), ErrorCode::kInternal);
}

TEST(Value, ShowsBooleansArraysAndBitfields) {
  const ValueType flag{ValueKind::kBool, 1, false, {}, {}};
  EXPECT_EQ(to_text(read(flag, {2})), "true");
  EXPECT_EQ(to_json(read(flag, {0})), "false");
  const ValueType half{ValueKind::kInt, 2, true, {}, {}};
  const ValueType list{ValueKind::kArray, 4, true, {half}, {2}};
  EXPECT_EQ(to_text(read(list, {1, 0, 0xff, 0xff})), "[1,-1]");
  EXPECT_EQ(to_json(read(list, {1, 0, 0xff, 0xff})), "[1,-1]");
  EXPECT_EQ(fault({ValueKind::kArray, 4, true, {{}}, {2}}, {1, 0, 0, 0}), ErrorCode::kInternal);
  ValueType bits{ValueKind::kInt, 2, true, {}, {}};
  bits.shift = 4;
  bits.bits = 9;
  EXPECT_EQ(to_text(read(bits, {0x43, 0x06})), "100");
  EXPECT_EQ(to_text(read(bits, {0xf3, 0x1f})), "-1");
  ValueType record{ValueKind::kTuple, 8, true, {half, flag}, {0, 6}};
  record.names = {"a", "ok"};
  EXPECT_EQ(to_text(read(record, {1, 0, 0, 0, 0, 0, 1, 0})), "{ .a = 1, .ok = true }");
}

TEST(Value, EndsStringsAtTheirRoomEvenWithoutNul) {
  EXPECT_EQ(to_text(read({ValueKind::kString, 4, true, {}, {}}, bytes("abcd"))), "abcd");
  EXPECT_EQ(
      to_text(read({ValueKind::kString, 4, true, {}, {}}, bytes(std::string_view("a\0cd", 4)))),
      "a");
}

TEST(Value, ShowsBuffersPointersAndProbes) {
  EXPECT_EQ(to_text(read({ValueKind::kBuffer, 8, true, {}, {}},
                         bytes(std::string_view("\3\0\0\0a\1\\z", 8)))),
            "a\\x01\\");
  EXPECT_EQ(to_text(read({ValueKind::kPointer, 8, false, {}, {}}, {0x10, 0, 0, 0, 0, 0, 0, 0})),
            "0x10");
  EXPECT_EQ(to_text(read({ValueKind::kProbe, 8, false, {}, {}}, std::vector<uint8_t>(8))),
            "uprobe:/bin/x:f");
  EXPECT_EQ(to_text(read({ValueKind::kFunc, 8, false, {}, {}}, std::vector<uint8_t>(8))), "f");
}

const ValueType kPair{ValueKind::kTuple,
                      6,
                      true,
                      {{ValueKind::kInt, 2, true, {}, {}}, {ValueKind::kString, 4, true, {}, {}}},
                      {0, 2}};

TEST(Value, ShowsTuplesInAllForms) {
  const Value pair = read(kPair, bytes(std::string_view("\5\0a b\0", 6)));
  EXPECT_EQ(to_text(pair), "(5, a b)");
  EXPECT_EQ(key_text(pair), "5, a b");
  EXPECT_EQ(to_json(pair), "[5,\"a b\"]");
  EXPECT_EQ(key_json(pair), "\"5,a b\"");
}

TEST(Value, RefusesBytesThatMakeNoSense) {
  EXPECT_EQ(fault({ValueKind::kInt, 8, true, {}, {}}, {1, 2}), ErrorCode::kCorrupt);
  EXPECT_EQ(
      fault({ValueKind::kBuffer, 8, true, {}, {}}, bytes(std::string_view("\5\0\0\0abcd", 8))),
      ErrorCode::kCorrupt);
  EXPECT_EQ(fault({ValueKind::kBuffer, 2, true, {}, {}}, {0, 0}), ErrorCode::kCorrupt);
  EXPECT_EQ(fault({ValueKind::kProbe, 8, true, {}, {}}, {1, 0, 0, 0, 0, 0, 0, 0}),
            ErrorCode::kCorrupt);
  EXPECT_EQ(fault(kPair, {1, 2, 3}), ErrorCode::kCorrupt);
  EXPECT_EQ(fault({ValueKind::kTuple, 2, true, {{ValueKind::kInt, 4, true, {}, {}}}, {0}}, {1, 2}),
            ErrorCode::kCorrupt);
  EXPECT_EQ(fault({ValueKind::kInt, 0, true, {}, {}}, {}), ErrorCode::kInternal);
  const bundle::RecordField field{{ValueKind::kInt, 4, true, {}, {}}, 100};
  EXPECT_EQ(read_field(field, std::vector<uint8_t>(16), bundle::Bundle()).error().code,
            ErrorCode::kCorrupt);
}

TEST(Json, EscapesEverythingThatBreaksALine) {
  EXPECT_EQ(json_string("a\"b\\c\n\r\t\x01\x1f\x7f"), "\"a\\\"b\\\\c\\n\\r\\t\\u0001\\u001f\x7f\"");
  EXPECT_EQ(json_string("\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"),
            "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"");
}

TEST(Json, ReplacesBytesThatAreNotUtf8) {
  EXPECT_EQ(json_string("a\xff"), "\"a\\ufffd\"");
  EXPECT_EQ(json_string("\xc3"), "\"\\ufffd\"");
  EXPECT_EQ(json_string("\xc0\x80"), "\"\\ufffd\\ufffd\"");
  EXPECT_EQ(json_string("\xed\xa0\x80"), "\"\\ufffd\\ufffd\\ufffd\"");
  EXPECT_EQ(json_string("\xf5\x80\x80\x80").size(), 2 + 4 * 6u);
}

TEST(Json, WritesNumbersBeyondADoubleAsStrings) {
  EXPECT_EQ(to_json(Value::number(uint64_t{1} << 53, false)), "9007199254740992");
  EXPECT_EQ(to_json(Value::number((uint64_t{1} << 53) + 1, false)), "\"9007199254740993\"");
  EXPECT_EQ(to_json(Value::number(UINT64_MAX, false)), "\"18446744073709551615\"");
  EXPECT_EQ(to_json(Value::number(UINT64_MAX, true)), "-1");
  EXPECT_EQ(to_json(Value::number(INT64_MAX, true)), "\"9223372036854775807\"");
  EXPECT_EQ(to_json(Value::number(uint64_t{1} << 63, true)), "-9223372036854775808");
}

}  // namespace
}  // namespace spile::output
