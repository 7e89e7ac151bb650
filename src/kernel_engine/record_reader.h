// The tracer's end of the ring buffer, or of the perf buffers.
//
// The ring has one order. Of the perf buffers each CPU's has its own; the kernel stamps each record
// with the time. What one CPU wrote may be seen only after what another wrote later. So records are
// held until none older can be on its way: for kSettle, which is far longer than the kernel takes
// from stamp to commit. Only a CPU that stands still for longer between the two (a virtual one may)
// gets its record out of order.
#pragma once

#include <chrono>
#include <memory>

#include "engine/engine.h"
#include "kernel_engine/maps.h"
#include "kernel_engine/record_order.h"

struct ring_buffer;
struct perf_buffer;

namespace spile::kernel_engine {

class RecordReader {
 public:
  /// Of Bundle::ring_map.
  static Result<RecordReader> open(const Maps& maps, int ring_map);
  /// Waits for the first record, hands out what is due: all that the ring has; of perf buffers
  /// what has settled, and with no timeout all.
  Result<size_t> poll(std::chrono::milliseconds timeout, const engine::RecordSink& sink);

 private:
  struct Deleter {
    void operator()(ring_buffer* ring) const;
    void operator()(perf_buffer* buffers) const;
  };
  Result<size_t> poll_ring(int timeout_ms, const engine::RecordSink& sink);
  Result<size_t> poll_buffers(int timeout_ms, const engine::RecordSink& sink);

  /// Where the callbacks find the sink of the poll under way, and put what must be ordered.
  std::unique_ptr<const engine::RecordSink*> sink_ =
      std::make_unique<const engine::RecordSink*>(nullptr);
  std::unique_ptr<RecordOrder> order_ = std::make_unique<RecordOrder>();
  std::unique_ptr<ring_buffer, Deleter> ring_;
  std::unique_ptr<perf_buffer, Deleter> buffers_;
};

}  // namespace spile::kernel_engine
