// Probes of kernel functions -> groups that share a program, and which of them are an entry and a
// return of the same functions. Pure.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "kernel_engine/perf_event.h"

namespace spile::kernel_engine {

struct KprobeGroup {
  int program = -1;
  Moment moment = Moment::kEntry;
  std::vector<size_t> probes;     ///< indices into Bundle::probes
  std::optional<size_t> partner;  ///< of an entry group: its return group, and the other way round
};

/// In the order of their first probes.
std::vector<KprobeGroup> group_kprobes(const bundle::Bundle& bundle);

/// At the function's first instruction, by a name of the kernel proper: what one link over many can
/// name without doubt.
bool is_plain_function(const bundle::Probe& probe);

/// The plain functions of a group, and the others.
std::pair<KprobeGroup, KprobeGroup> split_plain(const bundle::Bundle& bundle,
                                                const KprobeGroup& group);

/// fprobe keeps the registers that arguments and results are in; the others are not what they were.
bool reads_only_arguments(const bundle::Bundle& bundle, const bundle::Program& program);

/// "module:function", "function", or "" for an address.
std::string kernel_name(const bundle::Probe& probe);

}  // namespace spile::kernel_engine
