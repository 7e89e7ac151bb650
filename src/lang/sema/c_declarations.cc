#include "lang/sema/c_declarations.h"

#include <vector>

#include "lang/sema/c_reader.h"

namespace spile::lang {

namespace {

using Kind = ast::CDefinition::Kind;

/// Walks the C lines in the script's order; #if and its like say which count.
class Declarer {
 public:
  Declarer(TypeTable& types, Diagnostics& diagnostics) : types_(types), diagnostics_(diagnostics) {}

  void run(const ast::Program& program) {
    for (const ast::CDefinition& definition : program.c_definitions) {
      if (definition.kind == Kind::kConditional) {
        conditional(definition);
      } else if (is_active()) {
        declare(definition);
      }
    }
    if (!open_.empty()) diagnostics_.error(open_.back().span, "#if without #endif");
    refuse_hidden_clauses(program);
  }

 private:
  struct Condition {
    Span span;
    bool is_active = false, was_active = false, outer = true;
  };

  bool is_active() const { return open_.empty() || open_.back().is_active; }

  bool holds(const ast::CDefinition& definition) {
    const std::string& word = definition.name;
    if (word == "ifdef" || word == "ifndef")
      return types_.is_defined(first_word(definition.text)) == (word == "ifdef");
    CReader reader(definition.text, types_);
    const auto value = reader.condition();
    if (!value) diagnostics_.error(definition.span, "#{}: {}", word, reader.fault());
    return value.value_or(0) != 0;
  }

  static std::string first_word(const std::string& text) { return c_tokens(text)[0].text; }

  void conditional(const ast::CDefinition& definition) {
    if (definition.name.starts_with("if")) {
      const bool outer = is_active(), active = outer && holds(definition);
      open_.push_back({definition.span, active, active, outer});
      note_inactive(definition.span.end);
      return;
    }
    if (open_.empty()) {
      diagnostics_.error(definition.span, "#{} without #if", definition.name);
      return;
    }
    end_inactive(definition.span.begin);
    Condition& now = open_.back();
    if (definition.name == "endif") {
      open_.pop_back();
    } else {
      now.is_active =
          now.outer && !now.was_active && (definition.name == "else" || holds(definition));
      now.was_active |= now.is_active;
    }
    note_inactive(definition.span.end);
  }

  void note_inactive(uint32_t from) {
    end_inactive(from);
    if (!is_active()) inactive_from_ = from;
  }
  void end_inactive(uint32_t at) {
    if (inactive_from_) hidden_.push_back({*inactive_from_, at});
    inactive_from_.reset();
  }

  /// The lexer reads C lines apart from the rest, so that #if cannot switch a probe off.
  void refuse_hidden_clauses(const ast::Program& program) {
    for (const ast::Clause& clause : program.clauses) {
      for (const Span& span : hidden_) {
        if (clause.span.begin < span.begin || clause.span.begin >= span.end) continue;
        diagnostics_.error(clause.span, "#if around a probe is not built yet");
        break;
      }
    }
  }

  void declare(const ast::CDefinition& definition) {
    switch (definition.kind) {
      case Kind::kInclude: return include(definition);
      case Kind::kDefine:
        if (definition.value == nullptr && !definition.text.empty()) break;
        return types_.define_expression(definition.name, definition.value.get(), definition.text);
      case Kind::kStruct:
      case Kind::kUnion:
      case Kind::kEnum:
      case Kind::kTypedef: return declaration(definition);
      default: break;
    }
    const bool is_define = definition.kind == Kind::kDefine;
    // Of other directives the name is the word, or what a #define with parameters defines.
    const bool has_parameters = !is_define && definition.text.starts_with('(');
    diagnostics_.error(definition.span, "{} is not built yet",
                       is_define ? "a #define of something else than an expression"
                       : has_parameters
                           ? "a #define with parameters of something else than an expression"
                           : "#" + definition.name);
  }

  /// The kernel's headers are not read: BTF has their types.
  void include(const ast::CDefinition& definition) {
    if (!definition.name.starts_with('<')) {
      diagnostics_
          .error(definition.span, "#include {}: only headers of the system in <...> are built yet",
                 definition.name)
          .with_hint("put the definitions into the script");
      return;
    }
    types_.include_headers();
  }

  void declaration(const ast::CDefinition& definition) {
    CReader reader(definition.text, types_);
    if (reader.declaration()) return;
    diagnostics_.error(definition.span, "{}: {}",
                       definition.name.empty() ? "typedef" : definition.name, reader.fault());
  }

  TypeTable& types_;
  Diagnostics& diagnostics_;
  std::vector<Condition> open_;
  std::optional<uint32_t> inactive_from_;
  std::vector<Span> hidden_;
};

}  // namespace

void declare_c(const ast::Program& program, TypeTable& types, Diagnostics& diagnostics) {
  Declarer(types, diagnostics).run(program);
}

}  // namespace spile::lang
