#include "btf/btf.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace spile::btf {

namespace {

constexpr uint16_t kMagic = 0xeb9f;
constexpr size_t kEntryBytes = 12;  // struct btf_type
constexpr int kMostSteps = 64;
/// So many names are looked for one by one before a table of all is made, which takes ten times as
/// long as one look.
constexpr uint32_t kLooksBeforeTable = 12;
constexpr uint32_t kNone = 0;

/// Bytes behind an entry's first three words: `fixed`, and `each` for everything it counts.
struct More {
  bool is_known = false;
  uint8_t fixed = 0, each = 0;
};
constexpr std::array<More, 32> kMore = [] {
  std::array<More, 32> table;
  auto set = [&table](Kind kind, uint8_t fixed, uint8_t each) {
    table[static_cast<size_t>(kind)] = {true, fixed, each};
  };
  for (Kind kind : {Kind::kInt, Kind::kVariable, Kind::kDeclTag}) set(kind, 4, 0);
  for (Kind kind : {Kind::kStruct, Kind::kUnion, Kind::kEnum64, Kind::kSection}) set(kind, 0, 12);
  for (Kind kind : {Kind::kEnum, Kind::kPrototype}) set(kind, 0, 8);
  for (Kind kind : {Kind::kPointer, Kind::kForward, Kind::kTypedef, Kind::kVolatile, Kind::kConst,
                    Kind::kRestrict, Kind::kFunction, Kind::kFloat, Kind::kTypeTag})
    set(kind, 0, 0);
  set(Kind::kArray, 12, 0);
  return table;
}();

/// FNV-1a.
uint32_t hash_of(std::string_view name) {
  uint32_t hash = 2166136261u;
  for (char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 16777619u;
  return hash;
}

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
  if (offset < strings_before_) return base_->text(offset);
  offset -= strings_before_;
  if (offset >= strings_end_ - strings_) return {};
  return reinterpret_cast<const char*>(bytes_.data() + strings_ + offset);
}

Result<Types> Types::parse(std::vector<uint8_t> section, std::shared_ptr<const Types> base) {
  auto kept = std::make_shared<const std::vector<uint8_t>>(std::move(section));
  return parse(std::span(*kept), kept, std::move(base));
}

Result<Types> Types::parse(std::span<const uint8_t> bytes,
                           std::shared_ptr<const void> owner,
                           std::shared_ptr<const Types> base) {
  Types types;
  types.bytes_ = bytes;
  types.owner_ = std::move(owner);
  // struct btf_header: magic, version, flags, hdr_len, type_off, type_len, str_off, str_len.
  if (bytes.size() < 24)
    return fail(ErrorCode::kCorrupt, "a BTF section of {} bytes", bytes.size());
  if ((types.word(0) & 0xffff) != kMagic || bytes[2] != 1)
    return fail(ErrorCode::kUnsupported, "not a little-endian BTF section of version 1");
  const uint64_t header = types.word(4);
  const uint64_t begin = header + types.word(8), strings = header + types.word(16);
  const uint64_t end = begin + types.word(12), strings_end = strings + types.word(20);
  if (header < 24 || end > bytes.size() || strings_end > bytes.size())
    return fail(ErrorCode::kCorrupt, "a BTF section whose parts lie outside of it");
  // A split section may need no strings of its own.
  const bool has_strings = strings_end > strings;
  if (has_strings ? bytes[strings_end - 1] != 0 : base == nullptr)
    return fail(ErrorCode::kCorrupt, "a BTF section whose strings have no end");
  types.types_ = begin;
  types.types_end_ = end;
  types.strings_ = strings;
  types.strings_end_ = strings_end;
  if (base != nullptr) {
    types.first_ = base->count();
    types.strings_before_ =
        base->strings_before_ + static_cast<uint32_t>(base->strings_end_ - base->strings_);
    types.base_ = std::move(base);
  }
  SPILE_TRY_VOID(types.index());
  return types;
}

/// Bytes of the entry at `at`, with what follows its first three words; 0: of an unknown kind.
size_t Types::entry_bytes(size_t at) const {
  const uint32_t info = word(at + 4);
  const More& more = kMore[static_cast<size_t>(kind_of(info))];
  return more.is_known ? kEntryBytes + more.fixed + size_t{more.each} * length_of(info) : 0;
}

Result<void> Types::index() {
  offsets_.reserve((types_end_ - types_) / 20);  // as long as they are on average
  for (size_t at = types_; at < types_end_;) {
    if (types_end_ - at < kEntryBytes)
      return fail(ErrorCode::kCorrupt, "BTF type {} is cut off", count());
    const size_t size = entry_bytes(at);
    if (size == 0)
      return fail(ErrorCode::kUnsupported, "BTF type {} is of the unknown kind {}", count(),
                  static_cast<int>(kind_of(word(at + 4))));
    if (size > types_end_ - at) return fail(ErrorCode::kCorrupt, "BTF type {} is cut off", count());
    offsets_.push_back(static_cast<uint32_t>(at));
    at += size;
  }
  return {};
}

Kind Types::kind(uint32_t number) const {
  if (number < first_) return base_ == nullptr ? Kind::kVoid : base_->kind(number);
  return is_own(number) ? kind_of(word(at(number) + 4)) : Kind::kVoid;
}

Type Types::type(uint32_t number) const {
  Type out;
  if (number < first_ && base_ != nullptr) return base_->type(number);
  if (!is_own(number)) return out;
  const size_t at = this->at(number);
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
  if (out.kind == Kind::kForward) {
    out.target = 0;
    out.is_union = flag_of(info);
  }
  if (out.kind == Kind::kArray) {
    out.target = word(at + kEntryBytes);
    out.count = word(at + kEntryBytes + 8);
  }
  return out;
}

std::vector<Member> Types::members(uint32_t number) const {
  std::vector<Member> out;
  if (number < first_ && base_ != nullptr) return base_->members(number);
  if (!is_composite(kind(number))) return out;
  const size_t at = this->at(number);
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
  if (number < first_ && base_ != nullptr) return base_->enumerators(number);
  const Type type = this->type(number);
  if (type.kind != Kind::kEnum && type.kind != Kind::kEnum64) return out;
  const size_t at = this->at(number) + kEntryBytes;
  const uint32_t length = length_of(word(this->at(number) + 4));
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
  if (number < first_ && base_ != nullptr) return base_->parameters(number);
  if (kind(number) != Kind::kPrototype) return out;
  const size_t at = this->at(number) + kEntryBytes;
  for (uint32_t i = 0; i < length_of(word(this->at(number) + 4)); i++)
    out.push_back({text(word(at + size_t{8} * i)), word(at + size_t{8} * i + 4)});
  return out;
}

/// Whether the string at `offset` of the table is exactly `name`; without looking for its end
/// first, since nearly all differ at once.
bool Types::is_named(uint32_t offset, std::string_view name) const {
  if (offset < strings_before_) return base_->is_named(offset, name);
  offset -= strings_before_;
  if (offset >= strings_end_ - strings_ || name.size() >= strings_end_ - strings_ - offset)
    return false;
  const uint8_t* text = bytes_.data() + strings_ + offset;
  return std::memcmp(text, name.data(), name.size()) == 0 && text[name.size()] == 0;
}

/// From the last to the first, so that each chain begins with the lowest number.
void Types::make_names() const {
  next_.assign(offsets_.size(), kNone);
  heads_.assign(std::bit_ceil(offsets_.size() + 1), kNone);
  for (uint32_t number = count(); number-- > first_;) {
    const uint32_t name = word(at(number));
    if (name == 0) continue;
    uint32_t& head = heads_[hash_of(text(name)) & (heads_.size() - 1)];
    next_[number - first_] = head;
    head = number;
  }
}

std::optional<uint32_t> Types::find_own(Kind kind, std::string_view name) const {
  auto is_it = [&](uint32_t number) {
    return kind_of(word(at(number) + 4)) == kind && is_named(word(at(number)), name);
  };
  if (heads_.empty() && ++asked_ > kLooksBeforeTable && !name.empty()) make_names();
  if (heads_.empty() || name.empty()) {
    for (uint32_t number = first_; number < count(); number++) {
      if (is_it(number)) return number;
    }
    return std::nullopt;
  }
  uint32_t number = heads_[hash_of(name) & (heads_.size() - 1)];
  while (number != kNone && !is_it(number)) number = next_[number - first_];
  return number == kNone ? std::nullopt : std::optional(number);
}

std::optional<uint32_t> Types::find(Kind kind, std::string_view name) const {
  auto found = find_own(kind, name);
  return found || base_ == nullptr ? found : base_->find(kind, name);
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

std::optional<uint32_t> Types::enumeration_of(std::string_view constant) const {
  for (uint32_t number = first_; number < count(); number++) {
    const size_t at = this->at(number);
    const Kind kind = kind_of(word(at + 4));
    if (kind != Kind::kEnum && kind != Kind::kEnum64) continue;
    const size_t step = kind == Kind::kEnum ? 8 : 12;
    for (uint32_t i = 0; i < length_of(word(at + 4)); i++) {
      if (is_named(word(at + kEntryBytes + step * i), constant)) return number;
    }
  }
  if (base_ != nullptr) return base_->enumeration_of(constant);
  return std::nullopt;
}

std::optional<int64_t> Types::enumerator(std::string_view name) const {
  const auto number = enumeration_of(name);
  if (!number) return std::nullopt;
  for (const Enumerator& one : enumerators(*number)) {
    if (one.name == name) return one.value;
  }
  return std::nullopt;
}

}  // namespace spile::btf
