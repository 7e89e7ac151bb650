// Lowering of values: literals, names, fields.
#include <algorithm>
#include <array>

#include "lang/sema/lower.h"
#include "lang/syntax/lexer.h"

namespace spile::lang {

using ast::BinaryOp;
using bundle::ContextKind;
using bundle::ProbeKind;
using typed::ExprKind;

namespace {

namespace regs = bpf::x86_64_regs;
constexpr std::array kArgumentOffsets = {regs::kDi, regs::kSi, regs::kDx,
                                         regs::kCx, regs::kR8, regs::kR9};

}  // namespace

Lowering::ExprPtr Lowering::make(ExprKind kind, Type type, Span span) {
  auto expr = std::make_unique<typed::Expr>();
  expr->kind = kind;
  expr->type = std::move(type);
  expr->span = span;
  return expr;
}

Lowering::ExprPtr Lowering::number(uint64_t value, Type type, Span span) {
  ExprPtr expr = make(ExprKind::kNumber, std::move(type), span);
  expr->number = value;
  return expr;
}

Lowering::ExprPtr Lowering::text(std::string value, Span span) {
  value.resize(std::min(value.size(), value.find('\0')));
  ExprPtr expr = make(ExprKind::kText, Type::string(static_cast<uint32_t>(value.size()) + 1), span);
  expr->text = std::move(value);
  return expr;
}

Lowering::ExprPtr Lowering::lower(const ast::Expr& expr, Want want) {
  switch (expr.kind) {
    case ast::ExprKind::kInteger: return lower_integer(ast::as<ast::Integer>(expr));
    case ast::ExprKind::kString: return text(ast::as<ast::String>(expr).value, expr.span);
    case ast::ExprKind::kBool:
      return number(ast::as<ast::Bool>(expr).value, Type::boolean(), expr.span);
    case ast::ExprKind::kIdentifier: return lower_identifier(ast::as<ast::Identifier>(expr));
    case ast::ExprKind::kPositional: return lower_positional(ast::as<ast::Positional>(expr), want);
    case ast::ExprKind::kPositionalCount:
      return number(options_.positional.size(), Type::literal(), expr.span);
    case ast::ExprKind::kVariable: return lower_variable(ast::as<ast::Variable>(expr));
    case ast::ExprKind::kMap: return lower_map_read(ast::as<ast::Map>(expr));
    case ast::ExprKind::kIndex: return lower_index(ast::as<ast::Index>(expr));
    case ast::ExprKind::kField: return lower_field(ast::as<ast::Field>(expr));
    case ast::ExprKind::kTupleField: return lower_tuple_field(ast::as<ast::TupleField>(expr));
    case ast::ExprKind::kUnary: return lower_unary(ast::as<ast::Unary>(expr));
    case ast::ExprKind::kIncDec: return lower_inc_dec(ast::as<ast::IncDec>(expr));
    case ast::ExprKind::kBinary: return lower_binary(ast::as<ast::Binary>(expr));
    case ast::ExprKind::kTernary: return lower_ternary(ast::as<ast::Ternary>(expr));
    case ast::ExprKind::kCast: return lower_cast(ast::as<ast::Cast>(expr));
    case ast::ExprKind::kTuple: return lower_tuple(ast::as<ast::Tuple>(expr));
    case ast::ExprKind::kCall: return lower_call(ast::as<ast::Call>(expr));
    case ast::ExprKind::kSizeof: return lower_sizeof(ast::as<ast::Sizeof>(expr));
    case ast::ExprKind::kRecord: return lower_record(ast::as<ast::Record>(expr));
    case ast::ExprKind::kOffsetof: return lower_offsetof(ast::as<ast::Offsetof>(expr));
    case ast::ExprKind::kTypeArgument: refuse(expr.span, "a type as an argument"); break;
    case ast::ExprKind::kBlock:
      return lower_block_expr(ast::as<ast::BlockExpr>(expr).block, expr.span);
    case ast::ExprKind::kIf:
      return lower_if_expr(ast::as<ast::If>(*ast::as<ast::IfExpr>(expr).statement), expr.span);
    case ast::ExprKind::kComptime: {
      ExprPtr value = lower(*ast::as<ast::Comptime>(expr).operand, want);
      if (check_comptime(*value)) return value;
      break;
    }
  }
  return unknown(expr.span);
}

bool Lowering::expect_number(const typed::Expr& expr, std::string_view what) {
  if (expr.type.is_unknown() || expr.type.is_number()) return true;
  if (expr.type.is_none()) {
    diagnostics_.error(expr.span, "{} needs a number, and this has no value", what);
  } else {
    diagnostics_.error(expr.span, "{} needs a number, not {}", what, to_string(expr.type));
  }
  return false;
}

Lowering::ExprPtr Lowering::lower_number(const ast::Expr& expr, std::string_view what) {
  ExprPtr value = lower(expr);
  return expect_number(*value, what) ? std::move(value) : unknown(expr.span);
}

Lowering::ExprPtr Lowering::lower_integer(const ast::Integer& expr) {
  bool fits = expr.value <= static_cast<uint64_t>(INT64_MAX);
  return number(expr.value, fits && !expr.is_unsigned ? Type::literal() : Type::uint64(),
                expr.span);
}

Lowering::ExprPtr Lowering::lower_positional(const ast::Positional& expr, Want want) {
  size_t index = expr.index;
  bool is_given = index >= 1 && index <= options_.positional.size();
  const std::string value = is_given ? options_.positional[index - 1] : "";
  if (want == Want::kString) return text(value, expr.span);
  if (!is_given) return number(0, Type::literal(), expr.span);
  bool is_negative = value.starts_with('-');
  auto parsed = read_number(std::string_view(value).substr(is_negative ? 1 : 0));
  if (!parsed) return text(value, expr.span);
  if (is_negative) return number(0 - parsed->value, Type::int64(), expr.span);
  return number(
      parsed->value,
      parsed->value <= static_cast<uint64_t>(INT64_MAX) ? Type::literal() : Type::uint64(),
      expr.span);
}

Lowering::ExprPtr Lowering::lower_identifier(const ast::Identifier& expr) {
  if (expansion_ != nullptr) {
    const auto parameter = expansion_->expressions.find(expr.name);
    if (parameter != expansion_->expressions.end()) return lower_parameter(*parameter->second);
  }
  if (ExprPtr value = lower_macro(expr.name, {}, expr.span)) return value;
  return lower_name(expr.name, expr.span);
}

/// The name stands for another expression; inside of that it stands for nothing.
Lowering::ExprPtr Lowering::lower_define(const std::string& name, const ast::Expr& body) {
  if (!expanding_.insert(name).second) {
    diagnostics_.error(body.span, "#define {} needs itself", name);
    return unknown(body.span);
  }
  ExprPtr value = lower(body);
  expanding_.erase(name);
  return value;
}

/// Names of #define and of enums.
bool Lowering::lower_constant(const std::string& name, Span span, ExprPtr& value) {
  if (const ast::Expr* body = types_.expression(name)) {
    value = lower_define(name, *body);
    value->span = span;
    return true;
  }
  const auto known = types_.constant(name);
  if (!known) return false;
  value = number(static_cast<uint64_t>(*known), *known < 0 ? Type::int64() : Type::literal(), span);
  if (auto of = types_.enumeration_of(name)) {
    value->type.name = std::move(of->name);
    value->type.layout = std::move(of->layout);
  }
  return true;
}

namespace {

/// How a field of an event is read, or kUnknown in the type when it cannot be.
struct FieldAccess {
  ExprKind kind = ExprKind::kContext;
  Type type;
};

/// "const struct file *" -> "struct file"; "" for any other type.
std::string pointed_struct(std::string_view type) {
  constexpr std::string_view kConst = "const ";
  if (type.starts_with(kConst)) type.remove_prefix(kConst.size());
  if (!type.starts_with("struct ") && !type.starts_with("union ")) return {};
  if (!type.ends_with('*') || type.find('*') != type.size() - 1) return {};
  type.remove_suffix(1);
  while (type.ends_with(' ')) type.remove_suffix(1);
  return std::string(type);
}

FieldAccess access_of(const EventField& field, uint32_t max_strlen) {
  switch (field.shape) {
    case EventField::Shape::kInt: {
      bool is_plain = field.size == 1 || field.size == 2 || field.size == 4 || field.size == 8;
      return {ExprKind::kContext, is_plain ? Type::integer(field.size, field.is_signed) : Type{}};
    }
    case EventField::Shape::kPointer: {
      // `char *` may be given to str(), and so may everything else: the type only matters when it
      // is printed.
      const std::string structure = pointed_struct(field.type);
      Type type =
          structure.empty() ? Type::void_pointer() : Type::pointer_to(Type::structure(structure));
      return {ExprKind::kContext, field.size == 8 ? std::move(type) : Type{}};
    }
    case EventField::Shape::kCharArray:
      return {ExprKind::kContextString, Type::string(std::min(field.size, max_strlen))};
    case EventField::Shape::kDataLocStr:
    case EventField::Shape::kRelLocStr:
      return {ExprKind::kContextDataLoc, Type::string(max_strlen)};
    default: return {};
  }
}

}  // namespace

/// An array of integers in a record, as a copy; kUnknown: it is none.
Type Lowering::array_of_event(const EventField& field) {
  if (field.shape != EventField::Shape::kIntArray) return {};
  const auto element = types_.named(field.type.substr(0, field.type.find('[')));
  if (!element || !element->is_int() || field.size % element->size != 0 ||
      field.size > kMaxTupleBytes)
    return {};
  return types_.object(Type::array_of(*element, field.size / element->size));
}

Lowering::ExprPtr Lowering::lower_name(const std::string& name, Span span) {
  if (name == "args") {
    if (instance_.context.kind != ContextKind::kTracepoint) {
      refuse(span, "args as a whole of other probes than tracepoints");
      return unknown(span);
    }
    // A record of all fields that a program may read.
    ExprPtr whole = make(ExprKind::kTuple, Type::tuple({}), span);
    for (const EventField& field : instance_.events.front().fields) {
      const bool is_readable = !access_of(field, effective_strlen(options_)).type.is_unknown() ||
                               !array_of_event(field).is_unknown();
      if (field.offset < 8 || !is_readable) continue;
      ast::Field one;
      one.name = field.name;
      one.span = one.name_span = span;
      whole->args.push_back(lower_event_field(one));
      whole->type.fields.push_back(widened(whole->args.back()->type));
      whole->type.names.push_back(field.name);
    }
    return whole;
  }
  if (name == "retval") return lower_retval(span);
  if (name == "duration") return lower_duration(span);
  if (name.starts_with("arg") && name.size() > 3 &&
      std::ranges::all_of(name.substr(3), [](char c) { return c >= '0' && c <= '9'; })) {
    return lower_argument_register(
        name.size() > 5 ? 99 : static_cast<uint32_t>(std::stoul(name.substr(3))), span);
  }
  if (name == "ustack" || name == "kstack") {
    auto kind = name == "ustack" ? Type::Kind::kUserStack : Type::Kind::kKernelStack;
    return stack(kind, options_.stack_mode, kMaxStackFrames, span);
  }
  if (ExprPtr value = lower_derived(name, span)) return value;
  const BuiltinEntry* entry = find_builtin(name);
  if (entry == nullptr) {
    if (ExprPtr value; lower_constant(name, span, value)) return value;
    Diagnostic& diagnostic = diagnostics_.error(span, "unknown name '{}'", name);
    std::string_view near = nearest_builtin(name);
    if (!near.empty()) {
      diagnostic.with_hint("did you mean '{}'?", near);
    } else if (find_function(name) != nullptr) {
      diagnostic.with_hint("it is a function: {}(...)", name);
    }
    return unknown(span);
  }
  if (!entry->is_built) {
    refuse(span, name);
    return unknown(span);
  }
  ProbeKind kind = instance_.context.probe;
  bool has_function = kind == ProbeKind::kUprobe || kind == ProbeKind::kUretprobe ||
                      kind == ProbeKind::kKprobe || kind == ProbeKind::kKretprobe ||
                      kind == ProbeKind::kFentry || kind == ProbeKind::kFexit;
  if (entry->builtin == typed::Builtin::kFunc && !has_function) {
    diagnostics_.error(
        span, "func is only there in uprobe, uretprobe, kprobe, kretprobe, fentry and fexit");
    return unknown(span);
  }
  ExprPtr expr = make(ExprKind::kBuiltin, type_of(entry->builtin), span);
  expr->builtin = entry->builtin;
  return expr;
}

Lowering::ExprPtr Lowering::lower_argument_register(uint32_t index, Span span) {
  ProbeKind kind = instance_.context.probe;
  if (kind == ProbeKind::kUsdt) return lower_usdt_argument(index, span);
  if (bundle::is_typed(kind) && kind != ProbeKind::kIter) return lower_typed_argument(index, span);
  if (kind == ProbeKind::kTracepoint) {
    diagnostics_.error(span, "arg{} is not there in a tracepoint", index)
        .with_hint("use its fields: args.name");
  } else if (instance_.context.kind != ContextKind::kRegs || bundle::is_sampling(kind)) {
    diagnostics_.error(
        span, "arg{} is only there where functions are probed, in usdt and in rawtracepoint",
        index);
  } else if (index >= kArgumentOffsets.size()) {
    diagnostics_.error(span, "arg{}: only the first six arguments are in registers: arg0 to arg5",
                       index);
  } else {
    bool is_return = kind == ProbeKind::kUretprobe || kind == ProbeKind::kKretprobe;
    ExprPtr expr =
        make(is_return ? ExprKind::kEntryArgument : ExprKind::kContext, Type::uint64(), span);
    expr->offset = static_cast<uint32_t>(kArgumentOffsets[index]);
    return expr;
  }
  return unknown(span);
}

Lowering::ExprPtr Lowering::lower_retval(Span span) {
  ProbeKind kind = instance_.context.probe;
  if (kind == ProbeKind::kFexit) return lower_typed_result(span);
  if (kind != ProbeKind::kKretprobe && kind != ProbeKind::kUretprobe) {
    diagnostics_.error(span, "retval is only there in kretprobe, uretprobe and fexit");
    return unknown(span);
  }
  ExprPtr expr = make(ExprKind::kContext, Type::int64(), span);
  expr->offset = bpf::x86_64_regs::kAx;
  return expr;
}

Lowering::ExprPtr Lowering::lower_duration(Span span) {
  ProbeKind kind = instance_.context.probe;
  if (kind == ProbeKind::kUretprobe || kind == ProbeKind::kKretprobe)
    return make(ExprKind::kDuration, Type::uint64(), span);
  diagnostics_.error(span, "duration is only there in uretprobe and kretprobe");
  return unknown(span);
}

Lowering::ExprPtr Lowering::lower_variable(const ast::Variable& expr) {
  int variable = find_variable(expr.name);
  if (variable < 0) {
    report_undefined(expr.name, expr.span);
    return unknown(expr.span);
  }
  ExprPtr value = make(ExprKind::kVariable, instance_.variables[variable].type, expr.span);
  value->variable = variable;
  return value;
}

// ---- fields
// -----------------------------------------------------------------------------------------------------------

/// The context of an iterator is called ctx.
bool Lowering::is_args(const ast::Expr& expr) const {
  const char* called = instance_.context.probe == ProbeKind::kIter ? "ctx" : "args";
  if (const auto* name = ast::try_as<ast::Identifier>(&expr)) return name->name == called;
  const auto* call = ast::try_as<ast::Call>(&expr);
  return call != nullptr && call->name == "args" && call->arguments.empty();
}

Lowering::ExprPtr Lowering::lower_event_field(const ast::Field& expr) {
  if (instance_.context.probe == ProbeKind::kUsdt) return lower_usdt_field(expr);
  if (instance_.context.kind == ContextKind::kRegs) return lower_function_parameter(expr);
  if (instance_.context.kind == ContextKind::kNone) {
    diagnostics_.error(expr.span,
                       "args is only there in tracepoint, rawtracepoint, fentry and fexit");
    return unknown(expr.span);
  }
  const Tracepoint& event = instance_.events.front();
  auto field = std::ranges::find(event.fields, expr.name, &EventField::name);
  instance_.used_fields.insert(expr.name);
  if (field == event.fields.end()) {
    std::vector<std::string_view> names;
    for (const EventField& other : event.fields) names.push_back(other.name);
    Diagnostic& diagnostic =
        diagnostics_.error(expr.name_span, "{} has no {} '{}'", name_of(event),
                           is_typed(instance_.context.probe) ? "argument" : "field", expr.name);
    std::string_view near = nearest(expr.name, names);
    if (!near.empty()) diagnostic.with_hint("did you mean '{}'?", near);
    return unknown(expr.span);
  }
  if (is_typed(instance_.context.probe)) return lower_typed_field(*field, expr.name_span);
  if (field->offset < 8) {
    diagnostics_
        .error(expr.name_span,
               "args.{}: the kernel hides the first 8 bytes of a record from programs", expr.name)
        .with_hint("pid, tid and probe say the same");
    return unknown(expr.span);
  }
  if (const Type array = array_of_event(*field); !array.is_unknown()) {
    ExprPtr whole = make(ExprKind::kContextBytes, array, expr.span);
    whole->offset = field->offset;
    return whole;
  }
  FieldAccess access = access_of(*field, effective_strlen(options_));
  if (access.type.is_unknown()) {
    diagnostics_.error(expr.name_span, "args.{}: a field of type '{}' is not built yet", expr.name,
                       field->type);
    return unknown(expr.span);
  }
  ExprPtr value = make(access.kind, access.type, expr.span);
  value->offset = field->offset;
  value->is_relative = field->shape == EventField::Shape::kRelLocStr;
  return value;
}

/// args.name in a uprobe: debug information says which register. All functions of the clause must
/// agree, since they share its program.
Lowering::ExprPtr Lowering::lower_function_parameter(const ast::Field& expr) {
  const ProbeKind kind = instance_.context.probe;
  if ((kind != ProbeKind::kUprobe && kind != ProbeKind::kUretprobe) ||
      instance_.functions.empty()) {
    if (instance_.context.probe == ProbeKind::kKprobe) {
      refuse(expr.span, "args of kernel functions");
    } else {
      diagnostics_.error(expr.span,
                         "args is only there in tracepoints and at functions (uprobe, uretprobe)");
    }
    return unknown(expr.span);
  }
  std::optional<UserParameter> wanted;
  for (const UserFunction& function : instance_.functions) {
    auto found = find_parameter(function, expr);
    if (!found) return unknown(expr.span);
    if (wanted &&
        (wanted->register_index != found->register_index || wanted->type != found->type)) {
      diagnostics_
          .error(expr.span, "args.{} is another parameter in {} than in {}", expr.name,
                 function.symbol, instance_.functions.front().symbol)
          .with_hint("a clause for each of them");
      return unknown(expr.span);
    }
    wanted = std::move(found);
  }
  const bool is_return = kind == ProbeKind::kUretprobe;  // as it was when the call began
  ExprPtr value =
      make(is_return ? ExprKind::kEntryArgument : ExprKind::kContext, Type::uint64(), expr.span);
  value->offset =
      static_cast<uint32_t>(kArgumentOffsets[static_cast<size_t>(wanted->register_index)]);
  return truncate(std::move(value), wanted->type, expr.span);
}

std::optional<UserParameter> Lowering::find_parameter(const UserFunction& function,
                                                      const ast::Field& expr) {
  auto parameters = world_.user_parameters(function);
  if (!parameters) {
    diagnostics_.error(expr.span, "args: {}", parameters.error().message)
        .with_hint("arg0 to arg5 are the registers of the first six");
    return std::nullopt;
  }
  std::vector<std::string_view> names;
  for (const UserParameter& one : *parameters) {
    names.push_back(one.name);
    if (one.name != expr.name) continue;
    if (one.register_index >= 0) return one;
    diagnostics_.error(expr.span, "args.{} of {}: {}", expr.name, function.symbol, one.problem);
    return std::nullopt;
  }
  Diagnostic& diagnostic =
      diagnostics_.error(expr.name_span, "{} has no parameter '{}'", function.symbol, expr.name);
  const std::string_view near = nearest(expr.name, names);
  if (!near.empty()) diagnostic.with_hint("did you mean '{}'?", near);
  return std::nullopt;
}

Lowering::ExprPtr Lowering::lower_tuple_field(const ast::TupleField& expr) {
  return element_of_tuple(lower(*expr.base), expr.index, expr.span);
}

Lowering::ExprPtr Lowering::element_of_tuple(ExprPtr base, uint64_t index, Span span) {
  if (base->type.is_unknown()) return unknown(span);
  if (base->type.kind != Type::Kind::kTuple) {
    diagnostics_.error(span, "{} has no element .{}", to_string(base->type), index);
    return unknown(span);
  }
  if (index >= base->type.fields.size()) {
    diagnostics_.error(span, "the tuple has {} elements, there is no .{}", base->type.fields.size(),
                       index);
    return unknown(span);
  }
  const bool is_alone = base->kind == ExprKind::kTuple &&
                        std::ranges::none_of(base->args, [](const ExprPtr& element) {
                          return has_effects(*element);
                        });
  if (is_alone) {
    ExprPtr element = std::move(base->args[index]);
    return element;
  }
  ExprPtr value = make(ExprKind::kTupleField, base->type.fields[index], span);
  value->number = index;
  value->args.push_back(std::move(base));
  return value;
}

}  // namespace spile::lang
