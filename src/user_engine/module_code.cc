#include "user_engine/module_code.h"

#include <elf.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "abi/hit_frame.h"
#include "elf/file.h"
#include "elf/unwind.h"

namespace spile::user_engine {

using patch::Bytes;
using patch::Function;

Result<ModuleImage> ModuleImage::load(const target::Target& target, const target::Module& module) {
  if (module.host_path.empty()) {
    return fail(
        ErrorCode::kNotFound,
        "{}: the file behind it cannot be opened from here{}, and its memory alone does not "
        "tell enough (a Go program, or code that cannot be read)",
        module.path, module.deleted ? " (it has been removed or replaced; root can)" : "");
  }
  ModuleImage image;
  image.module_ = module;
  symbols::LoadOptions options;
  SPILE_TRY(const pid_t tid, target.live_thread());
  std::string root = fmt::format("/proc/{}/root", tid);
  options.root = root;
  options.path_in_root = module.path;
  SPILE_TRY(auto symbols, symbols::ModuleSymbols::load(module.host_path, options));
  image.symbols_ = std::make_unique<symbols::ModuleSymbols>(std::move(symbols));
  image.is_go_ = image.symbols_->file().is_go();
  image.code_.is_go = image.is_go_;
  // Go turns a fault at a known address into a panic: a displaced instruction faults at an address
  // that it does not know.
  image.code_.handles_faults_by_address =
      image.is_go_ || module.path.find("/libjvm.so") != std::string::npos;
  SPILE_TRY_VOID(image.read_segments());
  SPILE_TRY_VOID(image.collect_functions());
  SPILE_TRY_VOID(image.collect_code_pointers());
  image.reserve_rseq_sections(target);
  image.reserve_signal_frames();
  std::ranges::sort(image.code_.reserved, {}, &patch::Reserved::start);
  return image;
}

/// Go's linker puts the file's headers and its notes in front of the code, in one segment: text,
/// part of which looks like jumps.
void ModuleImage::leave_out_headers(patch::Bytes& text) const {
  std::optional<TargetAddr> first;
  for (const elf::Section& section : symbols_->file().sections()) {
    const TargetAddr start = module_.bias.to_target(section.addr);
    const bool is_code = (section.flags & SHF_EXECINSTR) != 0 && text.contains(start);
    if (is_code && (!first || start < *first)) first = start;
  }
  if (!first) return;
  text.bytes = text.bytes.subspan(static_cast<size_t>(*first - text.start));
  text.start = *first;
}

Result<void> ModuleImage::read_segments() {
  const elf::File& file = symbols_->file();
  for (const elf::Segment& segment : file.segments()) {
    if (segment.writable || segment.file_size == 0) continue;
    SPILE_TRY(auto bytes, file.bytes(segment));
    Bytes part{module_.bias.to_target(segment.addr), bytes};
    // Jump tables lie in read-only data or, with some linkers, between the functions.
    code_.read_only.push_back(part);
    if (!segment.executable) continue;
    if (is_go_) leave_out_headers(part);
    code_.text.push_back(part);
  }
  if (code_.text.empty())
    return fail(ErrorCode::kCorrupt, "{}: no executable segment", module_.path);
  return {};
}

/// Symbols and unwind entries: the latter know static functions of stripped files and the ends of
/// functions.
Result<void> ModuleImage::collect_functions() {
  SPILE_TRY(const elf::UnwindTable* unwind, symbols_->unwind());
  code_.functions.reserve(symbols_->functions().size() + unwind->functions().size());
  for (const symbols::Function& f : symbols_->functions()) {
    // A guessed end says nothing that the planner does not see itself.
    LinkAddr end = f.size_is_guessed ? f.addr : f.end();
    code_.functions.push_back(
        {module_.bias.to_target(f.addr), module_.bias.to_target(end), f.name});
  }
  const auto symbols = static_cast<ptrdiff_t>(code_.functions.size());
  for (const elf::FunctionRange& range : unwind->functions()) {
    code_.functions.push_back(
        {module_.bias.to_target(range.start), module_.bias.to_target(range.end), {}});
  }
  // Each of the two is sorted, and of one start the symbols come first.
  std::ranges::inplace_merge(code_.functions, code_.functions.begin() + symbols, {},
                             &Function::start);
  // But for a file whose addresses wrap around when the bias is added.
  if (!std::ranges::is_sorted(code_.functions, {}, &Function::start))
    std::ranges::stable_sort(code_.functions, {}, &Function::start);
  return {};
}

Result<void> ModuleImage::collect_code_pointers() {
  SPILE_TRY(auto pointers, symbols_->code_pointers());
  for (LinkAddr p : pointers) code_.code_pointers.push_back(module_.bias.to_target(p));
  SPILE_TRY(const elf::UnwindTable* unwind, symbols_->unwind());
  SPILE_TRY(auto pads, unwind->all_landing_pads());
  for (LinkAddr p : pads) code_.code_pointers.push_back(module_.bias.to_target(p));
  if (is_go_) add_goroutine_returns();
  std::ranges::sort(code_.code_pointers);
  auto tail = std::ranges::unique(code_.code_pointers);
  code_.code_pointers.erase(tail.begin(), tail.end());
  return {};
}

/// Where a goroutine's first function returns to: one byte into runtime.goexit, an address that the
/// runtime computes (newproc1, runtime/proc.go).
void ModuleImage::add_goroutine_returns() {
  for (const char* name : {"runtime.goexit", "runtime.goexit.abi0"}) {
    for (const symbols::Function* f : symbols_->find(name))
      code_.code_pointers.push_back(module_.bias.to_target(f->addr) + 1);
  }
}

namespace {

/// The kernel's struct rseq_cs.
struct RseqDescriptor {
  uint32_t version, flags;
  uint64_t start, length, abort;
};
constexpr uint64_t kMaxRseqBytes = 4096;

}  // namespace

void ModuleImage::reserve_rseq(uint64_t start, uint64_t length, uint64_t abort) {
  code_.reserved.push_back(
      {TargetAddr(start), TargetAddr(start + length), "inside a restartable sequence (rseq)"});
  code_.reserved.push_back({TargetAddr(abort - 4), TargetAddr(abort + 1),
                            "the abort handler of a restartable sequence (rseq)"});
}

/// An image of memory has no sections, so descriptors are known by what they hold: two addresses of
/// the module's code, the second outside of the sequence that the first begins. What only looks
/// like one costs a refusal.
void ModuleImage::reserve_rseq_by_contents(const target::Target& target) {
  const auto is_code = [&](uint64_t a) {
    const target::Segment* segment = module_.segment_at(TargetAddr(a));
    return segment != nullptr && segment->exec;
  };
  for (const target::Segment& segment : module_.segments) {
    if (segment.exec || !segment.read) continue;
    std::vector<uint8_t> bytes(static_cast<size_t>(segment.end - segment.start));
    bytes.resize(target.memory().read_some(segment.start, bytes));
    for (size_t at = 0; at + sizeof(RseqDescriptor) <= bytes.size(); at += sizeof(uint64_t)) {
      RseqDescriptor d;
      std::memcpy(&d, &bytes[at], sizeof d);
      bool is_one = d.version == 0 && d.length != 0 && d.length <= kMaxRseqBytes &&
                    is_code(d.start) && is_code(d.abort) &&
                    d.abort - d.start >= d.length;  // unsigned: also behind the start
      if (is_one) reserve_rseq(d.start, d.length, d.abort);
    }
  }
}

/// Restartable sequences: the kernel compares rip with [start, start + length) and checks four
/// bytes before the abort handler. The descriptors are read from memory: the loader has relocated
/// them there.
void ModuleImage::reserve_rseq_sections(const target::Target& target) {
  if (is_from_memory()) return reserve_rseq_by_contents(target);
  for (const elf::Section& section : symbols_->file().sections()) {
    if (section.name != "__rseq_cs" && section.name != ".data.rseq" && section.name != "rseq_cs")
      continue;
    uint64_t count = std::min<uint64_t>(section.size / sizeof(RseqDescriptor), 4096);
    for (uint64_t i = 0; i < count; i++) {
      auto at = module_.bias.to_target(section.addr + i * sizeof(RseqDescriptor));
      auto d = target.memory().read_value<RseqDescriptor>(at);
      if (!d || d->start == 0 || d->length > kMaxRseqBytes) continue;
      reserve_rseq(d->start, d->length, d->abort);
    }
  }
}

/// __restore_rt and the like: unwinders know them by their bytes.
void ModuleImage::reserve_signal_frames() {
  auto unwind = symbols_->unwind();
  if (!unwind) return;
  for (const elf::FunctionRange& range : (*unwind)->functions()) {
    if (!range.is_signal_frame) continue;
    code_.reserved.push_back({module_.bias.to_target(range.start),
                              module_.bias.to_target(range.end),
                              "the return from a signal handler"});
  }
}

std::span<const uint8_t> ModuleImage::original(TargetAddr at, size_t max_bytes) const {
  for (const Bytes& text : code_.text) {
    if (!text.contains(at)) continue;
    auto offset = static_cast<size_t>(at - text.start);
    return text.bytes.subspan(offset, std::min(max_bytes, text.bytes.size() - offset));
  }
  return {};
}

FileOffset ModuleImage::file_offset(TargetAddr at) const {
  return symbols_->file().to_offset(module_.bias.to_link(at)).value_or(FileOffset(0));
}

ModuleImage::Start ModuleImage::function_start(TargetAddr at) const {
  const LinkAddr link = module_.bias.to_link(at);
  auto unwind = symbols_->unwind();
  const elf::FunctionRange* range = unwind ? (*unwind)->find(link) : nullptr;
  if (link == symbols_->file().entry()) return Start::kNone;
  if (range != nullptr)
    return range->start == link && range->starts_at_call ? Start::kCertain : Start::kNone;
  auto resolved = symbols_->resolve(link);
  bool is_start = resolved && resolved->offset == 0 &&
                  resolved->function->type == elf::SymbolType::kFunction &&
                  resolved->function->name.find(".cold") == std::string_view::npos;
  return is_start ? Start::kLikely : Start::kNone;
}

namespace {

/// What cgo, the race detector and BoringCrypto bring along.
bool comes_from_c(const symbols::Function& function) {
  constexpr std::array<std::string_view, 4> kBeginnings = {"x_cgo_", "_Z", "__", "_goboringcrypto"};
  return std::ranges::any_of(kBeginnings,
                             [&](std::string_view b) { return function.name.starts_with(b); });
}

}  // namespace

/// Functions of C in a Go program run on stacks of the system; what the linker of Go itself has put
/// in has no unwind table, though.
patch::GoStack ModuleImage::hit_stack(TargetAddr at) const {
  const patch::GoStack ordinary{abi::kMaxHitStackBytes, false};
  if (!is_go_) return ordinary;
  auto unwind = symbols_->unwind();
  if (unwind && (*unwind)->find(module_.bias.to_link(at)) != nullptr) return ordinary;
  if (!go_stacks_) {
    const bool c_is_known = unwind && !(*unwind)->functions().empty();
    const bool has_c = std::ranges::any_of(symbols_->functions(), comes_from_c);
    go_stacks_ = std::make_unique<patch::GoStacks>(code_, has_c && !c_is_known);
  }
  return go_stacks_->at(at);
}

std::string ModuleImage::name_of(TargetAddr at) const {
  auto resolved = symbols_->resolve(module_.bias.to_link(at));
  if (!resolved) return {};
  return resolved->offset == 0 ? std::string(resolved->function->name)
                               : fmt::format("{}+{}", resolved->function->name, resolved->offset);
}

}  // namespace spile::user_engine
