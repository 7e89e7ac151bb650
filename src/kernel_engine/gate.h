// A word for each program, which says whether it runs: probes are switched off and on while they
// stay in place.
//
// The words are the only value of an array map; each program begins with
//
//   lddw r2, &words[n]
//   r2 = *(u64*)r2
//   if r2 != 0 goto +2
//   r0 = 0
//   exit
//
// which costs a hit about a nanosecond. (A perf event that is disabled still runs its program at a
// kprobe, uprobe or tracepoint, and links over many places cannot be disabled.)
#pragma once

#include <span>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "bundle/bundle.h"

namespace spile::kernel_engine {

class Gate {
 public:
  /// All of the bundle's programs are on, or off. BEGIN, END, iterators (which run once, when they
  /// are attached) and the programs that note calls for return probes have no gate: a call that
  /// begins while off must not be told with what an earlier one left.
  static Result<Gate> create(const bundle::Bundle& bundle, bool is_on);

  bool is_gated(int program) const { return gated_.at(static_cast<size_t>(program)); }
  /// The program behind its gate.
  bpf::Program gated(const bpf::Program& code, int program) const;
  /// Errors: unsupported, a program also serves probes that are not among these; nothing has
  /// changed.
  Result<void> switch_probes(const bundle::Bundle& bundle, std::span<const int> probes, bool on);

 private:
  Result<void> write();

  Fd map_;
  std::vector<uint64_t> words_;
  std::vector<bool> gated_;
};

}  // namespace spile::kernel_engine
