// The machine as a script sees it: which functions, files and events its probes can name.
// Implements lang::World.
#pragma once

#include <sys/types.h>

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "kernel_engine/kernel_types.h"
#include "lang/sema/world.h"
#include "session/kernel_structs.h"
#include "session/usdt_file.h"
#include "session/user_types.h"
#include "symbols/kallsyms.h"
#include "symbols/library_path.h"
#include "symbols/module_symbols.h"

namespace spile::session {

struct WorldOptions {
  std::vector<pid_t>
      pids;             ///< -p: names mean their files, "" is their program, "*" all files they map
  std::string program;  ///< -c: path or name of the program that will run; "" none
  std::string search_path;  ///< $PATH; "" is the usual one
  std::string kallsyms = "/proc/kallsyms";
  std::string btf = "/sys/kernel/btf/vmlinux";
  std::string cgroups = "/sys/fs/cgroup";
  /// Where tracefs may be mounted, in the order of trial.
  std::vector<std::string> tracefs = {"/sys/kernel/tracing", "/sys/kernel/debug/tracing"};
};

/// Reads files when first asked about them and keeps what it read. One thread uses it.
class MachineWorld final : public lang::World {
 public:
  explicit MachineWorld(WorldOptions options)
      : options_(std::move(options)),
        types_(std::make_shared<kernel_engine::KernelTypes>(options_.btf)) {}

  /// What the kernel says of its types: read once, by whoever asks first.
  const std::shared_ptr<kernel_engine::KernelTypes>& types() const { return types_; }

  Result<std::vector<lang::UserFunction>> user_functions(std::string_view target,
                                                         std::string_view symbol) override;
  Result<std::vector<lang::CppFunction>> cpp_functions(std::string_view target,
                                                       std::string_view name) override;
  Result<std::string> user_file(std::string_view target) override;
  Result<std::vector<lang::UsdtSite>> usdt_sites(std::string_view target,
                                                 std::string_view provider,
                                                 std::string_view name) override;
  Result<std::vector<lang::KernelFunction>> kernel_functions(std::string_view module,
                                                             std::string_view symbol) override;
  /// As kernel_functions, but a plain name is looked up as well, which reads the kernel's list.
  Result<std::vector<lang::KernelFunction>> known_kernel_functions(std::string_view module,
                                                                   std::string_view symbol);
  Result<uint64_t> kernel_address(std::string_view symbol) override;
  Result<std::vector<lang::Tracepoint>> tracepoints(std::string_view category,
                                                    std::string_view event) override;
  Result<std::vector<lang::UserParameter>> user_parameters(
      const lang::UserFunction& function) override;
  Result<lang::Structure> user_structure(std::string_view path, std::string_view name) override;
  bool has_kernel_types() override;
  Result<lang::Structure> kernel_structure(std::string_view name) override;
  Result<lang::Type> kernel_type(std::string_view name) override;
  Result<std::vector<lang::SourcePlace>> source_line(const std::string& path,
                                                     std::string_view file,
                                                     uint32_t line,
                                                     uint32_t column) override;
  Result<lang::Type> kernel_enumeration_of(std::string_view constant) override;
  Result<int64_t> kernel_enumerator(std::string_view name) override;
  Result<uint64_t> cgroup_id(std::string_view path) override;
  Result<UserVariable> user_variable(std::string_view path, std::string_view name) override;
  Result<uint64_t> user_function_address(const lang::UserFunction& function) override;
  bool has_command() override { return !options_.program.empty(); }
  bool counts_pids_as_the_kernel() override;
  int64_t real_time_offset_ns() override;
  int64_t tai_offset_ns() override;
  uint32_t cpu_count() override;
  Result<std::vector<lang::Tracepoint>> typed_events(lang::TypedEvent kind,
                                                     std::string_view module,
                                                     std::string_view name) override;
  std::vector<std::string> near_user_functions(std::string_view target,
                                               std::string_view symbol) override;
  std::vector<std::string> near_usdt(std::string_view target, std::string_view name) override;
  std::vector<std::string> near_kernel_functions(std::string_view symbol) override;
  std::vector<std::string> near_tracepoints(std::string_view category,
                                            std::string_view event) override;

  /// The names alone of what tracepoints() would give, sorted: "sched:sched_switch". Errors:
  /// denied, unsupported.
  Result<std::vector<std::string>> tracepoint_names(std::string_view category,
                                                    std::string_view event);

 private:
  Result<std::vector<symbols::Located>> files(std::string_view target);
  Result<std::vector<symbols::Located>> find_files(std::string_view target);
  Result<std::vector<symbols::Located>> programs();
  std::vector<symbols::Located> mapped_files(std::string_view target);
  /// Whose root an absolute path begins at.
  enum class NamedFrom : uint8_t { kItsRoot, kOurRoot };
  std::vector<symbols::Located> removed_files(std::string_view path, NamedFrom named_from);
  Result<std::string> openable(const symbols::Located& file);
  Result<const symbols::ModuleSymbols*> module(const symbols::Located& file);
  Result<std::vector<symbols::Located>> usdt_files(std::string_view target);
  Result<UsdtFile*> usdt_file(const symbols::Located& file);
  Result<const symbols::Kallsyms*> kernel();
  Result<uint64_t> kernel_variable(std::string_view symbol);
  const std::string* traceable_list();
  std::optional<std::vector<lang::KernelFunction>> traceable(std::string_view module,
                                                             std::string_view symbol);
  Result<std::vector<lang::KernelFunction>> listed_functions(std::string_view module,
                                                             std::string_view symbol);
  Result<std::string> events_folder();
  Result<const KernelStructs*> kernel_structs();
  Result<const UserTypes*> user_types(const std::string& path);
  Result<UserTypes> load_user_types(const std::string& path);

  WorldOptions options_;
  std::map<std::string, Result<std::vector<symbols::Located>>, std::less<>> files_;  ///< by target
  std::map<elf::FileIdentity, Result<symbols::ModuleSymbols>> modules_;
  std::map<elf::FileIdentity, Result<UsdtFile>> usdt_;
  std::vector<std::shared_ptr<Fd>> images_;  ///< of removed files, for as long as they are read
  std::optional<Result<symbols::Kallsyms>> kernel_;
  std::optional<std::string> traceable_list_;  ///< available_filter_functions
  std::optional<Result<KernelStructs>> kernel_structs_;
  std::map<std::string, Result<UserTypes>> user_types_;  ///< by path
  std::shared_ptr<kernel_engine::KernelTypes> types_;
};

}  // namespace spile::session
