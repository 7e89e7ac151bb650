// What is wrong with a script, where, and what to do about it. A run reports several.
#pragma once

#include <fmt/format.h>

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lang/syntax/source.h"

namespace spile::lang {

enum class Severity : uint8_t { kError, kWarning };

struct Diagnostic {
  Severity severity = Severity::kError;
  Span span;
  std::string message;
  std::string hint;  ///< "" for none

  /// Adds a hint: `diagnostics.error(span, "unknown function '{}'", name).with_hint("did you mean
  /// 'hist'?")`.
  template <typename... Args>
  Diagnostic& with_hint(fmt::format_string<Args...> format, Args&&... args) {
    hint = fmt::format(format, std::forward<Args>(args)...);
    return *this;
  }
};

/// Collects what the stages of one run report.
class Diagnostics {
 public:
  /// From here on errors are counted but not kept: nobody reads more, and hostile input must not
  /// fill memory.
  static constexpr size_t kMaxKept = 50;

  /// The returned reference is valid until the next report.
  template <typename... Args>
  Diagnostic& error(Span span, fmt::format_string<Args...> format, Args&&... args) {
    return add({Severity::kError, span, fmt::format(format, std::forward<Args>(args)...), {}});
  }
  template <typename... Args>
  Diagnostic& warning(Span span, fmt::format_string<Args...> format, Args&&... args) {
    return add({Severity::kWarning, span, fmt::format(format, std::forward<Args>(args)...), {}});
  }
  Diagnostic& add(Diagnostic diagnostic);

  bool has_errors() const { return error_count_ != 0; }
  size_t error_count() const { return error_count_; }
  bool is_full() const { return all_.size() >= kMaxKept; }
  const std::vector<Diagnostic>& all() const { return all_; }
  auto begin() const { return all_.begin(); }
  auto end() const { return all_.end(); }

 private:
  std::vector<Diagnostic> all_;
  Diagnostic overflow_;  ///< takes what is not kept
  size_t error_count_ = 0;
};

struct RenderOptions {
  bool colour = false;  ///< ANSI escapes, for terminals
};

/// "stdin:1:9-14": where a span is, for people.
std::string location(const Source& source, Span span);

/// One diagnostic as text, each line ended by a newline:
///
///     stdin:1:9-12: ERROR: text
///     BEGIN { foo(); }
///             ~~~
///     HINT: what to do
///
/// Columns count from 1 and the second one is the byte after the span, as bpftrace prints them. A
/// span of several lines is written `stdin:1-3: ERROR: text` and shows no source. Control
/// characters of the script are shown as `?`.
std::string render(const Source& source,
                   const Diagnostic& diagnostic,
                   const RenderOptions& options = {});

/// All of them in order of their place in the script, warnings included, and a last line when some
/// were not kept.
std::string render(const Source& source,
                   const Diagnostics& diagnostics,
                   const RenderOptions& options = {});

/// The candidate that a mistyped name most likely means, or "" when none is near (at most a third
/// of it differs).
std::string_view nearest(std::string_view name, std::span<const std::string_view> candidates);

}  // namespace spile::lang
