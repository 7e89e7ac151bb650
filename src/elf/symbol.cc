#include "elf/symbol.h"

#include <elf.h>

#include <algorithm>
#include <map>
#include <optional>

#include "elf/reader.h"

namespace spile::elf {
namespace {

constexpr uint64_t kMaxSymbols = 1 << 24;
constexpr uint16_t kVersionHidden =
    0x8000;  ///< in .gnu.version: name@VERSION instead of name@@VERSION

/// Where one symbol table and what belongs to it lie.
struct Table {
  std::span<const uint8_t> symbols, strings;
  std::span<const uint8_t>
      versions;  ///< .gnu.version: u16 a symbol; empty where the table has none
  std::map<uint16_t, std::string_view> version_names;
};

// ---- versions
// ----------------------------------------------------------------------------------------------------

/// Version numbers to names, from .gnu.version_d. Every step goes forward, so a damaged chain ends.
std::map<uint16_t, std::string_view> read_version_names(std::span<const uint8_t> definitions,
                                                        std::span<const uint8_t> strings) {
  std::map<uint16_t, std::string_view> names;
  uint64_t at = 0;
  for (uint32_t left = kVersionHidden; left > 0; --left) {
    const auto d = load_at<Elf64_Verdef>(definitions, at);
    if (!d) break;
    if (const auto a = load_at<Elf64_Verdaux>(definitions, at + d->vd_aux);
        a && (d->vd_flags & VER_FLG_BASE) == 0)
      if (const auto name = string_at(strings, a->vda_name, 4096)) names.emplace(d->vd_ndx, *name);
    if (d->vd_next == 0) break;
    at += d->vd_next;
  }
  return names;
}

/// "fopen@@GLIBC_2.2.5" of .symtab, taken apart.
void split_version(Symbol& symbol) {
  const auto at = symbol.name.find('@');
  if (at == std::string_view::npos || at == 0) return;
  const auto version = symbol.name.substr(at + 1);
  symbol.is_default_version = version.starts_with('@');
  symbol.version = version.substr(symbol.is_default_version ? 1 : 0);
  symbol.name = symbol.name.substr(0, at);
}

void apply_version(Symbol& symbol, const Table& table, uint64_t index) {
  const auto number = load_at<uint16_t>(table.versions, index * sizeof(uint16_t));
  if (!number) return split_version(symbol);
  const auto name = table.version_names.find(*number & ~kVersionHidden);
  if (name == table.version_names.end()) return;
  symbol.version = name->second;
  symbol.is_default_version = (*number & kVersionHidden) == 0;
}

// ---- entries
// -----------------------------------------------------------------------------------------------------

std::optional<SymbolType> type_of(const Elf64_Sym& s) {
  switch (ELF64_ST_TYPE(s.st_info)) {
    case STT_FUNC: return SymbolType::kFunction;
    case STT_GNU_IFUNC: return SymbolType::kIfunc;
    // Local ones are jump targets inside hand-written functions, not functions.
    case STT_NOTYPE:
      if (ELF64_ST_BIND(s.st_info) != STB_LOCAL) return SymbolType::kLabel;
      return std::nullopt;
    default: return std::nullopt;
  }
}

Binding binding_of(const Elf64_Sym& s) {
  switch (ELF64_ST_BIND(s.st_info)) {
    case STB_LOCAL: return Binding::kLocal;
    case STB_WEAK: return Binding::kWeak;
    default: return Binding::kGlobal;  // STB_GNU_UNIQUE too
  }
}

/// Appends the defined functions. Names may overlap (a linker shares suffixes), so their lengths
/// together are bounded: else a small hostile file could cost hours.
Result<void> append(const Table& table,
                    const File& file,
                    const File& loaded,
                    std::vector<Symbol>& out) {
  const uint64_t count = table.symbols.size() / sizeof(Elf64_Sym);
  if (count > kMaxSymbols)
    return fail(ErrorCode::kUnsupported, "{} has {} symbols", file.path(), count);
  uint64_t name_budget = 16 * uint64_t{table.strings.size()} + (1 << 20);
  out.reserve(out.size() + std::min<uint64_t>(count, 1 << 20));
  for (uint64_t i = 1; i < count; ++i) {
    const auto s = *load_at<Elf64_Sym>(table.symbols, i * sizeof(Elf64_Sym));
    const auto type = type_of(s);
    if (!type || s.st_shndx == SHN_UNDEF || s.st_shndx == SHN_ABS ||
        !loaded.is_executable(LinkAddr(s.st_value)))
      continue;
    const auto name = string_at(table.strings, s.st_name);
    if (!name)
      return fail(ErrorCode::kCorrupt, "symbol {} of {} has no name inside its table", i,
                  file.path());
    if (name->size() > name_budget)
      return fail(ErrorCode::kCorrupt, "the symbol names of {} overlap", file.path());
    name_budget -= name->size();
    if (name->empty()) continue;
    Symbol symbol{*name, {}, LinkAddr(s.st_value), s.st_size, *type, binding_of(s), true};
    apply_version(symbol, table, i);
    out.push_back(symbol);
  }
  return {};
}

// ---- finding the tables
// ------------------------------------------------------------------------------------------

Result<std::span<const uint8_t>> linked_strings(const File& file, const Section& section) {
  if (section.link >= file.sections().size())
    return fail(ErrorCode::kCorrupt, "section {} of {} has no string table", section.name,
                file.path());
  return file.bytes(file.sections()[section.link]);
}

Result<std::optional<Table>> table_of_section(const File& file, uint32_t type) {
  const auto found = std::ranges::find(file.sections(), type, &Section::type);
  if (found == file.sections().end()) return std::nullopt;
  Table table;
  SPILE_TRY(table.symbols, file.bytes(*found));
  SPILE_TRY(table.strings, linked_strings(file, *found));
  if (type != SHT_DYNSYM) return table;
  const auto versions = std::ranges::find(file.sections(), SHT_GNU_versym, &Section::type);
  const auto definitions = std::ranges::find(file.sections(), SHT_GNU_verdef, &Section::type);
  if (versions == file.sections().end() || definitions == file.sections().end()) return table;
  SPILE_TRY(table.versions, file.bytes(*versions));
  SPILE_TRY(const auto bytes, file.bytes(*definitions));
  SPILE_TRY(const auto strings, linked_strings(file, *definitions));
  table.version_names = read_version_names(bytes, strings);
  return table;
}

/// How many symbols DT_GNU_HASH reaches: the table itself does not say. The last chain's end is one
/// past the last symbol.
uint64_t count_by_gnu_hash(std::span<const uint8_t> bytes) {
  Reader header(bytes);
  const auto buckets = header.value<uint32_t>(), first = header.value<uint32_t>(),
             bloom = header.value<uint32_t>();
  const uint64_t buckets_at = 16 + uint64_t{bloom} * 8,
                 chains_at = buckets_at + uint64_t{buckets} * 4;
  uint32_t last = 0;
  for (uint64_t i = 0; i < buckets; ++i) {
    const auto bucket = load_at<uint32_t>(bytes, buckets_at + i * 4);
    if (!bucket) return 0;
    last = std::max(last, *bucket);
  }
  if (last < first) return first;
  for (uint64_t i = last;; ++i) {
    const auto hash = load_at<uint32_t>(bytes, chains_at + (i - first) * 4);
    if (!hash) return 0;
    if ((*hash & 1) != 0) return i + 1;
  }
}

uint64_t count_of_dynamic_symbols(const File& file) {
  if (const auto hash = file.dynamic(DT_HASH)) {
    const auto bytes = file.bytes_from(LinkAddr(*hash));
    return bytes ? load_at<uint32_t>(*bytes, 4).value_or(0) : 0;  // nchain
  }
  if (const auto hash = file.dynamic(DT_GNU_HASH)) {
    const auto bytes = file.bytes_from(LinkAddr(*hash));
    return bytes ? count_by_gnu_hash(*bytes) : 0;
  }
  return 0;
}

/// .dynsym as the dynamic loader finds it, for files whose section headers were removed.
Result<std::optional<Table>> table_of_loader(const File& file) {
  const auto symbols = file.dynamic(DT_SYMTAB), strings = file.dynamic(DT_STRTAB);
  if (!symbols || !strings) return std::nullopt;
  Table table;
  SPILE_TRY(table.symbols, file.bytes_from(LinkAddr(*symbols)));
  SPILE_TRY(table.strings, file.bytes_from(LinkAddr(*strings)));
  const uint64_t count =
      std::min(count_of_dynamic_symbols(file), table.symbols.size() / sizeof(Elf64_Sym));
  table.symbols = table.symbols.first(count * sizeof(Elf64_Sym));
  table.strings = table.strings.first(
      std::min<uint64_t>(file.dynamic(DT_STRSZ).value_or(0), table.strings.size()));
  const auto versions = file.dynamic(DT_VERSYM), definitions = file.dynamic(DT_VERDEF);
  if (!versions || !definitions) return table;
  SPILE_TRY(table.versions, file.bytes_from(LinkAddr(*versions)));
  SPILE_TRY(const auto bytes, file.bytes_from(LinkAddr(*definitions)));
  table.version_names = read_version_names(bytes, table.strings);
  return table;
}

}  // namespace

Result<std::vector<Symbol>> read_symbols(const File& file, const File& loaded) {
  std::vector<Symbol> symbols;
  SPILE_TRY(const auto full, table_of_section(file, SHT_SYMTAB));
  if (full) SPILE_TRY_VOID(append(*full, file, loaded, symbols));
  SPILE_TRY(auto dynamic, table_of_section(file, SHT_DYNSYM));
  if (file.sections().empty()) {
    SPILE_TRY(dynamic, table_of_loader(file));
  }
  // A debug file names .dynsym, but keeps none of its bytes.
  if (dynamic && !dynamic->symbols.empty()) SPILE_TRY_VOID(append(*dynamic, file, loaded, symbols));
  return symbols;
}

}  // namespace spile::elf
