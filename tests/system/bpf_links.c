// What the kernel says of its BPF links: one line each, "TYPE PROGRAM [EVENT] [COUNT]". Asks bpf(2) itself, so that a test
// need not believe the tracer. With a number N: waits until there are at least N links, 10 s at most. With `--only ID...`:
// these alone, as far as they are there; a process names its own in /proc/PID/fdinfo.
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PROG_GET_FD_BY_ID = 13, OBJ_GET_INFO_BY_FD = 15, LINK_GET_FD_BY_ID = 30, LINK_GET_NEXT_ID = 31 };

static const char *const link_types[] = {"unspec",       "raw_tracepoint", "tracing",     "cgroup",     "iter",      "netns",
                                         "xdp",          "perf_event",     "kprobe_multi", "struct_ops", "netfilter", "tcx",
                                         "uprobe_multi", "netkit"};
// enum bpf_perf_event_type, Linux 6.6.
static const char *const perf_types[] = {"-", "uprobe", "uretprobe", "kprobe", "kretprobe", "tracepoint", "event"};

static long bpf(int command, void *attr, size_t size) {
  return syscall(SYS_bpf, command, attr, size);
}

static int info_of(int fd, void *info, uint32_t size) {
  struct {
    uint32_t fd, length;
    uint64_t info;
  } attr = {fd, size, (uint64_t)info};
  char padded[128] = {0};
  memcpy(padded, &attr, sizeof attr);
  return bpf(OBJ_GET_INFO_BY_FD, padded, sizeof attr);
}

static int fd_of(int command, uint32_t id) {
  uint32_t attr[3] = {id, 0, 0};
  return bpf(command, attr, sizeof attr);
}

static void program_name(uint32_t id, char name[17]) {
  uint8_t info[256] = {0};
  int fd = fd_of(PROG_GET_FD_BY_ID, id);
  strcpy(name, "?");
  // struct bpf_prog_info: the name is at byte 64.
  if (fd >= 0 && info_of(fd, info, sizeof info) == 0) snprintf(name, 17, "%.16s", (char *)info + 64);
  if (fd >= 0) close(fd);
}

static int show(uint32_t id) {
  struct {
    uint32_t type, id, prog_id, pad;
    uint32_t words[60];
  } info = {0};
  char name[17];
  int fd = fd_of(LINK_GET_FD_BY_ID, id);
  if (fd < 0) return 0;
  if (info_of(fd, &info, sizeof info) != 0) return close(fd), 0;
  program_name(info.prog_id, name);
  printf("%s %s", info.type < sizeof link_types / sizeof *link_types ? link_types[info.type] : "new", name);
  if (info.type == 7 && info.words[0] < 7) printf(" %s", perf_types[info.words[0]]);
  if (info.type == 8) printf(" %u", info.words[2]);
  puts("");
  close(fd);
  return 1;
}

static int count(int print) {
  int links = 0;
  uint32_t id = 0;
  for (;;) {
    uint32_t attr[3] = {id, 0, 0};
    if (bpf(LINK_GET_NEXT_ID, attr, sizeof attr) != 0) return links;
    id = attr[1];
    if (!print)
      links++;
    else
      links += show(id);
  }
}

int main(int argc, char **argv) {
  if (argc > 1 && !strcmp(argv[1], "--only")) {
    for (int i = 2; i < argc; i++) show((uint32_t)atoi(argv[i]));
    return 0;
  }
  int wanted = argc > 1 ? atoi(argv[1]) : 0;
  for (int i = 0; i < 1000 && count(0) < wanted; i++) usleep(10000);
  return count(1) >= wanted ? 0 : 1;
}
