// Jumps of two bytes, to bytes nearby that have room for a longer one.
#include <fmt/format.h>

#include <algorithm>

#include "user_engine/patch/placer.h"

namespace spile::patch {

std::optional<Placer::Reach> Placer::reach_of(const SitePlan& plan) const {
  if (plan.written == 1) {
    const auto next = ledger_.settled(plan.site + 1);
    return next ? reach_by(plan.site, next->value, next->level) : std::nullopt;
  }
  const TargetAddr behind = plan.site + kHopBytes;
  Reach reach{behind - kHopBack, behind + kHopAhead};
  if (scene_.rules.page_boundary) {
    // The program may unmap any other page while this one stays.
    const TargetAddr page(plan.site.value & ~(kPageBytes - 1));
    reach.first = std::max(reach.first, page);
    reach.last = std::min(reach.last, page + (kPageBytes - 1));
  }
  return reach;
}

/// Of a site of one byte, if the next is `distance`.
std::optional<Placer::Reach> Placer::reach_by(TargetAddr site,
                                              uint8_t distance,
                                              uint8_t level) const {
  const TargetAddr only =
      site + kHopBytes + static_cast<uint64_t>(static_cast<int64_t>(static_cast<int8_t>(distance)));
  const auto page = [](TargetAddr a) { return a.value / kPageBytes; };
  const bool same_page = page(site) == page(site + 1) && page(site) == page(only);
  if (scene_.rules.page_boundary && !same_page) return std::nullopt;
  return Reach{only, only, level, true};
}

std::vector<HostArea> Placer::host_areas(const Reach& reach) {
  auto areas = padding_.in(reach.first - kHopBack, reach.last + kHopAhead);
  areas.insert(areas.end(), moved_areas_.begin(), moved_areas_.end());
  add_unused_bytes(reach, areas);
  // The highest first: the sites that are still to come are lower.
  std::ranges::stable_sort(areas,
                           [](const HostArea& a, const HostArea& b) { return a.start > b.start; });
  return areas;
}

/// Behind the jump of an ordinary site, inside the instruction that the jump ends in.
void Placer::add_unused_bytes(const Reach& reach, std::vector<HostArea>& areas) const {
  auto site = std::lower_bound(sites_.begin(), sites_.end(), reach.first - kMaxWindowBytes,
                               [](const SitePlan* s, TargetAddr a) { return s->site < a; });
  for (; site != sites_.end() && (*site)->site <= reach.last; ++site) {
    const SitePlan& plan = **site;
    const bool is_jump = plan.mechanism != Mechanism::kShort && plan.mechanism != Mechanism::kTrap;
    if (!is_jump || plan.window.size() <= kPatchBytes) continue;
    const auto head = std::upper_bound(plan.heads.begin(), plan.heads.end(), kPatchBytes);
    const TargetAddr from = plan.site + kPatchBytes;
    TargetAddr to = head == plan.heads.end() ? plan.window_end() : plan.site + *head;
    if (head != plan.heads.begin() && *std::prev(head) == kPatchBytes) continue;  // a head is there
    to = ways_.untouched_to(from, to);
    const auto jump = ledger_.settled(plan.site);
    areas.push_back({from, to, jump ? jump->level : uint8_t{1}});
  }
}

Placer::Maybe Placer::hop_to_full_jump(const SitePlan& plan) {
  return hop(plan, kPatchBytes, kPatchBytes);
}
Placer::Maybe Placer::hop_to_punned_jump(const SitePlan& plan) {
  return hop(plan, 1, kPatchBytes - 1);
}

Placer::Maybe Placer::hop(const SitePlan& plan, size_t least, size_t most) {
  const auto reach = reach_of(plan);
  if (!reach) return std::nullopt;
  for (const HostArea& area : host_areas(*reach)) {
    if (auto placement = hop_into(plan, *reach, area, least, most)) return placement;
  }
  return std::nullopt;
}

Placer::Maybe Placer::hop_into(
    const SitePlan& plan, const Reach& reach, const HostArea& area, size_t least, size_t most) {
  // From the end: what is left is whole.
  const TargetAddr first = std::max(reach.first, area.start);
  for (TargetAddr at = std::min(reach.last + 1, area.end); at > first;) {
    at = at - 1;
    const size_t room = room_at(at, area.end);
    if (room < least || room > most) continue;
    if (auto placement = hop_to(plan, reach, at, room, area.level)) return placement;
  }
  return std::nullopt;
}

/// Bytes at `at` that a jump may be written to, up to five, in one page.
size_t Placer::room_at(TargetAddr at, TargetAddr end) const {
  end = std::min({end, at + kPatchBytes, at + (kPageBytes - at.value % kPageBytes)});
  size_t room = 0;
  while (at + room < end && ledger_.is_spare(at + room)) ++room;
  return room;
}

Placer::Maybe Placer::hop_to(
    const SitePlan& plan, const Reach& reach, TargetAddr at, size_t room, uint8_t level) {
  const Mark mark = this->mark();
  // The byte that is our distance must not change with the jump.
  if (reach.by_next_byte) maker_.lock(plan.site + 1);
  const bool on_own_distance =
      reach.by_next_byte && at <= plan.site + 1 && plan.site + 1 < at + room;
  auto jump = on_own_distance ? std::nullopt : maker_.jump(at, room, {.level = level});
  if (!jump) {
    roll_back(mark);
    return std::nullopt;
  }
  const std::string how =
      fmt::format("hop to a {}jump at {}", room < kPatchBytes ? "punned " : "", at);
  return finish_hop(plan, reach, std::move(*jump), how);
}

Placer::Maybe Placer::finish_hop(const SitePlan& plan,
                                 const Reach& reach,
                                 Jump host,
                                 std::string how) {
  const auto distance = static_cast<uint8_t>(host.edit.at.value - (plan.site + kHopBytes).value);
  Edit hop{plan.site, {plan.before[0]}, {0xeb}};
  if (!reach.by_next_byte) {
    hop.before.push_back(plan.before[1]);
    hop.after.push_back(distance);
  }
  hop.level = std::max<uint8_t>(reach.level, static_cast<uint8_t>(host.edit.level + 1));
  ledger_.add_edit(hop);
  Placement placement{
      {std::move(host.edit)}, std::move(host.relies_on), host.stone, std::move(how), plan.reason};
  if (reach.by_next_byte) placement.relies_on.push_back({plan.site + 1, plan.site + 2});
  placement.edits.push_back(std::move(hop));
  return placement;
}

}  // namespace spile::patch
