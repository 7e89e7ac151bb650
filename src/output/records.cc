#include "output/records.h"

#include <cstring>
#include <ctime>

#include "bundle/pending.h"
#include "output/commands.h"
#include "output/format.h"

namespace spile::output {

using bundle::Action;
using bundle::ActionKind;
using bundle::RecordHeader;

/// The action that the header names; the record is exactly as long as that action says.
Result<const Action*> Records::action_of(std::span<const uint8_t> record) const {
  RecordHeader header{};
  if (record.size() < sizeof(header))
    return fail(ErrorCode::kCorrupt, "a record of {} bytes has no header", record.size());
  std::memcpy(&header, record.data(), sizeof(header));
  if (header.action >= bundle_.actions.size())
    return fail(ErrorCode::kCorrupt, "a record names action {} of {}", header.action,
                bundle_.actions.size());
  const Action& action = bundle_.actions[header.action];
  if (header.size != action.record_size || record.size() < action.record_size)
    return fail(ErrorCode::kCorrupt, "a record for action {} says {} bytes, has {} and needs {}",
                header.action, header.size, record.size(), action.record_size);
  return &action;
}

bool Records::is_exit(std::span<const uint8_t> record) const {
  auto action = action_of(record);
  return action && (*action)->kind == ActionKind::kExit;
}

Result<std::optional<int>> Records::handle(std::span<const uint8_t> record, engine::Trace& trace) {
  SPILE_TRY(const Action* action, action_of(record));
  record = record.first(action->record_size);
  if (action->kind == ActionKind::kExit) {
    SPILE_TRY(const int code, exit_code(*action, record));
    return code;
  }
  SPILE_TRY_VOID(run(*action, record, trace));
  return std::nullopt;
}

Result<void> Records::act(size_t action, engine::Trace& trace) {
  if (action >= bundle_.actions.size() || !bundle::is_of_a_map(bundle_.actions[action]))
    return fail(ErrorCode::kInternal, "action {} is not of a map", action);
  return run(bundle_.actions[action], {}, trace);
}

Result<void> Records::run(const Action& action,
                          std::span<const uint8_t> record,
                          engine::Trace& trace) {
  switch (action.kind) {
    case ActionKind::kPrintf: {
      SPILE_TRY(const std::string text, format_printf(action.format, action.fields, record,
                                                      Meaning(bundle_, names_, &trace)));
      return output_.printf(text);
    }
    case ActionKind::kSystem:
    case ActionKind::kCat: {
      SPILE_TRY(const std::string text, format_printf(action.format, action.fields, record,
                                                      Meaning(bundle_, names_, &trace)));
      // What was printed before comes before what the command says.
      SPILE_TRY_VOID(output_.flush());
      if (action.kind == ActionKind::kSystem) return output_.system(run_command(text));
      return output_.cat(read_for_cat(text, bundle_.max_cat_bytes));
    }
    case ActionKind::kErrorf:
    case ActionKind::kWarnf: {
      SPILE_TRY(const std::string text, format_printf(action.format, action.fields, record,
                                                      Meaning(bundle_, names_, &trace)));
      return output_.message(action.kind == ActionKind::kErrorf, action.place, text);
    }
    case ActionKind::kPrintMap: return print_map(action.map, {action.top, action.div}, trace);
    case ActionKind::kPrintValue: return print_value(action, record, trace);
    case ActionKind::kClearMap:
      return has_map(action.map) ? trace.clear_map(action.map) : no_map(action.map);
    case ActionKind::kZeroMap:
      return has_map(action.map) ? trace.zero_map(action.map) : no_map(action.map);
    case ActionKind::kTime:
      return output_.time(
          format_time(action.format.empty() ? "%H:%M:%S\n" : action.format, std::time(nullptr)));
    case ActionKind::kJoin: return join(action, record);
    case ActionKind::kExit: break;
  }
  return fail(ErrorCode::kInternal, "an action of unknown kind {}", static_cast<int>(action.kind));
}

Result<int> Records::exit_code(const Action& action, std::span<const uint8_t> record) const {
  if (action.fields.empty()) return 0;
  SPILE_TRY(const Value code, read_field(action.fields[0], record, bundle_));
  return static_cast<int>(code.bits);
}

Result<void> Records::print_value(const Action& action,
                                  std::span<const uint8_t> record,
                                  engine::Trace& trace) {
  if (action.fields.empty()) return fail(ErrorCode::kInternal, "print() has no value");
  SPILE_TRY(const Value value,
            read_field(action.fields[0], record, Meaning(bundle_, names_, &trace)));
  return output_.value(value);
}

/// Field 0 says how many of the strings that follow count.
Result<void> Records::join(const Action& action, std::span<const uint8_t> record) {
  if (action.fields.empty()) return fail(ErrorCode::kInternal, "join() has no count");
  SPILE_TRY(const Value count, read_field(action.fields[0], record, bundle_));
  if (count.bits > action.fields.size() - 1)
    return fail(ErrorCode::kCorrupt, "join() has {} strings and room for {}", count.bits,
                action.fields.size() - 1);
  std::string text;
  for (size_t i = 1; i <= count.bits; i++) {
    SPILE_TRY(const Value part, read_field(action.fields[i], record, bundle_));
    if (i != 1) text += action.format;
    text += to_text(part);
  }
  return output_.join(text + "\n");
}

bool Records::has_map(int map) const {
  return map >= 0 && static_cast<size_t>(map) < bundle_.maps.size();
}

Result<void> Records::no_map(int map) const {
  return fail(ErrorCode::kInternal, "an action names map {} of {}", map, bundle_.maps.size());
}

Result<void> Records::print_map(int map, const PrintLimits& limits, engine::Trace& trace) {
  if (!has_map(map)) return no_map(map);
  SPILE_TRY(const auto entries, trace.read_map(map));
  PrintLimits of_output = limits;
  of_output.joins_equal_texts = output_.joins_equal_texts();
  SPILE_TRY(const MapRows rows,
            merge_map(Meaning(bundle_, names_, &trace), bundle_.maps[static_cast<size_t>(map)],
                      entries, of_output));
  return output_.map(rows);
}

/// A map that makes no sense does not keep the others from being printed.
Result<void> Records::print_maps(engine::Trace& trace) {
  Result<void> first_fault;
  for (size_t i = 0; i < bundle_.maps.size(); i++) {
    if (bundle_.maps[i].name.empty()) continue;
    auto printed = print_map(static_cast<int>(i), {}, trace);
    if (printed) continue;
    if (printed.error().code != ErrorCode::kCorrupt) return printed;
    if (first_fault) first_fault = std::move(printed);
  }
  return first_fault;
}

}  // namespace spile::output
