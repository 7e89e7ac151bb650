#include "session/usdt_file.h"

#include <algorithm>
#include <array>

#include "bpf/insn.h"
#include "elf/usdt_argument.h"
#include "symbols/glob.h"

namespace spile::session {
namespace {

namespace regs = bpf::x86_64_regs;

/// Where a register of elf::UsdtArgument is in struct pt_regs.
constexpr std::array kOffsets = {
    regs::kAx, regs::kCx, regs::kDx,  regs::kBx,  regs::kSp,  regs::kBp,  regs::kSi,  regs::kDi,
    regs::kR8, regs::kR9, regs::kR10, regs::kR11, regs::kR12, regs::kR13, regs::kR14, regs::kR15};

int offset_of(uint8_t number) {
  return number < kOffsets.size() ? kOffsets[number] : -1;
}

}  // namespace

Result<UsdtFile> UsdtFile::load(const std::string& path) {
  SPILE_TRY(auto opened, elf::File::open(path));
  UsdtFile file(std::move(opened));
  SPILE_TRY(file.notes_, elf::read_usdt_notes(*file.file_));
  // Names are an extra: a file whose notes of them are damaged has none.
  if (auto fields = elf::read_usdt_fields(*file.file_)) file.fields_ = std::move(*fields);
  std::ranges::stable_sort(file.notes_, {}, &elf::UsdtNote::address);
  return file;
}

std::vector<lang::UsdtSite> UsdtFile::sites(std::string_view provider, std::string_view name) {
  std::vector<lang::UsdtSite> found;
  for (const auto& note : notes_) {
    if (!symbols::glob_matches(provider, note.provider) || !symbols::glob_matches(name, note.name))
      continue;
    lang::UsdtSite site;
    site.provider = note.provider;
    site.name = note.name;
    site.address = note.address.value;
    site.semaphore = note.semaphore.value;
    for (const auto text : elf::split_usdt_arguments(note.arguments))
      site.arguments.push_back(argument(note, text));
    site.fields = fields_of(site);
    found.push_back(std::move(site));
  }
  return found;
}

std::vector<lang::UsdtField> UsdtFile::fields_of(const lang::UsdtSite& site) const {
  const auto found = fields_.find({site.provider, site.name});
  std::vector<lang::UsdtField> fields;
  if (found == fields_.end() || found->second.size() != site.arguments.size()) return fields;
  for (const elf::UsdtField& field : found->second) fields.push_back({field.type, field.name});
  return fields;
}

lang::UsdtArgument UsdtFile::argument(const elf::UsdtNote& note, std::string_view text) {
  using Place = lang::UsdtArgument::Place;
  lang::UsdtArgument result{.text = std::string(text), .place = Place::kUnreadable};
  const auto parsed = elf::parse_usdt_argument(text);
  if (!parsed) {
    result.problem = parsed.error().message;
    return result;
  }
  result.size = parsed->size;
  result.is_signed = parsed->is_signed;
  result.number = parsed->number;
  result.base = offset_of(parsed->base);
  result.index = offset_of(parsed->index);
  result.scale = parsed->scale;
  if (parsed->place == elf::UsdtArgument::Place::kConstant) result.place = Place::kConstant;
  if (parsed->place == elf::UsdtArgument::Place::kRegister) {
    result.place = Place::kRegister;
    result.base += parsed->is_high_byte ? 1 : 0;
  }
  if (parsed->place != elf::UsdtArgument::Place::kMemory) return result;
  if (!parsed->symbol.empty()) {
    const auto distance = distance_to(note, parsed->symbol);
    if (!distance) {
      result.problem = fmt::format("'{}': {}", text, distance.error().message);
      return result;
    }
    result.from_site = true;
    result.number = static_cast<int64_t>(static_cast<uint64_t>(result.number) +
                                         static_cast<uint64_t>(*distance));
  }
  result.place = Place::kMemory;
  return result;
}

/// From the tracepoint to a variable: the same wherever the file is loaded.
Result<int64_t> UsdtFile::distance_to(const elf::UsdtNote& note, std::string_view symbol) {
  if (!variables_) variables_ = elf::read_variables(*file_);
  if (!*variables_) return std::unexpected(variables_->error());
  const auto found = (*variables_)->find(symbol);
  if (found == (*variables_)->end())
    return fail(ErrorCode::kNotFound, "the file has no symbol {}{}", symbol,
                file_->section(".symtab") == nullptr ? " (it is stripped)" : "");
  if (!found->second)
    return fail(ErrorCode::kNotFound, "several variables of the file are called {}", symbol);
  return static_cast<int64_t>(found->second->address.value - note.address.value);
}

}  // namespace spile::session
