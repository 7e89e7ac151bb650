#include "user_engine/code_image.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "abi/data_region.h"
#include "abi/pending.h"
#include "user_engine/rt/blob.h"

namespace spile::user_engine {

using bundle::Bundle;

namespace {

constexpr uint64_t kDetourAlignment = 16;
/// Bodies up to this size are copied into the detour: a call less a hit. With many sites the copies
/// would cost more memory than they are worth.
constexpr uint32_t kInlineLimitBytes = 256, kInlineLimitManyBytes = 96;
constexpr size_t kManySites = 256;
constexpr size_t kUsualDetourBytes = 160;
/// Of one displaced instruction, or of the jump back.
constexpr size_t kMaxDisplacedBytes = 32;
/// Of a module without a file: the jump, and what it leads over.
constexpr size_t kMaxEditsPerSite = 8;

uint32_t inline_limit(size_t sites) {
  return sites > kManySites ? kInlineLimitManyBytes : kInlineLimitBytes;
}

uint64_t round_up(uint64_t value, uint64_t to) {
  return (value + to - 1) / to * to;
}

bpf::MapKind check_kind(bundle::MapKind kind) {
  switch (kind) {
    case bundle::MapKind::kHash: return bpf::MapKind::kHash;
    case bundle::MapKind::kArray: return bpf::MapKind::kArray;
    case bundle::MapKind::kPerCpuHash: return bpf::MapKind::kPerCpuHash;
    case bundle::MapKind::kPerCpuArray: return bpf::MapKind::kPerCpuArray;
    case bundle::MapKind::kRing: return bpf::MapKind::kRing;
    case bundle::MapKind::kStacks: return bpf::MapKind::kStacks;
    case bundle::MapKind::kCalls:
    case bundle::MapKind::kLruHash:  // a script with these runs in the kernel engine
    case bundle::MapKind::kLruPerCpuHash: return bpf::MapKind::kHash;
  }
  return bpf::MapKind::kHash;
}

jit::MapCode map_code(const abi::RtMap& map, TargetAddr descriptor) {
  jit::MapCode code{descriptor, std::nullopt};
  if (map.kind == abi::RtMapKind::kArray || map.kind == abi::RtMapKind::kPerCpuArray) {
    code.array =
        jit::ArrayLayout{TargetAddr(map.values), map.value_stride,
                         static_cast<uint32_t>(map.per_cpu_stride), map.cpu_mask, map.max_entries};
  }
  return code;
}

class Builder {
 public:
  explicit Builder(const CodeRequest& request) : request_(request) {}

  Result<CodeImage> build() {
    image_.base = request_.base;
    image_.bytes.reserve(abi::bodies_offset(request_.maps.size()) +
                         request_.sites.size() * kUsualDetourBytes);
    image_.sites.reserve(request_.sites.size());
    image_.gates.reserve(request_.sites.size());
    image_.gate_probes.reserve(request_.sites.size());
    image_.bytes.resize(abi::bodies_offset(request_.maps.size()));
    SPILE_TRY_VOID(compile_bodies());
    put_known_code();
    for (const PlannedSite* site : request_.sites) SPILE_TRY_VOID(put_detour(*site));
    SPILE_TRY_VOID(put_saved_bytes());
    image_.bytes.resize(round_up(image_.bytes.size(), 4096), 0xcc);
    return std::move(image_);
  }

 private:
  TargetAddr here() const { return request_.base + image_.bytes.size(); }
  void align() { image_.bytes.resize(round_up(image_.bytes.size(), kDetourAlignment), 0xcc); }

  /// Only the programs that a site of this region runs.
  Result<void> compile_bodies() {
    bodies_.resize(request_.bundle->programs.size());
    jit::JitEnv env = jit_environment(request_);
    for (const PlannedSite* site : request_.sites) {
      for (const std::vector<Action>& actions : site->actions) {
        for (const Action& action : actions) {
          if (action.probe >= 0) SPILE_TRY_VOID(compile_body(program_of(action.probe), env));
        }
      }
    }
    return {};
  }

  size_t program_of(int probe) const {
    return static_cast<size_t>(request_.bundle->probes[static_cast<size_t>(probe)].program);
  }

  Result<void> compile_body(size_t program, jit::JitEnv& env) {
    if (bodies_[program]) return {};
    align();
    env.base = here();
    auto body =
        jit::compile(request_.bundle->programs[program].code, request_.analyses[program], env);
    if (!body) return forward(body, "compile {}", request_.bundle->programs[program].name);
    image_.bytes.insert(image_.bytes.end(), body->bytes.begin(), body->bytes.end());
    bodies_[program] = std::move(*body);
    return {};
  }

  /// What jumps through pointers are checked against.
  void put_known_code() {
    for (const PlannedSite* site : request_.sites) {
      for (const std::vector<Action>& actions : site->actions) {
        for (const Action& action : actions) {
          if (action.known != nullptr && !known_code_.contains(action.known)) put_known(action);
        }
      }
    }
  }

  void put_known(const Action& action) {
    align();
    known_code_[action.known] = here();
    put_word(action.known->size());
    for (const patch::Region& region : *action.known) {
      put_word(region.start.value);
      put_word(region.end.value);
    }
  }

  void put_word(uint64_t word) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(&word);
    image_.bytes.insert(image_.bytes.end(), bytes, bytes + sizeof word);
  }

  /// A row of segments: each probed head's programs, then its instructions up to the next.
  Result<void> put_detour(const PlannedSite& site) {
    align();
    const size_t start = image_.bytes.size(), gates = image_.gates.size();
    BuiltSite built;
    built.site = &site;
    built.detour = here();
    const auto starts = site.plan.segment_starts();
    for (size_t i = 0; i < starts.size(); i++) {
      auto& segment = built.segments.emplace_back(patch::Segment{here(), {}});
      std::vector<uint32_t> probes;
      auto detour = detours_.make(segment_spec(site, i, starts[i], segment, probes));
      if (!detour && detour.error().code == ErrorCode::kUnsafe) {
        image_.refused.emplace_back(&site, detour.error().message);
        image_.bytes.resize(start);
        image_.gates.resize(gates);
        return {};
      }
      if (!detour) return forward(detour, "make the detour of {}", site.plan.site);
      built.stack_bytes = std::max(built.stack_bytes, detour->stack_bytes);
      add_gates(detour->gates, probes);
      image_.bytes.insert(image_.bytes.end(), detour->bytes.begin(), detour->bytes.end());
    }
    SPILE_TRY(built.edits, edits_of(site, built.detour));
    image_.sites.push_back(std::move(built));
    return {};
  }

  Result<void> put_saved_bytes() {
    align();
    const size_t start = image_.bytes.size();
    for (const BuiltSite& built : image_.sites) {
      if (!built.site->image->is_from_memory()) continue;
      if (built.edits.size() > kMaxEditsPerSite)
        return fail(ErrorCode::kInternal, "{} edits for one site", built.edits.size());
      for (const patch::Edit& edit : built.edits) {
        abi::SavedBytes saved = {};
        saved.address = edit.at.value;
        saved.length = static_cast<uint8_t>(edit.before.size());
        std::ranges::copy(edit.before, saved.original);
        const auto* bytes = reinterpret_cast<const uint8_t*>(&saved);
        image_.bytes.insert(image_.bytes.end(), bytes, bytes + sizeof saved);
        image_.saved_count++;
      }
    }
    image_.saved_offset = static_cast<uint32_t>(start);
    return {};
  }

  /// `probes`: of the segment's programs, in their order.
  void add_gates(const std::vector<jit::Gate>& gates, const std::vector<uint32_t>& probes) {
    auto base = static_cast<uint32_t>(image_.bytes.size());
    for (const jit::Gate& gate : gates) {
      image_.gates.push_back({base + gate.offset, static_cast<uint32_t>(image_.gate_probes.size()),
                              gate.programs, gate.open, gate.closed});
      auto of_gate = std::span(probes).subspan(gate.first_program, gate.programs);
      image_.gate_probes.insert(image_.gate_probes.end(), of_gate.begin(), of_gate.end());
    }
  }

  Result<std::vector<patch::Edit>> edits_of(const PlannedSite& site, TargetAddr detour) const {
    if (request_.placements != nullptr) {
      auto placed = request_.placements->find(&site);
      if (placed != request_.placements->end()) return placed->second.edits;
    }
    if (site.plan.mechanism == patch::Mechanism::kTrap)
      return std::vector{patch::Edit{site.plan.site, {site.plan.before[0]}, {patch::kTrapByte}}};
    SPILE_TRY(auto jump, patch::patch_bytes(site.plan, detour));
    return std::vector{patch::Edit{site.plan.site,
                                   {site.plan.before.begin(), site.plan.before.end()},
                                   {jump.begin(), jump.end()}}};
  }

  jit::DetourSpec segment_spec(const PlannedSite& site,
                               size_t index,
                               uint8_t offset,
                               patch::Segment& segment,
                               std::vector<uint32_t>& probes) const {
    jit::DetourSpec spec;
    spec.at = segment.entry;
    spec.site = site.plan.site + offset;
    auto head = std::ranges::find(site.plan.probed, offset, &patch::ProbedHead::offset);
    if (head != site.plan.probed.end()) {
      add_actions(site.actions[static_cast<size_t>(head - site.plan.probed.begin())], spec, probes);
      spec.flags_live = head->flags_live;
      if (request_.count_hits && !spec.programs.empty() && !site.has_sentry(*request_.bundle, true))
        spec.hits = jit::HitCounter{request_.cpu_stats + offsetof(abi::CpuStats, hits),
                                    sizeof(abi::CpuStats), request_.cpu_mask};
    }
    auto start = site.image->function_start(spec.site);
    spec.at_entry = start != ModuleImage::Start::kNone;
    if (!spec.calls.empty()) {
      const auto insn = site.image->original(spec.site, x86::kMaxInsnBytes);
      spec.site_insn.assign(insn.begin(), insn.end());
    }
    spec.may_override = start == ModuleImage::Start::kCertain;
    spec.cpu = request_.cpu;
    spec.inline_limit_bytes = inline_limit(request_.sites.size());
    choose_stack(*site.image, spec);
    spec.displaced = [&site, index, &segment](TargetAddr at) -> Result<std::vector<uint8_t>> {
      SPILE_TRY(segment.displaced, patch::displaced_segment(site.plan, index, at));
      return segment.displaced.bytes;
    };
    return spec;
  }

  void choose_stack(const ModuleImage& image, jit::DetourSpec& spec) const {
    const patch::GoStack stack = image.hit_stack(spec.site);
    spec.stack_limit_bytes = stack.own_bytes;
    if (!stack.may_switch || !request_.has_private_stacks) return;
    const TargetAddr consts = request_.base + abi::kConstsOffset;
    spec.private_stacks = {consts + offsetof(abi::RtConsts, private_first),
                           consts + offsetof(abi::RtConsts, private_end),
                           request_.cpu_stats + offsetof(abi::CpuStats, missed)};
  }

  /// Programs that share a note stand together, behind those that always run.
  void add_actions(const std::vector<Action>& actions,
                   jit::DetourSpec& spec,
                   std::vector<uint32_t>& probes) const {
    for (const Action& action : actions) {
      if (action.probe >= 0) continue;
      const auto known = known_code_.find(action.known);
      spec.calls.push_back({event_of(action.kind), action.number,
                            known == known_code_.end() ? TargetAddr() : known->second});
    }
    if (actions.size() < 2) {
      add_programs(actions, spec, probes);
    } else {
      std::vector<Action> sorted = actions;
      std::ranges::stable_sort(sorted, {}, &Action::number);
      add_programs(sorted, spec, probes);
    }
    const bool has_notes = !spec.calls.empty() || std::ranges::any_of(actions, [](const Action& a) {
      return a.number != 0;
    });
    if (!has_notes) return;
    spec.pending = {helper_code(rt::kNotePending),  helper_code(rt::kTakePending),
                    helper_code(rt::kArmPending),   helper_code(rt::kArrivePending),
                    helper_code(rt::kLeavePending), helper_code(rt::kNoteAgainPending),
                    helper_code(rt::kAwaitTracer)};
  }

  void add_programs(const std::vector<Action>& actions,
                    jit::DetourSpec& spec,
                    std::vector<uint32_t>& probes) const {
    for (const Action& action : actions) {
      if (action.probe < 0) continue;
      auto probe = static_cast<size_t>(action.probe);
      spec.programs.push_back({&*bodies_[program_of(action.probe)],
                               request_.bundle->cookie_of(probe), action.popped_bytes,
                               action.number, action.repeats});
      // What an entry keeps for its call's return is a note: never switched off.
      const bool is_note = action.kind == Action::Kind::kEnter;
      probes.push_back(static_cast<uint32_t>(is_note ? request_.bundle->probes.size() : probe));
    }
  }

  static jit::CallEvent::Kind event_of(Action::Kind kind) {
    if (kind == Action::Kind::kArm) return jit::CallEvent::Kind::kArm;
    if (kind == Action::Kind::kArrive) return jit::CallEvent::Kind::kArrive;
    if (kind == Action::Kind::kNoteAgain) return jit::CallEvent::Kind::kNoteAgain;
    if (kind == Action::Kind::kLeave) return jit::CallEvent::Kind::kLeave;
    if (kind == Action::Kind::kAwait) return jit::CallEvent::Kind::kAwait;
    return jit::CallEvent::Kind::kNote;
  }

  jit::HelperCode helper_code(int32_t number) const {
    return {request_.base + rt::helper_offset(number).value(),
            rt::helper_stack_bytes(number).value_or(rt::kMaxHelperStackBytes)};
  }

  const CodeRequest& request_;
  CodeImage image_;
  std::vector<std::optional<jit::Body>> bodies_;
  std::map<const std::vector<patch::Region>*, TargetAddr> known_code_;
  jit::DetourMaker detours_;
};

}  // namespace

jit::JitEnv jit_environment(const CodeRequest& request) {
  jit::JitEnv env;
  for (const bundle::Program& program : request.bundle->programs) {
    for (const bpf::Insn& insn : program.code) {
      if (insn.code != (bpf::kClassJmp | bpf::kCall)) continue;
      auto offset = rt::helper_offset(insn.imm);
      if (offset)
        env.helpers[insn.imm] = {request.base + *offset, rt::helper_stack_bytes(insn.imm).value_or(
                                                             rt::kMaxHelperStackBytes)};
    }
  }
  for (size_t i = 0; i < request.maps.size(); i++)
    env.maps.push_back(map_code(request.maps[i], request.base + abi::map_descriptor_offset(i)));
  env.cpu = request.cpu;
  env.missed_counter = request.cpu_stats + offsetof(abi::CpuStats, missed);
  return env;
}

bpf::CheckEnv check_env(const Bundle& bundle, const bundle::Program& program) {
  bpf::CheckEnv env;
  env.context_size = program.context == bundle::ContextKind::kRegs ? bpf::x86_64_regs::kSize
                                                                   : program.context_size;
  if (program.context == bundle::ContextKind::kNone) env.context_size = 0;
  if (program.context == bundle::ContextKind::kTracepoint) env.context_first_byte = 8;
  for (const bundle::MapSpec& map : bundle.maps) {
    env.maps.push_back({check_kind(map.kind), map.key_size, map.value_size, map.max_entries});
  }
  return env;
}

Result<std::vector<bpf::Analysis>> check_programs(const Bundle& bundle) {
  std::vector<bpf::Analysis> analyses;
  for (const bundle::Program& program : bundle.programs) {
    auto analysis = bpf::check(program.code, check_env(bundle, program));
    if (!analysis) return forward(analysis, "check {}", program.name);
    analyses.push_back(std::move(*analysis));
  }
  return analyses;
}

uint64_t max_code_bytes(const Bundle& bundle, std::span<const PlannedSite* const> sites) {
  uint64_t size = abi::bodies_offset(bundle.maps.size());
  uint64_t bodies = 0;
  for (const bundle::Program& program : bundle.programs)
    bodies +=
        program.code.size() * jit::kMaxBytesPerInsn + jit::kMaxBodyOverheadBytes + kDetourAlignment;
  size += bodies;
  std::set<const std::vector<patch::Region>*> known;
  for (const PlannedSite* site : sites) {
    size += (site->plan.heads.size() + 1) * kMaxDisplacedBytes + kDetourAlignment;
    if (site->image->is_from_memory()) size += kMaxEditsPerSite * sizeof(abi::SavedBytes);
    for (const std::vector<Action>& actions : site->actions)
      size += jit::kMaxDetourBytes +
              (jit::kMaxProgramCallBytes + jit::kMaxNoteBytes) * actions.size() +
              inline_limit(sites.size());
    for (const std::vector<Action>& actions : site->actions) {
      for (const Action& action : actions) {
        if (action.known != nullptr && known.insert(action.known).second)
          size += (action.known->size() + 1) * sizeof(abi::KnownCode::Range) + kDetourAlignment;
      }
    }
  }
  return round_up(size, 4096);
}

Result<CodeImage> build_code(const CodeRequest& request) {
  return Builder(request).build();
}

}  // namespace spile::user_engine
