#include "session/world_for.h"

#include <cstdlib>

#include "user_engine/target/spawn.h"

namespace spile::session {

MachineWorld world_for(const TargetRequest& target) {
  WorldOptions options;
  options.pids = target.pids;
  if (!target.command.empty()) {
    auto words = target::split_command(target.command);
    if (words && !words->empty()) {
      auto path = target::find_program(words->front());
      options.program = path ? *path : words->front();
    }
  }
  if (const char* path = std::getenv("PATH")) options.search_path = path;
  return MachineWorld(std::move(options));
}

}  // namespace spile::session
