// The ways by which the kernel runs a program at a probe, best first.
#pragma once

#include <array>
#include <string_view>

#include "base/error.h"

namespace spile::kernel_engine {

enum class AttachPath : uint8_t {
  kAuto,     ///< the best that this kernel has
  kSession,  ///< one program at the entry and the return of many functions
  kMulti,    ///< many functions by one link: kprobe.multi (fprobe), uprobe.multi
  kLink,     ///< perf_event_open and BPF_LINK_CREATE
  kIoctl,    ///< perf_event_open and PERF_EVENT_IOC_SET_BPF
  kTracefs,  ///< an event written to kprobe_events or uprobe_events
};

struct AttachPathName {
  AttachPath path;
  std::string_view name;
};
inline constexpr std::array kAttachPathNames = {
    AttachPathName{AttachPath::kAuto, "auto"},   AttachPathName{AttachPath::kSession, "session"},
    AttachPathName{AttachPath::kMulti, "multi"}, AttachPathName{AttachPath::kLink, "link"},
    AttachPathName{AttachPath::kIoctl, "ioctl"}, AttachPathName{AttachPath::kTracefs, "tracefs"}};

inline std::string_view name_of(AttachPath path) {
  return kAttachPathNames[static_cast<size_t>(path)].name;
}

/// "multi", also "kprobe.multi" and "uprobe.multi"; "session" likewise.
inline Result<AttachPath> attach_path_of(std::string_view name) {
  std::string_view bare = name;
  for (std::string_view prefix : {"kprobe.", "uprobe."}) {
    if (bare.starts_with(prefix)) bare.remove_prefix(prefix.size());
  }
  for (const AttachPathName& known : kAttachPathNames) {
    if (known.name == bare) return known.path;
  }
  return fail(ErrorCode::kInvalid,
              "'{}' is no way to attach: auto, session, multi, link, ioctl or tracefs", name);
}

}  // namespace spile::kernel_engine
