// Runs an eBPF program here and now: the reference for what each instruction does.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <vector>

#include "base/error.h"
#include "bpf/insn.h"

namespace spile::bpf {

/// What call instructions reach, by number.
class HelperTable {
 public:
  using Function =
      std::function<uint64_t(uint64_t r1, uint64_t r2, uint64_t r3, uint64_t r4, uint64_t r5)>;

  void set(Helper helper, Function function) {
    functions_[static_cast<int32_t>(helper)] = std::move(function);
  }
  /// Null where nothing was set.
  const Function* find(int32_t id) const;

 private:
  std::map<int32_t, Function> functions_;
};

/// Memory of this process that a program may touch, in checked mode.
struct MemoryRange {
  uint64_t begin = 0;
  uint64_t size_bytes = 0;
  bool writable = true;
};

struct RunEnv {
  const HelperTable* helpers = nullptr;
  std::span<const uint64_t> maps;     ///< what lddw of map index i loads
  uint64_t insn_budget = 10'000'000;  ///< instructions; lddw counts once
  /// Checked mode: every access outside these and the program's stack ends the run with an error.
  /// Helpers may add ranges while the program runs. Null: accesses go through, as is right for
  /// programs that passed check().
  const std::vector<MemoryRange>* ranges = nullptr;
  /// The program's stack, aligned to 8 bytes; r10 points to its end. Empty: 512 bytes of zeros.
  std::span<uint8_t> stack;
  uint64_t other_regs = 0;  ///< what r0 and r2 to r9 hold at the start
};

struct RunResult {
  uint64_t r0 = 0;
  uint64_t insns = 0;  ///< how many ran
};

/// Runs `program` with r1 = `context`: an address in this process, or any number.
///
/// Errors: unsafe       the budget is used up, or (checked mode) an access outside the ranges or
/// the program
///         unsupported  an unknown instruction or a helper that is not in the table
Result<RunResult> run(const Program& program, uint64_t context, const RunEnv& env);

}  // namespace spile::bpf
