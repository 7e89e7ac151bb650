#include "session/symbolizer.h"

#include <cxxabi.h>
#include <sys/stat.h>

#include <cstdlib>

#include "user_engine/target/process.h"

namespace spile::session {

namespace {

/// Names of C++ as their authors wrote them.
std::string demangled(std::string_view symbol) {
  std::string name(symbol);
  if (!name.starts_with("_Z")) return name;
  int status = 0;
  char* text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  if (status == 0 && text != nullptr) name = text;
  std::free(text);
  return name;
}

/// Answers kept of all processes together; beyond that they are found anew.
constexpr size_t kMostKnown = 1 << 16;

/// The file that a living process runs though it has been removed or replaced.
std::optional<symbols::ModuleSymbols> removed_module(const os::MapEntry& map, pid_t pid) {
  auto process = target::Target::open(pid);
  auto modules = process ? process->modules() : Result<std::vector<target::Module>>();
  if (!process || !modules) return std::nullopt;
  for (const target::Module& m : *modules) {
    if (m.device != map.device || m.inode != map.inode || m.host_path.empty()) continue;
    auto loaded = symbols::ModuleSymbols::load(m.host_path, {"", map.path, true});
    if (loaded) return std::move(*loaded);
  }
  return std::nullopt;
}

}  // namespace

void Symbolizer::remember(pid_t pid) {
  auto thread = os::thread_with_memory(pid);
  if (!thread) return;
  auto maps = os::read_maps(*thread);
  if (!maps || maps->empty()) return;
  Process& process = processes_[pid];
  process.root = fmt::format("/proc/{}/root", *thread);
  std::erase_if(*maps, [](const os::MapEntry& map) { return !map.exec; });
  if (process.maps.size() != maps->size()) known_.clear();  // new files: new names
  process.maps = std::move(*maps);
}

/// A mapping that came after the last look makes us look again.
const os::MapEntry* Symbolizer::mapping_of(pid_t& pid, uint64_t address) {
  if (!processes_.contains(pid)) remember(pid);
  if (!processes_.contains(pid) && parent_ != 0) pid = parent_;
  for (bool again : {false, true}) {
    if (again) remember(pid);
    auto known = processes_.find(pid);
    if (known == processes_.end()) continue;
    for (const os::MapEntry& map : known->second.maps) {
      if (map.contains(TargetAddr(address))) return &map;
    }
  }
  return nullptr;
}

const symbols::ModuleSymbols* Symbolizer::module(const os::MapEntry& map, pid_t pid) {
  auto [entry, is_new] = modules_.try_emplace({map.device, map.inode});
  if (!is_new) return entry->second.get();
  if (map.deleted) {
    if (auto removed = removed_module(map, pid))
      entry->second = std::make_unique<symbols::ModuleSymbols>(std::move(*removed));
    return entry->second.get();
  }
  const std::string& root = processes_[pid].root;
  for (const std::string& base : {root, std::string()}) {
    struct stat st = {};
    std::string path = base + map.path;
    if (stat(path.c_str(), &st) != 0 || st.st_ino != map.inode) continue;
    auto loaded = symbols::ModuleSymbols::load(path, {base, map.path, true});
    if (!loaded) continue;
    entry->second = std::make_unique<symbols::ModuleSymbols>(std::move(*loaded));
    break;
  }
  return entry->second.get();
}

std::optional<output::Name> Symbolizer::user(uint64_t pid, uint64_t address) {
  auto process = static_cast<pid_t>(pid);
  auto known = known_.find({process, address});
  if (known != known_.end()) return known->second;
  pid_t owner = process;
  const os::MapEntry* map = mapping_of(owner, address);
  std::optional<output::Name> name;
  if (map != nullptr && map->inode != 0) {
    if (const auto* symbols = module(*map, owner)) {
      FileOffset offset(address - map->start.value + map->offset);
      auto link = symbols->file().to_link(offset);
      auto found = link ? symbols->resolve(*link) : std::nullopt;
      if (found) name = {demangled(found->function->name), found->offset, map->path};
    }
  }
  if (known_.size() >= kMostKnown) known_.clear();
  if (map != nullptr) known_[{process, address}] = name;
  return name;
}

std::optional<output::Name> Symbolizer::kernel(uint64_t address) {
  if (!kernel_) kernel_ = symbols::Kallsyms::load();
  if (!*kernel_) return std::nullopt;
  auto found = (*kernel_)->resolve(address);
  if (!found) return std::nullopt;
  return output::Name{std::string(found->function->name), found->offset,
                      std::string(found->function->module)};
}

}  // namespace spile::session
