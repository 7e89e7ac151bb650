// Libraries that come and go while a process is traced.
//
// The tracer looks at the process's mappings some times a second, from outside: a probe in the
// dynamic loader would tell sooner, but musl's, static programs with a loader of their own, and
// whoever maps code by himself have none. What has stayed the same from one look to the next is
// planned and patched as at an attach (extend(), attach.cc). The limit: calls before that are
// missed, those of constructors always.
//
// A library that is unloaded takes our jumps with it. Bytes are put back only where our own jump
// is, so whatever lies at those addresses by then is left alone. But children that were forked
// before may have the library still: its sites stay on the list and in the journal, until the
// table's room is needed and no such child lives. A library that came back to its old place is
// known by its bytes: they are the file's again.
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

  /// Looks, if it is time, and sets what can be set. Cost: one reading of /proc/PID/maps every 10
  /// ms (less often where that takes long), nothing for a script whose files cannot go.
  void look(Attachment& attachment, const AttachContext& context);

  /// For the end of a trace: what its figures lack. nullopt: nothing was loaded later.
  std::optional<std::string> missed(pid_t pid) const;

  /// What the user should know. Emptied by the call.
  std::vector<std::string> take_warnings() { return std::exchange(warnings_, {}); }

 private:
  /// One place of each module that we have patched, with what its file has there.
  struct Witness {
    TargetAddr at;
    patch::EditBytes before;
  };

  bool may_change(const Attachment& attachment) const;
  bool any_came_back(const Attachment& attachment) const;
  void choose_witnesses(const Attachment& attachment);
  void follow(Attachment& attachment, const AttachContext& context);
  void note_extension();
  void tell_refusals(const Attachment& attachment, size_t first);

  Clock::time_point next_{};
  Clock::time_point looked_;         ///< at the mappings, last
  Clock::time_point came_after_;     ///< what is not probed yet was loaded after this
  Clock::duration longest_{};        ///< from there to its probes
  std::string code_;                 ///< the lines of mapped files' code, as of the last look
  std::optional<bool> is_worth_it_;  ///< may_change()
  bool settled_ = true;              ///< handled
  std::vector<Witness> witnesses_;
  size_t extensions_ = 0;
  bool gave_up_ = false;
  std::vector<std::string> warnings_;
};

}  // namespace spile::user_engine
