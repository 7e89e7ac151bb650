#include "session/imports.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "lang/sema/catalog.h"
#include "lang/syntax/parser.h"

namespace spile::session {

namespace {

namespace fs = std::filesystem;
using lang::Diagnostics;
using lang::Source;
using lang::Span;

/// Whoever may write it decides what is traced, as root.
bool everybody_may_write(const fs::path& path) {
  struct stat st{};
  return stat(path.c_str(), &st) != 0 || (st.st_mode & S_IWOTH) != 0;
}

bool has_ending(const fs::path& path, std::string_view ending) {
  return path.filename().string().ends_with(ending);
}

class Reader {
 public:
  explicit Reader(Diagnostics& diagnostics) : diagnostics_(diagnostics) {}

  Source run(const Script& script) {
    const bool is_file = script.name != Script().name;
    if (is_file) seen_.insert(canonical(script.name));
    add({script.name, script.text}, is_file ? fs::path(script.name).parent_path() : fs::path());
    return {parts_, order_};
  }

 private:
  static std::string canonical(const fs::path& path) {
    std::error_code failed;
    const fs::path real = fs::canonical(path, failed);
    return failed ? path.string() : real.string();
  }

  /// One file, behind those that it imports.
  void add(Source::Part part, const fs::path& folder) {
    const size_t number = parts_.size();
    const uint32_t begin = next_;
    next_ += static_cast<uint32_t>(part.text.size()) + 1;
    // What is wrong with the text is told when all of it is read.
    Diagnostics unread;
    const Source alone(part.name, part.text);
    const auto program =
        lang::parse(alone, {.keeps_attach_words = true, .is_import = true}, unread);
    parts_.push_back(std::move(part));
    for (const lang::ast::Import& one : program.imports) {
      if (!lang::is_standard_module(one.path))
        import(folder / one.path, one.path, {begin + one.span.begin, begin + one.span.end});
    }
    order_.push_back(number);
  }

  void import(const fs::path& path, const std::string& written, Span span) {
    std::error_code failed;
    if (fs::is_directory(path, failed)) return import_folder(path, written, span);
    if (written.starts_with("stdlib/") && !fs::exists(path, failed)) {
      diagnostics_.error(span, "import: there is no module '{}'", written);
    } else if (has_ending(path, ".bpf.c")) {
      diagnostics_.error(span, "import {}: programs in C are not built yet", written)
          .with_hint("a .bt file, a .h file or a folder of them");
    } else if (!has_ending(path, ".bt") && !has_ending(path, ".h")) {
      diagnostics_.error(span, "import {}: this is no script", written)
          .with_hint("a .bt file, a .h file or a folder of them");
    } else {
      import_file(path, written, span);
    }
  }

  void import_folder(const fs::path& path, const std::string& written, Span span) {
    std::vector<fs::path> files;
    std::error_code failed;
    for (const auto& entry : fs::directory_iterator(path, failed)) {
      if (has_ending(entry.path(), ".bt") || has_ending(entry.path(), ".h") ||
          has_ending(entry.path(), ".bpf.c"))
        files.push_back(entry.path());
    }
    if (failed) {
      diagnostics_.error(span, "import {}: {}", written, failed.message());
      return;
    }
    if (files.empty())
      diagnostics_.error(span, "import {}: no scripts are in this folder", written);
    std::ranges::sort(files);
    for (const fs::path& file : files)
      import(file, (fs::path(written) / file.filename()).string(), span);
  }

  void import_file(const fs::path& path, const std::string& written, Span span) {
    if (!seen_.insert(canonical(path)).second) return;
    std::error_code failed;
    if (fs::exists(path, failed) && !fs::is_regular_file(path, failed)) {
      diagnostics_.error(span, "import {}: this is no regular file", written);
      return;
    }
    errno = 0;
    std::ifstream file(path, std::ios::binary);
    std::string text{std::istreambuf_iterator<char>(file), {}};
    if (!file || errno != 0) {
      diagnostics_.error(span, "import {}: {}", written,
                         errno == 0 ? "cannot be read" : strerror(errno));
      return;
    }
    const fs::path folder = path.parent_path();
    if (everybody_may_write(path) || everybody_may_write(folder.empty() ? "." : folder)) {
      diagnostics_.error(span, "import {}: everybody may write this file or its folder", written)
          .with_hint("chmod o-w, or move it: what is imported runs with your rights");
      return;
    }
    if (next_ + text.size() > Source::kMaxBytes) {
      diagnostics_.error(span, "import {}: together the scripts are longer than {} MiB", written,
                         Source::kMaxBytes >> 20);
      return;
    }
    add({path.string(), std::move(text)}, folder);
  }

  Diagnostics& diagnostics_;
  std::vector<Source::Part> parts_;
  std::vector<size_t> order_;
  std::set<std::string> seen_;  ///< canonical paths
  uint32_t next_ = 0;           ///< where in the whole text the next one begins
};

}  // namespace

Source with_imports(const Script& script, Diagnostics& diagnostics) {
  // Most scripts import nothing, and the word says so.
  if (script.text.find("import") == std::string::npos) return {script.name, script.text};
  return Reader(diagnostics).run(script);
}

}  // namespace spile::session
