// Lowering of functions that turn one value into another, and of names that stand for values found
// elsewhere: in the current task, or before the script runs.
#include <algorithm>
#include <array>

#include "lang/sema/lower.h"
#include "lang/syntax/lexer.h"

namespace spile::lang {

using bundle::ContextKind;
using bundle::ProbeKind;
using typed::ExprKind;

namespace {

struct SignalName {
  std::string_view name;
  int number;
};
/// x86-64's. Source: arch/x86/include/uapi/asm/signal.h.
constexpr SignalName kSignals[] = {
    {"HUP", 1},   {"INT", 2},    {"QUIT", 3},  {"ILL", 4},   {"TRAP", 5},  {"ABRT", 6},
    {"BUS", 7},   {"FPE", 8},    {"KILL", 9},  {"USR1", 10}, {"SEGV", 11}, {"USR2", 12},
    {"PIPE", 13}, {"ALRM", 14},  {"TERM", 15}, {"CHLD", 17}, {"CONT", 18}, {"STOP", 19},
    {"TSTP", 20}, {"TTIN", 21},  {"TTOU", 22}, {"URG", 23},  {"XCPU", 24}, {"XFSZ", 25},
    {"PROF", 27}, {"WINCH", 28}, {"IO", 29},   {"PWR", 30},  {"SYS", 31}};

}  // namespace

/// The same number, printed in another way.
Lowering::ExprPtr Lowering::convert(ExprPtr value, Type type, Span span) {
  if (value->type.is_unknown()) return unknown(span);
  ExprPtr result = make(ExprKind::kConvert, std::move(type), span);
  result->args.push_back(std::move(value));
  return result;
}

/// ntop(address), ntop(family, address): IPv4 where four bytes or a number, else IPv6.
Lowering::ExprPtr Lowering::lower_ntop(const ast::Call& call) {
  ExprPtr family = call.arguments.size() > 1
                       ? lower_number(*call.arguments[0], "the family of ntop()")
                       : nullptr;
  ExprPtr address = lower(*call.arguments.back());
  const Type type = address->type;
  if (type.is_unknown() || (family && family->type.is_unknown())) return unknown(call.span);
  ExprPtr value = make(ExprKind::kInet, Type::inet(), call.span);
  if (type.is_place() || type.is_object()) {
    value->number = type.is_object() ? type.size : types_.size_of(type);
    if (value->number != 4 && value->number != 16) {
      diagnostics_.error(address->span, "ntop: an address has 4 or 16 bytes, {} has {}",
                         to_string(type), value->number);
      return unknown(call.span);
    }
  } else if (!type.is_int()) {
    diagnostics_.error(address->span, "ntop: an address is a number or an array, not {}",
                       to_string(type));
    return unknown(call.span);
  }
  value->args.push_back(std::move(address));
  if (family) value->args.push_back(std::move(family));
  return value;
}

Lowering::ExprPtr Lowering::lower_byte_swap(const ast::Call& call) {
  ExprPtr operand = lower_number(*call.arguments[0], "bswap()");
  if (operand->type.is_unknown()) return unknown(call.span);
  const uint32_t size = operand->type.is_pointer() ? 8 : operand->type.size;
  const Type type = Type::integer(size, false);
  if (size == 1) return truncate(std::move(operand), type, call.span);
  ExprPtr value = make(ExprKind::kByteSwap, type, call.span);
  value->number = uint64_t{size} * 8;
  value->args.push_back(std::move(operand));
  return value;
}

Lowering::ExprPtr Lowering::lower_strftime(const ast::Call& call) {
  std::string format;
  if (!literal_text(*call.arguments[0], "the format of strftime()", format))
    return unknown(call.span);
  ExprPtr time = lower_number(*call.arguments[1], "strftime()");
  return convert(std::move(time), Type::timestamp(std::move(format)), call.span);
}

Lowering::ExprPtr Lowering::lower_macaddr(const ast::Call& call) {
  ExprPtr address = lower(*call.arguments[0]);
  if (address->type.is_unknown()) return unknown(call.span);
  if (!address->type.is_number() && !address->type.is_place() &&
      !(address->kind == ExprKind::kStr && address->is_array)) {
    diagnostics_.error(address->span, "macaddr: an address is needed, not {}",
                       to_string(address->type));
    return unknown(call.span);
  }
  if (address->kind == ExprKind::kStr) {  // char mac[6]
    ExprPtr inner = std::move(address->args[0]);
    address = std::move(inner);
  }
  ExprPtr value = make(ExprKind::kLoad, Type::mac(), call.span);
  value->type.size = 6;
  value->args.push_back(std::move(address));
  return value;
}

// ---- what is known before the script runs

Lowering::ExprPtr Lowering::lower_cgroup_id(const ast::Call& call) {
  std::string path;
  if (!literal_text(*call.arguments[0], "the path of cgroupid()", path)) return unknown(call.span);
  auto id = world_.cgroup_id(path);
  if (id) return number(*id, Type::uint64(), call.span);
  diagnostics_.error(call.span, "cgroupid: {}", id.error().message);
  return unknown(call.span);
}

/// cgroup_path(id[, filter]): looked up when it is printed.
Lowering::ExprPtr Lowering::lower_cgroup_path(const ast::Call& call) {
  std::string filter;
  if (call.arguments.size() > 1 &&
      !literal_text(*call.arguments[1], "the filter of cgroup_path()", filter))
    return unknown(call.span);
  ExprPtr id = lower_number(*call.arguments[0], "cgroup_path()");
  return convert(std::move(id), Type::named("cgroup_path" + (filter.empty() ? "" : " " + filter)),
                 call.span);
}

/// The process of -c; without a command there is none.
Lowering::ExprPtr Lowering::lower_child_pid(Span span) {
  const Type type = type_of(typed::Builtin::kChildPid);
  if (!world_.has_command()) {
    diagnostics_.warning(span, "there is no child process without -c: cpid is 0")
        .with_hint("has_cpid says whether there is one");
    return number(0, type, span);
  }
  if (options_.child > 0) return number(static_cast<uint64_t>(options_.child), type, span);
  ExprPtr value = make(ExprKind::kBuiltin, type, span);
  value->builtin = typed::Builtin::kChildPid;
  return value;
}

/// getopt("name"[, default[, "help"]]): the type is the default's; without one it is a switch.
Lowering::ExprPtr Lowering::lower_getopt(const ast::Call& call) {
  std::string name;
  if (!literal_text(*call.arguments[0], "the name of getopt()", name)) return unknown(call.span);
  ExprPtr otherwise =
      call.arguments.size() > 1 ? lower(*call.arguments[1]) : number(0, Type::boolean(), call.span);
  if (otherwise->type.is_unknown()) return unknown(call.span);
  if (otherwise->kind != ExprKind::kNumber && otherwise->kind != ExprKind::kText) {
    diagnostics_.error(call.arguments[1]->span, "the default of getopt() must be a constant");
    return unknown(call.span);
  }
  const auto given = options_.named.find(name);
  if (given == options_.named.end()) return otherwise;
  if (otherwise->kind == ExprKind::kText) return text(given->second, call.span);
  const std::string& value = given->second;
  const Type truth = otherwise->type.is_bool ? Type::boolean() : Type::literal();
  if (value.empty() || value == "true") return number(1, truth, call.span);
  if (value == "false") return number(0, truth, call.span);
  const bool is_negative = value.starts_with('-');
  if (auto parsed = read_number(std::string_view(value).substr(is_negative ? 1 : 0)))
    return is_negative ? number(0 - parsed->value, Type::int64(), call.span)
                       : number(parsed->value, Type::literal(), call.span);
  diagnostics_.error(call.span, "--{}={}: this script takes a number", name, value);
  return unknown(call.span);
}

Lowering::ExprPtr Lowering::lower_signal(const ast::Call& call) {
  if (!options_.allow_unsafe) {
    diagnostics_.error(call.span, "{}() changes what the traced program does", call.name)
        .with_hint("--unsafe allows it");
    return unknown(call.span);
  }
  ExprPtr which = lower(*call.arguments[0], Want::kString);
  if (which->kind == ExprKind::kText) {
    std::string_view name = which->text;
    if (name.starts_with("SIG")) name.remove_prefix(3);
    const auto* known = std::ranges::find(kSignals, name, &SignalName::name);
    if (known == std::end(kSignals)) {
      diagnostics_.error(call.arguments[0]->span, "signal: there is no signal '{}'", which->text);
      return unknown(call.span);
    }
    which = number(static_cast<uint64_t>(known->number), Type::literal(), call.span);
  }
  if (!expect_number(*which, call.name + "()") || which->type.is_unknown())
    return unknown(call.span);
  if (which->kind == ExprKind::kNumber && (which->number < 1 || which->number > 64)) {
    diagnostics_.error(call.arguments[0]->span, "signal: 1 to 64 are signals, {} is none",
                       static_cast<int64_t>(which->number));
    return unknown(call.span);
  }
  ExprPtr value = nothing(ExprKind::kSignal, call.span);
  value->is_thread = call.name == "signal_thread";
  value->args.push_back(std::move(which));
  return value;
}

Lowering::ExprPtr Lowering::current_task(Span span) {
  ExprPtr task = make(ExprKind::kBuiltin, type_of(typed::Builtin::kCurtask), span);
  task->builtin = typed::Builtin::kCurtask;
  return task;
}

Lowering::ExprPtr Lowering::lower_derived(const std::string& name, Span span) {
  if (name == "ncpus") return number(world_.cpu_count(), Type::integer(4, false), span);
  if (name == "probetype") {
    const auto& points = instance_.clause->attach_points;
    const ast::ProbeType type = points.front().type;
    const bool is_special = type == ast::ProbeType::kBegin || type == ast::ProbeType::kEnd;
    return text(is_special ? "special" : std::string(ast::to_string(type)), span);
  }
  if (name == "username") {
    ExprPtr uid = make(ExprKind::kBuiltin, type_of(typed::Builtin::kUid), span);
    uid->builtin = typed::Builtin::kUid;
    return convert(std::move(uid), Type::named("username"), span);
  }
  if (name == "cpid") return lower_child_pid(span);
  if (name == "has_cpid") return number(world_.has_command() ? 1 : 0, Type::boolean(), span);
  if (name == "ppid") return member(member(current_task(span), "real_parent", span), "tgid", span);
  if (name == "pcomm") return member(member(current_task(span), "real_parent", span), "comm", span);
  if (name == "leader_tid")
    return member(member(current_task(span), "group_leader", span), "pid", span);
  if (name == "leader_comm")
    return member(member(current_task(span), "group_leader", span), "comm", span);
  if (name == "usermode") {
    if (instance_.context.kind != ContextKind::kRegs) {
      diagnostics_.error(span, "usermode is only there in probes with registers");
      return unknown(span);
    }
    ExprPtr cs = make(ExprKind::kContext, Type::uint64(), span);
    cs->offset = bpf::x86_64_regs::kCs;
    ExprPtr ring =
        arithmetic(ast::BinaryOp::kBitAnd, std::move(cs), number(3, Type::literal(), span), span);
    ExprPtr is_user =
        compare(ast::BinaryOp::kNe, std::move(ring), number(0, Type::literal(), span), span);
    is_user->type = Type::integer(1, false);
    return is_user;
  }
  return nullptr;
}

}  // namespace spile::lang
