#include "bpf/cfg.h"

#include <algorithm>
#include <utility>

#include "bpf/encoding.h"
#include "bpf/helpers.h"

namespace spile::bpf {

namespace {

constexpr uint16_t bit(unsigned reg) {
  return static_cast<uint16_t>(1u << reg);
}
constexpr uint16_t kCallClobbers = 0x3f;  // r0 to r5

struct RegisterUse {
  uint16_t reads = 0, writes = 0;
};

uint16_t arguments_read(int32_t helper_id) {
  uint16_t reads = 0;
  const HelperSignature* helper = find_helper(helper_id);
  for (size_t i = 0; i < helper->args.size(); ++i) {
    if (helper->args[i] != ArgType::kNone) reads |= bit(static_cast<unsigned>(i) + 1);
  }
  return reads;
}

RegisterUse alu_use(const Insn& insn) {
  RegisterUse use{.writes = bit(insn.dst())};
  bool is_move = insn_op(insn) == kMov;
  bool has_source = uses_src_reg(insn) && insn_op(insn) != kEnd;
  if (!is_move) use.reads |= bit(insn.dst());
  if (has_source) use.reads |= bit(insn.src());
  return use;
}

RegisterUse jump_use(const Insn& insn) {
  if (is_goto(insn)) return {};
  if (is_exit(insn)) return {.reads = bit(0)};
  if (is_call(insn)) return {.reads = arguments_read(insn.imm), .writes = kCallClobbers};
  return {.reads =
              static_cast<uint16_t>(bit(insn.dst()) | (uses_src_reg(insn) ? bit(insn.src()) : 0))};
}

RegisterUse store_use(const Insn& insn) {
  RegisterUse use{.reads = bit(insn.dst())};
  if (insn_class(insn) == kClassStx) use.reads |= bit(insn.src());
  if (!is_atomic(insn) || (insn.imm & kFetch) == 0) return use;
  if (insn.imm == kCmpXchg) {
    use.reads |= bit(0);
    use.writes = bit(0);
  } else {
    use.writes = bit(insn.src());
  }
  return use;
}

RegisterUse register_use(const Insn& insn) {
  switch (insn_class(insn)) {
    case kClassLd: return {.writes = bit(insn.dst())};
    case kClassLdx: return {.reads = bit(insn.src()), .writes = bit(insn.dst())};
    case kClassSt:
    case kClassStx: return store_use(insn);
    case kClassAlu:
    case kClassAlu64: return alu_use(insn);
    default: return jump_use(insn);
  }
}

/// Marks second halves and checks each instruction by itself.
Result<void> check_insns(const Program& program, Cfg& cfg) {
  for (size_t at = 0; at < program.size(); ++at) {
    SPILE_TRY_VOID(check_encoding(program, at));
    if (is_lddw(program[at])) cfg.nodes[++at].is_insn = false;
  }
  return {};
}

Result<void> check_targets(const Program& program, Cfg& cfg) {
  auto size = static_cast<int64_t>(program.size());
  for (size_t at = 0; at < program.size(); ++at) {
    if (!cfg.nodes[at].is_insn) continue;
    std::optional<int64_t> target = jump_target(program, at);
    if (!target) continue;
    if (*target < 0 || *target >= size) {
      return fail(ErrorCode::kUnsafe, "insn {}: jumps out of the program, to {}", at, *target);
    }
    auto to = static_cast<size_t>(*target);
    if (!cfg.nodes[to].is_insn) {
      return fail(ErrorCode::kUnsafe, "insn {}: jumps into the middle of insn {}", at, to - 1);
    }
    cfg.nodes[to].is_jump_target = true;
    if (to > at) continue;
    cfg.nodes[to].is_loop_head = true;
    cfg.back_edges.push_back({static_cast<uint32_t>(at), static_cast<uint32_t>(to)});
  }
  return {};
}

Result<void> check_ends(const Program& program, const Cfg& cfg) {
  size_t last = program.size() - 1;
  if (!cfg.nodes[last].is_insn) --last;
  const Insn& insn = program[last];
  if (is_exit(insn) || is_goto(insn)) return {};
  return fail(ErrorCode::kUnsafe, "insn {}: the program runs off its end, expected exit or goto",
              last);
}

Result<void> check_reachable(const Program& program, Cfg& cfg) {
  std::vector<uint32_t> arrivals(program.size(), 0), work{0};
  arrivals[0] = 1;
  while (!work.empty()) {
    uint32_t at = work.back();
    work.pop_back();
    Successors next = successors(program, at);
    for (int i = 0; i < next.count; ++i) {
      if (arrivals[next.next[i]]++ == 0) work.push_back(next.next[i]);
    }
  }
  for (size_t at = 0; at < program.size(); ++at) {
    cfg.nodes[at].is_merge = arrivals[at] > 1;
    if (cfg.nodes[at].is_insn && arrivals[at] == 0) {
      return fail(ErrorCode::kUnsafe, "insn {}: no path leads here", at);
    }
  }
  return {};
}

std::vector<std::vector<uint32_t>> find_predecessors(const Program& program, const Cfg& cfg) {
  std::vector<std::vector<uint32_t>> predecessors(program.size());
  for (size_t at = 0; at < program.size(); ++at) {
    if (!cfg.nodes[at].is_insn) continue;
    Successors next = successors(program, at);
    for (int i = 0; i < next.count; ++i)
      predecessors[next.next[i]].push_back(static_cast<uint32_t>(at));
  }
  return predecessors;
}

/// True: what is live before `at` changed.
bool flow_back(const Program& program, Cfg& cfg, size_t at) {
  CfgNode& node = cfg.nodes[at];
  Successors next = successors(program, at);
  uint16_t out = 0;
  for (int i = 0; i < next.count; ++i) out |= cfg.nodes[next.next[i]].live_in;
  RegisterUse use = register_use(program[at]);
  auto in = static_cast<uint16_t>((out & ~use.writes) | use.reads);
  node.live_out = out;
  return std::exchange(node.live_in, in) != in;
}

/// Each instruction is looked at again when what follows it changed, at most once for each
/// register.
void find_liveness(const Program& program, Cfg& cfg) {
  std::vector<std::vector<uint32_t>> predecessors = find_predecessors(program, cfg);
  std::vector<uint32_t> work;
  for (size_t at = 0; at < program.size(); ++at) {
    if (cfg.nodes[at].is_insn) work.push_back(static_cast<uint32_t>(at));
  }
  while (!work.empty()) {
    uint32_t at = work.back();
    work.pop_back();
    if (!flow_back(program, cfg, at)) continue;
    work.insert(work.end(), predecessors[at].begin(), predecessors[at].end());
  }
}

uint64_t find_longest_path(const Program& program, const Cfg& cfg) {
  if (!cfg.back_edges.empty()) return 0;
  std::vector<uint64_t> length(program.size(), 0);
  for (size_t at = program.size(); at-- > 0;) {
    if (!cfg.nodes[at].is_insn) continue;
    Successors next = successors(program, at);
    for (int i = 0; i < next.count; ++i) length[at] = std::max(length[at], length[next.next[i]]);
    ++length[at];
  }
  return length[0];
}

}  // namespace

Successors successors(const Program& program, size_t at) {
  const Insn& insn = program[at];
  Successors result;
  auto add = [&](int64_t to) { result.next[result.count++] = static_cast<uint32_t>(to); };
  if (is_exit(insn)) return result;
  if (!is_goto(insn)) add(static_cast<int64_t>(at) + (is_lddw(insn) ? 2 : 1));
  if (std::optional<int64_t> target = jump_target(program, at)) add(*target);
  return result;
}

Result<Cfg> build_cfg(const Program& program, uint32_t max_insns) {
  if (program.empty()) return fail(ErrorCode::kUnsafe, "the program is empty");
  if (program.size() > max_insns) {
    return fail(ErrorCode::kUnsupported, "the program has {} instructions, at most {} are allowed",
                program.size(), max_insns);
  }
  Cfg cfg;
  cfg.nodes.resize(program.size());
  SPILE_TRY_VOID(check_insns(program, cfg));
  SPILE_TRY_VOID(check_targets(program, cfg));
  SPILE_TRY_VOID(check_ends(program, cfg));
  SPILE_TRY_VOID(check_reachable(program, cfg));
  find_liveness(program, cfg);
  cfg.longest_path = find_longest_path(program, cfg);
  return cfg;
}

}  // namespace spile::bpf
