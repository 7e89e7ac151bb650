#include "kernel_engine/knowledge.h"

#include <unistd.h>

#include <cerrno>
#include <charconv>

#include "kernel_engine/perf_event.h"
#include "os/process.h"

namespace spile::kernel_engine {

namespace {

constexpr const char* kKprobes = "/sys/kernel/debug/kprobes/";

/// The words of a line, split at blanks and tabs.
std::vector<std::string_view> words_of(std::string_view line) {
  std::vector<std::string_view> words;
  for (size_t at = line.find_first_not_of(" \t"); at != std::string_view::npos;) {
    size_t end = std::min(line.find_first_of(" \t", at), line.size());
    words.push_back(line.substr(at, end - at));
    at = line.find_first_not_of(" \t", end);
  }
  return words;
}

std::optional<uint64_t> hex(std::string_view text) {
  if (text.starts_with("0x")) text.remove_prefix(2);
  uint64_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

bool is_state(std::string_view word) {
  for (std::string_view state : {"[GONE]", "[DISABLED]", "[OPTIMIZED]", "[FTRACE]"}) {
    if (word.starts_with(state)) return true;
  }
  return false;
}

Result<std::string> read_debugfs(std::string_view name) {
  std::string path = fmt::format("{}{}", kKprobes, name);
  auto text = os::read_file(path);
  if (text) return text;
  if (text.error().code == ErrorCode::kNotFound)
    return fail(
        ErrorCode::kUnsupported,
        "no {}: this kernel has no kprobes (CONFIG_KPROBES), or debugfs is not mounted (mount "
        "-t debugfs nodev /sys/kernel/debug)",
        path);
  return text;
}

template <typename T>
std::vector<T> parse_lines(std::string_view text, std::optional<T> (*parse)(std::string_view)) {
  std::vector<T> all;
  for (size_t at = 0; at < text.size();) {
    size_t end = std::min(text.find('\n', at), text.size());
    if (auto one = parse(text.substr(at, end - at))) all.push_back(std::move(*one));
    at = end + 1;
  }
  return all;
}

}  // namespace

/// "[none] integrity confidentiality": the one in brackets holds.
std::string lockdown() {
  const auto text = os::read_file("/sys/kernel/security/lockdown");
  const size_t open = text ? text->find('[') : std::string::npos;
  const size_t close = text ? text->find(']') : std::string::npos;
  return open == std::string::npos || close == std::string::npos || close < open
             ? ""
             : text->substr(open + 1, close - open - 1);
}

/// "ffffffffc0416144  k  dummy_xmit+0x4  dummy [DISABLED][FTRACE]"; where a symbol is printed by
/// %pS, the module stands in brackets.
std::optional<ActiveKprobe> parse_active_kprobe(std::string_view line) {
  const auto words = words_of(line);
  if (words.size() < 3 || words[1].size() != 1) return std::nullopt;
  const auto address = hex(words[0]);
  if (!address) return std::nullopt;
  ActiveKprobe probe{.address = *address,
                     .type = words[1][0],
                     .place = std::string(words[2]),
                     .module = "",
                     .state = ""};
  for (size_t i = 3; i < words.size(); i++) {
    if (is_state(words[i])) {
      probe.state += words[i];
    } else if (words[i].starts_with('[') && words[i].ends_with(']')) {
      probe.module = words[i].substr(1, words[i].size() - 2);
    } else if (i == 3) {
      probe.module = words[i];
    }
  }
  return probe;
}

Result<std::vector<ActiveKprobe>> active_kprobes() {
  SPILE_TRY(std::string text, read_debugfs("list"));
  return parse_lines(text, parse_active_kprobe);
}

/// "0xffffffff81c01000-0xffffffff81c01050	asm_exc_divide_error"
std::optional<BlacklistEntry> parse_blacklist_entry(std::string_view line) {
  const auto words = words_of(line);
  if (words.size() < 2) return std::nullopt;
  const size_t dash = words[0].find('-');
  if (dash == std::string_view::npos) return std::nullopt;
  const auto begin = hex(words[0].substr(0, dash)), end = hex(words[0].substr(dash + 1));
  if (!begin || !end) return std::nullopt;
  return BlacklistEntry{*begin, *end, std::string(words[1])};
}

Result<std::vector<BlacklistEntry>> kprobe_blacklist() {
  SPILE_TRY(std::string text, read_debugfs("blacklist"));
  return parse_lines(text, parse_blacklist_entry);
}

const BlacklistEntry* find_blacklisted(const std::vector<BlacklistEntry>& entries,
                                       std::string_view function,
                                       uint64_t address) {
  for (const BlacklistEntry& entry : entries) {
    if (!function.empty() && entry.function == function) return &entry;
    if (address != 0 && address >= entry.begin && address < entry.end) return &entry;
  }
  return nullptr;
}

std::string_view function_of_line(std::string_view line) {
  return line.substr(0, line.find_first_of(" \t"));
}

Result<std::set<std::string, std::less<>>> traceable_functions() {
  SPILE_TRY(std::string root, tracefs());
  auto text = os::read_file(root + "/available_filter_functions");
  if (!text) return forward(text, "list the functions that ftrace can trace");
  std::set<std::string, std::less<>> functions;
  for (size_t at = 0; at < text->size();) {
    size_t end = std::min(text->find('\n', at), text->size());
    auto name = function_of_line(std::string_view(*text).substr(at, end - at));
    if (!name.empty()) functions.insert(functions.end(), std::string(name));
    at = end + 1;
  }
  return functions;
}

}  // namespace spile::kernel_engine
