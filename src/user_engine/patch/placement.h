// Short sites: how a jump is made of fewer than five own bytes.
//
// An ordinary site takes a jmp rel32 to its detour, wherever that is. A short site (plan.h) owns
// only the bytes of its first instruction. The jump must then be made of those and of what is
// around: the bytes behind it become the upper part of its distance (a *punned* jump), or a
// two-byte jump goes to a full one in padding, or the next instruction is moved out of the way too
// (*evicted*) so that its bytes can be chosen. Each way leaves the jump few places to lead to.
// There goes a *stone*, 14 bytes that go on to the detour; stones share pages.
//
//   short sites, ordinary sites, free address space  ->  edits, stones, evicted instructions
//
// Invariants:
//   - Every byte has at most one edit. A byte that is part of a jump's distance without being
//     edited is locked: no other edit changes it.
//   - An edit lies within one page, so that it is written at once.
//   - Written level by level, each edit leaves code that runs right; undone in the opposite order
//     too.
//   - Nothing enters an edited instruction but at its start.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/inline_bytes.h"
#include "user_engine/patch/plan.h"

namespace spile::patch {

/// A stone at `at`: jmp *(%rip), and the address, aligned. Reaches everything, touches no register;
/// 14 to 21 bytes.
inline constexpr size_t kMinStoneBytes = 14;
TargetAddr stone_end(TargetAddr at);
std::vector<uint8_t> stone_bytes(TargetAddr at, TargetAddr to);

/// Address space where stones may lie.
class StoneSpace {
 public:
  struct Range {
    TargetAddr start, end;
  };
  static constexpr uint64_t kPageBytes = 4096;

  /// `free`: whole pages that nobody uses or will use, by address. At most `max_pages` of them are
  /// taken: each page, or row of pages, is a mapping in the target.
  StoneSpace(std::vector<Range> free, size_t max_pages);

  /// Whether a stone may lie at `at`: its pages are free or ours, and no other stone is there.
  bool fits(TargetAddr at) const;
  enum class Pages : uint8_t { kInUse, kAny };
  /// The first such place in [first, last], on a page that is in use already if there is one.
  std::optional<TargetAddr> find(TargetAddr first,
                                 TargetAddr last,
                                 Pages which = Pages::kAny) const;
  /// `at` must fit.
  void take(TargetAddr at);
  /// Undoes take().
  void give_back(TargetAddr at);

  /// The pages that hold stones, joined where they touch.
  std::vector<Range> pages() const;

 private:
  bool is_free(uint64_t page) const;
  std::optional<TargetAddr> find_on_page(uint64_t page, TargetAddr first, TargetAddr last) const;

  std::vector<Range> free_;
  size_t max_pages_;
  struct Page {
    uint32_t stones = 0;           ///< that touch it
    mutable bool is_full = false;  ///< found out by a search
  };
  std::map<uint64_t, Page> pages_;       ///< by page number
  std::map<uint64_t, uint64_t> stones_;  ///< start -> end
};

using EditBytes = InlineBytes<16>;

/// Bytes of one instruction (or of padding) that change.
struct Edit {
  TargetAddr at;
  EditBytes before, after;  ///< of the same size, 1..16 bytes, in one page
  /// All edits of a lower level are written before this one and undone after it; those of one level
  /// do not depend on each other.
  uint8_t level = 0;
};

/// How a site is patched.
struct Placement {
  std::vector<Edit> edits;  ///< the last is at the site itself
  /// Bytes that must be what the module says besides those that change: parts of a distance.
  std::vector<StoneSpace::Range> relies_on;
  TargetAddr stone;      ///< where the jump leads in the end: a stone to the detour goes there
  std::string how, why;  ///< "punned jump", "only the 2 bytes of the first instruction change"
};

/// An instruction that is moved away although nobody probes it. It is patched, undone and explained
/// like a site: its plan has no probed head.
struct Evicted {
  SitePlan plan;
  Placement placement;
};

struct Placements {
  /// By index into the sites given: every short one, unless refused, and ordinary ones whose jump
  /// is part of another's distance and must not depend on where the detour goes.
  std::map<size_t, Placement> placed;
  std::vector<Evicted> evicted;
  std::map<size_t, Refusal> refused;
};

/// Finds a way for every short site among `sites`: all of one module that are to be patched, by
/// address. Takes room for stones in `space`, which modules share. Pure but for that.
Placements place_short_sites(const ModuleCode& module,
                             std::span<const SitePlan* const> sites,
                             StoneSpace& space,
                             const PlanRules& rules = {});

/// For measuring: each of `sites`, which are short, as if it were the only one.
std::vector<std::expected<Placement, Refusal>> place_each_alone(const ModuleCode& module,
                                                                std::span<const SitePlan> sites,
                                                                const StoneSpace& space,
                                                                const PlanRules& rules = {});

}  // namespace spile::patch
