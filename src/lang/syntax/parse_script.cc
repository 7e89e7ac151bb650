// The top of a script: C lines, config, imports, maps, macros and functions, clauses.
#include <algorithm>
#include <array>

#include "lang/syntax/attach_point.h"
#include "lang/syntax/descent.h"

namespace spile::lang {

namespace {

std::string_view trim(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r\n\v\f\\";
  const size_t first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlanks) - first + 1);
}

bool is_name_byte(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

std::string_view leading_name(std::string_view text) {
  size_t n = 0;
  while (n < text.size() && is_name_byte(text[n])) n++;
  return text.substr(0, n);
}

Span span_of(const Source& source, std::string_view part) {
  const auto begin = static_cast<uint32_t>(part.data() - source.text().data());
  return {begin, begin + static_cast<uint32_t>(part.size())};
}

CDefinition::Kind directive_kind(std::string_view word) {
  constexpr auto kConditionals =
      std::to_array<std::string_view>({"if", "ifdef", "ifndef", "else", "elif", "endif"});
  if (word == "include") return CDefinition::Kind::kInclude;
  if (word == "define") return CDefinition::Kind::kDefine;
  return std::ranges::find(kConditionals, word) != kConditionals.end()
             ? CDefinition::Kind::kConditional
             : CDefinition::Kind::kOtherDirective;
}

}  // namespace

void Parser::script() {
  if (at(TokenKind::kShebang)) program_.shebang = take().span;
  while (!at(TokenKind::kEnd)) definition();
}

void Parser::definition() {
  const size_t before = at_;
  bool ok = true;
  if (at(TokenKind::kDirective)) {
    c_directive();
  } else if (at(TokenKind::kCDefinition)) {
    c_definition();
  } else if (at(TokenKind::kError)) {
    ok = false;
  } else if (at_word("config")) {
    ok = config_block();
  } else if (at_word("import")) {
    ok = import();
  } else if (at_word("let")) {
    ok = map_declaration();
  } else if (at_word("macro")) {
    ok = routine(Routine::Kind::kMacro);
  } else if (at_word("fn")) {
    ok = routine(Routine::Kind::kFunction);
  } else if (at(TokenKind::kRightBrace)) {
    diagnostics_.error(take().span, "syntax error: this '}}' closes nothing");
  } else if (at(TokenKind::kSemicolon)) {
    diagnostics_.error(take().span, "syntax error: a ';' between probes");
  } else {
    ok = clause();
  }
  if (!ok) skip_definition();
  if (at_ == before) take();
}

/// `#word rest`. Of `#define NAME rest` the name and the rest are told apart.
void Parser::c_directive() {
  CDefinition& out = program_.c_definitions.emplace_back();
  out.span = take().span;
  std::string_view rest = trim(source_.text(out.span).substr(1));
  const std::string_view word = leading_name(rest);
  out.kind = directive_kind(word);
  out.name = word;
  rest.remove_prefix(word.size());
  if (out.kind == CDefinition::Kind::kInclude) {
    out.name = trim(rest);
  } else if (out.kind == CDefinition::Kind::kDefine) {
    rest = trim(rest);
    out.name = leading_name(rest);
    rest.remove_prefix(out.name.size());
    if (out.name.empty()) diagnostics_.error(out.span, "#define needs a name");
    if (rest.starts_with('(')) return c_macro(out, rest);
  }
  rest = trim(rest);
  out.body = rest.empty() ? Span{out.span.end, out.span.end} : span_of(source_, rest);
  out.text = rest;
  if (out.kind != CDefinition::Kind::kDefine || rest.empty()) return;
  Diagnostics unread;  // C that is no expression is refused where it is used
  out.value = parse_expression(source_, out.body, program_, unread);
}

/// `#define F(a, b) expression`: a macro of the language. What is no such thing is told where the C
/// lines are looked at, and only there: an #if may hide it.
void Parser::c_macro(CDefinition& out, std::string_view rest) {
  const std::string_view all = rest;
  Routine macro;
  macro.name = out.name;
  macro.span = out.span;
  macro.name_span = span_of(source_, source_.text(out.span).substr(0, 1));
  bool is_understood = true;
  do {
    rest = trim(rest.substr(1));
    const std::string_view name = leading_name(rest);
    rest.remove_prefix(name.size());
    rest = trim(rest);
    const bool is_empty_list = macro.parameters.empty() && name.empty() && rest.starts_with(')');
    is_understood = is_understood && (!name.empty() || is_empty_list);
    if (!name.empty()) macro.parameters.push_back({std::string(name), span_of(source_, name), {}});
  } while (rest.starts_with(','));
  is_understood = is_understood && rest.starts_with(')');
  if (is_understood) rest = trim(rest.substr(1));
  Diagnostics unread;
  if (is_understood && !rest.empty()) {
    const Span body = span_of(source_, rest);
    auto value = make<ExprStmt>(body);
    value->expr = parse_expression(source_, body, program_, unread);
    value->has_semicolon = false;
    is_understood = value->expr != nullptr && !unread.has_errors();
    macro.body.span = body;
    macro.body.statements.push_back(std::move(value));
  }
  out.body = {out.span.end, out.span.end};
  if (is_understood) {
    program_.routines.push_back(std::move(macro));
  } else {
    out.kind = CDefinition::Kind::kOtherDirective;
    out.text = all;
  }
}

void Parser::c_definition() {
  CDefinition& out = program_.c_definitions.emplace_back();
  out.span = take().span;
  std::string_view rest = source_.text(out.span);
  out.text = rest;
  const std::string_view word = leading_name(rest);
  out.kind = word == "struct"  ? CDefinition::Kind::kStruct
             : word == "union" ? CDefinition::Kind::kUnion
             : word == "enum"  ? CDefinition::Kind::kEnum
                               : CDefinition::Kind::kTypedef;
  const size_t open = rest.find('{'), close = rest.rfind('}');
  out.body = {out.span.end, out.span.end};
  if (open != std::string_view::npos && close != std::string_view::npos && close > open)
    out.body = span_of(source_, rest.substr(open + 1, close - open - 1));
  rest.remove_prefix(word.size());
  if (out.kind != CDefinition::Kind::kTypedef) out.name = leading_name(trim(rest));
}

bool Parser::config_block() {
  take();
  if (!expect(TokenKind::kAssign, "after config") ||
      !expect(TokenKind::kLeftBrace, "after config ="))
    return false;
  while (!at(TokenKind::kRightBrace) && !at(TokenKind::kEnd)) {
    if (!config_entry()) skip_statement();
  }
  const bool closed = expect(TokenKind::kRightBrace, "at the end of config");
  accept(TokenKind::kSemicolon);
  return closed;
}

bool Parser::config_entry() {
  ConfigEntry entry;
  entry.key_span = peek().span;
  if (!at(TokenKind::kIdentifier)) {
    unexpected("a setting's name");
    return false;
  }
  entry.key = take().text;
  std::ranges::transform(entry.key, entry.key.begin(), [](char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  });
  constexpr std::string_view kPrefix = "bpftrace_";
  if (entry.key.starts_with(kPrefix)) entry.key.erase(0, kPrefix.size());
  if (!expect(TokenKind::kAssign, "after a setting's name") || !config_value(entry)) return false;
  program_.config.push_back(std::move(entry));
  if (at(TokenKind::kRightBrace)) return true;
  return expect(TokenKind::kSemicolon, "after a setting");
}

bool Parser::config_value(ConfigEntry& entry) {
  const Token& token = peek();
  entry.value_span = token.span;
  switch (token.kind) {
    case TokenKind::kInteger:
      entry.kind = ConfigEntry::Kind::kInteger;
      entry.integer = token.value;
      break;
    case TokenKind::kString:
      entry.kind = ConfigEntry::Kind::kString;
      entry.text = token.text;
      break;
    case TokenKind::kIdentifier:
      entry.text = token.text;
      entry.integer = token.text == "true";
      entry.kind = token.text == "true" || token.text == "false" ? ConfigEntry::Kind::kBool
                                                                 : ConfigEntry::Kind::kName;
      break;
    default: unexpected("a number, a string, a name, true or false"); return false;
  }
  take();
  return true;
}

bool Parser::import() {
  Import out;
  out.span = take().span;
  if (!at(TokenKind::kString)) {
    unexpected("a file name in quotes after import");
    return false;
  }
  out.path = take().text;
  if (!expect(TokenKind::kSemicolon, "after import")) return false;
  out.span = cover(out.span, previous_span());
  program_.imports.push_back(std::move(out));
  return true;
}

/// let @a = lruhash(100);
bool Parser::map_declaration() {
  MapDeclaration out;
  out.span = take().span;
  if (!at(TokenKind::kMap)) {
    unexpected("a map after let");
    return false;
  }
  out.name_span = peek().span;
  out.name = take().text;
  if (!expect(TokenKind::kAssign, "after the map's name")) return false;
  if (!at(TokenKind::kIdentifier)) {
    unexpected("a kind of map: hash, lruhash, percpuhash or percpulruhash");
    return false;
  }
  out.type_span = peek().span;
  out.type = take().text;
  if (!expect(TokenKind::kLeftParen, "after the kind of map")) return false;
  if (!at(TokenKind::kRightParen) && !(out.max_entries = expression())) return false;
  if (!expect(TokenKind::kRightParen, "after the number of entries") ||
      !expect(TokenKind::kSemicolon, "after a map declaration"))
    return false;
  out.span = cover(out.span, previous_span());
  program_.map_declarations.push_back(std::move(out));
  return true;
}

bool Parser::routine(Routine::Kind kind) {
  Routine out;
  out.kind = kind;
  out.span = take().span;
  out.name_span = peek().span;
  out.name = take().text;  // the lexer saw that it is a name
  if (!parameters(out)) return false;
  if (accept(TokenKind::kColon) && !type_name(out.return_type.emplace())) return false;
  if (!block(out.body, kind == Routine::Kind::kMacro ? "of the macro" : "of the function"))
    return false;
  out.span = cover(out.span, previous_span());
  program_.routines.push_back(std::move(out));
  return true;
}

bool Parser::parameters(Routine& routine) {
  routine.has_parentheses = accept(TokenKind::kLeftParen);
  if (!routine.has_parentheses) return true;
  while (!at(TokenKind::kRightParen)) {
    if (!parameter(routine)) return false;
    if (!accept(TokenKind::kComma)) break;
  }
  return expect(TokenKind::kRightParen, "after the parameters");
}

bool Parser::parameter(Routine& routine) {
  if (!at(TokenKind::kVariable) && !at(TokenKind::kMap) && !at(TokenKind::kIdentifier)) {
    unexpected("a parameter");
    return false;
  }
  Parameter out;
  out.span = peek().span;
  out.name = take().text;
  if (accept(TokenKind::kColon) && !type_name(out.type.emplace())) return false;
  routine.parameters.push_back(std::move(out));
  return true;
}

bool Parser::clause() {
  Clause out;
  out.span = peek().span;
  if (!attach_points(out) || !predicate(out)) return false;
  if (!block(out.body, "after the probe")) return false;
  out.span = cover(out.span, previous_span());
  if (!out.attach_points.empty()) program_.clauses.push_back(std::move(out));
  return true;
}

/// A list between commas; a wrong one does not keep the others and the body from being read.
bool Parser::attach_points(Clause& clause) {
  if (at(TokenKind::kAttachAssign)) clause.name = take().text;
  if (!at(TokenKind::kAttachWord)) {
    unexpected("a probe");
    return false;
  }
  while (at(TokenKind::kAttachWord)) {
    attach_word(clause);
    if (!accept(TokenKind::kComma)) break;
  }
  if (!at(TokenKind::kAttachWord)) return true;
  unexpected("',', a predicate or '{' after a probe");
  return false;
}

void Parser::attach_word(Clause& clause) {
  const Token& token = take();
  if (options_.keeps_attach_words) {
    for (uint32_t i = 0; i < token.text.size(); i++) {
      if (token.text[i] != '"') continue;
      const uint32_t last = attach_quote_end(token.text, i);
      if (last == i || last >= token.text.size() || token.text[last] != '"')
        diagnostics_.error(token.span, "a quote in this attach point is never closed");
      i = std::max(i, last);
    }
    AttachPoint& word = clause.attach_points.emplace_back();
    word.span = token.span;
    word.text = token.text;
    return;
  }
  auto points = read_attach_point(token.text, token.span, options_.positional, diagnostics_);
  for (AttachPoint& point : points) clause.attach_points.push_back(std::move(point));
}

bool Parser::predicate(Clause& clause) {
  const Span begin = peek().span;
  if (!accept(TokenKind::kPredicateBegin)) return true;
  clause.predicate = expression();
  if (!clause.predicate) {
    while (!at(TokenKind::kPredicateEnd) && !at(TokenKind::kLeftBrace) && !at(TokenKind::kEnd))
      take();
  }
  if (accept(TokenKind::kPredicateEnd)) return true;
  if (clause.predicate) {
    if (at(TokenKind::kLeftBrace)) {
      diagnostics_.error(begin, "syntax error: this predicate is not closed before '{{'")
          .with_hint("write /condition/");
      return true;
    }
    unexpected("an operator or the '/' that closes the predicate");
  }
  return at(TokenKind::kLeftBrace);
}

}  // namespace spile::lang
