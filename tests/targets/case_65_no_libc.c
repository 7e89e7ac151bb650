// Case 65: a program without any library: no TLS (fs is 0), no stack protector, no vdso, a few pages of memory. Built for 64 and for 32
// bits. It does what target.h says about arguments by itself.
typedef unsigned long long u64;

#ifdef __x86_64__
enum { kRead = 0, kWrite = 1, kExit = 60, kClock = 228 };
static long kernel(long n, long a, long b, long c) {
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
  return result;
}
__asm__(".globl _start\n_start: mov %rsp, %rdi\n and $-16, %rsp\n call run\n hlt\n");
#else
enum { kRead = 3, kWrite = 4, kExit = 1, kClock = 265 };
static long kernel(long n, long a, long b, long c) {
  long result;
  __asm__ volatile("int $0x80" : "=a"(result) : "a"(n), "b"(a), "c"(b), "d"(c) : "memory");
  return result;
}
__asm__(".globl _start\n_start: mov %esp, %eax\n and $-16, %esp\n sub $12, %esp\n push %eax\n call run\n hlt\n");
#endif

__attribute__((noinline, noclone, used)) u64 probe_me(u64 a, u64 b) { return (a ^ b) * 31 + b; }
__attribute__((noinline, noclone, used)) u64 probe_me_too(u64 *at, u64 n) { return *at += n; }

static int same(const char *a, const char *b) {
  while (*a && *a == *b) a++, b++;
  return *a == *b;
}
static long number(const char *text) {
  long value = 0;
  while (*text >= '0' && *text <= '9') value = value * 10 + (*text++ - '0');
  return value;
}
static void say(const char *text) {
  long length = 0;
  while (text[length]) length++;
  kernel(kWrite, 1, (long)text, length);
}
static void wait_for_line(const char *what) {
  char c = 0;
  say(what);
  while (c != '\n')
    if (kernel(kRead, 0, (long)&c, 1) != 1) break;
}
static long now_ms(void) {
  long time[2];
  kernel(kClock, 1, (long)time, 0);
  return time[0] % 1000000 * 1000 + time[1] / 1000000;
}
static void fail(const char *why) {
  say("EXIT-FAILURE: ");
  say(why);
  kernel(kExit, 1, 0, 0);
}
static void say_calls(u64 calls) {
  char text[32] = "calls=";
  int digits = 1;
  for (u64 left = calls; left >= 10; left /= 10) digits++;
  text[6 + digits] = '\n';
  for (int i = digits; i-- > 0; calls /= 10) text[6 + i] = (char)('0' + calls % 10);
  say(text);
}

__attribute__((used)) void run(long *stack) {
  char **argv = (char **)(stack + 1);
  long rounds = 5000, loop_ms = 0;
  int wait = 0, hold = 0;
  for (int i = 1; i < stack[0]; i++) {
    if (same(argv[i], "--wait")) wait = 1;
    else if (same(argv[i], "--hold")) hold = 1;
    else if (same(argv[i], "--rounds")) rounds = number(argv[++i]);
    else if (same(argv[i], "--loop")) loop_ms = number(argv[++i]) * 1000;
  }
  if (wait) wait_for_line("ready\n");
  const long end = now_ms() + loop_ms;
  u64 calls = 0, sum = 0, want = 0;
  for (long round = 0; loop_ms > 0 ? now_ms() < end : round < rounds; round++)
    for (u64 i = 0; i < 10; i++, calls += 2) {
      if (probe_me(i, (u64)round) != (i ^ (u64)round) * 31 + (u64)round) fail("probe_me\n");
      want += i;
      if (probe_me_too(&sum, i) != want) fail("probe_me_too\n");
    }
  if (hold) wait_for_line("done\n");
  say_calls(calls);
  say("EXIT-SUCCESS\n");
  kernel(kExit, 0, 0, 0);
}
