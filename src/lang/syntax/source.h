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

/// A script with the files that it imports, one text behind the other. Immutable, so that spans
/// stay valid as long as it lives.
class Source {
 public:
  /// Longer texts are cut here, and the lexer reports it: offsets fit 32 bits with room to spare.
  static constexpr size_t kMaxBytes = 16u << 20;

  struct Part {
    std::string name;  ///< what diagnostics print: a file name, or "stdin" for -e
    std::string text;
  };

  Source(std::string name, std::string text);
  /// The first is the script itself; the others are numbered from 1 in `order`, which says how they
  /// are read: what is imported before what imports it.
  Source(const std::vector<Part>& parts, std::vector<size_t> order);

  /// Of the script itself.
  const std::string& name() const { return parts_.front().name; }
  const std::string& name(uint32_t offset) const { return part(offset).name; }
  /// Parts in the order in which they are read.
  const std::vector<size_t>& order() const { return order_; }
  Span part_span(size_t part) const { return parts_[part].span; }
  std::string_view text() const { return text_; }
  uint32_t size() const { return static_cast<uint32_t>(text_.size()); }
  bool was_cut() const { return was_cut_; }

  /// The bytes of a span; ends that lie outside are moved inside.
  std::string_view text(Span span) const;
  /// In its own file.
  Position position(uint32_t offset) const;
  /// Lines count from 1, over all files.
  uint32_t line_count() const { return static_cast<uint32_t>(line_starts_.size()); }
  /// A line without its newline; empty when there is no such line.
  std::string_view line(uint32_t number) const;
  /// The line that a byte is in.
  std::string_view line_at(uint32_t offset) const { return line(line_number(offset)); }

 private:
  struct Place {
    std::string name;
    Span span;
    uint32_t first_line = 1;
  };
  const Place& part(uint32_t offset) const;
  uint32_t line_number(uint32_t offset) const;
  void find_lines();

  std::vector<Place> parts_;
  std::vector<size_t> order_;
  std::string text_;
  std::vector<uint32_t> line_starts_;
  bool was_cut_ = false;
};

}  // namespace spile::lang
