// BTF, the kernel's own description of its types.
//
// The section is a header, a list of types without an index, and a string table. Types are numbered
// from 1 in the order of the list; 0 is void. One pass over the list (about 150,000 types, a few
// milliseconds) finds where each begins. A name is looked for from the first type to the last (less
// than that): a script asks for a few, and a table of all names would cost many times as much.
// Source: Documentation/bpf/btf.rst.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace spile::btf {

/// The format's own numbers.
enum class Kind : uint8_t {
  kVoid = 0,
  kInt = 1,
  kPointer = 2,
  kArray = 3,
  kStruct = 4,
  kUnion = 5,
  kEnum = 6,
  kForward = 7,
  kTypedef = 8,
  kVolatile = 9,
  kConst = 10,
  kRestrict = 11,
  kFunction = 12,
  kPrototype = 13,
  kVariable = 14,
  kSection = 15,
  kFloat = 16,
  kDeclTag = 17,
  kTypeTag = 18,
  kEnum64 = 19,
};

struct Member {
  std::string_view name;  ///< "" for an anonymous struct or union
  uint32_t type = 0;
  uint32_t offset_bits = 0;
  uint32_t bits = 0;  ///< of a bitfield; 0: not one
};

struct Enumerator {
  std::string_view name;
  int64_t value = 0;
};

struct Parameter {
  std::string_view name;
  uint32_t type = 0;
};

/// One type as it stands in the section. Views live as long as the Types they came from.
struct Type {
  Kind kind = Kind::kVoid;
  std::string_view name;
  uint32_t size_bytes = 0;  ///< int, enum, struct, union, float
  uint32_t target = 0;      ///< pointer, typedef, qualifiers, array (element), prototype (result)
  uint32_t count = 0;       ///< array: elements
  bool is_signed = false;   ///< int, enum
  bool is_char = false, is_bool = false;  ///< int
};

class Types {
 public:
  /// Errors: corrupt      a type or a name lies outside of the section
  ///         unsupported  not a little-endian BTF section, or a kind that is not known
  static Result<Types> parse(std::vector<uint8_t> section);

  size_t count() const { return offsets_.size(); }
  /// Void for a number that names no type.
  Type type(uint32_t number) const;
  /// Members of a struct or union, in the section's order.
  std::vector<Member> members(uint32_t number) const;
  std::vector<Enumerator> enumerators(uint32_t number) const;
  /// Of a prototype.
  std::vector<Parameter> parameters(uint32_t number) const;
  /// The number of the first type of that kind and name.
  std::optional<uint32_t> find(Kind kind, std::string_view name) const;
  /// Past typedefs, const, volatile, restrict and tags.
  uint32_t strip(uint32_t number) const;
  std::optional<int64_t> enumerator(std::string_view name) const;

 private:
  Result<void> index();
  Result<size_t> entry_bytes(size_t at) const;
  uint32_t word(size_t at) const;
  std::string_view text(uint32_t offset) const;
  bool is_named(uint32_t offset, std::string_view name) const;

  std::vector<uint8_t> bytes_;
  size_t strings_ = 0, strings_end_ = 0, types_ = 0, types_end_ = 0;
  std::vector<uint32_t> offsets_;  ///< by number; [0] is void
};

}  // namespace spile::btf
