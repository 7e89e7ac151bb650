#include "user_engine/jit/hit_code.h"

#include <array>
#include <cstring>

namespace spile::jit {
namespace {

/// cs before a jmp: no meaning, one byte more.
constexpr uint8_t kPrefix = 0x2e, kJump = 0xe9;
constexpr size_t kUsualDisplacedBytes = 48;

Result<void> relocate(const HitCode& hit, TargetAddr at, std::vector<uint8_t>& bytes) {
  for (const Relocation& relocation : hit.relocations) {
    const TargetAddr next = at + relocation.next_insn;
    const int64_t displacement = relocation.target - next;
    if (displacement != static_cast<int32_t>(displacement))
      return fail(ErrorCode::kUnsupported, "{} is out of reach of {}", relocation.target, next);
    const auto field = static_cast<int32_t>(displacement);
    std::memcpy(&bytes[relocation.offset], &field, sizeof field);
  }
  return {};
}

/// `bytes`: of the detour at `at`, without displaced code.
Result<Gate> finished(const PlannedGate& planned, TargetAddr at, std::span<const uint8_t> bytes) {
  const size_t in_word = (at + planned.begin).value % kWordBytes;
  const size_t word = planned.begin - in_word, length = planned.end - planned.begin;
  if (in_word + length > kWordBytes || length < kGateJumpBytes || word + kWordBytes > bytes.size())
    return fail(ErrorCode::kInternal, "the detour at {} has a gate across words", at);
  const size_t to = planned.to == PlannedGate::kToDisplaced ? bytes.size() : planned.to;
  const auto distance = static_cast<int32_t>(to - planned.end);
  Gate gate{static_cast<uint32_t>(word), 0, 0, static_cast<uint32_t>(planned.first_program),
            static_cast<uint32_t>(planned.programs)};
  std::array<uint8_t, kWordBytes> code;
  std::memcpy(code.data(), bytes.data() + word, kWordBytes);
  std::memcpy(&gate.open, code.data(), kWordBytes);
  uint8_t* jump = code.data() + in_word;
  std::memset(jump, kPrefix, length - kGateJumpBytes);
  jump[length - kGateJumpBytes] = kJump;
  std::memcpy(jump + length - sizeof distance, &distance, sizeof distance);
  std::memcpy(&gate.closed, code.data(), kWordBytes);
  return gate;
}

}  // namespace

Result<Detour> place_hit(const HitCode& hit, const DetourSpec& spec) {
  Detour detour;
  detour.bytes.reserve(hit.bytes.size() + kUsualDisplacedBytes);
  detour.bytes = hit.bytes;
  SPILE_TRY_VOID(relocate(hit, spec.at, detour.bytes));
  for (const PlannedGate& planned : hit.gates) {
    SPILE_TRY(const Gate gate, finished(planned, spec.at, detour.bytes));
    detour.gates.push_back(gate);
  }
  detour.displaced_offset = static_cast<uint32_t>(detour.bytes.size());
  detour.stack_bytes = hit.stack_bytes;
  detour.on_private_stack = hit.on_private_stack;
  detour.inlined = hit.inlined;
  auto displaced = spec.displaced(spec.at + detour.bytes.size());
  if (!displaced) return forward(displaced, "displaced code of {}", spec.site);
  detour.bytes.insert(detour.bytes.end(), displaced->begin(), displaced->end());
  return detour;
}

// ---- many detours
// ---------------------------------------------------------------------------------------------------

/// Flags live or not, at an entry or not, in one word or the other.
constexpr size_t kMostMade = 8;

struct DetourMaker::Made {
  Sameness same;
  HitCode hit;
};

/// Not: a hit whose code holds the address of its site, or has more than programs in it. Those are
/// made one by one.
std::optional<DetourMaker::Sameness> DetourMaker::sameness_of(const DetourSpec& spec) {
  if (!spec.calls.empty() || spec.private_stacks) return std::nullopt;
  Sameness same{.programs = spec.programs,
                .in_word = spec.at.value % kWordBytes,
                .at_entry = spec.at_entry,
                .may_override = spec.may_override,
                .flags_live = spec.flags_live,
                .cpu = spec.cpu,
                .hits = spec.hits,
                .inline_limit_bytes = spec.inline_limit_bytes,
                .stack_limit_bytes = spec.stack_limit_bytes};
  for (DetourProgram& program : same.programs) {
    if (program.body == nullptr || program.pending != 0 || (program.body->reads & kIpSlot) != 0)
      return std::nullopt;
    if ((program.body->reads & kCookieSlot) == 0) program.cookie = 0;
  }
  return same;
}

Result<Detour> DetourMaker::make(const DetourSpec& spec) {
  auto same = sameness_of(spec);
  if (!same || !spec.displaced) return emit_detour(spec);
  for (const Made& made : made_) {
    if (made.same != *same) continue;
    auto moved = place_hit(made.hit, spec);
    if (moved || moved.error().code != ErrorCode::kUnsupported) return moved;
  }
  SPILE_TRY(auto hit, emit_hit(spec));
  if (made_.size() == kMostMade) made_.erase(made_.begin());
  made_.push_back({std::move(*same), std::move(hit)});
  return place_hit(made_.back().hit, spec);
}

DetourMaker::DetourMaker() = default;
DetourMaker::~DetourMaker() = default;

}  // namespace spile::jit
