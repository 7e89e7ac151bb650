#include "probed.h"

#define KEPT extern "C" __attribute__((noinline, noclone, noipa))

KEPT long probed_sum(long a, long b) { return a * 3 + b * 5 + 7; }

KEPT long probed_many(long a, long b, long c, long d, long e, long f, long g, long h) {
  return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h;
}

KEPT double probed_doubles(double a, double b) { return a * 1.5 + b * 0.25 - 3.0; }

KEPT long probed_recursive(long depth) {
  if (depth <= 0) return 0;
  volatile long below = probed_recursive(depth - 1);
  return below + depth;
}

KEPT long probed_branches(long n) {
  volatile long v = n;
  if (v < 0) {
    v = v * 3 + 1;
    return v - 4;
  }
  for (long i = 0; i < 4; ++i) v = v + i * n;
  if (v > 100) return v * 2 + 1000;
  return v * 5 + 3;
}

KEPT long probed_throws(long n) {
  volatile long v = n * 7 + 2;
  if (n & 1) throw n;
  return v + 1;
}

KEPT long probed_loop(long n) {
  volatile long sum = 0;
  for (long i = 0; i < n; ++i) sum = sum + i;
  return sum;
}

KEPT long probed_inner(long n) {
  volatile long v = n * 11;
  return v + 13;
}
KEPT long probed_outer(long n) {
  volatile long v = probed_inner(n) * 2;
  return v + 1;
}

KEPT long probed_calls(void (*f)(), long n) {
  f();
  volatile long v = n * 2;
  return v + 1;
}

KEPT long probed_only_by_a_child(long n) { return n * 9 + 100; }
KEPT long probed_only_by_a_parent(long n) { return (n ^ 1234) * 7 - 5; }

__asm__(R"(
.text
.balign 16
.globl probed_nops
.type probed_nops, @function
probed_nops:
  endbr64
  .byte 0x0f, 0x1f, 0x44, 0x00, 0x00
  mov $1, %eax
  ret
.size probed_nops, . - probed_nops

.balign 16
.globl probed_flags, probed_flags_at
.type probed_flags, @function
probed_flags:
  xor %eax, %eax
  mov %rdi, %rdx
  cmp %rsi, %rdx
probed_flags_at:
  movabs $0x1122334455667788, %rcx
  setl %al
  movzbl %al, %eax
  ret
.size probed_flags, . - probed_flags

.balign 16
.globl probed_faults
.type probed_faults, @function
probed_faults:
  mov %rdi, %rax
  mov (%rax), %rax
  ret
.size probed_faults, . - probed_faults

.balign 16
.globl probed_crowded
.type probed_crowded, @function
probed_crowded:
  lea (%rdi,%rdi), %rax
  nop
  nop
  nop
  nop
  ret
.size probed_crowded, . - probed_crowded
.globl probed_neighbour
.type probed_neighbour, @function
probed_neighbour:
  lea 1(%rdi), %rax
  ret
.size probed_neighbour, . - probed_neighbour

.balign 16
.globl probed_tight
.type probed_tight, @function
probed_tight:
  movabs $0x1122334455667788, %rcx
  test %rdi, %rdi
  jle 3f
probed_tight_at:
  xor %ecx, %ecx
1: inc %rcx
  dec %rdi
  jnz 1b
  jo probed_tight_at
3: mov %rcx, %rax
  ret
.size probed_tight, . - probed_tight

.balign 16
.globl probed_read
.type probed_read, @function
probed_read:
  xor %eax, %eax
  nop
  syscall
  ret
.size probed_read, . - probed_read

.balign 16
.globl probed_red_zone
.type probed_red_zone, @function
probed_red_zone:
  mov %rdi, -8(%rsp)
  mov %rdi, -128(%rsp)
  movabs $0x1122334455667788, %rdi
  mov -8(%rsp), %rax
  add -128(%rsp), %rax
  nopl 0(%rax)
  ret
.size probed_red_zone, . - probed_red_zone
)");
