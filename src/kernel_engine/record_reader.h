// The tracer's end of the ring buffer, or of the perf buffers.
#pragma once

#include <chrono>
#include <memory>

#include "engine/engine.h"
#include "kernel_engine/maps.h"

struct ring_buffer;
struct perf_buffer;

namespace spile::kernel_engine {

class RecordReader {
 public:
  /// Of Bundle::ring_map.
  static Result<RecordReader> open(const Maps& maps, int ring_map);
  /// Waits for the first record, hands out all there are.
  Result<size_t> poll(std::chrono::milliseconds timeout, const engine::RecordSink& sink);

 private:
  struct Deleter {
    void operator()(ring_buffer* ring) const;
    void operator()(perf_buffer* buffers) const;
  };
  /// Where the callbacks find the sink of the poll under way.
  std::unique_ptr<const engine::RecordSink*> sink_ =
      std::make_unique<const engine::RecordSink*>(nullptr);
  std::unique_ptr<ring_buffer, Deleter> ring_;
  std::unique_ptr<perf_buffer, Deleter> buffers_;
};

}  // namespace spile::kernel_engine
