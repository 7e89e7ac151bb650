// Names of system calls of x86-64.
#pragma once

#include <cstdint>
#include <string_view>

namespace spile::output {

/// "openat" for 257; "" where no call has the number.
std::string_view syscall_name(int64_t number);

}  // namespace spile::output
