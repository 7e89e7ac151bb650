#include "elf/bound_slots.h"

#include <elf.h>

#include "elf/reader.h"

namespace spile::elf {
namespace {

class SlotReader {
 public:
  explicit SlotReader(const File& file) : file_(file) {}

  Result<std::vector<BoundSlot>> read() {
    SPILE_TRY_VOID(read_table(DT_RELA, DT_RELASZ));
    SPILE_TRY_VOID(read_table(DT_JMPREL, DT_PLTRELSZ));
    if (!file_.dynamic(DT_RELA) && !file_.dynamic(DT_JMPREL)) SPILE_TRY_VOID(read_sections());
    return std::move(slots_);
  }

 private:
  Result<void> read_table(int64_t address_tag, int64_t size_tag) {
    const auto address = file_.dynamic(address_tag);
    const uint64_t size = file_.dynamic(size_tag).value_or(0);
    if (!address || size == 0) return {};
    SPILE_TRY(const auto bytes, file_.bytes_from(LinkAddr(*address)));
    if (size > bytes.size())
      return fail(ErrorCode::kCorrupt, "the relocations of {} are truncated", file_.path());
    add_all(bytes.first(size));
    return {};
  }

  Result<void> read_sections() {
    for (const Section& section : file_.sections()) {
      if (section.type != SHT_RELA || (section.flags & SHF_ALLOC) == 0) continue;
      SPILE_TRY(const auto bytes, file_.bytes(section));
      add_all(bytes);
    }
    return {};
  }

  void add_all(std::span<const uint8_t> table) {
    for (uint64_t at = 0; at + sizeof(Elf64_Rela) <= table.size(); at += sizeof(Elf64_Rela))
      add(*load_at<Elf64_Rela>(table, at));
  }

  void add(const Elf64_Rela& r) {
    const LinkAddr slot(r.r_offset);
    switch (ELF64_R_TYPE(r.r_info)) {
      case R_X86_64_IRELATIVE:
        slots_.push_back({slot, {}, LinkAddr(static_cast<uint64_t>(r.r_addend))});
        return;
      case R_X86_64_64:
        if (r.r_addend != 0) return;
        [[fallthrough]];
      case R_X86_64_JUMP_SLOT:
      case R_X86_64_GLOB_DAT:
        if (auto name = name_of(ELF64_R_SYM(r.r_info)); !name.empty())
          slots_.push_back({slot, name, {}});
        return;
      default: return;
    }
  }

  std::string_view name_of(uint64_t index) {
    if (!is_read_) {
      is_read_ = true;
      const auto symbols = file_.dynamic(DT_SYMTAB), strings = file_.dynamic(DT_STRTAB);
      if (!symbols || !strings) return {};
      if (auto bytes = file_.bytes_from(LinkAddr(*symbols))) symbols_ = *bytes;
      if (auto bytes = file_.bytes_from(LinkAddr(*strings))) strings_ = *bytes;
    }
    const auto symbol = load_at<Elf64_Sym>(symbols_, index * sizeof(Elf64_Sym));
    return symbol ? string_at(strings_, symbol->st_name, 4096).value_or("") : "";
  }

  const File& file_;
  bool is_read_ = false;
  std::span<const uint8_t> symbols_, strings_;
  std::vector<BoundSlot> slots_;
};

}  // namespace

Result<std::vector<BoundSlot>> read_bound_slots(const File& file) {
  return SlotReader(file).read();
}

}  // namespace spile::elf
