#include "user_engine/hit_calls.h"

#include <sys/prctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <set>

#include "bpf/insn.h"
#include "user_engine/target/seccomp_filter.h"

namespace spile::user_engine {

using bpf::Helper;

namespace {

std::set<Helper> helpers_of(const bundle::Bundle& bundle) {
  std::set<Helper> helpers;
  for (const bundle::Probe& probe : bundle.probes) {
    const bool in_target = probe.kind == bundle::ProbeKind::kUprobe ||
                           probe.kind == bundle::ProbeKind::kUretprobe ||
                           probe.kind == bundle::ProbeKind::kUsdt;
    if (!in_target) continue;
    for (const bpf::Insn& insn : bundle.programs.at(static_cast<size_t>(probe.program)).code) {
      if (insn.code == (bpf::kClassJmp | bpf::kCall)) helpers.insert(static_cast<Helper>(insn.imm));
    }
  }
  return helpers;
}

}  // namespace

std::vector<NeededCall> calls_needed(const bundle::Bundle& bundle,
                                     bool tid_is_known,
                                     bool tsc_is_clock) {
  const std::set<Helper> helpers = helpers_of(bundle);
  const auto any = [&](std::initializer_list<Helper> wanted) {
    return std::ranges::any_of(wanted, [&](Helper h) { return helpers.contains(h); });
  };
  std::vector<NeededCall> calls;
  if (any({Helper::kGetCurrentPidTgid})) {
    calls.push_back({abi::kCallGetpid, "getpid", "pid, tid"});
    if (!tid_is_known) calls.push_back({abi::kCallGettid, "gettid", "pid, tid"});
  }
  if (any({Helper::kGetCurrentUidGid}))
    calls.push_back({abi::kCallGetuid, "getuid", "uid, gid, username"});
  if (any({Helper::kGetCurrentComm})) calls.push_back({abi::kCallPrctl, "prctl", "comm"});
  if (!tsc_is_clock && any({Helper::kKtimeGetNs, Helper::kKtimeGetBootNs}))
    calls.push_back({abi::kCallClockGettime, "clock_gettime", "nsecs, elapsed"});
  if (any({Helper::kProbeReadUser, Helper::kProbeReadUserStr, Helper::kProbeReadKernel,
           Helper::kProbeReadKernelStr, Helper::kGetStackid}))
    calls.push_back({abi::kCallProcessVmReadv, "process_vm_readv", "str(), pointers, ustack"});
  return calls;
}

uint32_t filtered_calls(const target::StoppedProcess& process) {
  static const struct {
    abi::RtCalls call;
    target::FilteredCall filtered;
  } kCalls[] = {
      {abi::kCallGettid, {SYS_gettid, {}}},
      {abi::kCallGetpid, {SYS_getpid, {}}},
      {abi::kCallGetuid, {SYS_getuid, {}}},
      {abi::kCallGetuid, {SYS_getgid, {}}},
      {abi::kCallPrctl, {SYS_prctl, PR_GET_NAME}},
      {abi::kCallProcessVmReadv, {SYS_process_vm_readv, {}}},
      {abi::kCallClockGettime, {SYS_clock_gettime, {}}},
      {abi::kCallFutex, {SYS_futex, {}}},
      // What a wait with a timeout goes on with when a stop has interrupted it.
      {abi::kCallFutex, {SYS_restart_syscall, {}}},
  };
  std::vector<target::FilteredCall> asked;
  for (const auto& row : kCalls) asked.push_back(row.filtered);
  const auto allowed = target::allowed_calls(process, asked);
  uint32_t calls = abi::kCallAll;
  for (size_t i = 0; i < allowed.size(); i++) {
    if (!allowed[i]) calls &= ~static_cast<uint32_t>(kCalls[i].call);
  }
  return calls;
}

}  // namespace spile::user_engine
