/* The helper's program file, carried by the library (poke.h). */
.section .rodata, "a", @progbits
.globl spile_helper_begin, spile_helper_end
.hidden spile_helper_begin, spile_helper_end
.balign 16
spile_helper_begin:
        .incbin SPILE_HELPER_FILE
spile_helper_end:
.section .note.GNU-stack, "", @progbits
