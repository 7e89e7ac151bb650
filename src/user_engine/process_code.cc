#include "user_engine/process_code.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <unordered_set>

#include "elf/bound_slots.h"
#include "elf/unwind.h"

namespace spile::user_engine {

using patch::CodeMap;

namespace {

constexpr uint8_t kPushImm32 = 0x68;
/// A file of another kind than ours is not searched: nothing has that many relocations.
constexpr uint64_t kMaxRelocations = 1 << 22;
/// The data of larger modules are not searched for tables of functions.
constexpr size_t kMaxTableWords = size_t{8} << 20;

template <typename T>
std::optional<T> value_at(std::span<const uint8_t> bytes, uint64_t offset) {
  if (bytes.size() < sizeof(T) || offset > bytes.size() - sizeof(T)) return std::nullopt;
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof value);
  return value;
}

std::span<const uint8_t> dynamic_bytes(const elf::File& file, int64_t tag) {
  const auto address = file.dynamic(tag);
  if (!address) return {};
  const auto bytes = file.bytes_from(LinkAddr(*address));
  return bytes ? *bytes : std::span<const uint8_t>();
}

/// Of data and of functions that are bound by name.
std::vector<Elf64_Rela> relocations_of(const elf::File& file) {
  std::vector<Elf64_Rela> found;
  for (const auto& [tag, size_tag] :
       {std::pair{DT_RELA, DT_RELASZ}, std::pair{DT_JMPREL, DT_PLTRELSZ}}) {
    const auto table = dynamic_bytes(file, tag);
    const uint64_t count = std::min({file.dynamic(size_tag).value_or(0) / sizeof(Elf64_Rela),
                                     kMaxRelocations, table.size() / sizeof(Elf64_Rela)});
    const size_t before = found.size();
    found.resize(before + count);
    if (count > 0) std::memcpy(&found[before], table.data(), count * sizeof(Elf64_Rela));
  }
  return found;
}

/// "" where it is out of the tables.
std::string symbol_of(const elf::File& file, const Elf64_Rela& relocation) {
  const auto symbol = value_at<Elf64_Sym>(dynamic_bytes(file, DT_SYMTAB),
                                          ELF64_R_SYM(relocation.r_info) * sizeof(Elf64_Sym));
  if (!symbol) return {};
  const auto names = dynamic_bytes(file, DT_STRTAB);
  if (symbol->st_name >= names.size()) return {};
  const auto* begin = reinterpret_cast<const char*>(names.data()) + symbol->st_name;
  return std::string(begin, strnlen(begin, names.size() - symbol->st_name));
}

}  // namespace

// ---- images
// ---------------------------------------------------------------------------------------------------

Result<ProcessImages> ProcessImages::open(const target::Target& target) {
  ProcessImages images;
  images.target_ = &target;
  SPILE_TRY(images.modules_, target.modules());
  return images;
}

Result<ModuleImage*> ProcessImages::image_of(const target::Module& module) {
  for (const auto& image : images_) {
    if (image->module().start == module.start) return image.get();
  }
  SPILE_TRY(auto image, ModuleImage::load(*target_, module));
  images_.push_back(std::make_unique<ModuleImage>(std::move(image)));
  return images_.back().get();
}

const target::Module* ProcessImages::module_at(TargetAddr at) const {
  for (const target::Module& m : modules_) {
    if (at >= m.start && at < m.end) return &m;
  }
  return nullptr;
}

ModuleImage* ProcessImages::image_at(TargetAddr at) {
  const target::Module* module = module_at(at);
  if (module == nullptr) return nullptr;
  auto image = image_of(*module);
  return image ? *image : nullptr;
}

// ---- code
// -----------------------------------------------------------------------------------------------------

const CodeMap* ProcessCode::code_at(TargetAddr at) {
  const ModuleImage* image = images_.image_at(at);
  if (image == nullptr) return nullptr;
  auto& map = maps_[image];
  if (!map) map = std::make_unique<CodeMap>(image->code());
  return map.get();
}

std::vector<TargetAddr> ProcessCode::landing_pads(TargetAddr function) {
  const ModuleImage* image = images_.image_at(function);
  if (image == nullptr) return {};
  const LoadBias bias = image->module().bias;
  auto unwind = image->symbols().unwind();
  if (!unwind) return {};
  const elf::FunctionRange* range = (*unwind)->find(bias.to_link(function));
  if (range == nullptr || !range->lsda) return {};
  auto pads = (*unwind)->landing_pads(*range);
  if (!pads) return {};
  std::vector<TargetAddr> targets;
  for (const LinkAddr pad : *pads) targets.push_back(bias.to_target(pad));
  return targets;
}

std::vector<TargetAddr> ProcessCode::slot_targets(TargetAddr slot) {
  const auto held = target_.memory().read_value<uint64_t>(slot);
  if (!held) return {};
  const TargetAddr target(*held);
  const ModuleImage* image = images_.image_at(target);
  const std::string name =
      image == nullptr ? name_in_relocation(slot) : unbound_name(*image, slot, target);
  if (image == nullptr && name.empty()) return {};
  return name.empty() ? std::vector{target} : exported(name);
}

/// A word in memory that the process cannot write, or one that a relocation for linking names.
bool ProcessCode::is_loaders_slot(TargetAddr slot) {
  const target::Module* module = images_.module_at(slot);
  if (module == nullptr) return false;
  const target::Segment* segment = module->segment_at(slot);
  if (segment != nullptr && !segment->write) return true;
  return loaders_slots(*module).contains(slot.value);
}

/// Not R_X86_64_64: variables that begin with the address of a function have it too.
const std::set<uint64_t>& ProcessCode::loaders_slots(const target::Module& module) {
  const auto [entry, is_new] = loaders_slots_.try_emplace(module.start.value);
  if (!is_new) return entry->second;
  auto file = elf::File::open(module.host_path);
  if (!file) return entry->second;
  for (const Elf64_Rela& relocation : relocations_of(*file)) {
    const auto type = ELF64_R_TYPE(relocation.r_info);
    if (type == R_X86_64_JUMP_SLOT || type == R_X86_64_GLOB_DAT || type == R_X86_64_IRELATIVE)
      entry->second.insert(module.bias.to_target(LinkAddr(relocation.r_offset)).value);
  }
  if (!file->dynamic(DT_RELA) && !file->dynamic(DT_JMPREL)) {
    auto bound = elf::read_bound_slots(*file);
    if (!bound) return entry->second;
    for (const elf::BoundSlot& b : *bound)
      entry->second.insert(module.bias.to_target(b.slot).value);
  }
  return entry->second;
}

std::vector<TargetAddr> ProcessCode::pointer_targets(const patch::PointerPath& path) {
  if (!path.base) return {};
  TargetAddr value = *path.base;
  for (const int64_t offset : path.offsets) {
    const auto word = target_.memory().read_value<uint64_t>(value + static_cast<uint64_t>(offset));
    if (!word) return {};
    value = TargetAddr(*word);
  }
  return {value};
}

/// A table may begin with words that are no functions: a version, a size, a name.
const std::vector<TargetAddr>& ProcessCode::table_targets(TargetAddr at, int64_t offset) {
  constexpr int64_t kHeaderWords = 6, kWordBytes = 8;
  static const std::vector<TargetAddr> kNone;
  const ModuleImage* image = images_.image_at(at);
  if (image == nullptr || offset < 0 || offset % kWordBytes != 0) return kNone;
  const auto [entry, is_new] = table_targets_.try_emplace({image, offset});
  if (!is_new) return entry->second;
  std::unordered_set<uint64_t> seen;
  for (int64_t header = 0; header <= kHeaderWords; ++header) {
    const int64_t index = offset / kWordBytes - header;
    for (const FunctionTable& table : tables_of(*image)) {
      if (index < 0 || index >= static_cast<int64_t>(table.size())) continue;
      const TargetAddr function = table[static_cast<size_t>(index)];
      if (seen.insert(function.value).second) entry->second.push_back(function);
    }
  }
  return entry->second;
}

const std::vector<ProcessCode::FunctionTable>& ProcessCode::tables_of(const ModuleImage& image) {
  const auto [entry, is_new] = tables_.try_emplace(&image);
  if (!is_new) return entry->second;
  const CodeMap* map = code_at(image.code().text.front().start);
  for (const target::Segment& segment : image.module().segments) {
    if (map != nullptr && segment.read && !segment.exec) find_tables(segment, *map, entry->second);
  }
  return entry->second;
}

void ProcessCode::find_tables(const target::Segment& segment,
                              const CodeMap& map,
                              std::vector<FunctionTable>& tables) const {
  std::vector<uint64_t> words((segment.end - segment.start) / sizeof(uint64_t));
  auto bytes = std::as_writable_bytes(std::span(words));
  if (words.size() > kMaxTableWords ||
      !target_.memory().read(segment.start,
                             {reinterpret_cast<uint8_t*>(bytes.data()), bytes.size()}))
    return;
  bool is_running = false;
  for (const uint64_t word : words) {
    const patch::FunctionSpan* function = map.function_at(TargetAddr(word));
    const bool is_function = function != nullptr && function->start.value == word;
    if (is_function && !is_running) tables.emplace_back();
    if (is_function) tables.back().push_back(TargetAddr(word));
    is_running = is_function;
  }
}

/// Until the loader has bound it, a word leads back to its stub, which pushes the number of its
/// relocation: push $n; jmp plt0. That it is one is certain where the relocation names this very
/// word.
std::string ProcessCode::unbound_name(const ModuleImage& image,
                                      TargetAddr slot,
                                      TargetAddr stub) const {
  constexpr size_t kStubBytes = x86::kEndbr64.size() + 5;
  auto bytes = image.original(stub, kStubBytes);
  if (bytes.size() < kStubBytes) return {};
  if (std::equal(x86::kEndbr64.begin(), x86::kEndbr64.end(), bytes.begin()))
    bytes = bytes.subspan(x86::kEndbr64.size());
  if (bytes[0] != kPushImm32) return {};
  const auto index = value_at<uint32_t>(bytes, 1);
  const elf::File& file = image.symbols().file();
  const auto entry = value_at<Elf64_Rela>(dynamic_bytes(file, DT_JMPREL),
                                          uint64_t{index.value_or(0)} * sizeof(Elf64_Rela));
  if (!index || !entry || ELF64_R_TYPE(entry->r_info) != R_X86_64_JUMP_SLOT ||
      image.module().bias.to_target(LinkAddr(entry->r_offset)) != slot)
    return {};
  return symbol_of(file, *entry);
}

/// Of a word that the loader has not filled yet: it leads nowhere.
std::string ProcessCode::name_in_relocation(TargetAddr slot) const {
  const target::Module* module = images_.module_at(slot);
  if (module == nullptr) return {};
  auto file = elf::File::open(module->host_path);
  if (!file) return {};
  for (const Elf64_Rela& relocation : relocations_of(*file)) {
    const auto type = ELF64_R_TYPE(relocation.r_info);
    if ((type == R_X86_64_JUMP_SLOT || type == R_X86_64_GLOB_DAT) &&
        module->bias.to_target(LinkAddr(relocation.r_offset)) == slot)
      return symbol_of(*file, relocation);
  }
  return {};
}

const std::vector<TargetAddr>& ProcessCode::exported(const std::string& name) {
  const auto [entry, is_new] = exports_.try_emplace(name);
  if (!is_new) return entry->second;
  for (const target::Module& module : images_.modules()) add_exports(module, name, entry->second);
  std::ranges::sort(entry->second);
  const auto tail = std::ranges::unique(entry->second);
  entry->second.erase(tail.begin(), tail.end());
  return entry->second;
}

void ProcessCode::add_exports(const target::Module& module,
                              const std::string& name,
                              std::vector<TargetAddr>& found) {
  auto& file = files_[module.start.value];
  if (!file) {
    auto opened = elf::File::open(module.host_path);
    if (!opened) return;
    file = std::make_unique<elf::File>(std::move(*opened));
    if (auto symbols = elf::read_symbols(*file)) symbols_[module.start.value] = std::move(*symbols);
  }
  for (const elf::Symbol& symbol : symbols_[module.start.value]) {
    if (symbol.binding == elf::Binding::kLocal || symbol.name != name) continue;
    if (symbol.type == elf::SymbolType::kIfunc) {
      for (const TargetAddr a : chosen_by(module, *file, symbol.addr)) found.push_back(a);
    } else {
      found.push_back(module.bias.to_target(symbol.addr));
    }
  }
}

/// What an IFUNC's resolver has chosen, where the module itself uses it: a word that the loader has
/// filled at its start.
std::vector<TargetAddr> ProcessCode::chosen_by(const target::Module& module,
                                               const elf::File& file,
                                               LinkAddr resolver) const {
  std::vector<TargetAddr> found;
  for (const Elf64_Rela& relocation : relocations_of(file)) {
    const bool chosen = ELF64_R_TYPE(relocation.r_info) == R_X86_64_IRELATIVE &&
                        static_cast<uint64_t>(relocation.r_addend) == resolver.value;
    if (!chosen) continue;
    const auto held =
        target_.memory().read_value<uint64_t>(module.bias.to_target(LinkAddr(relocation.r_offset)));
    if (held && *held != module.bias.to_target(resolver).value) found.push_back(TargetAddr(*held));
  }
  return found;
}

}  // namespace spile::user_engine
