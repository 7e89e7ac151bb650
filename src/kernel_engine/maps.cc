#include "kernel_engine/maps.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/bpf.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "kernel_engine/features.h"

namespace spile::kernel_engine {

using bundle::MapKind;
using bundle::MapSpec;

namespace {

enum bpf_map_type kernel_type(MapKind kind) {
  switch (kind) {
    case MapKind::kCalls:
    case MapKind::kHash: return BPF_MAP_TYPE_HASH;
    case MapKind::kArray: return BPF_MAP_TYPE_ARRAY;
    case MapKind::kPerCpuHash: return BPF_MAP_TYPE_PERCPU_HASH;
    case MapKind::kPerCpuArray: return BPF_MAP_TYPE_PERCPU_ARRAY;
    case MapKind::kRing: return BPF_MAP_TYPE_RINGBUF;
    case MapKind::kStacks: return BPF_MAP_TYPE_STACK_TRACE;
    case MapKind::kLruHash: return BPF_MAP_TYPE_LRU_HASH;
    case MapKind::kLruPerCpuHash: return BPF_MAP_TYPE_LRU_PERCPU_HASH;
  }
  return BPF_MAP_TYPE_UNSPEC;
}

/// Its elements are made when they are needed.
bool grows(MapKind kind) {
  return kind == MapKind::kHash || kind == MapKind::kPerCpuHash || kind == MapKind::kCalls;
}

bool is_hash(MapKind kind) {
  return grows(kind) || kind == MapKind::kLruHash || kind == MapKind::kLruPerCpuHash;
}

/// Names that the kernel takes: [A-Za-z0-9_.], 15 bytes.
std::string kernel_name(const MapSpec& spec) {
  std::string name = spec.name.empty() ? "internal" : "at";
  for (char c : spec.name) {
    if (isalnum(static_cast<unsigned char>(c)) != 0 || c == '_') name += c;
  }
  return name.substr(0, 15);
}

Error create_error(int errno_value, const MapSpec& spec) {
  Error error =
      errno_error(errno_value, fmt::format("create the map {} ({} entries of {} + {} bytes)",
                                           spec.name.empty() ? "(internal)" : spec.name,
                                           spec.max_entries, spec.key_size, spec.value_size));
  if (errno_value == EINVAL && spec.kind == MapKind::kRing)
    return {ErrorCode::kUnsupported,
            "--records ring: this kernel has no BPF ring buffer, it came with Linux 5.8"};
  if (errno_value == EPERM)
    error.message += "; the kernel engine needs root, or CAP_BPF and CAP_PERFMON";
  return error;
}

/// Whether all entries may be there from the start, which makes writing one a third cheaper.
/// Otherwise memory is taken as entries come: a map of many large values would cost hundreds of MB.
/// Values of each CPU are looked up and changed, hardly ever written, and slow to make.
bool is_small(const MapSpec& spec) {
  constexpr uint64_t kOverhead = 64, kMaxBytes = 4 << 20;
  return spec.kind == MapKind::kHash &&
         spec.max_entries * (spec.key_size + spec.value_size + kOverhead) <= kMaxBytes;
}

}  // namespace

bool Maps::per_cpu(int map) const {
  MapKind kind = specs_.at(map).kind;
  return kind == MapKind::kPerCpuArray || kind == MapKind::kPerCpuHash ||
         kind == MapKind::kLruPerCpuHash;
}

/// Bytes that a lookup fills: per-CPU values are padded to 8 bytes each.
size_t Maps::buffer_size(int map) const {
  size_t value_size = specs_.at(map).value_size;
  return per_cpu(map) ? (value_size + 7) / 8 * 8 * cpus_ : value_size;
}

Result<Fd> Maps::make(const MapSpec& spec) const {
  LIBBPF_OPTS(bpf_map_create_opts, options);
  if (grows(spec.kind) && !is_small(spec)) options.map_flags = BPF_F_NO_PREALLOC;
  const bool ring = spec.kind == MapKind::kRing;
  int fd =
      bpf_map_create(kernel_type(spec.kind), kernel_name(spec).c_str(), ring ? 0 : spec.key_size,
                     ring ? 0 : spec.value_size, spec.max_entries, &options);
  if (fd < 0) return std::unexpected(create_error(-fd, spec));
  return Fd(fd);
}

/// The ring buffer, or where there is none (or it is asked for) a perf buffer a CPU.
Result<Fd> Maps::make_ring(const MapSpec& spec, RecordPath records) {
  if (records != RecordPath::kPerfBuffer) {
    auto ring = make(spec);
    const bool has_none = !ring && ring.error().code == ErrorCode::kUnsupported;
    if (!has_none || records == RecordPath::kRingBuffer) return ring;
  }
  int fd = bpf_map_create(BPF_MAP_TYPE_PERF_EVENT_ARRAY, "records", 4, 4,
                          static_cast<uint32_t>(cpus_), nullptr);
  if (fd < 0) return fail_errno(-fd, "create the map of perf buffers");
  is_perf_ = true;
  return Fd(fd);
}

Result<void> Maps::make_scratch(uint32_t record_bytes) {
  int fd = bpf_map_create(BPF_MAP_TYPE_PERCPU_ARRAY, "record", 4,
                          kScratchHeader + (record_bytes + 7) / 8 * 8, 1, nullptr);
  if (fd < 0)
    return fail_errno(-fd, "create the map in which records of up to {} bytes are made",
                      record_bytes);
  fds_.emplace_back(fd);
  if (!Features().exchange()) claim_ = Claim::kLookAndStore;
  return {};
}

Result<Maps> Maps::create(const std::vector<MapSpec>& specs,
                          RecordPath records,
                          uint32_t record_bytes) {
  Maps maps;
  maps.specs_ = specs;
  int cpus = libbpf_num_possible_cpus();
  if (cpus < 1) return fail_errno(-cpus, "count the CPUs");
  maps.cpus_ = static_cast<size_t>(cpus);
  for (const MapSpec& spec : specs) {
    SPILE_TRY(Fd map,
              spec.kind == MapKind::kRing ? maps.make_ring(spec, records) : maps.make(spec));
    maps.fds_.push_back(std::move(map));
  }
  if (maps.is_perf_) SPILE_TRY_VOID(maps.make_scratch(record_bytes));
  return maps;
}

Result<std::vector<std::vector<uint8_t>>> Maps::keys(int map) const {
  const MapSpec& spec = specs_.at(map);
  std::vector<std::vector<uint8_t>> keys;
  if (!is_hash(spec.kind)) {
    for (uint32_t i = 0; i < spec.max_entries; i++) {
      std::vector<uint8_t> key(4);
      std::memcpy(key.data(), &i, 4);
      keys.push_back(std::move(key));
    }
    return keys;
  }
  std::vector<uint8_t> key(spec.key_size);
  void* previous = nullptr;
  // A deleted previous key makes the kernel start over: the bound keeps a busy map from holding us
  // for ever.
  for (size_t i = 0; i < 2 * static_cast<size_t>(spec.max_entries) + 16; i++) {
    std::vector<uint8_t> next(spec.key_size);
    int err = bpf_map_get_next_key(fd(map), previous, next.data());
    if (err == -ENOENT) break;
    if (err < 0) return fail_errno(-err, "walk the map {}", spec.name);
    keys.push_back(next);
    key = std::move(next);
    previous = key.data();
  }
  return keys;
}

Result<std::vector<engine::MapEntry>> Maps::read(int map) const {
  const MapSpec& spec = specs_.at(map);
  SPILE_TRY(auto all_keys, keys(map));
  std::vector<engine::MapEntry> entries;
  std::vector<uint8_t> buffer(buffer_size(map));
  size_t count = per_cpu(map) ? cpus_ : 1;
  size_t stride = per_cpu(map) ? (spec.value_size + 7) / 8 * 8 : spec.value_size;
  for (auto& key : all_keys) {
    int err = bpf_map_lookup_elem(fd(map), key.data(), buffer.data());
    if (err == -ENOENT) continue;  // deleted since the walk
    if (err < 0) return fail_errno(-err, "read the map {}", spec.name);
    engine::MapEntry entry;
    entry.key = std::move(key);
    for (size_t i = 0; i < count; i++) {
      const uint8_t* from = buffer.data() + i * stride;
      entry.values.emplace_back(from, from + spec.value_size);
    }
    entries.push_back(std::move(entry));
  }
  return entries;
}

/// The kernel fills what a stack leaves free of its room with zeroes.
Result<std::vector<uint64_t>> Maps::read_stack(int map, uint64_t id) const {
  const MapSpec& spec = specs_.at(map);
  std::vector<uint64_t> frames(spec.value_size / 8);
  auto key = static_cast<uint32_t>(id);
  int err = bpf_map_lookup_elem(fd(map), &key, frames.data());
  if (err == -ENOENT) return fail(ErrorCode::kNotFound, "no stack {}", key);
  if (err < 0) return fail_errno(-err, "read the stack {}", key);
  frames.erase(std::ranges::find(frames, uint64_t{0}), frames.end());
  return frames;
}

Result<void> Maps::clear(int map) const {
  const MapSpec& spec = specs_.at(map);
  if (!is_hash(spec.kind)) return zero(map);
  SPILE_TRY(auto all_keys, keys(map));
  for (const auto& key : all_keys) {
    int err = bpf_map_delete_elem(fd(map), key.data());
    if (err < 0 && err != -ENOENT) return fail_errno(-err, "clear the map {}", spec.name);
  }
  return {};
}

Result<void> Maps::zero(int map) const {
  const MapSpec& spec = specs_.at(map);
  SPILE_TRY(auto all_keys, keys(map));
  std::vector<uint8_t> zeros(buffer_size(map));
  for (const auto& key : all_keys) {
    int err = bpf_map_update_elem(fd(map), key.data(), zeros.data(), BPF_EXIST);
    if (err < 0 && err != -ENOENT) return fail_errno(-err, "zero the map {}", spec.name);
  }
  return {};
}

Result<void> Maps::set_array(int map, uint32_t index, uint64_t value) const {
  std::vector<uint8_t> buffer(std::max<size_t>(buffer_size(map), 8));
  for (size_t at = 0; at + 8 <= buffer.size(); at += 8) std::memcpy(buffer.data() + at, &value, 8);
  int err = bpf_map_update_elem(fd(map), &index, buffer.data(), BPF_ANY);
  if (err < 0) return fail_errno(-err, "write an internal map");
  return {};
}

}  // namespace spile::kernel_engine
