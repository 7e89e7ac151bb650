#include "lang/sema/c_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace spile::lang {

namespace {

constexpr uint64_t kMaxStructBytes = 1u << 20;

uint64_t round_up(uint64_t value, uint64_t to) {
  return (value + to - 1) / to * to;
}

}  // namespace

const CToken& CReader::peek(size_t ahead) const {
  return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
}

CToken CReader::take() {
  const CToken& token = peek();
  if (at_ + 1 < tokens_.size()) at_++;
  return token;
}

bool CReader::accept(std::string_view text) {
  if (!at(text)) return false;
  take();
  return true;
}

bool CReader::fail(std::string fault) {
  if (fault_.empty()) fault_ = std::move(fault);
  return false;
}

bool CReader::expect(std::string_view text) {
  if (accept(text)) return true;
  return fail(fmt::format("expected '{}', found {}", text,
                          peek().text.empty() ? "the end" : fmt::format("'{}'", peek().text)));
}

bool CReader::skip_parentheses() {
  if (!expect("(")) return false;
  for (int depth = 1; depth > 0;) {
    if (peek().kind == CToken::Kind::kEnd) return fail("a '(' is never closed");
    const CToken token = take();
    if (token.text == "(") depth++;
    if (token.text == ")") depth--;
  }
  return true;
}

/// __attribute__((...)); of those only `packed` changes a layout that we know how to make.
bool CReader::skip_attributes(bool& is_packed) {
  while (accept("__attribute__") || accept("__attribute")) {
    const size_t begin = at_;
    if (!skip_parentheses()) return false;
    for (size_t i = begin; i < at_; i++) {
      const std::string& word = tokens_[i].text;
      is_packed |= word == "packed" || word == "__packed__";
      if (word == "aligned" || word == "__aligned__")
        return fail("__attribute__((aligned)) is not built yet");
    }
  }
  return true;
}

// ---- declarations

bool CReader::declaration() {
  const bool is_typedef = accept("typedef");
  auto type = base();
  if (!type) return false;
  bool is_packed = false;
  if (!skip_attributes(is_packed)) return false;
  if (!is_typedef) {
    if (!accept(";") && peek().kind != CToken::Kind::kEnd)
      return fail("a variable cannot be declared here");
    return true;
  }
  auto name = declarator(*type);
  if (!name || !expect(";")) return false;
  if (name->name.empty()) return fail("a typedef without a name");
  types_.define_name(name->name, name->type);
  return true;
}

std::optional<CReader::Base> CReader::base() {
  while (at("const") || at("volatile") || at("static") || at("extern")) take();
  std::optional<Base> found;
  if (at("struct") || at("union")) {
    found = composite();
  } else if (at("enum")) {
    found = enumeration();
  } else {
    found = arithmetic();
  }
  while (accept("const") || accept("volatile")) {
  }
  return found;
}

std::optional<CReader::Base> CReader::composite() {
  const std::string word = take().text;
  bool is_packed = false;
  if (!skip_attributes(is_packed)) return std::nullopt;
  std::string name = at_name() ? take().text : "";
  if (name.empty() && !at("{")) {
    fail(fmt::format("a {} without a name or fields", word));
    return std::nullopt;
  }
  // Its place in the text makes an anonymous one's name its own.
  const std::string full = name.empty() ? fmt::format("{} <anonymous {}:{}>", word,
                                                      tokens_[0].text + tokens_[1].text, at_)
                                        : fmt::format("{} {}", word, name);
  if (at("{") && !body(full, word == "union")) return std::nullopt;
  return Base{Type::structure(full)};
}

/// unsigned long long int and the like, or the name of a type.
std::optional<CReader::Base> CReader::arithmetic() {
  constexpr auto kWords =
      std::to_array<std::string_view>({"unsigned", "signed", "char", "short", "int", "long"});
  bool is_unsigned = false, is_char = false, is_short = false, any = false;
  int longs = 0;
  while (std::ranges::find(kWords, peek().text) != kWords.end()) {
    const std::string word = take().text;
    any = true;
    is_unsigned |= word == "unsigned";
    is_char |= word == "char";
    is_short |= word == "short";
    longs += word == "long";
  }
  if (any) {
    const uint32_t size = is_char ? 1 : is_short ? 2 : longs > 0 ? 8 : 4;
    return Base{Type::integer(size, !is_unsigned), is_char};
  }
  if (!at_name()) {
    fail(fmt::format("expected a type, found {}",
                     peek().text.empty() ? "the end" : fmt::format("'{}'", peek().text)));
    return std::nullopt;
  }
  const CToken token = take();
  const std::string& name = token.text;
  if (name == "void") return Base{Type{}, false, true};
  if (name == "float" || name == "double") {
    fail("floating-point fields are not built yet");
    return std::nullopt;
  }
  if (auto known = types_.named(name)) return Base{*known};
  fail(fmt::format("unknown type '{}'", name));
  return std::nullopt;
}

std::optional<CReader::Base> CReader::enumeration() {
  take();
  // Its first constant makes an anonymous one's name its own.
  const bool has_name = at_name();
  const std::string name = has_name
                               ? "enum " + take().text
                               : "enum of " + tokens_[std::min(at_ + 1, tokens_.size() - 1)].text;
  if (accept("{") && !enumerators(name)) return std::nullopt;
  if (auto known = types_.enumeration(name)) return Base{std::move(*known)};
  return Base{Type::integer(4, false)};
}

bool CReader::enumerators(const std::string& of) {
  std::vector<std::pair<std::string, int64_t>> constants;
  int64_t next = 0;
  while (!accept("}")) {
    if (!at_name()) return fail("expected a constant's name in the enum");
    const std::string name = take().text;
    if (accept("=")) {
      const auto value = constant();
      if (!value) return false;
      next = *value;
    }
    types_.define_constant(name, next);
    constants.emplace_back(name, next);
    next = static_cast<int64_t>(static_cast<uint64_t>(next) + 1);
    if (!accept(",") && !at("}")) return expect("}");
  }
  types_.define_enumeration(of, constants);
  return true;
}

// ---- layout

bool CReader::body(const std::string& name, bool is_union) {
  if (++nesting_ > kMaxDepth) return fail("structs are nested too deeply");
  open_.push_back(name);
  take();  // {
  Structure structure;
  structure.name = name;
  Layout layout;
  layout.is_union = is_union;
  // The attribute stands behind the body: look ahead for it.
  size_t end = at_;
  for (int depth = 1; depth > 0 && end < tokens_.size(); end++) {
    if (tokens_[end].text == "{") depth++;
    if (tokens_[end].text == "}") depth--;
  }
  for (size_t i = end; i < tokens_.size() && tokens_[i].text.starts_with("__attribute"); i++) {
    for (; i < tokens_.size() && tokens_[i].text != ";" && tokens_[i].text != "}"; i++)
      layout.is_packed |= tokens_[i].text == "packed" || tokens_[i].text == "__packed__";
  }
  while (!accept("}")) {
    if (peek().kind == CToken::Kind::kEnd) return fail("a '{' is never closed");
    if (!member(structure, layout)) return false;
  }
  const uint64_t bytes =
      round_up((std::max(layout.bit, layout.most_bits) + 7) / 8, layout.alignment);
  structure.size_bytes = static_cast<uint32_t>(bytes);
  types_.set_alignment(name, layout.alignment);
  types_.define(std::move(structure));
  open_.pop_back();
  nesting_--;
  return true;
}

/// `base declarator, declarator;`
bool CReader::member(Structure& structure, Layout& layout) {
  if (accept(";")) return true;
  auto type = base();
  if (!type) return false;
  if (accept(";")) {
    if (type->type.kind != Type::Kind::kStruct) return true;  // enum { ... };
    return place(structure, layout, {"", type->type, std::nullopt});
  }
  do {
    auto field = declarator(*type);
    if (!field) return false;
    bool is_packed = false;
    if (!skip_attributes(is_packed)) return false;
    if (field->bits ? !place_bits(structure, layout, std::move(*field))
                    : !place(structure, layout, std::move(*field)))
      return false;
  } while (accept(","));
  return expect(";");
}

bool CReader::place(Structure& structure, Layout& layout, Declarator field) {
  const Type* element = &field.type;
  while (element->kind == Type::Kind::kArray) element = &element->fields[0];
  const bool is_struct = element->kind == Type::Kind::kStruct;
  // A struct of that name may be known from elsewhere, the kernel's types say.
  if (is_struct && std::ranges::find(open_, element->name) != open_.end())
    return fail(
        fmt::format("'{}' contains itself: only a pointer to it can be a member", element->name));
  const uint32_t size = types_.size_of(field.type);
  const bool is_open = field.type.kind == Type::Kind::kArray && field.type.count == 0;
  if (size == 0 && !is_open && is_struct && types_.structure(element->name) == nullptr)
    return fail(fmt::format("the size of '{}' is not known", element->name));
  const uint32_t alignment = layout.is_packed ? 1 : types_.alignment_of(field.type);
  layout.alignment = std::max(layout.alignment, alignment);
  const uint64_t begin = layout.is_union ? 0 : round_up((layout.bit + 7) / 8, alignment);
  if (begin + size > kMaxStructBytes) return fail("a struct of more than 1 MiB");
  structure.fields.push_back(
      {std::move(field.name), std::move(field.type), static_cast<uint32_t>(begin), 0, 0});
  layout.bit = layout.is_union ? 0 : (begin + size) * 8;
  layout.most_bits = std::max(layout.most_bits, (begin + size) * 8);
  return true;
}

/// A bitfield does not cross a unit of its type; one of 0 bits ends the unit.
bool CReader::place_bits(Structure& structure, Layout& layout, Declarator field) {
  if (!field.type.is_int()) return fail(fmt::format("'{}' cannot be a bitfield", field.name));
  const uint64_t unit = uint64_t{field.type.size} * 8, bits = *field.bits;
  if (bits > unit || (bits == 0 && !field.name.empty()))
    return fail(fmt::format("'{}' has {} bits", field.name, bits));
  uint64_t begin = layout.is_union ? 0 : layout.bit;
  if (bits == 0) {
    layout.bit = round_up(begin, unit);
    return true;
  }
  if (layout.is_packed) return fail("a bitfield in a packed struct is not built yet");
  if (begin / unit != (begin + bits - 1) / unit) begin = round_up(begin, unit);
  if (!field.name.empty()) {
    layout.alignment = std::max(layout.alignment, field.type.size);
    structure.fields.push_back({std::move(field.name), field.type,
                                static_cast<uint32_t>(begin / unit * field.type.size),
                                static_cast<uint32_t>(begin % unit), static_cast<uint32_t>(bits)});
  }
  layout.most_bits = std::max(layout.most_bits, begin + bits);
  layout.bit = layout.is_union ? 0 : begin + bits;
  return true;
}

/// `*name[4]`, `name : 3`, `(*name)(int)`.
std::optional<CReader::Declarator> CReader::declarator(const Base& base) {
  Declarator out;
  out.type = base.type;
  bool is_void = base.is_void, is_char = base.is_char;
  while (accept("*")) {
    while (accept("const") || accept("volatile") || accept("restrict")) {
    }
    out.type = is_void ? Type::void_pointer() : Type::pointer_to(out.type);
    is_void = is_char = false;
  }
  if (at("(") && peek(1).text == "*") {  // a pointer to a function
    take();
    take();
    if (at_name()) out.name = take().text;
    out.type = Type::void_pointer();
    if (!arrays(out.type, false) || !expect(")") || !skip_parentheses()) return std::nullopt;
    return out;
  }
  if (at_name()) out.name = take().text;
  if (is_void) {
    fail(fmt::format("'{}' is void", out.name));
    return std::nullopt;
  }
  if (!arrays(out.type, is_char)) return std::nullopt;
  if (accept(":")) {
    const auto bits = constant();
    if (!bits) return std::nullopt;
    if (*bits < 0 || *bits > 64) {
      fail(fmt::format("'{}' has {} bits", out.name, *bits));
      return std::nullopt;
    }
    out.bits = static_cast<uint32_t>(*bits);
  }
  return out;
}

bool CReader::arrays(Type& type, bool is_char) {
  std::vector<uint32_t> counts;
  while (accept("[")) {
    int64_t count = 0;
    if (!at("]")) {
      const auto given = constant();
      if (!given) return false;
      count = *given;
    }
    if (count < 0 || count > static_cast<int64_t>(kMaxStructBytes))
      return fail(fmt::format("an array of {} elements", count));
    if (!expect("]")) return false;
    counts.push_back(static_cast<uint32_t>(count));
  }
  for (size_t i = counts.size(); i-- > 0;) {
    const bool is_text = is_char && i + 1 == counts.size() && counts[i] > 0;
    type = is_text ? Type::string(counts[i]) : Type::array_of(type, counts[i]);
  }
  return true;
}

}  // namespace spile::lang
