#include "events.h"

void pass_request_elsewhere(int fd, const char* path) { trace_demo_request(fd, path); }

/// safety_test.cc has one of the same name.
extern "C" {
__attribute__((used, noinline)) static long defined_twice(long n) { return n * 3; }
}
