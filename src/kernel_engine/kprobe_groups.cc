#include "kernel_engine/kprobe_groups.h"

#include <algorithm>
#include <array>
#include <map>

#include "bpf/checker.h"

namespace spile::kernel_engine {

using bundle::Bundle;
using bundle::Probe;
using bundle::ProbeKind;

namespace {

bool same_functions(const Bundle& bundle, const KprobeGroup& a, const KprobeGroup& b) {
  return std::ranges::equal(a.probes, b.probes, [&](size_t x, size_t y) {
    const Probe &p = bundle.probes[x], &q = bundle.probes[y];
    return is_plain_function(p) && is_plain_function(q) && p.symbol == q.symbol;
  });
}

void find_partners(const Bundle& bundle, std::vector<KprobeGroup>& groups) {
  for (size_t i = 0; i < groups.size(); i++) {
    if (groups[i].moment != Moment::kEntry) continue;
    for (size_t j = 0; j < groups.size(); j++) {
      if (groups[j].moment != Moment::kReturn || groups[j].partner) continue;
      if (!same_functions(bundle, groups[i], groups[j])) continue;
      groups[i].partner = j;
      groups[j].partner = i;
      break;
    }
  }
}

bpf::MapKind check_kind(bundle::MapKind kind) {
  switch (kind) {
    case bundle::MapKind::kCalls:
    case bundle::MapKind::kLruHash: return bpf::MapKind::kHash;
    case bundle::MapKind::kLruPerCpuHash: return bpf::MapKind::kPerCpuHash;
    default: return static_cast<bpf::MapKind>(kind);
  }
}

bpf::CheckEnv check_env(const Bundle& bundle) {
  bpf::CheckEnv env;
  env.context_size = bpf::x86_64_regs::kSize;
  for (const bundle::MapSpec& map : bundle.maps)
    env.maps.push_back({check_kind(map.kind), map.key_size, map.value_size, map.max_entries});
  return env;
}

}  // namespace

bool is_plain_function(const Probe& probe) {
  return !probe.address && probe.offset == 0 && probe.module.empty();
}

std::vector<KprobeGroup> group_kprobes(const Bundle& bundle) {
  std::vector<KprobeGroup> groups;
  std::map<int, size_t> by_program;  // a program has probes of one kind
  for (size_t i = 0; i < bundle.probes.size(); i++) {
    const Probe& probe = bundle.probes[i];
    if (probe.kind != ProbeKind::kKprobe && probe.kind != ProbeKind::kKretprobe) continue;
    auto [found, is_new] = by_program.try_emplace(probe.program, groups.size());
    if (is_new) {
      Moment moment = probe.kind == ProbeKind::kKretprobe ? Moment::kReturn : Moment::kEntry;
      groups.push_back({probe.program, moment, {}, {}});
    }
    groups[found->second].probes.push_back(i);
  }
  find_partners(bundle, groups);
  return groups;
}

std::pair<KprobeGroup, KprobeGroup> split_plain(const Bundle& bundle, const KprobeGroup& group) {
  KprobeGroup plain = group, others = group;
  auto is_plain = [&](size_t i) { return is_plain_function(bundle.probes[i]); };
  std::erase_if(plain.probes, [&](size_t i) { return !is_plain(i); });
  std::erase_if(others.probes, is_plain);
  return {std::move(plain), std::move(others)};
}

bool reads_only_arguments(const Bundle& bundle, const bundle::Program& program) {
  namespace regs = bpf::x86_64_regs;
  constexpr std::array kKept = {regs::kDi, regs::kSi, regs::kDx, regs::kCx, regs::kR8,
                                regs::kR9, regs::kAx, regs::kIp, regs::kSp};
  auto analysis = bpf::check(program.code, check_env(bundle));
  if (!analysis || analysis->context_escapes) return false;
  return std::ranges::all_of(analysis->context_reads, [&](const bpf::ContextRead& read) {
    return std::ranges::find(kKept, static_cast<int>(read.offset)) != kKept.end();
  });
}

std::string kernel_name(const Probe& probe) {
  if (probe.address) return "";
  return probe.module.empty() ? probe.symbol : probe.module + ":" + probe.symbol;
}

}  // namespace spile::kernel_engine
