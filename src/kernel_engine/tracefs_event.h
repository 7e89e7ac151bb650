// Events defined by text in kprobe_events and uprobe_events: the oldest way to a probe, and the
// only one that outlives its maker.
//
// A definition stays until it is deleted, so its group says whose it is: spile_PID_STARTTIME. While
// an event is open nobody can delete it; when its spile has been killed it is closed, does nothing
// any more, and the next spile deletes it.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <string_view>

#include "base/address.h"
#include "base/error.h"
#include "kernel_engine/perf_event.h"

namespace spile::kernel_engine {

/// One definition of ours, deleted when it goes away. What has the event open must go before it.
class TracefsEvent {
 public:
  /// `MOD:SYMBOL+OFFSET` or an address.
  static Result<TracefsEvent> define_kprobe(const std::string& place, Moment moment);
  static Result<TracefsEvent> define_uprobe(const std::string& path,
                                            FileOffset offset,
                                            FileOffset semaphore,
                                            Moment moment);

  TracefsEvent(TracefsEvent&& other) noexcept
      : file_(std::exchange(other.file_, {})),
        group_(std::move(other.group_)),
        name_(std::move(other.name_)) {}
  TracefsEvent& operator=(TracefsEvent&&) = delete;
  ~TracefsEvent();

  const std::string& group() const { return group_; }
  const std::string& name() const { return name_; }

 private:
  TracefsEvent(std::string file, std::string group, std::string name)
      : file_(std::move(file)), group_(std::move(group)), name_(std::move(name)) {}
  static Result<TracefsEvent> define(std::string_view file,
                                     const std::string& place,
                                     Moment moment);

  std::string file_, group_, name_;
};

/// The owner that a group's name tells.
struct EventOwner {
  pid_t pid = 0;
  uint64_t start_time = 0;  ///< clock ticks since boot, of /proc/PID/stat
  bool operator==(const EventOwner&) const = default;
};
std::optional<EventOwner> owner_of(std::string_view group);

struct EventDefinition {
  std::string group, name;
};
/// A line of kprobe_events: "p:spile_12_345/k0 do_sys_open+0". Empty: of another form.
std::optional<EventDefinition> parse_definition(std::string_view line);

/// Deletes what spiles left that are no more. Returns how many. Never fails: where there is no
/// tracefs there is nothing.
size_t delete_stale_events();

}  // namespace spile::kernel_engine
