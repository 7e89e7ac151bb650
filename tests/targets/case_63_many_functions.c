// Case 63: more functions than one stop may take. Two threads call all of them, in other orders, while probes come and go.
#include <pthread.h>
#include <stddef.h>

#include "target.h"

enum { kFunctions = 40000, kThreads = 2 };
typedef uint64_t (*Function)(uint64_t);
extern Function const many_functions[kFunctions];

static void *call_all(void *argument) {
  const size_t stride = (size_t)argument;  // prime to their number: each is called once a round
  for (long round = 0; target_more(round); round++) {
    size_t i = stride;
    for (size_t n = 0; n < kFunctions; n++) {
      i = (i + stride) % kFunctions;
      const uint64_t x = (uint64_t)round * 977 + n;
      if (many_functions[i](x) != ((x + i) ^ 0x5a5a)) target_fail("function %zu returned nonsense", i);
    }
    target_count(kFunctions);
  }
  return NULL;
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 20, "");
  target_ready();
  pthread_t threads[kThreads];
  const size_t strides[kThreads] = {7919, 39989};
  for (int i = 0; i < kThreads; i++)
    TARGET_CHECK(pthread_create(&threads[i], NULL, call_all, (void *)strides[i]) == 0);
  for (int i = 0; i < kThreads; i++) TARGET_CHECK(pthread_join(threads[i], NULL) == 0);
  return target_end();
}
