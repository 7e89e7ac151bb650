// Runs a Bundle's programs in the interpreter, on maps and a ring that live in this process. For
// tests.
#pragma once

#include <unistd.h>

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bpf/checker.h"
#include "bpf/interpreter.h"
#include "bundle/bundle.h"

namespace spile::lang {

class Machine {
 public:
  using Bytes = std::vector<uint8_t>;

  // What the helpers say.
  uint64_t now_ns = 5'000'000'000, boot_ns = 9'000'000'000, cpu = 3, cookie = 0;
  uint32_t pid = 1234, tid = 5678, uid = 1000, gid = 100;
  std::string comm = "tester";
  bool ring_is_full = false;
  bool pads_comm = true;  ///< get_current_comm zeroes what lies behind the name
  int64_t stack = 42;     ///< what get_stackid gives
  uint64_t overridden = 0, stack_flags = 0;
  uint64_t task = 0;  ///< what get_current_task gives
  uint64_t sent_signal = 0, random = 4;
  bool maps_are_full = false;
  std::vector<Bytes> records;
  /// Runs at the start of every update: what another CPU does at that moment.
  std::function<void(int map, const Bytes& key)> before_update;

  explicit Machine(bundle::Bundle bundle) : bundle_(std::move(bundle)) {
    for (const bundle::MapSpec& spec : bundle_.maps) {
      maps_.push_back({&spec, {}, {}});
      bool is_array =
          spec.kind == bundle::MapKind::kArray || spec.kind == bundle::MapKind::kPerCpuArray;
      for (uint32_t i = 0; is_array && i < spec.max_entries; ++i)
        add(maps_.back(), bytes_of(i), nullptr);
    }
    for (Map& map : maps_) handles_.push_back(reinterpret_cast<uint64_t>(&map));
    install();
  }
  Machine(const Machine&) = delete;

  const bundle::Bundle& bundle() const { return bundle_; }

  /// The environment that the checker knows a program by.
  bpf::CheckEnv check_env(const bundle::Program& program) const {
    bpf::CheckEnv env;
    env.context_size = program.context_size;
    env.context_first_byte = program.context == bundle::ContextKind::kTracepoint ? 8 : 0;
    for (const bundle::MapSpec& spec : bundle_.maps) {
      const bool is_hash =
          spec.kind == bundle::MapKind::kCalls || spec.kind == bundle::MapKind::kLruHash;
      auto kind = is_hash ? bpf::MapKind::kHash
                  : spec.kind == bundle::MapKind::kLruPerCpuHash
                      ? bpf::MapKind::kPerCpuHash
                      : static_cast<bpf::MapKind>(spec.kind);
      env.maps.push_back({kind, spec.key_size, spec.value_size, spec.max_entries});
    }
    return env;
  }

  /// Runs one program; `context` is its pt_regs or record.
  Result<bpf::RunResult> run(size_t program, const void* context = nullptr) {
    bpf::RunEnv env;
    env.helpers = &helpers_;
    env.maps = handles_;
    return bpf::run(bundle_.programs.at(program).code, reinterpret_cast<uint64_t>(context), env);
  }

  int map_index(const std::string& name) const {
    for (size_t i = 0; i < bundle_.maps.size(); ++i) {
      if (bundle_.maps[i].name == name) return static_cast<int>(i);
    }
    return -1;
  }
  std::map<Bytes, Bytes> contents(int map) const {
    std::map<Bytes, Bytes> all;
    const Map& m = maps_.at(static_cast<size_t>(map));
    for (const auto& [key, value] : m.entries)
      all[key] = Bytes(value.get(), value.get() + m.spec->value_size);
    return all;
  }
  std::map<Bytes, Bytes> contents(const std::string& name) const {
    return contents(map_index(name));
  }
  /// The number in a scalar map.
  uint64_t number(const std::string& name) const {
    auto all = contents(name);
    uint64_t value = 0;
    if (!all.empty()) std::memcpy(&value, all.begin()->second.data(), 8);
    return value;
  }
  uint64_t lost(bundle::Counter counter) const {
    if (bundle_.counters_map < 0) return 0;
    auto all = contents(bundle_.counters_map);
    uint64_t value = 0;
    std::memcpy(&value, all[bytes_of(static_cast<uint32_t>(counter))].data(), 8);
    return value;
  }
  void set(int map, const Bytes& key, uint64_t value) {
    std::memcpy(add(maps_.at(static_cast<size_t>(map)), key, nullptr), &value, 8);
  }
  void set_array(int map, uint32_t index, uint64_t value) {
    std::memcpy(maps_.at(static_cast<size_t>(map)).entries[bytes_of(index)].get(), &value, 8);
  }

  static Bytes bytes_of(uint32_t n) {
    return Bytes(reinterpret_cast<uint8_t*>(&n), reinterpret_cast<uint8_t*>(&n) + 4);
  }
  static Bytes key(std::initializer_list<uint64_t> words) {
    Bytes bytes;
    for (uint64_t word : words)
      bytes.insert(bytes.end(), reinterpret_cast<uint8_t*>(&word),
                   reinterpret_cast<uint8_t*>(&word) + 8);
    return bytes;
  }

 private:
  struct Map {
    const bundle::MapSpec* spec;
    std::map<Bytes, std::unique_ptr<uint8_t[]>> entries;
    std::map<Bytes, uint64_t> order;  ///< of coming in, from 1
  };
  using Function = bpf::HelperTable::Function;

  static Map& map_at(uint64_t handle) { return *reinterpret_cast<Map*>(handle); }
  static Bytes key_at(const Map& map, uint64_t address) {
    auto* bytes = reinterpret_cast<uint8_t*>(address);
    return Bytes(bytes, bytes + map.spec->key_size);
  }
  static uint8_t* add(Map& map, const Bytes& key, const void* value) {
    auto& entry = map.entries[key];
    if (!entry) map.order[key] = map.order.size() + 1;
    if (!entry) entry = std::make_unique<uint8_t[]>(std::max(8u, map.spec->value_size));
    if (value != nullptr) std::memcpy(entry.get(), value, map.spec->value_size);
    return entry.get();
  }

  void install() {
    using bpf::Helper;
    helpers_.set(Helper::kMapLookupElem, [](uint64_t map, uint64_t key, auto...) -> uint64_t {
      auto found = map_at(map).entries.find(key_at(map_at(map), key));
      return found == map_at(map).entries.end() ? 0
                                                : reinterpret_cast<uint64_t>(found->second.get());
    });
    helpers_.set(
        Helper::kMapUpdateElem,
        [this](uint64_t map, uint64_t key, uint64_t value, uint64_t flags, uint64_t) -> uint64_t {
          Map& m = map_at(map);
          Bytes k = key_at(m, key);
          if (before_update) before_update(static_cast<int>(&m - maps_.data()), k);
          bool exists = m.entries.contains(k);
          if (exists && flags == bpf::kUpdateNoExist) return static_cast<uint64_t>(-17);
          if (!exists && (maps_are_full || m.entries.size() >= m.spec->max_entries))
            return static_cast<uint64_t>(-7);
          add(m, k, reinterpret_cast<void*>(value));
          return 0;
        });
    helpers_.set(Helper::kMapDeleteElem, [](uint64_t map, uint64_t key, auto...) -> uint64_t {
      return map_at(map).entries.erase(key_at(map_at(map), key)) != 0 ? 0
                                                                      : static_cast<uint64_t>(-2);
    });
    // Elements in the order of their keys; what was deleted meanwhile is not met.
    helpers_.set(Helper::kMapNextKey,
                 [](uint64_t map, uint64_t position, uint64_t key, auto...) -> uint64_t {
                   uint64_t at = 0;
                   for (const auto& [bytes, number] : map_at(map).order) {
                     if (number <= position || !map_at(map).entries.contains(bytes)) continue;
                     if (at == 0 || number < at) {
                       at = number;
                       std::memcpy(reinterpret_cast<void*>(key), bytes.data(), bytes.size());
                     }
                   }
                   return at;
                 });
    // CPUs 0 and 1 have the same value: what is read must be added up.
    helpers_.set(Helper::kMapLookupPercpuElem,
                 [](uint64_t map, uint64_t key, uint64_t slot, auto...) -> uint64_t {
                   auto found = map_at(map).entries.find(key_at(map_at(map), key));
                   return slot > 1 || found == map_at(map).entries.end()
                              ? 0
                              : reinterpret_cast<uint64_t>(found->second.get());
                 });
    helpers_.set(Helper::kKtimeGetNs, [this](auto...) { return now_ns; });
    helpers_.set(Helper::kKtimeGetBootNs, [this](auto...) { return boot_ns; });
    helpers_.set(Helper::kGetSmpProcessorId, [this](auto...) { return cpu; });
    helpers_.set(Helper::kGetCurrentPidTgid, [this](auto...) { return uint64_t{pid} << 32 | tid; });
    helpers_.set(Helper::kGetCurrentUidGid, [this](auto...) { return uint64_t{gid} << 32 | uid; });
    helpers_.set(Helper::kGetAttachCookie, [this](auto...) { return cookie; });
    helpers_.set(Helper::kGetCurrentTask, [this](auto...) { return task; });
    helpers_.set(Helper::kGetPrandomU32, [this](auto...) { return random; });
    helpers_.set(Helper::kGetNumaNodeId, [](auto...) { return uint64_t{1}; });
    helpers_.set(Helper::kGetCurrentCgroupId, [](auto...) { return uint64_t{88}; });
    helpers_.set(Helper::kJiffies64, [](auto...) { return uint64_t{99}; });
    helpers_.set(Helper::kSendSignal, [this](uint64_t signal, auto...) -> uint64_t {
      sent_signal = signal;
      return 0;
    });
    helpers_.set(Helper::kGetStackid, [this](uint64_t, uint64_t, uint64_t flags, auto...) {
      stack_flags = flags;
      return static_cast<uint64_t>(stack);
    });
    helpers_.set(Helper::kOverrideReturn, [this](uint64_t, uint64_t value, auto...) -> uint64_t {
      overridden = value;
      return 0;
    });
    helpers_.set(Helper::kGetCurrentComm, [this](uint64_t to, uint64_t size, auto...) -> uint64_t {
      std::memset(reinterpret_cast<void*>(to), 0,
                  pads_comm ? size : std::min<size_t>(comm.size() + 1, size));
      std::memcpy(reinterpret_cast<void*>(to), comm.data(),
                  std::min<size_t>(comm.size(), size - 1));
      return 0;
    });
    for (Helper helper : {Helper::kProbeReadUser, Helper::kProbeReadKernel})
      helpers_.set(helper, read_bytes);
    for (Helper helper : {Helper::kProbeReadUserStr, Helper::kProbeReadKernelStr})
      helpers_.set(helper, read_string);
    helpers_.set(Helper::kRingbufReserve, [this](uint64_t, uint64_t size, auto...) -> uint64_t {
      if (ring_is_full) return 0;
      reserved_ = std::make_unique<Bytes>(size, 0xee);  // whatever was there before
      return reinterpret_cast<uint64_t>(reserved_->data());
    });
    helpers_.set(Helper::kRingbufSubmit, [this](auto...) -> uint64_t {
      records.push_back(std::move(*reserved_));
      return 0;
    });
  }

  /// Addresses below a page cannot be read; what was there before is garbage afterwards.
  static uint64_t read_bytes(uint64_t to, uint64_t size, uint64_t from, uint64_t, uint64_t) {
    if (from < 4096) {
      std::memset(reinterpret_cast<void*>(to), 0xdd, size);
      return static_cast<uint64_t>(-14);
    }
    std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), size);
    return 0;
  }
  static uint64_t read_string(uint64_t to, uint64_t size, uint64_t from, uint64_t, uint64_t) {
    if (from < 4096) {
      std::memset(reinterpret_cast<void*>(to), 0xdd, size);
      return static_cast<uint64_t>(-14);
    }
    size_t length = strnlen(reinterpret_cast<char*>(from), size - 1);
    std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), length);
    reinterpret_cast<char*>(to)[length] = '\0';
    return length + 1;
  }

  bundle::Bundle bundle_;
  std::vector<Map> maps_;
  std::vector<uint64_t> handles_;
  bpf::HelperTable helpers_;
  std::unique_ptr<Bytes> reserved_;
};

}  // namespace spile::lang
