// The running kernel's type information (BTF): which functions, tracepoints and iterators it has
// and what their arguments are.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "btf/btf.h"
#include "bundle/bundle.h"

namespace spile::kernel_engine {

struct TypedArgument {
  enum class Shape : uint8_t { kInt, kPointer, kOther };
  std::string name;
  std::string type;     ///< as C spells it: "struct task_struct *"
  uint32_t offset = 0;  ///< bytes in the context; words of 8
  uint32_t size = 8;    ///< bytes of the value itself
  bool is_signed = false;
  Shape shape = Shape::kInt;
};

struct TypedFunction {
  std::string module;  ///< "" is the kernel proper
  std::string name;
  std::vector<TypedArgument> arguments;
  std::optional<TypedArgument> result;
  uint32_t context_size = 0;  ///< bytes, the result's word included where there is one
};

/// What a program is loaded against.
struct TypeTarget {
  uint32_t id = 0;
  Fd object;  ///< of the module's type information; none: the kernel's
};

/// The kernel's section, for all who ask about it. Mapped where the kernel allows that (6.16), else
/// read. Errors: unsupported, there is none.
Result<std::shared_ptr<const btf::Types>> load_kernel_btf(const std::string& path);

/// Reads the sections when first asked and keeps them: one of these serves the compiler and the
/// engine. One thread uses it.
class KernelTypes {
 public:
  /// `path`: the kernel's section; those of modules lie beside it.
  explicit KernelTypes(std::string path = "/sys/kernel/btf/vmlinux") : path_(std::move(path)) {}

  // `module` "" or "vmlinux" is the kernel proper; of a module that is not loaded nothing is found.
  // Names may hold `*`. Errors: unsupported, there is no type information; not found.
  Result<std::vector<TypedFunction>> functions(std::string_view module, std::string_view name);
  Result<std::vector<TypedFunction>> raw_tracepoints(std::string_view module,
                                                     std::string_view name);
  /// The arguments are the fields of struct bpf_iter__NAME.
  Result<std::vector<TypedFunction>> iterators(std::string_view name);

  /// For a probe of kRawTracepoint, kFentry, kFexit or kIter.
  Result<TypeTarget> target(const bundle::Probe& probe);
  /// The id of a function of the kernel proper, such as bpf_session_is_return.
  Result<uint32_t> function_id(std::string_view name);

  Result<std::shared_ptr<const btf::Types>> kernel();

 private:
  using Section = Result<std::shared_ptr<const btf::Types>>;
  Section of(std::string_view module);

  std::string path_;
  std::optional<Section> kernel_;
  std::map<std::string, Section, std::less<>> modules_;
};

}  // namespace spile::kernel_engine
