// The text of a script, and places in it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace spile::lang {

/// Bytes [begin, end) of a Source. Every token, node and diagnostic has one.
struct Span {
  uint32_t begin = 0;
  uint32_t end = 0;

  constexpr uint32_t size() const { return end - begin; }
  constexpr bool operator==(const Span&) const = default;
};

/// The smallest span that holds both.
constexpr Span cover(Span a, Span b) {
  return {a.begin < b.begin ? a.begin : b.begin, a.end > b.end ? a.end : b.end};
}

/// Where a byte is for a human: both count from 1, columns are bytes.
struct Position {
  uint32_t line = 1;
  uint32_t column = 1;
  constexpr bool operator==(const Position&) const = default;
};

/// A script. Immutable, so that spans stay valid as long as it lives.
class Source {
 public:
  /// Longer texts are cut here, and the lexer reports it: offsets fit 32 bits with room to spare.
  static constexpr size_t kMaxBytes = 16u << 20;

  /// `name` is what diagnostics print: a file name, or "stdin" for -e.
  Source(std::string name, std::string text);

  const std::string& name() const { return name_; }
  std::string_view text() const { return text_; }
  uint32_t size() const { return static_cast<uint32_t>(text_.size()); }
  bool was_cut() const { return was_cut_; }

  /// The bytes of a span; ends that lie outside are moved inside.
  std::string_view text(Span span) const;
  Position position(uint32_t offset) const;
  /// Lines count from 1.
  uint32_t line_count() const { return static_cast<uint32_t>(line_starts_.size()); }
  /// A line without its newline; empty when there is no such line.
  std::string_view line(uint32_t number) const;

 private:
  std::string name_;
  std::string text_;
  std::vector<uint32_t> line_starts_;
  bool was_cut_ = false;
};

}  // namespace spile::lang
