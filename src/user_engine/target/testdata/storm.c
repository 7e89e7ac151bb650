// Keeps starting and ending threads, 200 alive at most, until a byte comes on stdin. Prints "exit-success".
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static int alive, done, started;
static void* short_life(void* seed) {
  unsigned long x = (unsigned long)seed;
  for (int i = 0; i < 1000; ++i) x = x * 6364136223846793005ul + 1;
  if (x & 64) {
    struct timespec t = {0, (long)(x >> 44)};
    nanosleep(&t, NULL);
  }
  __atomic_fetch_sub(&alive, 1, __ATOMIC_SEQ_CST);
  return NULL;
}
static void* starter(void* seed) {
  pthread_attr_t attr;
  pthread_attr_init(&attr);
  pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attr, 65536);
  while (!__atomic_load_n(&done, __ATOMIC_SEQ_CST)) {
    if (__atomic_add_fetch(&alive, 1, __ATOMIC_SEQ_CST) > 200) {
      __atomic_fetch_sub(&alive, 1, __ATOMIC_SEQ_CST);
      usleep(100);
      continue;
    }
    pthread_t t;
    int error = pthread_create(&t, &attr, short_life, (void*)((unsigned long)seed + (unsigned long)started));
    if (error) printf("pthread_create: %d\n", error), exit(1);
    __atomic_fetch_add(&started, 1, __ATOMIC_SEQ_CST);
  }
  return NULL;
}
int main(void) {
  pthread_t starters[4];
  for (long i = 0; i < 4; ++i) pthread_create(&starters[i], NULL, starter, (void*)i);
  printf("ready\n");
  fflush(stdout);
  char c;
  if (read(0, &c, 1) != 1) return 1;
  __atomic_store_n(&done, 1, __ATOMIC_SEQ_CST);
  for (int i = 0; i < 4; ++i) pthread_join(starters[i], NULL);
  while (__atomic_load_n(&alive, __ATOMIC_SEQ_CST) > 0) usleep(100);
  printf("exit-success\n");
  return 0;
}
