// Calls each case's probed function and its unprobed twin with the same state and compares what they leave behind.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "target.h"

enum { kEntriesRcx = 255, kRegisters = 16, kRcx = 2, kRdi = 5, kR11 = 10, kFlags = 15, kBufferBytes = 256, kVectorBytes = 16384 };

struct registers {
  uint64_t value[kRegisters];
};
static const char *const kNames[kRegisters] = {"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8",
                                               "r9",  "r10", "r11", "r12", "r13", "r14", "r15", "flags"};

struct asm_case {
  void (*probed)(void);
  void (*twin)(void);
  const char *name;
  uint64_t entries;
};
extern const struct asm_case __start_asm_cases[], __stop_asm_cases[];

// A case file sets these where it wants more than the arithmetic flags or the vector registers checked.
__attribute__((weak)) extern const uint64_t asm_extra_flags;
__attribute__((weak)) extern const uint64_t asm_check_vectors;
// Runs before `ready`, e.g. to unmap a page next to a probed function.
__attribute__((weak)) void asm_prepare(void);

uint32_t asm_vector_mask;
void asm_helper(void);
void call_with_state(void (*fn)(void), const struct registers *in, struct registers *out, const void *vectors_in,
                     void *vectors_out);

static const uint64_t kArithmeticFlags = 0x8d5;  // CF PF AF ZF SF OF
static const uint64_t kComparedFlags = 0x40cd5;  // the same, DF and AC
// --mode abi: what a function called by C code must keep. The arithmetic flags are the caller's loss then.
static const uint64_t kFlagsOfTheAbi = 0x40400;  // DF and AC
static uint64_t seed = 0x9e3779b97f4a7c15;

struct outcome {
  struct registers registers;
  uint64_t buffer[kBufferBytes / 8];
};

static uint8_t vectors_in[kVectorBytes] __attribute__((aligned(64)));
static uint8_t vectors_out[2][kVectorBytes] __attribute__((aligned(64)));

static void cpuid(uint32_t leaf, uint32_t sub, uint32_t *a, uint32_t *b, uint32_t *c, uint32_t *d) {
  __asm__ volatile("cpuid" : "=a"(*a), "=b"(*b), "=c"(*c), "=d"(*d) : "a"(leaf), "c"(sub));
}

// x87, SSE, AVX, AVX-512 and PKRU where the kernel enabled them; AMX needs a permission and is left out.
static void find_vector_mask(void) {
  uint32_t a, b, c, d, xcr0, high;
  cpuid(1, 0, &a, &b, &c, &d);
  if ((c & (1u << 27)) == 0) target_skip("no xsave on this CPU");
  __asm__ volatile("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
  asm_vector_mask = xcr0 & 0x2e7;
  cpuid(13, 0, &a, &b, &c, &d);
  if (b > kVectorBytes) target_skip("the extended state needs %u bytes", b);
}

// Fills the register parts of an xsave image (standard format) with random bytes: xmm, then each component.
static void fill_vectors(void) {
  memset(vectors_in, 0, sizeof vectors_in);
  const uint16_t fcw = 0x37f;
  const uint32_t mxcsr = 0x1f80 | (uint32_t)(target_random(&seed) & 0x6000);  // all rounding modes
  const uint64_t present = asm_vector_mask & 0xe7;                             // PKRU keeps its initial value
  memcpy(vectors_in, &fcw, 2);
  vectors_in[4] = 0xff;  // all eight x87 registers in use
  memcpy(vectors_in + 24, &mxcsr, 4);
  memcpy(vectors_in + 512, &present, 8);
  for (int i = 0; i < 8; i++) {
    for (int k = 0; k < 8; k++) vectors_in[32 + 16 * i + k] = (uint8_t)target_random(&seed);
    vectors_in[32 + 16 * i + 7] |= 0x80;  // a normal number: integer bit and a mid exponent
    vectors_in[32 + 16 * i + 9] = 0x3f;
  }
  for (int k = 160; k < 416; k++) vectors_in[k] = (uint8_t)target_random(&seed);
  for (uint32_t component = 2; component < 8; component++) {
    if ((present & (1u << component)) == 0) continue;
    uint32_t size, offset, c, d;
    cpuid(13, component, &size, &offset, &c, &d);
    for (uint32_t k = 0; k < size; k++) vectors_in[offset + k] = (uint8_t)target_random(&seed);
  }
}

static void random_input(const struct asm_case *one, struct registers *in) {
  for (int i = 0; i < kRegisters; i++) in->value[i] = target_random(&seed);
  in->value[kRcx] &= 7;
  if (one->entries == kEntriesRcx && in->value[kRcx] == 0) in->value[kRcx] = 1;
  in->value[kR11] = (uint64_t)(uintptr_t)asm_helper;
  const uint64_t extra = &asm_extra_flags != NULL ? asm_extra_flags : 0;
  in->value[kFlags] = (in->value[kFlags] & (kArithmeticFlags | extra)) | 0x202;
}

static void run(void (*fn)(void), struct registers in, const uint64_t *memory, struct outcome *out, int slot) {
  static uint64_t buffer[kBufferBytes / 8] __attribute__((aligned(64)));
  memcpy(buffer, memory, sizeof buffer);
  in.value[kRdi] = (uint64_t)(uintptr_t)buffer;
  const bool vectors = asm_vector_mask != 0;
  call_with_state(fn, &in, &out->registers, vectors ? vectors_in : NULL, vectors ? vectors_out[slot] : NULL);
  memcpy(out->buffer, buffer, sizeof buffer);
}

static void compare(const struct asm_case *one, const struct outcome *probed, const struct outcome *twin) {
  for (int i = 0; i < kRegisters; i++) {
    const uint64_t mask = i != kFlags ? ~0ull : target_mode_is("abi") ? kFlagsOfTheAbi : kComparedFlags;
    const uint64_t got = probed->registers.value[i] & mask, want = twin->registers.value[i] & mask;
    if (got != want)
      target_fail("%s: %s is %#llx, must be %#llx", one->name, kNames[i], (unsigned long long)got,
                  (unsigned long long)want);
  }
  if (memcmp(probed->buffer, twin->buffer, sizeof twin->buffer) != 0) target_fail("%s: memory differs", one->name);
  if (asm_vector_mask == 0) return;
  for (int k = 0; k < kVectorBytes; k++) {
    if (k >= 8 && k < 24) continue;  // addresses of the last x87 instruction
    if (vectors_out[0][k] != vectors_out[1][k])
      target_fail("%s: byte %d of the extended state is %#x, must be %#x", one->name, k, vectors_out[0][k],
                  vectors_out[1][k]);
  }
}

static void run_case(const struct asm_case *one) {
  struct registers in;
  struct outcome probed, twin;
  uint64_t memory[kBufferBytes / 8];
  random_input(one, &in);
  for (int i = 0; i < kBufferBytes / 8; i++) memory[i] = target_random(&seed);
  if (asm_vector_mask != 0) fill_vectors();
  target_count(one->entries == kEntriesRcx ? in.value[kRcx] : one->entries);
  run(one->probed, in, memory, &probed, 0);
  run(one->twin, in, memory, &twin, 1);
  compare(one, &probed, &twin);
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 2000, NULL);
  if (&asm_check_vectors != NULL) find_vector_mask();
  if (asm_prepare != NULL) asm_prepare();
  target_ready();
  for (long round = 0; target_more(round); round++)
    for (const struct asm_case *one = __start_asm_cases; one != __stop_asm_cases; one++) run_case(one);
  return target_end();
}
