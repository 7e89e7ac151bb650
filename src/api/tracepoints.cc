// Callbacks of tracepoints: a list that readers walk without a lock, replaced as a whole.
//
//   attach   new list published, then the switches thrown (a pass before that finds the list, too)
//   detach   switches thrown back with the last one, new list published, readers waited for, old
//   list freed
#include <spile/detail/tracepoint_core.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "api/boundary.h"
#include "api/readers.h"
#include "api/switches.h"

namespace spile::api {
namespace {

using Function = void (*)();
using List = std::vector<spile_callback>;  ///< without the end mark

/// Lists that were replaced by an attach, which does not wait: freed by the next one that does.
struct Replaced {
  std::mutex mutex;
  std::vector<std::unique_ptr<const spile_callback[]>> lists;
};
Replaced& replaced() {
  static auto* const kReplaced = [] {
    auto* made = new Replaced;
    keep_over_fork([] { replaced().mutex.lock(); }, [] { replaced().mutex.unlock(); });
    return made;
  }();
  return *kReplaced;
}

List list_of(const spile_tracepoint& tracepoint) {
  List list;
  for (const spile_callback* c = tracepoint.callbacks; c != nullptr && c->function != nullptr; ++c)
    list.push_back(*c);
  return list;
}

List::const_iterator find(const List& list, Function function, const void* data) {
  return std::ranges::find_if(
      list, [&](const spile_callback& c) { return c.function == function && c.data == data; });
}

/// The highest first; one that comes behind those of its own priority.
void insert_by_priority(List& list, const spile_callback& callback) {
  const auto behind = std::ranges::find_if(
      list, [&](const spile_callback& c) { return c.priority < callback.priority; });
  list.insert(behind, callback);
}

/// Readers see the old list or the new one. Gives the old one.
std::unique_ptr<const spile_callback[]> publish(spile_tracepoint& tracepoint, const List& list) {
  std::unique_ptr<spile_callback[]> next;
  if (!list.empty()) {
    next = std::make_unique<spile_callback[]>(list.size() + 1);
    std::ranges::copy(list, next.get());
  }
  std::unique_ptr<const spile_callback[]> old(tracepoint.callbacks);
  // Pairs with the acquire in Tracepoint::run_callbacks.
  __atomic_store_n(&tracepoint.callbacks, next.release(), __ATOMIC_RELEASE);
  return old;
}

std::string name_of(const spile_tracepoint& tracepoint) {
  return std::string(tracepoint.group) + ":" + tracepoint.name;
}

int attach(spile_tracepoint& tracepoint, const spile_callback& callback) {
  Replaced& r = replaced();
  const std::lock_guard lock(r.mutex);
  List list = list_of(tracepoint);
  if (find(list, callback.function, callback.data) != list.end())
    return refuse(-EEXIST, "this function is attached with this data already");
  const bool is_first = list.empty();
  insert_by_priority(list, callback);
  r.lists.reserve(r.lists.size() + 1);
  if (auto old = publish(tracepoint, list)) r.lists.push_back(std::move(old));
  if (!is_first) return 0;
  const auto thrown = throw_switches(name_of(tracepoint), true);
  if (thrown) return 0;
  // Nobody runs through a switch that is off, but one may have been on for a moment.
  r.lists.push_back(publish(tracepoint, {}));
  return refuse(thrown.error());
}

/// Waits without the lock: a handler that is waited for may attach something.
int free_behind_readers(std::vector<std::unique_ptr<const spile_callback[]>> lists) {
  const auto waited = wait_for_readers();
  if (waited) return 0;
  for (auto& list : lists) (void)list.release();  // somebody may still read them
  return refuse(waited.error());
}

int detach(spile_tracepoint& tracepoint, Function function, const void* data) {
  if (is_inside_handler())
    return refuse(-EBUSY, "called from inside a handler, which would wait for itself");
  Replaced& r = replaced();
  std::unique_lock lock(r.mutex);
  List list = list_of(tracepoint);
  const auto found = find(list, function, data);
  if (found == list.end()) return refuse(-ENOENT, "this function is not attached with this data");
  list.erase(found);
  if (list.empty()) {
    const auto thrown = throw_switches(name_of(tracepoint), false);
    if (!thrown) return refuse(thrown.error());
  }
  r.lists.reserve(r.lists.size() + 1);
  r.lists.push_back(publish(tracepoint, list));
  auto lists = std::move(r.lists);
  r.lists.clear();
  lock.unlock();
  return free_behind_readers(std::move(lists));
}

}  // namespace
}  // namespace spile::api

using namespace spile::api;

extern "C" int spile_tracepoint_attach(spile_tracepoint* tracepoint,
                                       void (*function)(),
                                       void* data,
                                       int priority) {
  return guarded([&] {
    if (tracepoint == nullptr || function == nullptr)
      return refuse(-EINVAL, "no tracepoint, or no function to call");
    return attach(*tracepoint, {function, data, priority});
  });
}

extern "C" int spile_tracepoint_detach(spile_tracepoint* tracepoint,
                                       void (*function)(),
                                       void* data) {
  return guarded([&] {
    if (tracepoint == nullptr) return refuse(-EINVAL, "no tracepoint");
    return detach(*tracepoint, function, data);
  });
}

extern "C" size_t spile_tracepoint_sites(const spile_tracepoint* tracepoint) {
  try {
    return tracepoint == nullptr ? 0 : count_switches(name_of(*tracepoint));
  } catch (...) {
    return 0;
  }
}
