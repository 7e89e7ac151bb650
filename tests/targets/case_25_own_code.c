// Cases 25 and 68: the program changes the bytes at our site itself, whole instructions at a time and with one aligned store.
// Mode `rewrite` (25): once, for good; the changed function must be what runs after everybody has left. Mode `toggle` (68): a jump
// label, switched between a nop of five bytes and a jump all the time.
#include <string.h>
#include <sys/mman.h>

#include "target.h"

uint64_t probe_me(uint64_t n), probe_me_label(uint64_t n);
__asm__(
    ".text\n.p2align 12\n"
    ".globl probe_me\n.type probe_me,@function\nprobe_me: mov $11, %eax\n nop\n nop\n nop\n add %rdi, %rax\n ret\n.size probe_me,.-probe_me\n.p2align 4\n"
    ".globl probe_me_label\n.type probe_me_label,@function\nprobe_me_label: .byte 0x0f,0x1f,0x44,0,0\n nop\n nop\n nop\n lea 1(%rdi), %rax\n ret\n"
    "1: lea 2(%rdi), %rax\n ret\n.size probe_me_label,.-probe_me_label\n.p2align 12\n");

static const unsigned char kMov22[8] = {0xb8, 22, 0, 0, 0, 0x90, 0x90, 0x90};
static const unsigned char kNop[8] = {0x0f, 0x1f, 0x44, 0, 0, 0x90, 0x90, 0x90};
static const unsigned char kJmp[8] = {0xe9, 8, 0, 0, 0, 0x90, 0x90, 0x90};  // over nop nop nop lea ret

static void set(void *at, const unsigned char *bytes) {
  uint64_t word;
  memcpy(&word, bytes, 8);
  TARGET_CHECK(mprotect((void *)((uintptr_t)at & ~4095ull), 4096, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
  __atomic_store_n((uint64_t *)at, word, __ATOMIC_SEQ_CST);
  TARGET_CHECK(mprotect((void *)((uintptr_t)at & ~4095ull), 4096, PROT_READ | PROT_EXEC) == 0);
}

static void toggled_round(void) {
  set(probe_me_label, kJmp);
  for (uint64_t i = 0; i < 50; i++) TARGET_CHECK(probe_me_label(i) == i + 2);
  set(probe_me_label, kNop);
  for (uint64_t i = 0; i < 50; i++) TARGET_CHECK(probe_me_label(i) == i + 1);
  target_count(100);
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 400, "rewrite");
  const bool toggle = target_mode_is("toggle");
  set(probe_me_label, kNop);  // the same bytes: the mapping is split before anybody looks
  target_ready();
  for (long round = 0; target_more(round); round++) {
    if (toggle) {
      toggled_round();
      continue;
    }
    if (round == 200) set(probe_me, kMov22);
    for (uint64_t i = 0; i < 100; i++) TARGET_CHECK(probe_me(i) == i + (round < 200 ? 11 : 22));
    target_count(100);
  }
  const int status = target_end();
  if (!toggle && target.rounds > 200) TARGET_CHECK(probe_me(1) == 23);  // after --hold: everybody has left
  if (toggle) TARGET_CHECK(probe_me_label(1) == 2);
  return status;
}
