// What /proc and a few system calls tell about another process.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/address.h"
#include "base/error.h"
#include "base/fd.h"

namespace spile::os {

/// A process that cannot be confused with a later one of the same number.
Result<Fd> open_pidfd(pid_t pid);
/// False once the process is dead (zombies too).
bool pidfd_alive(const Fd& pidfd);

/// /proc/PID/status; `tid` may be any thread.
struct Status {
  std::string name;
  char state = '?';  ///< R S D T t Z X I
  pid_t tgid = 0;
  pid_t parent = 0;
  pid_t tracer = 0;  ///< thread id of the tracer, 0: none
  uid_t uid = 0, euid = 0, suid = 0;
  gid_t gid = 0, egid = 0, sgid = 0;
  int seccomp = 0;          ///< 0 none, 1 strict, 2 filter
  pid_t innermost_tid = 0;  ///< the thread's id in its own pid namespace (last of NSpid)
  /// Signal sets, bit n-1 is signal n. `caught`: those with a handler.
  uint64_t pending = 0, shared_pending = 0, blocked = 0, ignored = 0, caught = 0;
  bool has_memory = false;  ///< VmSize is there: neither kernel thread nor zombie
};
Result<Status> read_status(pid_t tid);

/// /proc/PID/stat.
struct Stat {
  char state = '?';
  uint64_t flags = 0;        ///< PF_*
  uint64_t start_time = 0;   ///< clock ticks since boot
  int cpu = 0;               ///< last ran here
  uint64_t start_stack = 0;  ///< 0 without the right to see it
  uint64_t start_brk = 0;
  bool kernel_thread() const { return (flags & 0x00200000) != 0; }
};
/// `pid` is the process, `tid` one of its threads.
Result<Stat> read_stat(pid_t pid, pid_t tid);

/// A thread through which /proc shows the process's memory, files and root: the leader, or another
/// one where the leader has exited (a zombie's maps, exe, root and mem are empty).
/// Errors: target gone   no thread is left
Result<pid_t> thread_with_memory(pid_t pid);

/// The threads of a process, zombie leader included.
Result<std::vector<pid_t>> list_threads(pid_t pid);
/// Direct children; empty where the kernel does not list them.
std::vector<pid_t> list_children(pid_t pid);

/// One line of /proc/PID/maps.
struct MapEntry {
  TargetAddr start, end;
  bool read = false, write = false, exec = false, shared = false;
  uint64_t offset = 0;  ///< in the file, bytes
  uint64_t device = 0;  ///< makedev(); 0 when anonymous
  uint64_t inode = 0;   ///< 0 when anonymous
  std::string path;     ///< as in the file, without " (deleted)"; or [stack], [vdso], ...
  bool deleted = false;

  uint64_t size() const { return static_cast<uint64_t>(end - start); }
  bool contains(TargetAddr a) const { return a >= start && a < end; }
};
Result<std::vector<MapEntry>> read_maps(pid_t tid);
/// The same from text: pure, for tests and hostile input. Lines that do not parse are an error
/// (corrupt).
Result<std::vector<MapEntry>> parse_maps(std::string_view text);

/// An entry of the auxiliary vector (AT_*), nullopt when it has none.
Result<std::vector<std::pair<uint64_t, uint64_t>>> read_auxv(pid_t tid);

Result<std::string> read_link(const std::string& path);
Result<std::string> read_file(const std::string& path);

/// True when both live in one address space; denied when the kernel does not let us know.
Result<bool> same_memory(pid_t a, pid_t b);

struct Limit {
  uint64_t soft = 0, hard = 0;
};
/// `resource` is RLIMIT_*.
Result<Limit> get_limit(pid_t pid, int resource);
Result<void> set_limit(pid_t pid, int resource, Limit limit);

/// /proc/sys/kernel/yama/ptrace_scope; 0 when there is no Yama.
int yama_scope();

/// Does the calling thread hold CAP_SYS_PTRACE (bit 19) in its effective set?
bool has_capability(int number);
inline constexpr int kCapSysPtrace = 19;
inline constexpr int kCapSysAdmin = 21;
inline constexpr int kCapSysResource = 24;

}  // namespace spile::os
