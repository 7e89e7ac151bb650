#include "bpf/check_facts.h"

#include <algorithm>

#include "bpf/encoding.h"

namespace spile::bpf {

void FactCollector::memory(uint32_t insn, Memory kind) {
  Memory& known = memory_[insn];
  known = known == Memory::kNone || known == kind ? kind : Memory::kMixed;
}

void FactCollector::stack(uint32_t depth) {
  stack_bytes_ = std::max(stack_bytes_, (depth + 7) / 8 * 8);
}

void FactCollector::call(CallFacts facts) {
  std::optional<CallFacts>& known = calls_[facts.insn];
  if (!known) {
    known = std::move(facts);
    return;
  }
  if (known->map != facts.map) known->map = -1;
  if (known->size != facts.size) known->size.reset();
  if (known->constant_key != facts.constant_key) known->constant_key.reset();
  known->never_null &= facts.never_null;
}

Analysis FactCollector::finish(const Program& program, const Cfg& cfg) const {
  Analysis analysis;
  analysis.stack_bytes = stack_bytes_;
  analysis.context_reads.assign(context_reads_.begin(), context_reads_.end());
  analysis.context_escapes = context_escapes_;
  analysis.longest_path = cfg.longest_path;
  for (const CfgBackEdge& edge : cfg.back_edges)
    analysis.back_edges.push_back({edge.insn, edge.target});
  std::set<Helper> helpers;
  for (uint32_t at = 0; at < program.size(); ++at) {
    const CfgNode& node = cfg.nodes[at];
    analysis.insns.push_back({.reached = reached_[at],
                              .jump_target = node.is_jump_target,
                              .memory = memory_[at],
                              .live_in = node.live_in,
                              .live_out = node.live_out});
    if (!calls_[at]) continue;
    analysis.calls.push_back(*calls_[at]);
    helpers.insert(calls_[at]->helper);
  }
  analysis.helpers.assign(helpers.begin(), helpers.end());
  return analysis;
}

const CallFacts* Analysis::call_at(uint32_t insn) const {
  auto found = std::ranges::lower_bound(calls, insn, {}, &CallFacts::insn);
  return found != calls.end() && found->insn == insn ? &*found : nullptr;
}

}  // namespace spile::bpf
