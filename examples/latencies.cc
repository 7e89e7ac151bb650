// How long do the functions of a library take? One Fprobe on all that match a pattern.
#include <spile/kprobe.hpp>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <map>

extern "C" long work_short(long n);
extern "C" long work_long(long n);

static long now_ns() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

int main() {
  struct Start {
    long ns;
  };
  std::map<unsigned long, std::pair<long, long>> sums;  // one thread, so no lock
  spile::Fprobe<Start> functions;
  functions.entry([](spile::FunctionCall<Start> call) { call.data.ns = now_ns(); });
  functions.exit([&](spile::FunctionCall<Start> call) {
    auto& [count, ns] = sums[call.function];
    ++count;
    ns += now_ns() - call.data.ns;
  });
  functions.options(SPILE_ALLOW_TRAP);
  if (functions.add("libwork.so:work_*") != 0) {
    std::fprintf(stderr, "%s\n", spile_error_text());
    return 1;
  }
  for (long i = 0; i < 50; ++i) work_long(i);
  const auto of = [&](long (*f)(long)) { return sums[reinterpret_cast<unsigned long>(f)]; };
  std::printf("work_long: %ld calls, work_short: %ld calls, %zu left out, %lu missed\n", of(work_long).first,
              of(work_short).first, functions.refused(), functions.missed());
  return of(work_long).first == 50 && of(work_short).first == 50 && of(work_long).second > of(work_short).second ? 0
                                                                                                                : 1;
}
