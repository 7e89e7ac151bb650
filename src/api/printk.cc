// pr_info with the kernel's %pS: one line to stderr, written at once.
#include <dlfcn.h>
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

/// symbol+0x12, or the address.
void print_symbol(Line& line, const void* address) {
  Dl_info info = {};
  if (::dladdr(address, &info) == 0 || info.dli_sname == nullptr)
    return line.print("0x%lx", reinterpret_cast<uintptr_t>(address));
  const auto offset =
      reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(info.dli_saddr);
  line.print("%s+0x%lx", info.dli_sname, offset);
}

/// "%-8lx" up to and with its letter; 0: not one that is known.
size_t spec_bytes(const char* at) {
  const size_t n = 1 + std::strspn(at + 1, "-+ #0123456789.hlzjt");
  return n + 1 < kMaxSpecBytes && at[n] != 0 && std::strchr("diuxXocspn%", at[n]) != nullptr ? n + 1
                                                                                             : 0;
}

void print_pointer(Line& line, const char*& at, const void* value) {
  switch (*at) {
    case 'S':
    case 's': print_symbol(line, value); break;
    case 'x':
    case 'K': line.print("%016lx", reinterpret_cast<uintptr_t>(value)); break;
    default: line.print("%016lx", reinterpret_cast<uintptr_t>(value)); return;
  }
  ++at;
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
    if (spec[bytes - 1] == 'p') {
      print_pointer(line, at, va_arg(args, const void*));
    } else {
      print_one(line, spec, spec[bytes - 1], args);
    }
  }
  va_end(args);
  return static_cast<int>(::write(STDERR_FILENO, line.text, line.used));
}
