// Case 8: string instructions over megabytes, interrupted by a timer's signals all the time. The kernel shows the handler a
// count that is partly used up and goes on with the same instruction afterwards.
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>

#include "target.h"

enum { kBytes = 8 << 20 };
void copy(void *to, const void *from, size_t bytes);
void fill(void *to, int value, size_t bytes);
const unsigned char *find(const void *in, int value, size_t bytes);

static volatile sig_atomic_t signals, partly;

static void on_alarm(int number, siginfo_t *info, void *context) {
  (void)number, (void)info;
  const greg_t left = ((const ucontext_t *)context)->uc_mcontext.gregs[REG_RCX];
  signals++;
  if (left > 0 && left < kBytes) partly++;
}

static void round_of_calls(unsigned char *from, unsigned char *to, int round) {
  fill(to, round, kBytes);
  TARGET_CHECK(to[0] == (round & 0xff) && memcmp(to, to + 1, kBytes - 1) == 0);
  copy(to, from, kBytes);
  TARGET_CHECK(memcmp(to, from, kBytes) == 0);
  TARGET_CHECK(find(to, 0xee, kBytes) == to + kBytes - 5);
  target_count(3);
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 300, NULL);
  unsigned char *from = mmap(NULL, 2 * kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  TARGET_CHECK(from != MAP_FAILED);
  uint64_t seed = 88172645463325252ull;
  for (size_t i = 0; i < kBytes; i++) from[i] = (unsigned char)(target_random(&seed) % 0xee);
  from[kBytes - 5] = 0xee;
  const struct sigaction action = {.sa_sigaction = on_alarm, .sa_flags = SA_SIGINFO | SA_RESTART};
  const struct itimerval every = {{0, 300}, {0, 300}}, never = {{0, 0}, {0, 0}};
  TARGET_CHECK(sigaction(SIGALRM, &action, NULL) == 0);
  target_ready();
  setitimer(ITIMER_REAL, &every, NULL);
  for (long round = 0; target_more(round); round++) round_of_calls(from, from + kBytes, (int)round);
  setitimer(ITIMER_REAL, &never, NULL);
  TARGET_CHECK(signals > 0);
  return target_end();
}
