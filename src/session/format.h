// `spile --fmt`: scripts in their usual form.
#pragma once

#include <string>
#include <vector>

namespace spile::session {

struct FormatRequest {
  std::string program;             ///< -e; goes to standard output
  std::vector<std::string> files;  ///< "-" is standard input
  bool check = false;              ///< change and print nothing but the names of those that differ
  bool in_place = false;           ///< rewrite the files that differ
};

/// Prints the scripts formatted, or does what `check` and `in_place` say. Status kFailed when one
/// can not be read, parsed or written, and with `check` when one differs; the others are done all
/// the same.
int format_scripts(const FormatRequest& request);

}  // namespace spile::session
