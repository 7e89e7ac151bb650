// One instruction's probes, and one function's returns.
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <set>
#include <vector>

#include "api/hooks.h"
#include "api/readers.h"
#include "api/registration.h"

extern "C" void spile_just_return();

namespace spile::api {
namespace {

constexpr size_t kMaxDataBytes = 4096;

// ---- kprobe ----

struct Kprobe {
  Hook hook;
  Place* place = nullptr;
};

Kprobe* internal_of(const spile_kprobe* p) {
  return p == nullptr ? nullptr : static_cast<Kprobe*>(p->internal);
}

/// Where each wants to be. None is registered, and none is there twice.
int find_places(std::span<spile_kprobe* const> list, std::vector<Want>& wants) {
  std::set<const spile_kprobe*> seen;
  for (spile_kprobe* p : list) {
    if (p == nullptr) return refuse(-EINVAL, "no probe");
    if (p->internal != nullptr || !seen.insert(p).second)
      return refuse(-EINVAL, "this probe is registered already");
    TargetAddr address;
    if (const int error = resolve(*p, address)) return error;
    wants.push_back({address, (p->options & SPILE_ALLOW_TRAP) != 0, p->post_handler != nullptr});
  }
  return 0;
}

int prepare_kprobes(std::span<spile_kprobe* const> list,
                    std::vector<std::unique_ptr<Kprobe>>& made) {
  std::vector<Want> wants;
  if (const int error = find_places(list, wants)) return error;
  auto prepared = prepare(wants);
  if (!prepared) return refuse(prepared.error());
  for (size_t i = 0; i < list.size(); ++i) {
    spile_kprobe& p = *list[i];
    if (!(*prepared)[i]) return refuse((*prepared)[i].error());
    auto k = std::make_unique<Kprobe>();
    k->place = *(*prepared)[i];
    k->hook = {run_kprobe, p.post_handler != nullptr ? run_kprobe_behind : nullptr, &p.nmissed, &p};
    made.push_back(std::move(k));
  }
  return 0;
}

Change addition(const spile_kprobe& p, Kprobe& k) {
  return {k.place,
          &k.hook,
          Change::What::kAdd,
          (p.flags & SPILE_FLAG_DISABLED) == 0,
          (p.options & SPILE_GENERAL_REGISTERS) != 0,
          'k'};
}

/// All or none: one stop, however many there are.
int register_many(std::span<spile_kprobe* const> list) {
  const EngineSession session;
  std::vector<std::unique_ptr<Kprobe>> made;
  if (const int error = prepare_kprobes(list, made)) return error;
  std::vector<Change> additions;
  for (size_t i = 0; i < list.size(); ++i) {
    list[i]->nmissed = 0;
    additions.push_back(addition(*list[i], *made[i]));
  }
  const auto done = change(additions);
  if (!done) return refuse(done.error());
  for (size_t i = 0; i < list.size(); ++i) {
    spile_kprobe& p = *list[i];
    p.addr = reinterpret_cast<void*>(made[i]->place->address);
    p.flags = state_flags(*made[i]->place, p.flags);
    p.internal = made[i].release();
  }
  return 0;
}

int unregister_many(spile_kprobe** list, int count) {
  if (is_inside_handler()) return busy_inside();
  std::vector<std::unique_ptr<Kprobe>> gone;
  OldLists lists;
  {
    const EngineSession session;
    std::vector<Change> changes;
    for (int i = 0; i < count; ++i) {
      Kprobe* k = internal_of(list[i]);
      if (k == nullptr) return refuse(-EINVAL, "this probe is not registered");
      changes.push_back({k->place, &k->hook, Change::What::kRemove, false, false, 'k'});
    }
    const auto done = change(changes);
    if (!done) return refuse(done.error());
    for (int i = 0; i < count; ++i) {
      gone.emplace_back(internal_of(list[i]));
      list[i]->internal = nullptr;
      list[i]->flags = 0;
    }
    lists = take_old_lists();
  }
  const int error = wait_until_gone(std::move(lists));
  if (error != 0) {
    for (auto& k : gone) (void)k.release();
  }
  return error;
}

int set_enabled(spile_kprobe* p, bool enabled) {
  const EngineSession session;
  Kprobe* k = internal_of(p);
  if (k == nullptr) return refuse(-EINVAL, "this probe is not registered");
  const Change c{k->place, &k->hook, enabled ? Change::What::kEnable : Change::What::kDisable,
                 false,    false,    'k'};
  const auto done = change(std::span(&c, 1));
  if (!done) return refuse(done.error());
  p->flags = state_flags(*k->place, enabled ? 0 : static_cast<unsigned>(SPILE_FLAG_DISABLED));
  return 0;
}

// ---- kretprobe ----

struct Kretprobe {
  ReturnProbe probe;
  std::vector<Place*> places;
};

std::vector<Change> additions(ReturnProbe& probe, const std::vector<Place*>& places, bool general) {
  std::vector<Change> changes;
  for (size_t i = 0; i < places.size(); ++i) {
    changes.push_back(
        {places[i], i == 0 ? &probe.entry : &probe.exit, Change::What::kAdd, true, general, 'r'});
  }
  return changes;
}

int make_kretprobe(spile_kretprobe& rp, Kretprobe& made) {
  TargetAddr function;
  if (const int error = resolve(rp.kp, function)) return error;
  const bool allow_trap = (rp.kp.options & SPILE_ALLOW_TRAP) != 0;
  const auto wants = wants_of(std::span(&function, 1), allow_trap, true);
  if (!wants) return refuse(wants.error());
  if (!wants->front()) return refuse(wants->front().error());
  auto prepared = prepare(*wants->front());
  if (!prepared) return refuse(prepared.error());
  for (const auto& place : *prepared) {
    if (!place) return refuse(place.error());
    made.places.push_back(*place);
  }
  if (rp.maxactive <= 0)
    rp.maxactive = static_cast<int>(std::max(10l, 2 * ::sysconf(_SC_NPROCESSORS_ONLN)));
  if (!made.probe.calls.make({1, static_cast<size_t>(rp.maxactive), rp.data_size}))
    return refuse(-ENOMEM, "out of memory");
  made.probe.user = &rp;
  made.probe.entry = {run_kretprobe_entry, nullptr, &rp.kp.nmissed, &made.probe};
  made.probe.exit = {run_kretprobe_exit, nullptr, &rp.kp.nmissed, &made.probe};
  return 0;
}

int register_kretprobe(spile_kretprobe& rp) {
  if (rp.data_size > kMaxDataBytes) return refuse(-E2BIG, "data_size is at most 4096");
  const EngineSession session;
  if (rp.internal != nullptr) return refuse(-EINVAL, "this probe is registered already");
  auto made = std::make_unique<Kretprobe>();
  if (const int error = make_kretprobe(rp, *made)) return error;
  rp.nmissed = 0;
  rp.kp.nmissed = 0;
  const bool general = (rp.kp.options & SPILE_GENERAL_REGISTERS) != 0;
  const auto done = change(additions(made->probe, made->places, general));
  if (!done) return refuse(done.error());
  rp.kp.addr = reinterpret_cast<void*>(made->places.front()->address);
  rp.kp.flags = state_flags(*made->places.front(), 0);
  rp.internal = made.release();
  return 0;
}

int unregister_kretprobe(spile_kretprobe& rp) {
  if (is_inside_handler()) return busy_inside();
  std::unique_ptr<Kretprobe> gone;
  OldLists lists;
  {
    const EngineSession session;
    if (rp.internal == nullptr) return refuse(-EINVAL, "this probe is not registered");
    gone.reset(static_cast<Kretprobe*>(rp.internal));
    auto changes = additions(gone->probe, gone->places, false);
    for (Change& c : changes) c.what = Change::What::kRemove;
    (void)change(changes);
    rp.internal = nullptr;
    lists = take_old_lists();
  }
  const int error = wait_until_gone(std::move(lists));
  if (error != 0) (void)gone.release();
  return error;
}

}  // namespace
}  // namespace spile::api

using namespace spile::api;

extern "C" {

void spile_return_from_function(spile_regs* regs, unsigned long value) {
  regs->ax = value;
  regs->ip = reinterpret_cast<unsigned long>(&spile_just_return);
}

int spile_register_kprobe(spile_kprobe* p) {
  return guarded([&] { return register_many(std::span(&p, 1)); });
}

int spile_unregister_kprobe(spile_kprobe* p) {
  return guarded([&] { return unregister_many(&p, 1); });
}

int spile_register_kprobes(spile_kprobe** list, int count) {
  return guarded([&] {
    if (list == nullptr || count <= 0) return refuse(-EINVAL, "no probes");
    return register_many({list, static_cast<size_t>(count)});
  });
}

int spile_unregister_kprobes(spile_kprobe** list, int count) {
  return guarded([&] {
    if (list == nullptr || count <= 0) return refuse(-EINVAL, "no probes");
    return unregister_many(list, count);
  });
}

int spile_disable_kprobe(spile_kprobe* p) {
  return guarded([&] { return set_enabled(p, false); });
}
int spile_enable_kprobe(spile_kprobe* p) {
  return guarded([&] { return set_enabled(p, true); });
}

int spile_register_kretprobe(spile_kretprobe* rp) {
  return guarded(
      [&] { return rp == nullptr ? refuse(-EINVAL, "no probe") : register_kretprobe(*rp); });
}
int spile_unregister_kretprobe(spile_kretprobe* rp) {
  return guarded(
      [&] { return rp == nullptr ? refuse(-EINVAL, "no probe") : unregister_kretprobe(*rp); });
}

}  // extern "C"
