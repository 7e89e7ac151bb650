// Probes of a Bundle -> links, by the best way that the kernel has.
//
// uprobes      uprobe.session for an entry and a return of the same functions; uprobe.multi; else
//              one perf event each, with a link or an ioctl; tracefs
// kprobes      kprobe.session for an entry and a return of the same functions; kprobe.multi; else
// one
//              perf event each, with a link or an ioctl; tracefs where there is no PMU for it
// the others   have one way each: perf events, or a link of their own
//
// What has no cookie (ioctl, tracefs, BTF programs of kernels before 6.10, inherited counters) gets
// a program of its own with the cookie in its code.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "kernel_engine/features.h"
#include "kernel_engine/knowledge.h"
#include "kernel_engine/kprobe_groups.h"
#include "kernel_engine/link.h"
#include "kernel_engine/multi_link.h"
#include "kernel_engine/program.h"
#include "kernel_engine/session_program.h"
#include "kernel_engine/uprobe_sites.h"

namespace spile::kernel_engine {

/// The kernel has no such way to attach, or not to this: another one is tried.
inline bool is_out_of_reach(const Error& error) {
  return error.code == ErrorCode::kNotFound || error.code == ErrorCode::kUnsupported;
}

class Attacher {
 public:
  /// `forced`: this way, or an error that says why not; probes that have one way only ignore it.
  Attacher(const bundle::Bundle& bundle,
           const engine::Scope& scope,
           AttachPath forced,
           Programs& programs)
      : bundle_(bundle), scope_(scope), forced_(forced), programs_(programs) {}

  /// Everything that the verifier may refuse, before the first probe is live.
  Result<void> load();
  /// In the script's order: uprobes and kprobes by group, then the others.
  Result<void> attach();
  /// Takes everything out. What the kernel counted as missed stays known.
  void detach();

  uint64_t missed();
  /// Modules that were unloaded under their probes; each is told once.
  std::vector<std::string> take_warnings();
  std::vector<engine::SiteReport> sites() const;
  /// Without what the kernel says of each, which takes long to read.
  const std::vector<engine::SiteReport>& own_sites() const { return sites_; }

 private:
  /// A tracefs event is tried last, and only where the others cannot be had.
  AttachPath single_path();
  bool is_forced(AttachPath path) const { return forced_ == path; }

  // attach_uprobes.cc
  Result<void> attach_uprobes();
  /// The uprobes of one program in one file.
  struct UprobeGroup {
    std::string path;
    int program = -1;
    std::vector<size_t> probes;
    std::vector<UprobeSite> sites;
    bool is_attached = false;
  };
  Result<std::vector<UprobeGroup>> group_uprobes();
  Result<void> attach_uprobe_group(UprobeGroup& group);
  std::vector<size_t> pair_uprobes(const std::vector<UprobeGroup>& groups);
  Result<bool> attach_uprobe_session(UprobeGroup& entry, UprobeGroup& at_return);
  bool may_be_uprobe_session(const UprobeGroup& entry, const UprobeGroup& at_return);
  Result<std::vector<UprobeSite>> find_uprobe_sites(const std::vector<size_t>& probes);
  Result<void> attach_single_uprobe(const UprobeSite& site, AttachPath path);
  Result<bool> may_use_uprobe_multi();

  // attach_kprobes.cc
  Result<void> attach_kprobes();
  Result<bool> attach_session(const KprobeGroup& entry, const KprobeGroup& at_return);
  Result<bool> attach_kprobe_multi(const KprobeGroup& group);
  Result<bool> attach_plain_by_multi(const KprobeGroup& group);
  Result<void> attach_each_kprobe(const KprobeGroup& group, bool is_rest);
  Result<void> attach_single_kprobe(size_t index, Moment moment, AttachPath path);
  bool fprobe_serves(const KprobeGroup& group);
  Error explain_kprobe(Error error, const bundle::Probe& probe) const;

  // attacher.cc
  Result<void> attach_other(size_t index);
  Result<void> attach_counters(size_t index);
  Result<void> attach_clock(size_t index, const std::vector<int>& cpus);
  Result<void> attach_typed(size_t index);
  Result<void> leave_out(size_t index, Error error);
  Result<void> run_iterator(size_t index);

  Result<void> keep(Result<Link> link);
  /// False where the kernel or the programs allow no session, which is kept as the reason: two
  /// links do the same. Other errors stay errors.
  Result<bool> no_session(Error error);
  void report(size_t probe, std::string mechanism, uint64_t address = 0);
  void watch_modules();
  void refuse(size_t probe, std::string reason);
  /// A program that asks which probe it serves.
  bool calls_cookie(int program) const;

  const bundle::Bundle& bundle_;
  const engine::Scope& scope_;
  AttachPath forced_;
  Programs& programs_;
  Features features_;
  SiteResolver resolver_;
  std::vector<Link> links_;
  std::vector<engine::SiteReport> sites_;
  std::set<size_t> left_out_;  ///< of several BTF probes those that the kernel does not take
  uint64_t missed_ = 0;
  std::string why_no_session_;
  std::vector<size_t> single_kprobes_;  ///< by perf event or tracefs: they hold no module
  std::map<std::string, std::vector<std::string>> watched_;  ///< probes by their module
};

}  // namespace spile::kernel_engine
