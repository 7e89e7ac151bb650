#include "kernel_engine/record_reader.h"

#include <bpf/libbpf.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

namespace spile::kernel_engine {

namespace {

constexpr size_t kFewestPages = 8;

void give(void* sink_slot, const void* data, size_t size) {
  const auto* sink = *static_cast<const engine::RecordSink**>(sink_slot);
  if (sink != nullptr) (*sink)({static_cast<const uint8_t*>(data), size});
}

int on_record(void* sink_slot, void* data, size_t size) {
  give(sink_slot, data, size);
  return 0;
}

/// The kernel pads what it copies; the record says how long it is.
void on_sample(void* sink_slot, int /*cpu*/, void* data, uint32_t size) {
  bundle::RecordHeader header = {};
  if (size >= sizeof header) std::memcpy(&header, data, sizeof header);
  give(sink_slot, data, header.size >= sizeof header ? std::min(header.size, size) : size);
}

/// The programs have counted them.
void on_lost(void* /*sink_slot*/, int /*cpu*/, unsigned long long /*count*/) {}

/// As much memory as the ring would have had, in parts.
size_t pages_a_cpu(const bundle::MapSpec& ring) {
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const auto cpus = static_cast<size_t>(std::max(1, libbpf_num_possible_cpus()));
  return std::bit_floor(std::max(kFewestPages, ring.max_entries / page / cpus));
}

}  // namespace

void RecordReader::Deleter::operator()(ring_buffer* ring) const {
  ring_buffer__free(ring);
}
void RecordReader::Deleter::operator()(perf_buffer* buffers) const {
  perf_buffer__free(buffers);
}

Result<RecordReader> RecordReader::open(const Maps& maps, int ring_map) {
  RecordReader reader;
  const int fd = maps.fd(ring_map);
  if (maps.uses_perf_buffer()) {
    reader.buffers_.reset(perf_buffer__new(fd, pages_a_cpu(maps.specs().at(ring_map)), on_sample,
                                           on_lost, reader.sink_.get(), nullptr));
    if (!reader.buffers_) return fail_errno(errno, "open the perf buffers");
  } else {
    reader.ring_.reset(ring_buffer__new(fd, on_record, reader.sink_.get(), nullptr));
    if (!reader.ring_) return fail_errno(errno, "open the ring buffer");
  }
  return reader;
}

Result<size_t> RecordReader::poll(std::chrono::milliseconds timeout,
                                  const engine::RecordSink& sink) {
  const auto wait = static_cast<int>(timeout.count());
  *sink_ = &sink;
  const int count =
      ring_ ? ring_buffer__poll(ring_.get(), wait) : perf_buffer__poll(buffers_.get(), wait);
  *sink_ = nullptr;
  if (count < 0 && count != -EINTR) return fail_errno(-count, "read the records");
  return static_cast<size_t>(std::max(count, 0));
}

}  // namespace spile::kernel_engine
