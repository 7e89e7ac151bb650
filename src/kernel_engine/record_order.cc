#include "kernel_engine/record_order.h"

#include <algorithm>

namespace spile::kernel_engine {

void RecordOrder::add(uint64_t time_ns, std::span<const uint8_t> record) {
  held_.push_back({time_ns, bytes_.size(), record.size()});
  bytes_.insert(bytes_.end(), record.begin(), record.end());
}

size_t RecordOrder::give(uint64_t until_ns, const engine::RecordSink& sink) {
  std::ranges::stable_sort(held_, {}, &Held::time_ns);
  size_t given = 0;
  for (; given < held_.size() && held_[given].time_ns <= until_ns; given++) {
    const Held& one = held_[given];
    sink(std::span(bytes_).subspan(one.begin, one.size));
  }
  if (given > 0) keep_from(given);
  return given;
}

void RecordOrder::keep_from(size_t first) {
  std::vector<uint8_t> bytes;
  for (size_t i = first; i < held_.size(); i++) {
    Held& one = held_[i];
    const auto from = bytes_.begin() + static_cast<ptrdiff_t>(one.begin);
    one.begin = bytes.size();
    bytes.insert(bytes.end(), from, from + static_cast<ptrdiff_t>(one.size));
  }
  held_.erase(held_.begin(), held_.begin() + static_cast<ptrdiff_t>(first));
  bytes_ = std::move(bytes);
}

}  // namespace spile::kernel_engine
