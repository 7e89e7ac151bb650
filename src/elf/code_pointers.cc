#include "elf/code_pointers.h"

#include <elf.h>

#include <algorithm>
#include <bit>

#include "elf/reader.h"

namespace spile::elf {
namespace {

class Collector {
 public:
  explicit Collector(const File& file) : file_(file) {
    for (const auto& s : file.segments())
      if (s.executable) code_.push_back(s);
  }

  void offer(uint64_t value) {
    for (const auto& s : code_)
      if (s.contains(LinkAddr(value))) return found_.push_back(LinkAddr(value));
  }

  void add_fixed_points() {
    offer(file_.entry().value);
    for (const int64_t tag : {DT_INIT, DT_FINI})
      if (const auto addr = file_.dynamic(tag)) offer(*addr);
  }

  /// A program without a dynamic table keeps its IRELATIVE relocations in a section only.
  Result<void> add_relocation_sections() {
    for (const auto& section : file_.sections()) {
      if (section.type != SHT_RELA || (section.flags & SHF_ALLOC) == 0) continue;
      SPILE_TRY(const auto bytes, file_.bytes(section));
      for (uint64_t i = 0; i + sizeof(Elf64_Rela) <= bytes.size(); i += sizeof(Elf64_Rela))
        add_relocation(*load_at<Elf64_Rela>(bytes, i));
    }
    return {};
  }

  /// A table of Elf64_Rela.
  Result<void> add_relocations(int64_t table_tag, int64_t size_tag) {
    const auto addr = file_.dynamic(table_tag);
    const uint64_t size = file_.dynamic(size_tag).value_or(0);
    if (!addr || size == 0) return {};
    SPILE_TRY(auto bytes, file_.bytes_from(LinkAddr(*addr)));
    if (size > bytes.size())
      return fail(ErrorCode::kCorrupt, "the relocations of {} are truncated", file_.path());
    for (uint64_t i = 0; i + sizeof(Elf64_Rela) <= size; i += sizeof(Elf64_Rela))
      add_relocation(*load_at<Elf64_Rela>(bytes, i));
    return {};
  }

  /// DT_RELR: words that only need the bias added. An even entry names one, an odd one is a bitmap
  /// of the next 63.
  Result<void> add_relr() {
    const auto addr = file_.dynamic(kDtRelr);
    const uint64_t size = file_.dynamic(kDtRelrSize).value_or(0);
    if (!addr || size == 0) return {};
    SPILE_TRY(auto bytes, file_.bytes_from(LinkAddr(*addr)));
    if (size > bytes.size())
      return fail(ErrorCode::kCorrupt, "the RELR table of {} is truncated", file_.path());
    uint64_t where = 0, budget = 0;  // no word needs two relocations
    for (const auto& s : file_.segments()) budget += s.file_size / 8;
    for (uint64_t i = 0; i + 8 <= size; i += 8) {
      const uint64_t entry = *load_at<uint64_t>(bytes, i);
      const uint64_t words = (entry & 1) == 0 ? 1 : static_cast<uint64_t>(std::popcount(entry)) - 1;
      if (words > budget)
        return fail(ErrorCode::kCorrupt, "the RELR table of {} names more words than there are",
                    file_.path());
      budget -= words;
      if ((entry & 1) == 0) {
        add_word_at(entry);
        where = entry + 8;
        continue;
      }
      for (unsigned bit = 1; bit < 64; ++bit)
        if (((entry >> bit) & 1) != 0) add_word_at(where + (bit - 1) * 8);
      where += 63 * 8;
    }
    return {};
  }

  /// With fixed addresses no relocation marks a pointer: every word may be one.
  Result<void> add_data_words() {
    for (const auto& s : file_.segments()) {
      if (s.executable) {  // an old layout: .rodata beside .text
        SPILE_TRY_VOID(add_sections_beside_code(s));
        continue;
      }
      SPILE_TRY(auto bytes, file_.bytes(s));
      add_words(bytes);
    }
    return {};
  }

  std::vector<LinkAddr> take() {
    std::ranges::sort(found_);
    found_.erase(std::ranges::unique(found_).begin(), found_.end());
    return std::move(found_);
  }

 private:
  // glibc 2.36's <elf.h> knows these; older ones do not.
  static constexpr int64_t kDtRelrSize = 35, kDtRelr = 36;

  void add_relocation(const Elf64_Rela& r) {
    switch (ELF64_R_TYPE(r.r_info)) {
      case R_X86_64_RELATIVE:
      case R_X86_64_IRELATIVE: return offer(static_cast<uint64_t>(r.r_addend));
      case R_X86_64_64:
        return offer(symbol_value(ELF64_R_SYM(r.r_info)) + static_cast<uint64_t>(r.r_addend));
      case R_X86_64_GLOB_DAT:
      case R_X86_64_JUMP_SLOT:
      case R_X86_64_COPY: return offer(symbol_value(ELF64_R_SYM(r.r_info)));
      default: return;
    }
  }

  uint64_t symbol_value(uint64_t index) {
    if (index == 0) return 0;
    if (!symbols_) {
      const auto addr = file_.dynamic(DT_SYMTAB);
      const auto bytes = addr ? file_.bytes_from(LinkAddr(*addr)) : std::span<const uint8_t>();
      symbols_ = bytes ? *bytes : std::span<const uint8_t>();
    }
    const auto symbol = load_at<Elf64_Sym>(*symbols_, index * sizeof(Elf64_Sym));
    return symbol && symbol->st_shndx != SHN_UNDEF ? symbol->st_value : 0;
  }

  /// RELR keeps the addend in place. A RELR table of a hostile file cannot cost more than 63 reads
  /// an entry.
  void add_word_at(uint64_t addr) {
    const auto* segment = file_.segment_at(LinkAddr(addr));
    if (segment == nullptr) return;
    const auto bytes = file_.bytes(*segment);
    if (!bytes) return;
    if (const auto word = load_at<uint64_t>(*bytes, addr - segment->addr.value)) offer(*word);
  }

  void add_words(std::span<const uint8_t> bytes) {
    for (uint64_t i = 0; i + 8 <= bytes.size(); i += 4) offer(*load_at<uint64_t>(bytes, i));
  }

  Result<void> add_sections_beside_code(const Segment& segment) {
    for (const auto& section : file_.sections()) {
      if (!segment.contains(section.addr) ||
          (section.flags & (SHF_ALLOC | SHF_EXECINSTR)) != SHF_ALLOC)
        continue;
      if (section.type != SHT_PROGBITS) continue;
      SPILE_TRY(const auto bytes, file_.bytes(section));
      add_words(bytes);
    }
    return {};
  }

  const File& file_;
  std::vector<Segment> code_;
  std::vector<LinkAddr> found_;
  std::optional<std::span<const uint8_t>> symbols_;
};

}  // namespace

Result<std::vector<LinkAddr>> read_code_pointers(const File& file) {
  Collector collector(file);
  collector.add_fixed_points();
  SPILE_TRY_VOID(collector.add_relocations(DT_RELA, DT_RELASZ));
  SPILE_TRY_VOID(collector.add_relocations(DT_JMPREL, DT_PLTRELSZ));
  SPILE_TRY_VOID(collector.add_relr());
  if (!file.dynamic(DT_RELA)) SPILE_TRY_VOID(collector.add_relocation_sections());
  if (!file.is_position_independent()) SPILE_TRY_VOID(collector.add_data_words());
  return collector.take();
}

}  // namespace spile::elf
