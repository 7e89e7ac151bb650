#include "output/value.h"

#include <algorithm>
#include <cstring>

#include "output/convert.h"

namespace spile::output {
namespace {

using bundle::ValueKind;
using bundle::ValueType;

Result<Value> read_integer(const ValueType& type, std::span<const uint8_t> bytes) {
  uint64_t bits = 0;
  std::memcpy(&bits, bytes.data(), bytes.size());  // little endian, as all our targets
  if (type.bits != 0) {
    if (type.bits + type.shift > 64) return fail(ErrorCode::kInternal, "a bitfield outside");
    const unsigned above = 64u - type.bits - type.shift, unused = 64u - type.bits;
    bits <<= above;
    bits = type.is_signed ? static_cast<uint64_t>(static_cast<int64_t>(bits) >> unused)
                          : bits >> unused;
    return Value::number(bits, type.is_signed);
  }
  if (type.is_signed && bytes.size() < sizeof(bits)) {
    const unsigned unused = 64 - 8 * static_cast<unsigned>(bytes.size());
    bits = static_cast<uint64_t>(static_cast<int64_t>(bits << unused) >> unused);
  }
  return Value::number(bits, type.is_signed);
}

/// Text shows the constant's name, JSON its number.
Result<Value> read_enum(const ValueType& type, std::span<const uint8_t> bytes) {
  if (type.names.size() != type.values.size())
    return fail(ErrorCode::kInternal, "an enum has {} names and {} values", type.names.size(),
                type.values.size());
  SPILE_TRY(Value out, read_integer(type, bytes));
  const auto known = std::ranges::find(type.values, static_cast<int64_t>(out.bits));
  if (known != type.values.end())
    out.text = type.names[static_cast<size_t>(known - type.values.begin())];
  return out;
}

/// Up to the first NUL: the other side may have left it out.
Value read_string(std::span<const uint8_t> bytes) {
  const auto end = std::ranges::find(bytes, uint8_t{0});
  return {Value::Kind::kText, 0, std::string(bytes.begin(), end), {}};
}

Result<Value> read_buffer(std::span<const uint8_t> bytes) {
  uint32_t length = 0;
  if (bytes.size() < sizeof(length))
    return fail(ErrorCode::kCorrupt, "a buffer of {} bytes has no length", bytes.size());
  std::memcpy(&length, bytes.data(), sizeof(length));
  bytes = bytes.subspan(sizeof(length));
  if (length > bytes.size())
    return fail(ErrorCode::kCorrupt, "a buffer says it has {} bytes and has room for {}", length,
                bytes.size());
  return Value{Value::Kind::kBuffer, 0, std::string(bytes.begin(), bytes.begin() + length), {}};
}

Result<Value> read_probe(const ValueType& type,
                         std::span<const uint8_t> bytes,
                         const Meaning& meaning) {
  uint64_t index = 0;
  std::memcpy(&index, bytes.data(), std::min(bytes.size(), sizeof(index)));
  if (index >= meaning.bundle.probes.size())
    return fail(ErrorCode::kCorrupt, "probe {} of {} is named", index,
                meaning.bundle.probes.size());
  const bundle::Probe& probe = meaning.bundle.probes[index];
  return Value{
      Value::Kind::kText, 0, type.kind == ValueKind::kProbe ? probe.name : probe.function, {}};
}

/// A stack or a symbol: one word, and for the user's the process behind it.
Result<Value> read_address(const ValueType& type,
                           std::span<const uint8_t> bytes,
                           const Meaning& meaning) {
  const bool is_user = type.kind == ValueKind::kUserStack || type.kind == ValueKind::kUserSymbol;
  uint64_t words[2] = {};
  const size_t wanted = is_user ? sizeof words : sizeof words[0];
  if (bytes.size() < wanted)
    return fail(ErrorCode::kInternal, "an address in {} bytes", bytes.size());
  std::memcpy(words, bytes.data(), wanted);
  Value out{Value::Kind::kText, 0, {}, {}};
  if (type.kind == ValueKind::kUserSymbol) {
    out.text = user_symbol_text(words[1], words[0], meaning);
  } else if (type.kind == ValueKind::kKernelSymbol) {
    out.text = kernel_symbol_text(words[0], meaning);
  } else {
    out.text = stack_text(type, static_cast<int64_t>(words[0]), words[1], meaning);
  }
  return out;
}

Result<Value> read_tuple(const ValueType& type,
                         std::span<const uint8_t> bytes,
                         const Meaning& meaning) {
  if (type.fields.size() != type.offsets.size())
    return fail(ErrorCode::kInternal, "a tuple has {} parts at {} offsets", type.fields.size(),
                type.offsets.size());
  Value out{type.names.empty() ? Value::Kind::kTuple : Value::Kind::kRecord, 0, {}, {}};
  if (!type.names.empty() && type.names.size() != type.fields.size())
    return fail(ErrorCode::kInternal, "a record has {} fields and {} names", type.fields.size(),
                type.names.size());
  out.names = type.names;
  for (size_t i = 0; i < type.fields.size(); i++) {
    if (type.offsets[i] > bytes.size())
      return fail(ErrorCode::kCorrupt, "part {} of a tuple lies outside", i);
    SPILE_TRY(Value part, read_value(type.fields[i], bytes.subspan(type.offsets[i]), meaning));
    out.fields.push_back(std::move(part));
  }
  return out;
}

Result<Value> read_array(const ValueType& type,
                         std::span<const uint8_t> bytes,
                         const Meaning& meaning) {
  const size_t step = type.fields.empty() ? 0 : type.fields[0].size;
  if (step == 0 || type.offsets.empty())
    return fail(ErrorCode::kInternal, "an array of elements without a size");
  Value out{Value::Kind::kArray, 0, {}, {}};
  for (size_t i = 0; i < type.offsets[0] && (i + 1) * step <= bytes.size(); i++) {
    SPILE_TRY(Value part, read_value(type.fields[0], bytes.subspan(i * step), meaning));
    out.fields.push_back(std::move(part));
  }
  return out;
}

Result<Value> read_inet(std::span<const uint8_t> bytes) {
  uint64_t family = 0;
  if (bytes.size() < sizeof(family) + 16)
    return fail(ErrorCode::kInternal, "an address in {} bytes", bytes.size());
  std::memcpy(&family, bytes.data(), sizeof(family));
  return Value{Value::Kind::kText, 0, inet_text(family, bytes.subspan(sizeof(family))), {}};
}

/// Numbers that are shown as text.
Result<Value> read_converted(const ValueType& type, std::span<const uint8_t> bytes) {
  uint64_t word = 0;
  if (bytes.size() < sizeof(word))
    return fail(ErrorCode::kInternal, "a number in {} bytes", bytes.size());
  std::memcpy(&word, bytes.data(), sizeof(word));
  if (type.kind == ValueKind::kMac)
    return Value{Value::Kind::kText, 0, mac_text(bytes.first(6)), {}};
  if (type.kind == ValueKind::kTimestamp)
    return Value{Value::Kind::kText, 0, timestamp_text(type.format, real_time_of(word)), {}};
  Value named{Value::Kind::kText, word, named_text(type.format, static_cast<int64_t>(word)), {}};
  return named;
}

std::string record_text(const Value& value) {
  std::string out = "{ ";
  for (size_t i = 0; i < value.fields.size(); i++)
    out += fmt::format("{}.{} = {}", i == 0 ? "" : ", ", value.names[i], to_text(value.fields[i]));
  return out + " }";
}

std::string record_json(const Value& value) {
  std::string out = "{ ";
  for (size_t i = 0; i < value.fields.size(); i++)
    out += fmt::format("{}{}: {}", i == 0 ? "" : ", ", json_string(value.names[i]),
                       to_json(value.fields[i]));
  return out + " }";
}

/// Printable ASCII stays, everything else becomes \xNN.
void append_buffer(std::string& out, std::string_view bytes) {
  for (const char c : bytes) {
    if (c >= 0x20 && c < 0x7f) {
      out += c;
    } else {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
  }
}

/// The length of the UTF-8 sequence at the start of `text`; 0: it is none. Source: RFC 3629, table
/// in section 4.
size_t utf8_length(std::string_view text) {
  const auto byte = [&](size_t i) {
    return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u;
  };
  const auto continues = [&](size_t i) { return (byte(i) & 0xc0) == 0x80; };
  const unsigned first = byte(0), second = byte(1);
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first <= 0xdf) return continues(1) ? 2 : 0;
  if (first >= 0xe0 && first <= 0xef) {
    const bool overlong = first == 0xe0 && second < 0xa0,
               surrogate = first == 0xed && second > 0x9f;
    return continues(1) && continues(2) && !overlong && !surrogate ? 3 : 0;
  }
  if (first >= 0xf0 && first <= 0xf4) {
    const bool overlong = first == 0xf0 && second < 0x90,
               too_large = first == 0xf4 && second > 0x8f;
    return continues(1) && continues(2) && continues(3) && !overlong && !too_large ? 4 : 0;
  }
  return 0;
}

void append_json_ascii(std::string& out, char c) {
  switch (c) {
    case '"': out += "\\\""; break;
    case '\\': out += "\\\\"; break;
    case '\n': out += "\\n"; break;
    case '\r': out += "\\r"; break;
    case '\t': out += "\\t"; break;
    default:
      if (static_cast<unsigned char>(c) < 0x20) {
        out += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
      } else {
        out += c;
      }
  }
}

/// Without the name of a constant.
std::string number_text(const Value& value) {
  if (value.kind == Value::Kind::kSigned)
    return fmt::format("{}", static_cast<int64_t>(value.bits));
  return fmt::format("{}", value.bits);
}

/// Beyond 2^53 a reader that keeps numbers as doubles would get another number: those become
/// strings.
bool fits_double(const Value& value) {
  if (value.kind != Value::Kind::kSigned) {
    const auto rounded = static_cast<double>(value.bits);
    return rounded < 0x1p64 && static_cast<uint64_t>(rounded) == value.bits;
  }
  const auto number = static_cast<int64_t>(value.bits);
  const auto rounded = static_cast<double>(number);
  return rounded < 0x1p63 && static_cast<int64_t>(rounded) == number;
}

std::string joined(const std::vector<Value>& parts,
                   std::string_view separator,
                   std::string (*one)(const Value&)) {
  std::string out;
  for (const Value& part : parts) {
    if (&part != parts.data()) out += separator;
    out += one(part);
  }
  return out;
}

/// Like to_text, but tuples have no blanks: part of a JSON member's name.
std::string tight_text(const Value& value) {
  if (value.kind != Value::Kind::kTuple) return to_text(value);
  return "(" + joined(value.fields, ",", tight_text) + ")";
}

}  // namespace

Result<Value> read_value(const ValueType& type,
                         std::span<const uint8_t> bytes,
                         const Meaning& meaning) {
  if (type.size > bytes.size())
    return fail(ErrorCode::kCorrupt, "a value of {} bytes has only {}", type.size, bytes.size());
  bytes = bytes.first(type.size);
  switch (type.kind) {
    case ValueKind::kNone: return Value{};
    case ValueKind::kInt:
    case ValueKind::kBool:
    case ValueKind::kPointer: {
      if (bytes.empty() || bytes.size() > sizeof(uint64_t))
        return fail(ErrorCode::kInternal, "a number of {} bytes", bytes.size());
      SPILE_TRY(Value out, read_integer(type, bytes));
      if (type.kind == ValueKind::kPointer) out.kind = Value::Kind::kPointer;
      if (type.kind == ValueKind::kBool) out = {Value::Kind::kBool, out.bits != 0, {}, {}};
      return out;
    }
    case ValueKind::kEnum:
      if (bytes.empty() || bytes.size() > sizeof(uint64_t))
        return fail(ErrorCode::kInternal, "a constant of {} bytes", bytes.size());
      return read_enum(type, bytes);
    case ValueKind::kString: return read_string(bytes);
    case ValueKind::kBuffer: return read_buffer(bytes);
    case ValueKind::kProbe:
    case ValueKind::kFunc: return read_probe(type, bytes, meaning);
    case ValueKind::kTuple: return read_tuple(type, bytes, meaning);
    case ValueKind::kArray: return read_array(type, bytes, meaning);
    case ValueKind::kInet: return read_inet(bytes);
    case ValueKind::kMac:
    case ValueKind::kTimestamp:
    case ValueKind::kNamed: return read_converted(type, bytes);
    case ValueKind::kUserStack:
    case ValueKind::kKernelStack:
    case ValueKind::kUserSymbol:
    case ValueKind::kKernelSymbol: return read_address(type, bytes, meaning);
  }
  return fail(ErrorCode::kInternal, "a value of unknown kind {}", static_cast<int>(type.kind));
}

Result<Value> read_field(const bundle::RecordField& field,
                         std::span<const uint8_t> record,
                         const Meaning& meaning) {
  if (field.offset > record.size())
    return fail(ErrorCode::kCorrupt, "a record of {} bytes has no field at {}", record.size(),
                field.offset);
  return read_value(field.type, record.subspan(field.offset), meaning);
}

std::string buffer_text(std::string_view bytes) {
  std::string out;
  append_buffer(out, bytes);
  return out;
}

std::string to_text(const Value& value) {
  switch (value.kind) {
    case Value::Kind::kNone: return {};
    case Value::Kind::kSigned:
    case Value::Kind::kUnsigned: return value.text.empty() ? number_text(value) : value.text;
    case Value::Kind::kPointer: return fmt::format("{:#x}", value.bits);
    case Value::Kind::kText: return value.text;
    case Value::Kind::kBuffer: return buffer_text(value.text);
    case Value::Kind::kTuple: return "(" + joined(value.fields, ", ", to_text) + ")";
    case Value::Kind::kRecord: return record_text(value);
    case Value::Kind::kArray: return "[" + joined(value.fields, ",", to_text) + "]";
    case Value::Kind::kBool: return value.bits != 0 ? "true" : "false";
  }
  return {};
}

std::string key_text(const Value& value) {
  return value.kind == Value::Kind::kTuple ? joined(value.fields, ", ", to_text) : to_text(value);
}

std::string key_json(const Value& value) {
  return json_string(value.kind == Value::Kind::kTuple ? joined(value.fields, ",", tight_text)
                                                       : to_text(value));
}

std::string to_json(const Value& value) {
  switch (value.kind) {
    case Value::Kind::kNone: return "null";
    case Value::Kind::kSigned:
    case Value::Kind::kUnsigned:
    case Value::Kind::kPointer:
      return fits_double(value) ? number_text(value) : json_string(number_text(value));
    case Value::Kind::kText: return json_string(value.text);
    case Value::Kind::kBuffer: return json_string(buffer_text(value.text));
    case Value::Kind::kArray:
    case Value::Kind::kTuple: return "[" + joined(value.fields, ",", to_json) + "]";
    case Value::Kind::kBool: return to_text(value);
    case Value::Kind::kRecord: return record_json(value);
  }
  return "null";
}

std::string json_string(std::string_view text) {
  std::string out = "\"";
  while (!text.empty()) {
    const size_t length = utf8_length(text);
    if (length == 0) {
      out += "\\ufffd";
    } else if (length == 1) {
      append_json_ascii(out, text[0]);
    } else {
      out += text.substr(0, length);
    }
    text.remove_prefix(std::max<size_t>(length, 1));
  }
  return out + "\"";
}

std::strong_ordering compare(const Value& a, const Value& b) {
  if (a.kind != b.kind) return a.kind <=> b.kind;
  switch (a.kind) {
    case Value::Kind::kNone: return std::strong_ordering::equal;
    case Value::Kind::kSigned: return static_cast<int64_t>(a.bits) <=> static_cast<int64_t>(b.bits);
    case Value::Kind::kUnsigned:
    case Value::Kind::kBool:
    case Value::Kind::kPointer: return a.bits <=> b.bits;
    case Value::Kind::kText:
    case Value::Kind::kBuffer: return a.text <=> b.text;
    case Value::Kind::kTuple:
    case Value::Kind::kArray:
    case Value::Kind::kRecord: break;
  }
  for (size_t i = 0; i < std::min(a.fields.size(), b.fields.size()); i++) {
    if (const auto order = compare(a.fields[i], b.fields[i]); order != 0) return order;
  }
  return a.fields.size() <=> b.fields.size();
}

}  // namespace spile::output
