// Windows: which instructions a jump displaces, given every way in.
#pragma once

#include <array>
#include <deque>

#include "user_engine/patch/code_map.h"
#include "user_engine/patch/plan.h"
#include "user_engine/patch/ways_in.h"

namespace spile::patch {

inline constexpr uint64_t kPageBytes = 4096;
/// The most that x86::relocate takes.
inline constexpr size_t kMaxWindowBytes = 64;

/// Decoded regions and instructions; the last few are kept.
class Sweeps {
 public:
  explicit Sweeps(const CodeMap& map) : map_(map) {}
  /// Of the region that holds `at`. Valid until the next call but kKept.
  const Sweep& around(TargetAddr at);
  /// Whether a direct branch of the region that holds `at` leads there.
  bool is_branch_target(TargetAddr at);
  /// The instruction at `at`; nullopt: none. Valid until the next call.
  const std::optional<x86::Insn>& insn(TargetAddr at);

 private:
  static constexpr size_t kKept = 8, kInsns = 64;
  struct Decoded {
    TargetAddr at;
    std::optional<x86::Insn> insn;
  };
  struct Kept {
    Sweep sweep;
    std::optional<std::vector<TargetAddr>>
        targets;  ///< of its branches, sorted; made when asked for
  };
  Kept& kept(TargetAddr at);
  const CodeMap& map_;
  std::deque<Kept> kept_;
  std::array<Decoded, kInsns> insns_{};
};

/// What windows are decided from.
struct Scene {
  const CodeMap& map;
  const WaysIn& ways;
  Sweeps& sweeps;
  const PlanRules& rules;
};

/// One window, made in steps: take_full or take_short, which may refuse, then the others.
class Window {
 public:
  using MaybeRefusal = std::optional<Refusal>;

  /// `scene` must outlive it.
  Window(const Scene& scene, TargetAddr start);

  /// Five bytes that take a jump, and all instructions up to the one at `through`, which is `start`
  /// or behind it.
  MaybeRefusal take_full(TargetAddr through);
  /// Fewer than five bytes: all that may change, `one_instruction`: of the first alone.
  MaybeRefusal take_short(TargetAddr through, bool one_instruction);
  /// One instruction, of which only the first byte may change.
  MaybeRefusal take_trap();
  /// Makes a full window longer, up to the instruction at `through`. Refused, it stays as it was.
  MaybeRefusal extend(TargetAddr through);

  bool has_head(TargetAddr at) const;
  const SitePlan& plan() const { return plan_; }
  /// Programs run at the head `at`.
  void add_probe(TargetAddr at);
  /// To be called once, when all probes are there.
  SitePlan finish();

 private:
  template <typename... Args>
  Refusal refusal(RefusalKind kind, size_t offset, const char* format, const Args&... args) const;
  bool is_entry() const;
  bool may_fault_here(const x86::Insn& insn, size_t offset) const;
  TargetAddr at(size_t offset) const { return plan_.site + offset; }

  MaybeRefusal check_place() const;
  MaybeRefusal check_restore_rt() const;
  MaybeRefusal check_is_head() const;
  MaybeRefusal check_instruction(const x86::Insn& insn, size_t offset);
  MaybeRefusal check_entered(const x86::Insn& insn, size_t offset) const;
  MaybeRefusal check_padding(size_t size) const;
  MaybeRefusal check_changed_bytes() const;
  MaybeRefusal check_reserved() const;
  bool faults_in_caller(const x86::Insn& insn) const;
  MaybeRefusal take_next();
  MaybeRefusal take_until(size_t want, TargetAddr through);
  MaybeRefusal begin();
  size_t padding_behind(size_t size) const;
  void describe(bool is_short);

  const Scene* scene_;
  std::span<const uint8_t> bytes_;
  const FunctionSpan* function_ = nullptr;
  std::optional<Entrance> first_way_in_;  ///< behind the start
  const Entrance* unresolved_ = nullptr;
  std::vector<TargetAddr> own_targets_;  ///< of the branches in the window
  bool uses_padding_ = false;
  bool nops_only_ = true;
  SitePlan plan_;
};

/// Why nothing may be overwritten where this leads.
Refusal refusal_of(const CodeMap& map, const Entrance& entrance);

/// Whether a status flag that was set before `site` may still be read at or after it. Errs towards
/// true. A call, a return or an indirect jump counts as reading all: the ABI leaves flags undefined
/// there, hand-written code need not.
bool flags_live_at(Sweeps& sweeps, TargetAddr site);

/// How many of a function's first bytes are the instructions of Go's stack check, as far as
/// is_go_stack_checked knows it; 0: none. They read what is always there.
size_t go_stack_check_bytes(std::span<const uint8_t> bytes);

/// Functions that must stay as they are although they look like any other.
bool is_known_code(std::string_view name);

/// Where a probe on `site` goes: behind the endbr64, if there is one.
TargetAddr skip_endbr(const CodeMap& map, TargetAddr site);

}  // namespace spile::patch
