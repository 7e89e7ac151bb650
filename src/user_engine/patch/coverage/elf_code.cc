#include "user_engine/patch/coverage/elf_code.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <string_view>

namespace spile::patch {
namespace {

/// DWARF pointer encodings (DW_EH_PE_*), low nibble the format, high nibble what it is relative to.
constexpr uint8_t kOmit = 0xff, kFormatMask = 0x0f, kPcRelative = 0x10, kRelativeMask = 0x70;

/// Reads numbers off bytes; failing once, fails for good.
class Reader {
 public:
  Reader(std::span<const uint8_t> bytes, uint64_t address) : bytes_(bytes), address_(address) {}

  bool ok() const { return ok_; }
  size_t at() const { return at_; }
  uint64_t address() const { return address_ + at_; }
  void seek(size_t at) {
    at_ = at;
    ok_ &= at <= bytes_.size();
  }

  template <typename T>
  T get() {
    T value{};
    if (!ok_ || bytes_.size() - at_ < sizeof value) {
      ok_ = false;
      return value;
    }
    std::memcpy(&value, &bytes_[at_], sizeof value);
    at_ += sizeof value;
    return value;
  }

  uint64_t uleb() {
    uint64_t value = 0;
    for (int shift = 0; ok_ && shift < 64; shift += 7) {
      const auto byte = get<uint8_t>();
      value |= uint64_t{byte & 0x7fu} << shift;
      if ((byte & 0x80) == 0) break;
    }
    return value;
  }

  std::string text() {
    std::string s;
    for (char c = get<char>(); ok_ && c != 0; c = get<char>()) s += c;
    return s;
  }

  uint64_t encoded(uint8_t encoding) {
    const uint64_t here = address();
    uint64_t value = 0;
    switch (encoding & kFormatMask) {
      case 0x00:
      case 0x04:
      case 0x0c: value = get<uint64_t>(); break;
      case 0x01: value = uleb(); break;
      case 0x02: value = get<uint16_t>(); break;
      case 0x03: value = get<uint32_t>(); break;
      case 0x0b: value = static_cast<uint64_t>(static_cast<int64_t>(get<int32_t>())); break;
      default: ok_ = false;
    }
    if (value != 0 && (encoding & kRelativeMask) == kPcRelative) value += here;
    return value;
  }

 private:
  std::span<const uint8_t> bytes_;
  uint64_t address_;
  size_t at_ = 0;
  bool ok_ = true;
};

class ElfReader {
 public:
  ElfReader(ElfCode& out, uint64_t base) : out_(out), bias_(base) {}

  Result<void> run() {
    const auto& file = out_.file;
    if (file.size() < sizeof header_) return fail(ErrorCode::kCorrupt, "too short for an ELF file");
    std::memcpy(&header_, file.data(), sizeof header_);
    if (std::memcmp(header_.e_ident, ELFMAG, SELFMAG) != 0 || header_.e_machine != EM_X86_64) {
      return fail(ErrorCode::kUnsupported, "not an x86-64 ELF file");
    }
    if (header_.e_type != ET_DYN) bias_ = 0;
    SPILE_TRY_VOID(read_sections());
    read_segments();
    for (const auto& s : sections_) read_section(s);
    out_.module.is_go = has_section(".gopclntab");
    out_.module.handles_faults_by_address = out_.module.is_go;
    finish();
    return {};
  }

 private:
  Result<void> read_sections() {
    const uint64_t size = uint64_t{header_.e_shnum} * sizeof(Elf64_Shdr);
    if (header_.e_shoff > out_.file.size() || out_.file.size() - header_.e_shoff < size) {
      return fail(ErrorCode::kCorrupt, "section headers lie outside the file");
    }
    sections_.resize(header_.e_shnum);
    std::memcpy(sections_.data(), &out_.file[header_.e_shoff], size);
    std::erase_if(sections_, [&](const Elf64_Shdr& s) {
      return s.sh_type == SHT_NOBITS || s.sh_offset > out_.file.size() ||
             out_.file.size() - s.sh_offset < s.sh_size;
    });
    return {};
  }

  std::span<const uint8_t> bytes_of(const Elf64_Shdr& s) const {
    return {&out_.file[s.sh_offset], s.sh_size};
  }

  bool has_section(std::string_view wanted) const {
    // By the file's own numbering: sections_ has lost some.
    Elf64_Shdr strings;
    const uint64_t at = header_.e_shoff + header_.e_shstrndx * sizeof strings;
    if (out_.file.size() < at + sizeof strings) return false;
    std::memcpy(&strings, &out_.file[at], sizeof strings);
    if (out_.file.size() < strings.sh_offset + strings.sh_size) return false;
    const auto names = bytes_of(strings);
    return std::ranges::any_of(sections_, [&](const Elf64_Shdr& s) {
      if (s.sh_name >= names.size()) return false;
      const auto* name = reinterpret_cast<const char*>(&names[s.sh_name]);
      return std::string_view(name, strnlen(name, names.size() - s.sh_name)) == wanted;
    });
  }

  /// Where the file is loaded, what kind of module it is.
  void read_segments() {
    out_.is_program = header_.e_type == ET_EXEC;
    out_.start = TargetAddr(UINT64_MAX);
    for (uint64_t i = 0; i < header_.e_phnum; ++i) {
      Elf64_Phdr p;
      if (out_.file.size() < header_.e_phoff + (i + 1) * sizeof p) return;
      std::memcpy(&p, &out_.file[header_.e_phoff + i * sizeof p], sizeof p);
      out_.is_program |= p.p_type == PT_INTERP;
      if (p.p_type != PT_LOAD) continue;
      out_.start = std::min(out_.start, TargetAddr(bias_ + p.p_vaddr));
      out_.end = std::max(out_.end, TargetAddr(bias_ + p.p_vaddr + p.p_memsz));
    }
  }

  void read_section(const Elf64_Shdr& s) {
    if (s.sh_size == 0) return;
    const TargetAddr start(bias_ + s.sh_addr);
    if (s.sh_flags & SHF_EXECINSTR) out_.module.text.push_back({start, bytes_of(s)});
    const bool data = (s.sh_flags & SHF_ALLOC) != 0 && (s.sh_flags & SHF_EXECINSTR) == 0;
    if (data && (s.sh_flags & SHF_WRITE) == 0)
      out_.module.read_only.push_back({start, bytes_of(s)});
    if (data && s.sh_type != SHT_RELA) data_.push_back(s);
    if (s.sh_type == SHT_SYMTAB || s.sh_type == SHT_DYNSYM) symbol_tables_.push_back(s);
    if (s.sh_type == SHT_RELA) read_relocations(s);
    if (data && looks_like_eh_frame(s)) eh_frames_.push_back(s);
  }

  std::string name_of(const Elf64_Shdr& s) const {
    Elf64_Shdr names;
    std::memcpy(&names, &out_.file[header_.e_shoff + header_.e_shstrndx * sizeof names],
                sizeof names);
    return reinterpret_cast<const char*>(&out_.file[names.sh_offset + s.sh_name]);
  }
  bool looks_like_eh_frame(const Elf64_Shdr& s) const { return name_of(s) == ".eh_frame"; }

  void read_relocations(const Elf64_Shdr& s) {
    Reader r(bytes_of(s), 0);
    for (uint64_t i = 0; i < s.sh_size / sizeof(Elf64_Rela); ++i) {
      const auto rela = r.get<Elf64_Rela>();
      const auto type = ELF64_R_TYPE(rela.r_info);
      if (type == R_X86_64_RELATIVE || type == R_X86_64_IRELATIVE || type == R_X86_64_64) {
        pointers_.push_back(TargetAddr(bias_ + static_cast<uint64_t>(rela.r_addend)));
      }
    }
  }

  bool is_text(TargetAddr a) const {
    for (const Bytes& t : out_.module.text) {
      if (t.contains(a)) return true;
    }
    return false;
  }

  void read_symbols(const Elf64_Shdr& s) {
    Elf64_Shdr strings;
    std::memcpy(&strings, &out_.file[header_.e_shoff + s.sh_link * sizeof strings], sizeof strings);
    Reader r(bytes_of(s), 0);
    for (uint64_t i = 0; i < s.sh_size / sizeof(Elf64_Sym); ++i) {
      const auto symbol = r.get<Elf64_Sym>();
      const auto type = ELF64_ST_TYPE(symbol.st_info);
      if ((type != STT_FUNC && type != STT_GNU_IFUNC) || symbol.st_shndx == SHN_UNDEF) continue;
      const TargetAddr start(bias_ + symbol.st_value);
      if (!is_text(start)) continue;
      const char* name =
          reinterpret_cast<const char*>(&out_.file[strings.sh_offset + symbol.st_name]);
      out_.module.functions.push_back({start, start + symbol.st_size, name});
      out_.symbols.push_back(start);
    }
  }

  void read_pointers(const Elf64_Shdr& s) {
    const auto bytes = bytes_of(s);
    for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
      uint64_t value;
      std::memcpy(&value, &bytes[i], sizeof value);
      if (is_text(TargetAddr(bias_ + value))) pointers_.push_back(TargetAddr(bias_ + value));
    }
  }

  struct Cie {
    uint8_t pointer_encoding = 0, lsda_encoding = kOmit;
    bool augmented = false;
  };

  Cie read_cie(Reader r) {
    Cie cie;
    r.get<uint8_t>();  // version
    const std::string augmentation = r.text();
    r.uleb();
    r.uleb();
    r.uleb();
    if (augmentation.empty() || augmentation[0] != 'z') return cie;
    cie.augmented = true;
    r.uleb();
    for (const char c : augmentation.substr(1)) {
      if (c == 'R') cie.pointer_encoding = r.get<uint8_t>();
      if (c == 'L') cie.lsda_encoding = r.get<uint8_t>();
      if (c == 'P') r.encoded(r.get<uint8_t>());
    }
    return cie;
  }

  void read_eh_frame(const Elf64_Shdr& s) {
    Reader r(bytes_of(s), bias_ + s.sh_addr);
    std::map<size_t, Cie> cies;
    while (r.ok() && r.at() < s.sh_size) {
      const size_t length = r.get<uint32_t>();
      if (length == 0 || length == 0xffffffff) break;
      const size_t body = r.at();
      const auto cie_pointer = r.get<uint32_t>();
      if (cie_pointer == 0) {
        cies[body - 4] = read_cie(r);
      } else if (const auto cie = cies.find(body - cie_pointer); cie != cies.end()) {
        read_fde(r, cie->second);
      }
      r.seek(body + length);
    }
  }

  void read_fde(Reader r, const Cie& cie) {
    const TargetAddr start(r.encoded(cie.pointer_encoding));
    const uint64_t size = r.encoded(cie.pointer_encoding & kFormatMask);
    if (!r.ok() || !is_text(start)) return;
    out_.module.functions.push_back({start, start + size, {}});
    out_.entries.push_back(start);
    if (!cie.augmented || cie.lsda_encoding == kOmit) return;
    r.uleb();
    if (const uint64_t lsda = r.encoded(cie.lsda_encoding); r.ok() && lsda != 0)
      read_lsda(lsda, start);
  }

  std::optional<Reader> reader_at(uint64_t address) const {
    for (const auto& s : data_) {
      const uint64_t start = bias_ + s.sh_addr;
      if (address >= start && address < start + s.sh_size) {
        return Reader(bytes_of(s).subspan(address - start), address);
      }
    }
    return std::nullopt;
  }

  /// The language-specific data of one function (Itanium C++ ABI exception tables): keeps the
  /// landing pads.
  void read_lsda(uint64_t address, TargetAddr function) {
    auto r = reader_at(address);
    if (!r) return;
    const auto base_encoding = r->get<uint8_t>();
    const uint64_t base = base_encoding == kOmit ? function.value : r->encoded(base_encoding);
    if (r->get<uint8_t>() != kOmit) r->uleb();
    const auto encoding = r->get<uint8_t>();
    const size_t end = r->uleb() + r->at();
    while (r->ok() && r->at() < end) {
      r->encoded(encoding);
      r->encoded(encoding);
      const uint64_t pad = r->encoded(encoding);
      r->uleb();
      if (pad != 0) pointers_.push_back(TargetAddr(base + pad));
    }
  }

  void finish() {
    sort_by_start(out_.module.text);
    sort_by_start(out_.module.read_only);
    for (const auto& s : symbol_tables_) read_symbols(s);
    for (const auto& s : eh_frames_) read_eh_frame(s);
    // Elsewhere relocations say where pointers are.
    if (header_.e_type == ET_EXEC) {
      for (const auto& s : data_) read_pointers(s);
    }
    sort_by_start(out_.module.functions);
    out_.entries.insert(out_.entries.end(), out_.symbols.begin(), out_.symbols.end());
    sort_unique(out_.symbols);
    sort_unique(out_.entries);
    std::erase_if(pointers_, [this](TargetAddr a) { return !is_text(a); });
    sort_unique(pointers_);
    out_.module.code_pointers = std::move(pointers_);
  }

  template <typename T>
  static void sort_by_start(std::vector<T>& list) {
    std::stable_sort(list.begin(), list.end(),
                     [](const T& a, const T& b) { return a.start < b.start; });
  }
  static void sort_unique(std::vector<TargetAddr>& list) {
    std::sort(list.begin(), list.end());
    list.erase(std::unique(list.begin(), list.end()), list.end());
  }

  ElfCode& out_;
  uint64_t bias_;
  Elf64_Ehdr header_{};
  std::vector<Elf64_Shdr> sections_, symbol_tables_, eh_frames_, data_;
  std::vector<TargetAddr> pointers_;
};

}  // namespace

Result<ElfCode> read_elf_code(const std::string& path, uint64_t base) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return fail(ErrorCode::kNotFound, "cannot open {}", path);
  ElfCode out;
  out.file.assign(std::istreambuf_iterator<char>(in), {});
  if (auto ok = ElfReader(out, base).run(); !ok) return forward(ok, "read {}", path);
  return out;
}

}  // namespace spile::patch
