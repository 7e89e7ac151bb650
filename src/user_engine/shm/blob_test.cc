// The blob as it runs in a target: mapped R-X and called through its offsets.
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <csignal>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <thread>

#include "abi/hit_frame.h"
#include "user_engine/rt/cpu.h"
#include "user_engine/shm/clock.h"
#include "user_engine/shm/code_for_test.h"
#include "user_engine/shm/maps.h"
#include "user_engine/shm/ring_reader.h"

namespace spile::shm {
namespace {

using bpf::Helper;
using bundle::MapKind;

constexpr Helper kAllHelpers[] = {
    Helper::kMapLookupElem,    Helper::kMapUpdateElem,     Helper::kMapDeleteElem,
    Helper::kKtimeGetNs,       Helper::kGetSmpProcessorId, Helper::kGetCurrentPidTgid,
    Helper::kGetCurrentUidGid, Helper::kGetCurrentComm,    Helper::kProbeReadUser,
    Helper::kProbeReadKernel,  Helper::kProbeReadUserStr,  Helper::kProbeReadKernelStr,
    Helper::kKtimeGetBootNs,   Helper::kRingbufOutput,     Helper::kRingbufReserve,
    Helper::kRingbufSubmit,    Helper::kRingbufDiscard,    Helper::kGetAttachCookie,
    Helper::kGetStackid,       Helper::kOverrideReturn,    Helper::kMapLookupPercpuElem,
    Helper::kMapNextKey};

int64_t as_signed(uint64_t value) {
  return static_cast<int64_t>(value);
}

class Blob : public testing::Test {
 protected:
  TestRegion r_{{map_spec(MapKind::kPerCpuHash, 8, 8, 4096), ring_spec(65536),
                 map_spec(MapKind::kArray, 4, 8, 4), map_spec(MapKind::kHash, 64, 128, 64),
                 map_spec(MapKind::kStacks, 4, 40, 64)}};
  TestCode code_{r_};
};

TEST_F(Blob, HasEveryHelper) {
  EXPECT_LE(rt::blob_bytes().size(), abi::kMaxBlobBytes);
  for (const Helper helper : kAllHelpers) {
    const auto number = static_cast<int32_t>(helper);
    ASSERT_TRUE(rt::helper_offset(number)) << number;
    EXPECT_LT(*rt::helper_offset(number), rt::blob_bytes().size());
    EXPECT_LE(*rt::helper_stack_bytes(number), rt::max_helper_stack_bytes());
  }
  EXPECT_FALSE(rt::helper_offset(6)) << "trace_printk";
  EXPECT_LE(rt::max_helper_stack_bytes(), rt::kMaxHelperStackBytes);
}

TEST_F(Blob, MapsAreTheTracersMaps) {
  uint64_t key = 42, value = 5;
  EXPECT_EQ(code_.call(Helper::kMapLookupElem, code_.map(), &key), 0u);
  EXPECT_EQ(code_.call(Helper::kMapUpdateElem, code_.map(), &key, &value, 0), 0u);
  auto* found = reinterpret_cast<uint64_t*>(code_.call(Helper::kMapLookupElem, code_.map(), &key));
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(*found, 5u);
  EXPECT_EQ(snapshot(r_.region(), 0)->size(), 1u);
  EXPECT_EQ(code_.call(Helper::kMapDeleteElem, code_.map(), &key), 0u);
  EXPECT_EQ(as_signed(code_.call(Helper::kMapDeleteElem, code_.map(), &key)), -ENOENT);
  const uint32_t index = 2;
  EXPECT_NE(code_.call(Helper::kMapLookupElem, code_.map(2), &index), 0u);
}

TEST_F(Blob, RecordsReachTheReader) {
  RingReader reader;
  ASSERT_TRUE(reader.add(r_.region(), 1, {}));
  auto* body =
      reinterpret_cast<uint64_t*>(code_.call(Helper::kRingbufReserve, code_.map(1), 16, 0));
  ASSERT_NE(body, nullptr);
  body[0] = 11;
  body[1] = 22;
  code_.call(Helper::kRingbufSubmit, body, 0);
  const uint64_t third = 33;
  EXPECT_EQ(code_.call(Helper::kRingbufOutput, code_.map(1), &third, 8, 0), 0u);
  code_.call(Helper::kRingbufDiscard, code_.call(Helper::kRingbufReserve, code_.map(1), 16, 0));
  std::vector<uint64_t> words;
  reader.finish([&](uint64_t, std::span<const uint8_t> bytes) {
    const auto* from = reinterpret_cast<const uint64_t*>(bytes.data());
    words.insert(words.end(), from, from + bytes.size() / 8);
  });
  EXPECT_EQ(words, (std::vector<uint64_t>{11, 22, 33}));
}

TEST_F(Blob, TellsWhoAndWhere) {
  const uint64_t pid_tgid = code_.call(Helper::kGetCurrentPidTgid);
  EXPECT_EQ(pid_tgid >> 32, static_cast<uint64_t>(getpid()));
  EXPECT_EQ(pid_tgid & 0xffffffff, static_cast<uint64_t>(gettid()));
  EXPECT_EQ(code_.call(Helper::kGetCurrentUidGid), uint64_t{getgid()} << 32 | getuid());
  pthread_setname_np(pthread_self(), "a-name");
  char name[16], three[4];
  std::memset(name, 'x', sizeof name);
  EXPECT_EQ(code_.call(Helper::kGetCurrentComm, name, sizeof name), 0u);
  EXPECT_EQ(std::string(name, 16), std::string("a-name\0\0\0\0\0\0\0\0\0\0", 16));
  EXPECT_EQ(code_.call(Helper::kGetCurrentComm, three, sizeof three), 0u);
  EXPECT_STREQ(three, "a-n");
  EXPECT_EQ(as_signed(code_.call(Helper::kGetCurrentComm, three, 0)), -EINVAL);
  abi::HitFrame frame{};
  frame.cookie = 77;
  EXPECT_EQ(code_.call(Helper::kGetAttachCookie, &frame), 77u);
  unsigned cpu = 0;
  cpu_set_t before, one;
  sched_getaffinity(0, sizeof before, &before);
  CPU_ZERO(&one);
  CPU_SET(0, &one);
  sched_setaffinity(0, sizeof one, &one);
  getcpu(&cpu, nullptr);
  EXPECT_EQ(code_.call(Helper::kGetSmpProcessorId), cpu);
  const TestCode by_lsl(r_, [](abi::RtConsts& c) { c.flags &= ~abi::kHasRdpid; });
  EXPECT_EQ(by_lsl.call(Helper::kGetSmpProcessorId), cpu);
  sched_setaffinity(0, sizeof before, &before);
}

/// Where glibc keeps the thread id, found as the tracer finds it: the offset at which every
/// thread's is.
int32_t find_tid_offset() {
  std::set<int32_t> common;
  for (int round = 0; round < 3; ++round) {
    std::set<int32_t> here;
    std::thread([&] {
      for (int32_t at = 0; at < 2304; at += 4) {
        if (rt::read_fs_u32(at) == static_cast<uint32_t>(gettid())) here.insert(at);
      }
    }).join();
    std::set<int32_t> both;
    for (const int32_t at : here) {
      if (round == 0 || common.contains(at)) both.insert(at);
    }
    common = both;
  }
  return common.empty() ? -1 : *common.begin();
}

TEST_F(Blob, TheThreadIdComesFromLibcsField) {
  const int32_t offset = find_tid_offset();
  if (offset < 0) GTEST_SKIP() << "this libc has no tid field where we looked";
  const TestCode code(r_, [&](abi::RtConsts& c) {
    c.tid_source = abi::TidSource::kFsField;
    c.tid_fs_offset = offset;
    c.allowed_calls &= ~abi::kCallGettid;
  });
  for (int i = 0; i < 200; ++i) {
    std::thread([&] {
      EXPECT_EQ(code.call(Helper::kGetCurrentPidTgid) & 0xffffffff,
                static_cast<uint64_t>(gettid()));
    }).join();
  }
}

TEST_F(Blob, AForkedChildHasItsOwnProcessId) {
  void* page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_EQ(madvise(page, 4096, MADV_WIPEONFORK), 0);
  const TestCode code(r_,
                      [&](abi::RtConsts& c) { c.wipe_on_fork = reinterpret_cast<uint64_t>(page); });
  EXPECT_EQ(code.call(Helper::kGetCurrentPidTgid) >> 32, static_cast<uint64_t>(getpid()));
  EXPECT_EQ(*static_cast<uint64_t*>(page), static_cast<uint64_t>(getpid())) << "cached";
  const pid_t child = fork();
  if (child == 0) {
    const bool own = code.call(Helper::kGetCurrentPidTgid) >> 32 == static_cast<uint64_t>(getpid());
    const uint64_t value = 9;
    uint64_t copy = 0;
    const bool reads = code.call(Helper::kProbeReadUser, &copy, 8, &value) == 0 && copy == 9;
    _exit(own && reads ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  munmap(page, 4096);
}

TEST_F(Blob, TheAttachedProcessIsNamedAsTheTracerNamesIt) {
  const TestCode code(r_, [&](abi::RtConsts& c) {
    c.tgid_inside = static_cast<uint32_t>(getpid());
    c.tgid_outside = 4242;
  });
  const uint64_t tid = gettid() == getpid() ? 4242 : static_cast<uint64_t>(gettid());
  EXPECT_EQ(code.call(Helper::kGetCurrentPidTgid), uint64_t{4242} << 32 | tid);
}

TEST_F(Blob, CallsThatSeccompForbidsAreNotMadeButCounted) {
  const TestCode code(r_, [](abi::RtConsts& c) { c.allowed_calls = 0; });
  char name[16];
  EXPECT_EQ(code.call(Helper::kGetCurrentPidTgid), 0u);
  EXPECT_EQ(code.call(Helper::kGetCurrentUidGid), 0u);
  EXPECT_EQ(as_signed(code.call(Helper::kGetCurrentComm, name, 16)), -EPERM);
  EXPECT_EQ(name[0], 0);
  EXPECT_EQ(code.call(Helper::kKtimeGetNs), 0u);
  auto heap = std::make_unique<uint64_t[]>(1000);
  uint64_t to = 1;
  EXPECT_EQ(as_signed(code.call(Helper::kProbeReadUser, &to, 8, heap.get())), -EFAULT);
  EXPECT_EQ(to, 0u);
  EXPECT_EQ(r_.region().stats_untrusted().refused_calls, 6u);
}

// ---- time
// ---------------------------------------------------------------------------------------------------------

uint64_t now_ns(clockid_t clock) {
  timespec t{};
  clock_gettime(clock, &t);
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(t.tv_nsec);
}

TEST_F(Blob, TimeIsTheKernelsByCallAndByCounter) {
  const TestCode with_tsc(r_, [](abi::RtConsts& c) { c.flags |= abi::kTscIsClock; });
  Clock clock = Clock::start();
  for (int round = 0; round < 3; ++round) {
    for (const TestCode* code : std::initializer_list<const TestCode*>{&code_, &with_tsc}) {
      const uint64_t slack = round == 0 || !tsc_is_clock() ? 5'000'000 : 200'000;
      const uint64_t before = now_ns(CLOCK_MONOTONIC), boot_before = now_ns(CLOCK_BOOTTIME);
      const uint64_t mono = code->call(Helper::kKtimeGetNs),
                     boot = code->call(Helper::kKtimeGetBootNs);
      const uint64_t after = now_ns(CLOCK_MONOTONIC), boot_after = now_ns(CLOCK_BOOTTIME);
      EXPECT_GE(mono + slack, before);
      EXPECT_LE(mono, after + slack);
      EXPECT_GE(boot + slack, boot_before);
      EXPECT_LE(boot, boot_after + slack);
    }
    if (tsc_is_clock()) clock.refresh(r_.region().time_page());
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

TEST_F(Blob, TimeNeverGoesBackWhileTheLineIsRefreshed) {
  if (!tsc_is_clock()) GTEST_SKIP() << "the clocksource is not tsc";
  const TestCode code(r_, [](abi::RtConsts& c) {
    c.flags |= abi::kTscIsClock;
    c.allowed_calls &= ~abi::kCallClockGettime;
  });
  Clock clock = Clock::start();
  clock.refresh(r_.region().time_page());
  std::atomic<bool> stop = false;
  std::thread refresher([&] {
    while (!stop) clock.refresh(r_.region().time_page());
  });
  uint64_t last = 0, zeroes = 0;
  for (int i = 0; i < 300'000; ++i) {
    const uint64_t now = code.call(Helper::kKtimeGetNs);
    if (now == 0) {
      ++zeroes;  // The line changed under all tries; here no call is allowed.
      continue;
    }
    // A line continues the one before to the rounding of one tick.
    ASSERT_GE(now + 2, last);
    last = now;
  }
  stop = true;
  refresher.join();
  EXPECT_LT(zeroes, 3000u);
}

TEST_F(Blob, AnOldLineIsNotTrusted) {
  const TestCode code(r_, [](abi::RtConsts& c) { c.flags |= abi::kTscIsClock; });
  abi::TimePage& page = r_.region().time_page();
  page.line[0] = {.base_tsc = 0, .base_ns = 5, .mult = 0, .valid_until_tsc = ~uint64_t{0}};
  EXPECT_EQ(code.call(Helper::kKtimeGetNs), 5u);
  page.line[0].valid_until_tsc = rt::read_tsc();
  EXPECT_GT(code.call(Helper::kKtimeGetNs), 1000u);
}

// ---- memory reads
// -------------------------------------------------------------------------------------------------

class Reads : public Blob {
 protected:
  static constexpr size_t kPage = 4096;

  Reads() {
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS;
    auto* at =
        static_cast<uint8_t*>(mmap(nullptr, 4 * kPage, PROT_READ | PROT_WRITE, kFlags, -1, 0));
    pages_ = Mapping(at, 4 * kPage);
    std::memset(at, 'a', 4 * kPage);
    mprotect(at + 2 * kPage, kPage, PROT_NONE);
    munmap(at + 3 * kPage, kPage);
  }
  uint8_t* page(size_t i) { return pages_.data() + i * kPage; }
  int64_t read(const void* from, uint64_t bytes) {
    std::memset(to_, 'x', sizeof to_);
    return as_signed(code_.call(Helper::kProbeReadUser, to_, bytes, from));
  }
  int64_t read_text(const void* from, uint64_t bytes) {
    std::memset(to_, 'x', sizeof to_);
    return as_signed(code_.call(Helper::kProbeReadUserStr, to_, bytes, from));
  }
  bool all_zero(uint64_t bytes) {
    for (uint64_t i = 0; i < bytes; ++i) {
      if (to_[i] != 0) return false;
    }
    return to_[bytes] == 'x';
  }

  Mapping pages_;
  uint8_t to_[3 * kPage];
};

TEST_F(Reads, BadPointersFailAndZeroTheBuffer) {
  const uint64_t bad[] = {0,
                          1,
                          8,
                          4095,
                          reinterpret_cast<uint64_t>(page(2)),
                          reinterpret_cast<uint64_t>(page(3)),
                          0x7fff'ffff'f000,
                          0x0000'8000'0000'0000,
                          0x00ff'ffff'ffff'fff8,
                          0x4141'4141'4141'4141,
                          0x8000'0000'0000'0000,
                          0xffff'8880'0000'0000,
                          0xffff'ffff'ff60'0000,
                          0xffff'ffff'ffff'fff8,
                          ~uint64_t{0}};
  for (const uint64_t address : bad) {
    EXPECT_EQ(read(reinterpret_cast<void*>(address), 24), -EFAULT) << std::hex << address;
    EXPECT_TRUE(all_zero(24));
    EXPECT_EQ(read_text(reinterpret_cast<void*>(address), 24), -EFAULT) << std::hex << address;
    EXPECT_TRUE(all_zero(24));
  }
  EXPECT_EQ(read(page(0), uint64_t{1} << 20), -EINVAL);
}

TEST_F(Reads, AReadOverTheEndOfMappedMemoryFailsWhole) {
  EXPECT_EQ(read(page(2) - 8, 8), 0);
  EXPECT_EQ(read(page(2) - 8, 9), -EFAULT);
  EXPECT_TRUE(all_zero(9));
  EXPECT_EQ(read(page(1) - 100, 200), 0) << "over a page boundary";
  EXPECT_EQ(std::string(reinterpret_cast<char*>(to_), 200), std::string(200, 'a'));
  EXPECT_EQ(to_[200], 'x');
}

TEST_F(Reads, TheLastPageOfAFileMappingBeyondItsEndFails) {
  char name[] = "/tmp/spile-read-XXXXXX";
  const Fd file(mkstemp(name));
  unlink(name);
  ASSERT_EQ(ftruncate(file.get(), 100), 0);
  auto* at = static_cast<uint8_t*>(mmap(nullptr, 2 * kPage, PROT_READ, MAP_SHARED, file.get(), 0));
  const Mapping mapping(at, 2 * kPage);
  EXPECT_EQ(read(at, 8), 0);
  EXPECT_EQ(read(at + kPage, 8), -EFAULT) << "a plain load there is SIGBUS";
}

TEST_F(Reads, StringsEndAtTheirNulOrAreCut) {
  std::memcpy(page(0), "hello", 6);
  EXPECT_EQ(read_text(page(0), 64), 6);
  EXPECT_EQ(std::string(reinterpret_cast<char*>(to_)), "hello");
  for (int i = 5; i < 64; ++i) EXPECT_EQ(to_[i], 0) << "the rest is zero";
  EXPECT_EQ(to_[64], 'x');
  EXPECT_EQ(read_text(page(0), 4), 4);
  EXPECT_EQ(std::string(reinterpret_cast<char*>(to_)), "hel");
  EXPECT_EQ(read_text(page(0), 1), 1);
  EXPECT_EQ(to_[0], 0);
  EXPECT_EQ(read_text(page(0), 0), -EINVAL);
  EXPECT_EQ(read_text(page(0) + 5, 64), 1) << "the empty string";
}

TEST_F(Reads, AStringMayEndWithTheLastMappedByte) {
  for (size_t length = 0; length < 70; ++length) {
    uint8_t* text = page(2) - length - 1;
    std::memset(text, 'b', length);
    text[length] = 0;
    EXPECT_EQ(read_text(text, 200), static_cast<int64_t>(length + 1));
    EXPECT_EQ(std::string(reinterpret_cast<char*>(to_)), std::string(length, 'b'));
    text[length] = 'b';
    EXPECT_EQ(read_text(text, 200), -EFAULT) << "no NUL before the end";
    EXPECT_TRUE(all_zero(200));
    EXPECT_EQ(read_text(text, length + 2), static_cast<int64_t>(length + 2)) << "cut in time";
  }
}

TEST_F(Reads, StringsCrossPages) {
  page(1)[50] = 0;
  EXPECT_EQ(read_text(page(1) - 300, 1000), 351);
  EXPECT_EQ(std::string(reinterpret_cast<char*>(to_)), std::string(350, 'a'));
}

TEST_F(Reads, OwnStackAndSafeRangesNeedNoCall) {
  static const char text[] =
      "a constant that lies in a read-only segment of this program, long enough for two steps";
  const TestCode code(r_, [](abi::RtConsts& c) {
    c.allowed_calls = 0;
    c.safe_ranges[0] = {0x1000, 0x2000};
    c.safe_ranges[1] = {reinterpret_cast<uint64_t>(text),
                        reinterpret_cast<uint64_t>(text) + sizeof text};
    c.safe_ranges[2] = {0x7fff'ffff'0000, 0x7fff'ffff'1000};
    c.safe_range_count = 3;
  });
  EXPECT_EQ(code.call(Helper::kProbeReadUserStr, to_, 200, text), sizeof text);
  EXPECT_STREQ(reinterpret_cast<char*>(to_), text);
  EXPECT_EQ(code.call(Helper::kProbeReadUserStr, to_, 20, text), 20u);
  EXPECT_EQ(as_signed(code.call(Helper::kProbeReadUser, to_, 200, text)), -EFAULT)
      << "longer than the range";
  volatile uint64_t local = 3;
  uint64_t copy = 0;
  const uint64_t address = reinterpret_cast<uint64_t>(&local);
  const bool own_page = (address ^ rt::stack_pointer()) < kPage;
  if (own_page) {
    EXPECT_EQ(code.call(Helper::kProbeReadUser, &copy, 8, address), 0u);
    EXPECT_EQ(copy, 3u);
  }
  const auto* shared = r_.region().memory().data();
  EXPECT_EQ(code.call(Helper::kProbeReadKernel, &copy, 8, shared), 0u) << "map values";
  EXPECT_EQ(copy, abi::kDataMagic);
}

TEST_F(Reads, TheMainStackIsReadPlainlyWhenItsBoundsAreKnown) {
  const uint64_t here = rt::stack_pointer();
  auto far = std::make_unique<int>(0);
  const TestCode code(r_, [&](abi::RtConsts& c) {
    c.allowed_calls = 0;
    c.main_stack_begin = here - 65536;
    c.main_stack_end = here + 64;
  });
  uint64_t copy;
  EXPECT_EQ(code.call(Helper::kProbeReadUser, &copy, 8, here + 16), 0u);
  EXPECT_EQ(as_signed(code.call(Helper::kProbeReadUser, &copy, 8, far.get())), -EFAULT);
}

TEST_F(Reads, SurvivesConcurrentUnmapping) {
  std::atomic<bool> stop = false;
  uint8_t* at = page(0);
  std::thread mapper([&] {
    while (!stop) {
      munmap(at, kPage);
      mmap(at, kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
      mprotect(at, kPage, PROT_NONE);
      mprotect(at, kPage, PROT_READ | PROT_WRITE);
    }
  });
  uint64_t good = 0, bad = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(500);
  while (std::chrono::steady_clock::now() < end) {
    for (int i = 0; i < 100; ++i) {
      ++(read(at + 8, 32) == 0 ? good : bad);
      ++(read_text(at + kPage - 4, 32) > 0 ? good : bad);
    }
  }
  stop = true;
  mapper.join();
  EXPECT_GT(good, 0u);
  EXPECT_GT(bad, 0u);
}

// ---- stack
// --------------------------------------------------------------------------------------------------------

/// Calls f(args...) with the stack pointer at `top`.
uint64_t call_on_stack(TestCode::Function f, const uint64_t* args, uint8_t* top) {
  uint64_t result;
  asm volatile(
      "mov %%rsp, %%rbx\n"
      "mov %[top], %%rsp\n"
      "mov 0(%[args]), %%rdi\n"
      "mov 8(%[args]), %%rsi\n"
      "mov 16(%[args]), %%rdx\n"
      "mov 24(%[args]), %%rcx\n"
      "call *%[f]\n"
      "mov %%rbx, %%rsp\n"
      : "=a"(result)
      : [f] "r"(f), [args] "r"(args), [top] "r"(top)
      : "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "memory", "cc");
  return result;
}

TEST_F(Blob, HelpersUseNoMoreStackThanStated) {
  std::vector<uint8_t> stack(65536);
  uint8_t* top = stack.data() + 32768 + 8;  // Misaligned on purpose.
  std::vector<uint8_t> key(64), value(128), to(256);
  abi::HitFrame frame{};
  const uint64_t record = code_.call(Helper::kRingbufReserve, code_.map(1), 16, 0);
  const auto at = [](auto& v) { return reinterpret_cast<uint64_t>(v.data()); };
  for (const Helper helper : kAllHelpers) {
    std::vector<std::array<uint64_t, 4>> calls;
    switch (helper) {
      case Helper::kMapLookupElem:
      case Helper::kMapUpdateElem:
      case Helper::kMapDeleteElem:
      case Helper::kMapLookupPercpuElem:
        for (const uint64_t m : {0, 2, 3}) calls.push_back({code_.map(m), at(key), at(value), 0});
        break;
      case Helper::kMapNextKey:
        for (const uint64_t m : {0, 2, 3}) calls.push_back({code_.map(m), 0, at(key), 0});
        break;
      case Helper::kGetCurrentComm: calls.push_back({at(to), 16, 0, 0}); break;
      case Helper::kRingbufReserve: calls.push_back({code_.map(1), 64, 0, 0}); break;
      case Helper::kRingbufOutput: calls.push_back({code_.map(1), at(to), 100, 0}); break;
      case Helper::kRingbufSubmit:
      case Helper::kRingbufDiscard: calls.push_back({record, 0, 0, 0}); break;
      case Helper::kGetStackid:
        frame.bp = at(key);  // read by the kernel's copy: no stack of ours
        frame.sp = frame.at_entry = at(value);
        calls.push_back({reinterpret_cast<uint64_t>(&frame), code_.map(4), bpf::kUserStack, 0});
        break;
      case Helper::kOverrideReturn:
      case Helper::kGetAttachCookie:
        calls.push_back({reinterpret_cast<uint64_t>(&frame), 0, 0, 0});
        break;
      default:
        for (const uint64_t from : {at(key), uint64_t{8}}) calls.push_back({at(to), 64, from, 0});
    }
    for (const auto& args : calls) {
      std::fill(stack.begin(), stack.end(), 0xa5);
      call_on_stack(code_.helper(helper), args.data(), top);
      const auto touched = std::ranges::find_if(stack, [](uint8_t byte) { return byte != 0xa5; });
      const auto used = top - &*touched;
      EXPECT_LE(used,
                static_cast<std::ptrdiff_t>(*rt::helper_stack_bytes(static_cast<int32_t>(helper))));
      EXPECT_GE(used, 8);
    }
  }
}

// ---- death at every instruction
// -----------------------------------------------------------------------------------

/// A child that does one of everything, for a step-by-step death.
class Victim {
 public:
  template <typename Work>
  explicit Victim(const Work& work) {
    pid_ = fork();
    if (pid_ == 0) {
      ptrace(PTRACE_TRACEME, 0, 0, 0);
      asm volatile("int3");
      work();
      // Not _exit(): the dynamic linker would look it up, in a thousand steps.
      asm volatile("syscall" : : "a"(SYS_exit_group), "D"(0) : "rcx", "r11", "memory");
    }
    int status;
    waitpid(pid_, &status, 0);
  }
  /// False: it ended before.
  bool step(int count) {
    for (int i = 0; i < count; ++i) {
      int status;
      ptrace(PTRACE_SINGLESTEP, pid_, 0, 0);
      waitpid(pid_, &status, 0);
      if (!WIFSTOPPED(status)) return false;
    }
    return true;
  }
  void let_go() {
    ptrace(PTRACE_CONT, pid_, 0, 0);
    waitpid(pid_, nullptr, 0);
  }
  void kill_it() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

 private:
  pid_t pid_;
};

/// The helpers of one hit, looked up beforehand so that a victim steps through little else.
class Deaths : public Blob {
 protected:
  using Function = TestCode::Function;

  Function update_ = code_.helper(Helper::kMapUpdateElem),
           lookup_ = code_.helper(Helper::kMapLookupElem);
  Function delete_ = code_.helper(Helper::kMapDeleteElem),
           reserve_ = code_.helper(Helper::kRingbufReserve);
  Function submit_ = code_.helper(Helper::kRingbufSubmit);
  uint64_t map_ = code_.map(0), ring_ = code_.map(1);
  uint64_t key_ = 1, value_ = 7;
  uint64_t key_at_ = reinterpret_cast<uint64_t>(&key_),
           value_at_ = reinterpret_cast<uint64_t>(&value_);

  void put() { update_(map_, key_at_, value_at_, 0, 0); }
  void remove() { delete_(map_, key_at_, 0, 0, 0); }
  void send() { submit_(reserve_(ring_, 16, 0, 0, 0), 0, 0, 0, 0); }

  /// Life goes on: the same key, another key of the same map, records.
  void expect_all_works(RingReader& reader, uint64_t round) {
    uint64_t other = 1000 + round;
    ASSERT_EQ(code_.call(Helper::kMapUpdateElem, map_, &key_, &value_, 0), 0u) << round;
    ASSERT_NE(code_.call(Helper::kMapLookupElem, map_, &key_), 0u) << round;
    ASSERT_EQ(code_.call(Helper::kMapUpdateElem, map_, &other, &value_, 0), 0u) << round;
    ASSERT_EQ(code_.call(Helper::kMapDeleteElem, map_, &other), 0u) << round;
    ASSERT_EQ(code_.call(Helper::kMapDeleteElem, map_, &key_), 0u) << round;
    ASSERT_EQ(code_.call(Helper::kMapLookupElem, map_, &key_), 0u) << round;
    ASSERT_TRUE(snapshot(r_.region(), 0)->empty()) << round;
    ASSERT_EQ(code_.call(Helper::kRingbufOutput, ring_, &round, 8, 0), 0u) << round;
    ASSERT_GE(reader.poll([](uint64_t, std::span<const uint8_t>) {}), 1u) << round;
  }

  /// Kills a child at each instruction of `work` in turn. Returns how many died.
  template <typename Prepare, typename Work>
  uint64_t kill_everywhere(Prepare prepare, Work work) {
    RingReader reader({.owner_check_after = std::chrono::milliseconds(0)});
    EXPECT_TRUE(reader.add(r_.region(), 1, [](uint32_t) { return OwnerState::kGone; }));
    uint64_t kills = 0;
    for (;; ++kills) {
      prepare();
      Victim victim(work);
      if (!victim.step(static_cast<int>(kills))) break;
      victim.kill_it();
      expect_all_works(reader, kills);
      if (HasFailure() || kills == 4000) break;
    }
    remove();  // What the last child, which was not killed, may have left.
    expect_all_works(reader, kills);
    EXPECT_GT(kills, 20u);
    EXPECT_EQ(reader.stats().corrupt_rings, 0u);
    abandoned_ = reader.stats().abandoned;
    return kills;
  }

  uint64_t abandoned_ = 0;
};

TEST_F(Deaths, InAnInsertLoseOneEntryAtMost) {
  const uint64_t kills = kill_everywhere([] {}, [this] { put(); });
  EXPECT_LT(rt::head_of(r_.map())->bump, kills + 4);
}

TEST_F(Deaths, InAnUpdateOfAnExistingKeyLoseNoEntry) {
  kill_everywhere([this] { put(); }, [this] { put(); });
  EXPECT_LT(rt::head_of(r_.map())->bump, 4u);
}

TEST_F(Deaths, InADeleteLoseOneEntryAtMost) {
  const uint64_t kills = kill_everywhere([this] { put(); }, [this] { remove(); });
  EXPECT_LT(rt::head_of(r_.map())->bump, kills + 4);
}

TEST_F(Deaths, InARecordLoseThatRecord) {
  const uint64_t kills = kill_everywhere([] {}, [this] { send(); });
  EXPECT_GT(abandoned_, 5u);
  EXPECT_LT(abandoned_, kills);
}

TEST_F(Deaths, AThreadFrozenAtAnyInstructionHoldsNobodyUpAndGoesOnWell) {
  RingReader reader({.owner_check_after = std::chrono::milliseconds(0)});
  ASSERT_TRUE(reader.add(r_.region(), 1, [](uint32_t) { return OwnerState::kMayFinish; }));
  Victim victim([this] {
    put();
    remove();
    put();
  });
  uint64_t steps = 0;
  while (victim.step(1)) {
    ASSERT_LT(++steps, 400'000u) << "the frozen thread never gets done";
    uint64_t other = 1000 + steps % 8;
    ASSERT_EQ(code_.call(Helper::kMapUpdateElem, map_, &other, &value_, 0), 0u);
    ASSERT_EQ(code_.call(Helper::kMapDeleteElem, map_, &other), 0u);
    if (steps % 5 == 0) {
      ASSERT_EQ(code_.call(Helper::kMapUpdateElem, map_, &key_, &value_, 0), 0u);
      code_.call(Helper::kMapDeleteElem, map_, &key_);
    }
  }
  EXPECT_GT(steps, 300u);
  expect_all_works(reader, 0);
  EXPECT_LT(rt::head_of(r_.map())->bump, 8u) << "nothing is lost";
}

// ---- a thread asleep at every instruction, while others rearrange what it was looking at
// --------------------------

/// Stops a child at each instruction of an operation in turn, lets `others` work, and lets the
/// child finish.
class Sleepers : public testing::Test {
 protected:
  static constexpr uint32_t kEntries = 8;

  /// Keys of one bucket, and one key of another.
  Sleepers() {
    TestRegion r({map_spec(MapKind::kHash, 8, 8, kEntries)});
    for (uint64_t key = 1; same_.size() < 4 || other_ == 0; ++key) {
      const bool first_bucket =
          rt::bucket_of(r.map(), rt::hash_key(r.map(), raw(key))) == rt::bucket_of(r.map(), 0);
      if (first_bucket)
        same_.push_back(key);
      else if (other_ == 0)
        other_ = key;
    }
  }

  /// Each round has a map of its own. `check` gets the child's result.
  template <typename Prepare, typename Sleeper, typename Others, typename Check>
  void each_instruction(Prepare prepare, Sleeper sleeper, Others others, Check check) {
    int steps = 0;
    for (bool stopped = true; stopped && !HasFailure(); ++steps) {
      ASSERT_LT(steps, 2000);
      region_.emplace(std::vector{map_spec(MapKind::kHash, 8, 8, kEntries),
                                  map_spec(MapKind::kArray, 4, 8, 1)});
      code_.emplace(*region_);
      update_ = code_->helper(Helper::kMapUpdateElem);
      lookup_ = code_->helper(Helper::kMapLookupElem);
      delete_ = code_->helper(Helper::kMapDeleteElem);
      prepare();
      uint64_t* result = rt::value_of(region_->map(1), 0, 0);
      Victim victim([&] { *result = sleeper(); });
      stopped = victim.step(steps);
      others();
      if (stopped) victim.let_go();
      check(*result);
      EXPECT_FALSE(HasFailure()) << "asleep after " << steps << " instructions";
      check_whole();
    }
    EXPECT_GT(steps, 30);
  }

  int64_t put(uint64_t key, uint64_t flags = 0) {
    const uint64_t value = 100 + key;
    const auto key_at = reinterpret_cast<uint64_t>(&key),
               value_at = reinterpret_cast<uint64_t>(&value);
    return as_signed(update_(code_->map(), key_at, value_at, flags, 0));
  }
  int64_t remove(uint64_t key) {
    return as_signed(delete_(code_->map(), reinterpret_cast<uint64_t>(&key), 0, 0, 0));
  }
  uint64_t get(uint64_t key) {
    const uint64_t at = lookup_(code_->map(), reinterpret_cast<uint64_t>(&key), 0, 0, 0);
    return at == 0 ? 0 : *reinterpret_cast<uint64_t*>(at);
  }
  std::multiset<uint64_t> keys() {
    std::multiset<uint64_t> all;
    const auto entries = snapshot(region_->region(), 0);
    EXPECT_TRUE(entries);
    for (const MapEntry& entry : *entries) {
      uint64_t key = 0, value = 0;
      std::memcpy(&key, entry.key.data(), 8);
      std::memcpy(&value, entry.values[0].data(), 8);
      EXPECT_EQ(value, 100 + key) << "another key's value";
      all.insert(key);
    }
    return all;
  }
  /// Uses every entry that was given back: one that is in two places, or in none, shows.
  void check_whole() {
    std::multiset<uint64_t> expected = keys();
    for (uint64_t key = 5000; expected.size() < kEntries; ++key) {
      ASSERT_EQ(put(key), 0);
      expected.insert(key);
    }
    EXPECT_EQ(put(6000), -E2BIG);
    EXPECT_EQ(keys(), expected);
    EXPECT_EQ(entries_accounted_for(region_->map()), rt::head_of(region_->map())->bump);
  }

  std::vector<uint64_t> same_;
  uint64_t other_ = 0;
  std::optional<TestRegion> region_;
  std::optional<TestCode> code_;
  TestCode::Function update_, lookup_, delete_;
};

TEST_F(Sleepers, ALookupFindsAKeyThatWasThereAllTheTime) {
  const uint64_t sought = same_[0], before = same_[1];
  each_instruction(
      [&] {
        put(sought);
        put(before);  // In front of it.
      },
      [&] { return get(sought); },
      [&] {
        remove(before);
        put(other_);  // Takes the same entry into another chain.
      },
      [&](uint64_t result) { EXPECT_EQ(result, 100 + sought); });
}

TEST_F(Sleepers, ALookupFindsAKeyBehindTwoThatAreRecycled) {
  const uint64_t sought = same_[0];
  each_instruction(
      [&] {
        for (int i = 0; i < 3; ++i) put(same_[static_cast<size_t>(i)]);
      },
      [&] { return get(sought); },
      [&] {
        remove(same_[1]);
        remove(same_[2]);
        put(other_);
        put(same_[3]);
      },
      [&](uint64_t result) { EXPECT_EQ(result, 100 + sought); });
}

TEST_F(Sleepers, AnInsertDoesNotDoubleAKeyThatCameInMeanwhile) {
  const uint64_t key = same_[0];
  each_instruction([&] { put(same_[1]); },
                   [&] { return static_cast<uint64_t>(put(key, rt::kFlagNoExist)); },
                   [&] {
                     remove(same_[1]);
                     put(key);  // The bucket's first entry has the same number as before.
                   },
                   [&](uint64_t) { EXPECT_EQ(keys(), (std::multiset<uint64_t>{key})); });
}

TEST_F(Sleepers, AnInsertDoesNotTakeAnEntryThatWasTakenMeanwhile) {
  const uint64_t key = same_[0];
  each_instruction(
      [&] {
        put(same_[1]);
        put(same_[2]);
        remove(same_[2]);
        remove(same_[1]);  // Two free entries.
      },
      [&] { return static_cast<uint64_t>(put(key)); },
      [&] {
        put(same_[1]);
        put(same_[2]);
        remove(same_[1]);  // The first free entry is the same, its follower is taken.
      },
      [&](uint64_t result) {
        EXPECT_EQ(result, 0u);
        EXPECT_EQ(keys(), (std::multiset<uint64_t>{key, same_[2]}));
      });
}

TEST_F(Sleepers, ADeleteTakesOutItsKeyAndNoOther) {
  const uint64_t key = same_[0];
  each_instruction(
      [&] {
        put(key);
        put(same_[1]);
      },
      [&] { return static_cast<uint64_t>(remove(key)); },
      [&] {
        remove(key);
        put(same_[2]);  // In the entry that the key had.
        remove(same_[1]);
        put(same_[3]);
      },
      [&](uint64_t result) {
        EXPECT_TRUE(result == 0 || as_signed(result) == -ENOENT);
        EXPECT_EQ(keys(), (std::multiset<uint64_t>{same_[2], same_[3]}));
      });
}

}  // namespace
}  // namespace spile::shm
