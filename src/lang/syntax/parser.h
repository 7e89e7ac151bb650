// Tokens -> AST. Hand-written descent, precedence climbing, several errors a run.
#pragma once

#include <string>
#include <vector>

#include "lang/syntax/ast.h"
#include "lang/syntax/diagnostic.h"
#include "lang/syntax/source.h"

namespace spile::lang {

struct ParseOptions {
  /// $1, $2, ...: replaced here inside attach points only; expressions keep them as nodes.
  std::vector<std::string> positional;
  /// Attach points are not read: each is an AttachPoint of its text alone. For formatting, where $1
  /// is not known.
  bool keeps_attach_words = false;
  /// Of a file that another imports, which needs no probe.
  bool is_import = false;
};

/// Reads a whole script. Check `diagnostics.has_errors()`: the program then holds only what could
/// be read. A script without any probe is an error.
ast::Program parse(const Source& source, const ParseOptions& options, Diagnostics& diagnostics);

/// Reads one attach point as `-l` takes it (`uprobe:libc:mal*`): empty when it is wrong, several
/// when the provider has a wildcard.
std::vector<ast::AttachPoint> parse_attach_point(const Source& source,
                                                 const ParseOptions& options,
                                                 Diagnostics& diagnostics);

/// Reads a part of the source as one expression (the body of a #define); null when it is none. Ids
/// go on from `program.node_count`.
ast::ExprPtr parse_expression(const Source& source,
                              Span span,
                              ast::Program& program,
                              Diagnostics& diagnostics);

/// Nested braces, parentheses, blocks and chains of `else if` go no deeper.
inline constexpr uint32_t kMaxNesting = 200;

}  // namespace spile::lang
