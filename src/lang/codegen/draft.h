// The Bundle while it is being made: maps of the script, internal maps on demand, actions.
#pragma once

#include <map>
#include <optional>
#include <set>

#include "bundle/bundle.h"
#include "lang/sema/options.h"
#include "lang/sema/typed.h"

namespace spile::lang::codegen {

/// What a clause wants to know at a return about the entry of the call: emit_session.cc.
struct Session {
  std::set<uint32_t> arguments;  ///< offsets in the context
  bool wants_time = false;

  uint32_t value_bytes() const {
    return 8 * (static_cast<uint32_t>(arguments.size()) + (wants_time ? 1 : 0));
  }
  bundle::MapSpec spec() const;
};
std::optional<Session> session_of(const typed::Clause& clause);

class Draft {
 public:
  Draft(const typed::Program& program, const CompileOptions& options);

  const typed::Program& program() const { return program_; }
  const CompileOptions& options() const { return options_; }
  const bundle::MapSpec& spec(int map) const { return bundle_.maps[static_cast<size_t>(map)]; }

  // Indices of the internal maps, made when first asked for.
  int ring();
  int counters();
  int start_time();
  /// For stacks of at most `frames` addresses.
  int stacks(uint32_t frames);
  /// Of one clause's calls under way.
  int entries(const typed::Clause& clause, const Session& session);
  /// `what` is something that only the kernel engine has.
  void need_kernel(std::string_view what) { bundle_.needs_kernel = what; }
  void note_loops() { bundle_.has_loops = true; }
  /// `type` is printed somewhere: notes what that takes.
  void note(const Type& type);

  int cookie_of(int probe) const { return bundle_.probes[static_cast<size_t>(probe)].cookie; }

  size_t programs() const { return bundle_.programs.size(); }

  /// Returns its index. `record_size` is filled from the fields.
  int add_action(bundle::Action action);
  /// What is counted where the record of `action` finds no room.
  bundle::Counter counter_without_room(int action);
  void add_program(bundle::Program code, const typed::Clause& clause);
  /// The program of probes at the entry of the functions that the clause sees return.
  void add_entry_program(bundle::Program code, const typed::Clause& clause);
  bundle::Bundle take() { return std::move(bundle_); }

 private:
  const typed::Program& program_;
  const CompileOptions& options_;
  bundle::Bundle bundle_;
  std::map<const typed::Clause*, int> entries_;
};

/// Appends a field to an action's record and returns its offset.
uint32_t add_field(bundle::Action& action, const Type& type);

/// Buckets of a histogram: array entries of a scalar one.
uint32_t bucket_count(const typed::Map& map);

}  // namespace spile::lang::codegen
