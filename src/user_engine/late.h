// Libraries that come and go while a process is traced.
//
// Two ways to learn of them. The dynamic loader calls _dl_debug_state when a library has come and
// none of its code has run: a hidden place of ours there makes the thread wait until the probes are
// set (abi/loader_gate.h, loader_watch.h), so that no call is missed, constructors included. And
// the tracer looks at the process's mappings some times a second, from outside: whoever maps code
// by himself, loaders without that function and threads that did not wait are seen so, 20 to 30 ms
// late.
//
// When the loader tells, a library is mapped and (glibc before 2.41) not relocated yet. Code is the
// file's; what reads words that the loader fills (IFUNCs, jumps through pointers) may be refused
// for that: such probes are tried again a look later.
//
// A library that is unloaded takes our jumps with it. Bytes are put back only where our own jump
// is, so whatever lies at those addresses by then is left alone. But children that were forked
// before may have the library still: its sites stay on the list and in the journal, until the
// table's room is needed and no such child lives. A library that came back to its old place is
// known by its bytes: they are the file's again. Then its jumps are written again (rearm.h).
#pragma once

#include <chrono>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "user_engine/attachment.h"

namespace spile::user_engine {

/// Moves the sites in modules that the process has unloaded, or loaded anew, to
/// Attachment::unloaded.
void set_aside_unloaded(Attachment& attachment);

/// Frees the entries of sites in Attachment::unloaded that nobody has any more: not the process,
/// whose memory is looked at, and no child that it forked. Where a child lives nothing is freed.
/// Cost: a reading of /proc.
void forget_unloaded(Attachment& attachment);

/// One traced process, looked at again and again.
class LateLibraries {
 public:
  using Clock = std::chrono::steady_clock;

  /// `since`: a moment before the attach began to look at what is loaded.
  explicit LateLibraries(Clock::time_point since) : looked_(since), came_after_(since) {}

  /// Looks, if it is time or a thread waits, and sets what can be set. Cost: one reading of
  /// /proc/PID/maps every 10 ms (less often where that takes long), nothing for a script whose
  /// files cannot go.
  void look(Attachment& attachment, const AttachContext& context);

  /// For the end of a trace: warns of what its figures lack.
  void end(const Attachment& attachment);

  /// Sites have been set without it.
  void learn_sites(const Attachment& attachment) { choose_witnesses(attachment); }

  /// What the user should know. Emptied by the call.
  std::vector<std::string> take_warnings() { return std::exchange(warnings_, {}); }

 private:
  /// One place of each module that we have patched, with what its file has there.
  struct Witness {
    TargetAddr at;
    patch::EditBytes before;
  };

  /// Probes of modules that could not be set yet.
  struct Retry {
    std::set<ModuleIdentity> modules;
    std::set<int> probes;
  };

  void answer(Attachment& attachment, const AttachContext& context);
  void look_now(Attachment& attachment, const AttachContext& context);
  bool tell_waits_in_vain(const Attachment& attachment);
  std::optional<std::string> what_is_missed(pid_t pid) const;
  void rest_after(Clock::time_point began);
  bool is_at_rest(const Attachment& attachment);
  bool may_change(const Attachment& attachment) const;
  bool any_came_back(const Attachment& attachment) const;
  void choose_witnesses(const Attachment& attachment);
  void follow(Attachment& attachment, const AttachContext& context, bool is_early);
  Result<std::set<ModuleIdentity>> follow_new(Attachment& attachment,
                                              const std::set<ModuleIdentity>& fresh,
                                              const AttachContext& context,
                                              bool is_early);
  void note_late(bool is_early);
  void forget_retries(const std::set<ModuleIdentity>& loaded);
  void try_again(Attachment& attachment, const AttachContext& context);
  void tell_refusals(const Attachment& attachment, size_t first);

  Clock::time_point next_{};
  Clock::time_point rest_until_{};   ///< no stop before
  Clock::time_point looked_;         ///< at the mappings, last
  Clock::time_point came_after_;     ///< what is not probed yet was loaded after this
  Clock::duration longest_{};        ///< from there to its probes
  std::string code_;                 ///< the lines of mapped files' code, as of the last look
  std::optional<bool> is_worth_it_;  ///< may_change()
  bool settled_ = true;              ///< handled
  std::vector<Witness> witnesses_;
  size_t extensions_ = 0;
  size_t late_loads_ = 0;
  std::vector<Retry> retries_;
  std::set<ModuleIdentity> incomplete_;  ///< unloaded before a retry: not to be rearmed
  /// The loader's r_debug::r_state; empty: not known, or not looked for.
  std::optional<std::optional<TargetAddr>> loader_state_;
  uint32_t in_vain_ = 0;  ///< waits, as of the last look
  bool gave_up_ = false;
  std::vector<std::string> warnings_;
};

}  // namespace spile::user_engine
