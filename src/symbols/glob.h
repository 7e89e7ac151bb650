// Name patterns of the script language.
#pragma once

#include <string_view>

namespace spile::symbols {

bool has_wildcard(std::string_view pattern);

/// `*` stands for any bytes, everything else for itself. Time: length of pattern times length of
/// text at most.
bool glob_matches(std::string_view pattern, std::string_view text);

}  // namespace spile::symbols
