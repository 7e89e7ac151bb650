// One C declaration -> definitions in a TypeTable.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "lang/sema/type_table.h"

namespace spile::lang {

struct CToken {
  enum class Kind : uint8_t { kName, kNumber, kOther, kEnd };
  Kind kind = Kind::kEnd;
  std::string text;
  int64_t number = 0;
};

/// Comments and blanks are left out; the last token is kEnd.
std::vector<CToken> c_tokens(std::string_view text);

class CReader {
 public:
  CReader(std::string_view text, TypeTable& types) : tokens_(c_tokens(text)), types_(types) {}

  /// `struct x { ... };`, `enum x { ... };`, `typedef ... name;`. False: fault() says why.
  bool declaration();
  /// A whole condition of #if. None: fault() says why.
  std::optional<int64_t> condition();
  const std::string& fault() const { return fault_; }

 private:
  /// Structs in structs, parentheses and names in constants.
  static constexpr int kMaxDepth = 32;

  struct Base {
    Type type;
    bool is_char = false, is_void = false;
  };
  struct Declarator {
    std::string name;
    Type type;
    std::optional<uint32_t> bits;
  };
  /// Where the next field of a struct goes.
  struct Layout {
    bool is_union = false, is_packed = false;
    uint64_t bit = 0, most_bits = 0;
    uint32_t alignment = 1;
  };

  const CToken& peek(size_t ahead = 0) const;
  bool at(std::string_view text) const { return peek().text == text; }
  bool at_name() const { return peek().kind == CToken::Kind::kName; }
  CToken take();
  bool accept(std::string_view text);
  bool expect(std::string_view text);
  bool fail(std::string fault);

  bool skip_attributes(bool& is_packed);
  bool skip_parentheses();
  std::optional<Base> base();
  std::optional<Base> composite();
  std::optional<Base> arithmetic();
  std::optional<Base> enumeration();
  bool enumerators(const std::string& of);
  bool body(const std::string& name, bool is_union);
  bool member(Structure& structure, Layout& layout);
  bool place(Structure& structure, Layout& layout, Declarator field);
  bool place_bits(Structure& structure, Layout& layout, Declarator field);
  std::optional<Declarator> declarator(const Base& base);
  bool arrays(Type& type, bool is_char);
  std::optional<int64_t> constant(int lowest = 0);
  std::optional<int64_t> operand();

  std::vector<CToken> tokens_;
  TypeTable& types_;
  std::string fault_;
  size_t at_ = 0;
  int nesting_ = 0;
  std::vector<std::string> open_;  ///< structs whose bodies are being read, the outermost first
};

}  // namespace spile::lang
