// Case 12: endbr64 at the entry (a landing pad of indirect branches, which must stay the first instruction executed),
// behind a nop, alone with ret, and with branches back to it and to the byte after it.
#include "asm_case.h"
CASE(endbr, endbr64; lea 1(%rax), %rax; ret)
CASE(endbr_called_indirectly, endbr64; push %rbx; call *%r11; pop %rbx; ret)
CASE(nop_endbr, nop; endbr64; lea 1(%rax), %rax; ret)
CASE(endbr_ret, endbr64; ret)
CASE(notrack_jmp, notrack jmp *%r11)
CASE(endbr_notrack_jmp, endbr64; notrack jmp *%r11)
CASE(endbr_loop_behind, endbr64; push %rbx; 1: lea 1(%rax), %rax; sub $1, %ecx; jg 1b; pop %rbx; ret)
CASE_WITH(loop_to_endbr, ENTRIES_RCX, , 1: endbr64; lea 1(%rax), %rax; dec %ecx; jg 1b; ret)
CASE(endbr_jcc, endbr64; jc 1f; lea 1(%rax), %rax; ret; 1: lea 2(%rax), %rax; ret)
CASE(endbr_call, endbr64; call asm_helper; inc %rax; ret)
NO_EXECUTABLE_STACK
