// tseries(): numbers by the interval of time in which they came.
//
// A key has series_count slots for each CPU; an interval's number, counted from 1970 so that the
// intervals begin at round times, says which. The first hit of an interval takes the slot from the
// one that had it series_count intervals before:
//
//   word 0    before     w, of an interval that is over (or 0: fresh)
//             claimed    ~mine, by compare-and-swap; words 1 and 2 become 0
//             ready      mine
//
// Hits that come in between on the same CPU (threads of the user engine, a preempted program of the
// kernel's) cannot wait: one that finds the slot claimed for its own interval is counted as an
// update that was lost. A slot that stayed claimed, since its thread was killed there, is taken by
// the next interval. A hit that is late leaves what is newer alone.
#include "lang/codegen/emitter.h"

namespace spile::lang::codegen {

using bpf::Helper;
using bundle::Counter;
using bundle::MapRole;
using bundle::SeriesOf;

void Emitter::add_to_series(const typed::Stmt& stmt) {
  const typed::Map& map = script_map(stmt.map);
  Label done = code_.new_label();
  value(*stmt.expr);
  Held number = hold(Reg::r0);
  code_.call(Helper::kKtimeGetNs);
  code_.load_imm64(Reg::r1, static_cast<uint64_t>(map.real_time_offset_ns));
  code_.alu(bpf::kAdd, Reg::r0, Reg::r1);
  code_.load_imm64(Reg::r1, map.series_ns);
  code_.alu(bpf::kDiv, Reg::r0, Reg::r1);
  code_.alu_imm(bpf::kAdd, Reg::r0, 1);  // SeriesWord::of
  Held word = hold(Reg::r0);
  const Place key =
      map.is_scalar() ? Place{{}, frame_.allocate(8)} : build_key(stmt.map, pointers(stmt.keys));
  get(word.location(), Reg::r0);
  code_.alu_imm(bpf::kSub, Reg::r0, 1);
  code_.alu_imm(bpf::kMod, Reg::r0, static_cast<int32_t>(map.series_count));
  if (map.is_scalar()) {
    store(key, 4, Reg::r0);
  } else {
    store(key.at(storage_bytes(map.key)), 8, Reg::r0);
  }
  lookup_or_insert(stmt.map, key, done);
  Held slot = hold(Reg::r0);
  claim_interval(slot.location(), word.location(), done);
  add_to_interval(map, slot.location(), number.location());
  code_.bind(done);
}

/// Falls through when the slot is the interval's.
void Emitter::claim_interval(const Location& slot, const Location& word, Label done) {
  Label ready = code_.new_label(), claim = code_.new_label(), is_claimed = code_.new_label(),
        lost = code_.new_label();
  get(slot, Reg::r3);
  get(word, Reg::r1);
  code_.load(8, Reg::r0, Reg::r3, 0);
  code_.jump_if(bpf::kJeq, Reg::r0, Reg::r1, ready);
  code_.jump_if_imm(bpf::kJslt, Reg::r0, 0, is_claimed);
  code_.jump_if(bpf::kJsgt, Reg::r0, Reg::r1, done);  // we are late
  code_.jump(claim);
  code_.bind(is_claimed);
  code_.mov(Reg::r2, Reg::r0);
  code_.alu_imm(bpf::kXor, Reg::r2, -1);
  code_.jump_if(bpf::kJsgt, Reg::r2, Reg::r1, done);
  code_.jump_if(bpf::kJeq, Reg::r2, Reg::r1, lost);
  code_.bind(claim);
  code_.mov(Reg::r2, Reg::r1);
  code_.alu_imm(bpf::kXor, Reg::r2, -1);
  code_.mov(Reg::r4, Reg::r0);
  code_.atomic(bpf::kCmpXchg, Reg::r3, 0, Reg::r2);  // r0 becomes what was there
  code_.jump_if(bpf::kJne, Reg::r0, Reg::r4, lost);
  code_.store_imm(8, Reg::r3, 8, 0);
  code_.store_imm(8, Reg::r3, 16, 0);
  code_.store(8, Reg::r3, 0, Reg::r1);
  code_.jump(ready);
  code_.bind(lost);
  bump(Counter::kMapFull);
  code_.jump(done);
  code_.bind(ready);
}

void Emitter::add_to_interval(const typed::Map& map, const Location& slot, const Location& number) {
  if (map.series_of == SeriesOf::kLast) {
    code_.call(Helper::kKtimeGetNs);
    code_.mov(Reg::r2, Reg::r0);
  }
  get(slot, Reg::r0);
  get(number, Reg::r1);
  switch (map.series_of) {
    case SeriesOf::kLast:
      code_.store(8, Reg::r0, 8, Reg::r1);
      return code_.store(8, Reg::r0, 16, Reg::r2);
    case SeriesOf::kAvg:
      code_.mov_imm(Reg::r2, 1);
      code_.atomic(bpf::kAtomicAdd, Reg::r0, 8, Reg::r2);
      return code_.atomic(bpf::kAtomicAdd, Reg::r0, 16, Reg::r1);
    case SeriesOf::kSum: return code_.atomic(bpf::kAtomicAdd, Reg::r0, 16, Reg::r1);
    case SeriesOf::kMin:
    case SeriesOf::kMax:
      code_.alu_imm(bpf::kAdd, Reg::r0, 8);
      return add_extreme(map.series_of == SeriesOf::kMin ? MapRole::kMin : MapRole::kMax,
                         map.value.is_signed);
  }
}

}  // namespace spile::lang::codegen
