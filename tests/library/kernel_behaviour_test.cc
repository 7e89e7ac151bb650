// What the kernel's probes do and a program may rely on, as the kernel's documents and sources say it: aggregation, order, misses,
// soft and hard switches, refusals, lists.
#include <gtest/gtest.h>
#include <spile/fprobe.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "probed.h"

namespace {

struct Probe : kprobe {
  long before = 0, behind = 0;
  explicit Probe(const char* symbol) : kprobe{} {
    symbol_name = symbol;
    pre_handler = [](kprobe* p, pt_regs*) {
      ++static_cast<Probe*>(p)->before;
      return 0;
    };
  }
  void follow() {
    post_handler = [](kprobe* p, pt_regs*, unsigned long) { ++static_cast<Probe*>(p)->behind; };
  }
  ~Probe() {
    if (internal != nullptr) unregister_kprobe(this);
  }
};

TEST(KernelBehaviour, DisablingOneOfTwoLeavesTheOther) {
  Probe a("probed_sum"), b("probed_sum");
  ASSERT_EQ(register_kprobe(&a), 0) << spile_error_text();
  ASSERT_EQ(register_kprobe(&b), 0) << spile_error_text();
  ASSERT_EQ(disable_kprobe(&a), 0);
  EXPECT_EQ(a.flags & KPROBE_FLAG_DISABLED, static_cast<unsigned>(KPROBE_FLAG_DISABLED));
  EXPECT_EQ(probed_sum(10, 20), 137);
  EXPECT_EQ(a.before, 0);
  EXPECT_EQ(b.before, 1);
  ASSERT_EQ(enable_kprobe(&a), 0);
  EXPECT_EQ(a.flags & KPROBE_FLAG_DISABLED, 0u);
  EXPECT_EQ(probed_sum(10, 20), 137);
  EXPECT_EQ(a.before, 1);
  EXPECT_EQ(b.before, 2);
}

TEST(KernelBehaviour, AllPostHandlersRunAndNoneBehindARedirection) {
  Probe a("probed_sum"), b("probed_sum");
  a.follow();
  b.follow();
  ASSERT_EQ(register_kprobe(&a), 0) << spile_error_text();
  ASSERT_EQ(register_kprobe(&b), 0) << spile_error_text();
  EXPECT_EQ(probed_sum(10, 20), 137);
  EXPECT_EQ(a.behind, 1);
  EXPECT_EQ(b.behind, 1);
  Probe redirecting("probed_sum");
  redirecting.pre_handler = [](kprobe*, pt_regs* regs) {
    regs_set_return_value(regs, 9);
    override_function_with_return(regs);
    return 1;
  };
  ASSERT_EQ(register_kprobe(&redirecting), 0) << spile_error_text();
  EXPECT_EQ(probed_sum(10, 20), 9);
  EXPECT_EQ(a.before, 1);
  EXPECT_EQ(a.behind, 1);
  EXPECT_EQ(b.behind, 1);
}

TEST(KernelBehaviour, AMissIsCountedByEachProbeOfThePlace) {
  Probe outer("probed_outer"), a("probed_inner"), b("probed_inner");
  outer.pre_handler = [](kprobe*, pt_regs*) {
    EXPECT_EQ(probed_inner(2), 35);
    return 0;
  };
  for (Probe* p : {&outer, &a, &b}) ASSERT_EQ(register_kprobe(p), 0) << spile_error_text();
  EXPECT_EQ(probed_outer(1), 49);
  EXPECT_EQ(a.nmissed, 1u);
  EXPECT_EQ(b.nmissed, 1u);
  EXPECT_EQ(a.before, 1);
  unregister_kprobe(&a);
  a.addr = nullptr;
  ASSERT_EQ(register_kprobe(&a), 0) << spile_error_text();
  EXPECT_EQ(a.nmissed, 0u);  // begins anew
}

TEST(KernelBehaviour, OnlyTheDisabledFlagMayBeGiven) {
  Probe p("probed_sum");
  p.flags = KPROBE_FLAG_GONE | KPROBE_FLAG_FTRACE | KPROBE_FLAG_DISABLED;
  ASSERT_EQ(register_kprobe(&p), 0) << spile_error_text();
  EXPECT_EQ(p.flags & (KPROBE_FLAG_GONE | KPROBE_FLAG_FTRACE), 0u);
  EXPECT_NE(p.flags & KPROBE_FLAG_DISABLED, 0u);
}

TEST(KernelBehaviour, AnArrayIsRegisteredAsAWhole) {
  Probe a("probed_sum"), b("probed_branches"), c("probed_sum");
  kprobe* all[] = {&a, &b, &c};
  ASSERT_EQ(register_kprobes(all, 3), 0) << spile_error_text();
  probed_sum(1, 1);
  probed_branches(7);
  EXPECT_EQ(a.before + b.before + c.before, 3);
  unregister_kprobes(all, 3);
  probed_sum(1, 1);
  EXPECT_EQ(a.before + b.before + c.before, 3);
  a.addr = b.addr = nullptr;
  kprobe* twice[] = {&a, &b, &a};
  EXPECT_EQ(register_kprobes(twice, 3), -EINVAL);
  EXPECT_EQ(a.internal, nullptr);
  EXPECT_EQ(register_kprobes(all, 0), -EINVAL);
}

// ---- fprobe ----

struct Many : fprobe {
  long entries = 0, exits = 0;
  int answer = 0;
  Many() : fprobe{} {
    entry_handler = [](fprobe* f, unsigned long, unsigned long, pt_regs*, void*) {
      ++static_cast<Many*>(f)->entries;
      return static_cast<Many*>(f)->answer;
    };
    exit_handler = [](fprobe* f, unsigned long, unsigned long, pt_regs*, void*) { ++static_cast<Many*>(f)->exits; };
  }
  ~Many() {
    if (internal != nullptr) unregister_fprobe(this);
  }
};
const char* g_inner[] = {"probed_inner"};

TEST(KernelBehaviour, AnEntryHandlerThatIsNotZeroCancelsTheExit) {
  Many m;
  m.answer = 1;
  ASSERT_EQ(register_fprobe_syms(&m, g_inner, 1), 0) << spile_error_text();
  for (int i = 0; i < 40; ++i) probed_inner(1);
  EXPECT_EQ(m.entries, 40);
  EXPECT_EQ(m.exits, 0);
  EXPECT_EQ(m.nmissed, 0u);
  m.answer = 0;
  probed_inner(1);
  EXPECT_EQ(m.exits, 1);
}

TEST(KernelBehaviour, AKprobeAndTwoFprobesShareAFunction) {
  Probe p("probed_inner");
  Many a, b;
  ASSERT_EQ(register_fprobe_syms(&a, g_inner, 1), 0) << spile_error_text();
  ASSERT_EQ(register_kprobe(&p), 0) << spile_error_text();
  ASSERT_EQ(register_fprobe_syms(&b, g_inner, 1), 0) << spile_error_text();
  EXPECT_EQ(probed_inner(2), 35);
  EXPECT_EQ(p.before, 1);
  EXPECT_EQ(a.entries + b.entries, 2);
  EXPECT_EQ(a.exits + b.exits, 2);
  ASSERT_EQ(unregister_fprobe(&a), 0);
  EXPECT_EQ(probed_inner(2), 35);
  EXPECT_EQ(p.before, 2);
  EXPECT_EQ(b.exits, 2);
  EXPECT_EQ(a.exits, 1);
}

/// In the kernel the flag says that the handlers may meet running kprobes; here no handler meets another, with it or not.
TEST(KernelBehaviour, AnFprobeInsideAKprobeIsMissedWithTheSharedFlagAndWithout) {
  for (const unsigned flags : {0u, static_cast<unsigned>(FPROBE_FL_KPROBE_SHARED)}) {
    Probe p("probed_outer");
    p.pre_handler = [](kprobe*, pt_regs*) {
      EXPECT_EQ(probed_inner(2), 35);
      return 0;
    };
    Many m;
    m.flags = flags;
    ASSERT_EQ(register_kprobe(&p), 0) << spile_error_text();
    ASSERT_EQ(register_fprobe_syms(&m, g_inner, 1), 0) << spile_error_text();
    EXPECT_FALSE(fprobe_disabled(&m));
    EXPECT_EQ(probed_outer(1), 49);
    EXPECT_EQ(m.entries, 1);
    EXPECT_EQ(m.exits, 1);
    EXPECT_GT(m.nmissed, 0u);
  }
}

TEST(KernelBehaviour, SwitchingAnFprobeIsSoft) {
  Many m;
  ASSERT_EQ(register_fprobe_syms(&m, g_inner, 1), 0) << spile_error_text();
  const std::string patched(reinterpret_cast<const char*>(&probed_inner), 8);
  disable_fprobe(&m);
  EXPECT_EQ(std::memcmp(reinterpret_cast<const void*>(&probed_inner), patched.data(), 8), 0);
  probed_inner(1);
  EXPECT_EQ(m.entries, 0);
  enable_fprobe(&m);
  probed_inner(1);
  EXPECT_EQ(m.entries, 1);
  EXPECT_EQ(m.exits, 1);
}

TEST(KernelBehaviour, UnregisteringFromInsideAHandlerIsBusy) {
  static int from_fprobe = 0, from_kretprobe = 0;
  Many m;
  m.entry_handler = [](fprobe* f, unsigned long, unsigned long, pt_regs*, void*) {
    from_fprobe = unregister_fprobe(f);
    return 0;
  };
  ASSERT_EQ(register_fprobe_syms(&m, g_inner, 1), 0) << spile_error_text();
  probed_inner(1);
  EXPECT_EQ(from_fprobe, -EBUSY);
  ASSERT_EQ(unregister_fprobe(&m), 0);
  kretprobe r = {};
  r.kp.symbol_name = "probed_inner";
  r.handler = [](kretprobe_instance* ri, pt_regs*) {
    from_kretprobe = spile_unregister_kretprobe(get_kretprobe(ri));
    return 0;
  };
  ASSERT_EQ(register_kretprobe(&r), 0) << spile_error_text();
  probed_inner(1);
  EXPECT_EQ(from_kretprobe, -EBUSY);
  EXPECT_EQ(spile_unregister_kretprobe(&r), 0);
}

/// "address  k|r|f  symbol+0xoff module [STATE]", by address.
TEST(KernelBehaviour, TheListHasOneLineForEachProbe) {
  Probe a("probed_sum"), b("probed_sum"), off("probed_branches");
  off.flags = KPROBE_FLAG_DISABLED;
  for (Probe* p : {&a, &b, &off}) ASSERT_EQ(register_kprobe(p), 0) << spile_error_text();
  std::vector<char> text(spile_list_probes(nullptr, 0) + 1);
  spile_list_probes(text.data(), text.size());
  const std::string list(text.data());
  size_t lines = 0, sums = 0;
  for (size_t at = 0; at < list.size(); at = list.find('\n', at) + 1) {
    ++lines;
    const std::string line = list.substr(at, list.find('\n', at) - at);
    sums += line.find("  k  probed_sum+0x") == 16 && line.find("[OPTIMIZED]") != std::string::npos;
    if (line.find("probed_branches") != std::string::npos) {
      EXPECT_NE(line.find("[DISABLED]"), std::string::npos) << line;
    }
  }
  EXPECT_EQ(lines, 3u);
  EXPECT_EQ(sums, 2u);
}

}  // namespace
