// Names of types -> types: those of the script's C definitions first, then the machine's.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>

#include "lang/sema/structure.h"
#include "lang/sema/world.h"
#include "lang/syntax/ast.h"

namespace spile::lang {

class TypeTable {
 public:
  explicit TypeTable(World& world) : world_(world) {}

  void define(Structure structure) {
    own_.insert(structure.name);
    structures_[structure.name] = std::move(structure);
  }
  /// Of a struct of the script's own, which may be packed.
  void set_alignment(const std::string& structure, uint32_t bytes) {
    alignments_[structure] = bytes;
  }
  void define_name(const std::string& name, Type type) { names_[name] = std::move(type); }
  void define_constant(const std::string& name, int64_t value) { constants_[name] = value; }
  /// "enum color" of the script, and the names of its constants.
  void define_enumeration(const std::string& name,
                          const std::vector<std::pair<std::string, int64_t>>& constants);
  /// "enum color". Empty: unknown.
  std::optional<Type> enumeration(const std::string& name);
  /// The enum that a constant is of. Empty: it is a #define, or unknown.
  std::optional<Type> enumeration_of(const std::string& constant);
  /// `#define NAME expression`, and the same as text.
  void define_expression(const std::string& name, const ast::Expr* value, std::string text) {
    defines_[name] = value;
    texts_[name] = std::move(text);
  }
  /// The script includes a header: what the kernel's headers define counts, too.
  void include_headers() { has_headers_ = true; }
  bool has_headers() const { return has_headers_; }

  /// "struct sock", "struct pair of /bin/x". Null: unknown, or only declared. Valid as long as the
  /// table.
  const Structure* structure(const std::string& name);
  /// The script itself defines it.
  bool is_own(const std::string& name) const { return own_.contains(name); }
  /// "uint32", "unsigned long", "pid_t", "sector_t"; not structs.
  std::optional<Type> named(const std::string& name);
  /// Enumerators and constants.
  std::optional<int64_t> constant(const std::string& name);
  const ast::Expr* expression(const std::string& name) const;
  /// The text of a #define; null: there is none.
  const std::string* text(const std::string& name) const {
    const auto known = texts_.find(name);
    return known == texts_.end() ? nullptr : &known->second;
  }
  bool is_defined(const std::string& name) const;

  struct Found {
    StructField field;
    uint32_t offset_bytes = 0;  ///< from the start of the whole
  };
  /// A field, also of anonymous members.
  std::optional<Found> field(const Structure& structure, const std::string& name);
  /// Names for "did you mean".
  std::vector<std::string> field_names(const Structure& structure);

  /// In C. 0: not known.
  uint32_t size_of(const Type& type);
  uint32_t alignment_of(const Type& type);
  /// A copy of a struct, union or array; kUnknown where nothing is known of what it consists of.
  Type object(const Type& type);

 private:
  bundle::ValueType describe(const Type& type, int depth);
  void describe_fields(const Structure& structure,
                       uint32_t at,
                       int depth,
                       bundle::ValueType& whole);
  uint32_t alignment_of(const Structure& structure, int depth);

  World& world_;
  std::map<std::string, Structure> structures_;
  std::set<std::string> unknown_, own_;
  std::map<std::string, Type> names_;
  std::map<std::string, int64_t> constants_;
  std::map<std::string, Type> enumerations_;              ///< "enum color"
  std::map<std::string, std::string> enumerators_;        ///< of the script's own: their enum
  std::map<std::string, std::optional<Type>> of_kernel_;  ///< by constant
  std::map<std::string, const ast::Expr*> defines_;
  std::map<std::string, std::string> texts_;
  std::map<std::string, uint32_t> alignments_;  ///< of the script's own
  std::map<std::string, std::shared_ptr<const bundle::ValueType>> layouts_;  ///< of objects
  bool has_headers_ = false;
};

}  // namespace spile::lang
