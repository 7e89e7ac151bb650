// Test support: children that call a function and check its results, bundles made by hand, pictures
// of a process.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <deque>
#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>

#include "bpf/builder.h"
#include "user_engine/target/process.h"
#include "user_engine/user_engine.h"

extern "C" long spile_engine_test_hot(long a, long b);

namespace spile::user_engine::testing {

using bpf::Builder;
using bpf::Helper;
using bpf::Reg;
using bundle::Bundle;

inline bpf::Program count_program(int map, uint32_t key = 0) {
  Builder b;
  b.store_imm(4, Reg::r10, -4, static_cast<int32_t>(key));
  b.mov(Reg::r2, Reg::r10);
  b.alu_imm(bpf::kAdd, Reg::r2, -4);
  b.load_map(Reg::r1, map);
  b.call(Helper::kMapLookupElem);
  auto out = b.new_label();
  b.jump_if_imm(bpf::kJeq, Reg::r0, 0, out);
  b.mov_imm(Reg::r1, 1);
  b.atomic(8, bpf::kAtomicAdd, Reg::r0, 0, Reg::r1);
  b.bind(out);
  b.mov_imm(Reg::r0, 0);
  b.exit();
  return *std::move(b).finish();
}

/// A record with the first argument and the thread id.
inline bpf::Program record_program(int ring) {
  Builder b;
  b.mov(Reg::r6, Reg::r1);
  b.call(Helper::kGetCurrentPidTgid);
  b.mov(Reg::r7, Reg::r0);
  b.load_map(Reg::r1, ring);
  b.mov_imm(Reg::r2, 24);
  b.mov_imm(Reg::r3, 0);
  b.call(Helper::kRingbufReserve);
  auto out = b.new_label();
  b.jump_if_imm(bpf::kJeq, Reg::r0, 0, out);
  b.store_imm(4, Reg::r0, 0, 1);
  b.store_imm(4, Reg::r0, 4, 24);
  b.load(8, Reg::r1, Reg::r6, bpf::x86_64_regs::kDi);
  b.store(8, Reg::r0, 8, Reg::r1);
  b.store(8, Reg::r0, 16, Reg::r7);
  b.mov(Reg::r1, Reg::r0);
  b.mov_imm(Reg::r2, 0);
  b.call(Helper::kRingbufSubmit);
  b.bind(out);
  b.mov_imm(Reg::r0, 0);
  b.exit();
  return *std::move(b).finish();
}

inline std::string self_path() {
  char path[4096] = {};
  if (readlink("/proc/self/exe", path, sizeof path - 1) < 0) return {};
  return path;
}

inline Bundle counting_bundle() {
  Bundle bundle;
  bundle.maps = {{.name = "@",
                  .kind = bundle::MapKind::kPerCpuArray,
                  .role = bundle::MapRole::kCount,
                  .key_size = 4,
                  .value_size = 8,
                  .max_entries = 1}};
  bundle.programs = {{.name = "count",
                      .code = count_program(0),
                      .context = bundle::ContextKind::kRegs,
                      .context_size = 168}};
  bundle.probes = {{.kind = bundle::ProbeKind::kUprobe,
                    .name = "u",
                    .path = self_path(),
                    .symbol = "spile_engine_test_hot",
                    .program = 0}};
  return bundle;
}

/// Of the bundle's first map: of one key, or of all.
inline uint64_t total(engine::Trace& trace, std::optional<size_t> key = std::nullopt) {
  uint64_t sum = 0;
  auto entries = trace.read_map(0);
  EXPECT_TRUE(entries);
  for (size_t i = 0; i < entries->size(); i++) {
    if (key && i != *key) continue;
    for (const auto& value : (*entries)[i].values) {
      uint64_t one = 0;
      std::memcpy(&one, value.data(), 8);
      sum += one;
    }
  }
  return sum;
}

/// A child that calls the hot function as often as it is told, on several threads, and checks every
/// result.
class Worker {
 public:
  explicit Worker(int threads = 1) {
    int in[2], out[2];
    EXPECT_EQ(pipe2(in, O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(out, O_CLOEXEC), 0);
    pid_ = fork();
    if (pid_ == 0) {
      close(in[1]);
      close(out[0]);
      serve(in[0], out[1], threads);
      _exit(0);
    }
    close(in[0]);
    close(out[1]);
    in_ = in[1];
    out_ = out[0];
  }
  ~Worker() {
    close(in_);
    int status = 0;
    waitpid(pid_, &status, 0);
    EXPECT_EQ(status, 0) << "the target did not end well";
    close(out_);
  }

  pid_t pid() const { return pid_; }
  void start(uint64_t calls) {
    EXPECT_EQ(write(in_, &calls, sizeof calls), static_cast<ssize_t>(sizeof calls));
  }
  void join() {
    char ok = 0;
    EXPECT_EQ(read(out_, &ok, 1), 1);
    EXPECT_EQ(ok, 'y') << "the target computed something else";
  }
  void run(uint64_t calls) {
    start(calls);
    join();
  }

 private:
  static void serve(int in, int out, int threads) {
    uint64_t calls = 0;
    while (read(in, &calls, sizeof calls) == sizeof calls) {
      std::atomic<bool> good = true;
      auto work = [&] {
        for (uint64_t i = 0; i < calls; i++) {
          if (spile_engine_test_hot(static_cast<long>(i), 7) != static_cast<long>(i * 3 + 7))
            good = false;
        }
      };
      std::vector<std::thread> others;
      for (int i = 1; i < threads; i++) others.emplace_back(work);
      work();
      for (auto& t : others) t.join();
      char ok = good ? 'y' : 'n';
      if (write(out, &ok, 1) != 1) return;
    }
  }

  pid_t pid_ = 0;
  int in_ = -1, out_ = -1;
};

/// What must be the same before and after: mappings and code bytes.
struct Snapshot {
  std::vector<std::string> maps;
  std::vector<uint8_t> code;
  size_t descriptors = 0;

  static Snapshot of(pid_t pid) {
    Snapshot s;
    std::ifstream maps(fmt::format("/proc/{}/maps", pid));
    // Only the addresses and names: reading a private page of code does not change them.
    for (std::string line; std::getline(maps, line);) {
      if (line.find("[heap]") == std::string::npos && line.find("[stack]") == std::string::npos)
        s.maps.push_back(line);
    }
    auto target = target::Target::open(pid);
    EXPECT_TRUE(target) << target.error().message;
    auto modules = target->modules();
    EXPECT_TRUE(modules);
    for (const auto& m : *modules) {
      for (const auto& segment : m.segments) {
        if (!segment.exec) continue;
        std::vector<uint8_t> bytes(static_cast<size_t>(segment.end - segment.start));
        bytes.resize(target->memory().read_some(segment.start, bytes));
        s.code.insert(s.code.end(), bytes.begin(), bytes.end());
      }
    }
    std::error_code error;
    for (const auto& entry :
         std::filesystem::directory_iterator(fmt::format("/proc/{}/fd", pid), error)) {
      (void)entry;
      s.descriptors++;
    }
    return s;
  }
};

inline void expect_same(const Snapshot& before, const Snapshot& after) {
  EXPECT_EQ(before.maps, after.maps);
  EXPECT_TRUE(before.code == after.code) << "code bytes changed";
  EXPECT_EQ(before.descriptors, after.descriptors);
}

/// A bundle must outlive its trace: here until the program ends.
inline const Bundle& kept(Bundle bundle) {
  static std::deque<Bundle> all;
  return all.emplace_back(std::move(bundle));
}

inline std::unique_ptr<engine::Trace> attach_or_fail(const Bundle& bundle,
                                                     const engine::Scope& scope,
                                                     bool measure = false) {
  auto attached = make_engine({.measure = measure})->attach(kept(bundle), scope);
  EXPECT_TRUE(attached) << attached.error().message;
  return attached ? std::move(*attached) : nullptr;
}

/// A process that runs `body` when it is told to, and ends with its result.
class Told {
 public:
  template <typename Body>
  explicit Told(Body body) {
    int go[2];
    EXPECT_EQ(pipe2(go, O_CLOEXEC), 0);
    pid_ = fork();
    if (pid_ == 0) {
      close(go[1]);
      char c = 0;
      _exit(body([&] { return read(go[0], &c, 1) == 1; }));
    }
    close(go[0]);
    go_ = go[1];
  }
  ~Told() { close(go_); }
  pid_t pid() const { return pid_; }
  void go() { EXPECT_EQ(write(go_, "g", 1), 1); }
  int wait() {
    int status = -1;
    waitpid(pid_, &status, 0);
    return status;
  }

 private:
  pid_t pid_ = 0;
  int go_ = -1;
};

}  // namespace spile::user_engine::testing
