#include "output/names.h"

namespace spile::output {
namespace {

using bundle::StackMode;
using bundle::ValueKind;

/// What the kernel answers where there is no stack of that sort (-EFAULT).
constexpr int64_t kNoStack = -14;

std::optional<Name> name_of(bool is_user, uint64_t pid, uint64_t address, const Meaning& meaning) {
  if (meaning.names == nullptr) return std::nullopt;
  return is_user ? meaning.names->user(pid, address) : meaning.names->kernel(address);
}

std::string symbol_text(const std::optional<Name>& name, uint64_t address) {
  return name ? name->symbol : fmt::format("{:#x}", address);
}

/// A user's frame names its file, a kernel's its module where it has one.
std::string module_text(bool is_user, const std::optional<Name>& name) {
  if (is_user) return fmt::format(" ({})", name ? name->module : "[unknown]");
  return name && !name->module.empty() ? fmt::format(" [{}]", name->module) : "";
}

std::string frame_text(
    StackMode mode, bool is_user, uint64_t pid, uint64_t address, const Meaning& meaning) {
  if (mode == StackMode::kRaw) return fmt::format("{:x}\n", address);
  const auto name = name_of(is_user, pid, address, meaning);
  std::string symbol = symbol_text(name, address);
  if (name) symbol += fmt::format("+{}", name->offset);
  if (mode == StackMode::kPerf)
    return fmt::format("\t{:x} {}{}\n", address, symbol, module_text(is_user, name));
  return std::string(meaning.stack_indent, ' ') + symbol + "\n";
}

std::string note(const Meaning& meaning, std::string_view what) {
  return fmt::format("\n{}[{}]\n", std::string(meaning.stack_indent, ' '), what);
}

}  // namespace

std::string user_symbol_text(uint64_t pid, uint64_t address, const Meaning& meaning) {
  return symbol_text(name_of(true, pid, address, meaning), address);
}

std::string kernel_symbol_text(uint64_t address, const Meaning& meaning) {
  return symbol_text(name_of(false, 0, address, meaning), address);
}

std::string stack_text(const bundle::ValueType& type,
                       int64_t id,
                       uint64_t pid,
                       const Meaning& meaning) {
  const int map = bundle::stack_map(meaning.bundle, type.frames);
  if (id == kNoStack || map < 0 || meaning.trace == nullptr) return "\n";
  if (id < 0) return note(meaning, "lost stack");
  const auto frames = meaning.trace->read_stack(map, static_cast<uint64_t>(id));
  if (!frames) return note(meaning, "unreadable stack");
  std::string out = "\n";
  for (const uint64_t address : *frames)
    out += frame_text(type.stack_mode, type.kind == ValueKind::kUserStack, pid, address, meaning);
  return out;
}

}  // namespace spile::output
