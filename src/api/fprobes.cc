// Entries and returns of many functions; the list of all that is registered.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "api/hooks.h"
#include "api/readers.h"
#include "api/registration.h"
#include "api/self.h"

namespace spile::api {
namespace {

constexpr size_t kMaxEntryDataBytes = 120;

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
  const bool with_exit = fp.exit_handler != nullptr;
  std::vector<Want> wants;
  struct Part {
    TargetAddr function;
    size_t first, count;
  };
  std::vector<Part> parts;
  const auto all = wants_of(addresses, allow_trap, with_exit);
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
    f->hooks.entry = {with_exit ? run_fprobe_entry : run_fprobe_entry_only, nullptr, &fp.nmissed,
                      &f->hooks};
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
  if (fp.exit_handler != nullptr &&
      !made->head.calls.make({kBuckets, kWays, fp.entry_data_size, true}))
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
