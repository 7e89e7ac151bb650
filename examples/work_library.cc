// The library whose functions latencies.cc times.
#define WORK extern "C" __attribute__((noinline))
WORK long work_short(long n) {
  volatile long v = n;
  for (int i = 0; i < 100; ++i) v = v + i;
  return v;
}
WORK long work_long(long n) {
  volatile long v = n;
  for (int i = 0; i < 20000; ++i) v = v + i;
  return v + work_short(n);
}
