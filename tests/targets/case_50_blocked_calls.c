// Case 50: threads blocked in system calls while probes are attached and detached. No call may return early, with EINTR or
// with one of the kernel's own restart codes; each is then woken in its own way and must give its own result.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "target.h"

static int child_pipe[2];
static pthread_t suspended;
static volatile bool release;  // set when the blocked threads may return
static int data_pipe[2], event_fd, epoll_fd, sockets[2], timed_sockets[2], listener, lock_file, semaphores, queue;
static int poll_pipe[2], futex_word, timed_futex_word;
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static double started;
static const double kTimeout = 1.2;  // seconds, of the calls that end by time

PROBED uint64_t probe_me(uint64_t n) { return n * 9 + 4; }

struct call {
  const char *name;
  long (*run)(void);  // the result, -errno if it failed
  long want;
  bool ends_by_time;
};

static long result(long value) { return value < 0 ? -errno : value; }
static struct timespec timeout(void) { return (struct timespec){.tv_sec = 1, .tv_nsec = 200000000}; }

static long do_read(void) {
  char c;
  return result(read(data_pipe[0], &c, 1));
}
static long do_event(void) {
  uint64_t n;
  return result(read(event_fd, &n, 8));
}
static long do_epoll(void) {
  struct epoll_event event;
  return result(epoll_wait(epoll_fd, &event, 1, -1));
}
static long do_epoll_time(void) {
  struct epoll_event event;
  const int empty = epoll_create1(EPOLL_CLOEXEC);
  const long got = result(epoll_wait(empty, &event, 1, 1200));
  close(empty);
  return got;
}
static long do_poll(void) {
  struct pollfd one = {.fd = poll_pipe[0], .events = POLLIN};
  return result(poll(&one, 1, -1));
}
static long do_poll_time(void) { return result(poll(NULL, 0, 1200)); }
static long do_ppoll(void) {
  sigset_t mask;
  sigemptyset(&mask);
  struct pollfd one = {.fd = poll_pipe[0], .events = POLLIN};
  return result(ppoll(&one, 1, NULL, &mask));
}
static long do_select(void) {
  fd_set set;
  FD_ZERO(&set);
  FD_SET(poll_pipe[0], &set);
  return result(select(poll_pipe[0] + 1, &set, NULL, NULL, NULL));
}
static long do_nanosleep(void) {
  const struct timespec time = timeout();
  return result(nanosleep(&time, NULL));
}
static long do_clock_absolute(void) {
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  until.tv_sec += 1;
  until.tv_nsec += 200000000;
  if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
  return -clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}
static long do_futex(void) { return result(syscall(SYS_futex, &futex_word, FUTEX_WAIT, 0, NULL, NULL, 0)); }
static long do_futex_time(void) {
  const struct timespec time = timeout();
  return result(syscall(SYS_futex, &timed_futex_word, FUTEX_WAIT, 0, &time, NULL, 0));
}
static long do_sigtimedwait(void) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 2);
  const struct timespec time = timeout();
  return result(sigtimedwait(&set, NULL, &time));
}
static pid_t child;
static long do_wait(void) {
  int status;
  return waitpid(child, &status, 0) == child ? status : -errno;
}
static long do_pause(void) {
  sigset_t all;
  sigfillset(&all);
  sigdelset(&all, SIGRTMIN + 3);
  return sigsuspend(&all) < 0 ? -errno : 0;
}
static long do_accept(void) {
  const int fd = accept(listener, NULL, NULL);
  if (fd >= 0) close(fd);
  return fd >= 0 ? 0 : -errno;
}
static long do_recv(void) {
  char c;
  return result(recv(sockets[0], &c, 1, 0));
}
static long do_recv_time(void) {
  char c;
  return result(recv(timed_sockets[0], &c, 1, 0));
}
static long do_semop(void) {
  struct sembuf take = {.sem_num = 0, .sem_op = -1};
  return result(semop(semaphores, &take, 1));
}
static long do_semtimedop(void) {
  struct sembuf take = {.sem_num = 1, .sem_op = -1};
  const struct timespec time = timeout();
  return result(semtimedop(semaphores, &take, 1, &time));
}
static long do_msgrcv(void) {
  struct {
    long type;
    char text[8];
  } message;
  return result(msgrcv(queue, &message, sizeof message.text, 0, 0));
}
static long do_flock(void) {
  char path[64];
  __builtin_snprintf(path, sizeof path, "/proc/self/fd/%d", lock_file);
  const int again = open(path, O_RDWR);  // another description, so that the lock conflicts
  const long got = again < 0 ? -errno : result(flock(again, LOCK_EX));
  if (again >= 0) close(again);
  return got;
}
static long do_timer(void) {
  const int fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
  const struct itimerspec time = {.it_value = timeout()};
  uint64_t n;
  timerfd_settime(fd, 0, &time, NULL);
  const long got = result(read(fd, &n, 8));
  close(fd);
  return got;
}

static const struct call kCalls[] = {
    {"read(pipe)", do_read, 1, false},
    {"read(eventfd)", do_event, 8, false},
    {"read(timerfd)", do_timer, 8, true},
    {"epoll_wait(-1)", do_epoll, 1, false},
    {"epoll_wait(timeout)", do_epoll_time, 0, true},
    {"poll(-1)", do_poll, 1, false},
    {"poll(timeout)", do_poll_time, 0, true},
    {"ppoll(mask)", do_ppoll, 1, false},
    {"select", do_select, 1, false},
    {"nanosleep", do_nanosleep, 0, true},
    {"clock_nanosleep(ABSTIME)", do_clock_absolute, 0, true},
    {"futex", do_futex, 0, false},
    {"futex(timeout)", do_futex_time, -ETIMEDOUT, true},
    {"sigtimedwait", do_sigtimedwait, -EAGAIN, true},
    {"waitpid", do_wait, 0, false},
    {"sigsuspend", do_pause, -EINTR, false},
    {"accept", do_accept, 0, false},
    {"recv", do_recv, 1, false},
    {"recv(SO_RCVTIMEO)", do_recv_time, -EAGAIN, true},
    {"semop", do_semop, 0, false},
    {"semtimedop", do_semtimedop, -EAGAIN, true},
    {"msgrcv", do_msgrcv, 1, false},
    {"flock", do_flock, 0, false},
};
enum { kCount = sizeof kCalls / sizeof kCalls[0] };

static void on_signal(int number) { (void)number; }

static void *block(void *argument) {
  const struct call *one = argument;
  const long got = one->run();
  if (got != one->want) target_fail("%s returned %ld, must be %ld", one->name, got, one->want);
  if (one->ends_by_time ? target_now() - started < kTimeout - 0.05 : !release) target_fail("%s woke early", one->name);
  return NULL;
}

static void prepare(void) {
  TARGET_CHECK(pipe(data_pipe) == 0 && pipe(poll_pipe) == 0 && pipe(child_pipe) == 0);
  child = fork();
  if (child == 0) {
    char c;
    close(child_pipe[1]);
    _exit(read(child_pipe[0], &c, 1) < 0);  // until the parent closes its end, or dies
  }
  event_fd = eventfd(0, EFD_CLOEXEC);
  epoll_fd = epoll_create1(EPOLL_CLOEXEC);
  struct epoll_event interest = {.events = EPOLLIN};
  TARGET_CHECK(epoll_ctl(epoll_fd, EPOLL_CTL_ADD, poll_pipe[0], &interest) == 0);
  TARGET_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
  TARGET_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, timed_sockets) == 0);
  const struct timeval wait = {.tv_sec = 1, .tv_usec = 200000};
  TARGET_CHECK(setsockopt(timed_sockets[0], SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait) == 0);
  listener = socket(AF_UNIX, SOCK_STREAM, 0);
  __builtin_snprintf(address.sun_path + 1, sizeof address.sun_path - 1, "spile-case-50-%d", getpid());
  TARGET_CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 1) == 0);
  semaphores = semget(IPC_PRIVATE, 2, 0600);
  queue = msgget(IPC_PRIVATE, 0600);
  TARGET_CHECK(semaphores >= 0 && queue >= 0);
  char path[] = "/tmp/spile-case-50-XXXXXX";
  lock_file = mkostemp(path, O_CLOEXEC);
  TARGET_CHECK(lock_file >= 0 && flock(lock_file, LOCK_EX) == 0);
  unlink(path);
}

static void wake_all(void) {
  const uint64_t one = 1;
  struct {
    long type;
    char text[8];
  } message = {1, "x"};
  release = true;
  close(child_pipe[1]);
  pthread_kill(suspended, SIGRTMIN + 3);
  TARGET_CHECK(write(data_pipe[1], "x", 1) == 1 && write(event_fd, &one, 8) == 8 && write(poll_pipe[1], "x", 1) == 1);
  futex_word = 1;
  syscall(SYS_futex, &futex_word, FUTEX_WAKE, 1, NULL, NULL, 0);
  TARGET_CHECK(send(sockets[1], "x", 1, 0) == 1);
  const int client = socket(AF_UNIX, SOCK_STREAM, 0);
  TARGET_CHECK(connect(client, (struct sockaddr *)&address, sizeof address) == 0);
  struct sembuf give = {.sem_num = 0, .sem_op = 1};
  TARGET_CHECK(semop(semaphores, &give, 1) == 0 && msgsnd(queue, &message, 1, 0) == 0);
  TARGET_CHECK(flock(lock_file, LOCK_UN) == 0);
}

int main(int argc, char **argv) {
  pthread_t threads[kCount];
  sigset_t set;
  target_begin(argc, argv, 100, NULL);
  prepare();
  sigemptyset(&set);
  sigaddset(&set, SIGRTMIN + 2);
  sigaddset(&set, SIGRTMIN + 3);
  pthread_sigmask(SIG_BLOCK, &set, NULL);
  const struct sigaction action = {.sa_handler = on_signal};
  TARGET_CHECK(sigaction(SIGRTMIN + 3, &action, NULL) == 0);
  started = target_now();
  for (int i = 0; i < kCount; i++) TARGET_CHECK(pthread_create(&threads[i], NULL, block, (void *)&kCalls[i]) == 0);
  for (int i = 0; i < kCount; i++)
    if (kCalls[i].run == do_pause) suspended = threads[i];
  usleep(100000);
  target_ready();
  for (long i = 0; target_more(i); i++) {
    target_count(1);
    TARGET_CHECK(probe_me((uint64_t)i) == (uint64_t)i * 9 + 4);
    usleep(5000);
  }
  wake_all();
  for (int i = 0; i < kCount; i++) pthread_join(threads[i], NULL);
  semctl(semaphores, 0, IPC_RMID);
  msgctl(queue, IPC_RMID, NULL);
  return target_end();
}
