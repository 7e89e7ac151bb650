// Which of the places that take no jump would take an int3 (docs/design/0012-traps.md).
#pragma once

#include <expected>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "user_engine/site_plan.h"

namespace spile::user_engine {

class TrapPlanner {
 public:
  TrapPlanner(const target::Target& target, PlanOptions options)
      : target_(&target), options_(options) {}

  bool allowed() const { return options_.allow_trap(); }
  bool only_traps() const { return options_.only_traps(); }

  /// A place that is refused, and why.
  struct Refused {
    TargetAddr address;
    patch::Refusal refusal;
  };
  /// For each place an int3 instead, where that is allowed and possible; else the refusal, which
  /// then says so. `taken`: ranges of bytes in the windows of sites that stay. Decides for all of
  /// a module at once: a pass over its text. `unwatched`: as in ProcessPlan.
  std::vector<patch::Outcome> instead(const ModuleImage& image,
                                      std::span<const Refused> places,
                                      std::span<const target::AddressRange> taken,
                                      const std::optional<std::string>& unwatched);

  struct RefusedSite {
    const PlannedSite* site;
    std::string reason;
  };
  struct Swapped {
    std::vector<PlannedSite> traps;  ///< one a head that has actions
    /// Heads that stay refused, each with the reason: sites of one probed head.
    std::vector<std::pair<PlannedSite, std::string>> refused;
  };
  /// The same for sites that turn out to have no way for their jump. `staying`: all others.
  Swapped swap(std::span<const RefusedSite> refused,
               std::span<const PlannedSite* const> staying,
               const std::optional<std::string>& unwatched);

 private:
  std::optional<std::string> why_not_in(const ModuleImage& image);
  patch::Outcome decide(const Refused& place,
                        patch::Outcome trap,
                        const std::optional<std::string>& why_not) const;

  const target::Target* target_;
  PlanOptions options_;
  bool asked_ = false;  ///< `why_not_` and `has_c_library_` are known
  std::optional<std::string> why_not_;
  bool has_c_library_ = false;
};

/// By its name: libc.so.6, ld-musl-x86_64.so.1, libpthread-2.31.so, ...
bool is_c_library(std::string_view path);

}  // namespace spile::user_engine
