// Tokens and trees as text: `spile dump --stage tokens|ast`, golden tests, bug reports.
#pragma once

#include <span>
#include <string>

#include "lang/syntax/ast.h"
#include "lang/syntax/source.h"
#include "lang/syntax/token.h"

namespace spile::lang {

/// One token a line, with its place, kind and text: `1:7 left-brace {`.
std::string print_tokens(const Source& source, std::span<const Token> tokens);

/// One node a line, children indented by one space: `call: printf`.
std::string print_ast(const ast::Program& program);
std::string print_ast(const ast::Expr& expr);

/// An expression on one line, fully parenthesised, for messages.
std::string to_source(const ast::Expr& expr);

}  // namespace spile::lang
