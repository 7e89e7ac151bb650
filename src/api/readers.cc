#include "api/readers.h"

#include <linux/membarrier.h>
#include <pthread.h>
#include <spile/detail/base.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "api/hit.h"

extern "C" {
__thread spile::api::ThreadState spile_thread;
std::atomic<uint64_t> spile_epoch{2};
}

namespace spile::api {

std::atomic<size_t> g_used_readers{0};
uint8_t* g_reader_table = nullptr;

namespace {

struct alignas(64) Slot {
  uint64_t epoch;  ///< 0: not reading. Written by its thread only
};
constexpr size_t kSlots = kMaxReaders;
static_assert(sizeof(Slot) == kReaderBytes);

Slot* g_slots = nullptr;  ///< kSlots, MADV_WIPEONFORK
std::atomic<uint8_t> g_taken[kSlots];
std::atomic<uint64_t> g_crowd{0};  ///< readers without a slot
uint64_t g_crowd_word = 0;         ///< only its address is used: "count me in g_crowd"
pthread_key_t g_key;
bool g_has_key = false;

__attribute__((tls_model("initial-exec"))) thread_local uint32_t t_crowd_depth = 0;

void give_back(void* word) {
  spile_thread.word = nullptr;
  const auto index = static_cast<size_t>(reinterpret_cast<Slot*>(word) - g_slots);
  // A thread that ended inside a handler does not hold up anybody.
  __atomic_store_n(static_cast<uint64_t*>(word), uint64_t{0}, __ATOMIC_RELEASE);
  g_taken[index].store(0, std::memory_order_release);
}

/// The forking thread keeps its slot; those of the others are free.
void in_child() {
  for (size_t i = 0; i < kSlots; ++i) {
    if (g_slots == nullptr || spile_thread.word != &g_slots[i].epoch)
      g_taken[i].store(0, std::memory_order_relaxed);
  }
  g_crowd.store(t_crowd_depth, std::memory_order_relaxed);
}

__attribute__((constructor(101))) void make_table() {
  void* memory = ::mmap(nullptr, kSlots * sizeof(Slot), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return;  // every reader is in the crowd
  ::madvise(memory, kSlots * sizeof(Slot), MADV_WIPEONFORK);
  g_has_key = ::pthread_key_create(&g_key, give_back) == 0;
  ::pthread_atfork(nullptr, nullptr, in_child);
  if (!g_has_key) return;
  g_slots = static_cast<Slot*>(memory);
  g_reader_table = static_cast<uint8_t*>(memory);
}

/// Before the slot is written: who sees an epoch in it sees that it is used (wait_for_readers).
void raise_used(size_t used) {
  size_t now = g_used_readers.load(std::memory_order_relaxed);
  while (now < used && !g_used_readers.compare_exchange_weak(now, used)) {
  }
}

/// Async-signal-safe as far as pthread_setspecific is: it allocates only where a program has more
/// than 32 keys.
uint64_t* take_slot() {
  if (g_slots == nullptr) return nullptr;
  for (size_t i = 0; i < kSlots; ++i) {
    uint8_t free = 0;
    if (g_taken[i].load(std::memory_order_relaxed) != 0) continue;
    if (!g_taken[i].compare_exchange_strong(free, 1, std::memory_order_acquire)) continue;
    // A signal handler may have been here meanwhile.
    if (spile_thread.word != nullptr) {
      g_taken[i].store(0, std::memory_order_release);
      return spile_thread.word;
    }
    raise_used(i + 1);
    spile_thread.errno_place = &errno;
    spile_thread.word = &g_slots[i].epoch;
    ::pthread_setspecific(g_key, spile_thread.word);
    return spile_thread.word;
  }
  return nullptr;
}

uint64_t* enter_slowly() {
  uint64_t* word = take_slot();
  if (word != nullptr) {
    if (*word != 0) return nullptr;
    begin_reading(word);
    return word;
  }
  ++t_crowd_depth;
  g_crowd.fetch_add(1);
  return &g_crowd_word;
}

int membarrier(int command) {
  return static_cast<int>(::syscall(SYS_membarrier, command, 0, 0));
}

/// The command, after registering for it where that has not been done.
bool barrier(int command, int register_command) {
  if (membarrier(command) == 0) return true;
  if (errno != EPERM) return false;
  return membarrier(register_command) == 0 && membarrier(command) == 0;
}

void nap(unsigned round) {
  const timespec pause{0, round < 20 ? 20'000 : 1'000'000};
  ::nanosleep(&pause, nullptr);
}

}  // namespace

bool is_inside_handler() {
  return t_crowd_depth != 0 || (spile_thread.word != nullptr && *spile_thread.word != 0);
}

Result<void> wait_for_readers() {
  if (is_inside_handler())
    return fail(ErrorCode::kBusy, "called from inside a handler, which would wait for itself");
  if (!barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED) &&
      membarrier(MEMBARRIER_CMD_GLOBAL) != 0)
    return fail(ErrorCode::kUnsupported,
                "membarrier(2) does not work here, without which handlers cannot be taken out "
                "safely (Linux 4.14, or a seccomp filter that lets it through)");
  const uint64_t now = spile_epoch.fetch_add(2) + 2;
  const size_t used = g_used_readers.load();
  for (size_t i = 0; i < used; ++i) {
    for (unsigned round = 0;; ++round) {
      // Pairs with the release in spile_leave.
      const uint64_t epoch = __atomic_load_n(&g_slots[i].epoch, __ATOMIC_ACQUIRE);
      if (epoch == 0 || epoch >= now) break;
      nap(round);
    }
  }
  for (unsigned round = 0; g_crowd.load() != 0; ++round) nap(round);
  return {};
}

void synchronize_code() {
  barrier(MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE,
          MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE);
}

}  // namespace spile::api

using namespace spile::api;

extern "C" __attribute__((section("spile_hit_text"))) uint64_t* spile_enter() {
  uint64_t* word = spile_thread.word;
  if (__builtin_expect(word == nullptr, 0)) return enter_slowly();
  // A signal handler that comes in here enters and leaves wholly.
  if (*word != 0) return nullptr;
  begin_reading(word);
  return word;
}

extern "C" __attribute__((section("spile_hit_text"))) void spile_leave(uint64_t* entered) {
  if (entered == nullptr) return;
  if (__builtin_expect(entered == &g_crowd_word, 0)) {
    --t_crowd_depth;
    g_crowd.fetch_sub(1);
    return;
  }
  end_reading(entered);
}
