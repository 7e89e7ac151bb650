// What printf formats ask for.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lang/sema/type.h"

namespace spile::lang {

/// One `%...` that takes an argument.
struct Conversion {
  uint32_t begin = 0, end = 0;  ///< in the format, bytes
  char letter = 'd';            ///< of d i u o x X c p s r
};

struct FormatScan {
  std::vector<Conversion> conversions;
  std::string fault;  ///< "" or what is wrong with the format
};

/// Reads flags `- + space # 0`, width, precision, lengths h hh l ll L j z t, conversions d i u o x
/// X c p s r rx rh %.
FormatScan scan_format(std::string_view format);

/// Whether `letter` can print such a value.
bool accepts(char letter, const Type& type);
/// "a number", "a string", "a buffer".
std::string_view wanted_by(char letter);

}  // namespace spile::lang
