// The checker's rules for calls: arguments against the helper's signature, and what the call leaves
// behind.
#pragma once

#include "bpf/check_memory.h"

namespace spile::bpf {

class CallRules {
 public:
  CallRules(const CheckEnv& env, FactCollector& facts, MemoryRules& memory)
      : env_(env), facts_(facts), memory_(memory) {}

  Result<void> call(CheckState& state, uint32_t at, const Insn& insn);

 private:
  struct Call {
    uint32_t at = 0;
    const HelperSignature* helper = nullptr;
    CallFacts facts;
    uint64_t max_size = 0;  ///< the largest value of the size argument
    uint32_t released = 0;  ///< id of the record that the call takes
  };

  Result<void> argument(CheckState& state, Call& call, int reg);
  Result<void> map(const CheckState& state, Call& call, int reg, ArgType expected);
  Result<void> map_memory(CheckState& state, Call& call, int reg, bool is_key);
  Result<void> sized_memory(CheckState& state, Call& call, int reg, bool is_write);
  Result<void> size(const CheckState& state, Call& call, int reg, bool zero_allowed);
  Result<void> record_size(const CheckState& state, Call& call, int reg);
  Result<void> record(const CheckState& state, Call& call, int reg);
  Result<void> plain(const CheckState& state, Call& call, int reg, ArgType type);
  void finish(CheckState& state, const Call& call);
  RegState result(CheckState& state, const Call& call);

  const CheckEnv& env_;
  FactCollector& facts_;
  MemoryRules& memory_;
};

}  // namespace spile::bpf
