// Who is running handlers right now: so that what is taken out is freed only when nobody can still
// use it.
//
// The problem: a handler list is read at every hit and changed once in a while. A lock or a shared
// counter at each hit would cost more than the hit. So a thread that begins to read writes the
// current epoch into a word of its own, and clears it at the end: two plain stores. Whoever has
// changed a list makes every running thread pass a memory barrier (membarrier(2)), begins a new
// epoch, and waits until no word holds an older one.
//
//   reader   word = epoch; list = load            writer   list = new; membarrier; ++epoch
//            run handlers of list                          wait: every word is 0 or >= epoch
//            word = 0                                      free the old list
//
// Either the reader's store is seen by the writer, or the reader loads the new list: the barrier
// orders both at once.
//
// The words are wiped in a forked child (MADV_WIPEONFORK): its other threads do not exist. A thread
// beyond the table's size counts itself in one shared counter instead.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/error.h"

namespace spile::api {

/// What a hit needs to know of its thread. Together, since each variable of a thread has to be
/// looked up by itself. trampoline.S knows the offsets.
struct ThreadState {
  uint64_t* word = nullptr;  ///< null before its first hit
  int* errno_place = nullptr;
  uint64_t crowd_word = 0;  ///< of a thread that has no word: kRunsHandlers or 0
};
static_assert(offsetof(ThreadState, word) == 0 && offsetof(ThreadState, errno_place) == 8);

/// Beside the epoch in a thread's word: it is in a handler of a probe (not only in a callback of a
/// tracepoint), and what it meets is missed.
inline constexpr uint64_t kRunsHandlers = 1;

}  // namespace spile::api

extern "C" {
extern __attribute__((tls_model("initial-exec"),
                      visibility("hidden"))) __thread spile::api::ThreadState spile_thread;
/// Counts the times that somebody waited for readers, by 2.
extern __attribute__((visibility("hidden"))) std::atomic<uint64_t> spile_epoch;
}

namespace spile::api {

/// For a thread that has a word and is not reading: what spile_enter() and spile_leave() do.
inline void begin_reading(uint64_t* word, uint64_t mark = 0) {
  __atomic_store_n(word, spile_epoch.load(std::memory_order_relaxed) | mark, __ATOMIC_RELAXED);
  // The processor's order is the writer's to force: membarrier in wait_for_readers.
  __atomic_signal_fence(__ATOMIC_SEQ_CST);
}
inline void end_reading(uint64_t* word) {
  __atomic_store_n(word, uint64_t{0}, __ATOMIC_RELEASE);
}

/// Threads that have a word are numbered by it: it is the first of kReaderBytes in the table.
inline constexpr size_t kMaxReaders = 8192, kReaderBytes = 64;
extern uint8_t* g_reader_table;
/// Numbers from here on have never been given.
extern std::atomic<size_t> g_used_readers;

/// Whether the calling thread is between spile_enter() and spile_leave().
bool is_inside_handler();

/// Waits until every reader that was there has gone. A handler that never returns lets this wait
/// for ever. Errors:  busy         called by a reader, which would wait for itself
///          unsupported  the kernel has no membarrier(2), or a filter forbids it
Result<void> wait_for_readers();

/// Makes every running thread of the process fetch its code anew before it returns to it. Best
/// effort: without it a thread may run old bytes for some more instructions.
void synchronize_code();

}  // namespace spile::api
