// Lowering of stacks, symbols of addresses, registers by name, and override().
#include <algorithm>
#include <array>

#include "lang/sema/lower.h"

namespace spile::lang {

using bundle::ContextKind;
using bundle::ProbeKind;
using bundle::StackMode;
using typed::ExprKind;

Lowering::ExprPtr Lowering::stack(Type::Kind kind, StackMode mode, uint32_t frames, Span span) {
  if (instance_.context.kind == ContextKind::kNone) {
    diagnostics_.error(span, "{} is only there in uprobe, usdt, kprobe, kretprobe and tracepoint",
                       kind == Type::Kind::kUserStack ? "ustack" : "kstack");
    return unknown(span);
  }
  return make(ExprKind::kStack, Type::stack(kind, mode, frames), span);
}

bool Lowering::stack_mode(const ast::Expr& expr, StackMode& mode) {
  const auto* name = ast::try_as<ast::Identifier>(&expr);
  if (name == nullptr) return false;
  if (name->name == "build_id") {
    refuse(expr.span, "the stack mode build_id");
  } else if (name->name == "perf") {
    mode = StackMode::kPerf;
  } else if (name->name == "raw") {
    mode = StackMode::kRaw;
  } else if (name->name == "bpftrace") {
    mode = StackMode::kBpftrace;
  } else {
    diagnostics_.error(expr.span, "'{}' is no stack mode", name->name)
        .with_hint("modes are bpftrace, perf and raw");
  }
  return true;
}

/// ustack(), ustack(N), ustack(mode), ustack(mode, N).
Lowering::ExprPtr Lowering::lower_stack(const ast::Call& call, Type::Kind kind) {
  StackMode mode = options_.stack_mode;
  int64_t frames = kMaxStackFrames;
  size_t next = 0;
  if (!call.arguments.empty() && stack_mode(*call.arguments[0], mode)) next = 1;
  if (next < call.arguments.size()) {
    const ast::Expr& limit = *call.arguments[next];
    if (!constant(limit, "how many frames of a stack", frames)) return unknown(call.span);
    if (frames < 1 || frames > kMaxStackFrames) {
      diagnostics_.error(limit.span, "{}: a stack has 1 to {} frames", call.name, kMaxStackFrames);
      return unknown(call.span);
    }
    next++;
  }
  if (next < call.arguments.size()) {
    diagnostics_.error(call.arguments[next]->span, "{}() takes a mode and then how many frames",
                       call.name);
    return unknown(call.span);
  }
  return stack(kind, mode, static_cast<uint32_t>(frames), call.span);
}

Lowering::ExprPtr Lowering::lower_symbol(const ast::Call& call, Type::Kind kind) {
  ExprPtr address = lower_number(*call.arguments[0], call.name + "()");
  if (address->type.is_unknown()) return unknown(call.span);
  ExprPtr value = make(ExprKind::kSymbol, Type::symbol(kind), call.span);
  value->args.push_back(std::move(address));
  return value;
}

Lowering::ExprPtr Lowering::lower_reg(const ast::Call& call) {
  // In the order of struct pt_regs, eight bytes each.
  constexpr std::array<std::string_view, 21> kNames = {
      "r15", "r14", "r13", "r12", "bp",      "bx", "r11", "r10",   "r9", "r8", "ax",
      "cx",  "dx",  "si",  "di",  "orig_ax", "ip", "cs",  "flags", "sp", "ss"};
  std::string name;
  if (!literal_text(*call.arguments[0], "the register of reg()", name)) return unknown(call.span);
  auto found = std::ranges::find(kNames, name);
  if (found == kNames.end()) {
    diagnostics_.error(call.arguments[0]->span, "reg: there is no register '{}'", name)
        .with_hint("ax bx cx dx si di bp sp r8 to r15 ip flags cs ss orig_ax");
    return unknown(call.span);
  }
  if (instance_.context.kind != ContextKind::kRegs) {
    diagnostics_.error(call.span, "reg() is only there in uprobe, usdt, kprobe and kretprobe");
    return unknown(call.span);
  }
  ExprPtr value = make(ExprKind::kContext, Type::uint64(), call.span);
  value->offset = static_cast<uint32_t>(found - kNames.begin()) * 8;
  return value;
}

Lowering::ExprPtr Lowering::lower_kernel_address(const ast::Call& call) {
  std::string name;
  if (!literal_text(*call.arguments[0], "the name that kaddr() takes", name))
    return unknown(call.span);
  auto address = world_.kernel_address(name);
  if (address) return number(*address, Type::uint64(), call.span);
  diagnostics_.error(call.span, "kaddr: {}", address.error().message);
  return unknown(call.span);
}

Lowering::ExprPtr Lowering::lower_override(const ast::Call& call) {
  ExprPtr result = lower_number(*call.arguments[0], "override()");
  ProbeKind kind = instance_.context.probe;
  if (!options_.allow_unsafe) {
    diagnostics_.error(call.span, "override() changes what the traced program does")
        .with_hint("--unsafe allows it");
    return unknown(call.span);
  }
  if (kind != ProbeKind::kUprobe && kind != ProbeKind::kKprobe) {
    diagnostics_.error(call.span, "override() is only there in uprobe and kprobe");
    return unknown(call.span);
  }
  if (result->type.is_unknown()) return unknown(call.span);
  ExprPtr value = nothing(ExprKind::kOverride, call.span);
  value->args.push_back(std::move(result));
  return value;
}

}  // namespace spile::lang
