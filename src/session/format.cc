#include "session/format.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>

#include "base/error.h"
#include "lang/fmt/format.h"
#include "session/request.h"

namespace spile::session {

namespace {

Result<std::string> read_all(const std::string& path) {
  if (path == "-") return std::string(std::istreambuf_iterator<char>(std::cin), {});
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (file && errno == 0) return text;
  return fail(ErrorCode::kNotFound, "{}: {}", path,
              errno == 0 ? "cannot be read" : strerror(errno));
}

/// Through a new file of the same rights beside it, so that the script is whole at any moment.
Result<void> replace(const std::string& path, const std::string& text) {
  struct stat old{};
  if (stat(path.c_str(), &old) != 0)
    return fail(ErrorCode::kNotFound, "{}: {}", path, strerror(errno));
  const std::string part = fmt::format("{}.{}", path, getpid());
  std::ofstream file(part, std::ios::binary);
  file << text << std::flush;
  const bool is_written = file && chmod(part.c_str(), old.st_mode & 07777) == 0 &&
                          rename(part.c_str(), path.c_str()) == 0;
  if (is_written) return {};
  const int error = errno;
  unlink(part.c_str());
  return fail(ErrorCode::kDenied, "{} cannot be rewritten: {}", path, strerror(error));
}

/// What format_script says goes to standard error with its place.
int format_text(const FormatRequest& request, const std::string& name, const std::string& text) {
  const lang::Source source(name == "-" || name.empty() ? "stdin" : name, text);
  lang::Diagnostics diagnostics;
  const auto out = lang::format_script(source, diagnostics);
  if (!out) {
    if (diagnostics.has_errors())
      fmt::print(stderr, "{}", render(source, diagnostics));
    else
      fmt::print(stderr, "spile: {}\n", out.error().message);
    return kFailed;
  }
  if (request.check) {
    if (*out == text) return kOk;
    fmt::print("{}\n", source.name());
    return kFailed;
  }
  if (!request.in_place || name.empty() || name == "-") {
    fmt::print("{}", *out);
    return kOk;
  }
  if (*out == text) return kOk;
  if (auto done = replace(name, *out); !done) {
    fmt::print(stderr, "spile: {}\n", done.error().message);
    return kFailed;
  }
  return kOk;
}

}  // namespace

int format_scripts(const FormatRequest& request) {
  int status = kOk;
  if (!request.program.empty()) status = format_text(request, "", request.program);
  for (const std::string& path : request.files) {
    const auto text = read_all(path);
    if (!text) fmt::print(stderr, "spile: {}\n", text.error().message);
    if (!text || format_text(request, path, *text) != kOk) status = kFailed;
  }
  return status;
}

}  // namespace spile::session
