#include "symbols/nearest.h"

#include <algorithm>

namespace spile::symbols {
namespace {

constexpr size_t kMaxEdits = 3;
constexpr size_t kMaxNameBytes = 256;  ///< nobody mistypes a longer name by hand

}  // namespace

// Damerau and Levenshtein's table, three rows of it, and of each row only the cells within `limit`
// of the diagonal.
size_t edit_distance(std::string_view a, std::string_view b, size_t limit) {
  if (a.size() > b.size()) std::swap(a, b);
  if (b.size() - a.size() > limit) return limit + 1;
  const size_t far = limit + 1;
  std::vector<size_t> before(b.size() + 1, far), last(b.size() + 1, far), row(b.size() + 1, far);
  for (size_t j = 0; j <= std::min(b.size(), limit); ++j) last[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    std::ranges::fill(row, far);
    if (i <= limit) row[0] = i;
    size_t least = row[0];
    const size_t from = i > limit ? i - limit : 1, to = std::min(b.size(), i + limit);
    for (size_t j = from; j <= to; ++j) {
      row[j] = std::min(
          {last[j] + 1, row[j - 1] + 1, last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1), far});
      const bool is_swap = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
      if (is_swap) row[j] = std::min(row[j], before[j - 2] + 1);
      least = std::min(least, row[j]);
    }
    if (least > limit) return far;
    std::swap(before, last);
    std::swap(last, row);
  }
  return last[b.size()];
}

Nearest::Nearest(std::string_view name, size_t at_most)
    : name_(name), at_most_(at_most), limit_(std::min(kMaxEdits, name.size() / 2)) {
  if (name.size() > kMaxNameBytes) limit_ = 0;
}

void Nearest::offer(std::string_view candidate) {
  if (limit_ == 0 || at_most_ == 0) return;
  const size_t limit = best_.size() < at_most_ ? limit_ : best_.back().distance - 1;
  if (limit == 0) return;
  const size_t distance = edit_distance(name_, candidate, std::min(limit, limit_));
  if (distance > limit || std::ranges::find(best_, candidate, &Candidate::name) != best_.end())
    return;
  const auto place = std::ranges::upper_bound(best_, distance, {}, &Candidate::distance);
  best_.insert(place, {distance, std::string(candidate)});
  if (best_.size() > at_most_) best_.pop_back();
}

std::vector<std::string> Nearest::take() {
  std::vector<std::string> names;
  for (auto& candidate : best_) names.push_back(std::move(candidate.name));
  best_.clear();
  return names;
}

}  // namespace spile::symbols
