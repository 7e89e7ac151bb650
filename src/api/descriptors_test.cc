#include "api/descriptors.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace spile::api {
namespace {

bool is_open(int fd) {
  return ::fcntl(fd, F_GETFD) >= 0;
}

/// In a process of its own: more descriptors than one read of the list gives, the kept ones open.
void expect_closed_by(void (*close_all)(int)) {
  const pid_t child = ::fork();
  if (child == 0) {
    constexpr int kKept = 10, kLast = 300;
    bool good = true;
    for (int fd = 3; fd <= kLast; ++fd) good &= ::dup2(2, fd) == fd;
    close_all(kKept);
    for (int fd = 0; fd <= kLast; ++fd) good &= is_open(fd) == (fd < kKept);
    ::_exit(good ? 0 : 1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

TEST(Descriptors, AreClosedFromANumberOn) {
  expect_closed_by(close_from);
}
TEST(Descriptors, AreClosedWithoutCloseRangeToo) {
  expect_closed_by(close_listed_from);
}

}  // namespace
}  // namespace spile::api
