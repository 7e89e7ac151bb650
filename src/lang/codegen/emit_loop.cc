// Loops that jump back: those of the user engine, and short ones of constant bounds.
#include "lang/codegen/emitter.h"

namespace spile::lang::codegen {

using bpf::Helper;
using bundle::MapRole;

/// Rounds that a loop may still make, in a slot.
int Emitter::begin_budget() {
  const int budget = frame_.allocate(8);
  code_.mov_imm(Reg::r2, kMaxOpenRounds);
  code_.store(8, Reg::r10, budget, Reg::r2);
  return budget;
}

/// A loop that has none left is counted and ends. Clobbers r2.
void Emitter::take_round(int budget, Label done) {
  Label go = code_.new_label();
  code_.load(8, Reg::r2, Reg::r10, budget);
  code_.jump_if_imm(bpf::kJne, Reg::r2, 0, go);
  bump(bundle::Counter::kLoopCut);
  code_.jump(done);
  code_.bind(go);
  code_.alu_imm(bpf::kSub, Reg::r2, 1);
  code_.store(8, Reg::r10, budget, Reg::r2);
}

void Emitter::while_loop(const typed::Stmt& stmt) {
  if (calls_loops()) return call_while(stmt);
  FrameScope scope(frame_);
  Label again = code_.new_label(), done = code_.new_label();
  const int budget = begin_budget();
  code_.bind(again);
  branch(*stmt.expr, false, done);
  take_round(budget, done);
  loops_.push_back({again, done});
  block(stmt.body);
  loops_.pop_back();
  code_.jump(again);
  code_.bind(done);
}

/// One round, with the variable as a copy of the counter: the body may change it.
void Emitter::range_body(const typed::Stmt& stmt, int counter, Label next, Label done) {
  slots_[stmt.variable] = home().allocate(8);
  code_.load(8, Reg::r0, Reg::r10, counter);
  store(variable(stmt.variable), 8, Reg::r0);
  loops_.push_back({next, done});
  declare(stmt.body, stmt.variable);
  statements(stmt.body);
  loops_.pop_back();
  code_.bind(next);
  code_.load(8, Reg::r0, Reg::r10, counter);
  code_.alu_imm(bpf::kAdd, Reg::r0, 1);
  code_.store(8, Reg::r10, counter, Reg::r0);
}

void Emitter::for_range(const typed::Stmt& stmt) {
  const uint64_t rounds = static_cast<uint64_t>(stmt.last) - static_cast<uint64_t>(stmt.first);
  const bool is_open = !stmt.keys.empty();
  if (!is_open && stmt.first >= stmt.last) return;
  const bool is_short = !is_open && rounds <= kFewRounds && !any_loop(stmt.body, kFewRounds);
  if (calls_loops() && !is_short) return call_range(stmt);
  if (is_open) return for_open_range(stmt);
  FrameScope scope(frame_), home_scope(home());
  Label again = code_.new_label(), next = code_.new_label(), done = code_.new_label();
  int counter = frame_.allocate(8);
  code_.load_imm64(Reg::r0, static_cast<uint64_t>(stmt.first));
  code_.store(8, Reg::r10, counter, Reg::r0);
  code_.bind(again);
  range_body(stmt, counter, next, done);
  code_.load_imm64(Reg::r1, static_cast<uint64_t>(stmt.last));
  code_.jump_if(bpf::kJslt, Reg::r0, Reg::r1, again);
  code_.bind(done);
}

void Emitter::for_open_range(const typed::Stmt& stmt) {
  FrameScope scope(frame_), home_scope(home());
  Label again = code_.new_label(), next = code_.new_label(), done = code_.new_label();
  int counter = frame_.allocate(8), end = frame_.allocate(8);
  value(*stmt.keys[0]);
  code_.store(8, Reg::r10, counter, Reg::r0);
  value(*stmt.keys[1]);
  code_.store(8, Reg::r10, end, Reg::r0);
  const int budget = begin_budget();
  code_.load(8, Reg::r0, Reg::r10, counter);
  code_.bind(again);
  code_.load(8, Reg::r1, Reg::r10, end);
  code_.jump_if(bpf::kJsge, Reg::r0, Reg::r1, done);
  take_round(budget, done);
  range_body(stmt, counter, next, done);
  code_.jump(again);
  code_.bind(done);
}

/// map_next_key gives key after key; a key that is gone again when its value is looked up is passed
/// over. The element is copied: what the body changes in the map does not change it.
void Emitter::for_map(const typed::Stmt& stmt) {
  if (calls_loops()) return call_for_map(stmt);
  FrameScope scope(frame_), home_scope(home());
  const typed::Map& map = script_map(stmt.map);
  const uint32_t key_bytes = storage_bytes(map.key);
  const bool is_value = map.role == MapRole::kValue;
  Label again = code_.new_label(), done = code_.new_label();
  const int position = frame_.allocate(8);
  const uint32_t room = key_bytes + (is_value ? storage_bytes(map.value) : 8);
  const int slot = home().allocate(room);
  const Place element = home_place(slot);
  if (stmt.variable >= 0) slots_[stmt.variable] = slot;
  code_.store_imm(8, Reg::r10, position, 0);
  code_.bind(again);
  code_.load_map(Reg::r1, stmt.map);
  code_.load(8, Reg::r2, Reg::r10, position);
  address_of(element, Reg::r3);
  code_.call(Helper::kMapNextKey);
  code_.jump_if_imm(bpf::kJeq, Reg::r0, 0, done);
  code_.store(8, Reg::r10, position, Reg::r0);
  lookup(stmt.map, element);
  code_.jump_if_imm(bpf::kJeq, Reg::r0, 0, again);
  if (is_value) {
    code_.mov(Reg::r4, Reg::r0);
    copy({Location{true, Reg::r4, 0}, 0}, map.value, element.at(key_bytes), map.value,
         Fill::kPadded);
  } else {
    aggregate_at(stmt.map, element, static_cast<uint64_t>(stmt.first));
    store(element.at(key_bytes), 8, Reg::r0);
  }
  loops_.push_back({again, done});
  declare(stmt.body, stmt.variable);
  statements(stmt.body);
  loops_.pop_back();
  code_.jump(again);
  code_.bind(done);
}

}  // namespace spile::lang::codegen
