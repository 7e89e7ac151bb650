// Gathers what check() reports: facts that hold on every path that was walked.
#pragma once

#include <set>
#include <vector>

#include "bpf/cfg.h"
#include "bpf/checker.h"

namespace spile::bpf {

class FactCollector {
 public:
  explicit FactCollector(size_t insns)
      : reached_(insns, false), memory_(insns, Memory::kNone), calls_(insns) {}

  void reached(uint32_t insn) { reached_[insn] = true; }
  void memory(uint32_t insn, Memory kind);
  void context_read(uint32_t offset, uint32_t size) { context_reads_.insert({offset, size}); }
  void context_escapes() { context_escapes_ = true; }
  /// The stack is used down to r10 - depth.
  void stack(uint32_t depth);
  /// Keeps of two visits of one call what both agree on.
  void call(CallFacts facts);

  Analysis finish(const Program& program, const Cfg& cfg) const;

 private:
  std::vector<bool> reached_;
  std::vector<Memory> memory_;
  std::vector<std::optional<CallFacts>> calls_;
  std::set<ContextRead> context_reads_;
  bool context_escapes_ = false;
  uint32_t stack_bytes_ = 0;
};

}  // namespace spile::bpf
