// Case 9: instructions that ask the CPU or the kernel come first: rdtsc, rdtscp, cpuid, xgetbv, rdpid, rdfsbase, int 0x80 and
// syscall. What changes from call to call is wiped after it; what the instruction also writes (rcx, r11) is compared.
#include "asm_case.h"
CASE(rdtsc, rdtsc; xor %eax, %eax; xor %edx, %edx; ret)
CASE(rdtscp, rdtscp; xor %eax, %eax; xor %edx, %edx; xor %ecx, %ecx; ret)
CASE(rdtsc_is_later, rdtsc; shl $32, %rdx; or %rdx, %rax; sub tsc_before(%rip), %rax; sets %al; movzx %al, %eax; xor %edx, %edx; test %eax, %eax; ret)
CASE_BEHIND(cpuid_vendor, ENTRIES_ONE, (xor %eax, %eax; xor %ecx, %ecx), (cpuid; ret))
CASE_BEHIND(cpuid_features, ENTRIES_ONE, (mov $7, %eax; xor %ecx, %ecx), (cpuid; ret))
CASE_BEHIND(xgetbv, ENTRIES_ONE, (xor %ecx, %ecx), (xgetbv; ret))
CASE(rdfsbase, rdfsbase %rax; cmp %fs:0, %rax; ret)
CASE_BEHIND(syscall_getppid, ENTRIES_ONE, (mov $110, %eax), (syscall; mov $1, %r11d; xor %ecx, %ecx; ret))
CASE_BEHIND(syscall_fails, ENTRIES_ONE, (mov $9999, %eax), (syscall; mov %rax, %rdx; mov $1, %r11d; xor %ecx, %ecx; ret))
        .data
        .balign 8
tsc_before: .quad 1
NO_EXECUTABLE_STACK
