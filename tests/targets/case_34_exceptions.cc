// Case 34: C++ exceptions through frames of probed functions, recursive ones, caught and thrown again on the way, with
// destructors, thrown by the probed function itself, and out of a function that it has jumped to. calls=N counts returns.
#include <stdexcept>
#include <string>

#include "target.h"

namespace {

uint64_t destroyed;
struct Cleanup {
  ~Cleanup() { destroyed++; }
};

}  // namespace

extern "C" {

// Ends in a return of its own.
PROBED uint64_t probe_me_recursive(uint64_t depth, uint64_t fails_at) {
  Cleanup cleanup;
  if (depth == fails_at) throw std::runtime_error("deep");
  return depth == 0 ? 1 : probe_me_recursive(depth - 1, fails_at) + 1;
}

PROBED uint64_t throws_or_not(uint64_t n) {
  if (n % 3 == 0) throw static_cast<int>(n);
  return n * 2;
}

// Jumps to throws_or_not.
PROBED uint64_t probe_me_jumps(uint64_t n) { return throws_or_not(n + 1); }

PROBED uint64_t probe_me_catches(uint64_t n) {
  try {
    return throws_or_not(n);
  } catch (int value) {
    return static_cast<uint64_t>(value) + 1000;
  }
}

PROBED uint64_t probe_me_rethrows(uint64_t n) {
  try {
    return probe_me_catches(n) + throws_or_not(n);
  } catch (int) {
    Cleanup cleanup;
    throw;
  }
}
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 300, nullptr);
  target_ready();
  for (long round = 0; target_more(round); round++) {
    uint64_t returns = 0;
    destroyed = 0;
    try {
      probe_me_recursive(200, 50);
      target_fail("nothing was thrown");
    } catch (const std::runtime_error &error) {
      TARGET_CHECK(std::string(error.what()) == "deep" && destroyed == 151);
    }
    TARGET_CHECK(probe_me_recursive(40, ~0ull) == 41);
    returns += 41;
    for (uint64_t n = 0; n < 12; n++) {
      try {
        TARGET_CHECK(probe_me_jumps(n) == (n + 1) * 2);
        returns++;
      } catch (int value) {
        TARGET_CHECK(static_cast<uint64_t>(value) == n + 1);
      }
      TARGET_CHECK(probe_me_catches(n) == (n % 3 == 0 ? n + 1000 : n * 2));
      returns++;
      try {
        TARGET_CHECK(probe_me_rethrows(n) == n * 4);
        returns += 2;
      } catch (int) {
        returns++;  // of probe_me_catches in it
      }
      try {
        throws_or_not(n);
      } catch (int) {
      }
    }
    target_count(returns);
  }
  return target_end();
}
