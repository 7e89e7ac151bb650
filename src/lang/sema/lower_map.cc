// Lowering of maps: their keys, their roles, their values.
#include <bit>

#include "lang/sema/lower.h"

namespace spile::lang {

using bundle::MapRole;
using typed::ExprKind;

bool Lowering::is_readable(MapRole role) {
  return role == MapRole::kValue || role == MapRole::kCount || role == MapRole::kSum ||
         role == MapRole::kAvg || role == MapRole::kStats || role == MapRole::kMin ||
         role == MapRole::kMax;
}

Type Lowering::type_when_read(const typed::Map& map) {
  return Type::integer(8, map.role != MapRole::kCount && map.value.is_signed);
}

int MapTable::find_or_add(const std::string& name, Span span) {
  auto [found, is_new] = by_name.try_emplace(name, static_cast<int>(maps.size()));
  if (is_new) {
    MapState state;
    state.map.name = name;
    state.map.span = span;
    maps.push_back(std::move(state));
    changed = true;
  }
  return found->second;
}

int Lowering::map_named(const ast::Map& map) {
  const bool is_macro =
      expansion_ != nullptr && expansion_->macro->kind == ast::Routine::Kind::kMacro;
  if (is_macro && !expansion_->maps.contains(map.name)) {
    diagnostics_
        .error(map.name_span, "macro {}: {} is none of its parameters", expansion_->macro->name,
               map.name)
        .with_hint("a macro uses only maps that it is given");
  }
  return maps_.find_or_add(resolve_map_name(map.name), map.name_span);
}

bool Lowering::join_key(int index, const Type& key, Span span) {
  typed::Map& map = maps_.maps[index].map;
  Type before = map.key;
  switch (join(map.key, key)) {
    case Join::kSame: return true;
    case Join::kWidened: maps_.changed = true; return true;
    case Join::kMismatch: break;
  }
  map.key = before;
  if (key.is_none() || before.is_none()) {
    diagnostics_.error(span, "{} is used with a key in one place and without in another", map.name);
  } else {
    diagnostics_.error(span, "the key of {} is {} here and {} elsewhere", map.name, to_string(key),
                       to_string(before));
  }
  return false;
}

bool Lowering::add_key(int index,
                       std::vector<ExprPtr> given,
                       Span span,
                       std::vector<ExprPtr>& parts) {
  if (given.size() == 1 && given[0]->kind == ExprKind::kTuple && !given[0]->args.empty() &&
      given[0]->type.names.empty()) {  // @x[(1, 2)] is @x[1, 2]
    std::vector<ExprPtr> elements = std::move(given[0]->args);
    given = std::move(elements);
  }
  std::vector<Type> types;
  for (ExprPtr& part : given) {
    if (part->type.is_none()) {
      diagnostics_.error(part->span, "this has no value, it cannot be a key");
      return false;
    }
    if (!as_value(part)) return false;
    types.push_back(widened(part->type));
  }
  parts = std::move(given);
  if (types.empty()) return join_key(index, Type::none(), span);
  if (types.size() == 1) return types[0].is_unknown() || join_key(index, types[0], span);
  return join_key(index, Type::tuple(std::move(types)), span);
}

bool Lowering::lower_key(const ast::Map& map, int index, std::vector<ExprPtr>& parts) {
  std::vector<ExprPtr> given;
  for (const ast::ExprPtr& key : map.keys) given.push_back(lower(*key));
  return add_key(index, std::move(given), map.span, parts);
}

bool Lowering::set_role(int index, MapRole role, Span span) {
  MapState& state = maps_.maps[index];
  if (!state.has_role) {
    state.has_role = true;
    state.map.role = role;
    maps_.changed = true;
  }
  if (state.map.role == role) return true;
  diagnostics_.error(span, "{} holds {} elsewhere, it cannot hold {} as well", state.map.name,
                     describe(state.map.role), describe(role));
  return false;
}

void Lowering::join_value(int index, const Type& type, Span span) {
  typed::Map& map = maps_.maps[index].map;
  Type before = map.value;
  switch (join(map.value, widened(type))) {
    case Join::kSame: return;
    case Join::kWidened: maps_.changed = true; return;
    case Join::kMismatch: break;
  }
  map.value = before;
  diagnostics_.error(span, "{} holds {} elsewhere, it cannot hold {} as well", map.name,
                     to_string(before), to_string(type));
}

bool Lowering::check_readable(int index, Span span) {
  const MapState& state = maps_.maps[index];
  if (!state.has_role) {
    diagnostics_.error(span, "undefined map: {} is read, but nothing is ever put into it",
                       state.map.name);
    return false;
  }
  if (!is_readable(state.map.role)) {
    refuse(span, fmt::format("reading {}, a map of {},", state.map.name, describe(state.map.role)));
    return false;
  }
  return true;
}

Lowering::ExprPtr Lowering::lower_map_read(const ast::Map& expr) {
  int index = map_named(expr);
  std::vector<ExprPtr> parts;
  bool has_key = lower_key(expr, index, parts);
  if (!check_readable(index, expr.span) || !has_key) return unknown(expr.span);
  const typed::Map& map = maps_.maps[index].map;
  ExprPtr value = make(ExprKind::kMapRead, map.value, expr.span);
  if (map.role != MapRole::kValue) {  // counted on each CPU: added up when it is read
    value->kind = ExprKind::kAggregateRead;
    value->type = type_when_read(map);
    value->number = std::bit_ceil(world_.cpu_count());
  }
  value->map = index;
  value->args = std::move(parts);
  return value;
}

Lowering::ExprPtr Lowering::modify_map(
    const ast::Map& target, ast::BinaryOp op, ExprPtr operand, typed::Yields yields, Span span) {
  int index = map_named(target);
  std::vector<ExprPtr> parts;
  bool has_key = lower_key(target, index, parts);
  if (!set_role(index, MapRole::kValue, span) || !has_key) return unknown(span);
  if (!check_operands(op, *operand, span)) return unknown(span);
  if (operand->type.is_unknown()) return unknown(span);
  if (op == ast::BinaryOp::kShl || op == ast::BinaryOp::kShr) {
    join_value(index, Type::literal(),
               span);  // the count does not change the sign of what is shifted
  } else if (!maps_.maps[index].map.value.is_pointer()) {
    join_value(index, operand->type, span);
  }
  const Type& type = maps_.maps[index].map.value;
  if (type.is_pointer()) {
    operand = scaled(op, std::move(operand), type, span);
    if (operand->type.is_unknown()) return unknown(span);
  }
  ExprPtr value = make(ExprKind::kModifyMap, type, span);
  value->map = index;
  value->op = op;
  value->yields = yields;
  value->args.push_back(std::move(operand));
  for (ExprPtr& part : parts) value->args.push_back(std::move(part));
  return value;
}

}  // namespace spile::lang
