// Processes that are hard to stop. Usage: odd MODE; says "ready", ends after a byte on stdin with "exit-success".
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile long ticks;
static void tick(int signal) { (void)signal, ++ticks; }
static void say_ready(void) { printf("ready\n"), fflush(stdout); }
static int wait_byte(void) {
  char c;
  while (read(0, &c, 1) != 1) {}
  printf("exit-success\n");
  fflush(stdout);
  return 0;
}
static void* wait_and_exit(void* unused) {
  (void)unused;
  usleep(20000);
  say_ready();
  exit(wait_byte());
}
static void* sleep_for_ever(void* unused) {
  (void)unused;
  for (;;) pause();
}
static int sharer(void* unused) {
  (void)unused;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (;;) pause();
}

int main(int argc, char** argv) {
  const char* mode = argc > 1 ? argv[1] : "";
  if (!strcmp(mode, "vfork")) {  // main is stuck until the child ends: when there is a byte
    struct pollfd in = {0, POLLIN, 0};
    say_ready();
    if (vfork() == 0) poll(&in, 1, 60000), _exit(0);
  } else if (!strcmp(mode, "clone-vm")) {
    char* stack = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int child = clone(sharer, stack + 65536, CLONE_VM | SIGCHLD, NULL);
    say_ready();
    int result = wait_byte();
    kill(child, SIGKILL);
    return result;
  } else if (!strcmp(mode, "zombie-leader")) {
    pthread_t t;
    pthread_create(&t, NULL, wait_and_exit, NULL);
    pthread_exit(NULL);
  } else if (!strcmp(mode, "timer")) {  // a signal every 100 us
    struct itimerval v = {{0, 100}, {0, 100}};
    signal(SIGALRM, tick);
    setitimer(ITIMER_REAL, &v, NULL);
    say_ready();
  } else if (!strcmp(mode, "threads")) {
    pthread_t t;
    for (int i = argc > 2 ? atoi(argv[2]) : 40; i > 0; --i) pthread_create(&t, NULL, sleep_for_ever, NULL);
    say_ready();
  } else if (!strcmp(mode, "undumpable")) {
    prctl(PR_SET_DUMPABLE, 0);
    say_ready();
  } else if (!strcmp(mode, "exec")) {  // becomes itself again and again
    int left = argc > 2 ? atoi(argv[2]) : 800;
    if (left == 800) say_ready();
    char text[16];
    snprintf(text, sizeof text, "%d", left - 1);
    if (left > 0) execl("/proc/self/exe", argv[0], "exec", text, (char*)NULL);
  } else {
    say_ready();
  }
  return wait_byte();
}
