// Sites and refusals as people read them.
#pragma once

#include "user_engine/site_plan.h"

namespace spile::user_engine {

/// A place that a probe was refused at.
engine::SiteReport refusal_report(const ModuleImage& image,
                                  TargetAddr address,
                                  int probe,
                                  pid_t pid,
                                  const patch::Refusal& refusal);

}  // namespace spile::user_engine
