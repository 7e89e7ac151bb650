#include "output/commands.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

namespace spile::output {

namespace {

std::string read_all(FILE* file, size_t most) {
  std::string out;
  char part[4096];
  while (out.size() < most) {
    const size_t got = std::fread(part, 1, std::min(sizeof part, most - out.size()), file);
    if (got == 0) break;
    out.append(part, got);
  }
  return out;
}

}  // namespace

std::string run_command(const std::string& command) {
  FILE* pipe = ::popen(command.c_str(), "re");
  if (pipe == nullptr) {
    std::fprintf(stderr, "spile: system: %s\n", std::strerror(errno));
    return {};
  }
  std::string out = read_all(pipe, size_t{1} << 30);
  ::pclose(pipe);
  return out;
}

std::string read_for_cat(const std::string& path, size_t most) {
  FILE* file = std::fopen(path.c_str(), "re");
  if (file == nullptr) {
    std::fprintf(stderr, "spile: cat: %s: %s\n", path.c_str(), std::strerror(errno));
    return {};
  }
  std::string out = read_all(file, most);
  std::fclose(file);
  return out;
}

}  // namespace spile::output
