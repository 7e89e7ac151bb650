// Probed places of the program: how each is made, armed and disarmed.
//
//   addresses -> prepare()  plan (user_engine/patch), detour near the code; nothing has changed yet
//   places    -> change()   hooks in and out of lists, then bytes: a jump, a breakpoint, or the
//   original ones
//
// A place is armed while it has hooks. Its detour stays for ever, and is used again by the next
// registration: threads may be in it. So disarming needs no look at them, and a hit that comes late
// finds an empty list and goes on.
//
//   jump        detour:  <call before>  displaced instructions  jmp back
//   behind too  detour:  <call before>  first instruction  <call behind>  the others  jmp back
//   breakpoint  the same detour; the SIGTRAP handler calls the handlers and continues at the
//   displaced instruction
//
// Everything here runs under one lock (EngineSession), never on the hit path.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "api/code_memory.h"
#include "api/hit.h"
#include "api/poke.h"
#include "user_engine/patch/plan.h"

namespace spile::api {

enum class Mechanism : uint8_t { kJump, kEntryNops, kTrap };

/// Why a place is refused, as an error number.
struct Refused {
  int number = 0;
  std::string text;
};

struct Detour {
  uint64_t entry = 0, displaced = 0, next = 0;
  std::span<CallSlot> slots;  ///< before; behind, if it has one
};

struct Place : Site {
  patch::SitePlan plan;
  Mechanism mechanism = Mechanism::kJump;
  TargetAddr module_start, module_end;
  std::string name;  ///< "f+0x0 program"
  bool at_entry = false;
  unsigned long long batch = 0;  ///< the last prepare() that has given it out
  Detour plain, with_behind;     ///< entry 0: not made yet
  struct Registered {
    Hook* hook = nullptr;
    bool enabled = false, general = false;
    char letter = 'k';  ///< of the list: k, r, f
  };
  std::vector<Registered> registered;  ///< newest first
  std::vector<uint8_t>
      armed;  ///< the bytes at `address` that we put there; empty: the original ones
};

struct Want {
  TargetAddr address;
  bool allow_trap = false;
  bool behind = false;
};

struct Change {
  Place* place = nullptr;
  Hook* hook = nullptr;
  enum class What : uint8_t { kAdd, kEnable, kDisable, kRemove } what = What::kAdd;
  bool enabled = true, general = false;
  char letter = 'k';
};

/// Holds the engine's lock. What was opened to look at the program is closed when it goes.
class EngineSession {
 public:
  EngineSession();
  ~EngineSession();
  EngineSession(const EngineSession&) = delete;
  EngineSession& operator=(const EngineSession&) = delete;

 private:
  std::lock_guard<std::mutex> lock_;
};

/// Outcome i belongs to wants[i]. Errors in Refused; the whole fails where the program cannot be
/// read.
Result<std::vector<std::expected<Place*, Refused>>> prepare(std::span<const Want> wants);

/// Adds fail as a whole, having changed nothing. Removing and disabling always works: where the
/// original bytes cannot be put back now (a thread is held by a debugger), the place stays armed
/// without handlers until the next change. Nobody is waited for: behind a removal the caller lets
/// go of the lock and calls wait_for_readers(), then free_old_lists().
Result<void> change(std::span<const Change> changes);

/// Lists that change() replaced; to be freed behind wait_for_readers().
using OldLists = std::vector<std::unique_ptr<Hook*[]>>;
OldLists take_old_lists();

/// All places that have something registered, by address.
std::vector<const Place*> registered_places();

/// trap.cc: the SIGTRAP handler is there and knows the place.
Result<void> add_trap(Site* site);

}  // namespace spile::api
