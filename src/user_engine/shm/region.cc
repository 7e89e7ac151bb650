#include "user_engine/shm/region.h"

#include <cpuid.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <random>

#include "abi/ring.h"
#include "user_engine/rt/atomics.h"
#include "user_engine/rt/blob.h"

namespace spile::shm {
namespace {

constexpr uint64_t kPage = 4096;

constexpr uint64_t round_up(uint64_t value, uint64_t to) {
  return (value + to - 1) / to * to;
}

abi::RtMapKind rt_kind(bundle::MapKind kind) {
  return static_cast<abi::RtMapKind>(kind);
}
static_assert(static_cast<int>(bundle::MapKind::kHash) == static_cast<int>(abi::RtMapKind::kHash));
static_assert(static_cast<int>(bundle::MapKind::kArray) ==
              static_cast<int>(abi::RtMapKind::kArray));
static_assert(static_cast<int>(bundle::MapKind::kPerCpuHash) ==
              static_cast<int>(abi::RtMapKind::kPerCpuHash));
static_assert(static_cast<int>(bundle::MapKind::kPerCpuArray) ==
              static_cast<int>(abi::RtMapKind::kPerCpuArray));
static_assert(static_cast<int>(bundle::MapKind::kRing) == static_cast<int>(abi::RtMapKind::kRing));
static_assert(static_cast<int>(bundle::MapKind::kStacks) ==
              static_cast<int>(abi::RtMapKind::kStacks));
static_assert(static_cast<int>(bundle::MapKind::kCalls) ==
              static_cast<int>(abi::RtMapKind::kCalls));

bool is_hash(abi::RtMapKind kind) {
  return kind == abi::RtMapKind::kHash || kind == abi::RtMapKind::kPerCpuHash;
}
bool is_per_cpu(abi::RtMapKind kind) {
  return kind == abi::RtMapKind::kPerCpuHash || kind == abi::RtMapKind::kPerCpuArray;
}

uint64_t random_u64() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

uint32_t slots_for(uint32_t cpus) {
  if (cpus == 0) cpus = static_cast<uint32_t>(std::max(1L, sysconf(_SC_NPROCESSORS_CONF)));
  return std::min(std::bit_ceil(cpus), abi::kMaxCpuSlots);
}

Result<void> check_spec(const bundle::MapSpec& spec, size_t index) {
  const bool ring = spec.kind == bundle::MapKind::kRing;
  const bool array =
      spec.kind == bundle::MapKind::kArray || spec.kind == bundle::MapKind::kPerCpuArray;
  if (ring) {
    if (!std::has_single_bit(spec.max_entries) || spec.max_entries < kPage) {
      return fail(ErrorCode::kInvalid,
                  "ring map {}: {} bytes is no power of two of at least a page", index,
                  spec.max_entries);
    }
    return {};
  }
  if (spec.max_entries == 0 || spec.max_entries > abi::kMaxMapEntries) {
    return fail(ErrorCode::kInvalid, "map {} '{}': {} entries (1 to {} are possible)", index,
                spec.name, spec.max_entries, abi::kMaxMapEntries);
  }
  if (spec.value_size == 0 || spec.value_size > abi::kMaxValueBytes) {
    return fail(ErrorCode::kInvalid, "map {} '{}': values of {} bytes (1 to {} are possible)",
                index, spec.name, spec.value_size, abi::kMaxValueBytes);
  }
  const bool stacks = spec.kind == bundle::MapKind::kStacks;
  if (stacks && (spec.value_size % 8 != 0 || spec.value_size > 8 * abi::kMaxStackFrames ||
                 !std::has_single_bit(spec.max_entries))) {
    return fail(ErrorCode::kInvalid, "stack map {}: {} slots of {} bytes", index, spec.max_entries,
                spec.value_size);
  }
  const bool calls = spec.kind == bundle::MapKind::kCalls;
  if (calls &&
      (spec.key_size != 16 || spec.value_size % 8 != 0 || !std::has_single_bit(spec.max_entries))) {
    return fail(ErrorCode::kInvalid, "map of calls {}: {} cells of {} and {} bytes", index,
                spec.max_entries, spec.key_size, spec.value_size);
  }
  if (array || stacks ? spec.key_size != 4
                      : (spec.key_size == 0 || spec.key_size > abi::kMaxKeyBytes)) {
    return fail(ErrorCode::kInvalid, "map {} '{}': keys of {} bytes", index, spec.name,
                spec.key_size);
  }
  return {};
}

/// Hands out the region from front to back.
class Cursor {
 public:
  explicit Cursor(uint64_t start) : at_(start) {}
  uint64_t take(uint64_t bytes, uint64_t alignment) {
    at_ = round_up(at_, alignment);
    const uint64_t start = at_;
    at_ += bytes;
    return start;
  }
  uint64_t position() const { return at_; }

 private:
  uint64_t at_;
};

void place_hash(abi::RtMap& map, Cursor& cursor) {
  const uint64_t buckets = std::bit_ceil(uint64_t{map.max_entries});
  map.capacity = map.max_entries + abi::kSpareEntries;
  map.bucket_mask = static_cast<uint32_t>(buckets - 1);
  map.entry_stride = static_cast<uint32_t>(sizeof(abi::HashEntry) + round_up(map.key_size, 8));
  map.heads = cursor.take(sizeof(abi::HashHead) + 8 * buckets, 64);
  map.entries = cursor.take(uint64_t{map.entry_stride} * map.capacity, 64);
}

abi::RtMap place_map(const bundle::MapSpec& spec,
                     uint32_t cpu_slots,
                     uint64_t seed,
                     Cursor& cursor) {
  abi::RtMap map{};
  map.kind = rt_kind(spec.kind);
  map.key_size = spec.key_size;
  map.value_size = spec.value_size;
  map.max_entries = spec.max_entries;
  map.value_stride = static_cast<uint32_t>(round_up(spec.value_size, 8));
  map.seed = seed;
  if (is_hash(map.kind)) place_hash(map, cursor);
  if (map.kind == abi::RtMapKind::kStacks) {
    map.value_stride += sizeof(abi::StackHead);
    map.bucket_mask = map.max_entries - 1;
  }
  if (map.kind == abi::RtMapKind::kCalls) {
    map.value_stride += sizeof(abi::CallHead);
    map.bucket_mask = map.max_entries - 1;
  }
  const uint64_t values = is_hash(map.kind) ? map.capacity : map.max_entries;
  const uint64_t one_cpu = round_up(uint64_t{map.value_stride} * values, 64);
  const uint32_t slots = is_per_cpu(map.kind) ? cpu_slots : 1;
  map.cpu_mask = slots - 1;
  map.per_cpu_stride = slots > 1 ? one_cpu : 0;
  map.values = cursor.take(one_cpu * slots, 64);
  return map;
}

abi::RtMap place_ring(const bundle::MapSpec& spec,
                      uint32_t cpu_slots,
                      const RegionOptions& options,
                      Cursor& cursor) {
  abi::RtMap map{};
  map.kind = abi::RtMapKind::kRing;
  map.cpu_mask = cpu_slots - 1;
  const uint64_t share = std::bit_floor(std::max<uint64_t>(options.max_ring_bytes / cpu_slots, 1));
  map.ring_size = static_cast<uint32_t>(
      std::max(std::min<uint64_t>(spec.max_entries, std::min<uint64_t>(share, 1u << 30)),
               abi::kMinRingBytes));
  map.ring_stride = round_up(sizeof(abi::RingHead) + map.ring_size, kPage);
  map.rings = cursor.take(map.ring_stride * cpu_slots, kPage);
  return map;
}

bool cpu_has_rdpid() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & (1u << 22)) != 0;
}

bool cpu_has_rtm() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool rtm = (b & (1u << 11)) != 0, always_abort = (d & (1u << 11)) != 0;
  return rtm && !always_abort;
}

}  // namespace

Result<RegionLayout> plan_region(const bundle::Bundle& bundle, const RegionOptions& options) {
  RegionLayout layout;
  layout.cpu_slots = slots_for(options.cpus);
  layout.site_capacity = options.site_capacity;
  layout.trace_id = options.seed != 0 ? options.seed : random_u64();
  Cursor cursor(abi::kStatsOffset);
  cursor.take(sizeof(abi::CpuStats) * layout.cpu_slots, kPage);
  layout.sites_offset = cursor.take(sizeof(abi::SiteEntry) * uint64_t{layout.site_capacity}, kPage);
  layout.maps_offset = cursor.take(0, kPage);
  layout.maps.resize(bundle.maps.size());
  // Rings last: what is formatted and what is zero lie apart.
  for (const bool rings : {false, true}) {
    if (rings) layout.rings_offset = cursor.take(0, kPage);
    for (size_t i = 0; i < bundle.maps.size(); ++i) {
      const bundle::MapSpec& spec = bundle.maps[i];
      if ((spec.kind == bundle::MapKind::kRing) != rings) continue;
      SPILE_TRY_VOID(check_spec(spec, i));
      const uint64_t seed = options.seed != 0 ? options.seed + i : random_u64();
      layout.maps[i] = rings ? place_ring(spec, layout.cpu_slots, options, cursor)
                             : place_map(spec, layout.cpu_slots, seed, cursor);
      if (cursor.position() > options.max_bytes) {
        return fail(ErrorCode::kUnsupported,
                    "map {} '{}' makes the shared memory larger than {} bytes (now {})", i,
                    spec.name, options.max_bytes, cursor.position());
      }
    }
  }
  layout.size_bytes = round_up(cursor.position(), kPage);
  return layout;
}

abi::RtMap map_descriptor(const RegionLayout& layout, size_t index, uint64_t data_base) {
  abi::RtMap map = layout.maps[index];
  if (map.kind == abi::RtMapKind::kRing) {
    map.rings += data_base;
    return map;
  }
  map.values += data_base;
  if (is_hash(map.kind)) {
    map.heads += data_base;
    map.entries += data_base;
  }
  return map;
}

abi::RtConsts consts_for(const RegionLayout& layout, uint64_t data_base, uint64_t code_base) {
  abi::RtConsts consts{};
  consts.magic = abi::kConstsMagic;
  consts.version = abi::kAbiVersion;
  if (cpu_has_rdpid()) consts.flags |= abi::kHasRdpid;
  if (cpu_has_rtm()) consts.flags |= abi::kHasRtm;
  consts.data_base = data_base;
  consts.data_size = layout.size_bytes;
  consts.time_page = data_base + abi::kTimeOffset;
  consts.stats = data_base + abi::kStatsOffset;
  consts.cpu_mask = layout.cpu_slots - 1;
  consts.map_count = static_cast<uint32_t>(layout.maps.size());
  consts.tid_source = abi::TidSource::kGettid;
  consts.allowed_calls = abi::kCallAll;
  consts.code_base = code_base;
  return consts;
}

Result<uint64_t> write_code_prefix(std::span<uint8_t> code,
                                   const RegionLayout& layout,
                                   const abi::RtConsts& consts) {
  const uint64_t end = abi::bodies_offset(layout.maps.size());
  const auto blob = rt::blob_bytes();
  if (code.size() < end || blob.size() > abi::kMaxBlobBytes) {
    return fail(ErrorCode::kInvalid,
                "code region of {} bytes cannot hold blob and constants ({} bytes)", code.size(),
                end);
  }
  std::memcpy(code.data(), blob.data(), blob.size());
  std::memcpy(code.data() + abi::kConstsOffset, &consts, sizeof consts);
  for (size_t i = 0; i < layout.maps.size(); ++i) {
    const abi::RtMap map = map_descriptor(layout, i, consts.data_base);
    std::memcpy(code.data() + abi::map_descriptor_offset(i), &map, sizeof map);
  }
  return end;
}

// ---- Region
// -------------------------------------------------------------------------------------------------------

Result<Region> Region::view(std::span<uint8_t> memory, RegionLayout layout) {
  if (memory.size() < layout.size_bytes) {
    return fail(ErrorCode::kInvalid, "data region of {} bytes, {} are needed", memory.size(),
                layout.size_bytes);
  }
  Region region;
  region.memory_ = memory.first(layout.size_bytes);
  const auto base = reinterpret_cast<uint64_t>(memory.data());
  for (size_t i = 0; i < layout.maps.size(); ++i)
    region.maps_.push_back(map_descriptor(layout, i, base));
  region.consts_ = std::make_unique<abi::RtConsts>(consts_for(layout, base, 0));
  region.layout_ = std::move(layout);
  return region;
}

namespace {

void format_header(std::span<uint8_t> memory, const RegionLayout& layout) {
  const abi::DataHeader header = {
      .magic = abi::kDataMagic,
      .version = abi::kAbiVersion,
      .header_bytes = sizeof(abi::DataHeader),
      .size = layout.size_bytes,
      .cpu_slots = layout.cpu_slots,
      .site_capacity = layout.site_capacity,
      .journal_offset = abi::kJournalOffset,
      .time_offset = abi::kTimeOffset,
      .stats_offset = abi::kStatsOffset,
      .sites_offset = layout.sites_offset,
      .maps_offset = layout.maps_offset,
      .rings_offset = layout.rings_offset,
      .trace_id = layout.trace_id,
  };
  std::memcpy(memory.data(), &header, sizeof header);
}

void format_rings(const abi::RtMap& map) {
  for (uint64_t cpu = 0; cpu <= map.cpu_mask; ++cpu) {
    auto* head = reinterpret_cast<abi::RingHead*>(map.rings + cpu * map.ring_stride);
    head->producer_pos = head->consumer_pos = abi::kRingFirstPosition;
    auto* words = reinterpret_cast<uint64_t*>(head + 1);
    for (uint64_t i = 0; i < map.ring_size / 8; ++i) words[i] = abi::kRingFirstPosition + 8 * i;
  }
}

}  // namespace

Result<Region> Region::format(std::span<uint8_t> memory, RegionLayout layout) {
  SPILE_TRY(Region region, view(memory, std::move(layout)));
  format_header(region.memory_, region.layout_);
  for (const abi::RtMap& map : region.maps_) {
    if (map.kind == abi::RtMapKind::kRing) format_rings(map);
  }
  abi::Journal& journal = region.journal_untrusted();
  journal.magic = abi::kJournalMagic;
  journal.version = abi::kJournalVersion;
  return region;
}

abi::CpuStats Region::stats_untrusted() const {
  abi::CpuStats sum{};
  const auto* stats = at<abi::CpuStats>(abi::kStatsOffset);
  for (uint32_t cpu = 0; cpu < layout_.cpu_slots; ++cpu) {
    sum.hits += rt::load_relaxed(&stats[cpu].hits);
    sum.missed += rt::load_relaxed(&stats[cpu].missed);
    sum.unseen_returns += rt::load_relaxed(&stats[cpu].unseen_returns);
    sum.map_contended += rt::load_relaxed(&stats[cpu].map_contended);
    sum.ring_contended += rt::load_relaxed(&stats[cpu].ring_contended);
    sum.corrupt += rt::load_relaxed(&stats[cpu].corrupt);
    sum.refused_calls += rt::load_relaxed(&stats[cpu].refused_calls);
  }
  return sum;
}

Result<abi::DataHeader> check_header(std::span<const uint8_t> memory) {
  abi::DataHeader header;
  if (memory.size() < abi::kStatsOffset)
    return fail(ErrorCode::kCorrupt, "data region of {} bytes", memory.size());
  std::memcpy(&header, memory.data(), sizeof header);
  if (header.magic != abi::kDataMagic) return fail(ErrorCode::kCorrupt, "no data region of spile");
  if (header.version != abi::kAbiVersion) {
    return fail(ErrorCode::kUnsupported, "data region of layout version {}, this spile knows {}",
                header.version, abi::kAbiVersion);
  }
  const uint64_t sites_bytes = uint64_t{header.site_capacity} * sizeof(abi::SiteEntry);
  const bool inside =
      header.journal_offset == abi::kJournalOffset && header.sites_offset <= memory.size() &&
      sites_bytes <= memory.size() - header.sites_offset && header.sites_offset % kPage == 0;
  if (!inside) return fail(ErrorCode::kCorrupt, "data region's header points outside it");
  return header;
}

}  // namespace spile::shm
