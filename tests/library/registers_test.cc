// Every register of a program is as it was behind a hit, whatever the handlers do: all vector registers, masks, control
// and status words, the x87 stack; and upper halves that nobody used stay unused.
#include <gtest/gtest.h>
#include <spile/probes.h>

#include <cfenv>
#include <cstring>

extern "C" {
struct alignas(64) VectorState {
  unsigned char vectors[32][64];
  unsigned long masks[8];
  unsigned mxcsr, rest;
};
void probed_vectors(void);
/// Loads everything from `in`, calls `f`, stores everything to `out`.
void around_512(const VectorState* in, VectorState* out, void (*f)());
void around_avx(const VectorState* in, VectorState* out, void (*f)());
void clobber_512(void);
void clobber_avx(void);
/// Pushes 1, 2, 3 on the x87 stack, goes by a probe, gives 100 * st(2) + 10 * st(1) + st(0).
long probed_x87(void);
extern const unsigned char probed_x87_at[];
}

__asm__(R"(
.text
.balign 16
.globl probed_vectors
.type probed_vectors, @function
probed_vectors:
  mov $1, %eax
  mov $2, %edx
  mov $3, %ecx
  ret
.size probed_vectors, . - probed_vectors

.macro each_512 operation
  .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
  \operation \n
  .endr
.endm
.macro load_zmm n
  vmovups 64*\n(%rdi), %zmm\n
.endm
.macro store_zmm n
  vmovups %zmm\n, 64*\n(%rbx)
.endm
.macro ones_zmm n
  vpternlogd $0xff, %zmm\n, %zmm\n, %zmm\n
.endm
.globl around_512
.type around_512, @function
around_512:
  push %rbx
  mov %rsi, %rbx
  each_512 load_zmm
  .irp n, 0, 1, 2, 3, 4, 5, 6, 7
  kmovq 2048+8*\n(%rdi), %k\n
  .endr
  ldmxcsr 2112(%rdi)
  call *%rdx
  each_512 store_zmm
  .irp n, 0, 1, 2, 3, 4, 5, 6, 7
  kmovq %k\n, 2048+8*\n(%rbx)
  .endr
  stmxcsr 2112(%rbx)
  pop %rbx
  vzeroupper
  ret
.size around_512, . - around_512
.globl clobber_512
.type clobber_512, @function
clobber_512:
  each_512 ones_zmm
  .irp n, 0, 1, 2, 3, 4, 5, 6, 7
  kxnorq %k\n, %k\n, %k\n
  .endr
  ret
.size clobber_512, . - clobber_512

.macro each_avx operation
  .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
  \operation \n
  .endr
.endm
.macro load_ymm n
  vmovups 64*\n(%rdi), %ymm\n
.endm
.macro store_ymm n
  vmovups %ymm\n, 64*\n(%rbx)
.endm
.macro ones_ymm n
  vcmptrueps %ymm\n, %ymm\n, %ymm\n
.endm
.globl around_avx
.type around_avx, @function
around_avx:
  push %rbx
  mov %rsi, %rbx
  each_avx load_ymm
  ldmxcsr 2112(%rdi)
  call *%rdx
  each_avx store_ymm
  stmxcsr 2112(%rbx)
  pop %rbx
  vzeroupper
  ret
.size around_avx, . - around_avx
.globl clobber_avx
.type clobber_avx, @function
clobber_avx:
  each_avx ones_ymm
  ret
.size clobber_avx, . - clobber_avx

.balign 16
.globl probed_x87, probed_x87_at
.type probed_x87, @function
probed_x87:
  push $1
  fildl (%rsp)
  push $2
  fildl (%rsp)
  push $3
  fildl (%rsp)
probed_x87_at:
  mov $10, %eax
  mov $100, %ecx
  mov %eax, (%rsp)
  fxch %st(1)
  fimull (%rsp)
  faddp
  mov %ecx, (%rsp)
  fxch %st(1)
  fimull (%rsp)
  faddp
  fistpl (%rsp)
  pop %rax
  pop %rcx
  pop %rcx
  ret
.size probed_x87, . - probed_x87
)");

namespace {

constexpr unsigned kMxcsrDefault = 0x1f80, kMxcsrOfProgram = 0xbfa1;  // round to +infinity, some flags

bool has_512() { return __builtin_cpu_supports("avx512bw"); }
bool has_avx() { return __builtin_cpu_supports("avx"); }

long g_hits;
/// Leaves nothing as it was.
void clobber() {
  ++g_hits;
  if (has_512()) clobber_512();
  if (has_avx()) clobber_avx();
  const unsigned other = 0x5fbf;
  __asm__ volatile("ldmxcsr %0" : : "m"(other));
  const unsigned short control = 0x0f7f;
  // Eight values at once, one of which is a division by zero.
  __asm__ volatile(
      "fldcw %0\n fld1\n fldz\n fdivrp\n fld1\n fld1\n fld1\n fld1\n fld1\n fld1\n fld1\n"
      "fstp %%st(0)\n fstp %%st(0)\n fstp %%st(0)\n fstp %%st(0)\n fstp %%st(0)\n fstp %%st(0)\n fstp %%st(0)\n fstp %%st(0)\n"
      : : "m"(control));
}

struct Clobbering : spile_kprobe {
  explicit Clobbering(const char* symbol, unsigned at, bool behind = false) : spile_kprobe{} {
    symbol_name = symbol;
    offset = at;
    if (behind) {
      post_handler = [](spile_kprobe*, spile_regs*, unsigned long) { clobber(); };
    } else {
      pre_handler = [](spile_kprobe*, spile_regs*) {
        clobber();
        return 0;
      };
    }
  }
  ~Clobbering() {
    if (internal != nullptr) spile_unregister_kprobe(this);
  }
};

VectorState numbered(size_t vectors, size_t bytes) {
  VectorState state = {};
  for (size_t n = 0; n < vectors; ++n) {
    for (size_t i = 0; i < bytes; ++i) state.vectors[n][i] = static_cast<unsigned char>(n * 7 + i + 1);
  }
  for (size_t n = 0; n < 8 && bytes == 64; ++n) state.masks[n] = 0x0123456789abcdefUL * (n + 1);
  state.mxcsr = kMxcsrOfProgram;
  return state;
}

void expect_kept(void (*around)(const VectorState*, VectorState*, void (*)()), const VectorState& in) {
  struct Site {
    unsigned offset;
    bool behind;
  };
  for (const Site site : {Site{0, false}, Site{5, false}, Site{0, true}}) {
    Clobbering p("probed_vectors", site.offset, site.behind);
    ASSERT_EQ(spile_register_kprobe(&p), 0) << spile_error_text();
    g_hits = 0;
    std::feclearexcept(FE_ALL_EXCEPT);
    // Twice: the first hit of a thread goes another way.
    for (int i = 1; i <= 2; ++i) {
      VectorState out = {};
      around(&in, &out, probed_vectors);
      const unsigned plain = kMxcsrDefault;
      __asm__ volatile("ldmxcsr %0" : : "m"(plain));
      EXPECT_EQ(g_hits, i);
      EXPECT_EQ(std::memcmp(&in, &out, sizeof in), 0) << "offset " << site.offset << " behind " << site.behind;
    }
    unsigned short status = 0, control = 0;
    __asm__ volatile("fnstsw %0\n fnstcw %1" : "=m"(status), "=m"(control));
    EXPECT_EQ(status & 0x3f, 0);
    EXPECT_EQ(control, 0x37f);
  }
}

TEST(Registers, VectorsMasksAndControlWordsAreKept) {
  if (has_512()) expect_kept(around_512, numbered(32, 64));
  if (has_avx()) expect_kept(around_avx, numbered(16, 32));
}

/// The lower halves only: what is above is zero, and is zero again.
TEST(Registers, UnusedUpperHalvesStayUnused) {
  if (!has_avx()) GTEST_SKIP() << "no AVX";
  expect_kept(around_avx, numbered(16, 16));
  if (has_512()) {
    VectorState in = numbered(32, 64);
    for (size_t n = 0; n < 16; ++n) std::memset(in.vectors[n] + 16, 0, 48);
    expect_kept(around_512, in);
  }
}

#ifdef __x86_64__
bool tells_what_is_in_use() {
  unsigned a = 0xd, b = 0, c = 1, d = 0;
  __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  return (a & 4) != 0;
}
unsigned in_use() {
  unsigned low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(1));
  return low;
}
#endif

TEST(Registers, AnSseProgramIsNotMadeAnAvxProgram) {
  if (!has_avx() || !tells_what_is_in_use()) GTEST_SKIP() << "this processor does not tell";
  constexpr unsigned kUpperHalves = 0x44;
  Clobbering p("probed_vectors", 0);
  ASSERT_EQ(spile_register_kprobe(&p), 0) << spile_error_text();
  probed_vectors();
  g_hits = 0;
  __asm__ volatile("vzeroupper" : : : "memory");
  const unsigned before = in_use();
  probed_vectors();
  const unsigned behind = in_use();
  EXPECT_EQ(g_hits, 1);
  EXPECT_EQ(behind & kUpperHalves & ~before, 0u);
}

TEST(Registers, TheX87StackIsKeptInTheMiddleOfAFunction) {
  Clobbering p(nullptr, 0);
  p.addr = const_cast<unsigned char*>(probed_x87_at);
  ASSERT_EQ(spile_register_kprobe(&p), 0) << spile_error_text();
  g_hits = 0;
  for (int i = 1; i <= 2; ++i) {
    EXPECT_EQ(probed_x87(), 123);
    EXPECT_EQ(g_hits, i);
  }
}

/// A handler leaves the exception unmasked that the program has had, and nothing that would report it.
TEST(Registers, WhatAHandlerUnmasksIsNotReported) {
  for (const unsigned offset : {0u, 5u}) {
    spile_kprobe p = {};
    p.symbol_name = "probed_vectors";
    p.offset = offset;
    p.pre_handler = [](spile_kprobe*, spile_regs*) {
      ++g_hits;
      const unsigned short unmasked = 0x037b;
      __asm__ volatile("fldcw %0" : : "m"(unmasked));
      return 0;
    };
    ASSERT_EQ(spile_register_kprobe(&p), 0) << spile_error_text();
    g_hits = 0;
    for (int i = 1; i <= 2; ++i) {
      unsigned short status = 0, control = 0;
      __asm__ volatile("fnclex\n fld1\n fldz\n fdivrp\n fstp %%st(0)" : : : "memory");  // divides by 0
      probed_vectors();
      __asm__ volatile("fnstsw %0\n fnstcw %1\n fnclex" : "=m"(status), "=m"(control));
      EXPECT_EQ(g_hits, i);
      EXPECT_EQ(status & 0x3f, 4);
      EXPECT_EQ(control, 0x37f);
    }
    ASSERT_EQ(spile_unregister_kprobe(&p), 0) << spile_error_text();
  }
}

extern "C" long probed_called_with_x87(void);
__asm__(R"(
.text
.balign 16
.globl probed_called_with_x87
.type probed_called_with_x87, @function
probed_called_with_x87:
  push $77
  fildl (%rsp)
  call probed_vectors
  fistpl (%rsp)
  pop %rax
  ret
.size probed_called_with_x87, . - probed_called_with_x87
)");

/// Not by the ABI, but in assembly there is everything.
TEST(Registers, TheX87StackIsKeptAtAnEntry) {
  Clobbering p("probed_vectors", 0);
  ASSERT_EQ(spile_register_kprobe(&p), 0) << spile_error_text();
  g_hits = 0;
  for (int i = 1; i <= 2; ++i) {
    EXPECT_EQ(probed_called_with_x87(), 77);
    EXPECT_EQ(g_hits, i);
  }
}

}  // namespace
