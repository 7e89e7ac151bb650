// Case 62: threads sleep inside probed functions when the probes leave: behind the entry, and in the kernel with the address of
// a system call that was the first instruction, so that they sleep in its copy. They wake up and return after everybody has left.
#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#include "target.h"

enum { kSleepers = 8, kReaders = 3 };
typedef long (*reader)(int, void *, long);
long probe_me_read_2(int, void *, long), probe_me_read_3(int, void *, long), probe_me_read_4(int, void *, long);
long call_read(reader fn, int fd, void *buffer);
static const reader kReadFirst[kReaders] = {probe_me_read_2, probe_me_read_3, probe_me_read_4};
static int release_pipe[2], inside;

PROBED long probe_me_sleep(int fd, long depth, char *c) {
  volatile long kept[5] = {depth, depth + 1, depth + 2, depth + 3, depth + 4};
  long got;
  if (depth > 0) got = probe_me_sleep(fd, depth - 1, c);
  else {
    __atomic_fetch_add(&inside, 1, __ATOMIC_RELAXED);
    got = read(fd, c, 1);
  }
  for (long i = 0; i < 5; i++)
    if (kept[i] != depth + i) return -100;
  return got;
}

static void *sleep_behind_the_entry(void *argument) {
  char c = 0;
  const long got = probe_me_sleep(release_pipe[0], (intptr_t)argument, &c);
  if (got != 1 || c != 'x') target_fail("a sleeper returned %ld", got);
  return NULL;
}

static void *sleep_in_the_entry(void *argument) {
  char c = 0;
  __atomic_fetch_add(&inside, 1, __ATOMIC_RELAXED);
  const long got = call_read(kReadFirst[(intptr_t)argument], release_pipe[0], &c);
  if (got != 1 || c != 'x') target_fail("a system call returned %ld", got);
  return NULL;
}

int main(int argc, char **argv) {
  pthread_t threads[kSleepers + kReaders];
  target_begin(argc, argv, 1, NULL);
  TARGET_CHECK(pipe(release_pipe) == 0);
  target_ready();
  for (long i = 0; i < kSleepers; i++) {
    TARGET_CHECK(pthread_create(&threads[i], NULL, sleep_behind_the_entry, (void *)(intptr_t)i) == 0);
    target_count((uint64_t)i + 1);
  }
  for (long i = 0; i < kReaders; i++) {
    TARGET_CHECK(pthread_create(&threads[kSleepers + i], NULL, sleep_in_the_entry, (void *)(intptr_t)i) == 0);
    target_count(1);
  }
  while (__atomic_load_n(&inside, __ATOMIC_RELAXED) < kSleepers + kReaders) usleep(1000);
  usleep(50000);
  const int status = target_end();  // with --hold: the probes leave here
  for (int i = 0; i < kSleepers + kReaders; i++) TARGET_CHECK(write(release_pipe[1], "x", 1) == 1);
  for (int i = 0; i < kSleepers + kReaders; i++) pthread_join(threads[i], NULL);
  return status;
}
