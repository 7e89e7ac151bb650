// What changing code under a running program must not do to it: threads in the way, system calls, signal frames, other
// processes in the same memory, an end in the middle.
#include <gtest/gtest.h>
#include <sched.h>
#include <spile/probes.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "probed.h"

namespace {

struct Counter : spile_kprobe {
  std::atomic<long> hits{0};
  explicit Counter(const char* symbol) : spile_kprobe{} {
    symbol_name = symbol;
    pre_handler = [](spile_kprobe* p, spile_regs*) {
      ++static_cast<Counter*>(p)->hits;
      return 0;
    };
  }
  ~Counter() {
    if (internal != nullptr) spile_unregister_kprobe(this);
  }
  int add() { return spile_register_kprobe(this); }
  int remove() { return spile_unregister_kprobe(this); }
};

/// Other threads of the program, which do nothing.
class Idle {
 public:
  explicit Idle(int count) {
    for (int i = 0; i < count; ++i) {
      threads_.emplace_back([this] {
        while (!stop_) ::usleep(1000);
      });
    }
  }
  ~Idle() {
    stop_ = true;
    for (auto& t : threads_) t.join();
  }

 private:
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

// ---- a signal handler that will return into the window ----

std::atomic<bool> g_in_handler{false}, g_let_go{false};
void* g_page = nullptr;
constexpr size_t kPageBytes = 4096;

void wait_in_handler(int) {
  g_in_handler = true;
  while (!g_let_go) ::usleep(100);
  ::mprotect(g_page, kPageBytes, PROT_READ | PROT_WRITE);
}

/// probed_faults reads at its argument in its second instruction, which the jump overwrites.
void expect_busy_while_a_handler_is_open(int flags) {
  g_page = ::mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(g_page, MAP_FAILED);
  *static_cast<long*>(g_page) = 4711;
  ::mprotect(g_page, kPageBytes, PROT_NONE);
  g_in_handler = false;
  g_let_go = false;
  struct sigaction action = {}, before = {};
  action.sa_handler = wait_in_handler;
  action.sa_flags = flags;
  ::sigaction(SIGSEGV, &action, &before);
  long got = 0;
  std::thread faulting([&] {
    std::vector<char> memory(1 << 16);
    const stack_t alternate = {memory.data(), 0, memory.size()};
    ::sigaltstack(&alternate, nullptr);
    got = probed_faults(static_cast<long*>(g_page));
  });
  while (!g_in_handler) ::usleep(100);
  Counter p("probed_faults");
  EXPECT_EQ(p.add(), -EBUSY);
  EXPECT_NE(std::string(spile_error_text()).find("signal handler"), std::string::npos) << spile_error_text();
  g_let_go = true;
  faulting.join();
  ::sigaction(SIGSEGV, &before, nullptr);
  EXPECT_EQ(got, 4711);
  ASSERT_EQ(p.add(), 0) << spile_error_text();
  EXPECT_EQ(probed_faults(static_cast<long*>(g_page)), 4711);
  EXPECT_EQ(p.hits, 1);
  ::munmap(g_page, kPageBytes);
}

TEST(ChangingCode, WaitsForASignalHandlerThatReturnsIntoTheWindow) { expect_busy_while_a_handler_is_open(0); }
TEST(ChangingCode, WaitsForOneOnAnAlternateStack) { expect_busy_while_a_handler_is_open(SA_ONSTACK); }

int g_from_own_handler = 0;
void register_in_handler(int) {
  static Counter p("probed_faults");
  g_from_own_handler = p.add();
  ::mprotect(g_page, kPageBytes, PROT_READ | PROT_WRITE);
}

/// The same where the program has one thread, which is in the handler itself.
TEST(ChangingCode, IsRefusedInAHandlerThatReturnsIntoTheWindow) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(20);
    g_page = ::mmap(nullptr, kPageBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct sigaction action = {};
    action.sa_handler = register_in_handler;
    ::sigaction(SIGSEGV, &action, nullptr);
    const bool good = probed_faults(static_cast<long*>(g_page)) == 0 && g_from_own_handler == -EBUSY;
    ::_exit(good ? 0 : 1);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

// ---- system calls ----

/// epoll_wait returns EINTR after any stop; a program that has no signal handlers does not expect that.
TEST(ChangingCode, InterruptsNoSystemCall) {
  const int epoll = ::epoll_create1(EPOLL_CLOEXEC), event = ::eventfd(0, EFD_CLOEXEC);
  epoll_event wanted = {};
  wanted.events = EPOLLIN;
  ASSERT_EQ(::epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted), 0);
  std::atomic<bool> waits{false};
  int result = -2, error = 0;
  std::thread waiting([&] {
    epoll_event got = {};
    waits = true;
    result = ::epoll_wait(epoll, &got, 1, -1);
    error = errno;
  });
  while (!waits) ::usleep(100);
  for (int i = 0; i < 100; ++i) {
    Counter p("probed_sum");
    ASSERT_EQ(p.add(), 0) << spile_error_text();
    EXPECT_EQ(probed_sum(10, 20), 137);
    EXPECT_EQ(p.hits, 1);
    ASSERT_EQ(p.remove(), 0);
  }
  const uint64_t one = 1;
  ASSERT_EQ(::write(event, &one, sizeof one), static_cast<ssize_t>(sizeof one));
  waiting.join();
  EXPECT_EQ(result, 1) << error;
  ::close(epoll);
  ::close(event);
}

/// The stop ends at the first thread, which is inside what changes; the next one has been interrupted by then.
TEST(ChangingCode, InterruptsNoSystemCallWhereItChangesNothing) {
  g_page = ::mmap(nullptr, kPageBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(g_page, MAP_FAILED);
  g_in_handler = g_let_go = false;
  struct sigaction action = {}, before = {};
  action.sa_handler = wait_in_handler;
  ::sigaction(SIGSEGV, &action, &before);
  std::thread inside([] { probed_faults(static_cast<long*>(g_page)); });
  while (!g_in_handler) ::usleep(100);
  const int epoll = ::epoll_create1(EPOLL_CLOEXEC), event = ::eventfd(0, EFD_CLOEXEC);
  epoll_event wanted = {};
  wanted.events = EPOLLIN;
  ASSERT_EQ(::epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted), 0);
  std::atomic<pid_t> waits{0};
  int result = -2, error = 0;
  std::thread waiting([&] {
    epoll_event got = {};
    waits = ::gettid();
    result = ::epoll_wait(epoll, &got, 1, -1);
    error = errno;
  });
  const auto is_asleep = [&] {
    std::ifstream stat("/proc/self/task/" + std::to_string(waits) + "/stat");
    std::string all;
    std::getline(stat, all);
    return all.find(") S ") != std::string::npos;
  };
  while (waits == 0 || !is_asleep()) ::usleep(100);
  Counter p("probed_faults");
  EXPECT_EQ(p.add(), -EBUSY);
  const uint64_t one = 1;
  ASSERT_EQ(::write(event, &one, sizeof one), static_cast<ssize_t>(sizeof one));
  waiting.join();
  EXPECT_EQ(result, 1) << error;
  g_let_go = true;
  inside.join();
  ::sigaction(SIGSEGV, &before, nullptr);
  ::munmap(g_page, kPageBytes);
  ::close(epoll);
  ::close(event);
}

// ---- a first thread that has ended ----

/// It is still on the list of threads, and cannot be held.
TEST(ChangingCode, WorksWhereTheFirstThreadHasEnded) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(60);
    const pid_t first = ::gettid();
    std::thread([first] {
      std::string state;
      while (state.find(") Z ") == std::string::npos) {
        std::ifstream stat("/proc/self/task/" + std::to_string(first) + "/stat");
        std::getline(stat, state);
      }
      std::thread([] { ::pause(); }).detach();
      static Counter p("probed_sum");
      bool good = p.add() == 0 && probed_sum(10, 20) == 137 && p.hits == 1;
      good = p.remove() == 0 && probed_sum(10, 20) == 137 && p.hits == 1 && good;
      ::_exit(good ? 0 : 1);
    }).detach();
    ::syscall(SYS_exit, 0);
  }
  int status = -1;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

// ---- others in the same memory ----

std::atomic<bool> g_sharer_ends{false};
int share_memory(void*) {
  while (!g_sharer_ends) ::usleep(1000);
  return 0;
}

void expect_refused_beside_a_sharer() {
  std::vector<char> stack(1 << 16);
  g_sharer_ends = false;
  const pid_t sharer = ::clone(share_memory, stack.data() + stack.size(), CLONE_VM | SIGCHLD, nullptr);
  ASSERT_GT(sharer, 0);
  Counter p("probed_sum");
  EXPECT_EQ(p.add(), -EOPNOTSUPP);
  EXPECT_NE(std::string(spile_error_text()).find("shares its memory"), std::string::npos) << spile_error_text();
  g_sharer_ends = true;
  ::waitpid(sharer, nullptr, 0);
  EXPECT_EQ(p.add(), 0) << spile_error_text();
}

TEST(ChangingCode, IsRefusedWhereAProcessSharesTheMemory) { expect_refused_beside_a_sharer(); }
TEST(ChangingCode, IsRefusedWhereAProcessSharesTheMemoryOfThreads) {
  const Idle others(3);
  expect_refused_beside_a_sharer();
}

int g_answer = 0;
int register_in_vfork_child(void* probe) {
  g_answer = static_cast<Counter*>(probe)->add();
  ::_exit(0);
}

/// Its parent's other threads run the same code.
TEST(ChangingCode, IsRefusedInAVforkChild) {
  const Idle others(2);
  std::vector<char> stack(1 << 18);
  Counter p("probed_sum");
  const pid_t child = ::clone(register_in_vfork_child, stack.data() + stack.size(), CLONE_VM | CLONE_VFORK | SIGCHLD, &p);
  ASSERT_GT(child, 0);
  ::waitpid(child, nullptr, 0);
  EXPECT_EQ(g_answer, -EOPNOTSUPP);
  EXPECT_NE(std::string(spile_error_text()).find("vfork"), std::string::npos) << spile_error_text();
  ASSERT_EQ(p.add(), 0) << spile_error_text();
  EXPECT_EQ(probed_sum(10, 20), 137);
  EXPECT_EQ(p.hits, 1);
}

// ---- an end in the middle ----

/// Ends every child of the calling thread's process that it can find, all the time.
void end_children(pid_t of, const std::atomic<bool>& stop, std::atomic<long>& ended) {
  const std::string path = "/proc/self/task/" + std::to_string(of) + "/children";
  while (!stop) {
    std::ifstream children(path);
    for (pid_t child = 0; children >> child;) ended += ::kill(child, SIGKILL) == 0;
  }
}

/// Whoever holds the threads may be killed at any moment: they run on, and each place is probed or is not.
TEST(ChangingCode, MayEndInTheMiddle) {
  std::atomic<bool> stop{false};
  std::atomic<long> ended{0}, wrong{0};
  const pid_t main_thread = ::gettid();
  std::vector<std::thread> threads;
  threads.emplace_back([&] { end_children(main_thread, stop, ended); });
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      for (long n = 0; !stop; ++n) {
        wrong += probed_sum(n, 1) != n * 3 + 12;
        wrong += probed_branches(7) != 248;
        if (n % 100 == 0) ::usleep(100);
      }
    });
  }
  long answered = 0;
  for (int i = 0; i < 1000 && (i < 60 || ended == 0); ++i) {
    Counter p(i % 2 == 0 ? "probed_sum" : "probed_branches");
    const int error = p.add();
    EXPECT_TRUE(error == 0 || error == -EIO || error == -EBUSY) << error << " " << spile_error_text();
    if (error == 0) {
      EXPECT_EQ(p.remove(), 0) << spile_error_text();
    }
    ++answered;
  }
  stop = true;
  for (auto& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(answered, 0);
  Counter p("probed_sum");
  ASSERT_EQ(p.add(), 0) << spile_error_text();
  EXPECT_EQ(probed_sum(10, 20), 137);
  EXPECT_EQ(p.hits, 1);
}

/// A signal that comes while the threads are held is delivered, once.
TEST(ChangingCode, LosesNoSignal) {
  static std::atomic<long> signals{0};
  signals = 0;
  struct sigaction action = {}, before = {};
  action.sa_handler = [](int) { ++signals; };
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGUSR2, &action, &before);
  std::atomic<bool> stop{false}, stop_worker{false};
  std::atomic<long> sent{0};
  std::thread worker([&] {
    for (long n = 0; !stop_worker; ++n) {
      probed_sum(1, 1);
      if (n % 100 == 0) ::usleep(100);
    }
  });
  // One at a time: signals of a kind do not add up.
  std::thread sender([&] {
    while (!stop) {
      if (signals == sent && ::pthread_kill(worker.native_handle(), SIGUSR2) == 0) ++sent;
    }
  });
  for (int i = 0; i < 60 || sent < 10; ++i) {
    Counter p("probed_branches");
    ASSERT_EQ(p.add(), 0) << spile_error_text();
    ASSERT_EQ(p.remove(), 0) << spile_error_text();
  }
  stop = true;
  sender.join();
  // The last one may still be on its way.
  for (int i = 0; i < 30000 && signals != sent; ++i) ::usleep(1000);
  stop_worker = true;
  worker.join();
  EXPECT_EQ(signals, sent);
  EXPECT_GT(sent, 0);
  ::sigaction(SIGUSR2, &before, nullptr);
}

}  // namespace
