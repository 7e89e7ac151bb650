#include "user_engine/loader.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "elf/file.h"
#include "os/process.h"
#include "symbols/module_symbols.h"

namespace spile::user_engine {

namespace {

/// A data symbol of .dynsym. symbols/ knows functions only, and this is the one place that asks for
/// data.
std::optional<LinkAddr> find_object(const elf::File& file, std::string_view name) {
  const elf::Section* table = file.section(".dynsym");
  const elf::Section* strings = file.section(".dynstr");
  if (table == nullptr || strings == nullptr) return std::nullopt;
  auto entries = file.bytes(*table);
  auto names = file.bytes(*strings);
  if (!entries || !names) return std::nullopt;
  for (size_t at = 0; at + sizeof(Elf64_Sym) <= entries->size(); at += sizeof(Elf64_Sym)) {
    Elf64_Sym symbol;
    std::memcpy(&symbol, entries->data() + at, sizeof symbol);
    if (ELF64_ST_TYPE(symbol.st_info) != STT_OBJECT || symbol.st_name >= names->size()) continue;
    const char* text = reinterpret_cast<const char*>(names->data()) + symbol.st_name;
    size_t length = strnlen(text, names->size() - symbol.st_name);
    if (std::string_view(text, length) == name) return LinkAddr(symbol.st_value);
  }
  return std::nullopt;
}

}  // namespace

std::optional<target::LoaderSymbols> loader_symbols(const target::Module& loader) {
  auto symbols =
      symbols::ModuleSymbols::load(loader.host_path.empty() ? loader.path : loader.host_path);
  if (!symbols) return std::nullopt;
  auto notify = symbols->find("_dl_debug_state");
  if (notify.empty()) return std::nullopt;
  return target::LoaderSymbols{notify.front()->addr, find_object(symbols->file(), "_r_debug")};
}

const target::Module* find_loader(const target::Target& target,
                                  std::span<const target::Module> modules) {
  auto tid = target.live_thread();
  auto auxv = tid ? os::read_auxv(*tid) : Result<std::vector<std::pair<uint64_t, uint64_t>>>();
  if (!tid || !auxv) return nullptr;
  for (const auto& [type, value] : *auxv) {
    if (type != AT_BASE || value == 0) continue;
    auto found = std::ranges::find_if(
        modules, [&](const target::Module& m) { return m.contains(TargetAddr(value)); });
    if (found != modules.end()) return &*found;
  }
  return nullptr;
}

std::set<TargetAddr> modules_that_stay(std::span<const target::Module> modules) {
  std::map<std::string, const target::Module*> by_name;
  std::map<const target::Module*, std::vector<std::string>> needed;
  std::vector<const target::Module*> todo;
  for (const target::Module& module : modules) {
    auto file = elf::File::open(module.host_path);
    if (!file) continue;
    by_name.emplace(std::filesystem::path(module.path).filename(), &module);
    if (!file->soname().empty()) by_name.emplace(file->soname(), &module);
    needed[&module] = file->needed();
    if (module.main_program) todo.push_back(&module);
  }
  std::set<TargetAddr> stay;
  while (!todo.empty()) {
    const target::Module* module = todo.back();
    todo.pop_back();
    if (!stay.insert(module->start).second) continue;
    for (const std::string& name : needed[module]) {
      if (auto found = by_name.find(name); found != by_name.end()) todo.push_back(found->second);
    }
  }
  return stay;
}

}  // namespace spile::user_engine
