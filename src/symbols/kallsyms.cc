#include "symbols/kallsyms.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <numeric>

#include "base/fd.h"
#include "symbols/glob.h"
#include "symbols/nearest.h"

namespace spile::symbols {
namespace {

constexpr size_t kMaxTextBytes = 256 << 20;
constexpr std::string_view kKernelItself = "vmlinux";

Result<std::string> read_text(const std::string& path) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return fail_errno(errno, "open {}", path);
  std::string text;
  constexpr size_t kStep = 1 << 20;
  for (size_t size = 0; size < kMaxTextBytes;) {
    text.resize(size + kStep);
    const ssize_t got = ::read(fd.get(), text.data() + size, kStep);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(errno, "read {}", path);
    size += static_cast<size_t>(got);
    text.resize(size);
    if (got == 0) return text;
  }
  return fail(ErrorCode::kUnsupported, "{} is larger than 256 MiB", path);
}

/// Cuts the text up to the next `separator` off the front.
std::string_view cut(std::string_view& rest, char separator) {
  const auto end = rest.find(separator);
  const auto part = rest.substr(0, end);
  rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
  return part;
}

bool module_matches(std::string_view glob, const KernelFunction& f) {
  return glob.empty() || glob_matches(glob, f.module.empty() ? kKernelItself : f.module);
}

}  // namespace

Kallsyms Kallsyms::parse(std::string text) {
  Kallsyms k;
  k.text_.assign(text.begin(), text.end());
  std::string_view rest(k.text_.data(), k.text_.size());
  while (!rest.empty()) k.add_line(cut(rest, '\n'));

  k.by_name_.resize(k.functions_.size());
  std::iota(k.by_name_.begin(), k.by_name_.end(), 0);
  k.by_addr_ = k.by_name_;
  std::ranges::stable_sort(k.by_name_, {}, [&](uint32_t i) { return k.functions_[i].name; });
  std::ranges::stable_sort(k.by_addr_, {}, [&](uint32_t i) { return k.functions_[i].addr; });
  return k;
}

/// "ffffffff81000000 T _stext" or "ffffffffc0000000 t init_fn\t[module]".
void Kallsyms::add_line(std::string_view line) {
  if (line.empty()) return;
  const auto addr_text = cut(line, ' '), type = cut(line, ' '), name = cut(line, '\t');
  uint64_t addr = 0;
  const auto [end, error] = std::from_chars(addr_text.begin(), addr_text.end(), addr, 16);
  const bool has_module = line.size() > 2 && line.front() == '[' && line.back() == ']';
  if (error != std::errc() || end != addr_text.end() || type.size() != 1 || name.empty() ||
      (!line.empty() && !has_module)) {
    ++bad_lines_;
    return;
  }
  if (std::string_view("tTwW").find(type.front()) == std::string_view::npos) return;
  functions_.push_back(
      {name, has_module ? line.substr(1, line.size() - 2) : std::string_view(), addr});
  has_addresses_ |= addr != 0;
}

Result<Kallsyms> Kallsyms::load(const std::string& path) {
  SPILE_TRY(auto text, read_text(path));
  return parse(std::move(text));
}

std::vector<const KernelFunction*> Kallsyms::find(std::string_view name,
                                                  std::string_view module) const {
  const auto same =
      std::ranges::equal_range(by_name_, name, {}, [&](uint32_t i) { return functions_[i].name; });
  std::vector<const KernelFunction*> found;
  for (const uint32_t i : same) {
    const auto& f = functions_[i];
    if (module.empty() || module == (f.module.empty() ? kKernelItself : f.module))
      found.push_back(&f);
  }
  return found;
}

std::vector<const KernelFunction*> Kallsyms::match(std::string_view glob,
                                                   std::string_view module_glob) const {
  std::vector<const KernelFunction*> found;
  for (const auto& f : functions_)
    if (glob_matches(glob, f.name) && module_matches(module_glob, f)) found.push_back(&f);
  return found;
}

std::vector<std::string> Kallsyms::nearest(std::string_view name, size_t at_most) const {
  Nearest near(name, at_most);
  for (const auto& f : functions_) near.offer(f.name);
  return near.take();
}

std::optional<Kallsyms::Resolved> Kallsyms::resolve(uint64_t addr) const {
  if (!has_addresses_) return std::nullopt;
  const auto after =
      std::ranges::upper_bound(by_addr_, addr, {}, [&](uint32_t i) { return functions_[i].addr; });
  if (after == by_addr_.begin()) return std::nullopt;
  const auto& f = functions_[*std::prev(after)];
  return Resolved{&f, addr - f.addr};
}

}  // namespace spile::symbols
