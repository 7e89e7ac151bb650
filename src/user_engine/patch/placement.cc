#include "user_engine/patch/placement.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "user_engine/patch/code_map.h"

namespace spile::patch {

std::array<uint8_t, kStoneBytes> stone_bytes(TargetAddr to) {
  // ff 25 00000000   jmp *0(%rip)
  // <address>
  std::array<uint8_t, kStoneBytes> code = {0xff, 0x25};
  std::memcpy(code.data() + 6, &to.value, sizeof to.value);
  return code;
}

// ---- room for stones
// ---------------------------------------------------------------------------------------------

namespace {

uint64_t first_page(TargetAddr at) {
  return at.value / StoneSpace::kPageBytes;
}

uint64_t last_page(TargetAddr at) {
  return (at.value + kStoneBytes - 1) / StoneSpace::kPageBytes;
}

}  // namespace

StoneSpace::StoneSpace(std::vector<Range> free, size_t max_pages)
    : free_(std::move(free)), max_pages_(max_pages) {}

bool StoneSpace::is_free(uint64_t page) const {
  const TargetAddr start(page * kPageBytes);
  const auto after = std::ranges::upper_bound(free_, start, {}, &Range::start);
  return after != free_.begin() && std::prev(after)->end >= start + kPageBytes;
}

bool StoneSpace::fits(TargetAddr at) const {
  size_t more = 0;
  for (uint64_t page = first_page(at); page <= last_page(at); ++page) {
    if (pages_.contains(page)) continue;
    if (!is_free(page)) return false;
    ++more;
  }
  if (pages_.size() + more > max_pages_) return false;
  const auto next = stones_.lower_bound(at.value);
  if (next != stones_.end() && next->first < at.value + kStoneBytes) return false;
  return next == stones_.begin() || std::prev(next)->second <= at.value;
}

std::optional<TargetAddr> StoneSpace::find_on_page(uint64_t page,
                                                   TargetAddr first,
                                                   TargetAddr last) const {
  TargetAddr at = std::max(first, TargetAddr(page * kPageBytes));
  const TargetAddr end = std::min(last, TargetAddr((page + 1) * kPageBytes - 1));
  while (at <= end) {
    if (fits(at)) return at;
    // Behind the stone that is in the way, or on the next page if it is the page itself.
    const auto next = stones_.upper_bound(at.value + kStoneBytes - 1);
    if (next == stones_.begin() || std::prev(next)->second <= at.value) return std::nullopt;
    at = TargetAddr(std::prev(next)->second);
  }
  return std::nullopt;
}

std::optional<TargetAddr> StoneSpace::find(TargetAddr first, TargetAddr last) const {
  for (auto page = pages_.lower_bound(first_page(first));
       page != pages_.end() && page->first <= first_page(last); ++page) {
    if (const auto at = find_on_page(page->first, first, last)) return at;
  }
  if (fits(first)) return first;
  auto range = std::ranges::upper_bound(free_, first, {}, &Range::start);
  if (range != free_.begin()) --range;
  for (; range != free_.end() && range->start <= last; ++range) {
    // The first page of the range that has room: those in use were looked at.
    for (uint64_t page = first_page(std::max(range->start, first));
         page <= first_page(last) && is_free(page); ++page) {
      if (const auto at = find_on_page(page, first, last)) return at;
      if (!pages_.contains(page)) break;
    }
  }
  return std::nullopt;
}

void StoneSpace::take(TargetAddr at) {
  SPILE_CHECK(fits(at));
  stones_.emplace(at.value, at.value + kStoneBytes);
  for (uint64_t page = first_page(at); page <= last_page(at); ++page) ++pages_[page];
}

void StoneSpace::give_back(TargetAddr at) {
  SPILE_CHECK(stones_.erase(at.value) == 1);
  for (uint64_t page = first_page(at); page <= last_page(at); ++page) {
    if (--pages_[page] == 0) pages_.erase(page);
  }
}

std::vector<StoneSpace::Range> StoneSpace::pages() const {
  std::vector<Range> ranges;
  for (const auto& [page, stones] : pages_) {
    const TargetAddr start(page * kPageBytes);
    if (!ranges.empty() && ranges.back().end == start)
      ranges.back().end = start + kPageBytes;
    else
      ranges.push_back({start, start + kPageBytes});
  }
  return ranges;
}

// ---- ways to make a jump
// -----------------------------------------------------------------------------------------

namespace {

/// Where a jump of which the first `own` distance bytes can be chosen may lead.
struct Targets {
  TargetAddr first, last;  ///< inclusive
};

Targets targets_of(TargetAddr next_insn, std::span<const uint8_t> distance, size_t own) {
  uint32_t least = 0;
  for (size_t i = own; i < 4; ++i) least |= uint32_t{distance[i]} << (8 * i);
  const auto most =
      own == 0 ? least : least | static_cast<uint32_t>((uint64_t{1} << (8 * own)) - 1);
  const auto at = [&](uint32_t value) {
    return next_insn + static_cast<uint64_t>(static_cast<int64_t>(static_cast<int32_t>(value)));
  };
  return {at(least), at(most)};
}

std::expected<Placement, Refusal> pun(const SitePlan& plan, StoneSpace& space) {
  const auto reach =
      targets_of(plan.site + kPatchBytes, std::span(plan.before).subspan(1), plan.written - 1u);
  const auto stone = space.find(reach.first, reach.last);
  if (!stone) {
    return std::unexpected(
        Refusal{RefusalKind::kTooShort,
                plan.site,
                {},
                "only a punned jump fits here, and the addresses that it could lead to are taken"});
  }
  space.take(*stone);
  const auto jump = x86::encode_jmp(plan.site, *stone);
  SPILE_CHECK(jump.has_value());
  Edit edit{plan.site,
            {plan.before.begin(), plan.before.begin() + plan.written},
            {jump->begin(), jump->begin() + plan.written}};
  return Placement{{std::move(edit)}, *stone, "punned jump", plan.reason};
}

}  // namespace

Placements place_short_sites(const ModuleCode& module,
                             std::span<const SitePlan* const> sites,
                             StoneSpace& space,
                             const PlanRules& rules) {
  static_cast<void>(module);
  static_cast<void>(rules);
  Placements result;
  for (size_t i = sites.size(); i-- > 0;) {
    if (sites[i]->mechanism != Mechanism::kShort) continue;
    auto placed = pun(*sites[i], space);
    if (placed)
      result.placed.emplace(i, std::move(*placed));
    else
      result.refused.emplace(i, std::move(placed.error()));
  }
  return result;
}

}  // namespace spile::patch
