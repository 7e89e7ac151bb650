#include "user_engine/ifunc.h"

#include <algorithm>

#include "elf/file.h"
#include "elf/unwind.h"

namespace spile::user_engine {
namespace {

/// A stub that jumps through the very entry.
bool is_in_plt(const elf::File& file, LinkAddr address) {
  return std::ranges::any_of(file.sections(), [&](const elf::Section& section) {
    return (section.name.starts_with(".plt") || section.name.starts_with(".iplt")) &&
           address >= section.addr && address.value - section.addr.value < section.size;
  });
}

/// The first byte of a function that is no resolver itself.
bool begins_function(const symbols::ModuleSymbols& symbols, LinkAddr address) {
  if (is_in_plt(symbols.file(), address)) return false;
  const auto functions = symbols.functions();
  auto [first, last] = std::ranges::equal_range(functions, address, {}, &symbols::Function::addr);
  if (first != last) {
    return std::ranges::none_of(std::ranges::subrange(first, last), [](const symbols::Function& f) {
      return f.type == elf::SymbolType::kIfunc;
    });
  }
  const auto unwind = symbols.unwind();
  const elf::FunctionRange* range = unwind ? (*unwind)->find(address) : nullptr;
  return range != nullptr && range->start == address;
}

}  // namespace

const std::vector<elf::BoundSlot>& IfuncFinder::slots_of(const target::Module& module) {
  auto [entry, is_new] = slots_.try_emplace(module.start);
  if (!is_new || module.host_path.empty()) return entry->second;
  // A file that cannot be read has no entries to offer.
  auto file = elf::File::open(module.host_path);
  if (!file) return entry->second;
  auto slots = elf::read_bound_slots(*file);
  if (!slots) return entry->second;
  for (elf::BoundSlot& slot : *slots) {
    slot.symbol = names_.insert(std::string(slot.symbol)).first->c_str();
    entry->second.push_back(slot);
  }
  return entry->second;
}

void IfuncFinder::read_slot(const target::Module& owner,
                            const elf::BoundSlot& slot,
                            const ModuleImage& image,
                            std::set<LinkAddr>& found) const {
  auto value = target_.memory().read_value<uint64_t>(owner.bias.to_target(slot.slot));
  if (!value || !image.module().contains(TargetAddr(*value))) return;
  LinkAddr address = image.module().bias.to_link(TargetAddr(*value));
  if (begins_function(image.symbols(), address)) found.insert(address);
}

std::vector<LinkAddr> IfuncFinder::implementations(const ModuleImage& image,
                                                   std::string_view symbol,
                                                   LinkAddr resolver) {
  std::set<LinkAddr> found;
  for (const elf::BoundSlot& slot : slots_of(image.module())) {
    if (slot.symbol.empty() && slot.resolver == resolver)
      read_slot(image.module(), slot, image, found);
  }
  // A name may have versions with resolvers of their own: they count only where the resolver is
  // named nowhere.
  const std::string_view name = symbol.substr(0, symbol.find('@'));
  if (found.empty()) {
    for (const target::Module& module : modules_) {
      for (const elf::BoundSlot& slot : slots_of(module)) {
        if (slot.symbol == name) read_slot(module, slot, image, found);
      }
    }
  }
  return {found.begin(), found.end()};
}

}  // namespace spile::user_engine
