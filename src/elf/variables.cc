#include "elf/variables.h"

#include <elf.h>

#include "elf/reader.h"

namespace spile::elf {
namespace {

constexpr uint64_t kMaxNameBytes = 4096;

bool is_variable(const Elf64_Sym& symbol) {
  const auto type = ELF64_ST_TYPE(symbol.st_info);
  return symbol.st_shndx != SHN_UNDEF && symbol.st_shndx != SHN_ABS && symbol.st_name != 0 &&
         (type == STT_OBJECT || type == STT_NOTYPE);
}

void add_table(const File& file,
               std::span<const uint8_t> table,
               std::span<const uint8_t> strings,
               Variables& variables) {
  for (uint64_t at = 0; at + sizeof(Elf64_Sym) <= table.size(); at += sizeof(Elf64_Sym)) {
    const auto symbol = *load_at<Elf64_Sym>(table, at);
    if (!is_variable(symbol) || file.segment_at(LinkAddr(symbol.st_value)) == nullptr) continue;
    const auto text = string_at(strings, symbol.st_name, kMaxNameBytes);
    if (!text) continue;
    // .symtab has "x@@V" for exported ones.
    const LinkAddr address(symbol.st_value);
    const auto [known, is_new] =
        variables.try_emplace(text->substr(0, text->find('@')), Variable{address, symbol.st_size});
    if (!is_new && known->second && known->second->address != address) known->second.reset();
  }
}

}  // namespace

Result<Variables> read_variables(const File& file) {
  Variables variables;
  for (const Section& section : file.sections()) {
    if (section.type != SHT_SYMTAB && section.type != SHT_DYNSYM) continue;
    if (section.link >= file.sections().size()) continue;
    SPILE_TRY(const auto table, file.bytes(section));
    SPILE_TRY(const auto strings, file.bytes(file.sections()[section.link]));
    add_table(file, table, strings, variables);
  }
  return variables;
}

}  // namespace spile::elf
