// Maps: keys, lookups, updates, aggregations.
#include "lang/codegen/emitter.h"

namespace spile::lang::codegen {

using ast::BinaryOp;
using bpf::Helper;
using bundle::Counter;
using bundle::MapKind;
using bundle::MapRole;
using typed::ExprKind;
using typed::Yields;

namespace {

/// Of stats() an expression reads the average, too.
bool is_average(MapRole role) {
  return role == MapRole::kAvg || role == MapRole::kStats;
}

/// A min() or max() meets another hit of its CPU at most a few times in a row.
constexpr int32_t kMaxTries = 16;

}  // namespace

/// Returns the slot of the key; for histograms with keys, 8 bytes for the bucket follow at its end.
Place Emitter::build_key(int map, const std::vector<const Expr*>& parts) {
  const typed::Map& description = script_map(map);
  const bundle::MapSpec& spec = draft_.spec(map);
  bool is_single = parts.size() == 1 && !description.is_scalar() && !description.has_buckets();
  if (is_single) return materialise(*parts[0], description.key);
  const Place place{{}, frame_.allocate(spec.key_size)};
  if (description.is_scalar()) {
    store_imm(place, spec.key_size, 0);
  } else if (parts.size() == 1) {
    into(*parts[0], place, description.key, Fill::kPadded);
  } else {
    auto offsets = field_offsets(description.key);
    for (size_t i = 0; i < parts.size(); ++i)
      into(*parts[i], place.at(offsets[i]), description.key.fields[i], Fill::kPadded);
  }
  return place;
}

void Emitter::map_arguments(int map, const Place& key) {
  code_.load_map(Reg::r1, map);
  address_of(key, Reg::r2);
}

void Emitter::lookup(int map, const Place& key) {
  map_arguments(map, key);
  code_.call(Helper::kMapLookupElem);
}

void Emitter::lookup_or_insert(int map, const Place& key, Label done) {
  lookup(map, key);
  const bundle::MapSpec& spec = draft_.spec(map);
  bool is_array = spec.kind == MapKind::kArray || spec.kind == MapKind::kPerCpuArray;
  if (is_array)
    return code_.jump_if_imm(bpf::kJeq, Reg::r0, 0,
                             done);  // every index is inside: only verifiers want this
  // Put zeros in unless somebody else just did, then look again: whoever comes first, nobody's
  // addition is lost.
  FrameScope scope(frame_);
  int zeros = frame_.allocate(spec.value_size);
  Label found = code_.new_label();
  code_.jump_if_imm(bpf::kJne, Reg::r0, 0, found);
  zero({{}, zeros}, spec.value_size);
  map_arguments(map, key);
  address_of({{}, zeros}, Reg::r3);
  code_.mov_imm(Reg::r4, bpf::kUpdateNoExist);
  code_.call(Helper::kMapUpdateElem);
  lookup(map, key);
  code_.jump_if_imm(bpf::kJne, Reg::r0, 0, found);
  bump(Counter::kMapFull);
  code_.mov_imm(Reg::r0, 0);
  code_.jump(done);
  code_.bind(found);
}

void Emitter::map_read(const Expr& expr) {
  FrameScope scope(frame_);
  Label done = code_.new_label();
  lookup(expr.map, build_key(expr.map, pointers(expr.args)));
  code_.jump_if_imm(bpf::kJeq, Reg::r0, 0, done);  // r0 is 0 then, the value of what is not there
  code_.load(8, Reg::r0, Reg::r0, 0);
  code_.bind(done);
}

/// r0 := the figure over all CPUs. The loop has as many rounds as there may be CPUs, and ends at
/// the first that has no value: there is no such key, or no such CPU.
void Emitter::aggregate_read(const Expr& expr) {
  FrameScope scope(frame_);
  aggregate_at(expr.map, build_key(expr.map, pointers(expr.args)), expr.number);
}

void Emitter::aggregate_at(int index, const Place& key, uint64_t cpus) {
  FrameScope scope(frame_);
  const typed::Map& map = script_map(index);
  Label again = code_.new_label(), done = code_.new_label();
  const int total = frame_.allocate(8), second = frame_.allocate(8);
  code_.store_imm(8, Reg::r10, total, 0);
  code_.store_imm(8, Reg::r10, second, 0);
  code_.mov_imm(Reg::r0, 0);
  Held cpu = hold(Reg::r0);
  code_.bind(again);
  map_arguments(index, key);
  get(cpu.location(), Reg::r3);
  code_.call(Helper::kMapLookupPercpuElem);
  code_.jump_if_imm(bpf::kJeq, Reg::r0, 0, done);
  add_cpu(map, total, second);
  get(cpu.location(), Reg::r1);
  code_.alu_imm(bpf::kAdd, Reg::r1, 1);
  put(cpu.location(), Reg::r1);
  code_.jump_if_imm(bpf::kJlt, Reg::r1, static_cast<int32_t>(cpus), again);
  code_.bind(done);
  aggregate_result(map, total, second);
}

/// r0: the address of one CPU's value. `second`: the sum of avg(), whether there is a min() or
/// max().
void Emitter::add_cpu(const typed::Map& map, int total, int second) {
  const bool is_extreme = map.role == MapRole::kMin || map.role == MapRole::kMax;
  Label stays = code_.new_label();
  code_.load(8, Reg::r1, Reg::r0, 0);
  code_.load(8, Reg::r2, Reg::r10, total);
  if (is_extreme) {
    code_.load(8, Reg::r3, Reg::r0, 8);
    code_.jump_if_imm(bpf::kJeq, Reg::r3, 0, stays);
    code_.store_imm(8, Reg::r10, second, 1);
    code_.jump_if(bpf::kJle, Reg::r1, Reg::r2, stays);
    code_.store(8, Reg::r10, total, Reg::r1);
    return code_.bind(stays);
  }
  code_.alu(bpf::kAdd, Reg::r2, Reg::r1);
  code_.store(8, Reg::r10, total, Reg::r2);
  if (!is_average(map.role)) return;
  code_.load(8, Reg::r1, Reg::r0, 8);
  code_.load(8, Reg::r2, Reg::r10, second);
  code_.alu(bpf::kAdd, Reg::r2, Reg::r1);
  code_.store(8, Reg::r10, second, Reg::r2);
}

void Emitter::aggregate_result(const typed::Map& map, int total, int second) {
  code_.load(8, Reg::r0, Reg::r10, total);
  if (is_average(map.role)) {
    code_.mov(Reg::r1, Reg::r0);
    code_.load(8, Reg::r0, Reg::r10, second);
    return arithmetic(BinaryOp::kDiv, map.value.is_signed, {});
  }
  if (map.role != MapRole::kMin && map.role != MapRole::kMax) return;
  // bundle::number_of_rank; 0 where nothing was put in.
  Label none = code_.new_label();
  code_.load(8, Reg::r1, Reg::r10, second);
  code_.jump_if_imm(bpf::kJeq, Reg::r1, 0, none);
  if (map.role == MapRole::kMin) code_.alu_imm(bpf::kXor, Reg::r0, -1);
  if (map.value.is_signed) {
    code_.load_imm64(Reg::r1, uint64_t{1} << 63);
    code_.alu(bpf::kXor, Reg::r0, Reg::r1);
  }
  code_.bind(none);
}

void Emitter::set_map(const typed::Stmt& stmt) {
  FrameScope scope(frame_);
  Place value = materialise(*stmt.expr, script_map(stmt.map).value);
  const Place key = build_key(stmt.map, pointers(stmt.keys));
  map_arguments(stmt.map, key);
  address_of(value, Reg::r3);
  code_.mov_imm(Reg::r4, bpf::kUpdateAny);
  code_.call(Helper::kMapUpdateElem);
  Label done = code_.new_label();
  code_.jump_if_imm(bpf::kJeq, Reg::r0, 0, done);
  bump(Counter::kMapFull);
  code_.bind(done);
}

// ---- aggregations
// -------------------------------------------------------------------------------------------------------

void Emitter::aggregate(const typed::Stmt& stmt) {
  FrameScope scope(frame_);
  if (script_map(stmt.map).role == MapRole::kSeries) return add_to_series(stmt);
  if (script_map(stmt.map).has_buckets()) return add_to_bucket(stmt);
  add_number(stmt);
}

void Emitter::add_number(const typed::Stmt& stmt) {
  const typed::Map& map = script_map(stmt.map);
  Label done = code_.new_label();
  std::optional<Held> number;
  if (stmt.expr != nullptr && !is_leaf(*stmt.expr)) {
    value(*stmt.expr);
    number.emplace(hold(Reg::r0));
  }
  const Place key = build_key(stmt.map, pointers(stmt.keys));
  lookup_or_insert(stmt.map, key, done);
  if (stmt.expr == nullptr) {
    code_.mov_imm(Reg::r1, 1);
  } else if (number) {
    get(number->location(), Reg::r1);
  } else {
    leaf(*stmt.expr, Reg::r1);
  }
  switch (map.role) {
    case MapRole::kMin:
    case MapRole::kMax: add_extreme(map.role, map.value.is_signed); break;
    case MapRole::kAvg:
    case MapRole::kStats:
      code_.mov_imm(Reg::r2, 1);
      code_.atomic(bpf::kAtomicAdd, Reg::r0, 0, Reg::r2);
      code_.atomic(bpf::kAtomicAdd, Reg::r0, 8, Reg::r1);
      break;
    default: code_.atomic(bpf::kAtomicAdd, Reg::r0, 0, Reg::r1);
  }
  code_.bind(done);
}

/// r0: address of {rank, is_set}, r1: the number. See bundle::rank_for_max: the larger rank stays.
void Emitter::add_extreme(MapRole role, bool is_signed) {
  Label again = code_.new_label(), stays = code_.new_label(), stored = code_.new_label(),
        done = code_.new_label();
  if (is_signed) {
    code_.load_imm64(Reg::r2, uint64_t{1} << 63);
    code_.alu(bpf::kXor, Reg::r1, Reg::r2);
  }
  if (role == MapRole::kMin) code_.alu_imm(bpf::kXor, Reg::r1, -1);
  code_.mov(Reg::r2, Reg::r0);
  code_.mov_imm(Reg::r3, kMaxTries);
  code_.load(8, Reg::r0, Reg::r2, 0);
  code_.bind(again);
  code_.jump_if(bpf::kJle, Reg::r1, Reg::r0, stays);
  code_.mov(Reg::r4, Reg::r0);
  code_.atomic(bpf::kCmpXchg, Reg::r2, 0, Reg::r1);  // r0 becomes what was there
  code_.jump_if(bpf::kJeq, Reg::r0, Reg::r4, stored);
  code_.alu_imm(bpf::kSub, Reg::r3, 1);
  code_.jump_if_imm(bpf::kJne, Reg::r3, 0, again);
  bump(Counter::kMapFull);
  code_.jump(done);
  code_.bind(stays);
  code_.bind(stored);
  code_.store_imm(8, Reg::r2, 8, 1);
  code_.bind(done);
}

void Emitter::add_to_bucket(const typed::Stmt& stmt) {
  const typed::Map& map = script_map(stmt.map);
  Label done = code_.new_label();
  value_in(*stmt.expr, Reg::r1);
  if (map.role == MapRole::kHist) {
    log2_bucket(map.hist_bits);
  } else {
    linear_bucket(map);
  }
  if (map.is_scalar()) {
    const Place key{{}, frame_.allocate(8)};
    store(key, 4, Reg::r0);
    lookup_or_insert(stmt.map, key, done);
  } else {
    Held bucket = hold(Reg::r0);
    const Place key = build_key(stmt.map, pointers(stmt.keys));
    get(bucket.location(), Reg::r0);
    store(key.at(storage_bytes(map.key)), 8, Reg::r0);
    lookup_or_insert(stmt.map, key, done);
  }
  code_.mov_imm(Reg::r1, 1);
  code_.atomic(bpf::kAtomicAdd, Reg::r0, 0, Reg::r1);
  code_.bind(done);
}

/// r0 := the bucket of r1 (bundle::hist_bucket_low). Halving the range six times finds the top bit;
/// with `bits` the next lower ones choose the part.
void Emitter::log2_bucket(uint32_t bits) {
  Label done = code_.new_label(), is_large = code_.new_label();
  const auto shift = static_cast<int32_t>(bits);
  code_.mov_imm(Reg::r0, 0);
  code_.jump_if_imm(bpf::kJslt, Reg::r1, 0, done);
  code_.jump_if_imm(bpf::kJge, Reg::r1, 1 << shift, is_large);
  code_.mov(Reg::r0, Reg::r1);
  code_.alu_imm(bpf::kAdd, Reg::r0, 1);
  code_.jump(done);
  code_.bind(is_large);
  if (bits != 0) code_.mov(Reg::r3, Reg::r1);
  code_.mov_imm(Reg::r0, bits == 0 ? 2 : 0);
  for (int32_t half = 32; half >= 1; half /= 2) {
    Label is_low = code_.new_label();
    code_.mov(Reg::r2, Reg::r1);
    code_.alu_imm(bpf::kRsh, Reg::r2, half);
    code_.jump_if_imm(bpf::kJeq, Reg::r2, 0, is_low);
    code_.mov(Reg::r1, Reg::r2);
    code_.alu_imm(bpf::kAdd, Reg::r0, half);
    code_.bind(is_low);
  }
  if (bits != 0) {  // 1 + (power - bits) * 2^bits + number >> (power - bits)
    code_.alu_imm(bpf::kSub, Reg::r0, shift);
    code_.alu(bpf::kRsh, Reg::r3, Reg::r0);
    code_.alu_imm(bpf::kLsh, Reg::r0, shift);
    code_.alu(bpf::kAdd, Reg::r0, Reg::r3);
    code_.alu_imm(bpf::kAdd, Reg::r0, 1);
  }
  code_.bind(done);
}

/// r0 := the bucket of r1: 0 below min, then steps, the last from max on.
void Emitter::linear_bucket(const typed::Map& map) {
  Label done = code_.new_label();
  code_.mov_imm(Reg::r0, 0);
  code_.load_imm64(Reg::r2, static_cast<uint64_t>(map.lhist_min));
  code_.jump_if(bpf::kJslt, Reg::r1, Reg::r2, done);
  code_.mov_imm(Reg::r0, static_cast<int32_t>(bucket_count(map)) - 1);
  code_.load_imm64(Reg::r3, static_cast<uint64_t>(map.lhist_max));
  code_.jump_if(bpf::kJsge, Reg::r1, Reg::r3, done);
  code_.mov(Reg::r0, Reg::r1);
  code_.alu(bpf::kSub, Reg::r0, Reg::r2);
  code_.load_imm64(Reg::r3, static_cast<uint64_t>(map.lhist_step));
  code_.alu(bpf::kDiv, Reg::r0, Reg::r3);
  code_.alu_imm(bpf::kAdd, Reg::r0, 1);
  code_.bind(done);
}

// ---- @x op= y
// -----------------------------------------------------------------------------------------------------------

void Emitter::modify_map(const Expr& expr, Yields yields) {
  FrameScope scope(frame_);
  Label done = code_.new_label();
  std::optional<Held> operand;
  if (!is_leaf(*expr.args[0])) {
    value(*expr.args[0]);
    operand.emplace(hold(Reg::r0));
  }
  const Place key = build_key(expr.map, pointers(expr.args, 1));
  lookup_or_insert(expr.map, key, done);
  modify_in_place(expr, yields, operand ? &operand->location() : nullptr);
  code_.bind(done);
}

/// r0: address of the value; becomes what the expression yields. What eBPF has as an atomic is one;
/// the others lose an update when two CPUs change one key at the same time, as in every
/// implementation of the language.
void Emitter::modify_in_place(const Expr& expr, Yields yields, const Location* operand) {
  auto load_operand = [&](Reg dst) {
    operand != nullptr ? get(*operand, dst) : leaf(*expr.args[0], dst);
  };
  bool is_atomic = expr.op == BinaryOp::kAdd || expr.op == BinaryOp::kSub ||
                   expr.op == BinaryOp::kBitAnd || expr.op == BinaryOp::kBitOr ||
                   expr.op == BinaryOp::kBitXor;
  load_operand(Reg::r1);
  code_.mov(Reg::r2, Reg::r0);
  if (!is_atomic) {
    code_.load(8, Reg::r0, Reg::r2, 0);
    if (yields == Yields::kOld) code_.mov(Reg::r4, Reg::r0);
    arithmetic(expr.op, expr.type.is_signed, {});
    code_.store(8, Reg::r2, 0, Reg::r0);
    if (yields == Yields::kOld) code_.mov(Reg::r0, Reg::r4);
    return;
  }
  int32_t op = expr.op == BinaryOp::kBitAnd   ? bpf::kAtomicAnd
               : expr.op == BinaryOp::kBitOr  ? bpf::kAtomicOr
               : expr.op == BinaryOp::kBitXor ? bpf::kAtomicXor
                                              : bpf::kAtomicAdd;
  if (expr.op == BinaryOp::kSub) code_.neg(Reg::r1);
  if (yields == Yields::kNothing) return code_.atomic(op, Reg::r2, 0, Reg::r1);
  code_.atomic(op | bpf::kFetch, Reg::r2, 0, Reg::r1);
  code_.mov(Reg::r0, Reg::r1);
  if (yields == Yields::kOld) return;
  load_operand(Reg::r1);
  arithmetic(expr.op, expr.type.is_signed, {});
}

// ---- delete
// -------------------------------------------------------------------------------------------------------------

void Emitter::delete_key(const Expr& expr) {
  const typed::Map& map = script_map(expr.map);
  if (map.is_scalar() && map.role != MapRole::kValue)
    return map_action(expr, bundle::ActionKind::kClearMap);
  if (map.has_buckets()) return delete_histogram(expr);
  FrameScope scope(frame_);
  map_arguments(expr.map, build_key(expr.map, pointers(expr.args)));
  code_.call(Helper::kMapDeleteElem);
}

/// r0 := whether there was such a key.
void Emitter::deleted(const Expr& expr) {
  Label was_there = code_.new_label(), done = code_.new_label();
  delete_key(expr);
  code_.jump_if_imm(bpf::kJeq, Reg::r0, 0, was_there);
  code_.mov_imm(Reg::r0, 0);
  code_.jump(done);
  code_.bind(was_there);
  code_.mov_imm(Reg::r0, 1);
  code_.bind(done);
}

/// One key of a histogram is as many keys of the map as there are buckets.
void Emitter::delete_histogram(const Expr& expr) {
  FrameScope scope(frame_);
  const typed::Map& map = script_map(expr.map);
  Label again = code_.new_label();
  const Place key = build_key(expr.map, pointers(expr.args));
  code_.mov_imm(Reg::r0, 0);
  Held bucket = hold(Reg::r0);
  code_.bind(again);
  store(key.at(storage_bytes(map.key)), 8, Reg::r0);
  map_arguments(expr.map, key);
  code_.call(Helper::kMapDeleteElem);
  get(bucket.location(), Reg::r0);
  code_.alu_imm(bpf::kAdd, Reg::r0, 1);
  put(bucket.location(), Reg::r0);
  code_.jump_if_imm(bpf::kJlt, Reg::r0, static_cast<int32_t>(bucket_count(map)), again);
}

}  // namespace spile::lang::codegen
