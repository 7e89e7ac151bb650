// Case 8: `rep` string instructions, `rep ret`, `bnd jmp` and `repz`-prefixed nops first. A stub sets the registers that they
// take, so that the string instruction itself is the first of the probed function.
#include "asm_case.h"
#define STRING(name, setup, first) CASE_BEHIND(name, ENTRIES_ONE, setup, (first; lea 1(%rdi, %rsi), %r9; cld; ret))
#define COPY lea 128(%rdi), %rsi; mov $100, %ecx
STRING(rep_movsb, (COPY), rep movsb)
STRING(rep_movsq, (lea 128(%rdi), %rsi; mov $12, %ecx), rep movsq)
STRING(rep_stosb, (mov $200, %ecx), rep stosb)
STRING(rep_stosq, (mov $31, %ecx), rep stosq)
STRING(rep_lodsb, (mov %rdi, %rsi; mov $77, %ecx), rep lodsb)
STRING(repe_cmpsb, (COPY), repe cmpsb)
STRING(repne_scasb, (mov $256, %ecx), repne scasb)
STRING(repe_scasb_al, (mov (%rdi), %al; mov $256, %ecx), repe scasb)
STRING(nothing_to_do, (xor %ecx, %ecx; mov %rdi, %rsi), rep movsb)
STRING(overlapping, (lea 1(%rdi), %rsi; xchg %rdi, %rsi; mov $90, %ecx), rep movsb)
STRING(backward, (COPY; lea 99(%rdi), %rdi; lea 99(%rsi), %rsi; std), rep movsb)
STRING(count_of_32_bits, (xor %ecx, %ecx), .byte 0x67; rep movsb)
STRING(single_movsb, (lea 9(%rdi), %rsi), movsb)
STRING(single_stosq, (), stosq)
CASE(rep_ret, rep ret)
CASE(rep_nop, pause; lea 1(%rdx), %rax; ret)
CASE(bnd_jmp, .byte 0xf2; jmp 1f; nop; 1: lea 2(%rdx), %rax; ret)
CASE(bnd_jmp_near, .byte 0xf2, 0xe9; .long 1f - . - 4; nop; 1: lea 2(%rdx), %rax; ret)
CASE(bnd_ret, .byte 0xf2; ret)
NO_EXECUTABLE_STACK
