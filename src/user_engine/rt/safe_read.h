// Reading the target's memory from a probe without ever faulting, whatever the pointer.
//
// No handler is installed and a fault would kill the target, so memory is loaded plainly only where
// it cannot go away (ranges the tracer proved at attach, our own stack page, the shared memory);
// elsewhere a hardware transaction aborts instead of faulting, or the kernel copies
// (process_vm_readv on oneself: a bad page is an error). Asking first and then loading is not done:
// another thread may unmap in between (it did, 13,700 times in 5 million reads).
//
// Known limit: where userfaultfd serves a missing page, the kernel's copy waits for it as the
// program's own load would.
#pragma once

#include <stdint.h>

#include "abi/code_region.h"
#include "abi/private_stack.h"
#include "user_engine/rt/atomics.h"
#include "user_engine/rt/cpu.h"
#include "user_engine/rt/identity.h"
#include "user_engine/rt/sys.h"

namespace spile::rt {

inline constexpr uint64_t kPageBytes = 4096;
/// No mapping lies below (mmap_min_addr) or above (canonical user half with 5-level paging).
inline constexpr uint64_t kUserBegin = 4096, kUserEnd = uint64_t{1} << 56;
/// Longest read: the tracer refuses programs that ask for more.
inline constexpr uint64_t kMaxReadBytes = 65536;

inline uint64_t min_u64(uint64_t a, uint64_t b) {
  return a < b ? a : b;
}

/// Where the part of the running thread's stack ends that may be loaded plainly, from `sp` on; 0
/// where that is not known.
///
/// libc puts a thread's control block at the end of the block of memory that is its stack, and
/// unmaps the block when the thread is gone. So while a thread runs on it, all between sp and the
/// control block is there. Not so on signal stacks, coroutines and in processes made with CLONE_VM:
/// there sp lies outside of what the control block says. The initial thread's begin is 0.
/// Source: glibc nptl/allocatestack.c; musl src/thread/pthread_create.c.
inline uint64_t thread_stack_end(const abi::RtConsts& consts, uint64_t sp) {
  if (consts.stack_fs_offset == 0) return 0;
  const uint64_t begin = read_fs_u64(consts.stack_fs_offset);
  const uint64_t size = read_fs_u64(consts.stack_fs_offset + 8);
  const uint64_t control_block = read_fs_u64(0);  // psABI for TLS: the fs base itself
  if (begin == 0 || sp - begin >= size || control_block - begin >= size) return 0;
  return control_block > sp ? control_block : 0;
}

/// The stack pointer of the code that was hit, or somewhat below it: also where the hit runs on a
/// stack of ours.
inline uint64_t target_stack_pointer(const abi::RtConsts& consts) {
  const uint64_t sp = stack_pointer();
  const uint64_t offset = sp - consts.private_pool;
  if (consts.private_pool == 0 || offset >= abi::kPrivatePoolBytes) return sp;
  return load_relaxed(&reinterpret_cast<const abi::PrivateStackControl*>(
                           consts.private_pool + abi::private_control_offset(offset))
                           ->owner_sp);
}

/// Bytes from `address` on that may be loaded plainly: to the end of the safe range that holds it;
/// 0 where none does.
inline uint64_t plain_bytes(const abi::RtConsts& consts, uint64_t address) {
  if (address - consts.data_base < consts.data_size)
    return consts.data_size - (address - consts.data_base);
  const uint64_t sp = target_stack_pointer(consts);
  if (address >= sp) {
    const uint64_t page_end = (sp | (kPageBytes - 1)) + 1;
    if (address < page_end) return page_end - address;
    const bool on_main_stack = sp >= consts.main_stack_begin && sp < consts.main_stack_end;
    if (on_main_stack && address < consts.main_stack_end) return consts.main_stack_end - address;
    const uint64_t end = on_main_stack ? 0 : thread_stack_end(consts, sp);
    if (address < end) return end - address;
  }
  uint32_t low = 0, high = min_u64(consts.safe_range_count, abi::kMaxSafeRanges);
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    const abi::SafeRange& range = consts.safe_ranges[middle];
    if (address < range.begin) {
      high = middle;
    } else if (address >= range.end) {
      low = middle + 1;
    } else {
      return range.end - address;
    }
  }
  return 0;
}

/// Byte loads and stores that the compiler may not turn into a library call. The source is the
/// target's memory, which may change under us.
inline void copy_plain(uint8_t* to, const uint8_t* from, uint64_t bytes) {
  for (; bytes >= 8; bytes -= 8, to += 8, from += 8) {
    uint64_t word;
    __builtin_memcpy(&word, from, 8);
    asm volatile("" : "+r"(word));
    __builtin_memcpy(to, &word, 8);
  }
  for (; bytes != 0; --bytes) *to++ = *static_cast<const volatile uint8_t*>(from++);
}

inline void zero_plain(uint8_t* to, uint64_t bytes) {
  for (; bytes >= 8; bytes -= 8, to += 8) {
    uint64_t word = 0;
    asm volatile("" : "+r"(word));
    __builtin_memcpy(to, &word, 8);
  }
  for (; bytes != 0; --bytes) *static_cast<volatile uint8_t*>(to++) = 0;
}

/// Copies inside a hardware transaction: a load that would fault aborts it, and `to` is as before.
/// False when aborted.
inline bool copy_in_transaction(uint8_t* to, const uint8_t* from, uint64_t bytes) {
  constexpr uint32_t kStarted = 0xffff'ffff;
  uint32_t status = kStarted;
  asm volatile("xbegin 1f\n1:" : "+a"(status) : : "memory");
  if (status != kStarted) return false;
  copy_plain(to, from, bytes);
  asm volatile("xend" : : : "memory");
  return true;
}

/// Has the kernel copy within one page. False when a byte of it cannot be read.
inline bool copy_by_kernel(const abi::RtConsts& consts,
                           uint8_t* to,
                           uint64_t from,
                           uint64_t bytes) {
  if (!may_call(consts, abi::kCallProcessVmReadv)) return false;
  struct {
    uint64_t base, length;
  } local = {reinterpret_cast<uint64_t>(to), bytes}, remote = {from, bytes};
  const int64_t copied =
      sys_call(Sys::kProcessVmReadv, tgid_inside(consts), reinterpret_cast<uint64_t>(&local), 1,
               reinterpret_cast<uint64_t>(&remote), 1, 0);
  return copied == static_cast<int64_t>(bytes);
}

/// At most `bytes` from `from` on that one step may copy: never over the end of a page unless all
/// of it is safe.
inline uint64_t copy_step(const abi::RtConsts& consts, uint8_t* to, uint64_t from, uint64_t bytes) {
  const uint64_t plain = plain_bytes(consts, from);
  if (plain != 0) {
    const uint64_t step = min_u64(plain, bytes);
    copy_plain(to, reinterpret_cast<const uint8_t*>(from), step);
    return step;
  }
  const uint64_t step = min_u64(bytes, kPageBytes - (from & (kPageBytes - 1)));
  if ((consts.flags & abi::kHasRtm) != 0 &&
      copy_in_transaction(to, reinterpret_cast<const uint8_t*>(from), step)) {
    return step;
  }
  return copy_by_kernel(consts, to, from, step) ? step : 0;
}

inline bool is_user_range(uint64_t from, uint64_t bytes) {
  return from >= kUserBegin && from < kUserEnd && bytes <= kUserEnd - from;
}

/// 0, or -EFAULT (then all of `to` is zero), as the kernel's probe_read helpers.
inline int64_t probe_read(const abi::RtConsts& consts, uint8_t* to, uint64_t bytes, uint64_t from) {
  if (bytes > kMaxReadBytes) return kErrnoInvalid;
  uint64_t done = 0;
  while (done < bytes) {
    const uint64_t step =
        is_user_range(from, bytes) ? copy_step(consts, to + done, from + done, bytes - done) : 0;
    if (step == 0) {
      zero_plain(to, bytes);
      return kErrnoFault;
    }
    done += step;
  }
  return 0;
}

/// Index of the first NUL in [0, bytes), or `bytes`.
inline uint64_t find_nul(const uint8_t* text, uint64_t bytes) {
  constexpr uint64_t kOnes = 0x0101'0101'0101'0101, kHighs = 0x8080'8080'8080'8080;
  uint64_t i = 0;
  for (; i + 8 <= bytes; i += 8) {
    const uint64_t word = read_unaligned(text + i, 8);
    const uint64_t zeroes = (word - kOnes) & ~word & kHighs;
    if (zeroes != 0) return i + static_cast<uint64_t>(__builtin_ctzll(zeroes)) / 8;
  }
  while (i < bytes && text[i] != 0) ++i;
  return i;
}

/// A string of at most bytes - 1 characters: its length with the NUL, or -EFAULT. The rest of `to`
/// is zero.
///
/// Reads no page behind the one that holds the NUL. A string that does not end in time is cut, as
/// the kernel does.
inline int64_t probe_read_str(const abi::RtConsts& consts,
                              uint8_t* to,
                              uint64_t bytes,
                              uint64_t from) {
  if (bytes == 0 || bytes > kMaxReadBytes) return kErrnoInvalid;
  uint64_t done = 0;
  while (done < bytes - 1) {
    // Short steps first where the kernel is not asked: most strings are short.
    constexpr uint64_t kPlainStep = 64;
    uint64_t wanted = bytes - 1 - done;
    if (wanted > kPlainStep && plain_bytes(consts, from + done) != 0) wanted = kPlainStep;
    const uint64_t step =
        is_user_range(from + done, 1) ? copy_step(consts, to + done, from + done, wanted) : 0;
    if (step == 0) {
      zero_plain(to, bytes);
      return kErrnoFault;
    }
    const uint64_t length = find_nul(to + done, step);
    done += length;
    if (length < step) break;
  }
  zero_plain(to + done, bytes - done);
  return static_cast<int64_t>(done + 1);
}

}  // namespace spile::rt
