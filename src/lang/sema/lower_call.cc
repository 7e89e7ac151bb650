// Lowering of function calls.
#include <algorithm>

#include "lang/sema/format.h"
#include "lang/sema/lower.h"

namespace spile::lang {

using typed::ExprKind;

namespace {

std::string arguments_text(const FunctionEntry& entry) {
  if (entry.min_args == entry.max_args) {
    if (entry.min_args == 0) return "no argument";
    return fmt::format("{} argument{}", entry.min_args, entry.min_args == 1 ? "" : "s");
  }
  return fmt::format("{} to {} arguments", entry.min_args, entry.max_args);
}

}  // namespace

Lowering::ExprPtr Lowering::lower_call(const ast::Call& call) {
  if (ExprPtr value = lower_macro(call.name, call.arguments, call.span)) return value;
  const BuiltinEntry* builtin = find_builtin(call.name);
  bool is_plain_name =
      builtin != nullptr || call.name == "retval" || call.name == "duration" || call.name == "args";
  if (is_plain_name && call.arguments.empty()) return lower_name(call.name, call.name_span);
  if (ExprPtr value = lower_named_variant(call)) return value;
  const FunctionEntry* entry = find_function(call.name);
  if (builtin != nullptr && entry == nullptr) {
    refuse(call.span, fmt::format("{}() with an argument", call.name));
    return unknown(call.span);
  }
  if (entry == nullptr) {
    Diagnostic& diagnostic = diagnostics_.error(call.name_span, "unknown function '{}'", call.name);
    std::string_view near = nearest_function(call.name);
    if (!near.empty()) diagnostic.with_hint("did you mean '{}'?", near);
    return unknown(call.span);
  }
  if (entry->function == Function::kNotBuilt) {
    refuse(call.span, fmt::format("{}()", call.name));
    return unknown(call.span);
  }
  size_t given = call.arguments.size();
  if (given < entry->min_args || given > entry->max_args) {
    diagnostics_.error(call.span, "{}() takes {}, {} given", call.name, arguments_text(*entry),
                       given);
    return unknown(call.span);
  }
  return lower_function(call, entry->function);
}

Lowering::ExprPtr Lowering::lower_function(const ast::Call& call, Function function) {
  switch (function) {
    case Function::kPrintf: return lower_printf(call, ExprKind::kPrintf);
    case Function::kSystem:
      if (!options_.allow_unsafe) {
        diagnostics_.error(call.span, "system() runs commands").with_hint("--unsafe allows it");
        return unknown(call.span);
      }
      return lower_printf(call, ExprKind::kSystem);
    case Function::kCat: return lower_printf(call, ExprKind::kCat);
    case Function::kNtop: return lower_ntop(call);
    case Function::kByteSwap: return lower_byte_swap(call);
    case Function::kStrftime: return lower_strftime(call);
    case Function::kMacaddr: return lower_macaddr(call);
    case Function::kStrlen: return lower_strlen(call);
    case Function::kStrncmp: return lower_strncmp(call);
    case Function::kStrcontains: return lower_strcontains(call, ExprKind::kContains);
    case Function::kStrstr: return lower_strcontains(call, ExprKind::kFind);
    case Function::kLen: return lower_len(call);
    case Function::kPton: return lower_pton(call);
    case Function::kErrorf: return lower_message(call, ExprKind::kErrorf);
    case Function::kWarnf: return lower_message(call, ExprKind::kWarnf);
    case Function::kAssert: return lower_assert(call);
    case Function::kStaticAssert: return lower_static_assert(call);
    case Function::kFail: return lower_fail(call);
    case Function::kFind: return lower_find(call);
    case Function::kTypeQuestion: return lower_type_question(call);
    case Function::kTypeinfo: return lower_typeinfo(call);
    case Function::kContainerOf: return lower_container_of(call);
    case Function::kCgroupId: return lower_cgroup_id(call);
    case Function::kCgroupPath: return lower_cgroup_path(call);
    case Function::kStrcap: return lower_strcap(call);
    case Function::kDefaultStringLength:
      return number(effective_strlen(options_), Type::literal(), call.span);
    case Function::kMemcmp: return lower_memcmp(call);
    case Function::kPerCpuAddress: return lower_per_cpu_address(call);
    case Function::kUserAddress: return lower_user_address(call);
    case Function::kKernelFunctionExists: return lower_kernel_function_exists(call);
    case Function::kIsError: return lower_is_error(call);
    case Function::kSignalThread:
    case Function::kSignal: return lower_signal(call);
    case Function::kGetopt: return lower_getopt(call);
    case Function::kNamedValue: {
      ExprPtr value = lower_number(*call.arguments[0], call.name + "()");
      return convert(std::move(value), Type::named(call.name), call.span);
    }
    case Function::kSamePointer: return lower(*call.arguments[0]);
    case Function::kPrint: return lower_print(call);
    case Function::kClear: return lower_whole_map(call, ExprKind::kClear);
    case Function::kZero: return lower_whole_map(call, ExprKind::kZero);
    case Function::kDelete: return lower_delete(call);
    case Function::kHasKey: return lower_has_key(call);
    case Function::kExit: return lower_exit(call);
    case Function::kTime: return lower_time(call);
    case Function::kJoin: return lower_join(call);
    case Function::kStr: return lower_str(call);
    case Function::kBuf: return lower_buf(call);
    case Function::kUserStack: return lower_stack(call, Type::Kind::kUserStack);
    case Function::kKernelStack: return lower_stack(call, Type::Kind::kKernelStack);
    case Function::kUserSymbol: return lower_symbol(call, Type::Kind::kUserSymbol);
    case Function::kKernelSymbol: return lower_symbol(call, Type::Kind::kKernelSymbol);
    case Function::kKernelAddress: return lower_kernel_address(call);
    case Function::kReg: return lower_reg(call);
    case Function::kOverride: return lower_override(call);
    default: break;
  }
  diagnostics_.error(call.span, "{}() can only be put into a map", call.name)
      .with_hint("@x = {}(...)", call.name);
  return unknown(call.span);
}

bool Lowering::literal_text(const ast::Expr& expr, std::string_view what, std::string& value) {
  bool is_parameter = expr.kind == ast::ExprKind::kPositional;
  ExprPtr lowered = lower(expr, is_parameter ? Want::kString : Want::kAny);
  if (lowered->kind == ExprKind::kText) {
    value = lowered->text;
    return true;
  }
  diagnostics_.error(expr.span, "{} must be a string literal", what);
  return false;
}

bool Lowering::constant(const ast::Expr& expr, std::string_view what, int64_t& value) {
  ExprPtr lowered = lower_number(expr, what);
  if (lowered->kind == ExprKind::kNumber && !lowered->type.is_unknown()) {
    value = static_cast<int64_t>(lowered->number);
    if (value >= 0 || lowered->type.is_signed) return true;
    diagnostics_.error(expr.span, "{} is too large", what);
    return false;
  }
  if (!lowered->type.is_unknown()) diagnostics_.error(expr.span, "{} must be a constant", what);
  return false;
}

const ast::Map* Lowering::map_argument(const ast::Call& call, size_t index) {
  const auto* map = ast::try_as<ast::Map>(call.arguments[index].get());
  if (map == nullptr)
    diagnostics_.error(call.arguments[index]->span, "{}() takes a map", call.name);
  return map;
}

// ---- output
// -----------------------------------------------------------------------------------------------------------

/// printf(), system(), cat(): a format and what it takes.
Lowering::ExprPtr Lowering::lower_printf(const ast::Call& call, ExprKind kind) {
  ExprPtr value = nothing(kind, call.span);
  bool has_format =
      literal_text(*call.arguments[0], fmt::format("the format of {}()", call.name), value->text);
  FormatScan scan = has_format ? scan_format(value->text) : FormatScan{};
  size_t wanted = scan.conversions.size(), given = call.arguments.size() - 1;
  if (!scan.fault.empty()) {
    diagnostics_.error(call.arguments[0]->span, "{}: {}", call.name, scan.fault);
  } else if (has_format && wanted != given) {
    diagnostics_.error(call.span, "{}: the format takes {} argument{}, {} given", call.name, wanted,
                       wanted == 1 ? "" : "s", given);
  }
  for (size_t i = 0; i < given; ++i) {
    const ast::Expr& argument = *call.arguments[i + 1];
    bool has_conversion = scan.fault.empty() && i < wanted;
    char letter = has_conversion ? scan.conversions[i].letter : 'd';
    value->args.push_back(lower(argument, letter == 's' ? Want::kString : Want::kAny));
    if (letter != 's') value->args.back()->type.forget_names();
    const Type& type = value->args.back()->type;
    if (type.is_none()) {
      diagnostics_.error(argument.span, "{}: this has no value", call.name);
    } else if (has_conversion && !accepts(letter, type)) {
      const Conversion& c = scan.conversions[i];
      Diagnostic& diagnostic = diagnostics_.error(
          argument.span, "{}: '{}' takes {}, not {}", call.name,
          value->text.substr(c.begin, c.end - c.begin), wanted_by(letter), to_string(type));
      if (letter == 's' && type.is_number())
        diagnostic.with_hint("str(...) reads the string at an address");
    }
  }
  return value;
}

Lowering::ExprPtr Lowering::lower_print(const ast::Call& call) {
  const auto* map = ast::try_as<ast::Map>(call.arguments[0].get());
  if (map != nullptr && map->keys.empty()) return lower_print_map(call, *map);
  if (call.arguments.size() > 1) {
    diagnostics_.error(call.span,
                       "print() takes top and div only for a whole map: print(@x, 5, 1000)");
    return unknown(call.span);
  }
  if (map != nullptr && maps_.maps[map_named(*map)].map.role == bundle::MapRole::kStats) {
    refuse(call.span, "print() of one key of a map of stats()");
    return unknown(call.span);
  }
  ExprPtr value = nothing(ExprKind::kPrintValue, call.span);
  value->args.push_back(lower(*call.arguments[0]));
  if (value->args[0]->type.is_none())
    diagnostics_.error(call.arguments[0]->span, "print: this has no value");
  as_value(value->args[0]);
  return value;
}

Lowering::ExprPtr Lowering::lower_print_map(const ast::Call& call, const ast::Map& map) {
  ExprPtr value = nothing(ExprKind::kPrintMap, call.span);
  value->map = map_named(map);
  if (!maps_.maps[value->map].has_role) {
    diagnostics_.error(map.span, "undefined map: nothing is ever put into {}", map.name);
  }
  int64_t top = 0, div = 0;
  if (call.arguments.size() > 1 &&
      constant(*call.arguments[1], "the second argument of print()", top) && top < 0) {
    diagnostics_.error(call.arguments[1]->span, "print: how many to print cannot be negative");
  }
  if (call.arguments.size() > 2 &&
      constant(*call.arguments[2], "the third argument of print()", div) && div <= 0) {
    diagnostics_.error(call.arguments[2]->span, "print: the divisor must be positive");
  }
  value->top = static_cast<uint64_t>(top);
  value->div = static_cast<uint64_t>(div);
  return value;
}

Lowering::ExprPtr Lowering::lower_whole_map(const ast::Call& call, ExprKind kind) {
  const ast::Map* map = map_argument(call, 0);
  if (map == nullptr) return unknown(call.span);
  if (!map->keys.empty()) {
    diagnostics_.error(map->span, "{}() takes a whole map, without a key", call.name);
    return unknown(call.span);
  }
  ExprPtr value = nothing(kind, call.span);
  value->map = map_named(*map);
  if (!maps_.maps[value->map].has_role) {
    diagnostics_.error(map->span, "undefined map: nothing is ever put into {}", map->name);
  }
  return value;
}

Lowering::ExprPtr Lowering::lower_time(const ast::Call& call) {
  ExprPtr value = nothing(ExprKind::kTime, call.span);
  value->text = "%H:%M:%S\n";
  if (!call.arguments.empty())
    literal_text(*call.arguments[0], "the format of time()", value->text);
  return value;
}

Lowering::ExprPtr Lowering::lower_join(const ast::Call& call) {
  ExprPtr value = nothing(ExprKind::kJoin, call.span);
  value->text = " ";
  value->args.push_back(lower_number(*call.arguments[0], "join()"));
  if (call.arguments.size() > 1)
    literal_text(*call.arguments[1], "the separator of join()", value->text);
  return value;
}

Lowering::ExprPtr Lowering::lower_exit(const ast::Call& call) {
  ExprPtr value = nothing(ExprKind::kExit, call.span);
  if (!call.arguments.empty()) value->args.push_back(lower_number(*call.arguments[0], "exit()"));
  return value;
}

// ---- maps
// -------------------------------------------------------------------------------------------------------------

/// delete(@x), delete(@x[k]), delete(@x, k).
Lowering::ExprPtr Lowering::lower_delete(const ast::Call& call) {
  const ast::Map* map = map_argument(call, 0);
  if (map == nullptr) return unknown(call.span);
  ExprPtr value = nothing(ExprKind::kDelete, call.span);
  value->map = map_named(*map);
  std::vector<ExprPtr> given;
  for (const ast::ExprPtr& key : map->keys) given.push_back(lower(*key));
  if (call.arguments.size() == 2) {
    if (!map->keys.empty()) {
      diagnostics_.error(call.span, "delete() takes @x[key] or @x, key, not both");
      return unknown(call.span);
    }
    given.push_back(lower(*call.arguments[1]));
  }
  if (!maps_.maps[value->map].has_role) {
    diagnostics_.error(map->span, "undefined map: nothing is ever put into {}", map->name);
  }
  if (!add_key(value->map, std::move(given), call.span, value->args)) return unknown(call.span);
  const typed::Map& known = maps_.maps[value->map].map;
  if (!known.has_buckets() && !known.is_scalar())
    value->type = Type::boolean();  // whether it was there
  return value;
}

Lowering::ExprPtr Lowering::lower_has_key(const ast::Call& call) {
  const ast::Map* map = map_argument(call, 0);
  if (map == nullptr) return unknown(call.span);
  if (!map->keys.empty()) {
    diagnostics_.error(map->span, "has_key() takes a whole map and a key: has_key({}, key)",
                       map->name);
    return unknown(call.span);
  }
  ExprPtr value = make(ExprKind::kHasKey, Type::boolean(), call.span);
  value->map = map_named(*map);
  std::vector<ExprPtr> given;
  given.push_back(lower(*call.arguments[1]));
  if (!add_key(value->map, std::move(given), call.span, value->args)) return unknown(call.span);
  const MapState& state = maps_.maps[value->map];
  if (!state.has_role) {
    diagnostics_.error(map->span, "undefined map: nothing is ever put into {}", map->name);
  } else if (state.map.has_buckets()) {
    refuse(call.span, fmt::format("has_key() of a map of {}", describe(state.map.role)));
  }
  return value;
}

// ---- memory
// -----------------------------------------------------------------------------------------------------------

/// str($1), str($1 + 2): the text of a parameter. str(address[, length]).
Lowering::ExprPtr Lowering::lower_str(const ast::Call& call) {
  const ast::Expr* source = call.arguments[0].get();
  int64_t skip = 0;
  if (const auto* sum = ast::try_as<ast::Binary>(source);
      sum != nullptr && sum->op == ast::BinaryOp::kAdd &&
      sum->left->kind == ast::ExprKind::kPositional) {
    if (!constant(*sum->right, "the offset into a parameter", skip)) return unknown(call.span);
    source = sum->left.get();
  }
  bool is_parameter = source->kind == ast::ExprKind::kPositional;
  ExprPtr address = is_parameter ? lower(*source, Want::kString) : lower(*source);
  int64_t max = effective_strlen(options_);
  if (address->kind == ExprKind::kText && is_parameter) {
    size_t from = std::min(static_cast<size_t>(std::max<int64_t>(skip, 0)), address->text.size());
    int64_t length = max;
    if (call.arguments.size() > 1 &&
        !constant(*call.arguments[1], "the length of a parameter", length))
      return unknown(call.span);
    return text(address->text.substr(from, static_cast<size_t>(std::max<int64_t>(length, 0))),
                call.span);
  }
  // `str($p->comm)` of a char array: what the field is anyway.
  if (address->kind == ExprKind::kStr && address->is_array) return address;
  if (address->type.kind == Type::Kind::kArray) address->type = Type::void_pointer();
  if (address->type.is_string()) {
    diagnostics_.error(source->span, "str() takes an address, and this is a string already");
    return unknown(call.span);
  }
  if (!expect_number(*address, "str()") || address->type.is_unknown()) return unknown(call.span);
  ExprPtr value = make(ExprKind::kStr, Type::string(static_cast<uint32_t>(max)), call.span);
  value->number = static_cast<uint64_t>(max);
  value->args.push_back(std::move(address));
  if (call.arguments.size() > 1) {
    ExprPtr length = lower_number(*call.arguments[1], "the length of str()");
    if (length->type.is_unknown()) return unknown(call.span);
    if (length->kind != ExprKind::kNumber) {
      value->args.push_back(std::move(length));
      return value;
    }
    if (static_cast<int64_t>(length->number) < 0 && length->type.is_signed) {
      diagnostics_.error(length->span, "str: the length cannot be negative");
      return unknown(call.span);
    }
    value->number = std::min(length->number, static_cast<uint64_t>(max) - 1) + 1;  // and the NUL
    value->type.size = static_cast<uint32_t>(value->number);
  }
  return value;
}

Lowering::ExprPtr Lowering::lower_buf(const ast::Call& call) {
  ExprPtr address = lower(*call.arguments[0]);
  const Type source = address->type;
  if (source.is_place()) address->type = Type::void_pointer();
  if (!expect_number(*address, "buf()")) return unknown(call.span);
  if (call.arguments.size() < 2 && source.kind == Type::Kind::kArray && source.count > 0) {
    ExprPtr all = make(ExprKind::kBuf, Type{}, call.span);
    all->number = std::min<uint64_t>(types_.size_of(source), effective_strlen(options_));
    all->type = Type::buffer(static_cast<uint32_t>(all->number));
    all->args.push_back(std::move(address));
    return all;
  }
  if (call.arguments.size() < 2) {
    diagnostics_.error(call.span, "buf() of an address needs a length: buf(address, bytes)");
    return unknown(call.span);
  }
  ExprPtr length = lower_number(*call.arguments[1], "the length of buf()");
  if (address->type.is_unknown() || length->type.is_unknown()) return unknown(call.span);
  uint64_t max = effective_strlen(options_);
  bool is_constant = length->kind == ExprKind::kNumber;
  if (is_constant && (length->number == 0 ||
                      (static_cast<int64_t>(length->number) < 0 && length->type.is_signed))) {
    diagnostics_.error(length->span, "buf: the length must be positive");
    return unknown(call.span);
  }
  if (is_constant && length->number > max) {
    diagnostics_.warning(length->span, "buf: only the first {} bytes are read", max)
        .with_hint("raise BPFTRACE_MAX_STRLEN");
  }
  ExprPtr value = make(ExprKind::kBuf, Type{}, call.span);
  value->number = is_constant ? std::min(length->number, max) : max;
  value->type = Type::buffer(static_cast<uint32_t>(value->number));
  value->args.push_back(std::move(address));
  if (!is_constant) value->args.push_back(std::move(length));
  return value;
}

}  // namespace spile::lang
