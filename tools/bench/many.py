"""Writes a C program of N functions, to be attached all at once: many.py N > many.c"""
import sys

n = int(sys.argv[1])
print("#include <stdio.h>\n#include <unistd.h>\n")
for i in range(n):
    print(f"__attribute__((noinline)) long fn_{i}(long x) {{ __asm__ volatile(\"\"); return x * {i + 3} + (x >> {i % 7}); }}")
print("typedef long function(long);\nstatic function* const all[] = {" + ",".join(f"fn_{i}" for i in range(n)) + "};")
print("""int main(void) {
  long sum = 0;
  printf("ready\\n");
  fflush(stdout);
  for (;;) {
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) sum += all[i](sum);
    usleep(10000);
    if (sum == 42) putchar('.');
  }
}""")
