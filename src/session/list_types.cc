#include "session/list_types.h"

#include <fmt/format.h>

#include "btf/btf.h"
#include "os/process.h"

namespace spile::session {

namespace {

using btf::Kind;

/// Deeper types are not spelled out: no kernel has any.
constexpr int kMostNested = 24;

struct TypeKind {
  std::string_view word;
  Kind kind;
};
constexpr TypeKind kTypeKinds[] = {
    {"struct", Kind::kStruct}, {"union", Kind::kUnion}, {"enum", Kind::kEnum}};

/// C writes a declaration around its name: `char (*name[4])(int)` is made from the inside out.
class Declarator {
 public:
  explicit Declarator(const btf::Types& types) : types_(types) {}

  std::string members(uint32_t number, size_t indent, int depth) const;
  std::string enumerators(uint32_t number) const;

 private:
  std::string declare(uint32_t number, std::string name, size_t indent, int depth) const;
  std::string declare_base(const btf::Type& type,
                           uint32_t number,
                           const std::string& name,
                           size_t indent,
                           int depth) const;
  std::string parameters(uint32_t number, size_t indent, int depth) const;

  const btf::Types& types_;
};

bool binds_tighter_than_a_pointer(Kind kind) {
  return kind == Kind::kArray || kind == Kind::kPrototype;
}

std::string Declarator::declare(uint32_t number, std::string name, size_t indent, int depth) const {
  const btf::Type type = types_.type(number);
  if (depth > kMostNested) return fmt::format("... {}", name);
  const auto next = [&](std::string inner) {
    return declare(type.target, std::move(inner), indent, depth + 1);
  };
  switch (type.kind) {
    case Kind::kPointer: {
      const bool in_brackets = binds_tighter_than_a_pointer(types_.type(type.target).kind);
      return next(in_brackets ? fmt::format("(*{})", name) : fmt::format("*{}", name));
    }
    case Kind::kArray: return next(fmt::format("{}[{}]", name, type.count));
    case Kind::kPrototype:
      return next(fmt::format("{}({})", name, parameters(number, indent, depth)));
    case Kind::kVolatile:
    case Kind::kConst: {
      const char* word = type.kind == Kind::kConst ? "const" : "volatile";
      if (types_.type(type.target).kind == Kind::kPointer)
        return next(name.empty() ? word : fmt::format("{} {}", word, name));
      return fmt::format("{} {}", word, next(std::move(name)));
    }
    case Kind::kRestrict:
    case Kind::kTypeTag:
    case Kind::kDeclTag: return next(std::move(name));
    default: return declare_base(type, number, name, indent, depth);
  }
}

std::string Declarator::declare_base(const btf::Type& type,
                                     uint32_t number,
                                     const std::string& name,
                                     size_t indent,
                                     int depth) const {
  const char* blank = name.empty() ? "" : " ";
  std::string base(type.name);
  switch (type.kind) {
    case Kind::kVoid: base = "void"; break;
    case Kind::kStruct:
    case Kind::kUnion: {
      const char* word = type.kind == Kind::kStruct ? "struct" : "union";
      const std::string inner = type.name.empty() ? members(number, indent + 1, depth + 1) : "";
      if (!type.name.empty())
        base = fmt::format("{} {}", word, type.name);
      else if (inner.empty())
        base = fmt::format("{} {{}}", word);
      else
        base = fmt::format("{} {{\n{}{}}}", word, inner, std::string(indent, '\t'));
      break;
    }
    case Kind::kForward: base = fmt::format("struct {}", type.name); break;
    case Kind::kEnum:
    case Kind::kEnum64:
      base = type.name.empty() ? "enum" : fmt::format("enum {}", type.name);
      break;
    default: break;
  }
  return base + blank + name;
}

std::string Declarator::parameters(uint32_t number, size_t indent, int depth) const {
  std::string out;
  for (const btf::Parameter& one : types_.parameters(number)) {
    const std::string text =
        one.type == 0 ? "..." : declare(one.type, std::string(one.name), indent, depth + 1);
    out += (out.empty() ? "" : ", ") + text;
  }
  return out.empty() ? "void" : out;
}

std::string Declarator::members(uint32_t number, size_t indent, int depth) const {
  std::string out;
  for (const btf::Member& member : types_.members(number)) {
    out += std::string(indent, '\t') +
           declare(member.type, std::string(member.name), indent, depth + 1);
    if (member.bits != 0) out += fmt::format(": {}", member.bits);
    out += ";\n";
  }
  return out;
}

std::string Declarator::enumerators(uint32_t number) const {
  std::string out;
  for (const btf::Enumerator& one : types_.enumerators(number))
    out += fmt::format("\t{} = {},\n", one.name, one.value);
  return out;
}

/// The word and the name: "struct", "sock".
const TypeKind* split(std::string_view pattern, std::string_view& name) {
  for (const TypeKind& one : kTypeKinds) {
    if (!pattern.starts_with(one.word) || pattern.substr(one.word.size()).find(' ') != 0) continue;
    const size_t begin = pattern.find_first_not_of(' ', one.word.size());
    if (begin == std::string_view::npos) continue;
    name = pattern.substr(begin, pattern.find(' ', begin) - begin);
    return &one;
  }
  return nullptr;
}

Result<std::string> declaration_of(const btf::Types& types, std::string_view pattern) {
  std::string_view name;
  const TypeKind* kind = split(pattern, name);
  std::optional<uint32_t> number;
  if (kind != nullptr) number = types.find(kind->kind, name);
  if (kind != nullptr && !number && kind->kind == Kind::kEnum)
    number = types.find(Kind::kEnum64, name);
  if (!number) return fail(ErrorCode::kNotFound, "the kernel has no '{}'", pattern);
  const Declarator declarator(types);
  return fmt::format("{} {} {{\n{}}};\n", kind->word, name,
                     kind->kind == Kind::kEnum ? declarator.enumerators(*number)
                                               : declarator.members(*number, 1, 0));
}

}  // namespace

bool names_a_type(std::string_view pattern) {
  std::string_view name;
  return split(pattern, name) != nullptr;
}

Result<std::string> kernel_declaration(const std::string& btf_path, std::string_view pattern) {
  SPILE_TRY(const std::string bytes, os::read_file(btf_path));
  SPILE_TRY(const btf::Types types, btf::Types::parse({bytes.begin(), bytes.end()}));
  return declaration_of(types, pattern);
}

}  // namespace spile::session
