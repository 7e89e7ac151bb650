#include "user_engine/loader.h"

#include <elf.h>

#include <cstring>

#include "elf/file.h"
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

}  // namespace spile::user_engine
