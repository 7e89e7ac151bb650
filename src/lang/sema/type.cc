#include "lang/sema/type.h"

#include <fmt/format.h>

#include <algorithm>

namespace spile::lang {

namespace {

uint32_t round_up_8(uint32_t n) {
  return (n + 7) / 8 * 8;
}

Join join_numbers(Type& into, const Type& from) {
  Type before = into;
  if (into.is_flexible && !from.is_flexible) {
    into.is_signed = from.is_signed;
  } else if (!from.is_flexible) {
    into.is_signed = into.is_signed || from.is_signed;
  }
  bool is_mixed = before.is_signed != from.is_signed && !before.is_flexible && !from.is_flexible;
  into.is_flexible = into.is_flexible && from.is_flexible;
  into.is_bool = into.is_bool && from.is_bool;
  if (into.layout != from.layout) into.forget_names();
  into.size = is_mixed ? 8 : std::max(into.size, from.size);
  return into == before ? Join::kSame : Join::kWidened;
}

Join join_sizes(Type& into, const Type& from) {
  if (from.size <= into.size) return Join::kSame;
  into.size = from.size;
  return Join::kWidened;
}

Join join_tuples(Type& into, const Type& from) {
  if (into.fields.size() != from.fields.size() || into.names != from.names) return Join::kMismatch;
  Join all = Join::kSame;
  for (size_t i = 0; i < into.fields.size(); ++i) {
    Join one = join(into.fields[i], from.fields[i]);
    if (one == Join::kMismatch) return one;
    if (one == Join::kWidened) all = one;
  }
  return all;
}

std::string_view mode_prefix(bundle::StackMode mode) {
  switch (mode) {
    case bundle::StackMode::kBpftrace: return "";
    case bundle::StackMode::kPerf: return "perf, ";
    case bundle::StackMode::kRaw: return "raw, ";
  }
  return "";
}

/// Stacks of two depths are kept apart, and a place prints them one way.
Join join_stacks(const Type& into, const Type& from) {
  bool is_same = into.frames == from.frames && into.stack_mode == from.stack_mode;
  return is_same ? Join::kSame : Join::kMismatch;
}

Join join_pointers(Type& into, const Type& from) {
  if (into.fields == from.fields || into.fields.empty()) return Join::kSame;
  into.fields.clear();  // two kinds of pointers: void *
  return Join::kWidened;
}

}  // namespace

uint32_t storage_bytes(const Type& type) {
  switch (type.kind) {
    case Type::Kind::kUnknown:
    case Type::Kind::kNone: return 0;
    case Type::Kind::kString: return round_up_8(type.size);
    case Type::Kind::kBuffer: return round_up_8(type.size + 4);
    case Type::Kind::kUserStack:
    case Type::Kind::kUserSymbol: return 16;
    case Type::Kind::kInet: return 24;
    case Type::Kind::kObject: return round_up_8(type.size);
    case Type::Kind::kTuple: {
      uint32_t sum = 0;
      for (const Type& field : type.fields) sum += storage_bytes(field);
      return std::max(sum, 8u);  // (): no value and no key is empty
    }
    default: return 8;
  }
}

std::vector<uint32_t> field_offsets(const Type& tuple) {
  std::vector<uint32_t> offsets;
  uint32_t at = 0;
  for (const Type& field : tuple.fields) {
    offsets.push_back(at);
    at += storage_bytes(field);
  }
  return offsets;
}

bundle::ValueType to_value_type(const Type& type) {
  using bundle::ValueKind;
  bundle::ValueType value;
  value.size = storage_bytes(type);
  value.is_signed = type.is_signed;
  switch (type.kind) {
    case Type::Kind::kUnknown:
    case Type::Kind::kNone: value.kind = ValueKind::kNone; break;
    case Type::Kind::kInt:
      value.kind = type.is_bool ? ValueKind::kBool : ValueKind::kInt;
      if (!type.is_enum()) break;
      value.kind = ValueKind::kEnum;
      value.names = type.layout->names;
      value.values = type.layout->values;
      break;
    case Type::Kind::kString: value.kind = ValueKind::kString; break;
    case Type::Kind::kBuffer: value.kind = ValueKind::kBuffer; break;
    case Type::Kind::kPointer: value.kind = ValueKind::kPointer; break;
    case Type::Kind::kProbe: value.kind = ValueKind::kProbe; break;
    case Type::Kind::kFunc: value.kind = ValueKind::kFunc; break;
    case Type::Kind::kUserStack:
    case Type::Kind::kKernelStack:
      value.kind =
          type.kind == Type::Kind::kUserStack ? ValueKind::kUserStack : ValueKind::kKernelStack;
      value.stack_mode = type.stack_mode;
      value.frames = type.frames;
      break;
    case Type::Kind::kUserSymbol: value.kind = ValueKind::kUserSymbol; break;
    case Type::Kind::kKernelSymbol: value.kind = ValueKind::kKernelSymbol; break;
    case Type::Kind::kStruct:
    case Type::Kind::kArray: value.kind = ValueKind::kPointer; break;  // refused where printed
    case Type::Kind::kObject:
      value = *type.layout;
      value.size = storage_bytes(type);
      break;
    case Type::Kind::kInet: value.kind = ValueKind::kInet; break;
    case Type::Kind::kMac: value.kind = ValueKind::kMac; break;
    case Type::Kind::kTimestamp:
      value.kind = ValueKind::kTimestamp;
      value.format = type.name;
      break;
    case Type::Kind::kNamed:
      value.kind = ValueKind::kNamed;
      value.format = type.name;
      break;
    case Type::Kind::kTuple:
      value.kind = ValueKind::kTuple;
      value.offsets = field_offsets(type);
      value.names = type.names;
      for (const Type& field : type.fields) value.fields.push_back(to_value_type(field));
      break;
  }
  return value;
}

std::string to_string(const Type& type) {
  switch (type.kind) {
    case Type::Kind::kUnknown: return "unknown";
    case Type::Kind::kNone: return "none";
    case Type::Kind::kObject: return to_string(type.fields[0]);
    case Type::Kind::kInt:
      if (type.is_bool) return "bool";
      if (type.is_enum()) return type.name;
      return fmt::format("{}int{}", type.is_signed ? "" : "u", type.size * 8);
    case Type::Kind::kString: return fmt::format("string[{}]", type.size);
    case Type::Kind::kBuffer: return fmt::format("buffer[{}]", type.size);
    case Type::Kind::kPointer:
      return (type.fields.empty() ? "void" : to_string(type.fields[0])) + " *";
    case Type::Kind::kProbe: return "probe";
    case Type::Kind::kFunc: return "func";
    case Type::Kind::kUserStack:
    case Type::Kind::kKernelStack:
      return fmt::format("{}({}{})", type.kind == Type::Kind::kUserStack ? "ustack" : "kstack",
                         mode_prefix(type.stack_mode), type.frames);
    case Type::Kind::kStruct: return type.name;
    case Type::Kind::kArray: return fmt::format("{}[{}]", to_string(type.fields[0]), type.count);
    case Type::Kind::kInet: return "inet";
    case Type::Kind::kMac: return "macaddr";
    case Type::Kind::kTimestamp: return "timestamp";
    case Type::Kind::kNamed: return type.name;
    case Type::Kind::kUserSymbol: return "usym";
    case Type::Kind::kKernelSymbol: return "ksym";
    case Type::Kind::kTuple: {
      std::string text = "(";
      for (size_t i = 0; i < type.fields.size(); ++i) {
        if (i != 0) text += ",";
        if (!type.names.empty()) text += type.names[i] + "=";
        text += to_string(type.fields[i]);
      }
      return text + ")";
    }
  }
  return "";
}

Type widened(const Type& type) {
  Type wide = type;
  if (wide.kind == Type::Kind::kInt) wide.size = 8;
  if (wide.kind == Type::Kind::kTuple) {
    for (Type& field : wide.fields) field = widened(field);
  }
  return wide;
}

Join join(Type& into, const Type& from) {
  if (from.is_unknown()) return Join::kSame;
  if (into.is_unknown()) {
    into = from;
    return Join::kWidened;
  }
  if (into.is_number() && from.is_number() && into.kind != from.kind) {  // a pointer and a number
    const Type& number = into.is_int() ? into : from;
    const bool flexible = number.is_flexible && !number.is_bool;
    if (!flexible) return Join::kMismatch;  // only a literal (0) may stand for a pointer
    if (into.is_pointer()) return Join::kSame;
    into = from;
    return Join::kWidened;
  }
  if (into.kind != from.kind) return Join::kMismatch;
  switch (into.kind) {
    case Type::Kind::kInt: return join_numbers(into, from);
    case Type::Kind::kString:
    case Type::Kind::kBuffer: return join_sizes(into, from);
    case Type::Kind::kTuple: return join_tuples(into, from);
    case Type::Kind::kPointer: return join_pointers(into, from);
    case Type::Kind::kStruct:
    case Type::Kind::kTimestamp:
    case Type::Kind::kNamed: return into.name == from.name ? Join::kSame : Join::kMismatch;
    case Type::Kind::kObject:
      return into.fields == from.fields && into.size == from.size ? Join::kSame : Join::kMismatch;
    case Type::Kind::kArray: return into == from ? Join::kSame : Join::kMismatch;
    case Type::Kind::kUserStack:
    case Type::Kind::kKernelStack: return join_stacks(into, from);
    default: return Join::kSame;
  }
}

}  // namespace spile::lang
