// Test support: maps, helpers and programs as the code generator writes them, compiled for this
// process.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <deque>
#include <vector>

#include "bpf/builder.h"
#include "bpf/checker.h"
#include "bpf/interpreter.h"
#include "user_engine/jit/jit.h"
#include "user_engine/jit/test_machine.h"

namespace spile::jit::testing {

/// What helpers of this test get as a map: an array or per-CPU array in ordinary memory.
struct TestMap {
  uint32_t value_stride = 0, cpu_stride = 0, max_entries = 0;
  std::vector<uint8_t> storage;

  uint64_t* value(uint32_t key, uint32_t cpu = 0) {
    return reinterpret_cast<uint64_t*>(storage.data() + uint64_t{key} * value_stride +
                                       uint64_t{cpu} * cpu_stride);
  }
  /// Of all CPUs.
  uint64_t sum(uint32_t key);
};

inline constexpr uint32_t kTestCpus = 64;

/// Maps, helpers and code memory of one test.
class World {
 public:
  explicit World(CodePage::Where where = CodePage::Where::kNear) : page(where) {}

  /// Returns the map's index. Values are 8 bytes.
  int add_array(uint32_t max_entries, uint32_t value_size = 8);
  int add_per_cpu_array(uint32_t max_entries, uint32_t value_size = 8);
  TestMap& map(int index) { return maps_[index]; }

  /// A JitEnv for the next free place, with every helper of this file; not inlined lookups count
  /// their calls.
  JitEnv env();
  /// Checks, compiles with `env` and puts the code where the env says.
  Body compile(const bpf::Program& program, const JitEnv& env);
  Body compile(const bpf::Program& program) { return compile(program, env()); }
  Result<bpf::Analysis> check(const bpf::Program& program) const;
  /// The same program in the interpreter.
  uint64_t interpret(const bpf::Program& program, const abi::HitFrame& frame = {});

  CodePage page;

 private:
  int add(uint32_t max_entries, uint32_t value_size, bool per_cpu);

  std::deque<TestMap> maps_;
  bpf::CheckEnv check_env_{
      .context_size = offsetof(abi::HitFrame, cookie), .maps = {}, .helpers = {}, .limits = {}};
};

/// `return r0` of a body, run with registers that hold rubbish. Fails the test if a register
/// changed that is not in Body::clobbers, or anything else that a body may not touch.
uint64_t run_body(const Body& body, const abi::HitFrame& frame = {}, uint64_t seed = 1);

/// @[key] = count(): lookup, null check, atomic add of 1.
bpf::Program count_program(int map, uint32_t key = 0);
/// The same with the key read from the context at `context_offset`.
bpf::Program indexed_count_program(int map, int16_t context_offset);
/// array[key] = *(u64*)(ctx + offset) for each offset, key counting from 0.
bpf::Program store_context_program(int map, const std::vector<int16_t>& offsets);

/// How often each helper was called.
extern uint64_t lookup_calls, time_calls;

}  // namespace spile::jit::testing
