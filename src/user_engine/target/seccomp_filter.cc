#include "user_engine/target/seccomp_filter.h"

#include <linux/audit.h>
#include <linux/seccomp.h>

#include <algorithm>
#include <array>
#include <cstddef>

#include "os/process.h"
#include "os/ptrace.h"

namespace spile::target {
namespace {

/// nullopt: not known.
using Word = std::optional<uint32_t>;

struct State {
  Word a = 0, x = 0;
  std::array<Word, BPF_MEMWORDS> memory{};

  void join(const State& other) {
    const auto merge = [](Word& to, const Word& from) {
      if (to != from) to.reset();
    };
    merge(a, other.a);
    merge(x, other.x);
    for (size_t i = 0; i < memory.size(); i++) merge(memory[i], other.memory[i]);
  }
};

Word data_word(uint32_t offset, const FilteredCall& call) {
  if (offset == offsetof(seccomp_data, nr)) return call.number;
  if (offset == offsetof(seccomp_data, arch)) return AUDIT_ARCH_X86_64;
  if (!call.first_argument) return std::nullopt;
  if (offset == offsetof(seccomp_data, args)) return static_cast<uint32_t>(*call.first_argument);
  if (offset == offsetof(seccomp_data, args) + 4)
    return static_cast<uint32_t>(*call.first_argument >> 32);
  return std::nullopt;
}

Word compute(uint16_t operation, Word a, Word b) {
  if (operation == BPF_NEG) return a ? Word(-*a) : Word();
  if (!a || !b) return std::nullopt;
  switch (operation) {
    case BPF_ADD: return *a + *b;
    case BPF_SUB: return *a - *b;
    case BPF_MUL: return *a * *b;
    case BPF_DIV: return *b == 0 ? Word() : Word(*a / *b);
    case BPF_AND: return *a & *b;
    case BPF_OR: return *a | *b;
    case BPF_XOR: return *a ^ *b;
    case BPF_LSH: return *b > 31 ? Word() : Word(*a << *b);
    case BPF_RSH: return *b > 31 ? Word() : Word(*a >> *b);
    default: return std::nullopt;
  }
}

/// nullopt: either way.
std::optional<bool> holds(uint16_t condition, Word a, Word b) {
  if (!a || !b) return std::nullopt;
  switch (condition) {
    case BPF_JEQ: return *a == *b;
    case BPF_JGT: return *a > *b;
    case BPF_JGE: return *a >= *b;
    case BPF_JSET: return (*a & *b) != 0;
    default: return std::nullopt;
  }
}

class Walk {
 public:
  Walk(std::span<const sock_filter> filter, const FilteredCall& call)
      : filter_(filter), call_(call), states_(filter.size()) {}

  bool run() {
    if (filter_.empty()) return false;
    states_[0] = State{};
    for (size_t pc = 0; pc < filter_.size(); pc++) {
      if (states_[pc] && !step(pc)) return false;
    }
    return true;
  }

 private:
  /// False: the filter may do something else than allow.
  bool step(size_t pc) {
    const sock_filter& insn = filter_[pc];
    State state = *states_[pc];
    switch (BPF_CLASS(insn.code)) {
      case BPF_LD: return load(insn, state.a, state) && go(pc + 1, state);
      case BPF_LDX: return load(insn, state.x, state) && go(pc + 1, state);
      case BPF_ST: return store(insn, state.a, state) && go(pc + 1, state);
      case BPF_STX: return store(insn, state.x, state) && go(pc + 1, state);
      case BPF_ALU:
        // A division by what may be zero returns 0, which kills.
        if (BPF_OP(insn.code) == BPF_DIV && operand(insn, state).value_or(0) == 0) return false;
        state.a = compute(BPF_OP(insn.code), state.a, operand(insn, state));
        return go(pc + 1, state);
      case BPF_MISC:
        if (BPF_MISCOP(insn.code) == BPF_TAX)
          state.x = state.a;
        else
          state.a = state.x;
        return go(pc + 1, state);
      case BPF_JMP: return jump(pc, insn, state);
      case BPF_RET: {
        const Word value = BPF_RVAL(insn.code) == BPF_A ? state.a : Word(insn.k);
        return value && (*value & SECCOMP_RET_ACTION_FULL) == SECCOMP_RET_ALLOW;
      }
      default: return false;
    }
  }

  bool load(const sock_filter& insn, Word& to, const State& state) const {
    switch (BPF_MODE(insn.code)) {
      case BPF_ABS: to = data_word(insn.k, call_); return true;
      case BPF_IMM: to = insn.k; return true;
      case BPF_LEN: to = sizeof(seccomp_data); return true;
      case BPF_MEM:
        if (insn.k >= BPF_MEMWORDS) return false;
        to = state.memory[insn.k];
        return true;
      default: return false;
    }
  }

  static bool store(const sock_filter& insn, const Word& from, State& state) {
    if (insn.k >= BPF_MEMWORDS) return false;
    state.memory[insn.k] = from;
    return true;
  }

  static Word operand(const sock_filter& insn, const State& state) {
    return BPF_SRC(insn.code) == BPF_X ? state.x : Word(insn.k);
  }

  bool jump(size_t pc, const sock_filter& insn, const State& state) {
    if (BPF_OP(insn.code) == BPF_JA) return go(pc + 1 + insn.k, state);
    const auto taken = holds(BPF_OP(insn.code), state.a, operand(insn, state));
    if (taken) return go(pc + 1 + (*taken ? insn.jt : insn.jf), state);
    return go(pc + 1 + insn.jt, state) && go(pc + 1 + insn.jf, state);
  }

  bool go(size_t to, const State& state) {
    if (to >= states_.size()) return false;
    if (states_[to])
      states_[to]->join(state);
    else
      states_[to] = state;
    return true;
  }

  std::span<const sock_filter> filter_;
  const FilteredCall& call_;
  std::vector<std::optional<State>> states_;  ///< before each instruction; none: not reached
};

/// Clears what a thread's filters do not surely allow.
void apply_filters(pid_t tid, std::span<const FilteredCall> calls, std::vector<bool>& allowed) {
  auto filters = os::ptrace_seccomp_filters(tid);
  if (!filters || filters->empty()) {
    allowed.assign(calls.size(), false);
    return;
  }
  for (const std::vector<sock_filter>& filter : *filters) {
    for (size_t i = 0; i < calls.size(); i++)
      allowed[i] = allowed[i] && surely_allows(filter, calls[i]);
  }
}

}  // namespace

bool surely_allows(std::span<const sock_filter> filter, const FilteredCall& call) {
  return Walk(filter, call).run();
}

std::vector<bool> allowed_calls(const StoppedProcess& process,
                                std::span<const FilteredCall> calls) {
  std::vector<bool> allowed(calls.size(), true);
  for (const StoppedThread& thread : process.threads()) {
    auto status = os::read_status(thread.tid);
    if (!status || status->seccomp == 0) continue;
    if (std::ranges::none_of(allowed, [](bool a) { return a; })) break;
    apply_filters(thread.tid, calls, allowed);
  }
  return allowed;
}

}  // namespace spile::target
