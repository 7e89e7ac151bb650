#include "user_engine/jit/jit.h"

#include <bit>
#include <limits>

#include "user_engine/jit/facts.h"
#include "user_engine/jit/liveness.h"
#include "user_engine/jit/shape.h"
#include "user_engine/jit/translate.h"

namespace spile::jit {

namespace {

/// What rdpid and lsl can say: 12 bits.
constexpr uint32_t kMaxCpuMask = 0xfff;

Result<void> check_array(size_t map, const ArrayLayout& array) {
  constexpr uint32_t kMax = std::numeric_limits<int32_t>::max();
  bool sane = array.storage.value != 0 && array.max_entries > 0 && array.value_stride > 0 &&
              array.value_stride <= kMax && array.cpu_stride <= kMax &&
              array.cpu_mask <= kMaxCpuMask && std::has_single_bit(array.cpu_mask + 1);
  if (!sane) return fail(ErrorCode::kInvalid, "map {}: a layout that no array has", map);
  return {};
}

Result<void> check_env(const JitEnv& env) {
  if (env.base.value == 0) return fail(ErrorCode::kInvalid, "no address to compile for");
  for (size_t i = 0; i < env.maps.size(); ++i) {
    if (env.maps[i].array) SPILE_TRY_VOID(check_array(i, *env.maps[i].array));
  }
  return {};
}

/// The smallest detour adds its frame and the return address; a body that does not fit even so is
/// refused at once.
Result<void> check_stack(const Body& body) {
  uint64_t least = abi::kRedZoneBytes + sizeof(abi::HitFrame) + 8 + body.stack_bytes;
  if (least > abi::kMaxHitStackBytes) {
    return fail(ErrorCode::kUnsafe, "a hit would use {} bytes of the target's stack, more than {}",
                least, abi::kMaxHitStackBytes);
  }
  return {};
}

}  // namespace

Result<Body> compile(const bpf::Program& program,
                     const bpf::Analysis& analysis,
                     const JitEnv& env) {
  SPILE_TRY_VOID(check_env(env));
  if (analysis.insns.size() != program.size()) {
    return fail(ErrorCode::kInvalid, "the analysis is of another program");
  }
  SPILE_TRY(Shape shape, find_shape(program));
  // From here on every edge leads to an instruction of this program.
  SPILE_TRY(Facts facts, find_facts(program, shape, analysis, env));
  // From here on every map and helper exists, and every fixed access is inside its object.
  Liveness liveness = find_liveness(program, shape, analysis, facts, env);
  SPILE_TRY(Body body, translate({program, shape, facts, liveness}, env));
  SPILE_TRY_VOID(check_stack(body));
  return body;
}

}  // namespace spile::jit
