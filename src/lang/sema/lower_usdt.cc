// Lowering of argN in static tracepoints: where the value is, the note of each place says.
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
  const UsdtSite& site = instance_.usdt.front();
  instance_.used_arguments.insert(index);
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

}  // namespace spile::lang
