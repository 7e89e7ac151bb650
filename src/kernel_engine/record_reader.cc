#include "kernel_engine/record_reader.h"

#include <bpf/libbpf.h>
#include <linux/perf_event.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

namespace spile::kernel_engine {

namespace {

constexpr size_t kFewestPages = 8;
constexpr int kSettleMs = 20;

void give(void* sink_slot, const void* data, size_t size) {
  const auto* sink = *static_cast<const engine::RecordSink**>(sink_slot);
  if (sink != nullptr) (*sink)({static_cast<const uint8_t*>(data), size});
}

int on_record(void* sink_slot, void* data, size_t size) {
  give(sink_slot, data, size);
  return 0;
}

/// As attr() asks for it: the time, then the kernel's copy of the record.
struct [[gnu::packed]] Sample {
  perf_event_header header;
  uint64_t time_ns;
  uint32_t size;
};

/// The kernel pads what it copies; the record says how long it is. What it says that it has lost
/// the programs have counted.
enum bpf_perf_event_ret on_event(void* order, int /*cpu*/, perf_event_header* event) {
  if (event->type != PERF_RECORD_SAMPLE || event->size < sizeof(Sample))
    return LIBBPF_PERF_EVENT_CONT;
  Sample sample = {};
  std::memcpy(&sample, event, sizeof sample);
  const uint8_t* data = reinterpret_cast<const uint8_t*>(event) + sizeof sample;
  auto size = std::min<uint32_t>(sample.size, event->size - sizeof sample);
  bundle::RecordHeader header = {};
  if (size >= sizeof header) std::memcpy(&header, data, sizeof header);
  if (header.size >= sizeof header) size = std::min(header.size, size);
  static_cast<RecordOrder*>(order)->add(sample.time_ns, {data, size});
  return LIBBPF_PERF_EVENT_CONT;
}

perf_event_attr attr() {
  perf_event_attr attr = {};
  attr.size = sizeof attr;
  attr.type = PERF_TYPE_SOFTWARE;
  attr.config = PERF_COUNT_SW_BPF_OUTPUT;
  attr.sample_type = PERF_SAMPLE_RAW | PERF_SAMPLE_TIME;
  attr.sample_period = 1;
  attr.wakeup_events = 1;
  attr.use_clockid = 1;
  attr.clockid = CLOCK_MONOTONIC;  // the same on every CPU
  return attr;
}

uint64_t monotonic_ns() {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

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
    perf_event_attr wanted = attr();
    reader.buffers_.reset(perf_buffer__new_raw(fd, pages_a_cpu(maps.specs().at(ring_map)), &wanted,
                                               on_event, reader.order_.get(), nullptr));
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
  return ring_ ? poll_ring(wait, sink) : poll_buffers(wait, sink);
}

Result<size_t> RecordReader::poll_ring(int timeout_ms, const engine::RecordSink& sink) {
  *sink_ = &sink;
  const int count = ring_buffer__poll(ring_.get(), timeout_ms);
  *sink_ = nullptr;
  if (count < 0 && count != -EINTR) return fail_errno(-count, "read the records");
  return static_cast<size_t>(std::max(count, 0));
}

Result<size_t> RecordReader::poll_buffers(int timeout_ms, const engine::RecordSink& sink) {
  const int wait = order_->empty() ? timeout_ms : std::min(timeout_ms, kSettleMs);
  epoll_event ready = {};
  if (epoll_wait(perf_buffer__epoll_fd(buffers_.get()), &ready, 1, wait) < 0 && errno != EINTR)
    return fail_errno(errno, "wait for records");
  const uint64_t now_ns = monotonic_ns();  // before the look: what is older then is in it
  const int err = perf_buffer__consume(buffers_.get());
  if (err < 0) return fail_errno(-err, "read the records");
  return order_->give(timeout_ms == 0 ? UINT64_MAX : now_ns - kSettleMs * 1'000'000, sink);
}

}  // namespace spile::kernel_engine
