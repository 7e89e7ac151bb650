// A script in its usual form: `spile --fmt`.
#pragma once

#include <string>

#include "base/error.h"
#include "lang/syntax/diagnostic.h"
#include "lang/syntax/source.h"

namespace spile::lang {

/// Lines are broken so that they end before this column, where they can be.
inline constexpr uint32_t kFormatWidth = 100;

/// The script with the usual blanks and lines: same words, same comments, in the same order. To
/// format the result again changes nothing.
///
/// Errors:  invalid   the script does not parse; `diagnostics` says where
///          internal  the result would have been another script (our bug); it is not given
Result<std::string> format_script(const Source& source, Diagnostics& diagnostics);

/// A script is "the same" when this is: its words, then its comments with blanks made one. What
/// format_script compares, and tests.
std::string words_and_comments(const Source& source);

}  // namespace spile::lang
