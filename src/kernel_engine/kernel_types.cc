#include "kernel_engine/kernel_types.h"

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <linux/bpf.h>

#include <cerrno>
#include <cstring>

#include "symbols/glob.h"

namespace spile::kernel_engine {

using bundle::Probe;
using bundle::ProbeKind;

namespace {

constexpr std::string_view kTracePrefix = "btf_trace_", kIterPrefix = "bpf_iter_";

std::string_view name_at(const btf* types, uint32_t offset) {
  const char* name = btf__name_by_offset(types, offset);
  return name == nullptr ? "" : name;
}

bool is_modifier(const btf_type* type) {
  return btf_is_mod(type) || btf_is_typedef(type);
}

/// Past const, volatile, typedef and the like.
const btf_type* plain(const btf* types, uint32_t id) {
  const btf_type* type = btf__type_by_id(types, id);
  for (int depth = 0; type != nullptr && is_modifier(type) && depth < 32; depth++)
    type = btf__type_by_id(types, type->type);
  return type;
}

/// As C spells it, without what only the compiler cares about.
std::string spell(const btf* types, uint32_t id, int depth = 0) {
  const btf_type* type = btf__type_by_id(types, id);
  if (id == 0 || type == nullptr || depth > 16) return "void";
  auto inner = [&] { return spell(types, type->type, depth + 1); };
  std::string name(name_at(types, type->name_off));
  switch (btf_kind(type)) {
    case BTF_KIND_PTR: {
      std::string pointee = inner();
      return pointee + (pointee.ends_with('*') ? "*" : " *");
    }
    case BTF_KIND_CONST: return "const " + inner();
    case BTF_KIND_VOLATILE:
    case BTF_KIND_RESTRICT:
    case BTF_KIND_TYPE_TAG: return inner();
    case BTF_KIND_STRUCT: return "struct " + name;
    case BTF_KIND_UNION: return "union " + name;
    case BTF_KIND_FWD: return (btf_kflag(type) ? "union " : "struct ") + name;
    case BTF_KIND_ENUM:
    case BTF_KIND_ENUM64: return "enum " + name;
    case BTF_KIND_ARRAY:
      return fmt::format("{}[{}]", spell(types, btf_array(type)->type, depth + 1),
                         btf_array(type)->nelems);
    case BTF_KIND_FUNC_PROTO: return "void (*)()";
    default: return name;
  }
}

TypedArgument describe(const btf* types, std::string_view name, uint32_t id) {
  using Shape = TypedArgument::Shape;
  TypedArgument argument;
  argument.name = name;
  argument.type = spell(types, id);
  const btf_type* type = plain(types, id);
  if (type == nullptr || id == 0) {
    argument.shape = Shape::kOther;
    return argument;
  }
  switch (btf_kind(type)) {
    case BTF_KIND_INT:
      argument.is_signed = (btf_int_encoding(type) & BTF_INT_SIGNED) != 0;
      argument.size = type->size;
      break;
    case BTF_KIND_ENUM:
    case BTF_KIND_ENUM64:
      argument.is_signed = btf_kflag(type);
      argument.size = type->size;
      break;
    case BTF_KIND_PTR:
    case BTF_KIND_ARRAY: argument.shape = Shape::kPointer; break;  // an array decays
    case BTF_KIND_STRUCT:
    case BTF_KIND_UNION:
      argument.shape = Shape::kOther;
      argument.size = type->size;
      break;
    default: argument.shape = Shape::kOther;
  }
  return argument;
}

uint32_t words(uint32_t size) {
  return std::max<uint32_t>(1, (size + 7) / 8);
}

/// The parameters from `first` on, and what is returned.
void read_signature(const btf* types,
                    const btf_type* prototype,
                    size_t first,
                    TypedFunction& function) {
  const btf_param* parameters = btf_params(prototype);
  for (size_t i = first; i < btf_vlen(prototype); i++) {
    if (parameters[i].type == 0) continue;  // "..."
    auto argument = describe(types, name_at(types, parameters[i].name_off), parameters[i].type);
    argument.offset = function.context_size;
    function.context_size += 8 * words(argument.size);
    function.arguments.push_back(std::move(argument));
  }
  if (prototype->type == 0) return;
  function.result = describe(types, "retval", prototype->type);
  function.result->offset = function.context_size;
}

/// Calls `found(name, type)` for each type of one kind whose name, without `prefix`, matches.
template <typename Found>
void each_named(const btf* types,
                uint32_t kind,
                std::string_view prefix,
                std::string_view pattern,
                const Found& found) {
  const uint32_t count = btf__type_cnt(types);
  const btf* base = btf__base_btf(types);
  for (uint32_t id = base == nullptr ? 1 : btf__type_cnt(base); id < count; id++) {
    const btf_type* type = btf__type_by_id(types, id);
    if (btf_kind(type) != kind) continue;
    std::string_view name = name_at(types, type->name_off);
    if (!name.starts_with(prefix)) continue;
    name.remove_prefix(prefix.size());
    if (symbols::glob_matches(pattern, name)) found(name, type);
  }
}

/// The type of a tracepoint's probes has no names of its arguments; the function that calls the
/// probes has them.
const btf_type* tracepoint_prototype(const btf* types,
                                     std::string_view name,
                                     const btf_type* its_typedef) {
  for (std::string_view prefix : {"__traceiter_", "__probestub_"}) {
    const std::string caller = fmt::format("{}{}", prefix, name);
    int id = btf__find_by_name_kind(types, caller.c_str(), BTF_KIND_FUNC);
    if (id > 0) return plain(types, btf__type_by_id(types, static_cast<uint32_t>(id))->type);
  }
  const btf_type* pointer = plain(types, its_typedef->type);
  return pointer != nullptr && btf_is_ptr(pointer) ? plain(types, pointer->type) : nullptr;
}

bool is_kernel_proper(std::string_view module) {
  return module.empty() || module == "vmlinux";
}

/// The type information that the kernel keeps of a loaded module.
Result<Fd> module_object(std::string_view module) {
  for (uint32_t id = 0; bpf_btf_get_next_id(id, &id) == 0;) {
    Fd fd(bpf_btf_get_fd_by_id(id));
    if (!fd) continue;
    char name[64] = {};
    bpf_btf_info info = {};
    info.name = reinterpret_cast<uint64_t>(name);
    info.name_len = sizeof name;
    uint32_t size = sizeof info;
    if (bpf_obj_get_info_by_fd(fd.get(), &info, &size) == 0 && module == name) return fd;
  }
  return fail(ErrorCode::kNotFound, "no module {} with type information is loaded", module);
}

Result<std::vector<TypedFunction>> or_not_found(std::vector<TypedFunction> found,
                                                std::string_view what,
                                                std::string_view name) {
  if (!found.empty()) return found;
  return fail(ErrorCode::kNotFound, "the kernel's type information has no {} '{}'", what, name);
}

}  // namespace

void KernelTypes::Deleter::operator()(btf* types) const {
  btf__free(types);
}
KernelTypes::KernelTypes() = default;
KernelTypes::~KernelTypes() = default;

Result<const btf*> KernelTypes::kernel() {
  if (kernel_) return kernel_.get();
  kernel_.reset(btf__load_vmlinux_btf());
  if (!kernel_)
    return fail(ErrorCode::kUnsupported,
                "this kernel has no type information (/sys/kernel/btf/vmlinux: {}); it comes with "
                "CONFIG_DEBUG_INFO_BTF",
                std::strerror(errno));
  return kernel_.get();
}

Result<const btf*> KernelTypes::of(std::string_view module) {
  SPILE_TRY(const btf* kernel, this->kernel());
  if (is_kernel_proper(module)) return kernel;
  auto known = modules_.find(module);
  if (known == modules_.end()) {
    std::string name(module);
    known = modules_.emplace(name, btf__load_module_btf(name.c_str(), kernel_.get())).first;
  }
  if (!known->second)
    return fail(ErrorCode::kNotFound, "there is no type information of a module '{}'", module);
  return known->second.get();
}

Result<std::vector<TypedFunction>> KernelTypes::functions(std::string_view module,
                                                          std::string_view name) {
  SPILE_TRY(const btf* types, of(module));
  std::vector<TypedFunction> found;
  each_named(types, BTF_KIND_FUNC, "", name, [&](std::string_view its, const btf_type* type) {
    const btf_type* prototype = btf__type_by_id(types, type->type);
    if (prototype == nullptr || !btf_is_func_proto(prototype)) return;
    TypedFunction function{.module = std::string(is_kernel_proper(module) ? "" : module),
                           .name = std::string(its)};
    read_signature(types, prototype, 0, function);
    // Static functions may share a name; the kernel takes the first.
    if (found.empty() || found.back().name != function.name) found.push_back(std::move(function));
  });
  return or_not_found(std::move(found), "function", name);
}

Result<std::vector<TypedFunction>> KernelTypes::raw_tracepoints(std::string_view module,
                                                                std::string_view name) {
  SPILE_TRY(const btf* types, of(module));
  std::vector<TypedFunction> found;
  each_named(types, BTF_KIND_TYPEDEF, kTracePrefix, name,
             [&](std::string_view its, const btf_type* type) {
               const btf_type* prototype = tracepoint_prototype(types, its, type);
               if (prototype == nullptr || !btf_is_func_proto(prototype)) return;
               TypedFunction function{.module = std::string(is_kernel_proper(module) ? "" : module),
                                      .name = std::string(its)};
               read_signature(types, prototype, 1, function);  // 0 is what registered the probe
               function.result.reset();
               found.push_back(std::move(function));
             });
  return or_not_found(std::move(found), "tracepoint", name);
}

Result<std::vector<TypedFunction>> KernelTypes::iterators(std::string_view name) {
  SPILE_TRY(const btf* types, kernel());
  std::vector<TypedFunction> found;
  each_named(
      types, BTF_KIND_STRUCT, "bpf_iter__", name, [&](std::string_view its, const btf_type* type) {
        TypedFunction function{.module = "", .name = std::string(its)};
        const btf_member* members = btf_members(type);
        for (size_t i = 0; i < btf_vlen(type); i++) {
          std::string_view field = name_at(types, members[i].name_off);
          uint32_t id = members[i].type;
          // Pointers are kept in unions that make them 8 bytes anywhere.
          const btf_type* inner = plain(types, id);
          if (field.empty() && inner != nullptr && btf_is_composite(inner) && btf_vlen(inner) > 0) {
            field = name_at(types, btf_members(inner)->name_off);
            id = btf_members(inner)->type;
          }
          auto argument = describe(types, field, id);
          argument.offset = btf_member_bit_offset(type, static_cast<uint32_t>(i)) / 8;
          function.arguments.push_back(std::move(argument));
        }
        function.context_size = type->size;
        found.push_back(std::move(function));
      });
  return or_not_found(std::move(found), "iterator", name);
}

Result<uint32_t> KernelTypes::function_id(std::string_view name) {
  SPILE_TRY(const btf* types, kernel());
  int id = btf__find_by_name_kind(types, std::string(name).c_str(), BTF_KIND_FUNC);
  if (id < 0) return fail(ErrorCode::kUnsupported, "this kernel has no function {}", name);
  return static_cast<uint32_t>(id);
}

Result<TypeTarget> KernelTypes::target(const Probe& probe) {
  SPILE_TRY(const btf* types, of(probe.module));
  bool is_raw = probe.kind == ProbeKind::kRawTracepoint;
  std::string name = probe.symbol;
  if (is_raw) name.insert(0, kTracePrefix);
  if (probe.kind == ProbeKind::kIter) name.insert(0, kIterPrefix);
  int id = btf__find_by_name_kind(types, name.c_str(), is_raw ? BTF_KIND_TYPEDEF : BTF_KIND_FUNC);
  if (id < 0)
    return fail(ErrorCode::kNotFound, "{}: the kernel's type information has no {}", probe.name,
                name);
  TypeTarget target;
  target.id = static_cast<uint32_t>(id);
  if (!is_kernel_proper(probe.module)) {
    SPILE_TRY(target.object, module_object(probe.module));
  }
  return target;
}

}  // namespace spile::kernel_engine
