#include "kernel_engine/kernel_types.h"

#include <bpf/bpf.h>
#include <linux/bpf.h>

#include <algorithm>
#include <filesystem>

#include "os/memory.h"
#include "os/process.h"
#include "symbols/glob.h"

namespace spile::kernel_engine {

using btf::Kind;
using btf::Types;
using bundle::Probe;
using bundle::ProbeKind;

namespace {

constexpr std::string_view kTracePrefix = "btf_trace_", kIterPrefix = "bpf_iter_";
constexpr int kMostDepth = 16;

/// As C spells it, without what only the compiler cares about.
std::string spell(const Types& types, uint32_t number, int depth = 0) {
  const btf::Type type = types.type(number);
  if (type.kind == Kind::kVoid || depth > kMostDepth) return "void";
  auto target = [&] { return spell(types, type.target, depth + 1); };
  const std::string name(type.name);
  switch (type.kind) {
    case Kind::kPointer: {
      const std::string pointee = target();
      return pointee + (pointee.ends_with('*') ? "*" : " *");
    }
    case Kind::kConst: return "const " + target();
    case Kind::kVolatile:
    case Kind::kRestrict:
    case Kind::kTypeTag: return target();
    case Kind::kStruct: return "struct " + name;
    case Kind::kUnion: return "union " + name;
    case Kind::kForward: return (type.is_union ? "union " : "struct ") + name;
    case Kind::kEnum:
    case Kind::kEnum64: return "enum " + name;
    case Kind::kArray: return fmt::format("{}[{}]", target(), type.count);
    case Kind::kPrototype: return "void (*)()";
    default: return name;
  }
}

TypedArgument describe(const Types& types, std::string_view name, uint32_t number) {
  using Shape = TypedArgument::Shape;
  TypedArgument argument;
  argument.name = name;
  argument.type = spell(types, number);
  const btf::Type type = types.type(types.strip(number));
  argument.is_signed = type.is_signed;
  switch (type.kind) {
    case Kind::kInt:
    case Kind::kEnum:
    case Kind::kEnum64: argument.size = type.size_bytes; break;
    case Kind::kPointer:
    case Kind::kArray: argument.shape = Shape::kPointer; break;  // an array decays
    case Kind::kStruct:
    case Kind::kUnion:
      argument.shape = Shape::kOther;
      argument.size = type.size_bytes;
      break;
    default: argument.shape = Shape::kOther;
  }
  return argument;
}

uint32_t words(uint32_t size) {
  return std::max<uint32_t>(1, (size + 7) / 8);
}

/// The parameters from `first` on, and what is returned.
void read_signature(const Types& types, uint32_t prototype, size_t first, TypedFunction& function) {
  const auto parameters = types.parameters(prototype);
  for (size_t i = first; i < parameters.size(); i++) {
    if (parameters[i].type == 0) continue;  // "..."
    auto argument = describe(types, parameters[i].name, parameters[i].type);
    argument.offset = function.context_size;
    function.context_size += 8 * words(argument.size);
    function.arguments.push_back(std::move(argument));
  }
  const uint32_t result = types.type(prototype).target;
  if (result == 0) return;
  function.result = describe(types, "retval", result);
  function.result->offset = function.context_size;
}

/// Calls `found(name, number)` for each type of one kind whose name, without `prefix`, matches: of
/// this section alone. Of a plain name the first.
template <typename Found>
void each_named(const Types& types,
                Kind kind,
                std::string_view prefix,
                std::string_view pattern,
                const Found& found) {
  if (!symbols::has_wildcard(pattern)) {
    const auto number = types.find(kind, fmt::format("{}{}", prefix, pattern));
    if (number && *number >= types.first()) found(pattern, *number);
    return;
  }
  for (uint32_t number = types.first(); number < types.count(); number++) {
    if (types.kind(number) != kind) continue;
    std::string_view name = types.type(number).name;
    if (!name.starts_with(prefix)) continue;
    name.remove_prefix(prefix.size());
    if (symbols::glob_matches(pattern, name)) found(name, number);
  }
}

/// The type of a tracepoint's probes has no names of its arguments; the function that calls the
/// probes has them.
uint32_t tracepoint_prototype(const Types& types, std::string_view name, uint32_t its_typedef) {
  for (std::string_view prefix : {"__traceiter_", "__probestub_"}) {
    const auto caller = types.find(Kind::kFunction, fmt::format("{}{}", prefix, name));
    if (caller) return types.type(*caller).target;
  }
  const btf::Type pointer = types.type(types.strip(its_typedef));
  return pointer.kind == Kind::kPointer ? types.strip(pointer.target) : 0;
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

Result<std::shared_ptr<const Types>> load_kernel_btf(const std::string& path) {
  Result<Types> types;
  if (auto mapped = os::map_read_only(path)) {
    auto kept = std::make_shared<const Mapping>(std::move(*mapped));
    types = Types::parse(kept->bytes(), kept);
  } else {
    auto text = os::read_file(path);
    if (!text)
      return fail(ErrorCode::kUnsupported,
                  "this kernel has no type information ({}); it comes with CONFIG_DEBUG_INFO_BTF",
                  text.error().message);
    types = Types::parse(std::vector<uint8_t>(text->begin(), text->end()));
  }
  if (!types) return forward(types, "{}", path);
  return std::make_shared<const Types>(std::move(*types));
}

KernelTypes::Section KernelTypes::kernel() {
  if (!kernel_) kernel_ = load_kernel_btf(path_);
  return *kernel_;
}

KernelTypes::Section KernelTypes::of(std::string_view module) {
  SPILE_TRY(auto kernel, this->kernel());
  if (is_kernel_proper(module)) return kernel;
  auto known = modules_.find(module);
  if (known != modules_.end()) return known->second;
  const auto path = std::filesystem::path(path_).parent_path() / module;
  auto load = [&]() -> Section {
    auto text = os::read_file(path);
    if (!text)
      return fail(ErrorCode::kNotFound, "there is no type information of a module '{}'", module);
    auto types = Types::parse(std::vector<uint8_t>(text->begin(), text->end()), kernel);
    if (!types) return forward(types, "{}", path.string());
    return std::make_shared<const Types>(std::move(*types));
  };
  return modules_.emplace(std::string(module), load()).first->second;
}

Result<std::vector<TypedFunction>> KernelTypes::functions(std::string_view module,
                                                          std::string_view name) {
  SPILE_TRY(const auto types, of(module));
  std::vector<TypedFunction> found;
  each_named(*types, Kind::kFunction, "", name, [&](std::string_view its, uint32_t number) {
    const uint32_t prototype = types->type(number).target;
    if (types->kind(prototype) != Kind::kPrototype) return;
    TypedFunction function{.module = std::string(is_kernel_proper(module) ? "" : module),
                           .name = std::string(its)};
    read_signature(*types, prototype, 0, function);
    // Static functions may share a name; the kernel takes the first.
    if (found.empty() || found.back().name != function.name) found.push_back(std::move(function));
  });
  return or_not_found(std::move(found), "function", name);
}

Result<std::vector<TypedFunction>> KernelTypes::raw_tracepoints(std::string_view module,
                                                                std::string_view name) {
  SPILE_TRY(const auto types, of(module));
  std::vector<TypedFunction> found;
  each_named(*types, Kind::kTypedef, kTracePrefix, name,
             [&](std::string_view its, uint32_t number) {
               const uint32_t prototype = tracepoint_prototype(*types, its, number);
               if (types->kind(prototype) != Kind::kPrototype) return;
               TypedFunction function{.module = std::string(is_kernel_proper(module) ? "" : module),
                                      .name = std::string(its)};
               read_signature(*types, prototype, 1, function);  // 0 is what registered the probe
               function.result.reset();
               found.push_back(std::move(function));
             });
  return or_not_found(std::move(found), "tracepoint", name);
}

Result<std::vector<TypedFunction>> KernelTypes::iterators(std::string_view name) {
  SPILE_TRY(const auto types, kernel());
  std::vector<TypedFunction> found;
  each_named(*types, Kind::kStruct, "bpf_iter__", name, [&](std::string_view its, uint32_t number) {
    TypedFunction function{.module = "", .name = std::string(its)};
    for (const btf::Member& member : types->members(number)) {
      std::string_view field = member.name;
      uint32_t type = member.type;
      // Pointers are kept in unions that make them 8 bytes anywhere.
      const auto inner = types->members(types->strip(type));
      if (field.empty() && !inner.empty()) {
        field = inner.front().name;
        type = inner.front().type;
      }
      auto argument = describe(*types, field, type);
      argument.offset = member.offset_bits / 8;
      function.arguments.push_back(std::move(argument));
    }
    function.context_size = types->type(number).size_bytes;
    found.push_back(std::move(function));
  });
  return or_not_found(std::move(found), "iterator", name);
}

Result<uint32_t> KernelTypes::function_id(std::string_view name) {
  SPILE_TRY(const auto types, kernel());
  if (const auto number = types->find(Kind::kFunction, name)) return *number;
  return fail(ErrorCode::kUnsupported, "this kernel has no function {}", name);
}

Result<TypeTarget> KernelTypes::target(const Probe& probe) {
  SPILE_TRY(const auto types, of(probe.module));
  bool is_raw = probe.kind == ProbeKind::kRawTracepoint;
  std::string name = probe.symbol;
  if (is_raw) name.insert(0, kTracePrefix);
  if (probe.kind == ProbeKind::kIter) name.insert(0, kIterPrefix);
  const auto number = types->find(is_raw ? Kind::kTypedef : Kind::kFunction, name);
  // What a module's base has is the kernel's, not the module's.
  if (!number || *number < types->first())
    return fail(ErrorCode::kNotFound, "{}: the kernel's type information has no {}", probe.name,
                name);
  TypeTarget target;
  target.id = *number;
  if (!is_kernel_proper(probe.module)) {
    SPILE_TRY(target.object, module_object(probe.module));
  }
  return target;
}

}  // namespace spile::kernel_engine
