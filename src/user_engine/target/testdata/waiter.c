// Blocks in one way per argument, checks that it was not disturbed, prints "exit-success" or what went wrong.
// Usage: waiter MODE. Says "ready" first; ends after one byte on stdin.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static int open_descriptors(void) {
  int n = 0;
  for (int fd = 0; fd < 256; ++fd) n += fcntl(fd, F_GETFD) >= 0;
  return n;
}
static void bad(const char* what, long value) {
  printf("%s: %ld %s\n", what, value, strerror(errno));
  exit(1);
}
static volatile int caught;
static void got(int signal) { (void)signal, ++caught; }

__attribute__((noinline)) unsigned long mix(unsigned long x) {
  x ^= x >> 33, x *= 0xff51afd7ed558ccdul, x ^= x >> 33;
  return x;
}

static void spin(void) {
  fcntl(0, F_SETFL, O_NONBLOCK);
  for (;;) {
    unsigned long a = 1, b = 1;
    double d = 1;
    for (int i = 0; i < 20000; ++i) a = mix(a), d = d * 1.0000001;
    for (int i = 0; i < 20000; ++i) b = mix(b);
    if (a != b || d < 1.002 || d > 1.00201) bad("spin", (long)(d * 1e9));
    char byte;
    if (read(0, &byte, 1) == 1) return;
  }
}

int main(int argc, char** argv) {
  const char* mode = argc > 1 ? argv[1] : "read";
  sigset_t before, after, usr;
  sigemptyset(&usr);
  sigaddset(&usr, SIGUSR2);
  sigprocmask(SIG_BLOCK, &usr, NULL);
  sigprocmask(SIG_SETMASK, NULL, &before);
  signal(SIGUSR1, got);
  if (!strcmp(mode, "trap")) signal(SIGTRAP, got);
  if (!strcmp(mode, "full")) {
    struct rlimit limit = {3, 64};
    if (setrlimit(RLIMIT_NOFILE, &limit)) bad("setrlimit", 0);
  }
  const int descriptors = open_descriptors();
  printf("ready\n");
  fflush(stdout);
  char byte;
  if (!strcmp(mode, "read") || !strcmp(mode, "full")) {
    long r = read(0, &byte, 1);
    if (r != 1) bad("read", r);
  } else if (!strcmp(mode, "count") || !strcmp(mode, "trap")) {  // read, with one signal in between
    long r = read(0, &byte, 1);
    if (r != 1) bad("read", r);
  } else if (!strcmp(mode, "poll")) {
    struct pollfd p = {0, POLLIN, 0};
    int r = poll(&p, 1, 20000);
    if (r != 1) bad("poll", r);
  } else if (!strcmp(mode, "ppoll")) {
    sigset_t none;
    sigemptyset(&none);
    struct pollfd p = {0, POLLIN, 0};
    int r = ppoll(&p, 1, NULL, &none);
    if (r != 1) bad("ppoll", r);
  } else if (!strcmp(mode, "epoll")) {
    int e = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event v = {.events = EPOLLIN};
    epoll_ctl(e, EPOLL_CTL_ADD, 0, &v);
    int r = epoll_wait(e, &v, 1, -1);
    if (r != 1) bad("epoll_wait", r);
    close(e);
  } else if (!strcmp(mode, "pause")) {
    sigset_t wait = before;
    sigdelset(&wait, SIGUSR2);
    signal(SIGUSR2, got);
    int r = sigsuspend(&wait);  // ended by SIGUSR2
    if (r != -1 || errno != EINTR) bad("sigsuspend", r);
  } else {
    spin();
  }
  const int expected = !strcmp(mode, "count") || !strcmp(mode, "trap") || !strcmp(mode, "pause");
  if (caught != expected) bad("signals caught", caught);
  sigprocmask(SIG_SETMASK, NULL, &after);
  if (memcmp(&before, &after, 8)) bad("signal mask changed", 0);
  if (open_descriptors() != descriptors) bad("descriptors", open_descriptors());
  printf("exit-success\n");
  return 0;
}
