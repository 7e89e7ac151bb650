#include "lang/syntax/source.h"

#include <algorithm>
#include <utility>

namespace spile::lang {

Source::Source(std::string name, std::string text) : order_{0}, text_(std::move(text)) {
  if (text_.size() > kMaxBytes) {
    text_.resize(kMaxBytes);
    was_cut_ = true;
  }
  parts_.push_back({std::move(name), {0, size()}, 1});
  find_lines();
}

Source::Source(const std::vector<Part>& parts, std::vector<size_t> order)
    : order_(std::move(order)) {
  for (const Part& part : parts) {
    if (!text_.empty()) text_ += '\n';  // each begins in a line of its own
    const uint32_t begin = size();
    if (text_.size() + part.text.size() > kMaxBytes) {
      was_cut_ = true;
    } else {
      text_ += part.text;
    }
    parts_.push_back({part.name, {begin, size()}, 1});
  }
  find_lines();
  for (Place& place : parts_) place.first_line = line_number(place.span.begin);
}

void Source::find_lines() {
  line_starts_.push_back(0);
  for (uint32_t i = 0; i < text_.size(); i++) {
    if (text_[i] == '\n') line_starts_.push_back(i + 1);
  }
}

const Source::Place& Source::part(uint32_t offset) const {
  auto after = std::ranges::upper_bound(parts_, offset, {},
                                        [](const Place& place) { return place.span.begin; });
  return after == parts_.begin() ? parts_.front() : *std::prev(after);
}

uint32_t Source::line_number(uint32_t offset) const {
  const auto after = std::ranges::upper_bound(line_starts_, std::min(offset, size()));
  return static_cast<uint32_t>(after - line_starts_.begin());
}

std::string_view Source::text(Span span) const {
  const uint32_t begin = std::min(span.begin, size());
  const uint32_t end = std::clamp(span.end, begin, size());
  return std::string_view(text_).substr(begin, end - begin);
}

Position Source::position(uint32_t offset) const {
  offset = std::min(offset, size());
  const uint32_t line = line_number(offset);
  return {line - part(offset).first_line + 1, offset - line_starts_[line - 1] + 1};
}

std::string_view Source::line(uint32_t number) const {
  if (number == 0 || number > line_starts_.size()) return {};
  const uint32_t begin = line_starts_[number - 1];
  const uint32_t end = number < line_starts_.size() ? line_starts_[number] - 1 : size();
  return std::string_view(text_).substr(begin, end - begin);
}

}  // namespace spile::lang
