// Names for addresses of processes and of the kernel, also of processes that have ended: what was
// mapped where is remembered from when a process was first seen.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "elf/file.h"
#include "os/process.h"
#include "output/names.h"
#include "symbols/kallsyms.h"
#include "symbols/module_symbols.h"

namespace spile::session {

/// Reads files when first asked and keeps what it read. One thread uses it.
class Symbolizer final : public output::Names {
 public:
  /// Looks at a process now, so that its addresses have names when it is gone. Costs one reading of
  /// /proc/PID/maps.
  void remember(pid_t pid);

  /// Processes that were never seen alive are forks of this one: they have its mappings. So it is
  /// in the user engine with one process, where nobody else can hit a probe.
  void take_unknown_for(pid_t parent) { parent_ = parent; }

  std::optional<output::Name> user(uint64_t pid, uint64_t address) override;
  std::optional<output::Name> kernel(uint64_t address) override;

 private:
  struct Process {
    std::string root;  ///< "" or "/proc/PID/root"
    std::vector<os::MapEntry> maps;
  };
  /// `pid` becomes the process whose mapping it is.
  const os::MapEntry* mapping_of(pid_t& pid, uint64_t address);
  const symbols::ModuleSymbols* module(const os::MapEntry& map, pid_t pid);

  std::map<pid_t, Process> processes_;
  pid_t parent_ = 0;  ///< 0: none
  std::map<std::pair<uint64_t, uint64_t>, std::unique_ptr<symbols::ModuleSymbols>>
      modules_;  ///< by device and inode; null: cannot be read
  std::map<std::pair<pid_t, uint64_t>, std::optional<output::Name>> known_;
  std::optional<Result<symbols::Kallsyms>> kernel_;
};

}  // namespace spile::session
