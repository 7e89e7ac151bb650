// Files for the tests of this module and of symbols/: a scratch folder, the output of tools,
// compiled sources.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace spile::elf::testing {

inline constexpr const char* kLibc = "/lib/x86_64-linux-gnu/libc.so.6";
inline constexpr const char* kLibstdcxx = "/usr/lib/x86_64-linux-gnu/libstdc++.so.6";

class Scratch {
 public:
  Scratch() {
    char name[] = "/tmp/spile-test-XXXXXX";
    if (::mkdtemp(name) != nullptr) path_ = name;
  }
  ~Scratch() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// What a shell command prints; "" where it fails.
inline std::string output_of(const std::string& command) {
  std::string text;
  FILE* pipe = ::popen((command + " 2>/dev/null").c_str(), "r");
  if (pipe == nullptr) return text;
  char chunk[65536];
  while (const size_t got = ::fread(chunk, 1, sizeof chunk, pipe)) text.append(chunk, got);
  return ::pclose(pipe) == 0 ? text : "";
}

inline bool succeeds(const std::string& command) {
  return std::system((command + " >/dev/null 2>&1").c_str()) == 0;
}
inline bool has_tool(const std::string& name) {
  return succeeds("command -v " + name);
}

inline void write_file(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

inline std::vector<uint8_t> bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// Compiles a C or C++ source; false where there is no compiler.
inline bool compile(const std::string& source,
                    const std::string& output,
                    const std::string& options,
                    const std::string& language = "c") {
  write_file(output + "." + language, source);
  return succeeds((language == "c" ? "gcc " : "g++ ") + options + " -o " + output + " " + output +
                  "." + language);
}

}  // namespace spile::elf::testing
