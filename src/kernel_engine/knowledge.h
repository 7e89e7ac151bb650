// What the kernel tells about probing itself: where it allows probes, and which there are.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace spile::kernel_engine {

/// "none", "integrity" or "confidentiality"; "" where the kernel has no lockdown, or hides which.
std::string lockdown();

/// One line of kprobes/list: a kprobe that is in place, whoever set it.
struct ActiveKprobe {
  uint64_t address = 0;
  char type = 'k';     ///< r: a kretprobe
  std::string place;   ///< "do_sys_openat2+0x0"
  std::string module;  ///< "" is the kernel proper
  std::string state;   ///< "[FTRACE]", "[DISABLED][OPTIMIZED]", ""
};
/// Empty: a line of another form.
std::optional<ActiveKprobe> parse_active_kprobe(std::string_view line);
/// Errors: denied; unsupported, no debugfs or no kprobes here.
Result<std::vector<ActiveKprobe>> active_kprobes();

/// One line of kprobes/blacklist: code that the kernel runs to serve a probe.
struct BlacklistEntry {
  uint64_t begin = 0, end = 0;
  std::string function;
};
std::optional<BlacklistEntry> parse_blacklist_entry(std::string_view line);
Result<std::vector<BlacklistEntry>> kprobe_blacklist();
/// The entry that names `function`, or holds `address` where that is not 0.
const BlacklistEntry* find_blacklisted(const std::vector<BlacklistEntry>& entries,
                                       std::string_view function,
                                       uint64_t address);

/// The functions that ftrace can trace, by name. Errors: denied (lockdown hides them even from
/// root), unsupported.
Result<std::set<std::string, std::less<>>> traceable_functions();
/// "vfs_read" of "vfs_read [module]".
std::string_view function_of_line(std::string_view line);

}  // namespace spile::kernel_engine
