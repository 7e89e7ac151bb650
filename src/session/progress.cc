#include "session/progress.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdio>

namespace spile::session {

Progress::Progress(std::string what) : what_(std::move(what)), thread_([this] { run(); }) {}

Progress::~Progress() {
  {
    std::lock_guard lock(mutex_);
    done_ = true;
  }
  ended_.notify_one();
  thread_.join();
}

void Progress::run() {
  std::unique_lock lock(mutex_);
  for (int seconds = 1; !ended_.wait_for(lock, std::chrono::seconds(1), [this] { return done_; });
       seconds++) {
    fmt::print(stderr, "spile: {} ... {} s\n", what_, seconds);
  }
}

}  // namespace spile::session
