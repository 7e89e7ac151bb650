// Instructions that are moved to make room for the jump of another.
#include <fmt/format.h>

#include <algorithm>

#include "user_engine/patch/placer.h"

namespace spile::patch {

/// A window at `at` of at least `least` bytes, all of them free.
std::optional<Window> Placer::evictable(TargetAddr at, size_t least) {
  Window window(scene_, at);
  if (window.take_full(at)) return std::nullopt;
  if (is_dead_nop(at)) return std::nullopt;
  while (window.plan().window.size() < least) {
    if (!window.plan().falls_through || window.extend(window.plan().window_end())) break;
  }
  const SitePlan& plan = window.plan();
  const TargetAddr end = std::max(plan.window_end(), at + kPatchBytes);
  for (TargetAddr a = at; a < end; a += 1) {
    if (!ledger_.is_free(a)) return std::nullopt;
  }
  return window;
}

/// A nop that control does not fall into is padding, or the beginning of data.
bool Placer::is_dead_nop(TargetAddr at) {
  const Sweep& code = sweeps_.around(at);
  const SweptInsn* insn = code.covering(at);
  if (insn == nullptr || insn->shape.kind != x86::Kind::kNop) return false;
  while (insn != code.insns.data() && insn->shape.kind == x86::Kind::kNop) --insn;
  return insn->shape.ends_flow();
}

/// Writes down that the window's instructions are moved; `jump` is what is written there.
void Placer::evict(Window window, Jump jump, TargetAddr for_site) {
  SitePlan plan = window.finish();
  // Of what its jump does not need, hosts may use all that nothing enters.
  TargetAddr dead_to = plan.window_end();
  dead_to = ways_.untouched_to(plan.site + 1, dead_to);
  const TargetAddr behind_jump = plan.site + kPatchBytes;
  plan.written = static_cast<uint8_t>(std::max(dead_to, behind_jump) - plan.site);
  ledger_.claim(plan.site, std::max(plan.window_end(), behind_jump));
  moved_areas_.push_back({behind_jump, dead_to, static_cast<uint8_t>(jump.edit.level + 1)});
  const std::string why = fmt::format("moved to make room for the jump at {}", for_site);
  Placement placement = finish({}, std::move(jump), "jump", why);
  evicted_.push_back({std::move(plan), std::move(placement)});
}

Placer::Maybe Placer::hop_after_evicting(const SitePlan& plan) {
  const auto reach = reach_of(plan);
  if (!reach) return std::nullopt;
  for (const size_t least : {2 * kPatchBytes, kPatchBytes + 1}) {
    const TargetAddr from = reach->first - (kMaxWindowBytes - 1);
    for (TargetAddr at = from; at < reach->last;) {
      const Sweep& code = sweeps_.around(at);
      const SweptInsn* insn = code.covering(at);
      const TargetAddr next = insn == nullptr ? at + 1 : code.address(*insn) + insn->shape.length;
      if (insn != nullptr && code.address(*insn) == at) {
        if (auto placement = hop_behind(plan, *reach, at, least)) return placement;
      }
      at = next;
    }
  }
  return std::nullopt;
}

/// Moves the instructions at `victim` and hops to a jump behind theirs.
Placer::Maybe Placer::hop_behind(const SitePlan& plan,
                                 const Reach& reach,
                                 TargetAddr victim,
                                 size_t least) {
  const TargetAddr first = std::max(reach.first, victim + kPatchBytes);
  if (first > reach.last || first >= victim + kMaxWindowBytes || !ledger_.is_free(victim))
    return std::nullopt;
  const auto behind = static_cast<size_t>(first - victim);
  const size_t wanted = std::max(least, behind + (least - kPatchBytes));
  auto window = evictable(victim, wanted);
  if (!window || window->plan().window.size() < wanted) return std::nullopt;
  const Mark mark = this->mark();
  auto jump = maker_.jump(victim, kPatchBytes, {});
  if (jump) {
    const auto level = static_cast<uint8_t>(jump->edit.level + 1);
    if (ways_.reader_of(victim, window->plan().window_end()) == nullptr) {
      evict(std::move(*window), std::move(*jump), plan.site);
      const TargetAddr end = moved_areas_.back().end;
      if (first < end) {
        if (auto placement = hop_to(plan, reach, first, room_at(first, end), level))
          return placement;
      }
    }
  }
  roll_back(mark);
  return std::nullopt;
}

/// The next instruction is moved, or is an ordinary site, and its jump chosen such that ours is
/// possible.
Placer::Maybe Placer::evict_next(const SitePlan& plan) {
  const TargetAddr next = plan.site + plan.written;
  const auto owner = ledger_.owner(next);
  if (owner) {
    const SitePlan& other = *sites_[*owner];
    const bool is_jump =
        other.mechanism != Mechanism::kShort && other.mechanism != Mechanism::kTrap;
    if (other.site != next || !is_jump || !ledger_.is_open(*owner)) return std::nullopt;
    auto pair = jump_over(plan, next);
    if (!pair) return std::nullopt;
    ledger_.close(*owner);
    settled_.emplace_back(*owner, finish({}, std::move(pair->next), "jump", other.reason));
    return std::move(pair->placement);
  }
  auto window = evictable(next, kPatchBytes);
  if (!window) return std::nullopt;
  auto pair = jump_over(plan, next);
  if (!pair) return std::nullopt;
  evict(std::move(*window), std::move(pair->next), plan.site);
  return std::move(pair->placement);
}

/// A jump in the five bytes at `next` such that one at the site is possible.
std::optional<Placer::Pair> Placer::jump_over(const SitePlan& plan, TargetAddr next) {
  auto pair = maker_.pair(plan.site, plan.written, next);
  if (pair) {
    return Pair{
        std::move(pair->second),
        finish({}, std::move(pair->first), "punned jump over a moved instruction", plan.reason)};
  }
  if (plan.written != 1) return std::nullopt;
  return hop_by_prefix(plan, next);
}

/// A prefix of the next instruction's jump is the distance of a hop.
std::optional<Placer::Pair> Placer::hop_by_prefix(const SitePlan& plan, TargetAddr next) {
  for (const uint8_t first : JumpMaker::first_bytes()) {
    const auto reach = reach_by(plan.site, first, 0);
    if (!reach) continue;
    for (const HostArea& area : host_areas(*reach)) {
      if (reach->first < area.start || reach->first >= area.end) continue;
      const Mark mark = this->mark();
      auto jump = maker_.jump(next, kPatchBytes, {.first_byte = first});
      if (!jump) continue;
      Reach by_jump = *reach;
      by_jump.level = static_cast<uint8_t>(jump->edit.level + 1);
      auto placement =
          hop_to(plan, by_jump, reach->first, room_at(reach->first, area.end), area.level);
      if (placement) return Pair{std::move(*jump), std::move(*placement)};
      roll_back(mark);
    }
  }
  return std::nullopt;
}

}  // namespace spile::patch
