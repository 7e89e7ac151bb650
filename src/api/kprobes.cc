// register_kprobe and its kin: one probe, several probes, a function's returns, many functions.
#include <dirent.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "api/boundary.h"
#include "api/engine.h"
#include "api/hooks.h"
#include "api/readers.h"
#include "api/self.h"

extern "C" void spile_just_return();

namespace spile::api {

bool Calls::make(size_t buckets, size_t ways, size_t data_bytes) {
  buckets_ = buckets;
  ways_ = ways;
  stride_ = (sizeof(Call) + data_bytes + 15) / 16 * 16;
  memory_ = static_cast<uint8_t*>(std::calloc(buckets * ways, stride_));
  return memory_ != nullptr;
}
Calls::~Calls() {
  std::free(memory_);
}

namespace {

constexpr size_t kMaxDataBytes = 4096, kMaxEntryDataBytes = 120;

int busy_inside() {
  return refuse(-EBUSY, "called from inside a handler, which would wait for itself");
}

/// Behind a removal: nobody runs what was taken out any more. The lock is not held: a handler that
/// is waited for may register something.
int wait_until_gone(OldLists lists) {
  const auto waited = wait_for_readers();
  if (waited) return 0;
  for (auto& list : lists) (void)list.release();
  return refuse(waited.error());
}

int refuse(const Refused& refused) {
  return api::refuse(refused.number, refused.text.c_str());
}
using api::refuse;

/// Sets `address` from a symbol or an address, exactly one of them.
int resolve(const spile_kprobe& p, TargetAddr& address) {
  if ((p.symbol_name == nullptr) == (p.addr == nullptr))
    return refuse(-EINVAL, "give either symbol_name or addr");
  if (p.addr != nullptr) {
    address = TargetAddr(reinterpret_cast<uint64_t>(p.addr) + p.offset);
    return 0;
  }
  auto self = Self::now();
  if (!self) return refuse(self.error());
  const auto found = (*self)->find(p.symbol_name);
  if (!found) return refuse(found.error());
  if (found->size() > 1)
    return refuse(-EADDRNOTAVAIL, "several functions have this name: give an address");
  address = found->front() + p.offset;
  return 0;
}

int resolve_many(const char* const* symbols, int count, std::vector<TargetAddr>& to) {
  for (int i = 0; i < count; ++i) {
    spile_kprobe named = {};
    named.symbol_name = symbols[i];
    TargetAddr address;
    if (const int error = resolve(named, address)) return error;
    to.push_back(address);
  }
  return 0;
}

unsigned state_flags(const Place& place, unsigned given) {
  unsigned flags = given & SPILE_FLAG_DISABLED;
  if (place.at_entry) flags |= SPILE_FLAG_ON_FUNC_ENTRY;
  if (flags & SPILE_FLAG_DISABLED) return flags;
  if (place.mechanism == Mechanism::kEntryNops) return flags | SPILE_FLAG_FTRACE;
  return place.mechanism == Mechanism::kJump ? flags | SPILE_FLAG_OPTIMIZED : flags;
}

// ---- kprobe ----

struct Kprobe {
  Hook hook;
  Place* place = nullptr;
};

Kprobe* internal_of(const spile_kprobe* p) {
  return p == nullptr ? nullptr : static_cast<Kprobe*>(p->internal);
}

int prepare_kprobe(spile_kprobe& p, std::unique_ptr<Kprobe>& made) {
  if (p.internal != nullptr) return refuse(-EINVAL, "this probe is registered already");
  TargetAddr address;
  if (const int error = resolve(p, address)) return error;
  const Want want{address, (p.options & SPILE_ALLOW_TRAP) != 0, p.post_handler != nullptr};
  auto prepared = prepare(std::span(&want, 1));
  if (!prepared) return refuse(prepared.error());
  if (!prepared->front()) return refuse(prepared->front().error());
  made = std::make_unique<Kprobe>();
  made->place = *prepared->front();
  made->hook = {run_kprobe, p.post_handler != nullptr ? run_kprobe_behind : nullptr, &p.nmissed,
                &p};
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

int register_one(spile_kprobe& p) {
  const EngineSession session;
  std::unique_ptr<Kprobe> k;
  if (const int error = prepare_kprobe(p, k)) return error;
  p.nmissed = 0;
  const Change add = addition(p, *k);
  const auto done = change(std::span(&add, 1));
  if (!done) return refuse(done.error());
  p.addr = reinterpret_cast<void*>(k->place->address);
  p.flags = state_flags(*k->place, p.flags);
  p.internal = k.release();
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

// ---- functions and their returns ----

/// Where the handlers of one function go: its entry, then its returns.
using FunctionWants = std::expected<std::vector<Want>, Refused>;

FunctionWants add_returns(Self& self, const patch::Returns& returns, std::vector<Want> wants) {
  if (!returns.plain)
    return std::unexpected(Refused{
        -EOPNOTSUPP,
        fmt::format("{} leaves by jumps into other functions ({}): its returns are not probed yet",
                    self.describe(returns.function), returns.describe())});
  for (const TargetAddr ret : returns.rets) wants.push_back({ret, wants.front().allow_trap, false});
  return wants;
}

/// Errors, each: -EINVAL, no function that is called begins there; -EOPNOTSUPP, how it returns is
/// not known.
Result<std::vector<FunctionWants>> wants_of(std::span<const TargetAddr> functions,
                                            bool allow_trap,
                                            bool with_returns) {
  SPILE_TRY(Self * self, Self::now());
  std::map<TargetAddr, std::expected<patch::Returns, patch::Refusal>> returns;
  if (with_returns) returns = self->returns_of(functions);
  std::vector<FunctionWants> all;
  for (const TargetAddr at : functions) {
    const auto* image = self->image_at(at);
    if (image == nullptr || image->function_start(at) == user_engine::ModuleImage::Start::kNone) {
      all.push_back(std::unexpected(
          Refused{-EINVAL, fmt::format("no function that is called begins at {}", at)}));
      continue;
    }
    std::vector<Want> entry = {{at, allow_trap, false}};
    if (!with_returns) {
      all.push_back(std::move(entry));
    } else if (const auto& found = returns.at(at)) {
      all.push_back(add_returns(*self, *found, std::move(entry)));
    } else {
      all.push_back(std::unexpected(Refused{-EOPNOTSUPP, found.error().reason}));
    }
  }
  return all;
}

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
  if (!made.probe.calls.make(1, static_cast<size_t>(rp.maxactive), rp.data_size))
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

// ---- fprobe ----

struct Fprobe {
  FprobeHead head;
  struct Function {
    FprobeFunction hooks;
    std::vector<Place*> places;  ///< entry, then returns
  };
  std::vector<std::unique_ptr<Function>> functions;

  std::vector<Change> changes(Change::What what, bool general) {
    std::vector<Change> all;
    for (const auto& f : functions) {
      for (size_t i = 0; i < f->places.size(); ++i)
        all.push_back(
            {f->places[i], i == 0 ? &f->hooks.entry : &f->hooks.exit, what, true, general, 'f'});
    }
    return all;
  }
};

/// `skip`: functions that are refused are left out and counted, else the first refusal is the
/// answer.
int prepare_functions(spile_fprobe& fp,
                      const std::vector<TargetAddr>& addresses,
                      bool skip,
                      Fprobe& made) {
  const bool allow_trap = (fp.options & SPILE_ALLOW_TRAP) != 0;
  std::vector<Want> wants;
  struct Part {
    TargetAddr function;
    size_t first, count;
  };
  std::vector<Part> parts;
  const auto all = wants_of(addresses, allow_trap, fp.exit_handler != nullptr);
  if (!all) return refuse(all.error());
  for (size_t i = 0; i < addresses.size(); ++i) {
    const FunctionWants& function = (*all)[i];
    if (!function && !skip) return refuse(function.error());
    if (!function) {
      ++fp.refused;
      continue;
    }
    parts.push_back({addresses[i], wants.size(), function->size()});
    wants.insert(wants.end(), function->begin(), function->end());
  }
  auto prepared = prepare(wants);
  if (!prepared) return refuse(prepared.error());
  for (const Part& part : parts) {
    auto f = std::make_unique<Fprobe::Function>();
    const Refused* refused = nullptr;
    for (size_t i = part.first; i < part.first + part.count; ++i) {
      auto& place = (*prepared)[i];
      if (place) {
        f->places.push_back(*place);
      } else {
        refused = &place.error();
      }
    }
    if (refused != nullptr && !skip) return refuse(*refused);
    if (refused != nullptr) {
      ++fp.refused;
      continue;
    }
    f->hooks.address = part.function.value;
    f->hooks.all = &made.head;
    f->hooks.entry = {run_fprobe_entry, nullptr, &fp.nmissed, &f->hooks};
    f->hooks.exit = {run_fprobe_exit, nullptr, &fp.nmissed, &f->hooks};
    made.functions.push_back(std::move(f));
  }
  return 0;
}

int register_functions(spile_fprobe& fp, std::vector<TargetAddr> addresses, bool skip) {
  fp.nmissed = 0;
  fp.refused = 0;
  if (fp.entry_data_size > kMaxEntryDataBytes)
    return refuse(-E2BIG, "entry_data_size is at most 120");
  auto made = std::make_unique<Fprobe>();
  if (const int error = prepare_functions(fp, addresses, skip, *made)) return error;
  if (made->functions.empty()) return refuse(-ENOENT, "none of the functions can be probed safely");
  constexpr size_t kBuckets = 1024, kWays = 8;
  if (fp.exit_handler != nullptr && !made->head.calls.make(kBuckets, kWays, fp.entry_data_size))
    return refuse(-ENOMEM, "out of memory");
  made->head.user = &fp;
  const bool general = (fp.options & SPILE_GENERAL_REGISTERS) != 0;
  const auto done = change(made->changes(Change::What::kAdd, general));
  if (!done) return refuse(done.error());
  fp.internal = made.release();
  return 0;
}

int check_fprobe(const spile_fprobe* fp) {
  if (fp == nullptr) return refuse(-EINVAL, "no fprobe");
  if (fp->internal != nullptr) return refuse(-EBUSY, "this fprobe is registered already");
  return 0;
}

int unregister_fprobe(spile_fprobe& fp) {
  if (is_inside_handler()) return busy_inside();
  std::unique_ptr<Fprobe> gone;
  OldLists lists;
  {
    const EngineSession session;
    if (fp.internal == nullptr) return refuse(-EINVAL, "this fprobe is not registered");
    gone.reset(static_cast<Fprobe*>(fp.internal));
    (void)change(gone->changes(Change::What::kRemove, false));
    fp.internal = nullptr;
    lists = take_old_lists();
  }
  const int error = wait_until_gone(std::move(lists));
  if (error != 0) (void)gone.release();
  return error;
}

std::string list_text() {
  const EngineSession session;
  std::string text;
  for (const Place* place : registered_places()) {
    for (const auto& r : place->registered) {
      const char* how = !r.enabled                                  ? "[DISABLED]"
                        : place->mechanism == Mechanism::kJump      ? "[OPTIMIZED]"
                        : place->mechanism == Mechanism::kEntryNops ? "[FTRACE]"
                                                                    : "";
      text += fmt::format("{:016x}  {}  {} {}\n", place->address, r.letter, place->name, how);
    }
  }
  return text;
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
  return guarded([&] { return p == nullptr ? refuse(-EINVAL, "no probe") : register_one(*p); });
}

int spile_unregister_kprobe(spile_kprobe* p) {
  return guarded([&] { return unregister_many(&p, 1); });
}

int spile_register_kprobes(spile_kprobe** list, int count) {
  return guarded([&] {
    if (list == nullptr || count <= 0) return refuse(-EINVAL, "no probes");
    for (int i = 0; i < count; ++i) {
      const int error = spile_register_kprobe(list[i]);
      if (error == 0) continue;
      const std::string why = spile_error_text();
      if (i > 0) unregister_many(list, i);
      return refuse(error, why.c_str());
    }
    return 0;
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

int spile_register_fprobe(spile_fprobe* fp, const char* filter, const char* notfilter) {
  return guarded([&] {
    if (filter == nullptr) return refuse(-EINVAL, "no filter");
    const EngineSession session;
    if (const int error = check_fprobe(fp)) return error;
    auto self = Self::now();
    if (!self) return refuse(self.error());
    auto found = (*self)->match(filter, notfilter == nullptr ? "" : notfilter);
    if (!found) return refuse(found.error());
    return register_functions(*fp, std::move(*found), true);
  });
}

int spile_register_fprobe_ips(spile_fprobe* fp, unsigned long* addresses, int count) {
  return guarded([&] {
    if (addresses == nullptr || count <= 0) return refuse(-EINVAL, "no addresses");
    const EngineSession session;
    if (const int error = check_fprobe(fp)) return error;
    std::vector<spile::TargetAddr> all;
    for (int i = 0; i < count; ++i) all.emplace_back(addresses[i]);
    return register_functions(*fp, std::move(all), false);
  });
}

int spile_register_fprobe_syms(spile_fprobe* fp, const char** symbols, int count) {
  return guarded([&] {
    if (symbols == nullptr || count <= 0) return refuse(-EINVAL, "no symbols");
    const EngineSession session;
    if (const int error = check_fprobe(fp)) return error;
    std::vector<spile::TargetAddr> all;
    if (const int error = resolve_many(symbols, count, all)) return error;
    return register_functions(*fp, std::move(all), false);
  });
}

int spile_unregister_fprobe(spile_fprobe* fp) {
  return guarded(
      [&] { return fp == nullptr ? refuse(-EINVAL, "no fprobe") : unregister_fprobe(*fp); });
}

size_t spile_list_probes(char* to, size_t size) {
  size_t whole = 0;
  guarded([&] {
    const std::string text = list_text();
    whole = text.size();
    if (size == 0) return 0;
    const size_t n = std::min(size - 1, whole);
    std::memcpy(to, text.data(), n);
    to[n] = 0;
    return 0;
  });
  return whole;
}

}  // extern "C"
