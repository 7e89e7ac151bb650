#include "session/format.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
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

/// Through a new file of the same owner and rights beside it, so that the script is whole at any
/// moment. Of a link the file that it leads to is rewritten.
Result<void> replace(const std::string& named, const std::string& text) {
  std::error_code unknown;
  const std::string path = std::filesystem::canonical(named, unknown).string();
  struct stat old{};
  if (unknown || stat(path.c_str(), &old) != 0)
    return fail(ErrorCode::kNotFound, "{}: {}", named,
                unknown ? unknown.message() : strerror(errno));
  const std::string part = fmt::format("{}.{}", path, getpid());
  std::ofstream file(part, std::ios::binary);
  file << text << std::flush;
  // The owner first: chown takes the set-id bits away.
  struct stat made{};
  bool is_same_owner = file && stat(part.c_str(), &made) == 0;
  if (is_same_owner && (made.st_uid != old.st_uid || made.st_gid != old.st_gid))
    is_same_owner = chown(part.c_str(), old.st_uid, old.st_gid) == 0;
  const bool is_written = is_same_owner && chmod(part.c_str(), old.st_mode & 07777) == 0 &&
                          rename(part.c_str(), path.c_str()) == 0;
  if (is_written) return {};
  const int error = errno;
  unlink(part.c_str());
  return fail(ErrorCode::kDenied, "{} cannot be rewritten: {}", path, strerror(error));
}

/// A full disk shows when the text leaves our own memory.
int print(const std::string& text) {
  const bool is_written = fwrite(text.data(), 1, text.size(), stdout) == text.size();
  if (is_written && fflush(stdout) == 0) return kOk;
  fmt::print(stderr, "spile: cannot write: {}\n", strerror(errno));
  return kFailed;
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
    print(source.name() + "\n");
    return kFailed;
  }
  if (!request.in_place || name.empty() || name == "-") return print(*out);
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
