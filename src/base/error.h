// What went wrong, as a value. Libraries never print and never exit.
#pragma once

#include <fmt/format.h>

#include <expected>
#include <string>
#include <string_view>
#include <utility>

namespace spile {

/// What the caller can do about it.
enum class ErrorCode {
  kNotFound,     ///< the name, file or process does not exist
  kDenied,       ///< more privilege is needed; the message says which
  kUnsupported,  ///< this machine, kernel or build cannot do it
  kUnsafe,       ///< it could harm the target, so it was not done
  kTargetGone,   ///< the process exited or replaced itself
  kBusy,         ///< somebody else holds it; try again later
  kCorrupt,      ///< data from outside does not make sense
  kInvalid,      ///< the request itself is wrong
  kInternal,     ///< our own fault
};

std::string_view to_string(ErrorCode code);

struct [[nodiscard]] Error {
  ErrorCode code = ErrorCode::kInternal;
  std::string message;

  /// The same error with what was being done in front: "read /proc/42/maps: No such process".
  [[nodiscard]] Error context(std::string_view doing) && {
    message = fmt::format("{}: {}", doing, message);
    return std::move(*this);
  }
};

template <typename T>
using Result = std::expected<T, Error>;

template <typename... Args>
std::unexpected<Error> fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  return std::unexpected(Error{code, fmt::format(format, std::forward<Args>(args)...)});
}

/// The error of a failed system call: maps errno to a code, appends strerror.
Error errno_error(int errno_value, std::string_view doing);

template <typename... Args>
std::unexpected<Error> fail_errno(int errno_value,
                                  fmt::format_string<Args...> format,
                                  Args&&... args) {
  return std::unexpected(
      errno_error(errno_value, fmt::format(format, std::forward<Args>(args)...)));
}

/// Passes an error up with context: `if (!r) return forward(r, "attach to pid {}", pid);`
template <typename T, typename... Args>
std::unexpected<Error> forward(Result<T>& result,
                               fmt::format_string<Args...> format,
                               Args&&... args) {
  return std::unexpected(
      std::move(result.error()).context(fmt::format(format, std::forward<Args>(args)...)));
}
template <typename T>
std::unexpected<Error> forward(Result<T>& result) {
  return std::unexpected(std::move(result.error()));
}

[[noreturn]] void check_failed(const char* file, int line, const char* what);

}  // namespace spile

/// Our own bug: on in release builds too.
#define SPILE_CHECK(condition)                                               \
  do {                                                                       \
    if (!(condition)) ::spile::check_failed(__FILE__, __LINE__, #condition); \
  } while (false)

#define SPILE_CONCAT2(a, b) a##b
#define SPILE_CONCAT(a, b) SPILE_CONCAT2(a, b)
/// SPILE_TRY(auto x, expr): binds the value of a Result or returns its error.
#define SPILE_TRY(declaration, expression)                                      \
  auto SPILE_CONCAT(result_, __LINE__) = (expression);                          \
  if (!SPILE_CONCAT(result_, __LINE__))                                         \
    return std::unexpected(std::move(SPILE_CONCAT(result_, __LINE__).error())); \
  declaration = std::move(*SPILE_CONCAT(result_, __LINE__))
/// The same for Result<void>.
#define SPILE_TRY_VOID(expression)                                            \
  do {                                                                        \
    auto result_void = (expression);                                          \
    if (!result_void) return std::unexpected(std::move(result_void.error())); \
  } while (false)
