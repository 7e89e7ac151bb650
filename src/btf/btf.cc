#include "btf/btf.h"

#include <algorithm>
#include <cstring>

namespace spile::btf {

namespace {

constexpr uint16_t kMagic = 0xeb9f;
constexpr size_t kEntryBytes = 12;  // struct btf_type
constexpr int kMostSteps = 64;

bool is_composite(Kind kind) {
  return kind == Kind::kStruct || kind == Kind::kUnion;
}

/// Whether the third word is a size; else it is a type.
bool has_size(Kind kind) {
  return is_composite(kind) || kind == Kind::kInt || kind == Kind::kEnum || kind == Kind::kEnum64 ||
         kind == Kind::kFloat || kind == Kind::kSection;
}

Kind kind_of(uint32_t info) {
  return static_cast<Kind>((info >> 24) & 0x1f);
}
uint32_t length_of(uint32_t info) {
  return info & 0xffff;
}
bool flag_of(uint32_t info) {
  return (info >> 31) != 0;
}

}  // namespace

uint32_t Types::word(size_t at) const {
  uint32_t value = 0;
  if (at + sizeof value <= bytes_.size()) std::memcpy(&value, bytes_.data() + at, sizeof value);
  return value;
}

/// "" for an offset outside; parse() has seen that the table ends with a NUL.
std::string_view Types::text(uint32_t offset) const {
  if (offset >= strings_end_ - strings_) return {};
  return reinterpret_cast<const char*>(bytes_.data() + strings_ + offset);
}

Result<Types> Types::parse(std::vector<uint8_t> section) {
  Types types;
  types.bytes_ = std::move(section);
  const auto& bytes = types.bytes_;
  // struct btf_header: magic, version, flags, hdr_len, type_off, type_len, str_off, str_len.
  if (bytes.size() < 24)
    return fail(ErrorCode::kCorrupt, "a BTF section of {} bytes", bytes.size());
  if ((types.word(0) & 0xffff) != kMagic || bytes[2] != 1)
    return fail(ErrorCode::kUnsupported, "not a little-endian BTF section of version 1");
  const uint64_t header = types.word(4);
  const uint64_t begin = header + types.word(8), strings = header + types.word(16);
  const uint64_t end = begin + types.word(12), strings_end = strings + types.word(20);
  if (header < 24 || end > bytes.size() || strings_end > bytes.size() || strings_end == strings ||
      bytes[strings_end - 1] != 0)
    return fail(ErrorCode::kCorrupt, "a BTF section whose parts lie outside of it");
  types.types_ = begin;
  types.types_end_ = end;
  types.strings_ = strings;
  types.strings_end_ = strings_end;
  SPILE_TRY_VOID(types.index());
  return types;
}

/// Bytes of the entry at `at`, with what follows its first three words.
Result<size_t> Types::entry_bytes(size_t at) const {
  const uint32_t info = word(at + 4), length = length_of(info);
  size_t more = 0;
  switch (kind_of(info)) {
    case Kind::kInt:
    case Kind::kVariable:
    case Kind::kDeclTag: more = 4; break;
    case Kind::kArray: more = 12; break;
    case Kind::kStruct:
    case Kind::kUnion:
    case Kind::kEnum64:
    case Kind::kSection: more = size_t{12} * length; break;
    case Kind::kEnum:
    case Kind::kPrototype: more = size_t{8} * length; break;
    case Kind::kPointer:
    case Kind::kForward:
    case Kind::kTypedef:
    case Kind::kVolatile:
    case Kind::kConst:
    case Kind::kRestrict:
    case Kind::kFunction:
    case Kind::kFloat:
    case Kind::kTypeTag: break;
    default:
      return fail(ErrorCode::kUnsupported, "BTF type {} is of the unknown kind {}", offsets_.size(),
                  static_cast<int>(kind_of(info)));
  }
  return kEntryBytes + more;
}

Result<void> Types::index() {
  offsets_.push_back(0);
  for (size_t at = types_; at < types_end_;) {
    if (types_end_ - at < kEntryBytes)
      return fail(ErrorCode::kCorrupt, "BTF type {} is cut off", offsets_.size());
    SPILE_TRY(const size_t size, entry_bytes(at));
    if (size > types_end_ - at)
      return fail(ErrorCode::kCorrupt, "BTF type {} is cut off", offsets_.size());
    offsets_.push_back(static_cast<uint32_t>(at));
    at += size;
  }
  return {};
}

Type Types::type(uint32_t number) const {
  Type out;
  if (number == 0 || number >= offsets_.size()) return out;
  const size_t at = offsets_[number];
  const uint32_t info = word(at + 4), last = word(at + 8);
  out.kind = kind_of(info);
  out.name = text(word(at));
  (has_size(out.kind) ? out.size_bytes : out.target) = last;
  if (out.kind == Kind::kInt) {
    const uint32_t encoding = word(at + kEntryBytes) >> 24;
    out.is_signed = (encoding & 1) != 0;
    out.is_char = (encoding & 2) != 0 || out.name == "char";
    out.is_bool = (encoding & 4) != 0;
  }
  if (out.kind == Kind::kEnum || out.kind == Kind::kEnum64) out.is_signed = flag_of(info);
  if (out.kind == Kind::kForward) out.target = 0;
  if (out.kind == Kind::kArray) {
    out.target = word(at + kEntryBytes);
    out.count = word(at + kEntryBytes + 8);
  }
  return out;
}

std::vector<Member> Types::members(uint32_t number) const {
  std::vector<Member> out;
  if (!is_composite(type(number).kind)) return out;
  const size_t at = offsets_[number];
  const uint32_t info = word(at + 4);
  for (uint32_t i = 0; i < length_of(info); i++) {
    const size_t member = at + kEntryBytes + size_t{12} * i;
    const uint32_t offset = word(member + 8);
    const bool has_bits = flag_of(info);
    out.push_back({text(word(member)), word(member + 4), has_bits ? offset & 0xffffff : offset,
                   has_bits ? offset >> 24 : 0});
  }
  return out;
}

std::vector<Enumerator> Types::enumerators(uint32_t number) const {
  std::vector<Enumerator> out;
  const Type type = this->type(number);
  if (type.kind != Kind::kEnum && type.kind != Kind::kEnum64) return out;
  const size_t at = offsets_[number] + kEntryBytes;
  const uint32_t length = length_of(word(offsets_[number] + 4));
  for (uint32_t i = 0; i < length; i++) {
    if (type.kind == Kind::kEnum) {
      const uint32_t value = word(at + size_t{8} * i + 4);
      out.push_back({text(word(at + size_t{8} * i)),
                     type.is_signed ? static_cast<int32_t>(value) : static_cast<int64_t>(value)});
    } else {
      const size_t one = at + size_t{12} * i;
      out.push_back(
          {text(word(one)),
           static_cast<int64_t>(word(one + 4) | static_cast<uint64_t>(word(one + 8)) << 32)});
    }
  }
  return out;
}

std::vector<Parameter> Types::parameters(uint32_t number) const {
  std::vector<Parameter> out;
  if (type(number).kind != Kind::kPrototype) return out;
  const size_t at = offsets_[number] + kEntryBytes;
  for (uint32_t i = 0; i < length_of(word(offsets_[number] + 4)); i++)
    out.push_back({text(word(at + size_t{8} * i)), word(at + size_t{8} * i + 4)});
  return out;
}

/// Whether the string at `offset` of the table is exactly `name`; without looking for its end
/// first, since nearly all differ at once.
bool Types::is_named(uint32_t offset, std::string_view name) const {
  if (offset >= strings_end_ - strings_ || name.size() >= strings_end_ - strings_ - offset)
    return false;
  const uint8_t* text = bytes_.data() + strings_ + offset;
  return std::memcmp(text, name.data(), name.size()) == 0 && text[name.size()] == 0;
}

std::optional<uint32_t> Types::find(Kind kind, std::string_view name) const {
  for (uint32_t number = 1; number < offsets_.size(); number++) {
    const size_t at = offsets_[number];
    if (kind_of(word(at + 4)) == kind && is_named(word(at), name)) return number;
  }
  return std::nullopt;
}

uint32_t Types::strip(uint32_t number) const {
  for (int step = 0; step < kMostSteps; step++) {
    switch (const Type t = type(number); t.kind) {
      case Kind::kTypedef:
      case Kind::kConst:
      case Kind::kVolatile:
      case Kind::kRestrict:
      case Kind::kTypeTag: number = t.target; break;
      default: return number;
    }
  }
  return 0;
}

std::optional<int64_t> Types::enumerator(std::string_view name) const {
  for (uint32_t number = 1; number < offsets_.size(); number++) {
    const size_t at = offsets_[number];
    const Kind kind = kind_of(word(at + 4));
    if (kind != Kind::kEnum && kind != Kind::kEnum64) continue;
    const size_t step = kind == Kind::kEnum ? 8 : 12;
    for (uint32_t i = 0; i < length_of(word(at + 4)); i++) {
      if (is_named(word(at + kEntryBytes + step * i), name)) return enumerators(number)[i].value;
    }
  }
  return std::nullopt;
}

}  // namespace spile::btf
