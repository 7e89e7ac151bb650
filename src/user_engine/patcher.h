// The stop: what was prepared goes into the process, and out of it again if something fails
// halfway.
//
// At every moment of it the tracer may be killed and the target runs on: before a jump is written
// its detour is complete, and the journal says what was changed.
#pragma once

#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "user_engine/prepare.h"
#include "user_engine/target/inject.h"
#include "user_engine/target/stopped.h"

namespace spile::user_engine {

class Patcher {
 public:
  /// `extended`: the sites join an attachment and its shared memory. It must outlive this.
  Patcher(const target::Target& target,
          const AttachContext& context,
          Prepared prepared,
          Attachment* extended = nullptr)
      : target_(target),
        context_(context),
        extended_(extended),
        prepared_(std::move(prepared)),
        first_semaphore_(extended == nullptr ? 0
                                             : static_cast<uint32_t>(extended->semaphores.size())) {
  }

  /// Patches the stopped process. Errors:
  ///   busy    a thread stands in the way (blocked()), something is mapped where we wanted to be
  ///           or it has unloaded a library of the plan (unloaded())
  ///   unsafe  the code has changed since it was planned
  /// and those of the parts. Then roll_back() puts back what has changed.
  Result<void> commit(target::StoppedProcess& process);
  /// Writes jumps whose detours and journal entries are there already. What fails is undone.
  Result<void> commit_again(target::StoppedProcess& process);
  /// After a failed commit, in the same stop. Only what this has made is taken out: another spile
  /// may hold the process by now, at the very addresses that were meant for us.
  void roll_back(target::StoppedProcess& process);

  /// Where one stop would be too long, the first only maps, and the process runs between the
  /// others.
  bool needs_many_stops() const { return prepared_.batches.size() > 1; }
  Result<void> commit_first_of_many(target::StoppedProcess& process);
  Result<void> commit_rest();
  void roll_back_running();

  /// Sites that a thread stands in the way of.
  const std::set<const PlannedSite*>& blocked() const { return blocked_; }
  /// Sites in libraries that the process has unloaded since they were planned.
  const std::set<const PlannedSite*>& unloaded() const { return unloaded_; }
  /// Why SIGTRAP cannot be had, after a failure for that.
  const std::optional<std::string>& no_traps() const { return no_traps_; }
  /// After success. The patcher is empty then.
  std::unique_ptr<Attachment> finish();
  /// The same where there is an attachment already.
  void join();
  bool has_joined() const { return joined_; }
  /// Behind the stop: no filter of the process forbids waiting for us.
  bool may_wait() const { return (allowed_calls_ & abi::kCallFutex) != 0; }

 private:
  /// `written`: how many of all edits have been made.
  Result<void> check_unchanged(const target::StoppedProcess& process,
                               const Batch& batch,
                               size_t written);
  Result<void> find_unloaded(const Batch& batch, size_t changed);
  std::vector<uint8_t> expected_at(const Write& write, size_t written) const;
  Result<void> find_blocked_sites(const target::StoppedProcess& process, const Batch& batch);
  static const BuiltSite* site_around(const Batch& batch, const target::StoppedThread& thread);
  Result<TargetAddr> rip_after(const BuiltSite& site, const target::StoppedThread& thread) const;
  target::AddressRange private_stacks() const;
  std::vector<target::RegionSpec> region_specs() const;
  bool may_read_tsc() const;
  shm::Region& region() { return extended_ != nullptr ? extended_->region : region_; }
  Result<void> check_room() const;
  Result<void> check_calls(const target::StoppedProcess& process);
  Result<void> map_regions(target::StoppedProcess& process);
  Result<void> fill_data();
  Result<void> fill_code();
  void fill_stones();
  void fill_trap_page();
  Result<void> take_sigtrap(target::StoppedProcess& process);
  abi::RtConsts constants(const CodeImage& code) const;
  void keep_views();
  void begin_journal();
  void write_journal_ahead();
  Result<void> move_threads(target::StoppedProcess& process, const Batch& batch);
  Result<void> write_jumps(const target::StoppedProcess& process, const Batch& batch);
  Result<void> patch(target::StoppedProcess& process, const Batch& batch);
  Result<void> raise_semaphores(const target::StoppedProcess& process);
  Result<void> patch_in_stop_of_its_own(const Batch& batch);
  void note_stop(const target::StoppedProcess& process);
  void forget_regions(bool undone);
  Result<void> write_page(const target::StoppedProcess& process, size_t first, size_t last);
  void set_state(abi::JournalState state);
  std::vector<PatchedSite> patched_sites() const;
  void give_back_slots();
  std::vector<RegionRange> ranges() const;

  const target::Target& target_;
  const AttachContext& context_;
  Attachment* extended_;
  Prepared prepared_;
  std::set<const PlannedSite*> blocked_, unloaded_;
  std::optional<std::string> no_traps_;
  Mapping data_;
  shm::Region region_;
  /// One a neighbourhood, then the trap page, then that of the stones.
  std::vector<target::RemoteMemory> code_;
  Switches switches_;  ///< keeps our view of the code
  std::optional<int64_t> tid_offset_, stack_offset_;
  uint32_t allowed_calls_ = abi::kCallAll;
  SiteSlots slots_;                      ///< of a new attachment
  std::vector<uint32_t> slot_of_write_;  ///< entries of the site table
  uint32_t first_semaphore_;             ///< those of the journal before it are the attachment's
  std::vector<std::string> warnings_;
  uint64_t stopped_ns_ = 0;
  bool mapped_ = false, journaled_ = false, joined_ = false, has_sigtrap_ = false;
  std::vector<os::MapEntry> mappings_;
};

}  // namespace spile::user_engine
