// Who calls this function, with what? A probe on its entry, without a change to it.
#include <spile/kprobe.hpp>

#include <cstdio>

extern "C" __attribute__((noinline)) long area(long width, long height) {
  __asm__ volatile("");  // stays a function
  return width * height;
}

int main() {
  long calls = 0;
  spile::Kprobe probe("area");
  probe.before([&](spile::Regs& regs) {
    ++calls;
    std::printf("area(%ld, %ld)\n", regs.argument<long>(0), regs.argument<long>(1));
  });
  if (probe.add() != 0) {
    std::fprintf(stderr, "area: %s\n", spile_error_text());
    return 1;
  }
  long sum = 0;
  for (long i = 1; i <= 3; ++i) sum += area(i, 10);
  probe.remove();
  sum += area(100, 1);
  std::printf("sum %ld, seen %ld calls\n", sum, calls);
  return sum == 160 && calls == 3 ? 0 : 1;
}
