// How much stack a hit may count on in code of a Go program, and where it may go elsewhere.
//
// A goroutine's stack is small, and right below it lies what belongs to others. What is sure
// (cmd/link/internal/ld/stackcheck.go, runtime/stack.go, of Go 1.19):
//   * Where a function has checked its stack, StackGuard - StackSmall = 800 bytes are left.
//   * At a function's entry there is room for a call of morestack, 8 bytes, and no more: a function
//     without a check may have used all else for its frame and then call one that checks.
//   * Functions without a check (nosplit) have what they need themselves.
// So elsewhere than behind a check a hit writes nothing below the stack pointer: it goes to a
// private stack (abi/private_stack.h). Until it is there it needs vector register 15, and leaves it
// zero. That is right in Go because
//   * compiled code keeps it zero (ABIInternal, from Go 1.17 on) and expects that of all that it
//     calls; before 1.17, and in ABI0, no vector register has a meaning at a function's entry or
//     behind its return (cmd/compile/abi-internal.md);
//   * assembly may use it as it likes between, so there we look at the code: elsewhere than at an
//     entry or a ret the function must not put anything in it;
//   * assembly may call its own parts (names without a package, as cmpbody) with values in it: the
//     code that leads there must not put anything in it either.
#pragma once

#include <set>

#include "user_engine/patch/code_map.h"

namespace spile::patch {

/// A Go function behind its stack check has at least this much stack: 800 bytes less some.
inline constexpr uint32_t kGoStackBytes = 700;

struct GoStack {
  uint32_t own_bytes = 0;   ///< the target's stack below rsp that a hit may use
  bool may_switch = false;  ///< vector register 15 is zero or will not be read
};

/// Of one module; it must outlive this.
class GoStacks {
 public:
  /// `has_c_code`: functions without a package in their name may be C, which keeps what it likes in
  /// vector registers.
  GoStacks(const ModuleCode& module, bool has_c_code);

  /// For a hit right before the instruction at `at`.
  GoStack at(TargetAddr at) const;

 private:
  GoStack in(const FunctionSpan& function, TargetAddr at) const;
  bool is_behind_check(const FunctionSpan& function, TargetAddr at) const;
  bool may_have_values_at_entry(const FunctionSpan& function) const;
  void find_entered_with_values() const;
  void note_parts_entered_from(const Sweep& code, std::vector<TargetAddr>& pending) const;

  CodeMap map_;
  bool has_c_code_;
  bool has_register_abi_ = false;
  mutable bool searched_ = false;
  mutable std::set<TargetAddr> entered_with_values_;  ///< functions without a package
};

/// The instructions between a Go function's check of its stack and the call of morestack, which
/// runs where the check failed. Empty: it does not check. Source: cmd/internal/obj/x86/obj6.go.
Region checked_part(const CodeMap& map, const FunctionSpan& function);

/// Whether an instruction of the region may put something but zero in vector register 15.
bool writes_vector_15(const CodeMap& map, const Sweep& code);

}  // namespace spile::patch
