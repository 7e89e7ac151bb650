// BTF, the kernel's own description of its types.
//
// The section is a header, a list of types without an index, and a string table. Types are numbered
// from 1 in the order of the list; 0 is void. One pass over the list (about 150,000 types, a
// millisecond) finds where each begins. A name is looked for from the first type to the last (less
// than that): most scripts ask for a few, and a table of all names costs many times as much. Who
// asks for many gets the table.
//
// A module's section is split: its numbers and strings go on where those of the kernel's, its base,
// end.
// Source: Documentation/bpf/btf.rst.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
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
  bool is_union = false;    ///< forward: of a union
  bool is_char = false, is_bool = false;  ///< int
};

/// Immutable but for what find() learns of names: one thread uses it.
class Types {
 public:
  /// `section` is kept by `owner`. `base`: what the numbers of a split section go on from.
  /// Errors: corrupt      a type or a name lies outside of the section
  ///         unsupported  not a little-endian BTF section, or a kind that is not known
  static Result<Types> parse(std::span<const uint8_t> section,
                             std::shared_ptr<const void> owner,
                             std::shared_ptr<const Types> base = nullptr);
  static Result<Types> parse(std::vector<uint8_t> section,
                             std::shared_ptr<const Types> base = nullptr);

  /// One more than the last number.
  uint32_t count() const { return first_ + static_cast<uint32_t>(offsets_.size()); }
  /// The first number that is not the base's.
  uint32_t first() const { return first_; }
  /// Void for a number that names no type.
  Type type(uint32_t number) const;
  /// Members of a struct or union, in the section's order.
  std::vector<Member> members(uint32_t number) const;
  std::vector<Enumerator> enumerators(uint32_t number) const;
  /// Of a prototype.
  std::vector<Parameter> parameters(uint32_t number) const;
  /// The number of the first type of that kind and name, of this section, else of the base.
  std::optional<uint32_t> find(Kind kind, std::string_view name) const;
  /// The kind alone, cheaper than type().
  Kind kind(uint32_t number) const;
  /// Past typedefs, const, volatile, restrict and tags.
  uint32_t strip(uint32_t number) const;
  std::optional<int64_t> enumerator(std::string_view name) const;
  /// The number of the first enum that has a constant of that name.
  std::optional<uint32_t> enumeration_of(std::string_view constant) const;

 private:
  Result<void> index();
  size_t entry_bytes(size_t at) const;
  uint32_t word(size_t at) const;
  /// Where the entry of a number of this section is.
  size_t at(uint32_t number) const { return offsets_[number - first_]; }
  bool is_own(uint32_t number) const { return number >= first_ && number < count(); }
  std::string_view text(uint32_t offset) const;
  bool is_named(uint32_t offset, std::string_view name) const;
  std::optional<uint32_t> find_own(Kind kind, std::string_view name) const;
  void make_names() const;

  std::shared_ptr<const void> owner_;
  std::shared_ptr<const Types> base_;
  std::span<const uint8_t> bytes_;
  size_t strings_ = 0, strings_end_ = 0, types_ = 0, types_end_ = 0;
  uint32_t first_ = 1;
  uint32_t strings_before_ = 0;    ///< bytes of the base's string table
  std::vector<uint32_t> offsets_;  ///< by number, from first_ on

  /// The table of names: chains of numbers, lowest first. Made when many have been asked for.
  mutable std::vector<uint32_t> heads_, next_;
  mutable uint32_t asked_ = 0;
};

}  // namespace spile::btf
