// Lowering of addresses by name, and of builtin variables that take an argument.
#include "lang/sema/lower.h"

namespace spile::lang {

using bundle::ProbeKind;
using typed::ExprKind;

/// percpu_kaddr("name"[, cpu]): the variable's place of the CPU, which is the symbol's address and
/// what the kernel keeps in __per_cpu_offset[cpu]; 0 where there is no such CPU.
/// Source: include/asm-generic/percpu.h, per_cpu_ptr.
Lowering::ExprPtr Lowering::lower_per_cpu_address(const ast::Call& call) {
  std::string name;
  if (!literal_text(*call.arguments[0], "the name that percpu_kaddr() takes", name))
    return unknown(call.span);
  const auto symbol = world_.kernel_address(name);
  const auto offsets = world_.kernel_address("__per_cpu_offset");
  if (!symbol || !offsets) {
    diagnostics_.error(call.span, "percpu_kaddr: {}", (!symbol ? symbol : offsets).error().message);
    return unknown(call.span);
  }
  const bool is_given = call.arguments.size() > 1;
  const auto which = [&]() -> ExprPtr {
    if (is_given) return lower_number(*call.arguments[1], "the CPU of percpu_kaddr()");
    ExprPtr here = make(ExprKind::kBuiltin, type_of(typed::Builtin::kCpu), call.span);
    here->builtin = typed::Builtin::kCpu;
    return here;
  };
  ExprPtr cpu = which();
  if (cpu->type.is_unknown()) return unknown(call.span);
  if (has_effects(*cpu)) {
    refuse(call.arguments[1]->span, "percpu_kaddr() with a CPU that changes something");
    return unknown(call.span);
  }
  ExprPtr scaled = arithmetic(ast::BinaryOp::kMul, std::move(cpu),
                              number(8, Type::literal(), call.span), call.span);
  ExprPtr offset = make(ExprKind::kLoad, Type::uint64(), call.span);
  offset->text = "percpu_kaddr()";
  offset->args.push_back(arithmetic(ast::BinaryOp::kAdd, std::move(scaled),
                                    number(*offsets, Type::uint64(), call.span), call.span));
  ExprPtr address = arithmetic(ast::BinaryOp::kAdd, std::move(offset),
                               number(*symbol, Type::uint64(), call.span), call.span);
  address->type = Type::pointer_to(Type::uint64());
  if (!is_given) return address;
  ExprPtr result = make(ExprKind::kConditional, address->type, call.span);
  result->args.push_back(compare(ast::BinaryOp::kLt, truncate(which(), Type::uint64(), call.span),
                                 number(world_.cpu_count(), Type::uint64(), call.span), call.span));
  result->args.push_back(std::move(address));
  result->args.push_back(number(0, result->type, call.span));
  return result;
}

/// The link address of the one place that this clause is at, and its file; nothing: refused.
std::optional<uint64_t> Lowering::probed_address(std::string& path, Span span) {
  const ProbeKind kind = instance_.context.probe;
  if (kind != ProbeKind::kUprobe && kind != ProbeKind::kUsdt) {
    diagnostics_.error(span, "uaddr() is only there in uprobe and usdt");
    return std::nullopt;
  }
  if (instance_.probes.size() != 1 || instance_.clause->attach_points.size() != 1) {
    refuse(span, "uaddr() in a clause of several probes");
    return std::nullopt;
  }
  if (kind == ProbeKind::kUsdt && instance_.usdt.size() == 1) {
    path = instance_.usdt[0].path;
    return instance_.usdt[0].address;
  }
  if (instance_.functions.size() != 1) {
    refuse(span, "uaddr() in a probe without a function's name");
    return std::nullopt;
  }
  path = instance_.functions[0].path;
  auto address = world_.user_function_address(instance_.functions[0]);
  if (address) return *address;
  diagnostics_.error(span, "uaddr: {}", address.error().message);
  return std::nullopt;
}

/// uaddr("name"): a variable or function of the probed file. Where the file is loaded is known from
/// where the probe is: the instruction pointer less the place's link address.
Lowering::ExprPtr Lowering::lower_user_address(const ast::Call& call) {
  std::string name, path;
  if (!literal_text(*call.arguments[0], "the name that uaddr() takes", name))
    return unknown(call.span);
  const auto here = probed_address(path, call.span);
  if (!here) return unknown(call.span);
  auto variable = world_.user_variable(path, name);
  if (!variable) {
    if (auto function = world_.user_function_address({path, name}))
      variable = World::UserVariable{*function, 0};
  }
  if (!variable) {
    diagnostics_.error(call.span, "uaddr: {}", variable.error().message);
    return unknown(call.span);
  }
  uint64_t offset = 0;  // of the probe behind its function
  const ast::AttachPoint& point = instance_.clause->attach_points.front();
  if (instance_.context.probe == ProbeKind::kUprobe) offset = point.offset;
  ExprPtr ip = make(ExprKind::kContext, Type::uint64(), call.span);
  ip->offset = bpf::x86_64_regs::kIp;
  ExprPtr address =
      arithmetic(ast::BinaryOp::kAdd, std::move(ip),
                 number(variable->address - *here - offset, Type::uint64(), call.span), call.span);
  const uint64_t size = variable->size_bytes;
  const bool is_word = size == 1 || size == 2 || size == 4;
  address->type = Type::pointer_to(Type::integer(is_word ? static_cast<uint32_t>(size) : 8, false));
  return address;
}

Lowering::ExprPtr Lowering::lower_kernel_function_exists(const ast::Call& call) {
  std::string name;
  if (!literal_text(*call.arguments[0], "the name that kfunc_exist() takes", name))
    return unknown(call.span);
  const bool is_there = name.find('*') == std::string::npos &&
                        world_.typed_events(TypedEvent::kFunctionEntry, "", name).has_value();
  return number(is_there ? 1 : 0, Type::boolean(), call.span);
}

/// is_err(p): an error number that the kernel gave instead of an address.
/// Source: include/linux/err.h, IS_ERR_VALUE.
Lowering::ExprPtr Lowering::lower_is_error(const ast::Call& call) {
  constexpr uint64_t kMaxErrno = 4095;
  ExprPtr value = lower_number(*call.arguments[0], "is_err()");
  if (value->type.is_unknown()) return unknown(call.span);
  return compare(ast::BinaryOp::kGe, truncate(std::move(value), Type::uint64(), call.span),
                 number(~uint64_t{0} - kMaxErrno + 1, Type::uint64(), call.span), call.span);
}

Lowering::ExprPtr Lowering::lower_named_variant(const ast::Call& call) {
  if (call.arguments.size() != 1) return nullptr;
  const auto* mode = ast::try_as<ast::Identifier>(call.arguments[0].get());
  const std::string_view word = mode != nullptr ? std::string_view(mode->name) : "";
  if (call.name == "nsecs" && mode != nullptr) {
    ExprPtr value = make(ExprKind::kBuiltin, Type::uint64(), call.span);
    value->builtin = word == "boot" ? typed::Builtin::kBootNsecs : typed::Builtin::kNsecs;
    if (word == "monotonic" || word == "boot") return value;
    if (word != "tai" && word != "sw_tai") return nullptr;
    // Both clocks run at one rate: what lies between them changes when somebody sets the clock.
    const auto offset = static_cast<uint64_t>(world_.tai_offset_ns());
    return arithmetic(ast::BinaryOp::kAdd, std::move(value),
                      number(offset, Type::uint64(), call.span), call.span);
  }
  const bool is_id = call.name == "pid" || call.name == "tid";
  if (is_id && (word == "init" || word == "curr_ns")) {
    if (world_.counts_pids_as_the_kernel()) return lower_name(call.name, call.name_span);
    refuse(call.span, fmt::format("{}({}) in a namespace of process ids", call.name, word));
    return unknown(call.span);
  }
  if (call.name != "ppid" && call.name != "pcomm") return nullptr;
  ExprPtr task = lower(*call.arguments[0]);
  if (task->type.is_unknown()) return unknown(call.span);
  const std::string field = call.name == "ppid" ? "tgid" : "comm";
  return member(member(std::move(task), "real_parent", call.span), field, call.span);
}

}  // namespace spile::lang
