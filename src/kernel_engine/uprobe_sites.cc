#include "kernel_engine/uprobe_sites.h"

#include <algorithm>
#include <optional>

#include "elf/unwind.h"
#include "x86/decode.h"

namespace spile::kernel_engine {

using bundle::Probe;
using bundle::ProbeKind;

namespace {

constexpr size_t kMaxInsnBytes = 15;

/// The file's code from `address` on; empty where it has none.
std::span<const uint8_t> code_at(const symbols::ModuleSymbols& module, LinkAddr address) {
  const elf::Segment* segment = module.file().segment_at(address);
  if (segment == nullptr || !segment->executable) return {};
  auto bytes = module.file().bytes_from(address);
  return bytes ? *bytes : std::span<const uint8_t>();
}

/// The start of the function that holds `address`: the nearest that symbols or unwind entries tell.
std::optional<LinkAddr> function_start(const symbols::ModuleSymbols& module, LinkAddr address) {
  std::optional<LinkAddr> start;
  if (const auto symbol = module.resolve(address)) start = symbol->function->addr;
  if (const auto unwind = module.unwind()) {
    const elf::FunctionRange* range = (*unwind)->find(address);
    if (range != nullptr && (!start || range->start > *start)) start = range->start;
  }
  return start;
}

/// What the file's symbols say of the implementations: "__strlen_avx2, __strlen_evex".
std::string implementations_of(const std::string& symbol, const symbols::ModuleSymbols& module) {
  constexpr int kShown = 4;
  std::string names;
  for (const symbols::Function* f : module.match("__" + symbol + "_*")) {
    if (f->type != elf::SymbolType::kFunction || std::ranges::count(names, ',') + 1 >= kShown)
      continue;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", f->name);
  }
  return names.empty() ? "" : fmt::format(", or probe an implementation: {}", names);
}

/// An IFUNC's address is that of its resolver, which runs once, before main: refused.
Result<std::vector<LinkAddr>> addresses_of(const Probe& probe,
                                           const symbols::ModuleSymbols& module) {
  std::vector<LinkAddr> addresses;
  bool is_ifunc = false;
  for (const symbols::Function* f : module.find(probe.symbol)) {
    if (f->type == elf::SymbolType::kIfunc) {
      is_ifunc = true;
      continue;
    }
    if (probe.offset != 0 && probe.offset >= f->size)
      return fail(ErrorCode::kInvalid, "{}: {} is only {} bytes long", probe.path, probe.symbol,
                  f->size);
    addresses.push_back(f->addr + probe.offset);
  }
  if (addresses.empty() && is_ifunc) {
    return fail(ErrorCode::kUnsupported,
                "{} in {} is an IFUNC: its symbol is the resolver that picks an implementation "
                "for this CPU, not the function; trace one process with -p, where the user engine "
                "finds the one that is used{}",
                probe.symbol, probe.path, implementations_of(probe.symbol, module));
  }
  if (addresses.empty())
    return fail(ErrorCode::kNotFound, "{} has no function '{}'", probe.path, probe.symbol);
  return addresses;
}

/// A note may point anywhere. Handwritten code without symbols and unwind entries cannot be decoded
/// from a function's start: there only a nop is believed.
Result<void> check_usdt(const Probe& probe,
                        const symbols::ModuleSymbols& module,
                        LinkAddr address) {
  if (function_start(module, address)) return check_boundary(module, address);
  const auto insn = x86::decode_shape(code_at(module, address));
  if (insn && insn->kind == x86::Kind::kNop) return {};
  return fail(ErrorCode::kUnsafe,
              "{}: its note says {}, where no function is known and there is no nop", probe.name,
              address);
}

Result<FileOffset> semaphore_offset(const Probe& probe, const symbols::ModuleSymbols& module) {
  if (probe.semaphore == 0) return FileOffset(0);
  auto offset = module.file().to_offset(LinkAddr(probe.semaphore));
  if (!offset)
    return fail(ErrorCode::kUnsupported,
                "{}: its semaphore has no bytes in the file (it is in .bss), so that the kernel "
                "cannot find it; trace one process with -p",
                probe.name);
  return *offset;
}

}  // namespace

Result<void> check_boundary(const symbols::ModuleSymbols& module, LinkAddr address) {
  const std::string& path = module.file().path();
  if (code_at(module, address).empty())
    return fail(ErrorCode::kInvalid, "{}: there is no code at {}", path, address);
  const auto start = function_start(module, address);
  if (!start)
    return fail(ErrorCode::kUnsafe,
                "{}: no function is known at {}, so that nobody can say whether an instruction "
                "begins there",
                path, address);
  const auto code = code_at(module, *start);
  const auto wanted = static_cast<uint64_t>(address - *start);
  for (uint64_t at = 0; at < wanted;) {
    const auto insn =
        x86::decode_shape(code.subspan(at, std::min(kMaxInsnBytes, code.size() - at)));
    if (!insn)
      return fail(ErrorCode::kUnsafe,
                  "{}: the code at {} cannot be decoded, so that nobody can say whether an "
                  "instruction begins at {}",
                  path, *start + at, address);
    if (at + insn->length > wanted)
      return fail(ErrorCode::kInvalid, "{}: {} is inside the instruction at {}", path, address,
                  *start + at);
    at += insn->length;
  }
  return {};
}

Result<const symbols::ModuleSymbols*> SiteResolver::module(const std::string& path) {
  auto& module = modules_[path];
  if (!module) {
    SPILE_TRY(auto loaded, symbols::ModuleSymbols::load(path));
    module = std::make_unique<symbols::ModuleSymbols>(std::move(loaded));
  }
  return module.get();
}

Result<std::vector<FileSite>> SiteResolver::resolve(const Probe& probe) {
  SPILE_TRY(const symbols::ModuleSymbols* module, this->module(probe.path));
  std::vector<LinkAddr> addresses;
  if (probe.address) {
    addresses.push_back(LinkAddr(*probe.address));
  } else {
    SPILE_TRY(addresses, addresses_of(probe, *module));
  }
  SPILE_TRY(const FileOffset semaphore, semaphore_offset(probe, *module));
  std::vector<FileSite> sites;
  for (LinkAddr address : addresses) {
    auto offset = module->file().to_offset(address);
    if (!offset) return fail(ErrorCode::kInvalid, "{}: {} is not in the file", probe.path, address);
    if (probe.kind == ProbeKind::kUsdt) {
      SPILE_TRY_VOID(check_usdt(probe, *module, address));
    } else if (probe.address || probe.offset != 0) {
      SPILE_TRY_VOID(check_boundary(*module, address));
    }
    if (std::ranges::find(sites, *offset, &FileSite::offset) == sites.end())
      sites.push_back({*offset, semaphore});
  }
  return sites;
}

}  // namespace spile::kernel_engine
