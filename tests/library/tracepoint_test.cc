#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "events.h"

namespace {

int g_calls = 0;
void count(void*, int, const char*) { ++g_calls; }

__attribute__((noinline)) void pass_request(int fd, const char* path) { trace_demo_request(fd, path); }

TEST(Tracepoint, RunsNothingUntilSomebodyAttaches) {
  g_calls = 0;
  pass_request(1, "a");
  EXPECT_FALSE(tracepoint_demo_request.enabled());
  ASSERT_EQ(tracepoint_demo_request.attach(count), 0) << spile_error_text();
  EXPECT_TRUE(tracepoint_demo_request.enabled());
  pass_request(2, "b");
  EXPECT_EQ(g_calls, 1);
  ASSERT_EQ(tracepoint_demo_request.detach(count), 0) << spile_error_text();
  pass_request(3, "c");
  EXPECT_EQ(g_calls, 1);
}

TEST(Tracepoint, GivesTheFieldsToTheCallback) {
  std::string seen;
  auto s = tracepoint_demo_wide.subscribe([&](signed char a, unsigned short b, Colour c, bool d, long e, void* f,
                                              unsigned g, unsigned long h) noexcept {
    seen = std::to_string(a) + " " + std::to_string(b) + " " + std::to_string(static_cast<int>(c)) + " " +
           std::to_string(d) + " " + std::to_string(e) + " " + std::to_string(reinterpret_cast<long>(f)) + " " +
           std::to_string(g) + " " + std::to_string(h);
  });
  ASSERT_TRUE(s) << spile_error_text();
  trace_demo_wide(-1, 65535, Colour::kRed, true, -5000000000, reinterpret_cast<void*>(77), 4294967295u, 1ul << 63);
  EXPECT_EQ(seen, "-1 65535 -3 1 -5000000000 77 4294967295 9223372036854775808");
}

TEST(Tracepoint, ThrowsTheSwitchesOfEverySourceFile) {
  g_calls = 0;
  ASSERT_EQ(tracepoint_demo_request.attach(count), 0);
  EXPECT_GE(spile_tracepoint_sites(&tracepoint_demo_request.core()), 2u);
  pass_request_elsewhere(1, "x");
  EXPECT_EQ(g_calls, 1);
  ASSERT_EQ(tracepoint_demo_request.detach(count), 0);
  pass_request_elsewhere(1, "x");
  EXPECT_EQ(g_calls, 1);
}

TEST(Tracepoint, WithoutFieldsWorks) {
  int calls = 0;
  {
    auto s = tracepoint_demo_bare.subscribe([&]() noexcept { ++calls; });
    ASSERT_TRUE(s);
    trace_demo_bare();
  }
  trace_demo_bare();
  EXPECT_EQ(calls, 1);
}

TEST(Tracepoint, PassesOnlyWhereTheConditionIsTrue) {
  std::vector<unsigned long> seen;
  auto s = tracepoint_demo_large.subscribe([&](unsigned long size) noexcept { seen.push_back(size); });
  ASSERT_TRUE(s);
  for (unsigned long size : {1, 101, 100, 200}) trace_demo_large(size);
  EXPECT_EQ(seen, (std::vector<unsigned long>{101, 200}));
}

TEST(Tracepoint, EventsOfAClassAreApart) {
  int reads = 0, writes = 0;
  auto r = tracepoint_io_read.subscribe([&](int, unsigned long bytes) noexcept { reads += static_cast<int>(bytes); });
  auto w = tracepoint_io_write.subscribe([&](int, unsigned long bytes) noexcept { writes += static_cast<int>(bytes); });
  ASSERT_TRUE(r && w);
  trace_io_read(1, 10ul);
  trace_io_write(1, 300ul);
  EXPECT_EQ(reads, 10);
  EXPECT_EQ(writes, 300);
}

std::vector<int> g_order;
void note(void* data, int, const char*) { g_order.push_back(static_cast<int>(reinterpret_cast<long>(data))); }
void* number(long n) { return reinterpret_cast<void*>(n); }

TEST(Tracepoint, RunsCallbacksByPriorityThenByAge) {
  auto& t = tracepoint_demo_request;
  ASSERT_EQ(t.attach(note, number(1)), 0);
  ASSERT_EQ(t.attach(note, number(2), 20), 0);
  ASSERT_EQ(t.attach(note, number(3), 5), 0);
  ASSERT_EQ(t.attach(note, number(4)), 0);
  g_order.clear();
  pass_request(0, "");
  EXPECT_EQ(g_order, (std::vector<int>{2, 1, 4, 3}));
  for (long n : {1, 2, 3, 4}) EXPECT_EQ(t.detach(note, number(n)), 0);
}

TEST(Tracepoint, RefusesADuplicateAndAMissingOne) {
  auto& t = tracepoint_demo_request;
  EXPECT_EQ(t.detach(count), -ENOENT);
  ASSERT_EQ(t.attach(count), 0);
  EXPECT_EQ(t.attach(count), -EEXIST);
  EXPECT_NE(std::string(spile_error_text()), "");
  EXPECT_EQ(t.attach(count, number(1)), 0);  // other data: another callback
  EXPECT_EQ(t.detach(count), 0);
  EXPECT_EQ(t.detach(count), -ENOENT);
  EXPECT_EQ(t.detach(count, number(1)), 0);
  EXPECT_EQ(t.attach(nullptr), -EINVAL);
}

int g_from_inside = 1;
void detach_from_inside(void*, int, const char*) {
  g_from_inside = tracepoint_demo_request.detach(detach_from_inside);
}

TEST(Tracepoint, AnswersBusyInsideAHandler) {
  ASSERT_EQ(tracepoint_demo_request.attach(detach_from_inside), 0);
  pass_request(0, "");
  EXPECT_EQ(g_from_inside, -EBUSY);
  EXPECT_EQ(tracepoint_demo_request.detach(detach_from_inside), 0);
}

struct Guarded {
  std::atomic<bool> alive{true};
  std::atomic<long> runs{0}, runs_after{0};
};
void slow(void* data, int, const char*) {
  auto* g = static_cast<Guarded*>(data);
  for (int i = 0; i < 200; ++i) __builtin_ia32_pause();
  ++g->runs;
  if (!g->alive) ++g->runs_after;
}

/// Eight threads pass through all the while; what is detached never runs again.
TEST(Tracepoint, NoCallbackRunsAfterDetach) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      while (!stop) pass_request(1, "y");
    });
  }
  std::vector<std::unique_ptr<Guarded>> all;
  long runs = 0;
  for (int i = 0; i < 300; ++i) {
    all.push_back(std::make_unique<Guarded>());
    Guarded& g = *all.back();
    ASSERT_EQ(tracepoint_demo_request.attach(slow, &g), 0);
    if (i % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ASSERT_EQ(tracepoint_demo_request.detach(slow, &g), 0);
    g.alive = false;
    runs += g.runs;
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  stop = true;
  for (auto& t : threads) t.join();
  long after = 0;
  for (auto& g : all) after += g->runs_after;
  EXPECT_GT(runs, 100);
  EXPECT_EQ(after, 0);
}

void on_alarm(int) { pass_request(9, "signal"); }

TEST(Tracepoint, SignalHandlersPassThroughIt) {
  g_calls = 0;
  std::signal(SIGUSR1, on_alarm);
  ASSERT_EQ(tracepoint_demo_request.attach(count), 0);
  for (int i = 0; i < 50; ++i) {
    pass_request(1, "z");
    std::raise(SIGUSR1);
  }
  EXPECT_EQ(tracepoint_demo_request.detach(count), 0);
  EXPECT_EQ(g_calls, 100);
}

Guarded g_forked;
void fork_inside(void* data, int, const char*) {
  static_cast<Guarded*>(data)->runs = ::fork();
}

/// The child of a program whose other threads are inside handlers does not wait for them.
TEST(Tracepoint, AForkedChildDetachesAlone) {
  std::atomic<bool> stop{false}, inside{false};
  auto s = tracepoint_demo_request.subscribe([&](int fd, const char*) noexcept {
    inside = fd == 5;
    while (fd == 5 && !stop) __builtin_ia32_pause();
  });
  ASSERT_TRUE(s);
  ASSERT_EQ(tracepoint_demo_bare.attach([](void*) {}), 0);
  std::thread held([] { pass_request(5, "held"); });
  while (!inside) __builtin_ia32_pause();
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(10);
    g_calls = 0;
    bool good = tracepoint_demo_request.attach(count) == 0;
    pass_request(1, "child");
    good = good && g_calls == 1 && tracepoint_demo_request.detach(count) == 0;
    pass_request(1, "child");
    ::_exit(good && g_calls == 1 ? 0 : 1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  stop = true;
  held.join();
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

TEST(Tracepoint, ChildForkedInsideAHandlerGoesOn) {
  g_forked.runs = -1;
  ASSERT_EQ(tracepoint_demo_request.attach(fork_inside, &g_forked), 0);
  pass_request(1, "fork");
  const bool is_child = g_forked.runs == 0;
  const int done = tracepoint_demo_request.detach(fork_inside, &g_forked);
  if (is_child) ::_exit(done == 0 ? 0 : 1);
  int status = -1;
  ::waitpid(static_cast<pid_t>(g_forked.runs), &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_EQ(done, 0);
}

/// Off it is one nop of eight bytes, on the third byte is 0; a foreign byte there is left alone.
TEST(Switch, IsOneNopAndRefusesBytesOfSomebodyElse) {
  const spile_site* site = nullptr;
  for (const spile_site* s = __start_spile_sites; s != __stop_spile_sites; ++s) {
    const char* name = reinterpret_cast<const char*>(&s->name_offset) + s->name_offset;
    if (std::string(name) == "io:read") site = s;
  }
  ASSERT_NE(site, nullptr);
  auto* at = reinterpret_cast<const volatile unsigned char*>(&site->switch_offset) + site->switch_offset;
  EXPECT_EQ(at[0], 0x0f);
  EXPECT_EQ(at[1], 0x1f);
  EXPECT_EQ(at[2], 0x84);
  EXPECT_EQ(at[3], 0xe9);
  const auto callback = [](void*, int, unsigned long) {};
  ASSERT_EQ(tracepoint_io_read.attach(callback), 0);
  EXPECT_EQ(at[2], 0x00);
  ASSERT_EQ(tracepoint_io_read.detach(callback), 0);
  EXPECT_EQ(at[2], 0x84);
}

TEST(Fields, AreDescribed) {
  const spile_tracepoint& t = tracepoint_demo_request.core();
  ASSERT_EQ(t.field_count, 2u);
  EXPECT_STREQ(t.fields[0].type, "int");
  EXPECT_STREQ(t.fields[0].name, "fd");
  EXPECT_EQ(t.fields[0].size_bytes, 4u);
  EXPECT_TRUE(t.fields[0].is_signed);
  EXPECT_STREQ(t.fields[1].type, "const char*");
  EXPECT_FALSE(t.fields[1].is_signed);
}

}  // namespace
