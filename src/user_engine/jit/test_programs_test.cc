#include "user_engine/jit/test_programs.h"

#include <sched.h>

#include <algorithm>

#include "user_engine/jit/print.h"

namespace spile::jit::testing {

using bpf::Builder;
using bpf::Helper;
using bpf::Reg;

uint64_t lookup_calls = 0, time_calls = 0;

namespace {

/// Leaves rubbish in every register that a C function may destroy, as the optimiser of a real
/// helper might.
void scribble() {
  asm volatile(
      "mov $-1, %%rcx\n mov %%rcx, %%rdx\n mov %%rcx, %%rsi\n mov %%rcx, %%rdi\n mov %%rcx, %%r8\n "
      "mov %%rcx, %%r9\n"
      "mov %%rcx, %%r10\n mov %%rcx, %%r11\n" ::
          : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11");
}

// Compiled like any C function of a test: a body promises no stack alignment, so they make their
// own.
[[gnu::force_align_arg_pointer]] uint64_t lookup(TestMap* map, const uint32_t* key) {
  __atomic_add_fetch(&lookup_calls, 1, __ATOMIC_RELAXED);
  scribble();
  if (*key >= map->max_entries) return 0;
  uint32_t cpu = map->cpu_stride == 0 ? 0 : static_cast<uint32_t>(sched_getcpu()) & (kTestCpus - 1);
  return reinterpret_cast<uint64_t>(map->value(*key, cpu));
}

[[gnu::force_align_arg_pointer]] uint64_t time_ns() {
  scribble();
  return __atomic_add_fetch(&time_calls, 1, __ATOMIC_RELAXED);
}

[[gnu::force_align_arg_pointer]] uint64_t read_memory(void* to, uint64_t size, const void* from) {
  std::memcpy(to, from, size);
  return 0;
}

/// As the blob's: what follows in the detour reads it.
[[gnu::force_align_arg_pointer]] uint64_t override_return(abi::HitFrame* hit, uint64_t value) {
  scribble();
  hit->override_value = value;
  hit->overridden = 1;
  return 0;
}

template <typename F>
HelperCode helper(F* function) {
  return {TargetAddr(reinterpret_cast<uint64_t>(function)), 256};
}

}  // namespace

uint64_t TestMap::sum(uint32_t key) {
  uint64_t sum = 0;
  for (uint32_t cpu = 0; cpu < (cpu_stride == 0 ? 1 : kTestCpus); ++cpu) sum += *value(key, cpu);
  return sum;
}

int World::add(uint32_t max_entries, uint32_t value_size, bool per_cpu) {
  uint32_t stride = (value_size + 7) / 8 * 8;
  uint32_t cpu_stride = per_cpu ? (stride * max_entries + 63) / 64 * 64 : 0;
  size_t bytes = per_cpu ? size_t{cpu_stride} * kTestCpus : size_t{stride} * max_entries;
  maps_.push_back({stride, cpu_stride, max_entries, std::vector<uint8_t>(bytes)});
  check_env_.maps.push_back(
      {per_cpu ? bpf::MapKind::kPerCpuArray : bpf::MapKind::kArray, 4, value_size, max_entries});
  return static_cast<int>(maps_.size()) - 1;
}

int World::add_array(uint32_t max_entries, uint32_t value_size) {
  return add(max_entries, value_size, false);
}
int World::add_per_cpu_array(uint32_t max_entries, uint32_t value_size) {
  return add(max_entries, value_size, true);
}

JitEnv World::env() {
  JitEnv env;
  env.base = page.next();
  env.keep_result = true;
  // Far code cannot call into the test: it runs only programs without helpers.
  if (page.address() - TargetAddr(reinterpret_cast<uint64_t>(&lookup)) > -(int64_t{1} << 31)) {
    env.helpers = {{static_cast<int32_t>(Helper::kMapLookupElem), helper(&lookup)},
                   {static_cast<int32_t>(Helper::kKtimeGetNs), helper(&time_ns)},
                   {static_cast<int32_t>(Helper::kProbeReadUser), helper(&read_memory)},
                   {static_cast<int32_t>(Helper::kOverrideReturn), helper(&override_return)}};
  }
  for (TestMap& map : maps_) {
    ArrayLayout layout{TargetAddr(reinterpret_cast<uint64_t>(map.storage.data())), map.value_stride,
                       map.cpu_stride, map.cpu_stride == 0 ? 0 : kTestCpus - 1, map.max_entries};
    env.maps.push_back({TargetAddr(reinterpret_cast<uint64_t>(&map)), layout});
  }
  return env;
}

Result<bpf::Analysis> World::check(const bpf::Program& program) const {
  return bpf::check(program, check_env_);
}

Body World::compile(const bpf::Program& program, const JitEnv& jit_env) {
  auto analysis = check(program);
  if (!analysis) {
    ADD_FAILURE() << analysis.error().message;
    return {};
  }
  auto body = jit::compile(program, *analysis, jit_env);
  if (!body) {
    ADD_FAILURE() << body.error().message;
    return {};
  }
  EXPECT_EQ(page.put(body->bytes), body->base);
  return std::move(*body);
}

uint64_t World::interpret(const bpf::Program& program, const abi::HitFrame& frame) {
  bpf::HelperTable helpers;
  helpers.set(Helper::kMapLookupElem, [](uint64_t map, uint64_t key, uint64_t, uint64_t, uint64_t) {
    return lookup(reinterpret_cast<TestMap*>(map), reinterpret_cast<const uint32_t*>(key));
  });
  helpers.set(
      Helper::kProbeReadUser, [](uint64_t to, uint64_t size, uint64_t from, uint64_t, uint64_t) {
        return read_memory(reinterpret_cast<void*>(to), size, reinterpret_cast<const void*>(from));
      });
  helpers.set(Helper::kGetAttachCookie,
              [&](uint64_t, uint64_t, uint64_t, uint64_t, uint64_t) { return frame.cookie; });
  std::vector<uint64_t> maps;
  for (TestMap& map : maps_) maps.push_back(reinterpret_cast<uint64_t>(&map));
  auto result =
      bpf::run(program, reinterpret_cast<uint64_t>(&frame), {&helpers, maps, 10'000'000, nullptr});
  if (!result) ADD_FAILURE() << result.error().message;
  return result ? result->r0 : 0;
}

uint64_t run_body(const Body& body, const abi::HitFrame& frame, uint64_t seed) {
  CpuState before = distinct_state(seed, 0);
  CpuState after = run_with_state(body.base.value, before, frame, seed % 2 * 8);
  uint64_t result = after.gpr[kRax];
  constexpr std::array<unsigned, 16> kSlots = {10, 11, 12, 5, 99, 4, 13, 14,
                                               9,  8,  7,  6, 3,  2, 1,  0};
  for (size_t i = 0; i < 16; ++i) {
    if (i != kRsp && (body.clobbers >> kSlots[i] & 1) != 0) after.gpr[i] = before.gpr[i];
  }
  EXPECT_EQ(after.gpr, before.gpr) << to_text(body);
  EXPECT_EQ(after.xmm, before.xmm);
  uint64_t allowed = body.clobbers_flags ? kArithmeticFlags : 0;
  EXPECT_EQ(after.flags & ~allowed, before.flags & ~allowed) << to_text(body);
  return result;
}

bpf::Program count_program(int map, uint32_t key) {
  Builder b;
  auto out = b.new_label();
  b.store_imm(4, Reg::r10, -4, static_cast<int32_t>(key));
  b.mov(Reg::r2, Reg::r10);
  b.alu_imm(bpf::kAdd, Reg::r2, -4);
  b.load_map(Reg::r1, map);
  b.call(Helper::kMapLookupElem);
  b.jump_if_imm(bpf::kJeq, Reg::r0, 0, out);
  b.mov_imm(Reg::r1, 1);
  b.atomic(8, bpf::kAtomicAdd, Reg::r0, 0, Reg::r1);
  b.bind(out);
  b.mov_imm(Reg::r0, 0);
  b.exit();
  return *std::move(b).finish();
}

bpf::Program indexed_count_program(int map, int16_t context_offset) {
  Builder b;
  auto out = b.new_label();
  b.mov(Reg::r6, Reg::r1);
  b.load(8, Reg::r3, Reg::r6, context_offset);
  b.store(4, Reg::r10, -4, Reg::r3);
  b.mov(Reg::r2, Reg::r10);
  b.alu_imm(bpf::kAdd, Reg::r2, -4);
  b.load_map(Reg::r1, map);
  b.call(Helper::kMapLookupElem);
  b.jump_if_imm(bpf::kJeq, Reg::r0, 0, out);
  b.mov_imm(Reg::r1, 1);
  b.atomic(8, bpf::kAtomicAdd, Reg::r0, 0, Reg::r1);
  b.bind(out);
  b.mov_imm(Reg::r0, 0);
  b.exit();
  return *std::move(b).finish();
}

bpf::Program store_context_program(int map, const std::vector<int16_t>& offsets) {
  Builder b;
  auto out = b.new_label();
  b.mov(Reg::r6, Reg::r1);
  for (size_t i = 0; i < offsets.size(); ++i) {
    b.store_imm(4, Reg::r10, -4, static_cast<int32_t>(i));
    b.mov(Reg::r2, Reg::r10);
    b.alu_imm(bpf::kAdd, Reg::r2, -4);
    b.load_map(Reg::r1, map);
    b.call(Helper::kMapLookupElem);
    b.jump_if_imm(bpf::kJeq, Reg::r0, 0, out);
    b.load(8, Reg::r1, Reg::r6, offsets[i]);
    b.store(8, Reg::r0, 0, Reg::r1);
  }
  b.bind(out);
  b.mov_imm(Reg::r0, 0);
  b.exit();
  return *std::move(b).finish();
}

}  // namespace spile::jit::testing
