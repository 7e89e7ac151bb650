#include "api/engine.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>

#include "api/boundary.h"
#include "api/detours.h"
#include "api/machine.h"
#include "api/self.h"
#include "x86/format.h"

extern "C" const uint8_t __start_spile_hit_text[], __stop_spile_hit_text[];

namespace spile::api {
namespace {

using patch::Refusal;
using patch::RefusalKind;

struct Engine {
  std::mutex lock;
  std::map<uint64_t, std::unique_ptr<Place>> places;  ///< by address
  unsigned long long generation = 0;                  ///< of Self, at the last prepare()
  unsigned long long batch = 0;                       ///< prepare() calls so far
  OldLists old_lists;
};

Engine& engine() {
  static auto* const kEngine = [] {
    auto* made = new Engine;
    keep_over_fork([] { engine().lock.lock(); }, [] { engine().lock.unlock(); });
    return made;
  }();
  return *kEngine;
}

// ---- planning ----

int number_of(RefusalKind kind) {
  switch (kind) {
    case RefusalKind::kNoFunction:
    case RefusalKind::kReserved:
    case RefusalKind::kKnownCode:
    case RefusalKind::kRestoreRt: return -EINVAL;
    case RefusalKind::kNotAnInstruction: return -EILSEQ;
    case RefusalKind::kBreakpoint: return -EBUSY;
    default: return -EOPNOTSUPP;
  }
}

Refused refused(const Refusal& refusal) {
  return {number_of(refusal.kind), refusal.reason};
}

template <typename... Args>
std::unexpected<Refused> refuse_place(int number,
                                      fmt::format_string<Args...> format,
                                      Args&&... args) {
  return std::unexpected(Refused{number, fmt::format(format, std::forward<Args>(args)...)});
}

bool is_own_code(TargetAddr at) {
  const auto start = TargetAddr(reinterpret_cast<uint64_t>(__start_spile_hit_text));
  const auto end = TargetAddr(reinterpret_cast<uint64_t>(__stop_spile_hit_text));
  return at >= start && at < end;
}

/// What a patch changes or covers: the window of a jump, the one byte of a breakpoint.
struct Range {
  uint64_t start, end;
  bool overlaps(const Range& other) const { return start < other.end && other.start < end; }
};
Range range_of(const patch::SitePlan& plan, Mechanism mechanism) {
  const uint64_t size = std::max<uint64_t>(plan.window.size(), plan.written);
  return {plan.site.value, plan.site.value + (mechanism == Mechanism::kTrap ? 1 : size)};
}

/// Has something registered, or will have with the others of this prepare().
bool is_there(const Place& place) {
  return !place.registered.empty() || !place.armed.empty() || place.batch == engine().batch;
}

/// Another place that is there and whose bytes this one would need.
const Place* place_in_the_way(const patch::SitePlan& plan, Mechanism mechanism, uint64_t address) {
  const Range wanted = range_of(plan, mechanism);
  constexpr uint64_t kMaxWindowBytes = 64;
  const auto& places = engine().places;
  auto it = places.lower_bound(wanted.start - kMaxWindowBytes);
  for (; it != places.end() && it->first < wanted.end + kMaxWindowBytes; ++it) {
    const Place& other = *it->second;
    if (is_there(other) && other.address != address &&
        wanted.overlaps(range_of(other.plan, other.mechanism)))
      return &other;
  }
  return nullptr;
}

/// Memory must hold what the file holds: else somebody else has patched it.
bool is_original(const patch::SitePlan& plan) {
  const auto* now = reinterpret_cast<const uint8_t*>(plan.site.value);
  return std::equal(plan.window.begin(), plan.window.end(), now) &&
         std::equal(plan.before.begin(), plan.before.begin() + plan.written, now);
}

bool can_be_followed(x86::Kind kind) {
  return kind == x86::Kind::kPlain || kind == x86::Kind::kNop || kind == x86::Kind::kEndbr;
}

class Planner {
 public:
  Planner(Self& self, std::span<const Want> wants) : self_(self), wants_(wants) {}

  std::vector<std::expected<Place*, Refused>> run() {
    outcomes_.resize(wants_.size(), std::unexpected(Refused{}));
    std::map<const user_engine::ModuleImage*, std::vector<size_t>> by_image;
    for (size_t i = 0; i < wants_.size(); ++i) {
      const auto* image = self_.image_at(wants_[i].address);
      if (image == nullptr || is_own_code(wants_[i].address)) {
        outcomes_[i] = image == nullptr
                           ? refuse_place(-EINVAL, "there is no code at {}", wants_[i].address)
                           : refuse_place(-EINVAL, "the library itself is not probed");
      } else {
        by_image[image].push_back(i);
      }
    }
    for (const auto& [image, indices] : by_image) plan_module(*image, indices);
    return std::move(outcomes_);
  }

 private:
  void plan_module(const user_engine::ModuleImage& image, const std::vector<size_t>& indices) {
    std::vector<TargetAddr> sites;
    std::vector<size_t> fresh;
    for (size_t i : indices) {
      if (Place* known = usable_place(wants_[i])) {
        outcomes_[i] = taken(check_known(*known, wants_[i]));
      } else {
        sites.push_back(wants_[i].address);
        fresh.push_back(i);
      }
    }
    if (sites.empty()) return;
    const auto plans = patch::plan_sites(image.code(), sites);
    for (size_t n = 0; n < fresh.size(); ++n)
      outcomes_[fresh[n]] = taken(make_place(image, wants_[fresh[n]], plans[n]));
  }

  /// The next ones of this request find its bytes taken.
  static std::expected<Place*, Refused> taken(std::expected<Place*, Refused> outcome) {
    if (outcome) (*outcome)->batch = engine().batch;
    return outcome;
  }

  /// One that was made before. Where another place has taken its bytes meanwhile, it is planned
  /// anew.
  static Place* usable_place(const Want& want) {
    Place* known = known_place(want);
    const bool is_idle = known != nullptr && known->registered.empty() && known->armed.empty();
    if (!is_idle || !conflict(known->plan, known->mechanism)) return known;
    const auto it = engine().places.find(known->address);
    (void)it->second.release();  // a thread may still be in its detour
    engine().places.erase(it);
    return nullptr;
  }

  /// One that was made before.
  static Place* known_place(const Want& want) {
    auto it = engine().places.find(want.address.value);
    if (it == engine().places.end()) {
      // A function's entry is probed behind its endbr64.
      it = engine().places.find(want.address.value + x86::kEndbr64.size());
      const auto* bytes = reinterpret_cast<const uint8_t*>(want.address.value);
      const bool is_endbr = std::equal(x86::kEndbr64.begin(), x86::kEndbr64.end(), bytes);
      if (it == engine().places.end() || !is_endbr) return nullptr;
    }
    return it->second.get();
  }

  static std::expected<Place*, Refused> check_known(Place& place, const Want& want) {
    if (place.registered.empty()) {
      // The library may have been replaced by another one at the same address.
      if (!is_original(place.plan) && place.armed.empty())
        return refuse_place(-EBUSY, "the code at {} has been changed by somebody else",
                            place.plan.site);
      if (const auto blocked = conflict(place.plan, place.mechanism))
        return std::unexpected(*blocked);
    }
    if (place.mechanism == Mechanism::kTrap && !want.allow_trap) return needs_trap(place.plan);
    if (want.behind) {
      if (const auto no = cannot_follow(place.plan)) return std::unexpected(*no);
    }
    return &place;
  }

  static std::unexpected<Refused> needs_trap(const patch::SitePlan& plan) {
    return refuse_place(
        -EOPNOTSUPP,
        "no jump fits at {} ({}): it would take a breakpoint, which SPILE_ALLOW_TRAP "
        "allows",
        plan.site, plan.reason);
  }

  static std::optional<Refused> cannot_follow(const patch::SitePlan& plan) {
    if (can_be_followed(instruction_of(plan).kind)) return std::nullopt;
    const auto bytes = std::span<const uint8_t>(plan.window).subspan(head_of(plan));
    return Refused{-EOPNOTSUPP, fmt::format("behind {} at {} there is no place for a post handler: "
                                            "the program goes on elsewhere",
                                            x86::format_insn(bytes, TargetAddr(address_of(plan))),
                                            TargetAddr(address_of(plan)))};
  }

  static std::optional<Refused> conflict(const patch::SitePlan& plan, Mechanism mechanism) {
    const Place* other = place_in_the_way(plan, mechanism, address_of(plan));
    if (other == nullptr) return std::nullopt;
    return Refused{-EBUSY,
                   fmt::format("the probe at {} needs the same bytes; where one of two is a "
                               "breakpoint (SPILE_ALLOW_TRAP) and registered first, there is room "
                               "for both",
                               other->name)};
  }

  /// What is taken where the better way is refused or in conflict.
  static patch::Outcome choose(const user_engine::ModuleImage& image,
                               const Want& want,
                               const patch::Outcome& planned) {
    if (!want.allow_trap || !planned || planned->mechanism == patch::Mechanism::kShort)
      return planned;
    if (!conflict(*planned, Mechanism::kJump)) return planned;
    return patch::plan_short(image.code(), want.address);
  }

  std::expected<Place*, Refused> make_place(const user_engine::ModuleImage& image,
                                            const Want& want,
                                            const patch::Outcome& planned) {
    const patch::Outcome plan = choose(image, want, planned);
    if (!plan) return std::unexpected(refused(plan.error()));
    // Two names of one function in a request.
    if (const auto it = engine().places.find(address_of(*plan)); it != engine().places.end())
      return check_known(*it->second, want);
    const Mechanism mechanism = mechanism_of(plan->mechanism);
    if (mechanism == Mechanism::kTrap && !want.allow_trap) return needs_trap(*plan);
    if (const auto blocked = conflict(*plan, mechanism)) return std::unexpected(*blocked);
    if (want.behind) {
      if (const auto no = cannot_follow(*plan)) return std::unexpected(*no);
    }
    if (!is_original(*plan))
      return refuse_place(-EBUSY,
                          "the code at {} is not that of the file: somebody else has "
                          "patched it",
                          plan->site);
    auto place = std::make_unique<Place>();
    place->address = address_of(*plan);
    place->plan = *plan;
    place->mechanism = mechanism;
    place->module_start = image.module().start;
    place->module_end = image.module().end;
    place->name = self_.describe(TargetAddr(place->address));
    place->at_entry = image.function_start(want.address) != user_engine::ModuleImage::Start::kNone;
    return (engine().places[place->address] = std::move(place)).get();
  }

  static Mechanism mechanism_of(patch::Mechanism planned) {
    switch (planned) {
      case patch::Mechanism::kEntryNops: return Mechanism::kEntryNops;
      case patch::Mechanism::kShort: return Mechanism::kTrap;
      default: return Mechanism::kJump;
    }
  }

  Self& self_;
  std::span<const Want> wants_;
  std::vector<std::expected<Place*, Refused>> outcomes_;
};

/// Another library may be where a place was. Detours and sites stay in memory, since threads and
/// late breakpoints may need them.
void forget_places(unsigned long long generation) {
  Engine& e = engine();
  if (e.generation == generation) return;
  e.generation = generation;
  for (auto it = e.places.begin(); it != e.places.end();) {
    const bool is_used = !it->second->registered.empty() || !it->second->armed.empty();
    if (!is_used) (void)it->second.release();
    it = is_used ? std::next(it) : e.places.erase(it);
  }
}

// ---- lists and bytes ----

bool is_active(const Place& place) {
  return std::ranges::any_of(place.registered, [](const auto& r) { return r.enabled; });
}
bool wants_behind(const Place& place) {
  return std::ranges::any_of(place.registered,
                             [](const auto& r) { return r.hook->behind != nullptr; });
}

/// Chooses how handlers are called: the words are read by running threads, each at once.
Result<void> prepare_detour(Place& place) {
  const bool behind = wants_behind(place);
  Detour& detour = behind ? place.with_behind : place.plain;
  if (detour.entry == 0) {
    SPILE_TRY(detour, make_detour(place, behind));
  }
  const bool general =
      std::ranges::all_of(place.registered, [](const auto& r) { return r.general; });
  const auto set = [&](CallSlot& slot, void (*full)(), void (*fast)()) {
    __atomic_store_n(&slot.argument, reinterpret_cast<uint64_t>(static_cast<Site*>(&place)),
                     __ATOMIC_RELAXED);
    __atomic_store_n(&slot.function, reinterpret_cast<uint64_t>(general ? fast : full),
                     __ATOMIC_RELEASE);
  };
  set(detour.slots[0], place.at_entry ? trampolines().entry : trampolines().inside,
      spile_hit_general);
  if (behind) set(detour.slots[1], trampolines().behind, spile_hit_behind_general);
  __atomic_store_n(&place.next, detour.next, __ATOMIC_RELAXED);
  __atomic_store_n(&place.displaced, detour.displaced, __ATOMIC_RELEASE);
  return {};
}

void publish(Place& place) {
  std::vector<Hook*> hooks;
  for (const auto& r : place.registered) {
    if (r.enabled) hooks.push_back(r.hook);
  }
  std::unique_ptr<Hook*[]> list;
  if (!hooks.empty()) {
    list = std::make_unique<Hook*[]>(hooks.size() + 1);
    std::ranges::copy(hooks, list.get());
  }
  // Pairs with the acquire in hit.cc.
  Hook* const* old = place.hooks.exchange(list.release(), std::memory_order_acq_rel);
  if (old != nullptr) engine().old_lists.emplace_back(const_cast<Hook**>(old));
}

/// What must stand at the place now; empty: the original bytes.
Result<std::vector<uint8_t>> wanted_bytes(const Place& place) {
  if (!is_active(place)) return std::vector<uint8_t>{};
  if (place.mechanism == Mechanism::kTrap) return std::vector<uint8_t>{0xcc};
  const Detour& detour = wants_behind(place) ? place.with_behind : place.plain;
  if (detour.entry == 0) return place.armed;
  SPILE_TRY(const auto jump, patch::patch_bytes(place.plan, TargetAddr(detour.entry)));
  return std::vector<uint8_t>(jump.begin(), jump.end());
}

x86::Shape first_instruction_of(const patch::SitePlan& plan) {
  return x86::decode_shape(plan.window).value_or(x86::Shape{});
}

Edit edit_of(const Place& place, const std::vector<uint8_t>& wanted) {
  Edit edit;
  edit.at = place.plan.site;
  edit.size = place.mechanism == Mechanism::kTrap ? 1 : patch::kPatchBytes;
  std::copy_n(place.plan.before.begin(), edit.size, edit.before.begin());
  edit.after = edit.before;
  edit.is_one_instruction =
      !place.armed.empty() || first_instruction_of(place.plan).length >= edit.size;
  std::ranges::copy(place.armed, edit.before.begin());
  std::ranges::copy(wanted, edit.after.begin());
  return edit;
}

/// A place and the bytes that it shall have.
using Wanted = std::pair<Place*, std::vector<uint8_t>>;

/// Whoever was to change them may have been killed in the middle.
void note_what_is_there(std::vector<Wanted>& changed) {
  for (auto& [place, wanted] : changed) {
    const Edit edit = edit_of(*place, wanted);
    const auto* now = reinterpret_cast<const uint8_t*>(edit.at.value);
    if (std::equal(now, now + edit.size, edit.after.begin())) place->armed = std::move(wanted);
  }
}

/// Makes the bytes of the places what their lists say. On failure none has changed, or, where the
/// helper was killed, each is known.
Result<void> bring_bytes_up_to_date(const std::vector<Place*>& places) {
  std::vector<Edit> jumps, traps;
  std::vector<Wanted> changed;
  for (Place* place : places) {
    SPILE_TRY(auto wanted, wanted_bytes(*place));
    if (wanted == place->armed) continue;
    (place->mechanism == Mechanism::kTrap ? traps : jumps).push_back(edit_of(*place, wanted));
    changed.emplace_back(place, std::move(wanted));
  }
  auto done = poke(jumps);
  if (done) {
    done = poke(traps);
    if (!done) {
      for (Edit& edit : jumps) {
        std::swap(edit.before, edit.after);
        // Where a jump was taken out, several instructions are back, and a thread may be among
        // them.
        edit.is_one_instruction = false;
      }
      (void)poke(jumps);
    }
  }
  if (!done) {
    note_what_is_there(changed);
    return done;
  }
  for (auto& [place, bytes] : changed) place->armed = std::move(bytes);
  return {};
}

std::vector<Place*> places_of(std::span<const Change> changes) {
  std::vector<Place*> places;
  for (const Change& c : changes) places.push_back(c.place);
  std::ranges::sort(places);
  places.erase(std::ranges::unique(places).begin(), places.end());
  return places;
}

void apply(const Change& change) {
  auto& list = change.place->registered;
  const auto mine = std::ranges::find(list, change.hook, &Place::Registered::hook);
  switch (change.what) {
    case Change::What::kAdd:
      list.insert(list.begin(), {change.hook, change.enabled, change.general, change.letter});
      return;
    case Change::What::kEnable: mine->enabled = true; return;
    case Change::What::kDisable: mine->enabled = false; return;
    case Change::What::kRemove: list.erase(mine); return;
  }
}

Result<void> arm(const std::vector<Place*>& places) {
  for (Place* place : places) {
    if (!is_active(*place)) continue;
    SPILE_TRY_VOID(prepare_detour(*place));
    if (place->mechanism == Mechanism::kTrap) SPILE_TRY_VOID(add_trap(place));
    publish(*place);
  }
  return bring_bytes_up_to_date(places);
}

}  // namespace

EngineSession::EngineSession() : lock_(engine().lock) {}

EngineSession::~EngineSession() {
  Self::let_go();
}

Result<std::vector<std::expected<Place*, Refused>>> prepare(std::span<const Want> wants) {
  SPILE_TRY_VOID(check_machine());
  SPILE_TRY(Self * self, Self::now());
  forget_places(self->generation());
  ++engine().batch;
  return Planner(*self, wants).run();
}

Result<void> change(std::span<const Change> changes) {
  const auto places = places_of(changes);
  std::vector<std::vector<Place::Registered>> before;
  for (const Place* place : places) before.push_back(place->registered);
  const bool takes_out = std::ranges::all_of(changes, [](const Change& c) {
    return c.what == Change::What::kRemove || c.what == Change::What::kDisable;
  });
  for (const Change& c : changes) apply(c);
  if (takes_out) {
    for (Place* place : places) {
      if (is_active(*place)) (void)prepare_detour(*place);
      publish(*place);
    }
    // What cannot be put back now stays armed, with an empty list.
    (void)bring_bytes_up_to_date(places);
    return {};
  }
  auto done = arm(places);
  if (done) return {};
  for (size_t i = 0; i < places.size(); ++i) {
    places[i]->registered = before[i];
    publish(*places[i]);
  }
  return done;
}

OldLists take_old_lists() {
  return std::exchange(engine().old_lists, {});
}

std::vector<const Place*> registered_places() {
  std::vector<const Place*> all;
  for (const auto& [address, place] : engine().places) {
    if (!place->registered.empty()) all.push_back(place.get());
  }
  return all;
}

}  // namespace spile::api
