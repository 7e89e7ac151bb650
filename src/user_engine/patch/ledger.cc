#include "user_engine/patch/ledger.h"

#include <algorithm>

namespace spile::patch {

Ledger::Ledger(const CodeMap& map, std::span<const SitePlan* const> sites)
    : map_(map), sites_(sites), open_(sites.size(), true), refused_(sites.size(), false) {}

std::optional<size_t> Ledger::owner(TargetAddr at) const {
  auto next = std::upper_bound(sites_.begin(), sites_.end(), at,
                               [](TargetAddr a, const SitePlan* plan) { return a < plan->site; });
  if (next == sites_.begin()) return std::nullopt;
  const SitePlan& plan = **--next;
  if (at >= std::max(plan.window_end(), plan.site + plan.written)) return std::nullopt;
  const auto index = static_cast<size_t>(next - sites_.begin());
  if (refused_[index]) return std::nullopt;
  return index;
}

std::optional<Ledger::Settled> Ledger::settled(TargetAddr at) const {
  if (const auto edit = edited_.find(at.value); edit != edited_.end())
    return Settled{edit->second.value, static_cast<uint8_t>(edit->second.level + 1)};
  if (const auto site = owner(at); site && open_[*site]) {
    const SitePlan& plan = *sites_[*site];
    if (at < plan.site + plan.written) return std::nullopt;
  }
  const auto text = map_.text_from(at);
  if (text.empty()) return std::nullopt;
  return Settled{text[0], 0};
}

std::optional<uint8_t> Ledger::original(TargetAddr at) const {
  const auto text = map_.text_from(at);
  return text.empty() ? std::nullopt : std::optional(text[0]);
}

bool Ledger::is_untouched(TargetAddr at) const {
  return !edited_.contains(at.value) && !locked_.contains(at.value) && map_.is_text(at);
}

bool Ledger::is_spare(TargetAddr at) const {
  if (!is_untouched(at)) return false;
  const auto site = owner(at);
  return !site || at >= sites_[*site]->site + sites_[*site]->written;
}

bool Ledger::is_free(TargetAddr at) const {
  return is_untouched(at) && !claimed_.contains(at.value) && !owner(at);
}

void Ledger::add_edit(const Edit& edit) {
  for (size_t i = 0; i < edit.after.size(); ++i) {
    const uint64_t at = (edit.at + i).value;
    SPILE_CHECK(!locked_.contains(at) &&
                edited_.emplace(at, Edited{edit.after[i], edit.level}).second);
    log_.push_back({What::kEdit, at});
  }
}

void Ledger::lock(TargetAddr at) {
  ++locked_[at.value];
  log_.push_back({What::kLock, at.value});
}

void Ledger::claim(TargetAddr from, TargetAddr to) {
  for (TargetAddr at = from; at < to; at += 1) {
    SPILE_CHECK(claimed_.insert(at.value).second);
    log_.push_back({What::kClaim, at.value});
  }
}

void Ledger::close(size_t site) {
  SPILE_CHECK(open_[site]);
  open_[site] = false;
  log_.push_back({What::kClose, site});
}

void Ledger::close_refused(size_t site) {
  open_[site] = false;
  refused_[site] = true;
}

void Ledger::roll_back(size_t mark) {
  while (log_.size() > mark) {
    const Change change = log_.back();
    log_.pop_back();
    switch (change.what) {
      case What::kEdit: edited_.erase(change.key); break;
      case What::kLock:
        if (--locked_[change.key] == 0) locked_.erase(change.key);
        break;
      case What::kClaim: claimed_.erase(change.key); break;
      case What::kClose: open_[change.key] = true; break;
    }
  }
}

}  // namespace spile::patch
