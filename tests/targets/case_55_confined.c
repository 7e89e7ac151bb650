// Case 55: a process that confines itself before the work. Modes: `errno_filter` (seccomp returns EPERM for memfd_create,
// mmap, mprotect and membarrier), `kill_filter` (kills for memfd_create and membarrier), `trap_filter`, `hit_calls_filter`
// (kills for getpid, gettid, getuid, prctl and process_vm_readv), `strict` (seccomp's strict mode), `no_new_privs`, `undumpable`, `mdwe` (no page becomes executable), `mlockall`, `address_space` (RLIMIT_AS),
// `no_files` (every descriptor in use, soft limit), `no_files_hard`.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "target.h"

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#endif

PROBED uint64_t probe_me(uint64_t n) { return n * 13 + 6; }

static void filter(uint32_t action, bool with_mmap) {
  const struct sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_memfd_create, 4, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 3, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, with_mmap ? SYS_mmap : 0xffffff, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, with_mmap ? SYS_mprotect : 0xffffff, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, action),
  };
  const struct sock_fprog whole = {sizeof program / sizeof program[0], (struct sock_filter *)program};
  TARGET_CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  TARGET_CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &whole) == 0);
}

// Kills for the calls that a tracer's code in this process might make: ids, names, time, reading memory with care.
static void filter_calls_of_hits(void) {
  const struct sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpid, 5, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_gettid, 4, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getuid, 3, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_process_vm_readv, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
  };
  const struct sock_fprog whole = {sizeof program / sizeof program[0], (struct sock_filter *)program};
  TARGET_CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  TARGET_CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &whole) == 0);
}

static void use_all_files(bool hard) {
  struct rlimit limit = {64, 64};
  if (!hard) {
    TARGET_CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = 64;
  }
  TARGET_CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
  while (open("/dev/null", O_RDONLY | O_CLOEXEC) >= 0) {
  }
  TARGET_CHECK(errno == EMFILE);
}

static void confine(void) {
  if (target_mode_is("errno_filter")) filter(SECCOMP_RET_ERRNO | EPERM, true);
  else if (target_mode_is("kill_filter")) filter(SECCOMP_RET_KILL_PROCESS, false);
  else if (target_mode_is("trap_filter")) filter(SECCOMP_RET_TRAP, true);
  else if (target_mode_is("hit_calls_filter")) filter_calls_of_hits();
  else if (target_mode_is("no_new_privs")) TARGET_CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  else if (target_mode_is("undumpable")) TARGET_CHECK(prctl(PR_SET_DUMPABLE, 0) == 0);
  else if (target_mode_is("mlockall")) TARGET_CHECK(mlockall(MCL_CURRENT | MCL_FUTURE) == 0 || errno == ENOMEM || errno == EPERM);
  else if (target_mode_is("no_files")) use_all_files(false);
  else if (target_mode_is("no_files_hard")) use_all_files(true);
  else if (target_mode_is("mdwe")) {
    if (prctl(PR_SET_MDWE, 1, 0, 0, 0) != 0) target_skip("this kernel has no PR_SET_MDWE");
  } else if (target_mode_is("address_space")) {
    const struct rlimit limit = {16 << 20, 16 << 20};
    TARGET_CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
  }
}

// Under strict mode only read, write and exit are allowed, so nothing of libc that asks for more.
static void work_strictly(void) {
  char verdict[64];
  TARGET_CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) == 0);
  if (target.wait) {
    char c = 0;
    if (write(1, "ready\n", 6) != 6) syscall(SYS_exit, 1);
    while (c != '\n')
      if (read(0, &c, 1) != 1) syscall(SYS_exit, 1);
  }
  for (long i = 0; i < target.rounds; i++)
    if (probe_me((uint64_t)i) != (uint64_t)i * 13 + 6) syscall(SYS_exit, 1);
  const int n = snprintf(verdict, sizeof verdict, "calls=%ld\nEXIT-SUCCESS\n", target.rounds);
  syscall(SYS_exit, write(1, verdict, (size_t)n) != n);
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 100000, "no_new_privs");
  setvbuf(stdout, NULL, _IOLBF, 4096);
  if (target_mode_is("strict")) work_strictly();
  confine();
  target_ready();
  for (long i = 0; target_more(i); i++) {
    target_count(1);
    TARGET_CHECK(probe_me((uint64_t)i) == (uint64_t)i * 13 + 6);
  }
  return target_end();
}
