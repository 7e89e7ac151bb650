// Twelve threads asleep in twelve ways; each checks that it woke for the right reason and not too early.
// Says "ready" when all sleep; a byte on stdin ends those that wait for ever. Prints "exit-success".
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { kMs = 600, FUTEX_WAIT = 0, FUTEX_WAKE = 1 };
static int pipe_ends[2], event, sockets[2], semaphores;
static int word, timed_word;
static volatile int failures;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}
static void check(const char* name, long result, long want, double since, int timed) {
  const double took = now() - since;
  if (result == want && (!timed || took >= kMs - 2)) return;
  printf("%s: %ld (errno %d) after %.0f ms\n", name, result, errno, took);
  failures = 1;
}
static long futex(int op, int value, struct timespec* t) { return syscall(SYS_futex, &word, op, value, t, NULL, 0); }

#define SLEEPER(name, ...) static void* name(void* unused) { (void)unused; double t = now(); __VA_ARGS__ return NULL; }
SLEEPER(in_read, char c; check("read", read(pipe_ends[0], &c, 1), 1, t, 0);)
SLEEPER(in_poll, check("poll", poll(NULL, 0, kMs), 0, t, 1);)
SLEEPER(in_nanosleep, struct timespec s = {0, 600000000}; check("nanosleep", nanosleep(&s, NULL), 0, t, 1);)
SLEEPER(in_clock_nanosleep, struct timespec s; clock_gettime(CLOCK_MONOTONIC, &s); s.tv_sec += 1;
        check("clock_nanosleep", clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &s, NULL), 0, t, 1);)
SLEEPER(in_epoll, int e = epoll_create1(0); struct epoll_event v = {.events = EPOLLIN};
        epoll_ctl(e, EPOLL_CTL_ADD, event, &v); check("epoll_wait", epoll_wait(e, &v, 1, -1), 1, t, 0);)
SLEEPER(in_epoll_timed, int e = epoll_create1(0); struct epoll_event v;
        check("epoll_wait timed", epoll_wait(e, &v, 1, kMs), 0, t, 1);)
SLEEPER(in_futex, while (__atomic_load_n(&word, __ATOMIC_SEQ_CST) == 0) {
          long r = futex(FUTEX_WAIT, 0, NULL);
          if (r != 0 && errno != EAGAIN) check("futex", r, 0, t, 0);
        })
SLEEPER(in_futex_timed, struct timespec s = {0, 600000000}; long r = syscall(SYS_futex, &timed_word, FUTEX_WAIT, 0, &s, NULL, 0);
        check("futex timed", r < 0 ? errno : r, ETIMEDOUT, t, 1);)
SLEEPER(in_select, struct timeval v = {0, 600000}; check("select", select(0, NULL, NULL, NULL, &v), 0, t, 1);)
SLEEPER(in_recv, char c; check("recv with SO_RCVTIMEO", recv(sockets[0], &c, 1, 0), 1, t, 0);)
SLEEPER(in_sigtimedwait, sigset_t s; sigemptyset(&s); sigaddset(&s, SIGUSR1); struct timespec w = {0, 600000000};
        check("sigtimedwait", sigtimedwait(&s, NULL, &w), -1, t, 1); if (errno != EAGAIN) failures = 1;)
SLEEPER(in_semtimedop, struct sembuf b = {0, -1, 0}; struct timespec w = {0, 600000000};
        long r = semtimedop(semaphores, &b, 1, &w); check("semtimedop", r < 0 ? errno : r, EAGAIN, t, 1);)

int main(void) {
  sigset_t usr;
  sigemptyset(&usr);
  sigaddset(&usr, SIGUSR1);
  sigprocmask(SIG_BLOCK, &usr, NULL);
  struct timeval long_time = {30, 0};
  if (pipe(pipe_ends) || (event = eventfd(0, 0)) < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) ||
      setsockopt(sockets[0], SOL_SOCKET, SO_RCVTIMEO, &long_time, sizeof long_time) ||
      (semaphores = semget(IPC_PRIVATE, 1, 0600)) < 0) return perror("setup"), 1;
  void* (*bodies[])(void*) = {in_read, in_poll, in_nanosleep, in_clock_nanosleep, in_epoll, in_epoll_timed, in_futex,
                              in_futex_timed, in_select, in_recv, in_sigtimedwait, in_semtimedop};
  enum { kThreads = sizeof bodies / sizeof *bodies };
  pthread_t threads[kThreads];
  for (int i = 0; i < kThreads; ++i) pthread_create(&threads[i], NULL, bodies[i], NULL);
  usleep(100000);
  printf("ready\n");
  fflush(stdout);
  char c;
  if (read(0, &c, 1) != 1) return perror("read stdin"), 1;
  long one = 1;
  __atomic_store_n(&word, 1, __ATOMIC_SEQ_CST);
  futex(FUTEX_WAKE, 1000, NULL);
  if (write(pipe_ends[1], "x", 1) != 1 || write(event, &one, 8) != 8 || write(sockets[1], "x", 1) != 1) failures = 1;
  for (int i = 0; i < kThreads; ++i) pthread_join(threads[i], NULL);
  semctl(semaphores, 0, IPC_RMID);
  if (failures) return 1;
  printf("exit-success\n");
  return 0;
}
