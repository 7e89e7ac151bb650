// MachineWorld: types of programs and of the kernel, and what else is known before a script runs.
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <ctime>

#include "elf/debug_file.h"
#include "session/world.h"

namespace spile::session {

// ---- types of programs
// ----------------------------------------------------------------------------------------------

/// From the file itself, or where that is stripped from its separate debug file.
Result<UserTypes> MachineWorld::load_user_types(const std::string& path) {
  auto own = UserTypes::load(path, path);
  if (own || own.error().code != ErrorCode::kUnsupported) return own;
  SPILE_TRY(const elf::File file, elf::File::open(path));
  const auto debug = elf::open_debug_file(file, "", path);
  if (!debug) return own;
  return UserTypes::load(debug->path(), path);
}

Result<const UserTypes*> MachineWorld::user_types(const std::string& path) {
  auto known = user_types_.find(path);
  if (known == user_types_.end()) known = user_types_.emplace(path, load_user_types(path)).first;
  if (!known->second) return std::unexpected(known->second.error());
  return &*known->second;
}

Result<std::vector<lang::UserParameter>> MachineWorld::user_parameters(
    const lang::UserFunction& function) {
  SPILE_TRY(const UserTypes* types, user_types(function.path));
  SPILE_TRY(const auto files, this->files(function.path));
  SPILE_TRY(const symbols::ModuleSymbols* module, this->module(files.front()));
  for (const auto* one : module->find(function.symbol)) {
    auto parameters = types->parameters(one->addr.value);
    if (parameters) return parameters;
  }
  return fail(ErrorCode::kNotFound, "the debug information of {} does not have {}", function.path,
              function.symbol);
}

Result<lang::Structure> MachineWorld::user_structure(std::string_view path, std::string_view name) {
  SPILE_TRY(const UserTypes* types, user_types(std::string(path)));
  return types->structure(name);
}

Result<std::vector<lang::SourcePlace>> MachineWorld::source_line(const std::string& path,
                                                                 std::string_view file,
                                                                 uint32_t line,
                                                                 uint32_t column) {
  SPILE_TRY(const UserTypes* types, user_types(path));
  SPILE_TRY(const auto places, types->line(file, line, column));
  std::vector<lang::SourcePlace> out;
  for (const auto& [address, function] : places) out.push_back({address, function});
  return out;
}

// ---- the kernel's types
// ------------------------------------------------------------------------------------------

Result<const KernelStructs*> MachineWorld::kernel_structs() {
  if (!kernel_structs_) {
    auto types = types_->kernel();
    kernel_structs_ = types ? Result<KernelStructs>(KernelStructs(std::move(*types)))
                            : std::unexpected(types.error());
  }
  if (!*kernel_structs_) return std::unexpected(kernel_structs_->error());
  return &**kernel_structs_;
}

bool MachineWorld::has_kernel_types() {
  return ::access(options_.btf.c_str(), R_OK) == 0;
}

Result<lang::Structure> MachineWorld::kernel_structure(std::string_view name) {
  SPILE_TRY(const KernelStructs* types, kernel_structs());
  return types->structure(name);
}

Result<lang::Type> MachineWorld::kernel_type(std::string_view name) {
  SPILE_TRY(const KernelStructs* types, kernel_structs());
  return types->named(name);
}

Result<lang::Type> MachineWorld::kernel_enumeration_of(std::string_view constant) {
  SPILE_TRY(const KernelStructs* types, kernel_structs());
  return types->enumeration_of(constant);
}

Result<int64_t> MachineWorld::kernel_enumerator(std::string_view name) {
  SPILE_TRY(const KernelStructs* types, kernel_structs());
  return types->enumerator(name);
}

/// A cgroup's id is the inode of its folder.
Result<uint64_t> MachineWorld::cgroup_id(std::string_view path) {
  struct stat st{};
  const std::string full = std::string(path).starts_with(options_.cgroups)
                               ? std::string(path)
                               : options_.cgroups + "/" + std::string(path);
  if (::stat(full.c_str(), &st) != 0) return fail_errno(errno, "find the cgroup {}", full);
  return st.st_ino;
}

Result<lang::World::UserVariable> MachineWorld::user_variable(std::string_view path,
                                                              std::string_view name) {
  SPILE_TRY(const auto files, this->files(path));
  SPILE_TRY(const symbols::ModuleSymbols* module, this->module(files.front()));
  SPILE_TRY(const elf::Variables variables, elf::read_variables(module->file()));
  const auto found = variables.find(name);
  if (found == variables.end())
    return fail(ErrorCode::kNotFound, "no variable is called {} in {}{}", name, path,
                module->has_full_symbols() ? "" : " (it is stripped)");
  if (!found->second)
    return fail(ErrorCode::kUnsupported, "several variables of {} are called {}", path, name);
  return UserVariable{found->second->address.value, found->second->size_bytes};
}

Result<uint64_t> MachineWorld::user_function_address(const lang::UserFunction& function) {
  SPILE_TRY(const auto files, this->files(function.path));
  SPILE_TRY(const symbols::ModuleSymbols* module, this->module(files.front()));
  const auto found = module->find(function.symbol);
  if (found.empty())
    return fail(ErrorCode::kNotFound, "no function is called {} in {}", function.symbol,
                function.path);
  for (const auto* one : found) {
    if (one->addr != found.front()->addr)
      return fail(ErrorCode::kUnsupported, "several functions of {} are called {}", function.path,
                  function.symbol);
  }
  if (found.front()->type != elf::SymbolType::kFunction)
    return fail(ErrorCode::kUnsupported, "{} of {} is chosen when the program starts (IFUNC)",
                function.symbol, function.path);
  return found.front()->addr.value;
}

/// Source: PROC_PID_INIT_INO in include/linux/proc_ns.h.
bool MachineWorld::counts_pids_as_the_kernel() {
  constexpr ino_t kFirstNamespace = 0xEFFFFFFC;
  struct stat status = {};
  return ::stat("/proc/self/ns/pid", &status) == 0 && status.st_ino == kFirstNamespace;
}

namespace {

/// How far `clock` is before CLOCK_MONOTONIC, off by at most half of what lies between two looks at
/// that.
int64_t offset_ns(clockid_t clock) {
  const auto now = [](clockid_t which) {
    timespec time = {};
    clock_gettime(which, &time);
    return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
  };
  const int64_t before = now(CLOCK_MONOTONIC), other = now(clock), after = now(CLOCK_MONOTONIC);
  return other - (before + (after - before) / 2);
}

}  // namespace

int64_t MachineWorld::real_time_offset_ns() {
  return offset_ns(CLOCK_REALTIME);
}

int64_t MachineWorld::tai_offset_ns() {
  return offset_ns(CLOCK_TAI);
}

uint32_t MachineWorld::cpu_count() {
  const long count = ::sysconf(_SC_NPROCESSORS_CONF);
  return count > 0 ? static_cast<uint32_t>(count) : 1;
}

}  // namespace spile::session
