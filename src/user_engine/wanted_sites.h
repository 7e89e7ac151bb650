// The sites of one process: those still wanted, those given up and why.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "user_engine/attachment.h"
#include "user_engine/prepare.h"
#include "user_engine/site_plan.h"
#include "user_engine/trap_sites.h"

namespace spile::user_engine {

class WantedSites {
 public:
  WantedSites(const target::Target& target,
              const bundle::Bundle& bundle,
              ProcessPlan plan,
              PlanOptions options)
      : target_(target),
        bundle_(bundle),
        plan_(std::make_shared<ProcessPlan>(std::move(plan))),
        traps_(target, options) {}

  std::vector<const PlannedSite*> wanted() const;
  /// There is no way for these: an int3 instead where that is allowed, else they are refused.
  void give_way(const std::vector<std::pair<const PlannedSite*, std::string>>& refused);
  /// Sites that threads stand in the way of, and stay: as short sites where that fits, else left
  /// out for good.
  void give_up(const std::set<const PlannedSite*>& blocked);
  /// The libraries that these are in have been unloaded: they are awaited, like those that had not
  /// been loaded.
  void await(const std::set<const PlannedSite*>& unloaded);
  /// SIGTRAP cannot be had.
  void refuse_traps(const std::string& reason);
  Error all_refused() const;
  std::vector<engine::SiteReport> all_refusals() const;
  const ProcessPlan& plan() const { return *plan_; }
  const std::shared_ptr<ProcessPlan>& shared_plan() const { return plan_; }
  /// Nothing can be set now, and nothing will come later.
  bool is_hopeless() const { return wanted().empty() && plan_->absent.empty(); }
  PrepareOptions room_for_later() const;
  /// `may_wait`: a thread that loads a library can wait for its probes (Patcher::may_wait).
  void hand_over(Attachment& attachment, bool may_wait) const;
  /// Of a library that was loaded later.
  void hand_over_more(Attachment& attachment) const;

 private:
  std::vector<std::string> awaited(bool may_wait) const;
  void refuse(const PlannedSite& site, const std::string& reason);
  void leave_unwatched(const PlannedSite& site, const std::string& reason);
  void refuse_returns(int returns, const patch::Refusal& refusal);
  void await_probe(int probe);
  void await_returns(int returns, const std::set<ModuleIdentity>& gone, const PlannedSite& place);
  void give_up_head(const PlannedSite& site, size_t head);

  const target::Target& target_;
  const bundle::Bundle& bundle_;
  std::shared_ptr<ProcessPlan> plan_;
  TrapPlanner traps_;
  std::set<const PlannedSite*> dropped_;
  std::vector<engine::SiteReport> refused_;
};

}  // namespace spile::user_engine
