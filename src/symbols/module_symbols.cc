#include "symbols/module_symbols.h"

#include <algorithm>
#include <functional>
#include <tuple>
#include <utility>

#include "elf/code_pointers.h"
#include "elf/debug_file.h"
#include "symbols/glob.h"
#include "symbols/nearest.h"

namespace spile::symbols {
namespace {

/// How far resolve() looks back for a function that encloses others. Only hostile files nest
/// deeper.
constexpr int kMaxNesting = 4096;

uint32_t hash_of(std::string_view name) {
  return static_cast<uint32_t>(std::hash<std::string_view>{}(name));
}

bool has_symtab(const elf::File& file) {
  const auto* section = file.section(".symtab");
  return section != nullptr && section->size != 0;
}

/// A name and the version that was asked for, if any.
struct Wanted {
  std::string_view name, version;
};

Wanted split_version(std::string_view name) {
  const auto at = name.find('@');
  if (at == std::string_view::npos || at == 0) return {name, {}};
  const size_t skip = name.substr(at).starts_with("@@") ? 2 : 1;
  return {name.substr(0, at), name.substr(at + skip)};
}

bool is_label(const Function& f) {
  return f.type == elf::SymbolType::kLabel;
}

/// The same symbol from .symtab and .dynsym. Only one of them may know the version.
bool is_same(const Function& a, const Function& b) {
  return a.addr == b.addr && a.name == b.name && (a.version == b.version || a.version.empty());
}

/// Which of several names of one address people know it by: smaller is better.
auto preference(const Function& f) {
  return std::tuple(is_label(f), f.binding == elf::Binding::kLocal, !f.is_default_version,
                    f.name.starts_with('_'), f.name.size());
}

}  // namespace

// ---- loading
// -----------------------------------------------------------------------------------------------------

Result<ModuleSymbols> ModuleSymbols::load(const std::string& path, LoadOptions options) {
  SPILE_TRY(auto file, elf::File::open(path));
  return load(std::move(file), std::move(options));
}

Result<ModuleSymbols> ModuleSymbols::load(elf::File file, LoadOptions options) {
  ModuleSymbols module;
  module.file_ = std::make_unique<elf::File>(std::move(file));
  SPILE_TRY(const auto own, elf::read_symbols(*module.file_));
  module.add(own);
  module.has_full_symbols_ = has_symtab(*module.file_);
  if (!module.has_full_symbols_ && options.use_debug_files) {
    const auto& path = options.path_in_root.empty() ? module.file_->path() : options.path_in_root;
    module.add_debug_symbols(options.root, path);
  }
  module.index();
  return module;
}

/// What a separate file says is welcome, not needed: a damaged one counts as none.
void ModuleSymbols::add_debug_symbols(const std::string& root, const std::string& path_in_root) {
  if (auto debug = elf::open_debug_file(*file_, root, path_in_root); debug && has_symtab(*debug)) {
    debug_ = std::make_unique<elf::File>(std::move(*debug));
  } else if (auto mini = elf::open_gnu_debugdata(*file_); mini && *mini && has_symtab(**mini)) {
    debug_ = std::make_unique<elf::File>(std::move(**mini));
  } else {
    return;
  }
  const auto symbols = elf::read_symbols(*debug_, *file_);
  if (!symbols) return;
  add(*symbols);
  has_full_symbols_ = true;
}

void ModuleSymbols::add(const std::vector<elf::Symbol>& symbols) {
  functions_.reserve(functions_.size() + symbols.size());
  for (const auto& s : symbols)
    functions_.push_back(
        {s.name, s.version, s.addr, s.size, false, s.type, s.binding, s.is_default_version});
}

void ModuleSymbols::index() {
  // Within one name those with a version come last, so that is_same() sees the pair (without, with)
  // in this order.
  std::ranges::sort(functions_, [](const Function& a, const Function& b) {
    return std::tie(a.addr, a.name, a.version, b.size) <
           std::tie(b.addr, b.name, b.version, a.size);
  });
  // Keep the last of each run of equals: it has the version; take over a size that only the other
  // one knows.
  size_t kept = 0;
  for (size_t i = 0; i < functions_.size(); ++i) {
    if (kept > 0 && is_same(functions_[kept - 1], functions_[i])) {
      const uint64_t size = std::max(functions_[kept - 1].size, functions_[i].size);
      functions_[kept - 1] = functions_[i];
      functions_[kept - 1].size = size;
    } else {
      functions_[kept++] = functions_[i];
    }
  }
  functions_.resize(kept);
  complete_sizes();

  by_name_.reserve(kept);
  reach_.reserve(kept);
  for (uint32_t i = 0; i < kept; ++i) {
    by_name_.emplace_back(hash_of(functions_[i].name), i);
    reach_.push_back(std::max(functions_[i].end().value, i == 0 ? 0 : reach_[i - 1]));
  }
  std::ranges::sort(by_name_);
}

void ModuleSymbols::complete_sizes() {
  std::optional<LinkAddr> next;  // the start of the next function at a higher address
  for (size_t i = functions_.size(); i-- > 0;) {
    auto& f = functions_[i];
    if (i + 1 < functions_.size() && functions_[i + 1].addr > f.addr) next = functions_[i + 1].addr;
    const auto& segment = *file_->segment_at(f.addr);  // read_symbols() kept no other
    const uint64_t room = segment.mem_size - (f.addr.value - segment.addr.value);
    if (f.size == 0) {
      f.size =
          guessed_size(f.addr, next && *next < f.addr + room ? next->value - f.addr.value : room);
      f.size_is_guessed = true;
    }
    f.size = std::min(f.size, room);
  }
}

/// A function without a size ends where its FDE does, at the latest where the next one starts.
uint64_t ModuleSymbols::guessed_size(LinkAddr addr, uint64_t room) const {
  const auto table = unwind();
  const auto* range = table ? (*table)->find(addr) : nullptr;
  return range != nullptr ? std::min(range->end.value - addr.value, room) : room;
}

// ---- questions
// ---------------------------------------------------------------------------------------------------

template <typename Visit>
void ModuleSymbols::for_each_named(std::string_view name, Visit visit) const {
  const auto same_hash =
      std::ranges::equal_range(by_name_, hash_of(name), {}, &std::pair<uint32_t, uint32_t>::first);
  for (const auto& [hash, i] : same_hash)
    if (functions_[i].name == name) visit(functions_[i]);
}

std::vector<const Function*> ModuleSymbols::find(std::string_view name) const {
  const auto wanted = split_version(name);
  std::vector<const Function*> found;
  for_each_named(wanted.name, [&](const Function& f) {
    if (wanted.version.empty() || f.version == wanted.version) found.push_back(&f);
  });
  if (!std::ranges::all_of(found, [](auto* f) { return is_label(*f); }))
    std::erase_if(found, [](auto* f) { return is_label(*f); });
  const bool has_default = std::ranges::any_of(
      found, [](auto* f) { return f->is_default_version && !f->version.empty(); });
  if (has_default && wanted.version.empty())
    std::erase_if(found, [](auto* f) { return !f->is_default_version; });
  return found;
}

std::vector<const Function*> ModuleSymbols::match(std::string_view glob) const {
  if (!has_wildcard(glob)) {
    auto found = find(glob);
    std::erase_if(found, [](auto* f) { return is_label(*f); });
    return found;
  }
  std::vector<const Function*> found;
  for (const auto& f : functions_)
    if (!is_label(f) && glob_matches(glob, f.name)) found.push_back(&f);
  return found;
}

std::vector<std::string> ModuleSymbols::nearest(std::string_view name, size_t at_most) const {
  Nearest near(name, at_most);
  for (const auto& f : functions_)
    if (!is_label(f)) near.offer(f.name);
  return near.take();
}

std::optional<Resolved> ModuleSymbols::resolve(LinkAddr addr) const {
  const auto after = std::ranges::upper_bound(functions_, addr, {}, &Function::addr);
  const Function* best = nullptr;
  int steps = 0;
  for (auto i = after - functions_.begin(); i-- > 0 && ++steps < kMaxNesting;) {
    const auto& f = functions_[static_cast<size_t>(i)];
    if (reach_[static_cast<size_t>(i)] <= addr.value || (best != nullptr && f.addr < best->addr))
      break;
    if (f.end() <= addr) continue;
    if (best == nullptr || preference(f) < preference(*best)) best = &f;
  }
  if (best == nullptr) return std::nullopt;
  return Resolved{best, addr.value - best->addr.value};
}

Result<const elf::UnwindTable*> ModuleSymbols::unwind() const {
  if (unwind_ == nullptr) {
    SPILE_TRY(auto table, elf::UnwindTable::read(*file_));
    unwind_ = std::make_unique<elf::UnwindTable>(std::move(table));
  }
  return unwind_.get();
}

Result<std::span<const LinkAddr>> ModuleSymbols::code_pointers() const {
  if (!code_pointers_) {
    SPILE_TRY(code_pointers_, elf::read_code_pointers(*file_));
  }
  return std::span<const LinkAddr>(*code_pointers_);
}

}  // namespace spile::symbols
