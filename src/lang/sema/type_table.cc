#include "lang/sema/type_table.h"

#include <algorithm>

namespace spile::lang {

namespace {

/// Types that C gives a size on x86-64, and the names that kernel and libc have for them.
struct NamedType {
  std::string_view name;
  uint32_t size;
  bool is_signed;
};
constexpr NamedType kNamedTypes[] = {
    {"int8", 1, true},
    {"int16", 2, true},
    {"int32", 4, true},
    {"int64", 8, true},
    {"uint8", 1, false},
    {"uint16", 2, false},
    {"uint32", 4, false},
    {"uint64", 8, false},
    {"char", 1, true},
    {"short", 2, true},
    {"int", 4, true},
    {"long", 8, true},
    {"int8_t", 1, true},
    {"int16_t", 2, true},
    {"int32_t", 4, true},
    {"int64_t", 8, true},
    {"uint8_t", 1, false},
    {"uint16_t", 2, false},
    {"uint32_t", 4, false},
    {"uint64_t", 8, false},
    {"u8", 1, false},
    {"u16", 2, false},
    {"u32", 4, false},
    {"u64", 8, false},
    {"s8", 1, true},
    {"s16", 2, true},
    {"s32", 4, true},
    {"s64", 8, true},
    {"__u8", 1, false},
    {"__u16", 2, false},
    {"__u32", 4, false},
    {"__u64", 8, false},
    {"__s8", 1, true},
    {"__s16", 2, true},
    {"__s32", 4, true},
    {"__s64", 8, true},
    {"size_t", 8, false},
    {"ssize_t", 8, true},
    {"pid_t", 4, true},
    {"uid_t", 4, false},
    {"gid_t", 4, false},
    {"bool", 1, false},
    {"uintptr_t", 8, false},
    {"_Bool", 1, false},
    {"unsigned", 4, false},
    {"signed", 4, true},
    // As the format files of events spell them.
    {"unsigned char", 1, false},
    {"signed char", 1, true},
    {"unsigned short", 2, false},
    {"unsigned int", 4, false},
    {"unsigned long", 8, false},
    {"long long", 8, true},
    {"unsigned long long", 8, false},
};

/// Constants of headers that are macros and no enumerators, so that BTF does not have them; as far
/// as scripts for this language use them. Sources: include/linux/socket.h, include/linux/sched.h.
struct HeaderConstant {
  std::string_view name;
  int64_t value;
};
constexpr HeaderConstant kHeaderConstants[] = {
    {"AF_UNSPEC", 0},
    {"AF_UNIX", 1},
    {"AF_LOCAL", 1},
    {"AF_INET", 2},
    {"AF_INET6", 10},
    {"AF_NETLINK", 16},
    {"AF_PACKET", 17},
    {"TASK_RUNNING", 0},
    {"TASK_INTERRUPTIBLE", 1},
    {"TASK_UNINTERRUPTIBLE", 2},
    {"PF_KTHREAD", 0x00200000},
    {"IPPROTO_TCP", 6},
    {"IPPROTO_UDP", 17},
    {"PATH_MAX", 4096},
};

constexpr int kMaxDepth = 32;
/// "struct pair of /bin/x": of that file's debug information.
constexpr std::string_view kOwner = " of ";

}  // namespace

const Structure* TypeTable::structure(const std::string& name) {
  if (const auto known = structures_.find(name); known != structures_.end()) return &known->second;
  if (unknown_.contains(name)) return nullptr;
  const size_t owner = name.find(kOwner);
  auto found =
      owner == std::string::npos
          ? world_.kernel_structure(name)
          : world_.user_structure(name.substr(owner + kOwner.size()), name.substr(0, owner));
  if (found) return &structures_.emplace(name, std::move(*found)).first->second;
  unknown_.insert(name);
  return nullptr;
}

std::optional<Type> TypeTable::named(const std::string& name) {
  if (const auto known = names_.find(name); known != names_.end()) return known->second;
  const auto* plain = std::ranges::find(kNamedTypes, name, &NamedType::name);
  if (name == "bool" || name == "_Bool") {
    Type type = Type::integer(1, false);
    type.is_bool = true;
    return type;
  }
  if (plain != std::end(kNamedTypes)) return Type::integer(plain->size, plain->is_signed);
  auto found = world_.kernel_type(name);
  if (!found) return std::nullopt;
  return names_.emplace(name, std::move(*found)).first->second;
}

void TypeTable::define_enumeration(const std::string& name,
                                   const std::vector<std::pair<std::string, int64_t>>& constants) {
  auto layout = std::make_shared<bundle::ValueType>();
  bool is_signed = false;
  for (const auto& [constant, value] : constants) {
    layout->names.push_back(constant);
    layout->values.push_back(value);
    is_signed |= value < 0;
    enumerators_[constant] = name;
  }
  enumerations_[name] = Type::enumeration(name, 4, is_signed, std::move(layout));
}

std::optional<Type> TypeTable::enumeration(const std::string& name) {
  if (const auto known = enumerations_.find(name); known != enumerations_.end())
    return known->second;
  auto found = world_.kernel_type(name);
  if (!found) return std::nullopt;
  return enumerations_.emplace(name, std::move(*found)).first->second;
}

std::optional<Type> TypeTable::enumeration_of(const std::string& constant) {
  if (const auto own = enumerators_.find(constant); own != enumerators_.end())
    return enumerations_.at(own->second);
  if (constants_.contains(constant) && !of_kernel_.contains(constant)) {
    auto found = world_.kernel_enumeration_of(constant);
    of_kernel_[constant] = found ? std::optional(std::move(*found)) : std::nullopt;
  }
  const auto known = of_kernel_.find(constant);
  return known == of_kernel_.end() ? std::nullopt : known->second;
}

std::optional<int64_t> TypeTable::constant(const std::string& name) {
  if (const auto known = constants_.find(name); known != constants_.end()) return known->second;
  if (has_headers_) {
    const auto* known = std::ranges::find(kHeaderConstants, name, &HeaderConstant::name);
    if (known != std::end(kHeaderConstants)) return known->value;
  }
  auto found = world_.kernel_enumerator(name);
  if (!found) return std::nullopt;
  return constants_[name] = *found;
}

const ast::Expr* TypeTable::expression(const std::string& name) const {
  const auto known = defines_.find(name);
  return known == defines_.end() ? nullptr : known->second;
}

bool TypeTable::is_defined(const std::string& name) const {
  return defines_.contains(name) || (name == "BPFTRACE_HAVE_BTF" && world_.has_kernel_types());
}

std::optional<TypeTable::Found> TypeTable::field(const Structure& structure,
                                                 const std::string& name) {
  for (const StructField& one : structure.fields) {
    if (one.name == name) return Found{one, one.offset_bytes};
  }
  for (const StructField& one : structure.fields) {
    if (!one.name.empty() || one.type.kind != Type::Kind::kStruct) continue;
    const Structure* inner = this->structure(one.type.name);
    if (inner == nullptr || inner == &structure) continue;
    if (auto found = field(*inner, name)) {
      found->offset_bytes += one.offset_bytes;
      return found;
    }
  }
  return std::nullopt;
}

std::vector<std::string> TypeTable::field_names(const Structure& structure) {
  std::vector<std::string> names;
  for (const StructField& one : structure.fields) {
    if (!one.name.empty()) {
      names.push_back(one.name);
    } else if (const Structure* inner = this->structure(one.type.name)) {
      if (inner == &structure) continue;
      for (auto& name : field_names(*inner)) names.push_back(std::move(name));
    }
  }
  return names;
}

uint32_t TypeTable::size_of(const Type& type) {
  switch (type.kind) {
    case Type::Kind::kStruct: {
      const Structure* known = structure(type.name);
      return known == nullptr ? 0 : known->size_bytes;
    }
    case Type::Kind::kArray: return size_of(type.fields[0]) * type.count;
    case Type::Kind::kInt:
    case Type::Kind::kString:
    case Type::Kind::kBuffer: return type.size;
    default: return storage_bytes(type);
  }
}

namespace {

void append_field(bundle::ValueType& whole, std::string name, uint32_t at, bundle::ValueType one) {
  whole.names.push_back(std::move(name));
  whole.offsets.push_back(at);
  whole.fields.push_back(std::move(one));
}

}  // namespace

/// The fields of a struct that is printed; those of anonymous members are the whole's.
void TypeTable::describe_fields(const Structure& structure,
                                uint32_t at,
                                int depth,
                                bundle::ValueType& whole) {
  for (const StructField& field : structure.fields) {
    const Structure* inner =
        field.type.kind == Type::Kind::kStruct ? this->structure(field.type.name) : nullptr;
    if (field.name.empty()) {
      if (inner != nullptr && depth < kMaxDepth)
        describe_fields(*inner, at + field.offset_bytes, depth + 1, whole);
      continue;
    }
    bundle::ValueType one = describe(field.type, depth + 1);
    one.bits = static_cast<uint8_t>(field.bits);
    one.shift = static_cast<uint8_t>(field.shift);
    if (one.kind != bundle::ValueKind::kNone)
      append_field(whole, field.name, at + field.offset_bytes, std::move(one));
  }
}

bundle::ValueType TypeTable::describe(const Type& type, int depth) {
  using bundle::ValueKind;
  bundle::ValueType out;
  if (depth >= kMaxDepth) return out;
  if (type.kind == Type::Kind::kStruct) {
    const Structure* known = structure(type.name);
    if (known == nullptr) return out;
    out.kind = ValueKind::kTuple;
    describe_fields(*known, 0, depth, out);
    if (out.fields.empty()) return {};
  } else if (type.kind == Type::Kind::kArray) {
    out.kind = ValueKind::kArray;
    out.fields.push_back(describe(type.fields[0], depth + 1));
    out.offsets = {type.count};
    if (out.fields[0].size == 0) return {};
  } else if (type.is_int() || type.is_pointer() || type.is_string()) {
    out = to_value_type(type);
  } else {
    return out;
  }
  out.size = size_of(type);
  return out;
}

Type TypeTable::object(const Type& type) {
  const uint32_t bytes = size_of(type);
  if (bytes == 0) return {};
  auto& layout = layouts_[to_string(type)];
  if (layout == nullptr) layout = std::make_shared<bundle::ValueType>(describe(type, 0));
  if (layout->kind == bundle::ValueKind::kNone) return {};
  return Type::object(type, bytes, layout);
}

uint32_t TypeTable::alignment_of(const Type& type) {
  switch (type.kind) {
    case Type::Kind::kStruct: {
      const Structure* known = structure(type.name);
      return known == nullptr ? 1 : alignment_of(*known, 0);
    }
    case Type::Kind::kArray: return alignment_of(type.fields[0]);
    case Type::Kind::kInt: return type.size;
    case Type::Kind::kString: return 1;
    default: return 8;
  }
}

/// The largest of its fields', as far as they may be told: a field lies at a multiple of it.
uint32_t TypeTable::alignment_of(const Structure& structure, int depth) {
  if (const auto known = alignments_.find(structure.name); known != alignments_.end())
    return known->second;
  uint32_t most = 1;
  for (const StructField& one : structure.fields) {
    uint32_t its = 1;
    Type type = one.type;
    while (type.kind == Type::Kind::kArray) type = Type(type.fields[0]);
    if (type.kind != Type::Kind::kStruct) {
      its = alignment_of(type);
    } else if (const Structure* inner = this->structure(type.name);
               inner != nullptr && depth < kMaxDepth) {
      its = alignment_of(*inner, depth + 1);
    }
    most = std::max(most, its);
  }
  while (most > 1 && structure.size_bytes % most != 0) most /= 2;  // packed
  return most;
}

}  // namespace spile::lang
