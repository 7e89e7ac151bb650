#include "os/step.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>

namespace spile::os {
namespace {

uint64_t number_from_environment() {
  const char* text = ::getenv("SPILE_KILL_AT_STEP");
  return text == nullptr ? 0 : ::strtoull(text, nullptr, 10);
}

std::atomic<uint64_t> g_steps{0};
std::atomic<StepHook> g_hook{nullptr};

std::atomic<uint64_t>& fatal_step() {
  static std::atomic<uint64_t> number{number_from_environment()};
  return number;
}

}  // namespace

void step(const char* what) {
  const uint64_t number = g_steps.fetch_add(1, std::memory_order_relaxed) + 1;
  if (StepHook hook = g_hook.load(std::memory_order_relaxed); hook != nullptr) hook(number, what);
  if (number == fatal_step().load(std::memory_order_relaxed)) ::kill(::getpid(), SIGKILL);
}

uint64_t steps_taken() {
  return g_steps.load(std::memory_order_relaxed);
}

void kill_at_step(uint64_t number) {
  fatal_step().store(number, std::memory_order_relaxed);
  g_steps.store(0, std::memory_order_relaxed);
}

void set_step_hook(StepHook hook) {
  g_hook.store(hook, std::memory_order_relaxed);
}

}  // namespace spile::os
