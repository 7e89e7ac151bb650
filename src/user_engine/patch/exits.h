// Where a function returns: the places that a return probe has to watch. Pure.
//
// The stack of the traced program is never touched: no return address is replaced, so unwinding,
// exceptions, longjmp, coroutines and shadow stacks stay as they are. Instead every `ret` is
// patched. That is the whole story where a function ends in `ret`s of its own (a *plain* function):
// each of them that runs is a return.
//
//   f:  ...           g:  mov $1,%edx       a tail jump: g has no ret at all,
//       ret               jmp h             and returns by the ret of h
//
// Where a function leaves by a jump into another one, or where others jump into its middle, a `ret`
// does not say whose it is. Then (a *tracked* function) the entry notes (stack slot of the return
// address, function), and every `ret` that the function can get to, by any chain of jumps, looks
// whether the slot that it is about to pop is noted. This needs no knowledge of which jumps leave
// the function and which go to a part of it that the linker has put elsewhere: too many `ret`s cost
// time, never correctness. What must not happen is that one is overlooked, so a function is refused
// when a direct jump cannot be followed.
//
//   sweep of a region -> RegionExits: its rets, jumps out, jumps through memory, what is unknown
//   regions that a function can get to -> Returns
//
// A jump through a pointer (a hook, a virtual function) is followed to where the pointer leads now,
// if that can be seen, and is itself watched: a call that it takes anywhere else is counted there
// as one whose return is not seen. So what is followed may be a guess; what is told is exact or
// counted.
//
// Not followed, by design: exits without a return (exceptions, longjmp, the end of a thread), and
// calls under way when the probe comes.
#pragma once

#include <cstdint>
#include <expected>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "user_engine/patch/branches_into.h"
#include "user_engine/patch/code_map.h"
#include "user_engine/patch/plan.h"
#include "user_engine/patch/pointer_path.h"

namespace spile::patch {

/// A jump that leaves its region for a known place.
struct JumpOut {
  TargetAddr at;         ///< the jump, or the last instruction of a region that runs into the next
  TargetAddr target;     ///< first instruction reached
  bool runs_on = false;  ///< `at` is no jump
};

/// A jump whose target is a word in memory at a known place: jmp *x(%rip), an entry of the global
/// offset table.
struct SlotJump {
  TargetAddr at;
  TargetAddr slot;  ///< 8 bytes
};

/// A jump through a pointer that the program may change, which may leave the function.
struct PointerJump {
  TargetAddr at;
  std::optional<PointerPath> path;
  /// The return address is known to be at the stack pointer: it is a tail jump, not a longjmp.
  bool is_at_entry_depth = true;
};

/// How control leaves one region for good, without calls.
struct RegionExits {
  std::vector<TargetAddr> rets;
  std::vector<JumpOut> jumps;
  std::vector<SlotJump> slots;
  std::vector<PointerJump> pointers;
  /// Where another function's region has to be looked at whatever this one's jumps do: its parts.
  std::vector<TargetAddr> parts;
  bool loops_to_start = false;  ///< jumps to its own first instruction
  /// Calls a place inside itself: some of `rets` return to the region, not from it.
  bool calls_itself = false;
  /// Something here makes it unknown how the function returns.
  std::optional<Refusal> refusal;
};

/// Errors in RegionExits::refusal:
///   kUndecodable  the region does not decode, so a `ret` may hide in it
///   kInstruction  the stack pointer is loaded from elsewhere (a context switch), a `ret` that pops
///                 what was pushed or put there, a far return
RegionExits region_exits(const CodeMap& map, const Region& region);

/// All code that a function may get to. Filled from a process by the engine, from bytes by tests.
class CodeSource {
 public:
  virtual ~CodeSource() = default;
  /// The module that holds the address; nullptr if none is known to.
  virtual const CodeMap* code_at(TargetAddr at) = 0;
  /// Where a jump through this word may lead: what it holds, or, where the loader has not bound it
  /// yet, every function that it may be bound to. Empty: not known.
  virtual std::vector<TargetAddr> slot_targets(TargetAddr slot) = 0;
  /// Whether only the loader writes the word, so that slot_targets is all that it can ever hold.
  virtual bool is_loaders_slot(TargetAddr slot) = 0;
  /// Where a jump through such a pointer may well lead, in any order: what the words hold now. A
  /// guess.
  virtual std::vector<TargetAddr> pointer_targets(const PointerPath& path) = 0;
  /// Functions that tables in the data of the module of `at` hold about `offset` bytes from their
  /// start: virtual functions, methods. The likeliest first. A guess.
  virtual const std::vector<TargetAddr>& table_targets(TargetAddr at, int64_t offset) = 0;
  /// Where exceptions continue in the function that begins here, its parts included.
  virtual std::vector<TargetAddr> landing_pads(TargetAddr function) = 0;
};

/// What a return probe of one function has to watch.
struct Returns {
  TargetAddr function;
  /// Every ret that runs is a return of this function. Otherwise its entry must be noted, and a ret
  /// counts only where the noted slot is popped.
  bool plain = true;
  std::vector<TargetAddr> rets;  ///< by address, in any module
  size_t own_rets = 0;           ///< of them, in the function itself
  /// Tracked only. Entries of functions that are jumped to and can be called as well: what is noted
  /// there without having been announced by one of `jumps` is left over from a call that ended
  /// otherwise. By address.
  std::vector<TargetAddr> arrivals;
  std::vector<TargetAddr> jumps;  ///< every jump that leads to one of `arrivals`; by address
  /// Tracked only. A call may come back to the entry by one of `jumps`: one return each time.
  bool reenters = false;
  /// Tracked only. Jumps through pointers: a noted call that one of them takes out of `known` is
  /// counted as unseen. By address; none of them is in `jumps`.
  std::vector<TargetAddr> leaves;
  std::vector<Region> known;  ///< if there are leaves: code whose rets are in `rets`; by address
  /// Of `leaves`, those of which not all is known that they lead to now: objects' methods,
  /// callbacks.
  size_t open_leaves = 0;
  /// What it jumps to: names of functions, for people.
  std::vector<std::string> tail_targets;

  /// "3 returns, 1 tail jump to __fopen_internal".
  std::string describe() const;
};

/// Guessed methods that are followed for one function, where nothing else is known to be watched.
inline constexpr size_t kMaxTableTargets = 64;

/// How far a chain of tail jumps is followed.
inline constexpr size_t kMaxReturnRegions = 512, kMaxReturnSites = 1024;

class ReturnFinder {
 public:
  /// `functions`: starts of the functions that will be asked for, of one module. The text of that
  /// module is searched once for branches into them. `source` must outlive this.
  ReturnFinder(CodeSource& source, const CodeMap& map, std::span<const TargetAddr> functions);

  /// Errors: RegionExits' of any region that the function can get to, with the way there;
  ///         kNoFunction   no function is known at the address, or the way leads where no code is
  ///         kTooShort     it never returns
  ///         kUnknownJump  it only leaves by jumps that may be no tail jumps: a longjmp
  /// Tables are searched only where there is nothing else to watch: each of their functions'
  /// returns costs time, and one that cannot be patched refuses the whole.
  std::expected<Returns, Refusal> find(TargetAddr function);

 private:
  class Walk;
  const RegionExits& exits_of(const CodeMap& map, const Region& region);
  /// How many regions the code at `target` can get to by direct jumps; nullopt: it would be
  /// refused.
  std::optional<size_t> regions_behind(TargetAddr target);

  CodeSource& source_;
  const CodeMap& map_;
  std::map<uint64_t, RegionExits> exits_;             ///< by start of region
  std::map<uint64_t, std::optional<size_t>> behind_;  ///< regions_behind, by target
  std::vector<BranchInto> entrances_;  ///< into the middle of the functions, by target
};

}  // namespace spile::patch
