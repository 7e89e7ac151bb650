// pr_info with the kernel's %pS: one line to stderr, written at once.
#include <dlfcn.h>
#include <link.h>
#include <spile/module.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>

namespace {

constexpr size_t kMaxLineBytes = 1024, kMaxSpecBytes = 32;

/// A line that is cut off where it is full.
struct Line {
  char text[kMaxLineBytes];
  size_t used = 0;

  template <typename... Args>
  void print(const char* format, Args... args) {
    const int n = std::snprintf(text + used, kMaxLineBytes - used, format, args...);
    if (n > 0) used = std::min(used + static_cast<size_t>(n), kMaxLineBytes - 1);
  }
};

/// symbol+0x12/0x34 with the symbol's size, or symbol, or the address.
void print_symbol(Line& line, const void* address, bool with_offset) {
  Dl_info info = {};
  const ElfW(Sym)* symbol = nullptr;
  void* extra = nullptr;
  const bool found =
      ::dladdr1(address, &info, &extra, RTLD_DL_SYMENT) != 0 && info.dli_sname != nullptr;
  symbol = static_cast<const ElfW(Sym)*>(extra);
  if (!found) return line.print("0x%lx", reinterpret_cast<uintptr_t>(address));
  if (!with_offset) return line.print("%s", info.dli_sname);
  const auto offset =
      reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(info.dli_saddr);
  const size_t size = symbol == nullptr ? 0 : static_cast<size_t>(symbol->st_size);
  line.print("%s+0x%lx/0x%lx", info.dli_sname, offset, size);
}

/// "%-8lx" up to and with its letter; 0: not one that is known.
size_t spec_bytes(const char* at) {
  const size_t n = 1 + std::strspn(at + 1, "-+ #0123456789.*hlzjt");
  return n + 1 < kMaxSpecBytes && at[n] != 0 && std::strchr("diuxXocspn%", at[n]) != nullptr ? n + 1
                                                                                             : 0;
}

void print_pointer(Line& line, const char*& at, const void* value) {
  switch (*at) {
    case 'S':
    case 'B': print_symbol(line, value, true); break;
    case 's': print_symbol(line, value, false); break;
    case 'x':
    case 'K': line.print("%016lx", reinterpret_cast<uintptr_t>(value)); break;
    default: line.print("%016lx", reinterpret_cast<uintptr_t>(value)); return;
  }
  ++at;
}

/// "%-*s" and its number: "%-12s". False: too long.
bool fill_stars(char (&spec)[kMaxSpecBytes], va_list& args) {
  while (const char* star = std::strchr(spec, '*')) {
    char filled[kMaxSpecBytes];
    const int n = std::snprintf(filled, sizeof filled, "%.*s%d%s", static_cast<int>(star - spec),
                                spec, va_arg(args, int), star + 1);
    if (n < 0 || static_cast<size_t>(n) >= sizeof filled) return false;
    std::memcpy(spec, filled, sizeof filled);
  }
  return true;
}

void print_one(Line& line, const char* spec, char letter, va_list& args) {
  const bool is_long = std::strpbrk(spec, "lzjt") != nullptr;
  if (letter == 's') return line.print(spec, va_arg(args, const char*));
  if (letter == '%') return line.print("%s", "%");
  if (letter == 'n') return;  // the kernel has none either
  if (is_long) return line.print(spec, va_arg(args, long));
  line.print(spec, va_arg(args, int));
}

}  // namespace

extern "C" int spile_printk(const char* format, ...) {
  Line line;
  line.text[0] = 0;
  va_list args;
  va_start(args, format);
  for (const char* at = format; *at != 0;) {
    const size_t bytes = *at == '%' ? spec_bytes(at) : 0;
    if (bytes == 0) {
      line.print("%c", *at++);
      continue;
    }
    char spec[kMaxSpecBytes] = {};
    std::memcpy(spec, at, bytes);
    at += bytes;
    if (!fill_stars(spec, args)) continue;
    const char letter = spec[std::strlen(spec) - 1];
    if (letter == 'p') {
      print_pointer(line, at, va_arg(args, const void*));
    } else {
      print_one(line, spec, letter, args);
    }
  }
  va_end(args);
  return static_cast<int>(::write(STDERR_FILENO, line.text, line.used));
}
