// Probes that come and go while the program does everything that a program does: threads, signals, exceptions, recursion,
// fork. Each handler says when it begins and ends by an atomic operation: so a thread sanitizer, which does not see into the
// library, sees what the library promises (nothing runs behind an unregister), and no more.
#include <gtest/gtest.h>
#include <spile/probes.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "probed.h"

namespace {

std::atomic<long> g_published{0}, g_left{0};

/// What a handler uses; destroyed behind the unregister.
struct Watched {
  bool alive = true;
  std::atomic<long> hits{0};
  ~Watched() { alive = false; }
};

class Visit {
 public:
  /// `data`: gives the Watched; what it reads was written before the registration.
  template <class F>
  explicit Visit(F data) {
    (void)g_published.load(std::memory_order_acquire);
    auto* w = static_cast<Watched*>(data());
    if (!w->alive) std::abort();
    ++w->hits;
  }
  ~Visit() { g_left.fetch_add(1, std::memory_order_release); }
};

/// One registration of some kind, made and taken out.
class Cycle {
 public:
  explicit Cycle(long number) : number_(number) {}

  bool run() {
    auto watched = std::make_unique<Watched>();
    bool good = false;
    switch (number_ % 4) {
      case 0: good = run_kprobe(*watched, "probed_sum", false); break;
      case 1: good = run_kprobe(*watched, "probed_branches", true); break;
      case 2: good = run_kretprobe(*watched); break;
      default: good = run_fprobe(*watched); break;
    }
    (void)g_left.load(std::memory_order_acquire);
    hits_ += watched->hits;
    return good;
  }
  static long hits() { return hits_; }

 private:
  static void call_some() {
    probed_sum(1, 2);
    probed_branches(7);
    probed_recursive(3);
  }

  bool run_kprobe(Watched& watched, const char* symbol, bool behind) const {
    spile_kprobe p = {};
    p.symbol_name = symbol;
    p.data = &watched;
    p.pre_handler = [](spile_kprobe* k, spile_regs*) {
      const Visit visit([&] { return k->data; });
      return 0;
    };
    if (behind) p.post_handler = [](spile_kprobe* k, spile_regs*, unsigned long) { const Visit visit([&] { return k->data; }); };
    g_published.fetch_add(1, std::memory_order_release);
    if (spile_register_kprobe(&p) != 0) return false;
    call_some();
    return spile_unregister_kprobe(&p) == 0;
  }

  static bool run_kretprobe(Watched& watched) {
    spile_kretprobe p = {};
    p.kp.symbol_name = "probed_throws";
    p.kp.data = &watched;
    p.entry_handler = [](spile_kretprobe_instance* ri, spile_regs*) {
      const Visit visit([&] { return ri->rp->kp.data; });
      return 0;
    };
    p.handler = [](spile_kretprobe_instance* ri, spile_regs*) {
      const Visit visit([&] { return ri->rp->kp.data; });
      return 0;
    };
    g_published.fetch_add(1, std::memory_order_release);
    if (spile_register_kretprobe(&p) != 0) return false;
    probed_throws(2);
    return spile_unregister_kretprobe(&p) == 0;
  }

  static bool run_fprobe(Watched& watched) {
    spile_fprobe p = {};
    p.data = &watched;
    p.entry_data_size = 8;
    p.entry_handler = [](spile_fprobe* f, unsigned long, unsigned long, spile_regs*, void*) {
      const Visit visit([&] { return f->data; });
      return 0;
    };
    p.exit_handler = [](spile_fprobe* f, unsigned long, unsigned long, spile_regs*, void*) { const Visit visit([&] { return f->data; }); };
    g_published.fetch_add(1, std::memory_order_release);
    if (spile_register_fprobe(&p, "probed_*", "probed_tight") != 0) return false;
    call_some();
    return spile_unregister_fprobe(&p) == 0;
  }

  long number_;
  static long hits_;
};
long Cycle::hits_ = 0;

struct Program {
  std::atomic<bool> stop{false};
  std::atomic<long> wrong{0}, forks{0}, caught{0};
  static std::atomic<long> signals;

  void compute(long n) {
    wrong += probed_sum(n, 5) != n * 3 + 32;
    wrong += probed_branches(7) != 248;
    wrong += probed_doubles(2.0, 8.0) != 2.0;
  }
  void throw_and_catch(long n) {
    try {
      wrong += probed_throws(n) != n * 7 + 3;
    } catch (long thrown) {
      wrong += thrown != n;
      ++caught;
    }
  }
  void fork_once() {
    const pid_t child = ::fork();
    if (child == 0) {
      const bool good = probed_sum(10, 20) == 137 && probed_recursive(4) == 10;
      ::_exit(good ? 0 : 1);
    }
    int status = -1;
    ::waitpid(child, &status, 0);
    wrong += !WIFEXITED(status) || WEXITSTATUS(status) != 0;
    ++forks;
  }
  static void on_signal(int) {
    probed_sum(1, 1);
    ++signals;
  }
};
std::atomic<long> Program::signals{0};

std::vector<std::thread> start(Program& program, bool forks) {
  std::vector<std::thread> threads;
  const auto add = [&](auto work) {
    threads.emplace_back([&program, work] {
      for (long n = 0; !program.stop; ++n) {
        work(n);
        // More threads than processors: one that waits for a processor takes milliseconds to stop.
        if (n % 20 == 0) ::usleep(100);
      }
    });
  };
  for (int i = 0; i < 2; ++i) add([&program](long n) { program.compute(n); });
  add([&program](long n) { program.throw_and_catch(n); });
  add([&program](long n) { program.wrong += probed_recursive(n % 30) != (n % 30) * (n % 30 + 1) / 2; });
  add([&program](long n) {
    program.compute(n);
    if (n % 20 == 0) ::pthread_kill(::pthread_self(), SIGUSR1);
  });
  add([](long) { std::thread([] { probed_outer(3); }).join(); });
  add([](long) { ::usleep(200); });
  add([&program, forks](long) {
    if (forks) program.fork_once();
    ::usleep(5000);
  });
  return threads;
}

/// 10,000 cycles, or as many as some seconds are enough for: a slow machine does fewer, and each is checked.
TEST(Stress, ProbesComeAndGoUnderEverythingAProgramDoes) {
  const char* wanted = ::getenv("SPILE_LIBRARY_CYCLES");
  if (wanted == nullptr && ::getenv("SPILE_SOAK") != nullptr) wanted = "100000";
  const long cycles = wanted != nullptr ? std::atol(wanted) : 10000;
  constexpr auto kEnough = std::chrono::seconds(12);
  struct sigaction action = {};
  action.sa_handler = Program::on_signal;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGUSR1, &action, nullptr);
  Program program;
#ifdef __SANITIZE_THREAD__
  auto threads = start(program, false);  // its runtime does not survive a fork with threads
#else
  auto threads = start(program, true);
#endif
  const auto begin = std::chrono::steady_clock::now();
  long done = 0, failed = 0;
  for (; done < cycles; ++done) {
    if (wanted == nullptr && done >= 40 && std::chrono::steady_clock::now() - begin > kEnough) break;
    if (!Cycle(done).run()) {
      ++failed;
      ADD_FAILURE() << "cycle " << done << ": " << spile_error_text();
      if (failed > 10) break;
    }
  }
  program.stop = true;
  for (auto& t : threads) t.join();
  std::printf("%ld cycles, %ld hits, %ld signals, %ld exceptions, %ld forks\n", done, Cycle::hits(),
              Program::signals.load(), program.caught.load(), program.forks.load());
  EXPECT_EQ(program.wrong, 0);
  EXPECT_GT(Cycle::hits(), done);
}

}  // namespace
