// "Did you mean": names that differ by a few letters.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace spile::symbols {

/// The number of insertions, deletions, replacements and swaps of neighbours between `a` and `b`,
/// or `limit` + 1 where it is more than `limit`. Time: length times limit.
size_t edit_distance(std::string_view a, std::string_view b, size_t limit);

/// Collects the candidates nearest to a name. Short names tolerate fewer edits: "f" suggests
/// nothing.
class Nearest {
 public:
  Nearest(std::string_view name, size_t at_most);
  void offer(std::string_view candidate);
  /// Nearest first, equal ones in the order of offer; no name twice.
  std::vector<std::string> take();

 private:
  struct Candidate {
    size_t distance;
    std::string name;
  };
  std::string name_;
  size_t at_most_, limit_;
  std::vector<Candidate> best_;
};

}  // namespace spile::symbols
