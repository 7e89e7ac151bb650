// The checker's rules for memory: which bytes a register may be used to read and write, and what
// that changes.
#pragma once

#include <cstdint>
#include <string>

#include "base/error.h"
#include "bpf/check_facts.h"
#include "bpf/check_state.h"
#include "bpf/checker.h"

namespace spile::bpf {

/// How a message names a register: "insn 12: r3 is a number, ...".
std::unexpected<Error> register_error(uint32_t insn,
                                      int reg,
                                      const RegState& state,
                                      std::string_view expected);

class MemoryRules {
 public:
  MemoryRules(const CheckEnv& env, FactCollector& facts) : env_(env), facts_(facts) {}

  /// ldx: what the destination then holds.
  Result<RegState> load(CheckState& state, uint32_t at, const Insn& insn);
  /// st and stx.
  Result<void> store(CheckState& state, uint32_t at, const Insn& insn);
  Result<void> atomic(CheckState& state, uint32_t at, const Insn& insn);

  /// A helper reads at most `size` bytes from where `reg` points.
  Result<void> helper_reads(CheckState& state, uint32_t at, int reg, uint32_t size);
  /// A helper writes `size` bytes, or any number up to it, to where `reg` points.
  Result<void> helper_writes(CheckState& state, uint32_t at, int reg, uint32_t size, bool is_exact);
  /// The bytes that `reg` points to, where they are constants on the stack.
  static std::optional<std::vector<uint8_t>> constant_bytes(const CheckState& state,
                                                            int reg,
                                                            uint32_t size);

 private:
  /// An access of `size` bytes: the first of them is somewhere in [low, high] of the object.
  struct Span {
    RegKind kind = RegKind::kUninit;
    int64_t low = 0, high = 0;
    uint32_t size = 0;

    bool is_exact() const { return low == high; }
  };

  Result<void> require_memory(const CheckState& state, uint32_t at, int reg);
  Result<Span> resolve(const CheckState& state, uint32_t at, int reg, int64_t off, uint32_t size);
  Result<Span> resolve_context(const RegState& base, uint32_t at, int reg, Span span);
  Result<void> require_inside(const RegState& base, uint32_t at, int reg, const Span& span) const;
  Result<void> require_alignment(
      const RegState& base, uint32_t at, int reg, int64_t off, uint32_t size);

  Result<void> require_stack_readable(const CheckState& state, uint32_t at, const Span& span);
  Result<void> write_unknown(CheckState& state, uint32_t at, const Span& span, bool to_every_byte);
  Result<RegState> load_stack(const CheckState& state, uint32_t at, const Span& span);
  Result<void> store_stack(CheckState& state, uint32_t at, const Span& span, RegState& value);
  Result<void> store_value(CheckState& state, uint32_t at, const Insn& insn, RegState& value);

  const CheckEnv& env_;
  FactCollector& facts_;
};

}  // namespace spile::bpf
