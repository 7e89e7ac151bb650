// What keeps a program unharmed in states that are rare: threads that end, stacks in odd places, somebody else's bytes,
// failures in the middle. Which rule is whose: docs/safety-rules.md.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <spile/detail/kprobe_5_4.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "events.h"
#include "probed.h"

extern "C" {
/// The flags that a call by a program with the direction flag set comes back with.
unsigned long call_with_direction_flag(void (*f)());
/// One call instruction for two functions.
__attribute__((noinline, noipa)) long call_by_pointer(long (*f)(void (*)(), long), void (*g)()) {
  const volatile long n = f(g, 20);
  return n;
}
__attribute__((noinline, noipa)) long probed_beside(void (*f)(), long n) {
  f();
  const volatile long v = n * 3;
  return v + 2;
}
long probed_tail(long n);  // 2 * n, plus 1 by a jump into probed_neighbour
__attribute__((used, noinline, noipa)) long chosen(long n) { return n + 1; }
using Chosen = long (*)(long);
__attribute__((used)) Chosen choose() { return chosen; }
long chosen_at_start(long n) __attribute__((ifunc("choose")));
/// There is another one in tracepoint_other.cc.
__attribute__((used, noinline, noipa)) static long defined_twice(long n) { return n * 2; }
}
__asm__(R"(
.text
.globl call_with_direction_flag
.type call_with_direction_flag, @function
call_with_direction_flag:
  push %rbx
  std
  call *%rdi
  pushfq
  pop %rax
  cld
  pop %rbx
  ret
.size call_with_direction_flag, . - call_with_direction_flag
.balign 16
.globl probed_tail
.type probed_tail, @function
probed_tail:
  lea (%rdi,%rdi), %rdi
  jmp probed_neighbour
.size probed_tail, . - probed_tail
)");

namespace {

using Handler = int (*)(spile_kprobe*, spile_regs*);
struct Counter : spile_kprobe {
  std::atomic<long> hits{0};
  explicit Counter(const char* symbol, Handler handler = nullptr) : spile_kprobe{} {
    symbol_name = symbol;
    pre_handler = handler != nullptr ? handler : [](spile_kprobe* p, spile_regs*) {
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
struct Tight : Counter {
  explicit Tight(Handler handler = nullptr) : Counter(nullptr, handler) {
    static char* volatile function = reinterpret_cast<char*>(&probed_tight);
    addr = function + 15;
    options = SPILE_ALLOW_TRAP;
  }
};

/// The exit status of a child that runs `work`, or minus the signal that has ended it.
template <class F>
int in_child(F work) {
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(60);  // what waits for ever
    ::_exit(work());
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

template <class F>
void handle(int signal, F handler, int flags = 0) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  ::sigaction(signal, &action, nullptr);
}

/// As a debugger writes.
void write_code(const void* at, const std::string& bytes) {
  const int memory = ::open("/proc/self/mem", O_RDWR | O_CLOEXEC);
  EXPECT_EQ(::pwrite(memory, bytes.data(), bytes.size(), reinterpret_cast<off_t>(at)), static_cast<ssize_t>(bytes.size()));
  ::close(memory);
}
std::string code_at(const void* at, size_t n = 8) { return std::string(static_cast<const char*>(at), n); }

void wait_for_sleep(pid_t tid) {
  for (std::string all; all.find(") S ") == std::string::npos;) {
    std::ifstream stat("/proc/self/task/" + std::to_string(tid) + "/stat");
    std::getline(stat, all);
  }
}

// ---- handlers ----

bool g_direction_flag = true;
int look_at_flags(spile_kprobe* p, spile_regs*) {
  unsigned long flags = 0;
  __asm__ volatile("pushfq\n\tpop %0" : "=r"(flags));
  g_direction_flag = (flags & 0x400) != 0;
  return ++static_cast<Counter*>(p)->hits, 0;
}
TEST(Handlers, RunWithoutTheDirectionFlagAndTheProgramHasItBack) {
  for (const unsigned options : {0u, static_cast<unsigned>(SPILE_GENERAL_REGISTERS)}) {
    Counter p("probed_nops", look_at_flags);
    p.options = options;
    ASSERT_EQ(p.add(), 0) << spile_error_text();
    for (int i = 1; i <= 2; ++i) {
      g_direction_flag = true;
      EXPECT_NE(call_with_direction_flag(probed_nops) & 0x400, 0u);
      EXPECT_FALSE(g_direction_flag);
      EXPECT_EQ(p.hits, i);
    }
  }
}

int set_rounding(spile_kprobe* p, spile_regs*) {
  const unsigned short toward_zero = 0x0f7f;
  __asm__ volatile("fldcw %0" : : "m"(toward_zero));
  return ++static_cast<Counter*>(p)->hits, 0;
}
TEST(Handlers, LeaveTheRoundingAlsoWhereNothingElseHasChanged) {
  Counter p("probed_nops", set_rounding);
  ASSERT_EQ(p.add(), 0) << spile_error_text();
  for (int i = 1; i <= 2; ++i) {
    unsigned short control = 0;
    __asm__ volatile("fnclex");
    probed_nops();
    __asm__ volatile("fnstcw %0" : "=m"(control));
    const unsigned short usual = 0x37f;
    __asm__ volatile("fldcw %0" : : "m"(usual));
    EXPECT_EQ(control, usual);
    EXPECT_EQ(p.hits, i);
  }
}

TEST(Handlers, AThreadThatEndsInOneHoldsUpNobody) {
  EXPECT_EQ(in_child([] {
    Counter p("probed_sum", [](spile_kprobe* self, spile_regs*) -> int {
      ++static_cast<Counter*>(self)->hits;
      ::pthread_exit(nullptr);
    });
    if (p.add() != 0) return 1;
    pthread_t thread;
    ::pthread_create(&thread, nullptr, [](void*) -> void* { return probed_sum(1, 1), nullptr; }, nullptr);
    ::pthread_join(thread, nullptr);
    return p.hits != 1 || p.remove() != 0 ? 2 : 0;
  }), 0);
}

int g_from_inside = 0;
void detach_behind_a_signal(void*, int fd, const char*);
void pass_in_handler(int) { trace_demo_request(2, "signal"); }
void detach_behind_a_signal(void*, int fd, const char*) {
  if (fd != 1) return;
  ::raise(SIGUSR1);
  g_from_inside = tracepoint_demo_request.detach(detach_behind_a_signal);
}
/// The handler of a signal passes, too: that the thread is still inside a callback is not forgotten.
TEST(Handlers, ASignalInACallbackDoesNotEndIt) {
  EXPECT_EQ(in_child([] {
    handle(SIGUSR1, pass_in_handler);
    if (tracepoint_demo_request.attach(detach_behind_a_signal) != 0) return 1;
    trace_demo_request(1, "program");
    return g_from_inside == -EBUSY ? 0 : 2;
  }), 0);
}

// ---- what is refused ----

TEST(Refused, AHandlerBehindAnInstructionThatGoesElsewhere) {
  Counter p("probed_nops");
  p.offset = 14;  // ret
  p.options = SPILE_ALLOW_TRAP;
  p.post_handler = [](spile_kprobe*, spile_regs*, unsigned long) {};
  EXPECT_EQ(p.add(), -EOPNOTSUPP);
  EXPECT_NE(std::string(spile_error_text()).find("post handler"), std::string::npos) << spile_error_text();
  probed_nops();
}

TEST(Refused, AProbeThatIsRegistered) {
  Counter p(nullptr);
  p.addr = reinterpret_cast<void*>(&probed_sum);
  ASSERT_EQ(p.add(), 0) << spile_error_text();
  void* const kept = p.internal;
  EXPECT_EQ(p.add(), -EINVAL);
  EXPECT_EQ(p.internal, kept);
  probed_sum(1, 1);
  EXPECT_EQ(p.hits, 1);
}

TEST(Refused, ReturnsOfAFunctionThatEndsInAnotherOne) {
  spile_kretprobe r = {};
  r.kp.symbol_name = "probed_tail";
  r.kp.options = SPILE_ALLOW_TRAP;
  r.handler = [](spile_kretprobe_instance*, spile_regs*) { return 0; };
  EXPECT_EQ(spile_register_kretprobe(&r), -EOPNOTSUPP);
  EXPECT_EQ(probed_tail(5), 11);
}

TEST(Refused, NamesThatAreNoOneFunction) {
  EXPECT_EQ(chosen_at_start(3) + defined_twice(3), 4 + 6);
  Counter ifunc("chosen_at_start"), twice("defined_twice");
  EXPECT_EQ(ifunc.add(), -EOPNOTSUPP);
  EXPECT_NE(std::string(spile_error_text()).find("IFUNC"), std::string::npos) << spile_error_text();
  EXPECT_EQ(twice.add(), -EADDRNOTAVAIL);
}

// ---- calls under way ----

struct Returns : spile_kretprobe {
  long exits = 0;
  explicit Returns(const char* symbol) : spile_kretprobe{} {
    kp.symbol_name = symbol;
    kp.options = SPILE_ALLOW_TRAP;
    maxactive = 1;
    handler = [](spile_kretprobe_instance* ri, spile_regs*) {
      ++static_cast<Returns*>(ri->rp)->exits;
      return 0;
    };
  }
  ~Returns() {
    if (internal != nullptr) spile_unregister_kretprobe(this);
  }
};

__attribute__((noinline, noipa)) void throw_from_below() {
  volatile long room[64] = {};
  room[1] = probed_calls([] { throw 1; }, room[0]);  // no tail call
}
TEST(Calls, WhatAnExceptionHasLeftFurtherDownIsUsedAgain) {
  Returns r("probed_calls");
  ASSERT_EQ(spile_register_kretprobe(&r), 0) << spile_error_text();
  EXPECT_THROW(throw_from_below(), int);
  EXPECT_EQ(probed_calls([] {}, 20), 41);
  EXPECT_EQ(r.exits, 1);
  EXPECT_EQ(r.nmissed, 0);
}

std::atomic<bool> g_is_under_way{false}, g_may_return{false};
void wait_under_way() {
  g_is_under_way = true;
  while (!g_may_return) ::usleep(100);
}
/// A call of another thread is under way, whose stack lies below.
TEST(Calls, OfAnotherThreadAreNotTakenForLeftOnes) {
  constexpr size_t kBytes = 256 << 10;
  g_is_under_way = g_may_return = false;
  Returns r("probed_calls");
  ASSERT_EQ(spile_register_kretprobe(&r), 0) << spile_error_text();
  void* memory = ::mmap(nullptr, 2 * kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  pthread_t threads[2];
  for (int i = 0; i < 2; ++i) {
    pthread_attr_t attributes;
    ::pthread_attr_init(&attributes);
    ::pthread_attr_setstack(&attributes, static_cast<char*>(memory) + static_cast<size_t>(i) * kBytes, kBytes);
    ASSERT_EQ(::pthread_create(&threads[i], &attributes, [](void* waits) -> void* {
      probed_calls(waits != nullptr ? wait_under_way : [] {}, 20);
      return nullptr;
    }, i == 0 ? memory : nullptr), 0);
    ::pthread_attr_destroy(&attributes);
    while (!g_is_under_way) ::usleep(100);
  }
  ::pthread_join(threads[1], nullptr);
  EXPECT_EQ(r.exits, 0);
  EXPECT_EQ(r.nmissed, 1);
  g_may_return = true;
  ::pthread_join(threads[0], nullptr);
  EXPECT_EQ(r.exits, 1);
  ::munmap(memory, 2 * kBytes);
}

struct Both : spile_fprobe {
  long entries = 0, exits = 0;
  Both() : spile_fprobe{} {
    options = SPILE_ALLOW_TRAP;
    entry_handler = [](spile_fprobe* f, unsigned long, unsigned long, spile_regs*, void*) {
      return ++static_cast<Both*>(f)->entries, 0;
    };
    exit_handler = [](spile_fprobe* f, unsigned long, unsigned long, spile_regs*, void*) { ++static_cast<Both*>(f)->exits; };
  }
  ~Both() {
    if (internal != nullptr) spile_unregister_fprobe(this);
  }
};
Both* g_both = nullptr;
/// The same call instruction: stack slot and return address are those of the call that threw.
TEST(Calls, AReturnIsNotTakenForThatOfAnotherFunctionThatThrew) {
  Both both;
  g_both = &both;
  unsigned long functions[] = {reinterpret_cast<unsigned long>(&probed_calls), reinterpret_cast<unsigned long>(&probed_beside)};
  ASSERT_EQ(spile_register_fprobe_ips(&both, functions, 2), 0) << spile_error_text();
  for (const bool throws : {true, false}) {
    try {
      call_by_pointer(throws ? probed_calls : probed_beside, throws ? [] { throw 1; } : [] {
        g_both->flags &= ~static_cast<unsigned>(SPILE_FLAG_DISABLED);
      });
    } catch (int) {
      both.flags |= SPILE_FLAG_DISABLED;  // the next entry is not seen
    }
  }
  EXPECT_EQ(both.entries, 1);
  EXPECT_EQ(both.exits, 0);
  call_by_pointer(probed_beside, [] {});
  EXPECT_EQ(both.exits, 1);
}

// ---- somebody else's bytes ----

TEST(Foreign, BytesThatAreNotTheFilesAreNotProbed) {
  const std::string original = code_at(reinterpret_cast<void*>(&probed_loop));
  const std::string foreign = '\xcc' + original.substr(1);
  for (const bool was_probed : {false, true}) {
    if (was_probed) {
      Counter once("probed_loop");
      ASSERT_EQ(once.add(), 0) << spile_error_text();
    }
    write_code(reinterpret_cast<void*>(&probed_loop), foreign);
    Counter p("probed_loop");
    EXPECT_EQ(p.add(), -EBUSY) << spile_error_text();
    EXPECT_EQ(code_at(reinterpret_cast<void*>(&probed_loop)), foreign);
    write_code(reinterpret_cast<void*>(&probed_loop), original);
  }
}

/// What stands there instead of our jump stays; with and without other threads.
TEST(Foreign, BytesOverAJumpStayBehindAnUnregister) {
  for (const int others : {0, 2}) {
    std::atomic<bool> stop{false};
    std::vector<std::thread> threads;
    for (int i = 0; i < others; ++i) threads.emplace_back([&] { while (!stop) ::usleep(1000); });
    const std::string original = code_at(reinterpret_cast<void*>(&probed_loop));
    Counter p("probed_loop");
    ASSERT_EQ(p.add(), 0) << spile_error_text();
    const std::string foreign = "\xcc\xcc\xcc\xcc\xcc" + original.substr(5);
    write_code(reinterpret_cast<void*>(&probed_loop), foreign);
    EXPECT_EQ(p.remove(), 0);
    EXPECT_EQ(code_at(reinterpret_cast<void*>(&probed_loop)), foreign);
    write_code(reinterpret_cast<void*>(&probed_loop), original);
    EXPECT_EQ(probed_loop(4), 6);
    // The place is still one of ours: the next change puts it right.
    Counter again("probed_loop");
    (void)again.add();
    (void)again.remove();
    EXPECT_EQ(code_at(reinterpret_cast<void*>(&probed_loop)), original);
    stop = true;
    for (auto& t : threads) t.join();
  }
}

/// A jump that is written and a breakpoint that cannot be: nothing is registered, and the jump is gone.
TEST(Foreign, ARegistrationThatFailsInTheMiddleIsUndone) {
  const std::string sum = code_at(reinterpret_cast<void*>(&probed_sum));
  Tight first, second;
  Counter jump("probed_sum");
  first.flags = SPILE_FLAG_DISABLED;
  ASSERT_EQ(first.add(), 0) << spile_error_text();
  const void* at = first.addr;
  const std::string original = code_at(at, 1);
  const size_t listed = spile_list_probes(nullptr, 0);
  write_code(at, "\x90");
  spile_kprobe* both[] = {&jump, &second};
  EXPECT_EQ(spile_register_kprobes(both, 2), -EOPNOTSUPP) << spile_error_text();
  EXPECT_EQ(code_at(at, 1), "\x90");
  write_code(at, original);
  EXPECT_EQ(code_at(reinterpret_cast<void*>(&probed_sum)), sum);
  EXPECT_EQ(spile_list_probes(nullptr, 0), listed);
  EXPECT_EQ(probed_sum(10, 20), 137);
  EXPECT_EQ(probed_tight(3), 3);
  EXPECT_EQ(jump.hits + first.hits + second.hits, 0);
}

/// Bytes that may not be changed any more: the jump stays, and leads to no handler.
TEST(Foreign, NoHandlerRunsWhereTheJumpCannotBeTakenOut) {
  EXPECT_EQ(in_child([] {
    Counter p("probed_sum");
    if (p.add() != 0 || probed_sum(10, 20) != 137 || p.hits != 1) return 1;
    sock_filter allow[] = {{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}};
    sock_fprog program = {1, allow};
    ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) return 2;
    if (p.remove() != 0) return 3;
    return probed_sum(10, 20) != 137 || p.hits != 1 ? 4 : 0;
  }), 0);
}

void ignore_request(void*, int, const char*) {}
unsigned char* switch_of(const spile_site& site) {
  return reinterpret_cast<unsigned char*>(const_cast<int32_t*>(&site.switch_offset)) + site.switch_offset;
}
std::vector<unsigned char*> switches_of_request() {
  std::vector<unsigned char*> found;
  for (const spile_site* s = __start_spile_sites; s != __stop_spile_sites; ++s) {
    const char* name = reinterpret_cast<const char*>(&s->name_offset) + s->name_offset;
    if (std::strcmp(name, "demo:request") == 0) found.push_back(switch_of(*s));
  }
  return found;
}

TEST(Foreign, ASwitchWithABreakpointIsLeftAloneAndTheOthersGoBack) {
  const auto all = switches_of_request();
  ASSERT_GE(all.size(), 2u);
  const auto thrown = [&] {
    size_t n = 0;
    for (const unsigned char* at : all) n += at[2] == 0;
    return n;
  };
  write_code(all.back(), "\xcc");
  EXPECT_EQ(tracepoint_demo_request.attach(ignore_request), -EBUSY);
  EXPECT_EQ(thrown(), 0u);
  EXPECT_FALSE(tracepoint_demo_request.enabled());
  write_code(all.back(), "\x0f");
  ASSERT_EQ(tracepoint_demo_request.attach(ignore_request), 0);
  EXPECT_EQ(thrown(), all.size());
  write_code(all.back(), "\xcc");
  EXPECT_EQ(tracepoint_demo_request.detach(ignore_request), -EBUSY);
  EXPECT_EQ(thrown(), all.size());
  EXPECT_TRUE(tracepoint_demo_request.enabled());
  write_code(all.back(), "\x0f");
  ASSERT_EQ(tracepoint_demo_request.detach(ignore_request), 0);
  EXPECT_EQ(thrown(), 0u);
}

/// A module that is loaded while its tracepoint is on; one that is gone is not written to.
TEST(Foreign, SwitchesOfAModuleAreThrownWhileItIsThere) {
  const auto all = switches_of_request();
  ASSERT_FALSE(all.empty());
  spile_remove_sites(__start_spile_sites);
  ASSERT_EQ(tracepoint_demo_request.attach(ignore_request), 0);
  EXPECT_EQ(all.front()[2], 0x84);
  spile_add_sites(__start_spile_sites, __stop_spile_sites);
  EXPECT_EQ(all.front()[2], 0x00);
  ASSERT_EQ(tracepoint_demo_request.detach(ignore_request), 0);
  EXPECT_EQ(all.front()[2], 0x84);
}

// ---- threads in the way ----

/// Blocked in a fault of the window's second instruction: no system call, no signal frame.
TEST(InTheWay, AThreadThatStandsInTheWindowIsWaitedFor) {
  const int faults = static_cast<int>(::syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY));
  if (faults < 0) GTEST_SKIP() << "no userfaultfd: " << std::strerror(errno);
  uffdio_api api = {};
  api.api = UFFD_API;
  ASSERT_EQ(::ioctl(faults, UFFDIO_API, &api), 0);
  void* page = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  uffdio_register range = {};
  range.range = {reinterpret_cast<uint64_t>(page), 4096};
  range.mode = UFFDIO_REGISTER_MODE_MISSING;
  ASSERT_EQ(::ioctl(faults, UFFDIO_REGISTER, &range), 0);
  long got = -1;
  std::thread faulting([&] { got = probed_faults(static_cast<long*>(page)); });
  uffd_msg message = {};
  ASSERT_EQ(::read(faults, &message, sizeof message), static_cast<ssize_t>(sizeof message));
  Counter p("probed_faults");
  EXPECT_EQ(p.add(), -EBUSY);
  EXPECT_NE(std::string(spile_error_text()).find("stays inside"), std::string::npos) << spile_error_text();
  uffdio_zeropage zero = {};
  zero.range = range.range;
  EXPECT_EQ(::ioctl(faults, UFFDIO_ZEROPAGE, &zero), 0);
  faulting.join();
  EXPECT_EQ(got, 0);
  EXPECT_EQ(p.add(), 0) << spile_error_text();
  ::close(faults);
  ::munmap(page, 4096);
}

std::atomic<bool> g_in_second{false}, g_second_may_end{false};
void* g_page = nullptr;
/// Its stack is an array in the frame of the thread's first function: above what it has interrupted.
TEST(InTheWay, AnAlternateStackInsideTheStackHidesNobody) {
  g_in_second = g_second_may_end = false;
  g_page = ::mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  struct sigaction before = {};
  ::sigaction(SIGSEGV, nullptr, &before);
  handle(SIGSEGV, [](int) {
    ::raise(SIGUSR2);
    ::mprotect(g_page, 4096, PROT_READ | PROT_WRITE);
  });
  handle(SIGUSR2, [](int) {
    g_in_second = true;
    while (!g_second_may_end) ::usleep(100);
  }, SA_ONSTACK);
  long got = -1;
  std::thread faulting([&] {
    char memory[64 << 10];
    const stack_t alternate = {memory, 0, sizeof memory};
    ::sigaltstack(&alternate, nullptr);
    got = probed_faults(static_cast<long*>(g_page));
    const stack_t none = {nullptr, SS_DISABLE, 0};
    ::sigaltstack(&none, nullptr);
  });
  while (!g_in_second) ::usleep(100);
  Counter p("probed_faults");
  EXPECT_EQ(p.add(), -EBUSY) << spile_error_text();
  g_second_may_end = true;
  faulting.join();
  EXPECT_EQ(got, 0);
  ::sigaction(SIGSEGV, &before, nullptr);
  ::munmap(g_page, 4096);
}

/// While one thread registers, it holds the lock of the engine; a child that is forked then finds it free.
TEST(InTheWay, AChildForkedDuringARegistrationMayRegister) {
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  std::atomic<pid_t> tid{0};
  std::thread reading([&] {
    char byte = 0;
    tid = ::gettid();
    probed_read(ends[0], &byte, 1);
  });
  while (tid == 0) ::usleep(100);
  wait_for_sleep(tid);
  std::atomic<bool> begins{false}, has_ended{false};
  std::thread registering([&] {
    Counter waits("probed_read");
    begins = true;
    EXPECT_EQ(waits.add(), -EBUSY);  // tries for a while
    has_ended = true;
  });
  while (!begins) ::usleep(100);
  do {
    EXPECT_EQ(in_child([] {
      Counter p("probed_sum");
      return p.add() == 0 && probed_sum(10, 20) == 137 && p.hits == 1 ? 0 : 1;
    }), 0);
  } while (!has_ended);
  registering.join();
  EXPECT_EQ(::write(ends[1], "x", 1), 1);
  reading.join();
  ::close(ends[0]);
  ::close(ends[1]);
}

// ---- signals ----

TEST(Chain, ABreakpointInsideAHandlerOfABreakpointIsMissed) {
  EXPECT_EQ(in_child([] {
    Tight p([](spile_kprobe* self, spile_regs*) -> int {
      ++static_cast<Counter*>(self)->hits;
      return probed_tight(2) == 2 ? 0 : 1;
    });
    if (p.add() != 0) return 1;
    return probed_tight(3) != 3 || p.hits != 1 || p.nmissed != 1 ? 2 : 0;
  }), 0);
}

TEST(Chain, ASignalThatIsIgnoredStaysIgnored) {
  EXPECT_EQ(in_child([] {
    handle(SIGTRAP, SIG_IGN);
    Tight p;
    if (p.add() != 0) return 1;
    ::raise(SIGTRAP);
    return probed_tight(3) != 3 || p.hits != 1 ? 2 : 0;
  }), 0);
}

unsigned long g_resume = 0;
int g_asked = 0, g_passed_on = 0;
int read_at_zero(spile_kprobe_5_4*, spile_regs*) {
  __asm__ volatile("lea 1f(%%rip), %%rcx\n\tmov %%rcx, %0\n\txor %%ecx, %%ecx\n\tmov (%%rcx), %%rcx\n1:"
                   : "=m"(g_resume) : : "rcx", "memory");
  return 0;
}
spile_kprobe_5_4 with_fault_handler(int (*before)(spile_kprobe_5_4*, spile_regs*)) {
  spile_kprobe_5_4 p = {};
  p.symbol_name = "probed_sum";
  p.pre_handler = before;
  p.fault_handler = [](spile_kprobe_5_4*, spile_regs* regs, int) {
    ++g_asked;
    regs->ip = g_resume;
    return 1;
  };
  return p;
}

TEST(Chain, AnExceptionInAFaultHandlerIsTheProgramsOwn) {
  EXPECT_EQ(in_child([] {
    handle(SIGSEGV, [](int) { ::_exit(g_asked == 1 ? 0 : 2); });
    auto p = with_fault_handler(read_at_zero);
    p.fault_handler = [](spile_kprobe_5_4* self, spile_regs* regs, int) {
      if (++g_asked > 1) ::_exit(3);
      return read_at_zero(self, regs);
    };
    if (spile_register_kprobe_5_4(&p) != 0) return 1;
    probed_sum(1, 1);
    return 4;
  }), 0);
}

TEST(Chain, AnExceptionBehindAHandlerIsTheProgramsOwn) {
  EXPECT_EQ(in_child([] {
    handle(SIGSEGV, [](int) { ::_exit(g_asked == 1 ? 0 : 2); });
    auto p = with_fault_handler(read_at_zero);
    if (spile_register_kprobe_5_4(&p) != 0 || probed_sum(10, 20) != 137 || g_asked != 1) return 1;
    spile_regs none = {};
    read_at_zero(nullptr, &none);
    return 3;
  }), 0);
}

TEST(Chain, ASignalThatSomebodySendsIsNoFaultOfAHandler) {
  EXPECT_EQ(in_child([] {
    handle(SIGSEGV, [](int) { ++g_passed_on; });
    auto p = with_fault_handler([](spile_kprobe_5_4*, spile_regs*) { return ::raise(SIGSEGV); });
    if (spile_register_kprobe_5_4(&p) != 0 || probed_sum(10, 20) != 137) return 1;
    return g_asked != 0 || g_passed_on != 1 ? 2 : 0;
  }), 0);
}

long use_up_the_stack(long n) {
  if (n < 0) return n;
  volatile char room[4096];
  room[n % 4096] = 1;
  return use_up_the_stack(n + 1) + room[(n + 1) % 4096];
}
/// A program that reports its stack overflows does so with fault handlers, too.
TEST(Chain, AStackOverflowIsHandledOnTheAlternateStack) {
  EXPECT_EQ(in_child([] {
    std::vector<char> memory(64 << 10);
    const stack_t alternate = {memory.data(), 0, memory.size()};
    ::sigaltstack(&alternate, nullptr);
    handle(SIGSEGV, [](int) { ::_exit(0); }, SA_ONSTACK);
    auto p = with_fault_handler(read_at_zero);
    if (spile_register_kprobe_5_4(&p) != 0 || probed_sum(10, 20) != 137 || g_asked != 1) return 1;
    return use_up_the_stack(0) == 0 ? 2 : 3;
  }), 0);
}

/// With the library in front a call is restarted as the program wanted it to be, or is not.
TEST(Chain, SystemCallsAreRestartedAsTheProgramWants) {
  for (const int flags : {SA_RESTART, 0}) {
    EXPECT_EQ(in_child([flags] {
      static std::atomic<int> came{0};
      handle(SIGSEGV, [](int) { ++came; }, flags);
      auto p = with_fault_handler(read_at_zero);
      if (spile_register_kprobe_5_4(&p) != 0) return 1;
      int ends[2];
      if (::pipe(ends) != 0) return 2;
      std::atomic<pid_t> tid{0};
      ssize_t got = -2;
      std::thread reading([&] {
        char byte = 0;
        tid = ::gettid();
        got = ::read(ends[0], &byte, 1);
      });
      while (tid == 0) ::usleep(100);
      wait_for_sleep(tid);
      ::pthread_kill(reading.native_handle(), SIGSEGV);
      while (came == 0) ::usleep(100);
      const bool written = ::write(ends[1], "x", 1) == 1;
      reading.join();
      return written && got == (flags == SA_RESTART ? 1 : -1) ? 0 : 3;
    }), 0);
  }
}

}  // namespace
