#include "session/user_types.h"

#include <charconv>

namespace spile::session {

using Kind = dwarf::Type::Kind;
using lang::Type;

namespace {

std::string_view word_of(bool is_union) {
  return is_union ? "union" : "struct";
}

}  // namespace

Result<UserTypes> UserTypes::load(const std::string& file, std::string owner) {
  SPILE_TRY(dwarf::File opened, dwarf::File::open(file));
  return UserTypes(std::move(opened), std::move(owner));
}

/// Two files may have structs of one name, and the kernel, too: the file is part of the name. The
/// place in the debug information makes it exact (two units may differ).
std::string UserTypes::name_of(const dwarf::Type& structure) const {
  const std::string name =
      structure.name.empty() ? fmt::format("<{}>", structure.die) : structure.name;
  return fmt::format("{} {} of {}", word_of(structure.is_union), name, owner_);
}

Type UserTypes::type_of(const dwarf::Type& type) const {
  switch (type.kind) {
    case Kind::kBool: return Type::integer(1, false);
    case Kind::kInteger:
      return type.size_bytes <= 8 ? Type::integer(type.size_bytes, type.is_signed)
                                  : Type::array_of(Type::uint64(), type.size_bytes / 8);
    case Kind::kPointer:
      return type.target == nullptr || type.target->kind == Kind::kVoid
                 ? Type::void_pointer()
                 : Type::pointer_to(type_of(*type.target));
    case Kind::kArray:
      if (type.target == nullptr) return Type::array_of(Type::uint64(), 0);
      if (type.target->is_char && type.target->size_bytes == 1 && type.count > 0)
        return Type::string(type.count);
      return Type::array_of(type_of(*type.target), type.count);
    case Kind::kStruct: return Type::structure(name_of(type));
    case Kind::kFloat: return Type::integer(type.size_bytes <= 4 ? 4 : 8, false);  // its bits
    default: return Type::uint64();
  }
}

lang::StructField UserTypes::field_of(const dwarf::Field& field) const {
  lang::StructField out;
  out.name = field.name;
  out.type = type_of(field.type);
  out.offset_bytes = static_cast<uint32_t>(field.offset_bits / 8);
  if (field.bits == 0 || !out.type.is_int()) return out;
  const uint64_t unit = uint64_t{out.type.size} * 8;
  out.bits = field.bits;
  if (field.offset_bits / unit != (field.offset_bits + field.bits - 1) / unit) {
    out.type.size = 8;
    out.shift = static_cast<uint32_t>(field.offset_bits % 8);
    return out;
  }
  out.offset_bytes = static_cast<uint32_t>(field.offset_bits / unit * out.type.size);
  out.shift = static_cast<uint32_t>(field.offset_bits % unit);
  return out;
}

Result<std::vector<lang::UserParameter>> UserTypes::parameters(uint64_t address) const {
  SPILE_TRY(const auto found, file_.parameters(address));
  std::vector<lang::UserParameter> out;
  for (const dwarf::Parameter& one : found)
    out.push_back({one.name, type_of(one.type), one.register_index, one.problem});
  return out;
}

Result<lang::Structure> UserTypes::structure(std::string_view name) const {
  const bool is_union = name.starts_with("union ");
  std::string_view bare = name.substr(std::min(name.size(), name.find(' ') + 1));
  Result<dwarf::Structure> found = fail(ErrorCode::kNotFound, "no {}", name);
  if (bare.starts_with('<')) {
    uint64_t die = 0;
    std::from_chars(bare.data() + 1, bare.data() + bare.size(), die);
    found = file_.structure_at(die);
  } else {
    found = file_.structure(bare, is_union);
  }
  if (!found) return std::unexpected(found.error());
  lang::Structure out;
  out.name = fmt::format("{} of {}", name, owner_);
  out.size_bytes = found->type.size_bytes;
  for (const dwarf::Field& field : found->fields) out.fields.push_back(field_of(field));
  return out;
}

}  // namespace spile::session
