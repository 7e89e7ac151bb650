#include "session/world.h"

#include <dirent.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>
#include <unordered_set>

#include "elf/root_path.h"
#include "os/heap.h"
#include "os/process.h"
#include "session/tracepoint_format.h"
#include "symbols/cpp_name.h"
#include "symbols/glob.h"
#include "symbols/nearest.h"
#include "user_engine/target/process.h"

namespace spile::session {
namespace {

using symbols::Located;

constexpr size_t kSuggestions = 3;
/// What a function of a glob takes until its probe is compiled, in small pieces.
constexpr size_t kManyFunctions = 2000, kBytesPerFunction = 1000;

// ---- processes and their roots
// -----------------------------------------------------------------------------------

/// "" where the process sees the same files as we do, else "/proc/PID/root". `tid` is a thread that
/// has memory: a leader that has exited has neither root nor program.
std::string root_of(pid_t tid) {
  const auto root = fmt::format("/proc/{}/root", tid);
  struct stat theirs{}, ours{};
  if (::stat((root + "/").c_str(), &theirs) != 0 || ::stat("/", &ours) != 0) return "";
  const auto their_space = os::read_link(fmt::format("/proc/{}/ns/mnt", tid)),
             our_space = os::read_link("/proc/self/ns/mnt");
  const bool is_same_space = their_space && our_space && *their_space == *our_space;
  const bool is_same_root = theirs.st_dev == ours.st_dev && theirs.st_ino == ours.st_ino;
  return is_same_space && is_same_root ? "" : root;
}

/// A path from /proc/PID/maps or exe as a file that we can open; empty where none of that inode is
/// found.
std::optional<Located> as_seen_by_us(const std::string& root,
                                     const std::string& path,
                                     uint64_t inode) {
  for (const auto& base : {root, std::string()}) {
    const auto found = symbols::locate(path, base);
    if (found && !found->empty() && (inode == 0 || found->front().identity.inode == inode))
      return found->front();
  }
  return std::nullopt;
}

/// The program of a process: by its path, or where that is deleted or out of sight by the kernel's
/// own link to the file.
Result<Located> program_of(pid_t pid) {
  const pid_t tid = os::thread_with_memory(pid).value_or(pid);
  const auto link = fmt::format("/proc/{}/exe", tid);
  struct stat st{};
  if (::stat(link.c_str(), &st) != 0) {
    if (errno == ENOENT)
      return fail(ErrorCode::kNotFound,
                  "there is no process {} with a program: it has ended, or is a kernel thread",
                  pid);
    return fail_errno(errno, "find the program of process {}", pid);
  }
  if (const auto path = os::read_link(link))
    if (auto found = as_seen_by_us(root_of(tid), *path, st.st_ino)) return std::move(*found);
  return Located{link, link, link, {st.st_dev, st.st_ino}};
}

/// A mapped file that has been removed or replaced: no path leads to it but the kernel's own name
/// for the mapping.
Located removed_file(pid_t tid, const os::MapEntry& map) {
  return {
      map.path, target::map_file_path(tid, map.start, map.end), map.path, {map.device, map.inode}};
}

bool is_removed(const Located& file) {
  return file.host_path.find("/map_files/") != std::string::npos;
}

/// How bpftrace names the file: as the search found it, links and all. Engines compare files by
/// inode.
const std::string& shown_path(const Located& file) {
  return file.host_path == file.path ? file.found_as : file.host_path;
}

/// What a message calls it.
std::string told_path(const Located& file) {
  return is_removed(file) ? fmt::format("{} (removed or replaced, {})", file.path, file.host_path)
                          : shown_path(file);
}

/// The first mapping of each module of the process: the files that it may mean by a name.
template <typename Visit>
void visit_first_mappings(const std::vector<os::MapEntry>& maps, Visit visit) {
  for (const auto& map : maps) {
    if (!map.exec || map.inode == 0 || !map.path.starts_with('/')) continue;
    const auto first = std::ranges::find_if(maps, [&](const os::MapEntry& m) {
      return m.inode == map.inode && m.device == map.device;
    });
    visit(map, *first);
  }
}

std::string_view base_name(std::string_view path) {
  return path.substr(path.rfind('/') + 1);
}

void add_once(std::vector<Located>& files, Located file) {
  if (std::ranges::find(files, file.identity, &Located::identity) == files.end())
    files.push_back(std::move(file));
}

// ---- tracefs
// -----------------------------------------------------------------------------------------------------

/// The subfolders of `folder` that the pattern matches, sorted. Errors: as opendir's.
Result<std::vector<std::string>> folders_in(const std::string& folder, std::string_view pattern) {
  DIR* dir = ::opendir(folder.c_str());
  if (dir == nullptr) return fail_errno(errno, "read {}", folder);
  std::vector<std::string> names;
  while (const dirent* entry = ::readdir(dir)) {
    const std::string_view name = entry->d_name;
    const bool is_folder = entry->d_type == DT_DIR || entry->d_type == DT_UNKNOWN;
    if (is_folder && name != "." && name != ".." && symbols::glob_matches(pattern, name))
      names.emplace_back(name);
  }
  ::closedir(dir);
  std::ranges::sort(names);
  return names;
}

bool exists(const std::string& path) {
  struct stat st{};
  return ::stat(path.c_str(), &st) == 0;
}

}  // namespace

// ---- user functions
// ----------------------------------------------------------------------------------------------

Result<std::vector<lang::UserFunction>> MachineWorld::user_functions(std::string_view target,
                                                                     std::string_view symbol) {
  SPILE_TRY(const auto files, this->files(target));
  const bool is_pattern = symbols::has_wildcard(symbol);
  std::vector<lang::UserFunction> found;
  for (const auto& file : files) {
    std::unordered_set<std::string_view> seen;
    auto module = this->module(file);
    // Among many files some may be scripts or foreign; a single one must be right.
    if (!module && files.size() == 1) return forward(module);
    if (!module) continue;
    const auto matches = is_pattern ? (*module)->match(symbol) : (*module)->find(symbol);
    if (matches.size() >= kManyFunctions) os::expect_heap_use(matches.size() * kBytesPerFunction);
    seen.reserve(matches.size());
    found.reserve(found.size() + matches.size());
    for (const auto* f : matches) {
      const auto name = is_pattern ? f->name : symbol;  // keeps memcpy@GLIBC_2.2.5
      if (seen.insert(name).second) found.push_back({shown_path(file), std::string(name)});
    }
  }
  if (!found.empty()) return found;
  const auto where = files.size() == 1
                         ? told_path(files[0])
                         : fmt::format("{} files that {} stands for", files.size(), target);
  auto only =
      files.size() == 1 ? this->module(files[0]) : Result<const symbols::ModuleSymbols*>(nullptr);
  const bool is_stripped = only && *only != nullptr && !(*only)->has_full_symbols();
  return fail(ErrorCode::kNotFound, "no function {} {} in {}{}",
              is_pattern ? "matches" : "is called", symbol, where,
              is_stripped ? " (it is stripped: only exported functions are known)" : "");
}

Result<std::vector<lang::CppFunction>> MachineWorld::cpp_functions(std::string_view target,
                                                                   std::string_view name) {
  SPILE_TRY(const auto files, this->files(target));
  std::vector<lang::CppFunction> found;
  for (const auto& file : files) {
    auto module = this->module(file);
    if (!module && files.size() == 1) return forward(module);
    if (!module) continue;
    std::set<std::string_view> seen;
    for (const auto& f : (*module)->functions()) {
      auto demangled = symbols::demangle(std::string(f.name));
      const bool is_meant =
          demangled && (name == f.name || symbols::cpp_name_matches(name, *demangled));
      if (is_meant && seen.insert(f.name).second)
        found.push_back({{shown_path(file), std::string(f.name)}, std::move(*demangled)});
    }
  }
  if (!found.empty()) return found;
  return fail(ErrorCode::kNotFound, "no C++ function matches {} in {}", name,
              files.size() == 1 ? shown_path(files[0])
                                : fmt::format("the {} files that were looked at", files.size()));
}

Result<std::string> MachineWorld::user_file(std::string_view target) {
  SPILE_TRY(const auto files, this->files(target));
  if (files.size() > 1)
    return fail(ErrorCode::kInvalid, "{} stands for {} files, {} and {} among them: name one",
                target, files.size(), shown_path(files[0]), shown_path(files[1]));
  auto module = this->module(files[0]);
  if (!module) return forward(module);
  return shown_path(files[0]);
}

std::vector<std::string> MachineWorld::near_user_functions(std::string_view target,
                                                           std::string_view symbol) {
  symbols::Nearest near(symbol, kSuggestions);
  const auto files = this->files(target);
  if (!files) return {};
  for (const auto& file : *files)
    if (const auto module = this->module(file))
      for (const auto& name : (*module)->nearest(symbol, kSuggestions)) near.offer(name);
  return near.take();
}

/// Never empty.
Result<std::vector<Located>> MachineWorld::files(std::string_view target) {
  auto known = files_.find(target);
  if (known == files_.end()) known = files_.emplace(std::string(target), find_files(target)).first;
  return known->second;
}

Result<std::vector<Located>> MachineWorld::find_files(std::string_view target) {
  if (target.empty()) return programs();
  const bool is_path = target.find('/') != std::string_view::npos;
  if (!is_path)
    if (auto mapped = mapped_files(target); !mapped.empty()) return mapped;
  std::vector<Located> found;
  // A relative path was typed where we stand, not where the target stands.
  if (is_path && !target.starts_with('/')) {
    std::error_code no_place;
    const auto here = std::filesystem::current_path(no_place) / target;
    if (!no_place) found = removed_files(here.native(), NamedFrom::kOurRoot);
  }
  if (!is_path || target.starts_with('/')) {
    for (auto& file : removed_files(target, NamedFrom::kItsRoot)) add_once(found, std::move(file));
    for (const pid_t pid : options_.pids) {
      const auto root = root_of(os::thread_with_memory(pid).value_or(pid));
      auto theirs = root.empty() ? std::vector<Located>()
                                 : symbols::locate(target, root, options_.search_path)
                                       .value_or(std::vector<Located>());
      for (auto& file : theirs) add_once(found, std::move(file));
    }
  }
  if (!found.empty()) return found;
  return symbols::locate(target, "", options_.search_path);
}

Result<std::vector<Located>> MachineWorld::programs() {
  if (!options_.program.empty()) return symbols::locate(options_.program, "", options_.search_path);
  if (options_.pids.empty())
    return fail(ErrorCode::kInvalid, "a probe without a file needs -p or -c");
  std::vector<Located> found;
  for (const pid_t pid : options_.pids) {
    SPILE_TRY(auto program, program_of(pid));
    add_once(found, std::move(program));
  }
  return found;
}

/// The files whose code the processes run and that the target's name means: what is loaded beats
/// what would be loaded.
std::vector<Located> MachineWorld::mapped_files(std::string_view target) {
  std::vector<Located> found;
  for (const pid_t pid : options_.pids) {
    const pid_t tid = os::thread_with_memory(pid).value_or(pid);
    const auto maps = os::read_maps(tid);
    if (!maps) continue;
    const auto root = root_of(tid);
    visit_first_mappings(*maps, [&](const os::MapEntry& map, const os::MapEntry& first) {
      const auto name = base_name(map.path);
      if (map.path.starts_with("/memfd:spile-")) return;
      if (!symbols::glob_matches(target, name) && !symbols::library_name_matches(target, name))
        return;
      auto file = map.deleted ? removed_file(tid, first) : as_seen_by_us(root, map.path, map.inode);
      if (file) add_once(found, std::move(*file));
    });
  }
  return found;
}

/// The files that processes still run under a path that has been removed or given to another file
/// (a package upgrade). Empty where one of them runs the file that has the path now: that one is
/// meant.
std::vector<Located> MachineWorld::removed_files(std::string_view path, NamedFrom named_from) {
  std::vector<Located> found;
  bool is_current = false;
  for (const pid_t pid : options_.pids) {
    const pid_t tid = os::thread_with_memory(pid).value_or(pid);
    const auto maps = os::read_maps(tid);
    const auto root = root_of(tid);
    if (!maps || (named_from == NamedFrom::kOurRoot && !root.empty())) continue;
    // The path may lead through links: /lib/x is mapped as /usr/lib/x.
    const auto slash = path.rfind('/');
    const auto folder = elf::canonical_path(root, slash == 0 ? "/" : path.substr(0, slash));
    const auto real = folder
                          ? fmt::format("{}{}", *folder == "/" ? "" : *folder, path.substr(slash))
                          : std::string(path);
    visit_first_mappings(*maps, [&](const os::MapEntry& map, const os::MapEntry& first) {
      if (map.path != path && map.path != real) return;
      is_current |= !map.deleted;
      if (map.deleted) add_once(found, removed_file(tid, first));
    });
  }
  if (is_current) found.clear();
  return found;
}

/// Where the file behind `file.host_path` can be opened. That of a removed one may take a privilege
/// that we lack: then an image is made of the memory of a process that runs it.
Result<std::string> MachineWorld::openable(const Located& file) {
  if (!is_removed(file) || ::access(file.host_path.c_str(), R_OK) == 0) return file.host_path;
  for (const pid_t pid : options_.pids) {
    SPILE_TRY(auto process, target::Target::open(pid));
    SPILE_TRY(auto modules, process.modules());
    for (const target::Module& m : modules) {
      if (m.device != file.identity.device || m.inode != file.identity.inode) continue;
      if (m.image) images_.push_back(m.image);
      if (!m.host_path.empty()) return m.host_path;
    }
  }
  return fail(ErrorCode::kDenied,
              "{} has been removed or replaced, and the file that the process still runs cannot be "
              "opened: CAP_SYS_ADMIN is needed (run as root)",
              file.path);
}

Result<const symbols::ModuleSymbols*> MachineWorld::module(const Located& file) {
  auto known = modules_.find(file.identity);
  if (known == modules_.end()) {
    const auto root = file.host_path.ends_with(file.path)
                          ? file.host_path.substr(0, file.host_path.size() - file.path.size())
                          : std::string();
    auto path = openable(file);
    auto symbols = path ? symbols::ModuleSymbols::load(*path, {root, file.path, true})
                        : Result<symbols::ModuleSymbols>(std::unexpected(path.error()));
    known = modules_.emplace(file.identity, std::move(symbols)).first;
  }
  if (!known->second) return std::unexpected(known->second.error());
  return &*known->second;
}

// ---- static tracepoints
// --------------------------------------------------------------------------------------------

/// Without a target a process's static tracepoints are those of all its files.
Result<std::vector<Located>> MachineWorld::usdt_files(std::string_view target) {
  if (target.empty() && !options_.pids.empty()) return files("*");
  return files(target);
}

Result<UsdtFile*> MachineWorld::usdt_file(const Located& file) {
  auto known = usdt_.find(file.identity);
  if (known == usdt_.end()) {
    auto path = openable(file);
    auto usdt = path ? UsdtFile::load(*path) : Result<UsdtFile>(std::unexpected(path.error()));
    known = usdt_.emplace(file.identity, std::move(usdt)).first;
  }
  if (!known->second) return std::unexpected(known->second.error());
  return &*known->second;
}

Result<std::vector<lang::UsdtSite>> MachineWorld::usdt_sites(std::string_view target,
                                                             std::string_view provider,
                                                             std::string_view name) {
  SPILE_TRY(const auto files, usdt_files(target));
  std::vector<lang::UsdtSite> found;
  for (const auto& file : files) {
    auto usdt = usdt_file(file);
    // Among many files some may be scripts or foreign; a single one must be right.
    if (!usdt && files.size() == 1) return forward(usdt);
    if (!usdt) continue;
    for (auto& site : (*usdt)->sites(provider.empty() ? "*" : provider, name)) {
      site.path = shown_path(file);
      found.push_back(std::move(site));
    }
  }
  if (!found.empty()) return found;
  return fail(ErrorCode::kNotFound, "no static tracepoint matches {}{}{} in {}", provider,
              provider.empty() ? "" : ":", name,
              files.size() == 1 ? shown_path(files[0])
                                : fmt::format("the {} files that were looked at", files.size()));
}

std::vector<std::string> MachineWorld::near_usdt(std::string_view target, std::string_view name) {
  symbols::Nearest near(name, kSuggestions);
  const auto files = usdt_files(target);
  if (!files) return {};
  std::map<std::string, std::string> full_names;
  for (const auto& file : *files) {
    const auto usdt = usdt_file(file);
    if (!usdt) continue;
    for (const auto& note : (*usdt)->notes()) {
      near.offer(note.name);
      full_names.try_emplace(std::string(note.name),
                             fmt::format("{}:{}", note.provider, note.name));
    }
  }
  std::vector<std::string> names;
  for (const auto& one : near.take()) names.push_back(full_names.at(one));
  return names;
}

// ---- kernel functions
// --------------------------------------------------------------------------------------------

Result<const symbols::Kallsyms*> MachineWorld::kernel() {
  if (!kernel_) kernel_ = symbols::Kallsyms::load(options_.kallsyms);
  if (!*kernel_) return std::unexpected(kernel_->error());
  return &**kernel_;
}

/// Of the kernel's data, which the list of functions leaves out.
Result<uint64_t> MachineWorld::kernel_variable(std::string_view symbol) {
  SPILE_TRY(const std::string text, os::read_file(options_.kallsyms));
  const std::string wanted = fmt::format(" {}\n", symbol);
  size_t at = text.find(wanted);
  if (at == std::string::npos)
    return fail(ErrorCode::kNotFound, "/proc/kallsyms has no '{}'", symbol);
  at = text.rfind('\n', at);
  const uint64_t address =
      std::strtoull(text.c_str() + (at == std::string::npos ? 0 : at + 1), nullptr, 16);
  if (address == 0)
    return fail(ErrorCode::kDenied,
                "the kernel hides its addresses from this user (kernel.kptr_restrict); root sees "
                "them");
  return address;
}

Result<uint64_t> MachineWorld::kernel_address(std::string_view symbol) {
  SPILE_TRY(const symbols::Kallsyms* kernel, this->kernel());
  const auto found = kernel->find(symbol);
  if (found.empty()) return kernel_variable(symbol);
  if (found.front()->addr == 0) {
    return fail(ErrorCode::kDenied,
                "the kernel hides its addresses from this user (kernel.kptr_restrict); root sees "
                "them");
  }
  return found.front()->addr;
}

std::vector<std::string> MachineWorld::near_kernel_functions(std::string_view symbol) {
  const auto kernel = this->kernel();
  return kernel ? (*kernel)->nearest(symbol, kSuggestions) : std::vector<std::string>();
}

// ---- tracepoints
// -------------------------------------------------------------------------------------------------

Result<std::string> MachineWorld::events_folder() {
  int denied = 0;
  std::string tried;
  for (const auto& base : options_.tracefs) {
    const auto events = base + "/events";
    if (exists(events)) return events;
    if (errno == EACCES || errno == EPERM) denied = errno;
    tried += (tried.empty() ? "" : " and ") + base;
  }
  if (denied != 0)
    return fail(ErrorCode::kDenied, "tracefs at {} cannot be read without root", tried);
  return fail(ErrorCode::kUnsupported,
              "no tracefs is mounted at {}; as root: mount -t tracefs tracefs /sys/kernel/tracing",
              tried);
}

Result<std::vector<std::string>> MachineWorld::tracepoint_names(std::string_view category,
                                                                std::string_view event) {
  SPILE_TRY(const auto events, events_folder());
  SPILE_TRY(const auto categories, folders_in(events, category));
  std::vector<std::string> names;
  for (const auto& c : categories) {
    const auto in_category = folders_in(events + "/" + c, event);
    if (!in_category) continue;  // unloaded meanwhile
    for (const auto& e : *in_category) names.push_back(c + ":" + e);
  }
  return names;
}

Result<std::vector<lang::Tracepoint>> MachineWorld::tracepoints(std::string_view category,
                                                                std::string_view event) {
  SPILE_TRY(const auto names, tracepoint_names(category, event));
  SPILE_TRY(const auto events, events_folder());
  std::vector<lang::Tracepoint> found;
  for (const auto& name : names) {
    const auto colon = name.find(':');
    const auto c = name.substr(0, colon), e = name.substr(colon + 1);
    const auto text = os::read_file(fmt::format("{}/{}/{}/format", events, c, e));
    if (!text && text.error().code == ErrorCode::kNotFound)
      continue;  // ftrace:* and others that have no format
    if (!text)
      return std::unexpected(Error(text.error()).context(fmt::format("tracepoint:{}", name)));
    SPILE_TRY(auto tracepoint, parse_tracepoint_format(c, e, *text));
    found.push_back(std::move(tracepoint));
  }
  if (!found.empty()) return found;
  return fail(ErrorCode::kNotFound, "no tracepoint matches {}:{}", category, event);
}

std::vector<std::string> MachineWorld::near_tracepoints(std::string_view category,
                                                        std::string_view event) {
  symbols::Nearest near(fmt::format("{}:{}", category, event), kSuggestions);
  if (const auto names = tracepoint_names("*", "*"))
    for (const auto& name : *names) near.offer(name);
  return near.take();
}

}  // namespace spile::session
