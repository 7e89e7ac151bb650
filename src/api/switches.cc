#include "api/switches.h"

#include <unistd.h>

#include <array>
#include <cstring>
#include <mutex>
#include <set>
#include <vector>

#include "api/boundary.h"
#include "api/readers.h"
#include "os/memory.h"

namespace spile::api {
namespace {

constexpr uint8_t kOff = 0x84, kOn = 0x00;
constexpr size_t kSwitchBytes = 8, kByteOffset = 2;

struct Sites {
  const spile_site* begin;
  const spile_site* end;
};

/// Made at first use and never destroyed: modules come before our own constructors and go after our
/// destructors.
struct Registry {
  std::mutex mutex;
  std::vector<Sites> modules;
  std::set<std::string> on;
};

Registry& registry() {
  static auto* const kRegistry = [] {
    auto* made = new Registry;
    keep_over_fork([] { registry().mutex.lock(); }, [] { registry().mutex.unlock(); });
    return made;
  }();
  return *kRegistry;
}

TargetAddr address_from(const int32_t& field) {
  return TargetAddr(reinterpret_cast<uint64_t>(&field) +
                    static_cast<uint64_t>(static_cast<int64_t>(field)));
}

const char* name_of(const spile_site& site) {
  return reinterpret_cast<const char*>(address_from(site.name_offset).value);
}

std::vector<TargetAddr> switches_named(const Sites& module, const std::string& name) {
  std::vector<TargetAddr> found;
  for (const spile_site* s = module.begin; s != module.end; ++s) {
    if (name == name_of(*s)) found.push_back(address_from(s->switch_offset));
  }
  return found;
}

/// One byte, so that no thread ever fetches half of a change.
Result<void> throw_one(const os::ProcessMemory& memory, TargetAddr at, bool on) {
  SPILE_TRY(const auto now, (memory.read_value<std::array<uint8_t, kSwitchBytes>>(at)));
  const bool is_ours = now[0] == 0x0f && now[1] == 0x1f && now[3] == 0xe9 &&
                       (now[kByteOffset] == kOff || now[kByteOffset] == kOn);
  if (!is_ours)
    return fail(ErrorCode::kBusy,
                "the switch of a tracepoint at {} has been changed by somebody else (a debugger's "
                "breakpoint, another tracer); take that out first",
                at);
  const std::array<uint8_t, 1> byte = {on ? kOn : kOff};
  return memory.write(at + kByteOffset, byte);
}

Result<void> throw_all(const std::vector<TargetAddr>& switches, bool on) {
  if (switches.empty()) return {};
  auto memory = os::ProcessMemory::open(::getpid());
  if (!memory) return forward(memory, "change the program's own code");
  for (size_t i = 0; i < switches.size(); ++i) {
    auto done = throw_one(*memory, switches[i], on);
    if (done) continue;
    while (i-- > 0) (void)throw_one(*memory, switches[i], !on);
    return done;
  }
  synchronize_code();
  return {};
}

std::vector<TargetAddr> all_named(const Registry& r, const std::string& name) {
  std::vector<TargetAddr> all;
  for (const Sites& module : r.modules) {
    for (TargetAddr at : switches_named(module, name)) all.push_back(at);
  }
  return all;
}

}  // namespace

void add_switches(const spile_site* begin, const spile_site* end) {
  if (begin == end) return;
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  for (const Sites& known : r.modules) {
    if (known.begin == begin) return;  // each source file of a module says so
  }
  r.modules.push_back({begin, end});
  for (const std::string& name : r.on)
    (void)throw_all(switches_named(r.modules.back(), name), true);
}

void remove_switches(const spile_site* begin) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  std::erase_if(r.modules, [&](const Sites& s) { return s.begin == begin; });
}

Result<void> throw_switches(const std::string& name, bool on) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  SPILE_TRY_VOID(throw_all(all_named(r, name), on));
  if (on) {
    r.on.insert(name);
  } else {
    r.on.erase(name);
  }
  return {};
}

size_t count_switches(const std::string& name) {
  Registry& r = registry();
  const std::lock_guard lock(r.mutex);
  return all_named(r, name).size();
}

}  // namespace spile::api

extern "C" void spile_add_sites(const spile_site* begin, const spile_site* end) {
  try {
    spile::api::add_switches(begin, end);
  } catch (...) {  // out of memory: the module's tracepoints stay off
  }
}

extern "C" void spile_remove_sites(const spile_site* begin) {
  try {
    spile::api::remove_switches(begin);
  } catch (...) {
  }
}
