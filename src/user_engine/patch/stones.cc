#include <algorithm>
#include <cstring>

#include "user_engine/patch/placement.h"

namespace spile::patch {

namespace {

constexpr uint64_t kJmpIndirectBytes = 6;

/// Where the address lies that a stone's jump reads: aligned, for the program may run with the
/// alignment check on.
TargetAddr literal_of(TargetAddr stone) {
  return TargetAddr((stone.value + kJmpIndirectBytes + 7) & ~uint64_t{7});
}

}  // namespace

TargetAddr stone_end(TargetAddr stone) {
  return literal_of(stone) + sizeof(uint64_t);
}

std::vector<uint8_t> stone_bytes(TargetAddr at, TargetAddr to) {
  // ff 25 <distance>   jmp *distance(%rip)
  // cc ...
  // <address>
  std::vector<uint8_t> code(static_cast<size_t>(stone_end(at) - at), 0xcc);
  const auto literal = static_cast<size_t>(literal_of(at) - at);
  const auto distance = static_cast<uint32_t>(literal - kJmpIndirectBytes);
  code[0] = 0xff;
  code[1] = 0x25;
  std::memcpy(code.data() + 2, &distance, sizeof distance);
  std::memcpy(code.data() + literal, &to.value, sizeof to.value);
  return code;
}

namespace {

uint64_t first_page(TargetAddr at) {
  return at.value / StoneSpace::kPageBytes;
}

uint64_t last_page(TargetAddr at) {
  return (stone_end(at).value - 1) / StoneSpace::kPageBytes;
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
  if (next != stones_.end() && next->first < stone_end(at).value) return false;
  return next == stones_.begin() || std::prev(next)->second <= at.value;
}

std::optional<TargetAddr> StoneSpace::find_on_page(uint64_t page,
                                                   TargetAddr first,
                                                   TargetAddr last) const {
  const auto used = pages_.find(page);
  if (used != pages_.end() && used->second.is_full) return std::nullopt;
  const TargetAddr start(page * kPageBytes);
  TargetAddr at = std::max(first, start);
  const TargetAddr end = std::min(last, start + (kPageBytes - 1));
  while (at <= end) {
    if (fits(at)) return at;
    // Behind the stone that is in the way, or on the next page if it is the page itself.
    const auto next = stones_.upper_bound(stone_end(at).value - 1);
    if (next == stones_.begin() || std::prev(next)->second <= at.value) break;
    at = TargetAddr(std::prev(next)->second);
  }
  if (used != pages_.end() && first <= start && last >= start + (kPageBytes - kMinStoneBytes))
    used->second.is_full = true;
  return std::nullopt;
}

std::optional<TargetAddr> StoneSpace::find(TargetAddr first, TargetAddr last, Pages which) const {
  for (auto page = pages_.lower_bound(first_page(first));
       page != pages_.end() && page->first <= first_page(last); ++page) {
    if (const auto at = find_on_page(page->first, first, last)) return at;
  }
  if (which == Pages::kInUse) return std::nullopt;
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
  stones_.emplace(at.value, stone_end(at).value);
  for (uint64_t page = first_page(at); page <= last_page(at); ++page) ++pages_[page].stones;
}

void StoneSpace::give_back(TargetAddr at) {
  SPILE_CHECK(stones_.erase(at.value) == 1);
  for (uint64_t page = first_page(at); page <= last_page(at); ++page) {
    Page& used = pages_[page];
    used.is_full = false;
    if (--used.stones == 0) pages_.erase(page);
  }
}

std::vector<StoneSpace::Range> StoneSpace::pages() const {
  std::vector<Range> ranges;
  for (const auto& [page, used] : pages_) {
    const TargetAddr start(page * kPageBytes);
    if (!ranges.empty() && ranges.back().end == start)
      ranges.back().end = start + kPageBytes;
    else
      ranges.push_back({start, start + kPageBytes});
  }
  return ranges;
}

}  // namespace spile::patch
