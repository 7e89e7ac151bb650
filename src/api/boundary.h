// The edge of the library: results become error numbers, exceptions stay inside, the words are kept
// for the caller.
#pragma once

#include <new>

#include "base/error.h"

namespace spile::api {

/// The kernel's number for it, negative: what register_kprobe and its kin would say.
int error_number(ErrorCode code);

/// Keeps the text for spile_error_text() and gives `number`.
int refuse(int number, const char* text);
int refuse(const Error& error);

/// A lock that is held while the program forks, so that the child finds it free and what it guards
/// whole.
void keep_over_fork(void (*lock)(), void (*unlock)());

/// Runs `work`, a function that returns an int (0 or a negative errno). No exception comes out.
template <typename F>
int guarded(F&& work) noexcept {
  try {
    return work();
  } catch (const std::bad_alloc&) {
    return refuse(-12, "out of memory");  // ENOMEM
  } catch (...) {
    return refuse(-5, "an error inside the library");  // EIO
  }
}

}  // namespace spile::api
