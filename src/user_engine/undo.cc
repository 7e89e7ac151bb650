#include "user_engine/undo.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <thread>

#include "abi/data_region.h"
#include "abi/pending.h"
#include "abi/private_stack.h"
#include "os/process.h"
#include "user_engine/address_plan.h"
#include "user_engine/target/inject.h"
#include "user_engine/target/threads_inside.h"
#include "user_engine/traps.h"
#include "x86/decode.h"
#include "x86/format.h"

namespace spile::user_engine {

using target::AddressRange;
using target::StoppedProcess;
using target::Target;

bool in_any(const std::vector<AddressRange>& ranges, TargetAddr a) {
  return std::ranges::any_of(ranges, [&](const AddressRange& r) { return r.contains(a); });
}

std::optional<TargetAddr> jump_target(const Target& target, TargetAddr at) {
  std::array<uint8_t, 16> code{};
  size_t size = target.memory().read_some(at, code);
  auto insn = x86::decode(std::span(code).first(size));
  if (!insn || insn->kind != x86::Kind::kJmp) return std::nullopt;
  return insn->branch_target(at);
}

std::chrono::nanoseconds rest_after_vain_stop(std::chrono::nanoseconds held) {
  constexpr std::chrono::nanoseconds kLongest = std::chrono::seconds(2);
  return held < kLongest / 10 ? held * 10 : kLongest;
}

void Job::sort() {
  std::ranges::sort(patches, [](const PatchedBytes& a, const PatchedBytes& b) {
    return a.level != b.level ? a.level > b.level : a.address < b.address;
  });
}

namespace {

constexpr auto kSlowStop = std::chrono::milliseconds(100);
constexpr int kSlowStops =
    3;  ///< a thread that cannot be stopped (vfork, dead disk) is asked this often

bool has_inode(const std::vector<os::MapEntry>& maps, uint64_t inode) {
  return std::ranges::any_of(maps, [&](const os::MapEntry& m) { return m.inode == inode; });
}

/// More stops for threads that are in our code and only lack a CPU: about 8 s.
constexpr int kStopsForCpu = 200;
/// How long threads in our code run alone: the first time, and at most. All together 5 ms.
constexpr std::chrono::nanoseconds kFirstRun = std::chrono::microseconds(20),
                                   kLastRun = std::chrono::microseconds(2560);
/// 20 ms is all that a stop may take.
constexpr size_t kPatchesPerStop = 16'000;

/// One stop of one process: what has been done and what still stands in the way.
class Undo {
 public:
  Undo(const Target& target, const Job& job, DetachReport& report)
      : target_(target), job_(job), report_(report) {}

  Result<void> run();
  /// For a process in which no thread has run since it was patched.
  Result<void> in_stop(StoppedProcess& process);

 private:
  Result<bool> once(bool last);
  void wait(std::chrono::nanoseconds time) const;
  Result<std::vector<AddressRange>> ranges_to_unmap();
  Result<std::vector<AddressRange>> without_missing_late(
      const std::vector<AddressRange>& ranges) const;
  Result<void> restore(size_t limit);
  Result<void> lower();
  bool is_patched(TargetAddr site) const;
  bool is_mapped(const PatchedBytes& patch) const;
  const std::vector<const PatchedBytes*>& by_address() const;
  bool is_other_jump_of_ours(TargetAddr at, std::span<const uint8_t> here) const;
  void note_stop(const StoppedProcess& process);
  void note_interrupted(const StoppedProcess& process);
  Result<void> unmap(StoppedProcess& process, const std::vector<AddressRange>& ranges);
  Result<void> set_state(abi::JournalState state);
  Result<void> restore_bytes(size_t limit);
  Result<void> restore_page(std::span<const PatchedBytes> patches);
  Result<void> move_threads(StoppedProcess& process);
  bool is_between_jumps(TargetAddr rip) const;
  Result<bool> clear_hops(StoppedProcess& process);
  std::vector<pid_t> threads_inside(const StoppedProcess& process);
  Result<std::vector<pid_t>> threads_still_inside(StoppedProcess& process);

  const Target& target_;
  const Job& job_;
  DetachReport& report_;
  size_t next_ = 0;  ///< of job_.patches: those before it are restored
  bool lowered_ = false, restored_ = false;
  std::vector<pid_t> executing_;  ///< at the last look: in our code, and free to run
  bool hops_clear_ = true;
  mutable std::vector<const PatchedBytes*> by_address_;  ///< see by_address()
  int waits_for_cpu_ = 0;
  bool refused_ = false;  ///< a living tracer holds the process: asking again will not help
};

Result<void> Undo::set_state(abi::JournalState state) {
  if (!job_.journal) return {};
  auto value = static_cast<uint32_t>(state);
  return target_.memory().write(*job_.journal + abi::kJournalOffset + offsetof(abi::Journal, state),
                                {reinterpret_cast<const uint8_t*>(&value), sizeof value});
}

/// The patches of one level on one page go in one write.
/// Up to `limit` patches; the rest in later calls.
Result<void> Undo::restore_bytes(size_t limit) {
  const auto& patches = job_.patches;
  const size_t end = std::min(patches.size(), next_ + std::min(limit, patches.size()));
  while (next_ < end) {
    size_t last = next_;
    while (last + 1 < end && patches[last + 1].level == patches[next_].level &&
           page_of(patches[last + 1].address) == page_of(patches[next_].address))
      last++;
    SPILE_TRY_VOID(restore_page(std::span(patches).subspan(next_, last + 1 - next_)));
    next_ = last + 1;
  }
  return {};
}

/// Made when it is first asked for: a plain job does without.
const std::vector<const PatchedBytes*>& Undo::by_address() const {
  if (by_address_.empty()) {
    for (const PatchedBytes& p : job_.patches) by_address_.push_back(&p);
    std::ranges::sort(by_address_, {}, &PatchedBytes::address);
  }
  return by_address_;
}

/// A library that came back to its place was patched anew there, with other jumps.
bool Undo::is_other_jump_of_ours(TargetAddr at, std::span<const uint8_t> here) const {
  const auto same = std::ranges::equal_range(by_address(), at, {}, &PatchedBytes::address);
  return std::ranges::any_of(
      same, [&](const PatchedBytes* p) { return std::ranges::equal(p->patched, here); });
}

bool Undo::is_mapped(const PatchedBytes& patch) const {
  auto maps = target_.maps();
  return !maps || std::ranges::any_of(*maps, [&](const os::MapEntry& m) {
    return m.contains(patch.address) && (patch.inode == 0 || m.inode == patch.inode);
  });
}

Result<void> Undo::restore_page(std::span<const PatchedBytes> patches) {
  TargetAddr start = patches.front().address;
  std::vector<uint8_t> bytes(static_cast<size_t>(patches.back().address - start) +
                             patches.back().patched.size());
  // Unreadable: the library has been unloaded, and its jumps with it.
  if (!target_.memory().read(start, bytes)) return {};
  bool changed = false;
  for (const PatchedBytes& patch : patches) {
    std::span<uint8_t> here(bytes.data() + (patch.address - start), patch.patched.size());
    if (std::ranges::equal(here, patch.patched)) {
      std::ranges::copy(patch.original, here.begin());
      changed = true;
      report_.restored++;
    } else if (!std::ranges::equal(here, patch.original) &&
               !is_other_jump_of_ours(patch.address, here) && is_mapped(patch)) {
      report_.notes.push_back(
          fmt::format("process {}: the code at {} was changed by somebody else meanwhile ({}) "
                      "and is left alone",
                      target_.pid(), patch.address, x86::hex(here)));
    }
  }
  if (!changed) return {};
  auto written = target_.memory().write(start, bytes);
  if (!written) return forward(written, "restore the code at {}", start);
  return {};
}

/// Whether a thread with this rip has run a site's jump and not yet the one that it leads to, in
/// padding or inside a moved instruction: no original instruction begins there.
bool Undo::is_between_jumps(TargetAddr rip) const {
  const auto& patches = by_address();
  auto first =
      std::ranges::lower_bound(patches, rip - (abi::kMaxSiteBytes - 1), {}, &PatchedBytes::address);
  for (; first != patches.end() && (*first)->address <= rip; ++first) {
    const PatchedBytes& p = **first;
    bool inside = rip >= p.address + (p.is_site ? 1 : 0) && rip < p.address + p.patched.size();
    std::vector<uint8_t> now(p.patched.size());
    // Not where the jump was never written, or is gone again.
    if (inside && target_.memory().read(p.address, now) && std::ranges::equal(now, p.patched))
      return true;
  }
  return false;
}

/// Before bytes are put back: threads between two jumps take the second. False: one was interrupted
/// there by a signal and will come back, or its stack cannot be searched for that.
Result<bool> Undo::clear_hops(StoppedProcess& process) {
  if (std::ranges::all_of(job_.patches, &PatchedBytes::is_site)) return true;
  for (size_t i = 0; i < process.threads().size(); i++) {
    os::Registers registers = process.threads()[i].registers;
    if (!is_between_jumps(TargetAddr(registers.rip))) continue;
    auto to = jump_target(target_, TargetAddr(registers.rip));
    if (!to || !in_any(job_.code, *to)) return false;
    registers.rip = to->value;
    SPILE_TRY_VOID(process.set_registers(i, registers));
  }
  auto interrupted = target::live_contexts(
      process, [&](TargetAddr a) { return is_between_jumps(a); }, job_.stacks);
  return interrupted.found.empty() && interrupted.incomplete.empty();
}

/// Threads in a displaced copy go on in the original, which is back in its place.
Result<void> Undo::move_threads(StoppedProcess& process) {
  for (size_t i = 0; i < process.threads().size(); i++) {
    os::Registers registers = process.threads()[i].registers;
    TargetAddr rip(registers.rip);
    if (!in_any(job_.code, rip)) continue;
    for (const x86::RelocatedCode* displaced : job_.displaced) {
      auto resume = patch::rip_after_detach(*displaced, rip);
      if (!resume) continue;
      // The kernel left this address in rcx too, for a program that looks where it came back to.
      if (registers.rcx == registers.rip) registers.rcx = resume->original.value;
      registers.rip = resume->original.value;
      registers.rsp += resume->pop_bytes;
      SPILE_TRY_VOID(process.set_registers(i, registers));
      break;
    }
  }
  return {};
}

std::vector<pid_t> Undo::threads_inside(const StoppedProcess& process) {
  std::set<pid_t> inside, executing;
  const auto note = [&](const target::StoppedThread& thread) {
    inside.insert(thread.tid);
    // Else it lacks no CPU but a SIGCONT.
    if (!thread.group_stopped) executing.insert(thread.tid);
  };
  for (const auto& found : target::threads_at(process, job_.code))
    note(process.threads()[found.thread]);
  for (const size_t thread : threads_trapping(process, job_.traps)) note(process.threads()[thread]);
  executing_.assign(executing.begin(), executing.end());
  auto interrupted = target::live_contexts(process, job_.code, job_.stacks);
  for (const auto& found : interrupted.found) inside.insert(process.threads()[found.thread].tid);
  for (size_t thread : interrupted.incomplete) inside.insert(process.threads()[thread].tid);
  return {inside.begin(), inside.end()};
}

/// Our code is left within microseconds by who gets a processor. On a busy machine that takes many
/// times as long, and with many threads there is always one that waits for it inside: so those get
/// theirs while the others stay stopped. They cannot come back: no jump is left.
Result<std::vector<pid_t>> Undo::threads_still_inside(StoppedProcess& process) {
  auto inside = threads_inside(process);
  // Where that did not help twice, little is known of why: the process is not held for it for long.
  const auto last = waits_for_cpu_ < 2 ? kLastRun : kFirstRun * 8;
  for (auto time = kFirstRun; !executing_.empty() && time <= last; time *= 2) {
    SPILE_TRY_VOID(process.let_run(executing_, time));
    SPILE_TRY_VOID(move_threads(process));
    inside = threads_inside(process);
  }
  return inside;
}

/// An adopter comes back stop after stop. Between two stops another may have finished the job, the
/// target may have mapped something of its own there, and a new tracer may have attached, even at
/// the same addresses.
Result<std::vector<AddressRange>> Undo::ranges_to_unmap() {
  if (!job_.adopted) return without_missing_late(job_.unmap);
  auto free = refuse_live_owner(target_);
  if (!free) {
    refused_ = true;
    return std::unexpected(std::move(free.error()));
  }
  SPILE_TRY(auto maps, target_.maps());
  std::vector<AddressRange> ranges;
  for (const AddressRange& range : job_.unmap) {
    bool is_there = std::ranges::any_of(target::our_mappings(maps), [&](const os::MapEntry& m) {
      // A per-thread page is known by the data region behind it, the tables below by both.
      const bool is_page = range.size() == kPageBytes && m.start == range.end;
      const bool is_table =
          range.size() == abi::kPendingTableBytes && m.start == range.end + kPageBytes;
      const TargetAddr above = range.end + kPageBytes;
      const bool is_stacks = range.size() == abi::kPrivatePoolBytes &&
                             (m.start == above + kPageBytes ||
                              m.start == above + kPageBytes + abi::kPendingTableBytes);
      const bool is_known = has_inode(job_.mappings, m.inode) || has_inode(job_.late, m.inode);
      return is_known && (m.contains(range.start) || is_page || is_table || is_stacks);
    });
    if (is_there) ranges.push_back(range);
  }
  return ranges;
}

/// Of the ranges that came later only those that this process has.
Result<std::vector<AddressRange>> Undo::without_missing_late(
    const std::vector<AddressRange>& ranges) const {
  if (job_.late.empty()) return ranges;
  SPILE_TRY(auto maps, target_.maps());
  const auto ours = target::our_mappings(maps);
  std::vector<AddressRange> there;
  for (const AddressRange& range : ranges) {
    bool is_late =
        std::ranges::find(job_.late, range.start, &os::MapEntry::start) != job_.late.end();
    bool is_there = std::ranges::any_of(ours, [&](const os::MapEntry& m) {
      return m.start == range.start && has_inode(job_.late, m.inode);
    });
    if (!is_late || is_there) there.push_back(range);
  }
  return there;
}

bool Undo::is_patched(TargetAddr site) const {
  auto patch = std::ranges::find(job_.patches, site, &PatchedBytes::address);
  if (patch == job_.patches.end()) return false;
  std::vector<uint8_t> now(patch->patched.size());
  return target_.memory().read(site, now) && std::ranges::equal(now, patch->patched);
}

/// Once a process: what a second time would take away is another tracer's.
Result<void> Undo::lower() {
  if (std::exchange(lowered_, true)) return {};
  std::optional<TargetAddr> journal;
  if (job_.journal) journal = *job_.journal + abi::kJournalOffset;
  return lower_semaphores(target_.memory(), job_.semaphores, journal,
                          [&](TargetAddr site) { return is_patched(site); });
}

Result<void> Undo::restore(size_t limit) {
  if (restored_) return {};
  if (next_ == 0) SPILE_TRY_VOID(set_state(abi::JournalState::kDetaching));
  SPILE_TRY_VOID(lower());
  SPILE_TRY_VOID(restore_bytes(limit));
  if (next_ < job_.patches.size()) return {};
  SPILE_TRY_VOID(set_state(abi::JournalState::kDetached));
  restored_ = true;
  return {};
}

/// No thread needs any of it: SIGTRAP's handler, which lies in one of the ranges, goes first.
Result<void> Undo::unmap(StoppedProcess& process, const std::vector<AddressRange>& ranges) {
  if (ranges.empty()) return {};
  SPILE_TRY_VOID(give_back_sigtrap(process, job_.code, job_.scratch));
  return target::unmap(process, ranges);
}

Result<void> Undo::in_stop(StoppedProcess& process) {
  SPILE_TRY_VOID(restore(job_.patches.size()));
  SPILE_TRY_VOID(move_threads(process));
  return unmap(process, job_.unmap);
}

void Undo::note_stop(const StoppedProcess& process) {
  report_.stopped_ns =
      std::max(report_.stopped_ns, static_cast<uint64_t>(process.stopped_for().count()));
}

void Undo::note_interrupted(const StoppedProcess& process) {
  report_.notes.push_back(fmt::format(
      "process {}: a signal handler that has not come back interrupted a thread between two of our "
      "jumps (or a stack cannot be searched for that): the probes stay; spile detach -p {} removes "
      "them later",
      process.target().pid(), process.target().pid()));
}

/// True when nothing of ours is left.
Result<bool> Undo::once(bool last) {
  SPILE_TRY(auto process, StoppedProcess::stop(target_));
  SPILE_TRY(auto ranges, ranges_to_unmap());
  if (!ranges.empty()) {
    if (!restored_) {
      SPILE_TRY(hops_clear_, clear_hops(process));
    }
    if (!hops_clear_) {
      if (last) note_interrupted(process);
      return false;
    }
    SPILE_TRY_VOID(restore(kPatchesPerStop));
    // Some sites still hold jumps: their copies must stay, and threads must stay in them.
    if (!restored_) {
      note_stop(process);
      return false;
    }
    SPILE_TRY_VOID(move_threads(process));
  }
  std::vector<pid_t> inside;
  if (!ranges.empty()) {
    SPILE_TRY(inside, threads_still_inside(process));
  }
  if (!inside.empty()) {
    if (last) {
      report_.notes.push_back(
          fmt::format("process {}: thread {} may still return into our code (a signal handler that "
                      "has not come back, or a stack that cannot be searched); "
                      "the code stays mapped, nothing jumps to it any more; spile detach -p {} "
                      "removes it later",
                      target_.pid(), inside.front(), target_.pid()));
    }
    return false;
  }
  SPILE_TRY_VOID(unmap(process, ranges));
  note_stop(process);
  SPILE_TRY_VOID(target::clean_leftover_stubs(process));
  // A thread that a killed tracer left in its stub is still on its way home.
  return std::ranges::none_of(target::find_leftover_stubs(process), &target::LeftoverStub::running);
}

/// The process runs meanwhile, some of its probes still in place.
void Undo::wait(std::chrono::nanoseconds time) const {
  constexpr std::chrono::nanoseconds kStep = std::chrono::milliseconds(5);
  for (; time > std::chrono::nanoseconds::zero(); time -= kStep) {
    if (job_.while_waiting) job_.while_waiting();
    std::this_thread::sleep_for(std::min(time, kStep));
  }
}

Result<void> Undo::run() {
  for (int i = 1; i <= kStops;) {
    auto began = std::chrono::steady_clock::now();
    auto done = target::with_tracer_thread([&] { return once(i == kStops); });
    if (!done && done.error().code == ErrorCode::kTargetGone) return {};
    if (!done && (done.error().code != ErrorCode::kBusy || refused_ || i == kStops))
      return forward(done, "detach from process {}", target_.pid());
    if (done && *done) return {};
    auto held = std::chrono::steady_clock::now() - began;
    if (!done && held > kSlowStop && i >= kSlowStops)
      return forward(done, "detach from process {}", target_.pid());
    const std::chrono::nanoseconds pause =
        std::chrono::milliseconds(std::min(i + waits_for_cpu_, 40));
    wait(done ? pause : std::max(pause, rest_after_vain_stop(held)));
    // A stop that only restored some sites was no vain attempt; and a thread that was preempted in
    // our code leaves it as soon as it gets a CPU, on a busy machine after seconds.
    bool waits = done && !executing_.empty() && ++waits_for_cpu_ < kStopsForCpu;
    if (!done || !hops_clear_ || (restored_ && !waits)) i++;
  }
  return {};
}

/// A list that a process gave us says nothing without code: nothing can jump there.
bool is_ours(const std::vector<os::MapEntry>& maps, const Job& job) {
  if (!has_all(maps, job.mappings)) return false;
  return !job.adopted || std::ranges::any_of(job.mappings, &os::MapEntry::exec) ||
         std::ranges::any_of(job.late, [&](const os::MapEntry& w) { return has_same(maps, w); });
}

}  // namespace

Result<void> undo_in_stop(StoppedProcess& process, const Job& job) {
  DetachReport report;
  return Undo(process.target(), job, report).in_stop(process);
}

Result<DetachReport> undo_everywhere(const Target& target, const Job& job) {
  DetachReport report;
  std::set<pid_t> known{target.pid(), getpid()};
  if (target.alive()) {
    SPILE_TRY_VOID(Undo(target, job, report).run());
    report.processes++;
  }
  for (int pass = 0; pass < 20 && !job.mappings.empty(); pass++) {
    auto children = forked_children(job.mappings, job.tracer_start_time, known);
    if (children.empty()) break;
    for (pid_t pid : children) {
      known.insert(pid);
      auto child = Target::open(pid);
      // Looked at again through the opened process: the number may be another's by now, or it has
      // called exec.
      auto maps = child ? child->maps() : Result<std::vector<os::MapEntry>>();
      if (child && (!maps || !is_ours(*maps, job))) continue;
      if (!child && child.error().code == ErrorCode::kTargetGone) continue;
      if (!child) {
        report.notes.push_back(fmt::format("process {}, forked while traced, keeps its probes: {}",
                                           pid, child.error().message));
        continue;
      }
      auto undone = job.check_child ? job.check_child(*child) : Result<void>();
      if (undone) undone = Undo(*child, job, report).run();
      if (undone)
        report.processes++;
      else
        report.notes.push_back(
            fmt::format("process {}, forked while traced: {}", pid, undone.error().message));
    }
  }
  return report;
}

}  // namespace spile::user_engine
