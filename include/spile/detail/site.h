// The two places that a tracepoint leaves in the code. C and C++.
//
// The switch: off, it is one nop; on, the same bytes are a short nop and a jump.
//
//   off   0f 1f 84 e9 rel32     nopl rel32(%rcx,%rbp,8)
//   on    0f 1f 00              nopl (%rax)
//         e9 rel32              jmp on
//
// They differ in one byte. So a switch is thrown by storing one byte, wherever it lies, while any number of threads run
// through it: a processor sees the old byte or the new one, and a thread that stands between the two parts of the second
// form finds its jump there in the first one, too.
//
// The probe: a nop of its own with a note in .note.stapsdt, as <sys/sdt.h> has made them known. Tracers from outside
// (spile, bpftrace, perf, gdb) patch this one, never the switch. It is 90 and four bytes more: the kernel emulates the
// 90, and who puts a jump there displaces nothing else.
#ifndef SPILE_DETAIL_SITE_H
#define SPILE_DETAIL_SITE_H

#include <spile/detail/base.h>

#ifdef __cplusplus
extern "C" {
#endif

/// One switch. Offsets are from the field itself.
struct spile_site {
  int32_t switch_offset;
  int32_t name_offset;  // "group:name"
};

// Of the module (program or library) that includes this.
extern const struct spile_site __start_spile_sites[] __attribute__((weak, visibility("hidden")));
extern const struct spile_site __stop_spile_sites[] __attribute__((weak, visibility("hidden")));

SPILE_API void spile_add_sites(const struct spile_site* begin, const struct spile_site* end);
SPILE_API void spile_remove_sites(const struct spile_site* begin);

__attribute__((constructor, used)) static void spile_constructor(void) {
  spile_add_sites(__start_spile_sites, __stop_spile_sites);
}
__attribute__((destructor, used)) static void spile_destructor(void) {
  spile_remove_sites(__start_spile_sites);
}

#ifdef __cplusplus
}
#endif

// Labels are numbers that nobody else uses. "?" puts what is written into the group of the function around it: where the
// linker drops one copy of an inline function, its sites go with it.
#define SPILE_SWITCH_ASM_(group, name)                          \
  "77010: .byte 0x0f, 0x1f, 0x84, 0xe9\n"                       \
  ".long %l[spile_on] - . - 4\n"                                \
  ".pushsection spile_site_names, \"a?\", @progbits\n"          \
  "77011: .asciz \"" #group ":" #name "\"\n"                    \
  ".popsection\n"                                               \
  ".pushsection spile_sites, \"a?\", @progbits\n.balign 4\n"    \
  ".long 77010b - .\n.long 77011b - .\n"                        \
  ".popsection\n"

#define SPILE_PROBE_ASM_(group, name, arguments)                                              \
  "77020: nop\n.byte 0x0f, 0x1f, 0x40, 0x00\n"                                                \
  ".pushsection .note.stapsdt, \"?\", \"note\"\n.balign 4\n"                                  \
  ".long 77022f - 77021f, 77024f - 77023f, 3\n"                                               \
  "77021: .asciz \"stapsdt\"\n77022: .balign 4\n"                                             \
  "77023: .quad 77020b, _.stapsdt.base, 0\n"                                                  \
  ".asciz \"" #group "\"\n.asciz \"" #name "\"\n.asciz \"" arguments "\"\n"                   \
  "77024: .balign 4\n.popsection\n"                                                           \
  ".ifndef _.stapsdt.base\n"                                                                  \
  ".pushsection .stapsdt.base, \"aG\", \"progbits\", .stapsdt.base, comdat\n"                 \
  ".weak _.stapsdt.base\n.hidden _.stapsdt.base\n_.stapsdt.base: .space 1\n"                  \
  ".size _.stapsdt.base, 1\n.popsection\n.endif\n"

// What the arguments are called, for tracers from outside: notes of the owner "spile" in .note.spile, with strings that end
// with a zero. Of one text a file keeps one copy (the group's name). At file scope.
//
//   type 1   group, name, fields    "int id, const char* path"
//   type 2   class, fields
//   type 3   group, name, class     an event of a class
#define SPILE_NOTE_(type, key, strings)                                                       \
  __asm__(".pushsection .note.spile, \"G\", \"note\", \"spile " key "\", comdat\n.balign 4\n" \
          ".long 77032f - 77031f, 77034f - 77033f, " #type "\n"                              \
          "77031: .asciz \"spile\"\n77032: .balign 4\n"                                      \
          "77033: " strings "\n77034: .balign 4\n.popsection\n");
#define SPILE_STRING_(...) SPILE_STRING2_(__VA_ARGS__)
#define SPILE_STRING2_(...) #__VA_ARGS__
#define SPILE_ASCIZ_(text) ".asciz \"" text "\"\n"
#define SPILE_NOTE_OF_(group, name, fields)             \
  SPILE_NOTE_(1, "event " group ":" name " " fields,    \
              SPILE_ASCIZ_(group) SPILE_ASCIZ_(name) SPILE_ASCIZ_(fields))
#define SPILE_NOTE_OF_CLASS_(cls, fields) \
  SPILE_NOTE_(2, "class " cls " " fields, SPILE_ASCIZ_(cls) SPILE_ASCIZ_(fields))
#define SPILE_NOTE_OF_CLASS_EVENT_(group, name, cls)    \
  SPILE_NOTE_(3, "event " group ":" name " of " cls,    \
              SPILE_ASCIZ_(group) SPILE_ASCIZ_(name) SPILE_ASCIZ_(cls))

// Argument n as a note names it: size (negative: signed), "@", place.
#define SPILE_TEXT_1_ "%c[s0]@%[a0]"
#define SPILE_TEXT_2_ SPILE_TEXT_1_ " %c[s1]@%[a1]"
#define SPILE_TEXT_3_ SPILE_TEXT_2_ " %c[s2]@%[a2]"
#define SPILE_TEXT_4_ SPILE_TEXT_3_ " %c[s3]@%[a3]"
#define SPILE_TEXT_5_ SPILE_TEXT_4_ " %c[s4]@%[a4]"
#define SPILE_TEXT_6_ SPILE_TEXT_5_ " %c[s5]@%[a5]"
#define SPILE_TEXT_7_ SPILE_TEXT_6_ " %c[s6]@%[a6]"
#define SPILE_TEXT_8_ SPILE_TEXT_7_ " %c[s7]@%[a7]"

#define SPILE_OPERAND_(n, value, size) [s##n] "i"(size), [a##n] "nor"(value)

#endif
