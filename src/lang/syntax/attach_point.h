// One attach point: `provider:part:...` as text -> its typed fields.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lang/syntax/ast.h"
#include "lang/syntax/diagnostic.h"

namespace spile::lang {

/// True when attach points of this provider (as written: a name, an alias, or a pattern like u*)
/// hold paths, so that
/// '/' is a letter in them.
bool takes_path(std::string_view provider);

/// The last byte of the quoted text that starts at text[at]: its closing quote, or what is before
/// the line's end.
uint32_t attach_quote_end(std::string_view text, uint32_t at);

/// Reads the word `raw`, which stands at `span`. $N outside of quotes is replaced by
/// positional[N-1]. A wildcard in the provider makes one attach point for each type that takes
/// these parts. Faults are reported and give none.
std::vector<ast::AttachPoint> read_attach_point(std::string_view raw,
                                                Span span,
                                                const std::vector<std::string>& positional,
                                                Diagnostics& diagnostics);

}  // namespace spile::lang
