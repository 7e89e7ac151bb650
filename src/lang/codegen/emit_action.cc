// Records: built in the ring itself, between reserve and submit. No path leaves between the two.
#include <algorithm>

#include "bpf/helpers.h"
#include "lang/codegen/emitter.h"

namespace spile::lang::codegen {

using bpf::Helper;
using bundle::Action;
using bundle::ActionKind;
using typed::ExprKind;
using typed::Yields;

namespace {

/// As many words as bpftrace joins.
constexpr uint32_t kMaxJoined = 16;

}  // namespace

void Emitter::effect(const Expr& expr) {
  switch (expr.kind) {
    case ExprKind::kPrintf: return printf(expr, ActionKind::kPrintf);
    case ExprKind::kPrintValue: return printf(expr, ActionKind::kPrintValue);
    case ExprKind::kSystem: return system(expr);
    case ExprKind::kCat: return printf(expr, ActionKind::kCat);
    case ExprKind::kErrorf: return printf(expr, ActionKind::kErrorf);
    case ExprKind::kWarnf: return printf(expr, ActionKind::kWarnf);
    case ExprKind::kSignal: return send_signal(expr);
    case ExprKind::kPrintMap: return map_action(expr, ActionKind::kPrintMap);
    case ExprKind::kClear: return map_action(expr, ActionKind::kClearMap);
    case ExprKind::kZero: return map_action(expr, ActionKind::kZeroMap);
    case ExprKind::kDelete: return delete_key(expr);
    case ExprKind::kExit: return exit(expr);
    case ExprKind::kTime: return time(expr);
    case ExprKind::kJoin: return join(expr);
    case ExprKind::kOverride: return override_return(expr);
    case ExprKind::kModifyVariable: return modify_variable(expr, Yields::kNothing);
    case ExprKind::kModifyMap: return modify_map(expr, Yields::kNothing);
    case ExprKind::kBlock: return block_value(expr, [this](const Expr& last) { effect(last); });
    case ExprKind::kConditional:
    case ExprKind::kElvis:
      if (expr.type.is_none()) return conditional(expr, [this](const Expr& side) { effect(side); });
      break;
    default: break;
  }
  if (!has_effects(expr)) return;
  FrameScope scope(frame_);
  if (expr.type.is_scalar()) return value(expr);
  materialise(expr, expr.type);
}

/// reserve, header, fields, submit. A full ring is counted, and `lost` runs.
void Emitter::send(Action action,
                   const std::function<void(const Place&)>& fields,
                   const std::function<void()>& lost) {
  FrameScope scope(frame_);
  auto size =
      static_cast<int32_t>(std::max<uint32_t>(action.record_size, sizeof(bundle::RecordHeader)));
  int number = draft_.add_action(std::move(action));
  Label reserved = code_.new_label(), done = code_.new_label();
  code_.load_map(Reg::r1, draft_.ring());
  code_.mov_imm(Reg::r2, size);
  code_.mov_imm(Reg::r3, 0);
  code_.call(Helper::kRingbufReserve);
  code_.jump_if_imm(bpf::kJne, Reg::r0, 0, reserved);
  bump(draft_.counter_without_room(number));
  if (lost) lost();
  code_.jump(done);
  code_.bind(reserved);
  {
    Held address = hold(Reg::r0);
    Place record{address.location(), 0};
    store_imm(record, 4, number);
    store_imm(record.at(4), 4, size);
    fields(record);
    get(address.location(), Reg::r1);
  }
  code_.mov_imm(Reg::r2, 0);
  code_.call(Helper::kRingbufSubmit);
  code_.bind(done);
}

/// printf() and print(value): arguments with effects come first, so that they happen even when the
/// ring is full.
void Emitter::printf(const Expr& expr, ActionKind kind) {
  FrameScope scope(frame_);
  Action action;
  action.kind = kind;
  action.format = expr.text;
  action.place = expr.place;
  std::vector<uint32_t> offsets;
  std::vector<std::optional<Place>> before;
  for (const ExprPtr& arg : expr.args) {
    offsets.push_back(add_field(action, arg->type));
    before.emplace_back();
    if (has_effects(*arg) || has_loops(*arg)) before.back() = materialise(*arg, arg->type);
  }
  send(std::move(action), [&](const Place& record) {
    for (size_t i = 0; i < expr.args.size(); ++i) {
      const Type& type = expr.args[i]->type;
      if (before[i]) {
        copy(*before[i], type, record.at(offsets[i]), type, Fill::kLoose);
      } else {
        into(*expr.args[i], record.at(offsets[i]), type, Fill::kLoose);
      }
    }
  });
}

void Emitter::map_action(const Expr& expr, ActionKind kind) {
  Action action;
  action.kind = kind;
  action.map = expr.map;
  action.top = expr.top;
  action.div = expr.div;
  send(std::move(action), [](const Place&) {});
}

void Emitter::exit(const Expr& expr) {
  FrameScope scope(frame_);
  Action action;
  action.kind = ActionKind::kExit;
  std::optional<Place> code;
  uint32_t offset = 0;
  if (!expr.args.empty()) {
    offset = add_field(action, Type::int64());
    code = materialise(*expr.args[0], Type::int64());
  }
  send(
      std::move(action),
      [&](const Place& record) {
        if (code) copy(*code, Type::int64(), record.at(offset), Type::int64(), Fill::kLoose);
      },
      [&] { leave_exit(code); });
  code_.jump(leave_);
}

/// Where the ring has no room: the status among the counters, where whoever reads the ring looks.
void Emitter::leave_exit(const std::optional<Place>& code) {
  Label skip = code_.new_label();
  int map = draft_.counters();
  const Place key = home_place(counter_key_);
  store_imm(key, 4, static_cast<int32_t>(bundle::Counter::kExit));
  map_arguments(map, key);
  code_.call(Helper::kMapLookupElem);
  code_.jump_if_imm(bpf::kJeq, Reg::r0, 0, skip);
  {
    Held address = hold(Reg::r0);
    Place slot{address.location(), 0};
    if (code)
      copy(*code, Type::int64(), slot, Type::int64(), Fill::kLoose);
    else
      store_imm(slot, 4, 0);
    store_imm(slot.at(4), 4, static_cast<int32_t>(bundle::kExitAsked >> 32));
  }
  code_.bind(skip);
}

void Emitter::override_return(const Expr& expr) {
  value_in(*expr.args[0], Reg::r2);
  code_.mov(Reg::r1, context(Reg::r1));
  code_.call(Helper::kOverrideReturn);
}

/// What a target of the user engine could write into its records reaches no shell: there only
/// numbers are passed on.
void Emitter::system(const Expr& expr) {
  const bool only_numbers =
      std::ranges::all_of(expr.args, [](const ExprPtr& arg) { return arg->type.is_number(); });
  if (!only_numbers) draft_.need_kernel("system() with a string");
  printf(expr, ActionKind::kSystem);
}

void Emitter::send_signal(const Expr& expr) {
  draft_.need_kernel(expr.is_thread ? "signal_thread()" : "signal()");
  value_in(*expr.args[0], Reg::r1);
  code_.call(expr.is_thread ? bpf::kSendSignalThread : Helper::kSendSignal);
}

void Emitter::time(const Expr& expr) {
  Action action;
  action.kind = ActionKind::kTime;
  action.format = expr.text;
  send(std::move(action), [](const Place&) {});
}

/// Field 0 is how many strings follow; they end at the first null address.
void Emitter::join(const Expr& expr) {
  FrameScope scope(frame_);
  Action action;
  action.kind = ActionKind::kJoin;
  action.format = expr.text;
  add_field(action, Type::uint64());
  Type string = Type::string(effective_strlen(draft_.options()));
  for (uint32_t i = 0; i < kMaxJoined; ++i) add_field(action, string);
  value(*expr.args[0]);
  Held argv = hold(Reg::r0);
  Action layout = action;
  send(std::move(action), [&](const Place& record) {
    Label done = code_.new_label();
    store_imm(record.at(layout.fields[0].offset), 8, 0);
    for (uint32_t i = 0; i < kMaxJoined; ++i)
      join_argument(argv.location(), record, layout, i, done);
    code_.bind(done);
  });
}

void Emitter::join_argument(
    const Location& argv, const Place& record, const Action& action, uint32_t index, Label done) {
  FrameScope scope(frame_);
  int pointer = frame_.allocate(8);
  auto clear = [this, pointer] { code_.store_imm(8, Reg::r10, pointer, 0); };
  clear();
  get(argv, Reg::r3);
  code_.alu_imm(bpf::kAdd, Reg::r3, static_cast<int32_t>(index * 8));
  code_.mov_imm(Reg::r2, 8);
  address_of({{}, pointer}, Reg::r1);
  probe_read(Memory::kBytes, clear);
  code_.load(8, Reg::r3, Reg::r10, pointer);
  code_.jump_if_imm(bpf::kJeq, Reg::r3, 0, done);
  const bundle::RecordField& field = action.fields[index + 1];
  Place text = record.at(field.offset);
  code_.mov_imm(Reg::r2, static_cast<int32_t>(field.type.size));
  address_of(text, Reg::r1);
  probe_read(Memory::kString, [this, text] { zero(text, 8); });
  store_imm(record.at(action.fields[0].offset), 8, static_cast<int32_t>(index) + 1);
}

}  // namespace spile::lang::codegen
