// The engine that lets the kernel run the programs: system-wide or by process.
#pragma once

#include <memory>

#include "engine/engine.h"
#include "kernel_engine/attach_path.h"
#include "kernel_engine/kernel_types.h"
#include "kernel_engine/record_path.h"

namespace spile::kernel_engine {

struct Options {
  /// Let the kernel count and time program runs, for Stats::hits and hit_ns. Costs some
  /// 30 ns a hit.
  bool measure = false;
  /// This way for kprobes and uprobes, or an error that says why it cannot be had.
  AttachPath attach_path = AttachPath::kAuto;
  RecordPath records = RecordPath::kAuto;
  /// What the compiler has read of them already; empty: the engine reads them if it must.
  std::shared_ptr<KernelTypes> types = {};
};

/// Every kprobe that is in place in this kernel, whoever set it, with its state and its live code,
/// where /proc/kcore shows it: `after` with the original as `before` where that is known, else as
/// `before` alone: `spile sites` without a process. Errors: denied, unsupported.
Result<std::vector<engine::SiteReport>> kernel_sites();
/// Whether /proc/kcore can be read. Errors: denied, not found.
Result<void> shows_its_memory();

/// Errors of attach: denied (CAP_BPF and CAP_PERFMON are needed), unsupported (this kernel cannot,
/// the message says what), invalid (the verifier refused a program: our fault, its log is in the
/// message), unsafe (a live process has patched the place).
std::unique_ptr<engine::Engine> make_engine(const Options& options);

}  // namespace spile::kernel_engine
