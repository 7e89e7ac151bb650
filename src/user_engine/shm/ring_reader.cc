#include "user_engine/shm/ring_reader.h"

#include <algorithm>
#include <limits>

#include "user_engine/rt/atomics.h"
#include "user_engine/rt/cpu.h"

namespace spile::shm {
namespace {

using std::chrono::steady_clock;

constexpr uint64_t kForever = std::numeric_limits<uint64_t>::max();

uint64_t* word_at(uint8_t* data, uint64_t size, uint64_t position) {
  return reinterpret_cast<uint64_t*>(data + (position & (size - 1)));
}

/// A header that one of our producers can have written at `position`.
bool plausible(uint64_t header, uint64_t position, uint64_t size) {
  const uint64_t length = abi::record_length(header), room = size - (position & (size - 1));
  const abi::RecordState state = abi::record_state(header);
  if (length == 0 || length > room) return false;
  if (state == abi::RecordState::kPadding) return length == room;
  const bool known = state == abi::RecordState::kBusy || state == abi::RecordState::kCommitted ||
                     state == abi::RecordState::kDiscarded;
  return known && length >= abi::kRecordPrefixBytes &&
         length <= abi::kRecordPrefixBytes + abi::kMaxRecordBytes;
}

}  // namespace

Result<void> RingReader::add(const Region& region, size_t map, OwnerProbe owner) {
  if (map >= region.map_count() || region.map(map).kind != abi::RtMapKind::kRing) {
    return fail(ErrorCode::kInvalid, "map {} is no ring", map);
  }
  const abi::RtMap& ring = region.map(map);
  const auto shared_owner = std::make_shared<OwnerProbe>(std::move(owner));
  for (uint64_t cpu = 0; cpu <= ring.cpu_mask; ++cpu) {
    Source source;
    source.region = region.memory().data();
    source.head = reinterpret_cast<abi::RingHead*>(ring.rings + cpu * ring.ring_stride);
    source.data = reinterpret_cast<uint8_t*>(source.head + 1);
    source.size = ring.ring_size;
    source.owner = shared_owner;
    sources_.push_back(std::move(source));
  }
  return {};
}

void RingReader::remove(const Region& region) {
  for (Source& source : sources_) {
    if (source.region == region.memory().data()) drain(source, rt::read_tsc(), true);
  }
  std::erase_if(sources_, [&](const Source& s) { return s.region == region.memory().data(); });
}

size_t RingReader::poll(const RecordVisitor& visit) {
  return pass(visit, false);
}
size_t RingReader::finish(const RecordVisitor& visit) {
  return pass(visit, true);
}

size_t RingReader::pass(const RecordVisitor& visit, bool last) {
  const uint64_t horizon = rt::read_tsc();
  uint64_t bound = horizon;
  for (Source& source : sources_) bound = std::min(bound, drain(source, horizon, last));
  if (last || bytes_.size() > options_.max_pending_bytes) bound = kForever;
  last_bound_ = std::max(last_bound_, std::min(bound, horizon));
  return hand_out(bound, visit);
}

/// Takes what is complete out of one ring. Returns up to which time this ring can have nothing more
/// to come.
uint64_t RingReader::drain(Source& source, uint64_t horizon, bool last) {
  for (uint64_t taken = 0; taken < source.size && !source.corrupt;) {
    const uint64_t header = rt::load_acquire(word_at(source.data, source.size, source.position));
    if (header == source.position) break;
    if (!plausible(header, source.position, source.size)) {
      source.corrupt = true;
      ++stats_.corrupt_rings;
      break;
    }
    const uint64_t length = abi::record_length(header);
    if (abi::record_state(header) == abi::RecordState::kBusy) {
      if (!skip_busy(source, header, last)) return busy_bound(source, horizon);
    } else if (abi::record_state(header) == abi::RecordState::kCommitted) {
      take(source, length);
    }
    source.busy_position = 0;
    release(source, length);
    taken += length;
  }
  return horizon;
}

/// Whether an unfinished record is to be given up; counts it then.
bool RingReader::skip_busy(Source& source, uint64_t header, bool last) {
  const auto now = steady_clock::now();
  if (source.busy_position != source.position) {
    source.busy_position = source.position;
    source.busy_since = now;
    source.busy_bound = last_bound_;
  }
  bool skip = last;
  if (!skip && now - source.busy_since >= options_.owner_check_after) {
    const uint32_t tid = abi::record_owner(header);
    const OwnerState owner =
        tid != 0 && *source.owner ? (*source.owner)(tid) : OwnerState::kUnknown;
    skip = owner == OwnerState::kGone ||
           (owner == OwnerState::kUnknown && now - source.busy_since >= options_.abandon_after);
  }
  if (skip) ++stats_.abandoned;
  return skip;
}

/// Later records of other rings wait for an unfinished one, but not for long.
uint64_t RingReader::busy_bound(Source& source, uint64_t horizon) {
  if (steady_clock::now() - source.busy_since >= options_.order_wait) return horizon;
  const uint64_t tsc = rt::load_acquire(word_at(source.data, source.size, source.position + 8));
  // Still the free word: the time is not yet written, but it is later than the pass that found
  // nothing here.
  const bool written = tsc != source.position + 8 && tsc <= horizon;
  return written ? std::max(tsc, source.busy_bound) : source.busy_bound;
}

/// Copies a committed record to bytes_.
void RingReader::take(Source& source, uint64_t length) {
  const uint8_t* record = source.data + (source.position & (source.size - 1));
  const auto body = static_cast<uint32_t>(length - abi::kRecordPrefixBytes);
  // No record was made in the future: a hostile time would stay pending for ever.
  const uint64_t tsc =
      std::min(rt::load_relaxed(reinterpret_cast<const uint64_t*>(record) + 1), rt::read_tsc());
  items_.push_back({tsc, arrivals_++, bytes_.size(), body});
  bytes_.insert(bytes_.end(), record + abi::kRecordPrefixBytes, record + length);
}

/// Makes the record's words free for the next lap, then moves on. The producer position goes first:
/// it must not be left behind at a position whose word is of a later lap.
void RingReader::release(Source& source, uint64_t length) {
  rt::compare_swap(&source.head->producer_pos, source.position, source.position + length);
  uint64_t* word = word_at(source.data, source.size, source.position);
  for (uint64_t i = 0; i < length; i += 8)
    rt::store_relaxed(word++, source.position + source.size + i);
  source.position += length;
  rt::store_release(&source.head->consumer_pos, source.position);
}

/// Hands out what is not later than `bound`, earliest first; keeps the rest.
size_t RingReader::hand_out(uint64_t bound, const RecordVisitor& visit) {
  const auto earlier = [](const Item& a, const Item& b) {
    return a.tsc != b.tsc ? a.tsc < b.tsc : a.order < b.order;
  };
  if (!std::ranges::is_sorted(items_, earlier)) std::ranges::sort(items_, earlier);
  size_t count = 0;
  while (count < items_.size() && items_[count].tsc <= bound) {
    const Item& item = items_[count++];
    visit(item.tsc, {bytes_.data() + item.offset, item.length});
  }
  keep_from(count);
  stats_.records += count;
  return count;
}

void RingReader::keep_from(size_t first) {
  std::vector<uint8_t> kept;
  items_.erase(items_.begin(), items_.begin() + static_cast<std::ptrdiff_t>(first));
  for (Item& item : items_) {
    const auto* from = bytes_.data() + item.offset;
    item.offset = kept.size();
    kept.insert(kept.end(), from, from + item.length);
  }
  if (kept.empty()) {
    bytes_.clear();  // Keeps its capacity.
  } else {
    bytes_ = std::move(kept);
  }
}

}  // namespace spile::shm
