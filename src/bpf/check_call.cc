#include "bpf/check_call.h"

#include <algorithm>
#include <cstring>

namespace spile::bpf {

namespace {

constexpr uint64_t kMaxSize = uint64_t{1} << 29;
/// What a record costs in the ring beside its bytes (the kernel's BPF_RINGBUF_HDR_SZ).
constexpr uint64_t kRecordOverhead = 8;

bool is_array(MapKind kind) {
  return kind == MapKind::kArray || kind == MapKind::kPerCpuArray;
}

bool is_constant_inside(const MapInfo& map, const std::optional<std::vector<uint8_t>>& key) {
  if (!is_array(map.kind) || !key || key->size() != sizeof(uint32_t)) return false;
  uint32_t index = 0;
  std::memcpy(&index, key->data(), sizeof index);
  return index < map.max_entries;
}

}  // namespace

Result<void> CallRules::call(CheckState& state, uint32_t at, const Insn& insn) {
  Call call{.at = at,
            .helper = find_helper(insn.imm),
            .facts = {.insn = at, .helper = static_cast<Helper>(insn.imm)}};
  if (env_.helpers &&
      std::ranges::find(*env_.helpers, call.helper->helper) == env_.helpers->end()) {
    return fail(ErrorCode::kUnsupported, "insn {}: helper {} may not be called here", at,
                call.helper->name);
  }
  for (int reg = 1; reg <= 5; ++reg) SPILE_TRY_VOID(argument(state, call, reg));
  finish(state, call);
  return {};
}

Result<void> CallRules::argument(CheckState& state, Call& call, int reg) {
  ArgType type = call.helper->args[static_cast<size_t>(reg - 1)];
  switch (type) {
    case ArgType::kNone: return {};
    case ArgType::kMap:
    case ArgType::kRing:
    case ArgType::kStacks: return map(state, call, reg, type);
    case ArgType::kMapKey: return map_memory(state, call, reg, true);
    case ArgType::kMapValue: return map_memory(state, call, reg, false);
    case ArgType::kMapKeyOut:
      return memory_.helper_writes(state, call.at, reg,
                                   env_.maps[static_cast<size_t>(call.facts.map)].key_size, true);
    case ArgType::kReadMemory: return sized_memory(state, call, reg, false);
    case ArgType::kWriteMemory: return sized_memory(state, call, reg, true);
    case ArgType::kSize: return size(state, call, reg, false);
    case ArgType::kSizeOrZero: return size(state, call, reg, true);
    case ArgType::kRecordSize: return record_size(state, call, reg);
    case ArgType::kRecord: return record(state, call, reg);
    case ArgType::kScalar:
    case ArgType::kAddress:
    case ArgType::kZero:
    case ArgType::kContext: return plain(state, call, reg, type);
  }
  return fail(ErrorCode::kInternal, "insn {}: argument type {}", call.at, static_cast<int>(type));
}

Result<void> CallRules::plain(const CheckState& state, Call& call, int reg, ArgType type) {
  const RegState& arg = state.regs[static_cast<size_t>(reg)];
  switch (type) {
    case ArgType::kScalar:
      if (arg.kind != RegKind::kScalar) return register_error(call.at, reg, arg, "a number");
      return {};
    case ArgType::kZero:
      if (!arg.is_constant(0)) return register_error(call.at, reg, arg, "the number 0");
      return {};
    case ArgType::kContext:
      if (arg.kind != RegKind::kContext || !arg.range.is_constant() || arg.range.umin != 0) {
        return register_error(call.at, reg, arg, "the context as it came");
      }
      return {};
    default:
      if (arg.kind == RegKind::kUninit) return register_error(call.at, reg, arg, "an address");
      if (arg.kind == RegKind::kContext) facts_.context_escapes();
      return {};
  }
}

namespace {

/// Which argument type a map of this kind is.
ArgType argument_for(MapKind kind) {
  if (kind == MapKind::kRing) return ArgType::kRing;
  return kind == MapKind::kStacks ? ArgType::kStacks : ArgType::kMap;
}

const char* describe(ArgType type) {
  if (type == ArgType::kRing) return "a ring map";
  return type == ArgType::kStacks ? "a stack map" : "a hash or array map";
}

}  // namespace

Result<void> CallRules::map(const CheckState& state, Call& call, int reg, ArgType expected) {
  const RegState& arg = state.regs[static_cast<size_t>(reg)];
  if (arg.kind != RegKind::kMap) return register_error(call.at, reg, arg, describe(expected));
  ArgType found = argument_for(env_.maps[static_cast<size_t>(arg.map)].kind);
  if (found != expected) {
    return fail(ErrorCode::kUnsafe, "insn {}: r{} is map {}, which is {}, expected {}", call.at,
                reg, arg.map, describe(found), describe(expected));
  }
  call.facts.map = arg.map;
  return {};
}

Result<void> CallRules::map_memory(CheckState& state, Call& call, int reg, bool is_key) {
  const MapInfo& map = env_.maps[static_cast<size_t>(call.facts.map)];
  uint32_t size = is_key ? map.key_size : map.value_size;
  SPILE_TRY_VOID(memory_.helper_reads(state, call.at, reg, size));
  if (is_key) call.facts.constant_key = MemoryRules::constant_bytes(state, reg, size);
  return {};
}

/// The register after `reg` says how many bytes.
Result<void> CallRules::sized_memory(CheckState& state, Call& call, int reg, bool is_write) {
  const RegState& size = state.regs[static_cast<size_t>(reg) + 1];
  if (size.kind != RegKind::kScalar)
    return register_error(call.at, reg + 1, size, "a number of bytes");
  if (size.range.smin < 0 || size.range.umax > kMaxSize) {
    return register_error(call.at, reg + 1, size,
                          "a number of bytes that is not negative and has a bound");
  }
  auto max_size = static_cast<uint32_t>(size.range.umax);
  if (is_write)
    return memory_.helper_writes(state, call.at, reg, max_size, size.range.is_constant());
  return memory_.helper_reads(state, call.at, reg, max_size);
}

Result<void> CallRules::size(const CheckState& state, Call& call, int reg, bool zero_allowed) {
  const RegState& arg = state.regs[static_cast<size_t>(reg)];
  if (!zero_allowed && arg.range.umin == 0)
    return register_error(call.at, reg, arg, "1 byte or more");
  call.max_size = arg.range.umax;
  if (arg.range.is_constant()) call.facts.size = arg.range.umin;
  return {};
}

Result<void> CallRules::record_size(const CheckState& state, Call& call, int reg) {
  const RegState& arg = state.regs[static_cast<size_t>(reg)];
  if (arg.kind != RegKind::kScalar || !arg.range.is_constant() || arg.range.umin == 0) {
    return register_error(call.at, reg, arg, "a constant size of 1 byte or more");
  }
  uint64_t ring_size = env_.maps[static_cast<size_t>(call.facts.map)].max_entries;
  if (arg.range.umin > kMaxSize || arg.range.umin + kRecordOverhead > ring_size) {
    return fail(ErrorCode::kUnsafe,
                "insn {}: a record of {} bytes never fits into map {}, a ring of {} bytes", call.at,
                arg.range.umin, call.facts.map, ring_size);
  }
  call.facts.size = arg.range.umin;
  return {};
}

Result<void> CallRules::record(const CheckState& state, Call& call, int reg) {
  const RegState& arg = state.regs[static_cast<size_t>(reg)];
  bool is_start = arg.range.is_constant() && arg.range.umin == 0;
  if (arg.kind != RegKind::kRecord || arg.maybe_null || !is_start) {
    return register_error(call.at, reg, arg, "the start of a record that was compared with 0");
  }
  call.released = arg.id;
  return {};
}

RegState CallRules::result(CheckState& state, const Call& call) {
  switch (call.helper->result) {
    case ReturnType::kNothing: return {};
    case ReturnType::kScalar: return RegState::scalar(ScalarRange::unknown());
    case ReturnType::kErrorOrSize:
      return RegState::scalar(
          ScalarRange::signed_between(-4095, static_cast<int64_t>(call.max_size)));
    case ReturnType::kMapValueOrNull: {
      RegState value = RegState::pointer(RegKind::kMapValue);
      value.maybe_null = true;
      value.map = call.facts.map;
      value.size = env_.maps[static_cast<size_t>(call.facts.map)].value_size;
      value.id = state.new_id();
      return value;
    }
    case ReturnType::kRecordOrNull: break;
  }
  RegState record = RegState::pointer(RegKind::kRecord);
  record.maybe_null = true;
  record.size = static_cast<uint32_t>(*call.facts.size);
  record.id = state.new_id();
  state.held.push_back({record.id, call.at});
  return record;
}

void CallRules::finish(CheckState& state, const Call& call) {
  CallFacts facts = call.facts;
  bool is_lookup = call.helper->helper == Helper::kMapLookupElem;
  facts.never_null = is_lookup && is_constant_inside(env_.maps[static_cast<size_t>(facts.map)],
                                                     facts.constant_key);
  facts_.call(std::move(facts));
  if (call.released != 0) {
    std::erase_if(state.held, [&](const HeldRecord& record) { return record.id == call.released; });
    state.for_each_reg([&](RegState& reg) {
      if (reg.kind == RegKind::kRecord && reg.id == call.released) reg = {};
    });
  }
  RegState r0 = result(state, call);
  for (size_t reg = 1; reg <= 5; ++reg) state.regs[reg] = {};
  state.regs[0] = r0;
}

}  // namespace spile::bpf
