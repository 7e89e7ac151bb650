#include "base/error.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace spile {

std::string_view to_string(ErrorCode code) {
  switch (code) {
    case ErrorCode::kNotFound: return "not found";
    case ErrorCode::kDenied: return "denied";
    case ErrorCode::kUnsupported: return "unsupported";
    case ErrorCode::kUnsafe: return "unsafe";
    case ErrorCode::kTargetGone: return "target gone";
    case ErrorCode::kBusy: return "busy";
    case ErrorCode::kCorrupt: return "corrupt";
    case ErrorCode::kInvalid: return "invalid";
    case ErrorCode::kInternal: return "internal";
  }
  return "?";
}

static ErrorCode code_of(int errno_value) {
  switch (errno_value) {
    case ENOENT:
    case ENODEV:
    case ENXIO: return ErrorCode::kNotFound;
    case EPERM:
    case EACCES: return ErrorCode::kDenied;
    case ENOSYS:
    case EOPNOTSUPP: return ErrorCode::kUnsupported;
    case ESRCH: return ErrorCode::kTargetGone;
    case EBUSY:
    case EAGAIN: return ErrorCode::kBusy;
    case EINVAL:
    case E2BIG:
    case ERANGE: return ErrorCode::kInvalid;
    default: return ErrorCode::kInternal;
  }
}

Error errno_error(int errno_value, std::string_view doing) {
  return Error{code_of(errno_value), fmt::format("{}: {}", doing, strerror(errno_value))};
}

void check_failed(const char* file, int line, const char* what) {
  std::fprintf(stderr, "spile: internal error at %s:%d: %s\n", file, line, what);
  std::abort();
}

}  // namespace spile
