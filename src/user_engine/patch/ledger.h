// Who owns which byte around short sites, and what it will be. Every change can be taken back, so
// that ways to patch can be tried.
#pragma once

#include <optional>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "user_engine/patch/code_map.h"
#include "user_engine/patch/placement.h"

namespace spile::patch {

class Ledger {
 public:
  /// By address. What becomes of the bytes of a site is open until it is closed.
  Ledger(const CodeMap& map, std::span<const SitePlan* const> sites);

  /// What a byte will be.
  struct Settled {
    uint8_t value = 0;
    uint8_t level = 0;  ///< of an edit that depends on it: above that of the byte's own edit
  };
  /// nullopt: not known yet (a jump to a detour, a short site that has no way yet), or no text.
  std::optional<Settled> settled(TargetAddr at) const;
  /// What the module has there.
  std::optional<uint8_t> original(TargetAddr at) const;
  /// No site has it, nobody changes it, nobody relies on it.
  bool is_free(TargetAddr at) const;
  /// The same, but it may be in the window of a site, where that changes nothing: for bytes that
  /// are never reached.
  bool is_spare(TargetAddr at) const;
  /// Nobody changes it, nobody relies on it.
  bool is_untouched(TargetAddr at) const;

  /// The index of the site that owns `at`; nullopt: none.
  std::optional<size_t> owner(TargetAddr at) const;
  bool is_open(size_t site) const { return open_[site]; }

  void add_edit(const Edit& edit);
  void lock(TargetAddr at);
  /// Bytes of a moved instruction: no longer free.
  void claim(TargetAddr from, TargetAddr to);
  /// From here on the bytes of the site that nobody edits stay as they are.
  void close(size_t site);
  void close_refused(size_t site);

  /// Everything since mark() is undone.
  size_t mark() const { return log_.size(); }
  void roll_back(size_t mark);

 private:
  enum class What : uint8_t { kEdit, kLock, kClaim, kClose };
  struct Change {
    What what;
    uint64_t key;
  };
  struct Edited {
    uint8_t value, level;
  };

  const CodeMap& map_;
  std::span<const SitePlan* const> sites_;
  std::vector<bool> open_, refused_;
  std::unordered_map<uint64_t, Edited> edited_;
  std::unordered_map<uint64_t, uint32_t> locked_;
  std::unordered_set<uint64_t> claimed_;
  std::vector<Change> log_;
};

}  // namespace spile::patch
