// Jumps made of few bytes: which places they can lead to, which of those is free.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "user_engine/patch/ledger.h"
#include "user_engine/patch/placement.h"

namespace spile::patch {

/// A jump that was decided: its bytes are edited in the ledger, those behind it that are part of
/// its distance are locked, its stone is taken.
struct Jump {
  Edit edit;
  TargetAddr stone;
  std::vector<StoneSpace::Range> relies_on;
  size_t prefixes = 0;
};

class JumpMaker {
 public:
  JumpMaker(Ledger& ledger, StoneSpace& space, const PlanRules& rules)
      : ledger_(ledger), space_(space), rules_(rules) {}

  struct Wish {
    StoneSpace::Pages pages = StoneSpace::Pages::kAny;
    uint8_t level = 0;                    ///< at least
    std::optional<uint8_t> first_byte{};  ///< of the jump: a prefix or e9
    bool crosses_page = false;            ///< may rely on bytes of the next page
  };
  /// A jump in the `own` bytes at `at`, all of which may be written. It lies in one page with all
  /// its bytes, unless told otherwise: the program may unmap the next one.
  std::optional<Jump> jump(TargetAddr at, size_t own, const Wish& wish);

  /// Two jumps: one in the five bytes at `second`, and one in the `own` (1 to 4) bytes before it,
  /// part of whose distance the other is.
  struct Pair {
    Jump first, second;
  };
  std::optional<Pair> pair(TargetAddr first, size_t own, TargetAddr second);

  /// What the first byte of a jump can be: its opcode, or a prefix that does not change it.
  static std::span<const uint8_t> first_bytes();

  void lock(TargetAddr at) { ledger_.lock(at); }

  /// Jumps made since are unmade, with all else in the ledger.
  struct Mark {
    size_t ledger, stones;
  };
  Mark mark() const { return {ledger_.mark(), stones_.size()}; }
  void roll_back(const Mark& mark);

 private:
  /// Bytes before the distance: prefixes, then e9.
  using Opcode = std::span<const uint8_t>;
  struct Draft;

  std::optional<Draft> draft(
      TargetAddr at, size_t own, Opcode opcode, uint8_t level, bool crosses_page = false) const;
  std::optional<TargetAddr> choose(const Draft& draft, StoneSpace::Pages pages) const;
  Jump commit(const Draft& draft, TargetAddr stone);
  std::optional<Pair> pair_with(TargetAddr first, size_t own, TargetAddr second, Opcode opcode);
  std::optional<Pair> finish_pair(TargetAddr first,
                                  size_t own,
                                  TargetAddr second,
                                  Opcode opcode,
                                  std::span<const uint8_t> exposed);

  Ledger& ledger_;
  StoneSpace& space_;
  const PlanRules& rules_;
  std::vector<TargetAddr> stones_;
};

}  // namespace spile::patch
