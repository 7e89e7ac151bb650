// The entries of the blob: one function for each eBPF helper, under the C ABI, with the constants
// bound.
//
// `flatten` makes every entry one function without calls, so that its stack use is one number that
// the compiler states; the build checks that number and that there is no call instruction.
#include <stdint.h>

#include "abi/code_region.h"
#include "abi/hit_frame.h"
#include "user_engine/rt/cpu.h"
#include "user_engine/rt/identity.h"
#include "user_engine/rt/loader_gate.h"
#include "user_engine/rt/map_ops.h"
#include "user_engine/rt/pending.h"
#include "user_engine/rt/ring_ops.h"
#include "user_engine/rt/safe_read.h"
#include "user_engine/rt/stack_ops.h"
#include "user_engine/rt/time_ops.h"

namespace rt = spile::rt;
namespace abi = spile::abi;

/// At abi::kConstsOffset behind the blob: the linker script says so.
extern "C" const abi::RtConsts rt_consts;

namespace {

const abi::RtMap& map_at(uint64_t address) {
  return *reinterpret_cast<const abi::RtMap*>(address);
}
uint8_t* bytes_at(uint64_t address) {
  return reinterpret_cast<uint8_t*>(address);
}
uint64_t address_of(const void* pointer) {
  return reinterpret_cast<uint64_t>(pointer);
}

}  // namespace

// The number is the helper's in bpf(2); blob/embed.cmake finds the entries by these names.
#define RT_HELPER(number) extern "C" __attribute__((flatten, used)) uint64_t rt_helper_##number

RT_HELPER(1)(uint64_t map, uint64_t key) {
  return address_of(
      rt::map_lookup(rt_consts, map_at(map), bytes_at(key), rt::current_cpu(rt_consts)));
}
RT_HELPER(2)(uint64_t map, uint64_t key, uint64_t value, uint64_t flags) {
  return static_cast<uint64_t>(rt::map_update(rt_consts, map_at(map), bytes_at(key),
                                              bytes_at(value), flags, rt::current_cpu(rt_consts)));
}
RT_HELPER(3)(uint64_t map, uint64_t key) {
  return static_cast<uint64_t>(rt::map_delete(rt_consts, map_at(map), bytes_at(key)));
}
RT_HELPER(5)() {
  return rt::clock_ns(rt_consts, rt::Clock::kMonotonic);
}
RT_HELPER(8)() {
  return rt::current_cpu(rt_consts);
}
RT_HELPER(14)() {
  return rt::pid_tgid(rt_consts);
}
RT_HELPER(15)() {
  return rt::uid_gid(rt_consts);
}
RT_HELPER(16)(uint64_t to, uint64_t bytes) {
  return static_cast<uint64_t>(
      rt::current_comm(rt_consts, bytes_at(to), static_cast<uint32_t>(bytes)));
}
RT_HELPER(27)(uint64_t context, uint64_t map, uint64_t flags) {
  return static_cast<uint64_t>(rt::stack_id(
      rt_consts, map_at(map), *reinterpret_cast<const abi::HitFrame*>(context), flags));
}
RT_HELPER(58)(uint64_t context, uint64_t value) {
  auto* hit = reinterpret_cast<abi::HitFrame*>(context);
  hit->override_value = value;
  hit->overridden = 1;
  return 0;
}
RT_HELPER(112)(uint64_t to, uint64_t bytes, uint64_t from) {
  return static_cast<uint64_t>(
      rt::probe_read(rt_consts, bytes_at(to), static_cast<uint32_t>(bytes), from));
}
RT_HELPER(113)(uint64_t to, uint64_t bytes, uint64_t from) {
  return static_cast<uint64_t>(
      rt::probe_read(rt_consts, bytes_at(to), static_cast<uint32_t>(bytes), from));
}
RT_HELPER(114)(uint64_t to, uint64_t bytes, uint64_t from) {
  return static_cast<uint64_t>(
      rt::probe_read_str(rt_consts, bytes_at(to), static_cast<uint32_t>(bytes), from));
}
RT_HELPER(115)(uint64_t to, uint64_t bytes, uint64_t from) {
  return static_cast<uint64_t>(
      rt::probe_read_str(rt_consts, bytes_at(to), static_cast<uint32_t>(bytes), from));
}
RT_HELPER(125)() {
  return rt::clock_ns(rt_consts, rt::Clock::kBoottime);
}
RT_HELPER(130)(uint64_t map, uint64_t from, uint64_t bytes) {
  return static_cast<uint64_t>(rt::ring_output(rt_consts, map_at(map), bytes_at(from), bytes));
}
RT_HELPER(131)(uint64_t map, uint64_t bytes) {
  return address_of(rt::ring_reserve(rt_consts, map_at(map), bytes));
}
RT_HELPER(132)(uint64_t body) {
  rt::ring_submit(rt_consts, bytes_at(body));
  return 0;
}
RT_HELPER(133)(uint64_t body) {
  rt::ring_discard(rt_consts, bytes_at(body));
  return 0;
}
RT_HELPER(174)(uint64_t context) {
  return reinterpret_cast<const abi::HitFrame*>(context)->cookie;
}
RT_HELPER(195)(uint64_t map, uint64_t key, uint64_t cpu) {
  if (cpu > rt_consts.cpu_mask) return 0;
  return address_of(
      rt::map_lookup(rt_consts, map_at(map), bytes_at(key), static_cast<uint32_t>(cpu)));
}
// Of no kernel: bpf::Helper::kMapNextKey.
RT_HELPER(65100)(uint64_t map, uint64_t position, uint64_t key) {
  return rt::map_next_key(map_at(map), position, bytes_at(key));
}

// Not helpers of eBPF: detours call them (rt/blob.h).
RT_HELPER(65001)(uint64_t slot, uint64_t number) {
  rt::note_pending(rt_consts, slot, number);
  return 0;
}
RT_HELPER(65002)(uint64_t slot, uint64_t number) {
  return rt::take_pending(rt_consts, slot, number);
}
RT_HELPER(65003)(uint64_t slot, uint64_t number) {
  rt::arm_pending(rt_consts, slot, number);
  return 0;
}
RT_HELPER(65004)(uint64_t slot, uint64_t number) {
  rt::arrive_pending(rt_consts, slot, number);
  return 0;
}
RT_HELPER(65006)(uint64_t slot, uint64_t number) {
  rt::note_again_pending(rt_consts, slot, number);
  return 0;
}
RT_HELPER(65005)
(uint64_t slot, uint64_t number, uint64_t target, uint64_t known, uint64_t is_address) {
  rt::leave_pending(rt_consts, slot, number, target, reinterpret_cast<const abi::KnownCode*>(known),
                    is_address != 0);
  return 0;
}
RT_HELPER(65007)() {
  rt::await_tracer(rt_consts);
  return 0;
}
