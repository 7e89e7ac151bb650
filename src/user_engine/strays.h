// Where jumps through pointers go that were not foreseen: their returns are watched while the trace
// runs.
//
// A call of a traced function that leaves through a pointer to code that nobody watches is counted,
// and its target noted (abi/stray.h). The tracer follows the code there as it follows any function
// and patches its returns for the one that left; from then on its calls are told. So of each target
// only the first calls are missed, and these are counted.
//
// Stays counted: a target behind which a place takes no jump or is patched already (for another
// probe, for instance); functions that a jump may lead back to their entry; Go; more than 128
// targets.
#pragma once

#include <chrono>
#include <cstdint>
#include <vector>

#include "user_engine/attachment.h"

namespace spile::user_engine {

/// The strays of one traced process.
class StrayWatch {
 public:
  using Clock = std::chrono::steady_clock;

  /// True: sites have been set. Cost: nothing to speak of where no call has strayed; else planning
  /// and a stop.
  bool look(Attachment& attachment, const AttachContext& context);

 private:
  struct Watched {
    Stray stray;
    std::vector<patch::Region> code;
  };

  std::vector<Stray> find_new(const Attachment& attachment);
  static bool stays(const Attachment& attachment, TargetAddr target);
  static void settle(const Attachment& attachment, const Stray& stray, abi::StrayState state);
  void drop_forgotten(const Attachment& attachment);

  Clock::time_point next_{};
  size_t extensions_ = 0;
  std::vector<Watched> watched_;
};

}  // namespace spile::user_engine
