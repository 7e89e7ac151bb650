// The kernel's BTF as the language sees it: structs, typedefs, constants.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "base/error.h"
#include "btf/btf.h"
#include "lang/sema/structure.h"

namespace spile::session {

class KernelStructs {
 public:
  explicit KernelStructs(std::shared_ptr<const btf::Types> types) : types_(std::move(types)) {}

  /// "struct sock", "union x". Errors: not found.
  Result<lang::Structure> structure(std::string_view name) const;
  /// A typedef or "enum x". Errors: not found.
  Result<lang::Type> named(std::string_view name) const;
  Result<int64_t> enumerator(std::string_view name) const;
  /// The enum that has a constant of that name. Errors: not found.
  Result<lang::Type> enumeration_of(std::string_view constant) const;

 private:
  lang::Structure structure_of(uint32_t number, std::string name) const;
  lang::StructField field_of(const btf::Member& member) const;
  lang::Type type_of(uint32_t number, int depth = 0) const;
  lang::Type array_of(const btf::Type& array, int depth) const;
  std::string name_of(uint32_t composite) const;
  lang::Type enumeration(uint32_t number, const btf::Type& type) const;

  std::shared_ptr<const btf::Types> types_;
  /// One for each enum, so that two types of it are equal.
  mutable std::map<uint32_t, std::shared_ptr<const bundle::ValueType>> names_;
};

}  // namespace spile::session
