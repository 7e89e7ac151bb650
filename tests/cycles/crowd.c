// crowd FD: eight threads that call three functions as fast as they can and count their calls in the memory behind FD.
#include "crowd.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define HOT(name, factor) \
  __attribute__((noinline, used)) long name(long a, long b) { return a * factor + b; }
HOT(crowd_hot_3, 3)
HOT(crowd_hot_5, 5)
HOT(crowd_hot_9, 9)

static struct Crowd* crowd;

static uint64_t get(const uint64_t* word) { return __atomic_load_n(word, __ATOMIC_SEQ_CST); }
static void set(uint64_t* word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_SEQ_CST); }

static void* work(void* argument) {
  struct CrowdThread* self = argument;
  uint64_t wrong = 0;
  long i = 0;
  while (!get(&crowd->ends)) {
    // In this order: who sees the new number sees the new limit.
    uint64_t asked = get(&self->asked);
    if ((uint64_t)i >= get(&self->limit)) {
      set(&self->obeyed, asked);
      usleep(50);
      continue;
    }
    set(&self->begun, (uint64_t)i + 1);
    wrong += crowd_hot_3(i, 7) != i * 3 + 7;
    wrong += crowd_hot_5(i, 7) != i * 5 + 7;
    wrong += crowd_hot_9(i, 7) != i * 9 + 7;
    set(&self->wrong, wrong);
    set(&self->done, (uint64_t)++i);
  }
  return 0;
}

int main(int argc, char** argv) {
  pthread_t others[kThreads];
  if (argc != 2) return 2;
  crowd = mmap(0, sizeof *crowd, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[1]), 0);
  if (crowd == MAP_FAILED) return 2;
  for (int i = 1; i < kThreads; i++) {
    if (pthread_create(&others[i], 0, work, &crowd->threads[i]) != 0) return 2;
  }
  work(&crowd->threads[0]);
  for (int i = 1; i < kThreads; i++) pthread_join(others[i], 0);
  return 0;
}
