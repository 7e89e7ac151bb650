#include "lang/syntax/ast.h"

#include <algorithm>
#include <array>

#include "lang/syntax/print.h"

namespace spile::lang::ast {

std::string_view to_string(UnaryOp op) {
  switch (op) {
    case UnaryOp::kNegate: return "-";
    case UnaryOp::kNot: return "!";
    case UnaryOp::kBitNot: return "~";
    case UnaryOp::kDeref: return "*";
    case UnaryOp::kAddressOf: return "&";
    case UnaryOp::kPlus: return "+";
  }
  return "?";
}

std::string_view to_string(BinaryOp op) {
  switch (op) {
    case BinaryOp::kMul: return "*";
    case BinaryOp::kDiv: return "/";
    case BinaryOp::kMod: return "%";
    case BinaryOp::kAdd: return "+";
    case BinaryOp::kSub: return "-";
    case BinaryOp::kShl: return "<<";
    case BinaryOp::kShr: return ">>";
    case BinaryOp::kLt: return "<";
    case BinaryOp::kGt: return ">";
    case BinaryOp::kLe: return "<=";
    case BinaryOp::kGe: return ">=";
    case BinaryOp::kEq: return "==";
    case BinaryOp::kNe: return "!=";
    case BinaryOp::kBitAnd: return "&";
    case BinaryOp::kBitXor: return "^";
    case BinaryOp::kBitOr: return "|";
    case BinaryOp::kLogAnd: return "&&";
    case BinaryOp::kLogOr: return "||";
  }
  return "?";
}

std::string_view to_string(ProbeType type) {
  switch (type) {
    case ProbeType::kBegin: return "BEGIN";
    case ProbeType::kEnd: return "END";
    case ProbeType::kUprobe: return "uprobe";
    case ProbeType::kUretprobe: return "uretprobe";
    case ProbeType::kUsdt: return "usdt";
    case ProbeType::kTracepoint: return "tracepoint";
    case ProbeType::kKprobe: return "kprobe";
    case ProbeType::kKretprobe: return "kretprobe";
    case ProbeType::kFentry: return "fentry";
    case ProbeType::kFexit: return "fexit";
    case ProbeType::kRawTracepoint: return "rawtracepoint";
    case ProbeType::kInterval: return "interval";
    case ProbeType::kProfile: return "profile";
    case ProbeType::kSoftware: return "software";
    case ProbeType::kHardware: return "hardware";
    case ProbeType::kWatchpoint: return "watchpoint";
    case ProbeType::kAsyncWatchpoint: return "asyncwatchpoint";
    case ProbeType::kIter: return "iter";
    case ProbeType::kSelf: return "self";
    case ProbeType::kTest: return "test";
    case ProbeType::kBench: return "bench";
  }
  return "?";
}

namespace {

std::string base_name(const TypeName& type) {
  switch (type.base) {
    case TypeName::Base::kNamed: return type.name;
    case TypeName::Base::kStruct: return "struct " + type.name;
    case TypeName::Base::kUnion: return "union " + type.name;
    case TypeName::Base::kEnum: return "enum " + type.name;
    case TypeName::Base::kTypeof: break;
  }
  if (type.typeof_type) return fmt::format("typeof({})", to_string(*type.typeof_type));
  return fmt::format("typeof({})", type.typeof_operand ? to_source(*type.typeof_operand) : "");
}

}  // namespace

std::string to_string(const TypeName& type) {
  std::string out = base_name(type);
  bool after_star = false;
  for (const TypeName::Suffix& suffix : type.suffixes) {
    if (suffix.is_array) {
      out += fmt::format("[{}]", suffix.size ? to_source(*suffix.size) : "");
    } else {
      out += after_star ? "*" : " *";
    }
    after_star = !suffix.is_array;
  }
  return out;
}

bool is_builtin_type(std::string_view name) {
  static constexpr auto kNames = std::to_array<std::string_view>({
      "bool",      "int8",          "int16",      "int32",  "int64",   "uint8",     "uint16",
      "uint32",    "uint64",        "void",       "string", "buffer",  "inet",      "min_t",
      "umin_t",    "max_t",         "umax_t",     "sum_t",  "usum_t",  "count_t",   "avg_t",
      "uavg_t",    "stats_t",       "ustats_t",   "hist_t", "lhist_t", "tseries_t", "timestamp",
      "macaddr_t", "cgroup_path_t", "username_t", "ksym_t", "usym_t",  "kstack_t",  "ustack_t",
  });
  return std::ranges::find(kNames, name) != kNames.end();
}

}  // namespace spile::lang::ast
