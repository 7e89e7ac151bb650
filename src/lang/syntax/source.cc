#include "lang/syntax/source.h"

#include <algorithm>
#include <utility>

namespace spile::lang {

Source::Source(std::string name, std::string text)
    : name_(std::move(name)), text_(std::move(text)) {
  if (text_.size() > kMaxBytes) {
    text_.resize(kMaxBytes);
    was_cut_ = true;
  }
  line_starts_.push_back(0);
  for (uint32_t i = 0; i < text_.size(); i++) {
    if (text_[i] == '\n') line_starts_.push_back(i + 1);
  }
}

std::string_view Source::text(Span span) const {
  const uint32_t begin = std::min(span.begin, size());
  const uint32_t end = std::clamp(span.end, begin, size());
  return std::string_view(text_).substr(begin, end - begin);
}

Position Source::position(uint32_t offset) const {
  offset = std::min(offset, size());
  const auto after = std::ranges::upper_bound(line_starts_, offset);
  const auto line = static_cast<uint32_t>(after - line_starts_.begin());
  return {line, offset - line_starts_[line - 1] + 1};
}

std::string_view Source::line(uint32_t number) const {
  if (number == 0 || number > line_starts_.size()) return {};
  const uint32_t begin = line_starts_[number - 1];
  const uint32_t end = number < line_starts_.size() ? line_starts_[number] - 1 : size();
  return std::string_view(text_).substr(begin, end - begin);
}

}  // namespace spile::lang
