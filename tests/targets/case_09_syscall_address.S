// Case 9: the kernel leaves the address behind a system call in rcx. A program that looks there finds its own code.
#include "asm_case.h"
CASE_BEHIND(syscall_tells_its_address, ENTRIES_ONE, (mov $110, %eax),
  (syscall; nop; nop; nop; call 1f; 1: pop %r9; sub %rcx, %r9; mov $1, %r11d; xor %ecx, %ecx; ret))
NO_EXECUTABLE_STACK
