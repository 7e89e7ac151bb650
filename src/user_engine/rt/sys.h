// System calls made from inside the target: no libc, errno untouched, only rax, rcx and r11 change.
//
// Only calls that cannot alter the target's state, wait, or be interrupted are made here, but for
// the one wait of loader_gate.h.
#pragma once

#include <stdint.h>

namespace spile::rt {

/// Numbers of the x86-64 system call table.
enum class Sys : long {
  kGetpid = 39,
  kGetuid = 102,
  kGetgid = 104,
  kPrctl = 157,
  kGettid = 186,
  kFutex = 202,
  kClockGettime = 228,
  kProcessVmReadv = 310,
};

/// The kernel's answer: a value, or -errno.
inline int64_t sys_call(Sys number,
                        uint64_t a = 0,
                        uint64_t b = 0,
                        uint64_t c = 0,
                        uint64_t d = 0,
                        uint64_t e = 0,
                        uint64_t f = 0) {
  int64_t result;
  register uint64_t r10 asm("r10") = d;
  register uint64_t r8 asm("r8") = e;
  register uint64_t r9 asm("r9") = f;
  asm volatile("syscall"
               : "=a"(result)
               : "0"(static_cast<long>(number)), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}

}  // namespace spile::rt
