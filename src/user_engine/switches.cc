#include "user_engine/switches.h"

#include <cstring>
#include <utility>

namespace spile::user_engine {

void Switches::add(const CodeImage& image, Mapping view) {
  if (image.gates.empty()) return;
  SPILE_CHECK(view.size() >= image.bytes.size());
  const auto first = static_cast<uint32_t>(probes_.size());
  gates_.reserve(gates_.size() + image.gates.size());
  for (const CodeGate& gate : image.gates) {
    auto* word = reinterpret_cast<uint64_t*>(view.data() + gate.offset);
    SPILE_CHECK(reinterpret_cast<uintptr_t>(word) % sizeof *word == 0);
    gates_.push_back({word, gate.open, gate.closed, first + gate.first_probe, gate.probes});
  }
  probes_.insert(probes_.end(), image.gate_probes.begin(), image.gate_probes.end());
  close_new_gates(gates_.size() - image.gates.size());
  views_.push_back(std::move(view));
  starts_.clear();
}

/// Of code that comes later, whose probes may be off already.
void Switches::close_new_gates(size_t first) {
  for (size_t g = first; g < gates_.size(); g++) {
    Gate& gate = gates_[g];
    for (uint32_t probe : std::span(probes_).subspan(gate.first_probe, gate.probes))
      gate.off += probe < off_.size() && off_[probe] ? 1u : 0u;
    if (gate.probes > 0 && gate.off == gate.probes)
      __atomic_store_n(gate.word, gate.closed, __ATOMIC_RELEASE);
  }
}

/// Counting sort of gates by probe.
void Switches::find_gates_of_probes() {
  if (!starts_.empty()) return;
  starts_.assign(off_.size() + 3, 0);  // with the gates of what is never switched
  auto of = [&](const Gate& gate) {
    return std::span(probes_).subspan(gate.first_probe, gate.probes);
  };
  size_t total = 0;
  for (const Gate& gate : gates_) {
    for (uint32_t probe : of(gate)) starts_.at(probe + 2)++;
    total += gate.probes;
  }
  for (size_t i = 2; i < starts_.size(); i++) starts_[i] += starts_[i - 1];
  gates_of_.resize(total);
  for (size_t g = 0; g < gates_.size(); g++) {
    for (uint32_t probe : of(gates_[g])) gates_of_[starts_[probe + 1]++] = static_cast<uint32_t>(g);
  }
}

size_t Switches::set(std::span<const int> probes, bool on) {
  find_gates_of_probes();
  size_t changed = 0;
  for (int probe : probes) {
    auto i = static_cast<size_t>(probe);
    if (i >= off_.size() || off_[i] == !on || always_on_[i]) continue;
    off_[i] = !on;
    for (uint32_t g : std::span(gates_of_).subspan(starts_[i], starts_[i + 1] - starts_[i])) {
      Gate& gate = gates_[g];
      const bool was_closed = gate.off == gate.probes;
      gate.off += on ? uint32_t(-1) : 1u;
      const bool is_closed = gate.off == gate.probes;
      if (is_closed == was_closed) continue;
      // Read by the instruction fetch of other cores: one store of one aligned word.
      __atomic_store_n(gate.word, is_closed ? gate.closed : gate.open, __ATOMIC_RELEASE);
      changed++;
    }
  }
  return changed;
}

}  // namespace spile::user_engine
