// Lowering of argN and args.name in static tracepoints: where the value is, the note of each place
// says.
//
// A clause for several places is split into one program per distinct layout of the arguments it
// uses (split_by_layout), so that here one place speaks for all of the instance.
#include "lang/sema/lower.h"

namespace spile::lang {

using ast::BinaryOp;
using typed::ExprKind;
using typed::ExprPtr;
using Place = UsdtArgument::Place;

namespace {

ExprPtr node(ExprKind kind, Type type, Span span) {
  auto expr = std::make_unique<typed::Expr>();
  expr->kind = kind;
  expr->type = std::move(type);
  expr->span = span;
  return expr;
}

ExprPtr number(uint64_t value, Span span) {
  ExprPtr expr = node(ExprKind::kNumber, Type::uint64(), span);
  expr->number = value;
  return expr;
}

ExprPtr saved_register(int offset, Type type, Span span) {
  ExprPtr expr = node(ExprKind::kContext, std::move(type), span);
  expr->offset = static_cast<uint32_t>(offset);
  return expr;
}

ExprPtr combine(BinaryOp op, ExprPtr left, ExprPtr right) {
  if (!left) return right;
  ExprPtr expr = node(ExprKind::kArithmetic, Type::uint64(), left->span);
  expr->op = op;
  expr->args.push_back(std::move(left));
  expr->args.push_back(std::move(right));
  return expr;
}

/// base + index * scale + number; a symbol is so and so far from the tracepoint's own address.
ExprPtr address_of(const UsdtArgument& argument, Span span) {
  ExprPtr sum;
  auto add = [&](ExprPtr part) { sum = combine(BinaryOp::kAdd, std::move(sum), std::move(part)); };
  if (argument.from_site) add(saved_register(bpf::x86_64_regs::kIp, Type::uint64(), span));
  if (argument.base >= 0) add(saved_register(argument.base, Type::uint64(), span));
  if (argument.index >= 0) {
    ExprPtr index = saved_register(argument.index, Type::uint64(), span);
    if (argument.scale > 1)
      index = combine(BinaryOp::kMul, std::move(index), number(argument.scale, span));
    add(std::move(index));
  }
  if (argument.number != 0 || !sum) add(number(static_cast<uint64_t>(argument.number), span));
  return sum;
}

/// The constant as the program would have passed it: cut to its size, then extended.
uint64_t constant_of(const UsdtArgument& argument) {
  if (argument.size >= 8) return static_cast<uint64_t>(argument.number);
  uint32_t unused = 64 - argument.size * 8;
  uint64_t high = static_cast<uint64_t>(argument.number) << unused;
  return argument.is_signed ? static_cast<uint64_t>(static_cast<int64_t>(high) >> unused)
                            : high >> unused;
}

}  // namespace

Lowering::ExprPtr Lowering::lower_usdt_argument(uint32_t index, Span span) {
  instance_.used_arguments.insert(index);
  return read_usdt_argument(index, span);
}

Lowering::ExprPtr Lowering::read_usdt_argument(uint32_t index, Span span) {
  const UsdtSite& site = instance_.usdt.front();
  if (index >= site.arguments.size()) {
    diagnostics_.error(span, "usdt:{}:{} has {} argument{}: there is no arg{}", site.provider,
                       site.name, site.arguments.size(), site.arguments.size() == 1 ? "" : "s",
                       index);
    return unknown(span);
  }
  const UsdtArgument& argument = site.arguments[index];
  const Type type = Type::integer(argument.size, argument.is_signed);
  ExprPtr value;
  switch (argument.place) {
    case Place::kUnreadable:
      diagnostics_.error(span, "arg{} of usdt:{}:{} cannot be read: {}", index, site.provider,
                         site.name, argument.problem);
      return unknown(span);
    case Place::kConstant: return number(constant_of(argument), Type::uint64(), span);
    case Place::kRegister: value = saved_register(argument.base, type, span); break;
    case Place::kMemory:
      value = node(ExprKind::kLoad, type, span);
      value->args.push_back(address_of(argument, span));
      break;
  }
  // Extended by its own sign, then a uint64 as every argN of the language.
  return truncate(std::move(value), Type::uint64(), span);
}

namespace {

/// "const char *" -> "char": what a pointer to a named type points to; "" where it is no such.
std::string pointee(std::string_view type) {
  if (!type.ends_with('*')) return {};
  type.remove_suffix(1);
  for (std::string_view word : {"const ", "volatile "}) {
    if (type.starts_with(word)) type.remove_prefix(word.size());
  }
  while (type.ends_with(' ')) type.remove_suffix(1);
  return type.find('*') == std::string_view::npos ? std::string(type) : std::string();
}

}  // namespace

/// Size and sign are the note's. A pointer to a struct is one to anything: which struct of that
/// name the program means (the kernel has many, too) only a cast can say.
Type Lowering::type_of_usdt_field(const UsdtField& field, const UsdtArgument& argument) {
  const bool is_pointer = field.type.find('*') != std::string::npos && argument.size == 8;
  if (!is_pointer) return Type::integer(argument.size, argument.is_signed);
  const auto target = types_.named(pointee(field.type));
  return target && target->is_int() ? Type::pointer_to(*target) : Type::void_pointer();
}

/// args.name: an argument that the program has given a name.
Lowering::ExprPtr Lowering::lower_usdt_field(const ast::Field& expr) {
  const UsdtSite& site = instance_.usdt.front();
  instance_.used_fields.insert(expr.name);
  if (site.fields.empty()) {
    diagnostics_
        .error(expr.span, "args: usdt:{}:{} does not say what its arguments are called",
               site.provider, site.name)
        .with_hint("arg0 is the first of them");
    return unknown(expr.span);
  }
  std::vector<std::string_view> names;
  for (size_t i = 0; i < site.fields.size(); ++i) {
    names.push_back(site.fields[i].name);
    if (site.fields[i].name != expr.name) continue;
    ExprPtr value = read_usdt_argument(static_cast<uint32_t>(i), expr.span);
    if (value->type.is_unknown()) return value;
    return truncate(std::move(value), type_of_usdt_field(site.fields[i], site.arguments[i]),
                    expr.span);
  }
  Diagnostic& diagnostic = diagnostics_.error(expr.name_span, "usdt:{}:{} has no argument '{}'",
                                              site.provider, site.name, expr.name);
  const std::string_view near = nearest(expr.name, names);
  if (!near.empty()) diagnostic.with_hint("did you mean '{}'?", near);
  return unknown(expr.span);
}

}  // namespace spile::lang
