// Forward pass: what is known about registers before each instruction, without running it.
//
// Three kinds of knowledge pay in probe programs: constants (`r1 = 1; lock += r1` becomes `lock add
// $1`), places relative to rsp (eBPF's stack and the context, which then need no register), and
// results of lookups that are constant addresses in the target (arrays with a constant key).
// Everything else is kAny.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/error.h"
#include "bpf/checker.h"
#include "bpf/insn.h"
#include "user_engine/jit/jit.h"
#include "user_engine/jit/shape.h"

namespace spile::jit {

struct Value {
  enum class Kind : uint8_t {
    kUnset,    ///< no path got here yet
    kConst,    ///< number
    kStack,    ///< r10 + number
    kContext,  ///< HitFrame + number
    kNonNull,  ///< some address that is not 0
    kAny,
  };
  Kind kind = Kind::kUnset;
  int64_t number = 0;

  constexpr bool operator==(const Value&) const = default;
  bool is_const() const { return kind == Kind::kConst; }
  /// Can be made again from nothing but rsp.
  bool is_known() const {
    return kind == Kind::kConst || kind == Kind::kStack || kind == Kind::kContext;
  }
};

using Registers = std::array<Value, 11>;

/// How a call is done.
enum class CallPlan : uint8_t {
  kHelper,         ///< call rel32
  kArrayAddress,   ///< constant key: the result is a constant
  kPerCpuAddress,  ///< constant key: CPU number, multiply, add
  kIndex,          ///< array or per-CPU array, key in memory
  kCpu,            ///< get_smp_processor_id
  kCookie,         ///< get_attach_cookie: a load from the HitFrame
};

struct CallFacts {
  CallPlan plan = CallPlan::kHelper;
  const ArrayLayout* array = nullptr;
  uint32_t key = 0;  ///< kArrayAddress, kPerCpuAddress
};

/// What a branch does, where that is known.
enum class Decision : uint8_t { kOpen, kTaken, kNotTaken };

struct Facts {
  std::vector<Registers> before;  ///< by instruction; kUnset where it is never reached
  std::vector<bool> reached;
  std::vector<Decision> decision;  ///< of branches
  std::vector<CallFacts> calls;    ///< by instruction
  /// The instruction's only effect is that dst (r0 for a call) becomes this value, which
  /// is_known().
  std::vector<Value> result;

  /// The constant that replaces the source register, sign-extended 32 bits; not set if there is
  /// none.
  std::optional<int32_t> constant_source(const bpf::Program& program, size_t insn) const;
  /// The place a load, store or atomic works on, where it needs no register: base value plus the
  /// instruction's offset.
  std::optional<Value> known_place(const bpf::Program& program, size_t insn) const;
};

/// The register that holds the address of a load, store or atomic.
int base_register(const bpf::Insn& insn);

/// Errors: invalid  a map or helper that env does not have, a fixed access outside the stack or the
/// context
Result<Facts> find_facts(const bpf::Program& program,
                         const Shape& shape,
                         const bpf::Analysis& analysis,
                         const JitEnv& env);

}  // namespace spile::jit
