#include "user_engine/target/process.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/auxv.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "user_engine/target/memory_image.h"

namespace spile::target {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kMaxProgramHeaders = 256;
constexpr uint64_t kMaxNoteBytes = 64 << 10;
/// A module wider than this is a lie.
constexpr uint64_t kMaxModuleBytes = 1ull << 40;

uint64_t page_down(uint64_t a) {
  return a & ~(kPage - 1);
}
uint64_t page_up(uint64_t a) {
  return (a + kPage - 1) & ~(kPage - 1);
}

// ---- opening
// -------------------------------------------------------------------------------------------------

Result<void> check_kind(pid_t pid, const os::Status& status) {
  if (status.tgid != pid) {
    return fail(ErrorCode::kNotFound, "{} is a thread of process {}: give the process", pid,
                status.tgid);
  }
  SPILE_TRY(const os::Stat stat, os::read_stat(pid, pid));
  if (stat.kernel_thread())
    return fail(ErrorCode::kUnsupported, "process {} ({}) is a kernel thread", pid, status.name);
  return {};
}

/// The program's ELF header, which even a process whose memory we may not read usually shows.
Result<void> check_program(pid_t tid) {
  Fd exe(::open(fmt::format("/proc/{}/exe", tid).c_str(), O_RDONLY | O_CLOEXEC));
  Elf64_Ehdr header{};
  if (!exe || ::pread(exe.get(), &header, sizeof header, 0) != static_cast<ssize_t>(sizeof header))
    return {};
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0) return {};
  if (header.e_ident[EI_CLASS] != ELFCLASS64) {
    return fail(ErrorCode::kUnsupported,
                "process {} runs a 32-bit program: only 64-bit programs can be traced", tid);
  }
  if (header.e_machine != EM_X86_64) {
    return fail(ErrorCode::kUnsupported,
                "process {} runs a program for another machine (ELF machine {})", tid,
                header.e_machine);
  }
  return {};
}

std::string tracer_sentence(pid_t tracer) {
  auto status = os::read_status(tracer);
  return fmt::format("it is already traced by process {} ({})", status ? status->tgid : tracer,
                     status ? status->name : "?");
}

/// A child that spawn() holds is traced by one of our own threads.
bool traced_by_us(pid_t tracer) {
  auto status = os::read_status(tracer);
  return status && status->tgid == ::getpid();
}

bool same_user(const os::Status& s) {
  const uid_t uid = ::geteuid();
  const gid_t gid = ::getegid();
  return s.uid == uid && s.euid == uid && s.suid == uid && s.gid == gid && s.egid == gid &&
         s.sgid == gid;
}

std::string yama_sentence(int scope) {
  switch (scope) {
    case 1:
      return "kernel.yama.ptrace_scope is 1: only a parent may trace. Start the program with -c, "
             "run as root, or set "
             "the sysctl to 0";
    case 2: return "kernel.yama.ptrace_scope is 2: CAP_SYS_PTRACE is needed (run as root)";
    default:
      return fmt::format("kernel.yama.ptrace_scope is {}: nobody may trace until the next boot",
                         scope);
  }
}

// ---- modules
// -------------------------------------------------------------------------------------------------

struct Headers {
  Elf64_Ehdr file{};
  std::vector<Elf64_Phdr> program;
};

std::optional<Headers> read_headers(const os::ProcessMemory& memory, TargetAddr at) {
  Headers headers;
  auto file = memory.read_value<Elf64_Ehdr>(at);
  if (!file || std::memcmp(file->e_ident, ELFMAG, SELFMAG) != 0 ||
      file->e_ident[EI_CLASS] != ELFCLASS64 || file->e_machine != EM_X86_64 ||
      (file->e_type != ET_EXEC && file->e_type != ET_DYN) ||
      file->e_phentsize != sizeof(Elf64_Phdr) || file->e_phnum == 0 ||
      file->e_phnum > kMaxProgramHeaders || file->e_phoff > kMaxModuleBytes) {
    return std::nullopt;
  }
  headers.file = *file;
  headers.program.resize(file->e_phnum);
  std::span<uint8_t> bytes(reinterpret_cast<uint8_t*>(headers.program.data()),
                           headers.program.size() * sizeof(Elf64_Phdr));
  if (!memory.read(at + file->e_phoff, bytes)) return std::nullopt;
  return headers;
}

std::vector<LoadSegment> loads_of(const Headers& headers) {
  std::vector<LoadSegment> loads;
  for (const Elf64_Phdr& p : headers.program) {
    if (p.p_type != PT_LOAD || p.p_memsz > kMaxModuleBytes || p.p_filesz > p.p_memsz ||
        p.p_vaddr > ~0ull - kMaxModuleBytes) {
      continue;
    }
    loads.push_back({LinkAddr(p.p_vaddr), p.p_filesz, p.p_memsz, FileOffset(p.p_offset),
                     (p.p_flags & PF_X) != 0, (p.p_flags & PF_W) != 0});
  }
  return loads;
}

/// The headers lie at file offset 0: the segment that holds that offset tells the bias.
std::optional<LoadBias> bias_of(const std::vector<LoadSegment>& loads, TargetAddr header_at) {
  for (const LoadSegment& load : loads) {
    if (page_down(load.offset.value) == 0)
      return LoadBias{header_at.value - page_down(load.address.value)};
  }
  return std::nullopt;
}

std::string find_build_id(std::span<const uint8_t> notes) {
  size_t at = 0;
  while (at + sizeof(Elf64_Nhdr) <= notes.size()) {
    Elf64_Nhdr note;
    std::memcpy(&note, notes.data() + at, sizeof note);
    at += sizeof note;
    const uint64_t name_end = at + ((uint64_t{note.n_namesz} + 3) & ~3ull);
    const uint64_t end = name_end + ((uint64_t{note.n_descsz} + 3) & ~3ull);
    if (end > notes.size()) return {};
    const bool gnu = note.n_namesz == 4 && std::memcmp(notes.data() + at, "GNU", 4) == 0;
    if (gnu && note.n_type == NT_GNU_BUILD_ID && note.n_descsz > 0 && note.n_descsz <= 64) {
      std::string hex;
      for (uint8_t byte : notes.subspan(name_end, note.n_descsz))
        hex += fmt::format("{:02x}", byte);
      return hex;
    }
    at = end;
  }
  return {};
}

std::string build_id_of(const os::ProcessMemory& memory, const Headers& headers, LoadBias bias) {
  for (const Elf64_Phdr& p : headers.program) {
    if (p.p_type != PT_NOTE || p.p_filesz > kMaxNoteBytes) continue;
    std::vector<uint8_t> notes(p.p_filesz);
    if (!memory.read(bias.to_target(LinkAddr(p.p_vaddr)), notes)) continue;
    if (std::string id = find_build_id(notes); !id.empty()) return id;
  }
  return {};
}

/// Is the file behind `path` the one whose headers are mapped at `module.start`? Device numbers
/// alone do not tell on btrfs and overlayfs, so the inode and the headers themselves are compared.
bool is_same_file(const std::string& path,
                  const Module& module,
                  const Headers& headers,
                  bool check_inode) {
  struct stat st{};
  // Looked at before it is opened: a stranger's device node must not be.
  if (::stat(path.c_str(), &st) != 0 || !S_ISREG(st.st_mode)) return false;
  if (check_inode && st.st_ino != module.inode) return false;
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) return false;
  Elf64_Ehdr file{};
  if (::pread(fd.get(), &file, sizeof file, 0) != static_cast<ssize_t>(sizeof file)) return false;
  return std::memcmp(&file, &headers.file, sizeof file) == 0;
}

std::string host_path_of(const Module& module,
                         const Headers& headers,
                         const os::MapEntry& first,
                         pid_t pid) {
  if (pid == 0 || module.vdso) return {};
  const std::string through_root = fmt::format("/proc/{}/root{}", pid, module.path);
  if (!module.deleted && is_same_file(through_root, module, headers, true)) return through_root;
  // For a removed or replaced file; needs CAP_CHECKPOINT_RESTORE or root.
  const std::string map_file = map_file_path(pid, first.start, first.end);
  if (is_same_file(map_file, module, headers, false)) return map_file;
  const std::string exe = fmt::format("/proc/{}/exe", pid);
  if (is_same_file(exe, module, headers, true)) return exe;
  return {};
}

void set_span(Module& module) {
  uint64_t low = ~0ull, high = 0;
  for (const LoadSegment& load : module.loads) {
    low = std::min(low, page_down(load.address.value));
    high = std::max(high, page_up(load.address.value + load.memory_size));
  }
  module.start = module.bias.to_target(LinkAddr(low));
  module.end = module.bias.to_target(LinkAddr(high));
}

void add_segments(Module& module, const std::vector<os::MapEntry>& maps) {
  for (const os::MapEntry& map : maps) {
    const bool same = module.vdso ? map.path == "[vdso]"
                                  : map.inode == module.inode && map.device == module.device;
    if (!same || map.start < module.start || map.end > module.end) continue;
    module.segments.push_back(
        {map.start, map.end, map.read, map.write, map.exec, FileOffset(map.offset)});
  }
}

std::optional<Module> module_at(const os::MapEntry& first,
                                const std::vector<os::MapEntry>& maps,
                                const os::ProcessMemory& memory,
                                pid_t pid) {
  const auto headers = read_headers(memory, first.start);
  if (!headers) return std::nullopt;
  Module module;
  module.path = first.path;
  module.device = first.device;
  module.inode = first.inode;
  module.deleted = first.deleted;
  module.vdso = first.path == "[vdso]";
  module.loads = loads_of(*headers);
  const auto bias = bias_of(module.loads, first.start);
  if (!bias) return std::nullopt;
  module.bias = *bias;
  set_span(module);
  if (module.end <= module.start ||
      static_cast<uint64_t>(module.end - module.start) > kMaxModuleBytes) {
    return std::nullopt;
  }
  add_segments(module, maps);
  // An ELF file that is mapped to be read, not loaded, has no executable mapping.
  const bool code =
      std::any_of(module.segments.begin(), module.segments.end(), [](auto& s) { return s.exec; });
  if (!code) return std::nullopt;
  module.build_id = build_id_of(memory, *headers, module.bias);
  module.host_path = host_path_of(module, *headers, first, pid);
  return module;
}

void mark_main_program(std::vector<Module>& modules, pid_t pid) {
  auto auxv = os::read_auxv(pid);
  if (!auxv) return;
  for (const auto& [type, value] : *auxv) {
    if (type != AT_ENTRY) continue;
    for (Module& module : modules) module.main_program = module.contains(TargetAddr(value));
  }
}

/// Runs of differing bytes, joined where fewer than 8 equal bytes lie between.
void collect_differences(TargetAddr at,
                         std::span<const uint8_t> file,
                         std::span<const uint8_t> memory,
                         std::vector<TextDifference>& found) {
  constexpr size_t kJoin = 8;
  for (size_t i = 0; i < file.size(); ++i) {
    // Nearly every page is equal.
    while (file.size() - i > kPage && std::memcmp(&file[i], &memory[i], kPage) == 0) i += kPage;
    if (file[i] == memory[i]) continue;
    size_t end = i + 1;
    for (size_t j = end; j < file.size() && j < end + kJoin; ++j) {
      if (file[j] != memory[j]) end = j + 1;
    }
    found.push_back({at + i,
                     {file.begin() + i, file.begin() + end},
                     {memory.begin() + i, memory.begin() + end}});
    i = end;
  }
}

/// The parts of an executable segment that are mapped readable or executable, chunk by chunk.
Result<void> compare_segment(const os::ProcessMemory& memory,
                             const Fd& file,
                             const Module& module,
                             const LoadSegment& load,
                             std::vector<TextDifference>& found) {
  std::vector<uint8_t> ours(1 << 20), theirs(1 << 20);
  for (uint64_t done = 0; done < load.file_size;) {
    const size_t want = std::min<uint64_t>(ours.size(), load.file_size - done);
    const ssize_t n =
        ::pread(file.get(), theirs.data(), want, static_cast<off_t>(load.offset.value + done));
    if (n <= 0)
      return fail(ErrorCode::kCorrupt, "{}: the file is shorter than its headers say", module.path);
    const TargetAddr at = module.bias.to_target(load.address + done);
    std::span<uint8_t> mine(ours.data(), static_cast<size_t>(n));
    SPILE_TRY_VOID(memory.read(at, mine));
    collect_differences(at, {theirs.data(), static_cast<size_t>(n)}, mine, found);
    done += static_cast<uint64_t>(n);
  }
  return {};
}

}  // namespace

const Segment* Module::segment_at(TargetAddr a) const {
  for (const Segment& s : segments) {
    if (a >= s.start && a < s.end) return &s;
  }
  return nullptr;
}

std::vector<Module> find_modules(const std::vector<os::MapEntry>& maps,
                                 const os::ProcessMemory& memory,
                                 pid_t pid) {
  std::vector<Module> modules;
  for (const os::MapEntry& map : maps) {
    const bool file =
        map.inode != 0 && map.path.starts_with('/') && !map.path.starts_with("/memfd:spile-");
    if (map.offset != 0 || !map.read || (!file && map.path != "[vdso]")) continue;
    // The headers' page may be mapped twice (lld puts them into two segments): one module.
    const bool known = std::any_of(modules.begin(), modules.end(), [&](const Module& m) {
      return m.inode == map.inode && m.device == map.device && m.contains(map.start);
    });
    if (known) continue;
    if (auto module = module_at(map, maps, memory, pid)) modules.push_back(std::move(*module));
  }
  if (pid != 0) mark_main_program(modules, pid);
  return modules;
}

std::string explain_denied(pid_t pid) {
  auto status = os::read_status(pid);
  if (!status) return "the process is gone";
  if (status->tracer != 0) return tracer_sentence(status->tracer);
  const int yama = os::yama_scope();
  if (yama >= 3) return yama_sentence(yama);
  if (os::has_capability(os::kCapSysPtrace)) {
    return "the kernel refuses although we hold CAP_SYS_PTRACE: the process is in another user "
           "namespace, or a security "
           "module (SELinux, AppArmor) forbids it";
  }
  if (!same_user(*status)) {
    return fmt::format(
        "it belongs to user {} (group {}), we are user {}: CAP_SYS_PTRACE is needed (run as root)",
        status->uid, status->gid, ::geteuid());
  }
  struct stat st{};
  // The files of a process that is not dumpable belong to root.
  if (::stat(fmt::format("/proc/{}/maps", pid).c_str(), &st) == 0 && st.st_uid != ::geteuid()) {
    return "it is not dumpable (set-user-id, a program file that we may not read, or "
           "PR_SET_DUMPABLE 0): CAP_SYS_PTRACE "
           "is needed (run as root)";
  }
  if (yama > 0) return yama_sentence(yama);
  return "the kernel refuses: it may be in another user namespace, or hold capabilities that we do "
         "not have";
}

Result<Target> Target::open(pid_t pid) {
  if (pid <= 0) return fail(ErrorCode::kInvalid, "{} is not a process id", pid);
  if (pid == ::getpid())
    return fail(ErrorCode::kUnsupported, "a process cannot trace itself from outside");
  return open_process(pid);
}

Result<Target> Target::open_self() {
  return open_process(::getpid());
}

Result<Target> Target::open_process(pid_t pid) {
  auto status = os::read_status(pid);
  if (!status) return fail(ErrorCode::kNotFound, "there is no process {}", pid);
  SPILE_TRY_VOID(check_kind(pid, *status));
  Target target;
  target.pid_ = pid;
  target.name_ = status->name;
  SPILE_TRY(target.pidfd_, os::open_pidfd(pid));
  SPILE_TRY(const pid_t tid, os::thread_with_memory(pid));
  SPILE_TRY(const os::Stat stat, os::read_stat(pid, pid));
  target.start_time_ = stat.start_time;
  // A tracer whose thread is gone when we ask for its name has let go: another spile holds a
  // process for milliseconds.
  const bool held = status->tracer != 0 && os::read_status(status->tracer).has_value();
  if (held && !traced_by_us(status->tracer))
    return fail(ErrorCode::kBusy, "process {}: {}", pid, tracer_sentence(status->tracer));
  SPILE_TRY_VOID(check_program(tid));
  auto memory = os::ProcessMemory::open(tid);
  if (!memory && memory.error().code == ErrorCode::kDenied) {
    return fail(ErrorCode::kDenied, "process {} ({}) cannot be traced: {}", pid, target.name_,
                explain_denied(pid));
  }
  if (!memory) return forward(memory, "process {}", pid);
  target.memory_ = std::move(*memory);
  return target;
}

bool Target::alive() const {
  return os::pidfd_alive(pidfd_) && memory_.alive();
}

Result<pid_t> Target::live_thread() const {
  return os::thread_with_memory(pid_);
}

Result<std::vector<os::MapEntry>> Target::maps() const {
  SPILE_TRY(const pid_t tid, live_thread());
  return os::read_maps(tid);
}

int Target::seccomp_mode() const {
  int strictest = 0;
  auto tids = os::list_threads(pid_);
  for (pid_t tid : tids ? *tids : std::vector<pid_t>()) {
    auto status = os::read_status(tid);
    if (!status || status->seccomp == 0) continue;
    if (strictest == 0 || status->seccomp == 1) strictest = status->seccomp;
  }
  return strictest;
}

Result<std::vector<Module>> Target::modules() const {
  SPILE_TRY(const pid_t tid, live_thread());
  SPILE_TRY(const auto maps, os::read_maps(tid));
  auto modules = find_modules(maps, memory_, tid);
  for (Module& module : modules) {
    if (!module.host_path.empty() || module.vdso) continue;
    auto& image = images_[{module.device, module.inode, module.start}];
    if (!image) {
      auto made = make_memory_image(memory_, module);
      if (!made) continue;  // it can be looked at no further: whoever asks for the file is told
      image = std::make_shared<Fd>(std::move(*made));
    }
    module.image = image;
    module.host_path = fmt::format("/proc/self/fd/{}", image->get());
  }
  return modules;
}

std::string map_file_path(pid_t tid, TargetAddr start, TargetAddr end) {
  return fmt::format("/proc/{}/map_files/{:x}-{:x}", tid, start.value, end.value);
}

Result<std::vector<TextDifference>> Target::compare_text(const Module& module) const {
  if (module.host_path.empty() || module.image)
    return fail(ErrorCode::kNotFound, "the file of {} cannot be opened", module.path);
  Fd file(::open(module.host_path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return fail_errno(errno, "open {}", module.host_path);
  std::vector<TextDifference> found;
  for (const LoadSegment& load : module.loads) {
    if (load.exec) SPILE_TRY_VOID(compare_segment(memory_, file, module, load, found));
  }
  return found;
}

std::vector<os::MapEntry> our_mappings(const std::vector<os::MapEntry>& maps) {
  std::vector<os::MapEntry> found;
  for (const os::MapEntry& map : maps) {
    if (map.path.starts_with(fmt::format("/memfd:{}", kRegionPrefix))) found.push_back(map);
  }
  return found;
}

Result<GapRules> gap_rules(const Target& target) {
  SPILE_TRY(const pid_t tid, target.live_thread());
  SPILE_TRY(const os::Stat stat, os::read_stat(target.pid(), tid));
  GapRules rules;
  rules.start_brk = stat.start_brk;
  if (auto limit = os::get_limit(target.pid(), RLIMIT_STACK)) rules.stack_limit_bytes = limit->soft;
  return rules;
}

}  // namespace spile::target
