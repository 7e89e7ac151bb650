#include "session/kernel_structs.h"

#include <charconv>

namespace spile::session {

using btf::Kind;
using lang::StructField;
using lang::Structure;
using lang::Type;

namespace {

constexpr int kMaxDepth = 16;
/// Anonymous structs are asked for by their number: "struct <42>".
constexpr std::string_view kAnonymous = "<";

std::string_view word_of(Kind kind) {
  return kind == Kind::kUnion ? "union" : "struct";
}

}  // namespace

std::string KernelStructs::name_of(uint32_t composite) const {
  const btf::Type type = types_->type(composite);
  if (type.name.empty()) return fmt::format("{} <{}>", word_of(type.kind), composite);
  return fmt::format("{} {}", word_of(type.kind), type.name);
}

Type KernelStructs::array_of(const btf::Type& array, int depth) const {
  const btf::Type element = types_->type(types_->strip(array.target));
  if (element.kind == Kind::kInt && element.is_char && element.size_bytes == 1 && array.count > 0)
    return Type::string(array.count);
  return Type::array_of(type_of(array.target, depth + 1), array.count);
}

Type KernelStructs::enumeration(uint32_t number, const btf::Type& type) const {
  auto& known = names_[number];
  if (known == nullptr) {
    auto names = std::make_shared<bundle::ValueType>();
    for (const btf::Enumerator& one : types_->enumerators(number)) {
      names->names.emplace_back(one.name);
      names->values.push_back(one.value);
    }
    known = std::move(names);
  }
  const std::string name =
      type.name.empty() ? fmt::format("enum <{}>", number) : fmt::format("enum {}", type.name);
  return Type::enumeration(name, type.size_bytes, type.is_signed, known);
}

/// Unknown for what the language has no type for: functions, floating point.
Type KernelStructs::type_of(uint32_t number, int depth) const {
  if (depth > kMaxDepth) return Type::uint64();
  number = types_->strip(number);
  const btf::Type type = types_->type(number);
  switch (type.kind) {
    case Kind::kInt:
      return type.size_bytes <= 8 ? Type::integer(type.size_bytes, type.is_signed)
                                  : Type::array_of(Type::uint64(), type.size_bytes / 8);
    case Kind::kEnum:
    case Kind::kEnum64: return enumeration(number, type);
    case Kind::kPointer: {
      const uint32_t target = types_->strip(type.target);
      const Kind kind = types_->type(target).kind;
      if (kind == Kind::kVoid || kind == Kind::kPrototype) return Type::void_pointer();
      return Type::pointer_to(type_of(target, depth + 1));
    }
    case Kind::kArray: return array_of(type, depth);
    case Kind::kStruct:
    case Kind::kUnion: return Type::structure(name_of(number));
    case Kind::kForward: return Type::structure(fmt::format("struct {}", type.name));
    default: return Type::uint64();
  }
}

/// A bitfield lies in a unit of its type where it fits into one, else in eight bytes from its
/// first.
StructField KernelStructs::field_of(const btf::Member& member) const {
  StructField field;
  field.name = member.name;
  field.type = type_of(member.type);
  field.offset_bytes = member.offset_bits / 8;
  if (member.bits == 0 || !field.type.is_int()) return field;
  uint32_t unit = field.type.size * 8;
  field.bits = member.bits;
  if (member.offset_bits / unit != (member.offset_bits + member.bits - 1) / unit) {
    field.type.size = 8;
    field.shift = member.offset_bits % 8;
    return field;
  }
  field.offset_bytes = member.offset_bits / unit * field.type.size;
  field.shift = member.offset_bits % unit;
  return field;
}

Structure KernelStructs::structure_of(uint32_t number, std::string name) const {
  Structure out;
  out.name = std::move(name);
  out.size_bytes = types_->type(number).size_bytes;
  for (const btf::Member& member : types_->members(number)) out.fields.push_back(field_of(member));
  return out;
}

Result<Structure> KernelStructs::structure(std::string_view name) const {
  const bool is_union = name.starts_with("union ");
  const std::string_view bare = name.substr(std::min(name.size(), name.find(' ') + 1));
  const Kind kind = is_union ? Kind::kUnion : Kind::kStruct;
  std::optional<uint32_t> number;
  if (bare.starts_with(kAnonymous)) {
    uint32_t given = 0;
    std::from_chars(bare.data() + 1, bare.data() + bare.size(), given);
    if (types_->type(given).kind == kind) number = given;
  } else {
    number = types_->find(kind, bare);
  }
  if (!number) return fail(ErrorCode::kNotFound, "the kernel has no '{}'", name);
  return structure_of(*number, std::string(name));
}

Result<Type> KernelStructs::named(std::string_view name) const {
  constexpr std::string_view kEnum = "enum ";
  if (name.starts_with(kEnum)) {
    for (const Kind kind : {Kind::kEnum, Kind::kEnum64}) {
      if (const auto number = types_->find(kind, name.substr(kEnum.size())))
        return type_of(*number);
    }
  }
  const auto number = types_->find(Kind::kTypedef, name);
  if (!number) return fail(ErrorCode::kNotFound, "the kernel has no type '{}'", name);
  return type_of(*number);
}

Result<Type> KernelStructs::enumeration_of(std::string_view constant) const {
  if (const auto number = types_->enumeration_of(constant)) return type_of(*number);
  return fail(ErrorCode::kNotFound, "the kernel has no constant '{}'", constant);
}

Result<int64_t> KernelStructs::enumerator(std::string_view name) const {
  if (const auto value = types_->enumerator(name)) return *value;
  return fail(ErrorCode::kNotFound, "the kernel has no constant '{}'", name);
}

}  // namespace spile::session
