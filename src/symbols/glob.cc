#include "symbols/glob.h"

namespace spile::symbols {

bool has_wildcard(std::string_view pattern) {
  return pattern.find('*') != std::string_view::npos;
}

// Greedy: after a `*` the earliest place where the rest fits is as good as any, so only the last
// `*` is ever retried.
bool glob_matches(std::string_view pattern, std::string_view text) {
  size_t p = 0, t = 0, star = std::string_view::npos, star_text = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      star_text = t;
    } else if (p < pattern.size() && pattern[p] == text[t]) {
      ++p, ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++star_text;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace spile::symbols
