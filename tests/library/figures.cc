// What probes and tracepoints of the library cost, in one run: added to the bare call, the least of several rounds.
#include <spile/probes.h>
#include <spile/tracepoint.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <string>
#include <thread>
#include <utility>
#include <vector>

SPILE_TRACEPOINT(figures, pass, (long, n))

#define KEPT extern "C" __attribute__((noinline, noclone, noipa))
KEPT void bare(long n) { __asm__ volatile("nop\nnop\nnop\nnop\nnop\nnop\nnop\nnop\n" : : "r"(n)); }
KEPT void with_tracepoint(long n) {
  trace_figures_pass(n);
  __asm__ volatile("nop\nnop\nnop\nnop\nnop\nnop\nnop\nnop\n" : : "r"(n));
}
KEPT void probed(long n) { __asm__ volatile("nop\nnop\nnop\nnop\nnop\nnop\nnop\nnop\n" : : "r"(n)); }
extern "C" void trapped(long n);
__asm__(".text\n.balign 16\n.globl trapped\n.type trapped,@function\ntrapped: movabs $7,%rdx\n"
        "0: xor %ecx,%ecx\n1: inc %rcx\ncmp $1,%rcx\njb 1b\njo 0b\nret\n.size trapped, .-trapped\n");

namespace {

template <class F>
double ns_each(F f, long count) {
  double best = 1e18;
  for (int round = 0; round < 300; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    for (long i = 0; i < count; ++i) f(i);
    const std::chrono::duration<double, std::nano> taken = std::chrono::steady_clock::now() - begin;
    if (taken.count() / static_cast<double>(count) < best) best = taken.count() / static_cast<double>(count);
  }
  return best;
}

void figure(const char* name, double value, const char* unit = "ns") { std::printf("%-52s %9.2f %s\n", name, value, unit); }

int nothing(spile_kprobe*, spile_regs*) { return 0; }
void nothing_behind(spile_kprobe*, spile_regs*, unsigned long) {}

double with_kprobe(const char* symbol, unsigned offset, unsigned options, bool behind, void (*f)(long), long count) {
  spile_kprobe p = {};
  p.symbol_name = symbol;
  p.offset = offset;
  p.options = options;
  p.pre_handler = nothing;
  if (behind) p.post_handler = nothing_behind;
  if (spile_register_kprobe(&p) != 0) {
    std::printf("%s+%u: %s\n", symbol, offset, spile_error_text());
    return 0;
  }
  const double ns = ns_each(f, count);
  spile_unregister_kprobe(&p);
  return ns;
}

double with_fprobe(unsigned options, long count) {
  spile_fprobe fp = {};
  fp.options = options | SPILE_ALLOW_TRAP;
  fp.entry_data_size = 8;
  fp.entry_handler = [](spile_fprobe*, unsigned long, unsigned long, spile_regs*, void*) { return 0; };
  fp.exit_handler = [](spile_fprobe*, unsigned long, unsigned long, spile_regs*, void*) {};
  const char* symbols[] = {"probed"};
  if (spile_register_fprobe_syms(&fp, symbols, 1) != 0) {
    std::printf("fprobe: %s\n", spile_error_text());
    return 0;
  }
  const double ns = ns_each(probed, count);
  spile_unregister_fprobe(&fp);
  return ns;
}

double us_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
}

/// The least of several rounds, beside `threads` others that sleep.
void register_and_unregister(int threads) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> others;
  for (int i = 0; i < threads; ++i) {
    others.emplace_back([&] {
      while (!stop) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    });
  }
  double best_add = 1e18, best_remove = 1e18;
  for (int i = 0; i < 100; ++i) {
    spile_kprobe p = {};
    p.symbol_name = "probed";
    p.pre_handler = nothing;
    auto begin = std::chrono::steady_clock::now();
    spile_register_kprobe(&p);
    best_add = std::min(best_add, us_since(begin));
    begin = std::chrono::steady_clock::now();
    spile_unregister_kprobe(&p);
    best_remove = std::min(best_remove, us_since(begin));
  }
  stop = true;
  for (auto& t : others) t.join();
  const std::string beside = ", " + std::to_string(threads) + " other threads";
  figure(("register" + beside).c_str(), best_add, "us");
  figure(("unregister" + beside).c_str(), best_remove, "us");
}

/// 10,000 small functions.
template <int kNumber>
__attribute__((noinline, noclone)) long many(long n) {
  volatile long v = n * 3 + kNumber;
  return v + 1;
}
template <int... kNumbers>
std::vector<unsigned long> addresses(std::integer_sequence<int, kNumbers...>) {
  return {reinterpret_cast<unsigned long>(&many<kNumbers>)...};
}

void register_many(bool with_exit) {
  auto all = addresses(std::make_integer_sequence<int, 10000>());
  for (const char* which : {"the first time", "again"}) {
    spile_fprobe fp = {};
    fp.entry_handler = [](spile_fprobe*, unsigned long, unsigned long, spile_regs*, void*) { return 0; };
    if (with_exit) fp.exit_handler = [](spile_fprobe*, unsigned long, unsigned long, spile_regs*, void*) {};
    auto begin = std::chrono::steady_clock::now();
    if (spile_register_fprobe_ips(&fp, all.data(), static_cast<int>(all.size())) != 0) {
      std::printf("%zu functions: %s\n", all.size(), spile_error_text());
      return;
    }
    const double add = us_since(begin) / 1000;
    begin = std::chrono::steady_clock::now();
    spile_unregister_fprobe(&fp);
    const double remove = us_since(begin) / 1000;
    const std::string what = std::string("10,000 functions") + (with_exit ? " with exits, " : ", ") + which;
    figure(("register " + what).c_str(), add, "ms");
    figure(("unregister " + what).c_str(), remove, "ms");
  }
}

}  // namespace

int main() {
  constexpr long kMany = 10000, kFew = 200;  // short, so that some round is not interrupted
  const double call = ns_each(bare, kMany);
  figure("bare call", call);
  figure("tracepoint, off (with its USDT nops)", ns_each(with_tracepoint, kMany) - call);
  {
    auto s = tracepoint_figures_pass.subscribe([](long) noexcept {});
    figure("tracepoint, one callback", ns_each(with_tracepoint, kMany) - call);
  }
  figure("kprobe at entry, general registers", with_kprobe("probed", 0, SPILE_GENERAL_REGISTERS, false, probed, kMany) - call);
  figure("kprobe at entry, any handler", with_kprobe("probed", 0, 0, false, probed, kMany) - call);
  figure("kprobe and post handler, general registers",
         with_kprobe("probed", 0, SPILE_GENERAL_REGISTERS, true, probed, kMany) - call);
  figure("fprobe, entry and exit, general registers", with_fprobe(SPILE_GENERAL_REGISTERS, kMany) - call);
  figure("fprobe, entry and exit, any handler", with_fprobe(0, kMany) - call);
  std::signal(SIGTRAP, [](int) {});
  const double trap = ns_each([](long) { __asm__ volatile("int3"); }, kFew);
  figure("bare SIGTRAP", trap);
  const double bare_trapped = ns_each(trapped, kFew);
  const unsigned trap_options = SPILE_ALLOW_TRAP | SPILE_GENERAL_REGISTERS;
  figure("kprobe by breakpoint", with_kprobe("trapped", 10, trap_options, false, trapped, kFew) - bare_trapped);
  figure("kprobe by breakpoint, post handler", with_kprobe("trapped", 10, trap_options, true, trapped, kFew) - bare_trapped);
  for (const int threads : {0, 1, 4, 16}) register_and_unregister(threads);
  register_many(false);
  register_many(true);
}
