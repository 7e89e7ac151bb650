#include "lang/syntax/diagnostic.h"

#include <algorithm>
#include <cctype>
#include <numeric>

namespace spile::lang {

std::string location(const Source& source, Span span) {
  const Position from = source.position(span.begin), to = source.position(span.end);
  const std::string& name = source.name(span.begin);
  if (to.line != from.line) return fmt::format("{}:{}-{}", name, from.line, to.line);
  return fmt::format("{}:{}:{}-{}", name, from.line, from.column,
                     std::max(to.column, from.column + 1));
}
namespace {

constexpr std::string_view kRed = "\x1b[31m", kYellow = "\x1b[33m", kCyan = "\x1b[36m",
                           kReset = "\x1b[0m";

/// Lines longer than this are shown only around the marker: a script may be one line of a megabyte.
constexpr uint32_t kShownColumns = 400;

/// A script's bytes must not steer the terminal. Tabs become one blank, so that the marker stays
/// below its text.
std::string printable(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c == '\t') c = ' ';
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  return out;
}

/// A message may quote the script: newlines (of our own hints) stay.
std::string printable_message(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if ((static_cast<unsigned char>(c) < 0x20 && c != '\n') || c == 0x7f) c = '?';
  }
  return out;
}

std::string excerpt(const Source& source, Span span) {
  const Position from = source.position(span.begin), to = source.position(span.end);
  if (from.line != to.line) return {};
  std::string_view line = source.line_at(span.begin);
  uint32_t first = from.column - 1, last = std::max(to.column - 1, first + 1);
  if (line.size() > kShownColumns) {
    const uint32_t cut = first > kShownColumns / 2 ? first - kShownColumns / 2 : 0;
    line = line.substr(cut, kShownColumns);
    first -= cut;
    last = std::min(last - cut, kShownColumns);
  }
  return fmt::format("{}\n{}{}\n", printable(line), std::string(first, ' '),
                     std::string(last - first, '~'));
}

}  // namespace

Diagnostic& Diagnostics::add(Diagnostic diagnostic) {
  if (diagnostic.severity == Severity::kError) error_count_++;
  if (is_full()) return overflow_ = std::move(diagnostic);
  return all_.emplace_back(std::move(diagnostic));
}

std::string render(const Source& source,
                   const Diagnostic& diagnostic,
                   const RenderOptions& options) {
  const bool is_error = diagnostic.severity == Severity::kError;
  const auto paint = [&](std::string_view colour) {
    return options.colour ? colour : std::string_view();
  };
  std::string out = fmt::format("{}{}: {}: {}{}\n", paint(is_error ? kRed : kYellow),
                                location(source, diagnostic.span), is_error ? "ERROR" : "WARNING",
                                printable_message(diagnostic.message), paint(kReset));
  out += excerpt(source, diagnostic.span);
  if (!diagnostic.hint.empty())
    out += fmt::format("{}HINT: {}{}\n", paint(kCyan), printable_message(diagnostic.hint),
                       paint(kReset));
  return out;
}

std::string render(const Source& source,
                   const Diagnostics& diagnostics,
                   const RenderOptions& options) {
  std::vector<const Diagnostic*> sorted;
  for (const Diagnostic& d : diagnostics) sorted.push_back(&d);
  std::ranges::stable_sort(sorted, {}, [](const Diagnostic* d) { return d->span.begin; });
  std::string out;
  size_t shown_errors = 0;
  for (const Diagnostic* d : sorted) {
    out += render(source, *d, options);
    shown_errors += d->severity == Severity::kError;
  }
  if (const size_t more = diagnostics.error_count() - shown_errors; more != 0)
    out += fmt::format("{}: ERROR: {} more errors are not shown\n", source.name(), more);
  return out;
}

namespace {

/// Levenshtein distance, ignoring case.
size_t distance(std::string_view a, std::string_view b) {
  const auto same = [](char x, char y) {
    return std::tolower(static_cast<unsigned char>(x)) ==
           std::tolower(static_cast<unsigned char>(y));
  };
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 0; i < a.size(); i++) {
    size_t diagonal = row[0]++;
    for (size_t j = 0; j < b.size(); j++) {
      const size_t replaced = diagonal + (same(a[i], b[j]) ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({row[j] + 1, row[j + 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

}  // namespace

std::string_view nearest(std::string_view name, std::span<const std::string_view> candidates) {
  constexpr size_t kLongestName = 256;
  if (name.empty() || name.size() > kLongestName) return {};
  const size_t most = std::max<size_t>(1, name.size() / 3);
  std::string_view best;
  size_t best_distance = most + 1;
  for (const std::string_view candidate : candidates) {
    if (candidate.size() > name.size() + most || name.size() > candidate.size() + most) continue;
    if (const size_t d = distance(name, candidate); d < best_distance) {
      best = candidate;
      best_distance = d;
    }
  }
  return best;
}

}  // namespace spile::lang
