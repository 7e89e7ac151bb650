// Bytes of keys, map values and record fields -> what they mean -> text and JSON.
#pragma once

#include <compare>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "bundle/bundle.h"
#include "output/names.h"

namespace spile::output {

/// A value read out of bytes that somebody else may have written.
struct Value {
  enum class Kind : uint8_t {
    kNone,
    kSigned,
    kUnsigned,
    kPointer,
    kText,
    kBuffer,
    kTuple,
    kRecord,
    kArray,
    kBool,
  };
  Kind kind = Kind::kNone;
  uint64_t bits = 0;  ///< kSigned (two's complement), kUnsigned, kPointer, kBool (0 or 1)
  std::string text;   ///< kText; kBuffer: the raw bytes; kSigned: the constant's name, or ""
  std::vector<Value> fields;            ///< kTuple, kRecord, kArray
  std::vector<std::string> names = {};  ///< kRecord

  static Value number(uint64_t bits, bool is_signed) {
    return {is_signed ? Kind::kSigned : Kind::kUnsigned, bits, {}, {}};
  }
  bool is_number() const {
    return kind == Kind::kSigned || kind == Kind::kUnsigned || kind == Kind::kPointer ||
           kind == Kind::kBool;
  }
};

/// Errors:  corrupt   too few bytes, a buffer longer than its room, a probe that does not exist
Result<Value> read_value(const bundle::ValueType& type,
                         std::span<const uint8_t> bytes,
                         const Meaning& meaning);
/// The field of a record, which may be shorter than it says.
Result<Value> read_field(const bundle::RecordField& field,
                         std::span<const uint8_t> record,
                         const Meaning& meaning);

/// As print() shows it: `(1, a)`, `0x7f00`, `a\x00b`.
std::string to_text(const Value& value);
/// As a map's key: the parts of a tuple without parentheses, `1, a`.
std::string key_text(const Value& value);
/// `[1,"a"]`. Integers that a double can not hold become strings.
std::string to_json(const Value& value);
/// A key as the name of a JSON member, quoted: `"1,a"`.
std::string key_json(const Value& value);

/// Text as a JSON string with its quotes. Bytes that are not UTF-8 become U+FFFD, so that the line
/// stays valid JSON.
std::string json_string(std::string_view text);

/// Bytes with what is not printable ASCII as `\x00`.
std::string buffer_text(std::string_view bytes);

/// Order of keys: numbers by value, text by bytes, tuples part by part.
std::strong_ordering compare(const Value& a, const Value& b);

}  // namespace spile::output
