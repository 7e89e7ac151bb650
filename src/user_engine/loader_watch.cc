#include "user_engine/loader_watch.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <climits>

namespace spile::user_engine {

namespace {

constexpr auto kBeatEvery = std::chrono::nanoseconds(abi::kLookNs);

/// Pairs with the target's accesses in rt/loader_gate.h.
uint32_t load(const uint32_t& word) {
  return __atomic_load_n(&word, __ATOMIC_ACQUIRE);
}
void store(uint32_t& word, uint32_t value) {
  __atomic_store_n(&word, value, __ATOMIC_RELEASE);
}

void wake_all(uint32_t& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace

void open_gate(const shm::Region& region) {
  store(region.loader_gate_untrusted().open, 1);
}

void close_gate(const shm::Region& region) {
  abi::LoaderGate& gate = region.loader_gate_untrusted();
  store(gate.open, 0);
  answer_request(region, load(gate.asked));
}

std::optional<uint32_t> pending_request(const shm::Region& region) {
  const abi::LoaderGate& gate = region.loader_gate_untrusted();
  const uint32_t asked = load(gate.asked);
  if (abi::is_answered(asked, load(gate.answered))) return std::nullopt;
  return asked;
}

void answer_request(const shm::Region& region, uint32_t request) {
  abi::LoaderGate& gate = region.loader_gate_untrusted();
  store(gate.answered, request);
  wake_all(gate.answered);
}

bool sleep_until_request(const shm::Region& region, std::chrono::nanoseconds time) {
  abi::LoaderGate& gate = region.loader_gate_untrusted();
  const timespec timeout = {time.count() / 1'000'000'000, time.count() % 1'000'000'000};
  const uint32_t seen = load(gate.asked);
  if (pending_request(region)) return true;
  return syscall(SYS_futex, &gate.asked, FUTEX_WAIT, seen, &timeout, nullptr, 0) == 0 ||
         errno != EINTR;
}

SignOfLife::SignOfLife(const shm::Region& region)
    : thread_([&gate = region.loader_gate_untrusted()](const std::stop_token& stop) {
        while (!stop.stop_requested()) {
          store(gate.beat, load(gate.beat) + 1);
          std::this_thread::sleep_for(kBeatEvery);
        }
      }) {}

}  // namespace spile::user_engine
