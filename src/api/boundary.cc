#include "api/boundary.h"

#include <pthread.h>
#include <spile/detail/base.h>

#include <cerrno>
#include <cstring>

namespace spile::api {
namespace {

constexpr size_t kMaxTextBytes = 512;
thread_local char t_text[kMaxTextBytes];

}  // namespace

int error_number(ErrorCode code) {
  switch (code) {
    case ErrorCode::kNotFound: return -ENOENT;
    case ErrorCode::kDenied: return -EPERM;
    case ErrorCode::kUnsupported: return -EOPNOTSUPP;
    case ErrorCode::kUnsafe: return -EOPNOTSUPP;
    case ErrorCode::kTargetGone: return -ESRCH;
    case ErrorCode::kBusy: return -EBUSY;
    case ErrorCode::kCorrupt: return -EIO;
    case ErrorCode::kInvalid: return -EINVAL;
    case ErrorCode::kInternal: return -EIO;
  }
  return -EIO;
}

int refuse(int number, const char* text) {
  std::strncpy(t_text, text, kMaxTextBytes - 1);
  return number;
}

int refuse(const Error& error) {
  return refuse(error_number(error.code), error.message.c_str());
}

void keep_over_fork(void (*lock)(), void (*unlock)()) {
  ::pthread_atfork(lock, unlock, unlock);
}

}  // namespace spile::api

extern "C" const char* spile_error_text() {
  return spile::api::t_text;
}
