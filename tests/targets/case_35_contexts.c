// Case 35: coroutines (makecontext, swapcontext) that leave a probed function in the middle and come back to it on another
// thread; their returns are told all the same. `probe_me` returns by itself, `probe_me_jumps` by a tail jump.
#include <pthread.h>
#include <stdlib.h>
#include <ucontext.h>

#include "target.h"

enum { kCoroutines = 8, kStack = 65536, kDepth = 5 };

static struct coroutine {
  ucontext_t context, *back;
  char *stack;
  uint64_t sum;
  bool done;
} coroutines[kCoroutines];

static __thread struct coroutine *current;

// The thread may be another one afterwards, so the compiler must not keep the address of `current`.
__attribute__((noinline)) static void yield(void) {
  struct coroutine *self = current;
  __asm__ volatile("" ::: "memory");
  swapcontext(&self->context, self->back);
}

PROBED uint64_t finish(uint64_t n) {
  __asm__ volatile("" : "+r"(n));
  return n + 1;
}

PROBED uint64_t probe_me(uint64_t depth) {
  yield();
  return depth == 0 ? 1 : probe_me(depth - 1) + (depth > 100 ? 2 : 1);
}

PROBED uint64_t probe_me_jumps(uint64_t depth) {
  yield();
  uint64_t below = depth == 0 ? 0 : probe_me_jumps(depth - 1);
  yield();
  return finish(below);
}

static void body(int number) {
  struct coroutine *self = &coroutines[number];
  self->sum = probe_me(kDepth) + probe_me_jumps(kDepth);
  self->done = true;
  struct coroutine *again = &coroutines[number];
  setcontext(again->back);
}

static void *resume(void *argument) {
  struct coroutine *c = argument;
  ucontext_t here;
  c->back = &here;
  current = c;
  swapcontext(&here, &c->context);
  return NULL;
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 4, NULL);
  for (int i = 0; i < kCoroutines; i++) coroutines[i].stack = malloc(kStack);
  target_ready();
  for (long round = 0; target_more(round); round++) {
    for (int i = 0; i < kCoroutines; i++) {
      struct coroutine *c = &coroutines[i];
      c->done = false;
      getcontext(&c->context);
      c->context.uc_stack.ss_sp = c->stack;
      c->context.uc_stack.ss_size = kStack;
      c->context.uc_link = NULL;
      makecontext(&c->context, (void (*)(void))body, 1, i);
    }
    // Every step of every coroutine runs on a thread of its own.
    for (bool any = true; any;) {
      any = false;
      for (int i = 0; i < kCoroutines; i++) {
        if (coroutines[i].done) continue;
        any = true;
        pthread_t thread;
        TARGET_CHECK(pthread_create(&thread, NULL, resume, &coroutines[i]) == 0);
        pthread_join(thread, NULL);
      }
    }
    for (int i = 0; i < kCoroutines; i++) TARGET_CHECK(coroutines[i].sum == 2 * (kDepth + 1));
    target_count(2 * kCoroutines * (kDepth + 1));
  }
  return target_end();
}
