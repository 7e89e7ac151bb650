#include "user_engine/strays.h"

#include <algorithm>
#include <atomic>
#include <set>

#include "user_engine/loader.h"

namespace spile::user_engine {

namespace {

constexpr auto kLookEvery = std::chrono::milliseconds(5);
/// Each takes a mapping until the end of the trace, and a stop.
constexpr size_t kMaxExtensions = 128;

/// The function that a number was given to. Null: nobody; the number is the target's word.
const PlannedReturns* find_returns(const Attachment& attachment, uint32_t number) {
  auto in = [&](const ProcessPlan& plan) -> const PlannedReturns* {
    auto found = std::ranges::find_if(
        plan.returns, [&](const PlannedReturns& r) { return r.number == number && !r.refused; });
    return found == plan.returns.end() ? nullptr : &*found;
  };
  if (const PlannedReturns* found = in(*attachment.plan)) return found;
  for (const Addition& addition : attachment.additions) {
    if (const PlannedReturns* found = in(*addition.plan)) return found;
  }
  return nullptr;
}

uint64_t key_of(const Stray& stray) {
  return abi::stray_key(stray.target.value, stray.number);
}

}  // namespace

bool StrayWatch::look(Attachment& attachment, const AttachContext& context) {
  if (Clock::now() < next_ || !attachment.addresses.pending_base || !attachment.target->alive())
    return false;
  next_ = Clock::now() + kLookEvery;
  drop_forgotten(attachment);
  auto strays = find_new(attachment);
  if (strays.empty()) return false;
  const auto began = Clock::now();
  auto watched = extensions_ < kMaxExtensions
                     ? watch_strays(attachment, strays, context)
                     : Result<std::vector<const PlannedReturns*>>(
                           std::vector<const PlannedReturns*>(strays.size()));
  if (!watched && watched.error().code == ErrorCode::kBusy) {
    // The stop may have held the others for as long.
    next_ = Clock::now() + 10 * std::max<Clock::duration>(kLookEvery, Clock::now() - began);
    return false;
  }
  if (!watched) watched = std::vector<const PlannedReturns*>(strays.size());
  extensions_++;
  bool any = false;
  for (size_t i = 0; i < strays.size(); i++) {
    const PlannedReturns* returns = (*watched)[i];
    settle(attachment, strays[i],
           returns != nullptr ? abi::StrayState::kWatched : abi::StrayState::kGivenUp);
    any |= returns != nullptr;
    if (returns != nullptr) watched_.push_back({strays[i], returns->known});
  }
  return any;
}

/// One of each function: two targets may lead to the same places. The cells are the target's to
/// write: a number must be one of ours, and what stands at an address is looked at like any code.
std::vector<Stray> StrayWatch::find_new(const Attachment& attachment) {
  std::vector<Stray> strays;
  std::set<uint32_t> numbers;
  for (abi::StrayCell& cell : attachment.region.strays_untrusted()) {
    const uint64_t key = __atomic_load_n(&cell.key, __ATOMIC_ACQUIRE);
    if (key == 0 ||
        std::atomic_ref(cell.state).load(std::memory_order_acquire) != abi::StrayState::kSeen)
      continue;
    Stray stray;
    stray.number = static_cast<uint32_t>(key & ((1u << abi::kStrayNumberBits) - 1));
    stray.target = TargetAddr(key >> abi::kStrayNumberBits);
    if (numbers.contains(stray.number)) continue;
    stray.of = stray.number == 0 ? nullptr : find_returns(attachment, stray.number);
    if (stray.of == nullptr || stray.of->reenters || !stays(attachment, stray.target)) {
      std::atomic_ref(cell.state).store(abi::StrayState::kGivenUp, std::memory_order_release);
      continue;
    }
    numbers.insert(stray.number);
    stray.watched = stray.of->known;
    for (const Watched& watched : watched_) {
      if (watched.stray.number == stray.number)
        stray.watched.insert(stray.watched.end(), watched.code.begin(), watched.code.end());
    }
    strays.push_back(std::move(stray));
  }
  return strays;
}

/// Code that may be unloaded is watched only where unloading is noticed.
bool StrayWatch::stays(const Attachment& attachment, TargetAddr target) {
  if (attachment.awaits) return true;
  auto modules = attachment.target->modules();
  if (!modules) return false;
  const auto staying = modules_that_stay(*modules);
  return std::ranges::any_of(*modules, [&](const target::Module& module) {
    return module.contains(target) && staying.contains(module.start);
  });
}

void StrayWatch::settle(const Attachment& attachment, const Stray& stray, abi::StrayState state) {
  for (abi::StrayCell& cell : attachment.region.strays_untrusted()) {
    if (__atomic_load_n(&cell.key, __ATOMIC_ACQUIRE) == key_of(stray))
      std::atomic_ref(cell.state).store(state, std::memory_order_release);
  }
}

/// Their libraries have been unloaded (late.cc). The cells are the target's to write: one that lies
/// only makes us plan what is patched already, which is refused.
void StrayWatch::drop_forgotten(const Attachment& attachment) {
  std::erase_if(watched_, [&](const Watched& watched) {
    return std::ranges::none_of(
        attachment.region.strays_untrusted(), [&](const abi::StrayCell& cell) {
          return __atomic_load_n(&cell.key, __ATOMIC_ACQUIRE) == key_of(watched.stray) &&
                 std::atomic_ref(cell.state).load(std::memory_order_acquire) ==
                     abi::StrayState::kWatched;
        });
  });
}

}  // namespace spile::user_engine
