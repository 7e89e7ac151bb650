// The tracer's side of abi::LoaderGate: threads that have loaded a library wait in the target until
// its probes are set.
//
// What the words say is a hint: when to look. What there is to do is read from the process's
// mappings.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <stop_token>
#include <thread>

#include "user_engine/shm/region.h"

namespace spile::user_engine {

/// From here on threads wait: also where nobody has begun to look yet.
void open_gate(const shm::Region& region);
/// Lets everybody go who waits; nobody waits from here on.
void close_gate(const shm::Region& region);

/// The number of a request that is not answered; nullopt: there is none.
std::optional<uint32_t> pending_request(const shm::Region& region);
void answer_request(const shm::Region& region, uint32_t request);

/// Sleeps, but no longer than to the next request. False: a signal came.
bool sleep_until_request(const shm::Region& region, std::chrono::nanoseconds time);

/// While it lives, threads that wait see that we are at work for them. A thread of its own:
/// planning takes longer than they wait without a sign.
class SignOfLife {
 public:
  explicit SignOfLife(const shm::Region& region);

 private:
  std::jthread thread_;
};

}  // namespace spile::user_engine
