// Probes switched off and on while threads run through them, by stores into their detours' gates
// (jit::Gate): nothing is stopped, no byte of the program changes.
//
// The stores go through the tracer's view of the code regions, made before these were sealed: the
// target cannot write them. Forked children share the regions, so they are switched alike. A store
// is all of a switch: a tracer killed between two leaves probes on and off, all of them whole.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/fd.h"
#include "user_engine/code_image.h"

namespace spile::user_engine {

class Switches {
 public:
  /// All probes are on.
  explicit Switches(size_t probes = 0) : off_(probes), always_on_(probes) {}
  /// set() passes this probe over.
  void keep_on(size_t probe) { always_on_.at(probe) = true; }

  /// `view`: of the region that holds the image's code. The image may go.
  void add(const CodeImage& image, Mapping view);
  /// `probes`: indices into Bundle::probes. Twice the same is once. Returns how many gates changed.
  /// Cost: a store and some counting a gate; the first call looks up which gate is whose.
  size_t set(std::span<const int> probes, bool on);

 private:
  struct Gate {
    uint64_t* word = nullptr;
    uint64_t open = 0, closed = 0;
    uint32_t first_probe = 0, probes = 0;  ///< in probes_
    uint32_t off = 0;                      ///< how many of these are: closed when all
  };

  void find_gates_of_probes();

  std::vector<Mapping> views_;
  std::vector<Gate> gates_;
  std::vector<uint32_t> probes_;
  std::vector<bool> off_, always_on_;  ///< by probe
  /// The gates of probe i: gates_of_[starts_[i], starts_[i + 1]). Made when first needed.
  std::vector<uint32_t> starts_, gates_of_;
};

}  // namespace spile::user_engine
