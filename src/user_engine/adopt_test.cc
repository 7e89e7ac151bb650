// What a dead tracer left is taken out by its journal, which lies where the process can write:
// nothing in it is taken on trust. Here the process has scribbled on it.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <functional>

#include "abi/data_region.h"
#include "os/process.h"
#include "user_engine/detach.h"
#include "user_engine/target/stub.h"
#include "user_engine/test_worker.h"

// A function that nobody calls.
extern "C" __attribute__((noinline, used)) long spile_engine_test_cold(long a) {
  return a * 5 + 1;
}

namespace spile::user_engine {
namespace {

using namespace testing;

/// A process with the probe of a tracer that has ended without taking it out.
class Leftovers : public ::testing::Test {
 protected:
  void SetUp() override {
    worker_.run(1);
    before_ = Snapshot::of(worker_.pid());
    const pid_t tracer = fork();
    if (tracer == 0) {
      auto trace = make_engine({})->attach(kept(counting_bundle()), {.pids = {worker_.pid()}});
      _exit(trace ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(waitpid(tracer, &status, 0), tracer);
    ASSERT_EQ(status, 0);
    auto target = target::Target::open(worker_.pid());
    ASSERT_TRUE(target) << target.error().message;
    target_.emplace(std::move(*target));
    for (const os::MapEntry& m : target::our_mappings(*target_->maps())) {
      if (!m.exec) data_ = m.start;
    }
    ASSERT_NE(data_.value, 0u);
    sites_ = data_ + read<abi::DataHeader>(data_).sites_offset;
    ASSERT_EQ(journal().site_count, 1u);
  }

  template <typename T>
  T read(TargetAddr at) {
    auto value = target_->memory().read_value<T>(at);
    EXPECT_TRUE(value) << value.error().message;
    return *value;
  }
  template <typename T>
  void write(TargetAddr at, const T& value) {
    EXPECT_TRUE(
        target_->memory().write(at, {reinterpret_cast<const uint8_t*>(&value), sizeof value}));
  }
  abi::Journal journal() { return read<abi::Journal>(data_ + abi::kJournalOffset); }
  abi::SiteEntry site() { return read<abi::SiteEntry>(sites_); }

  /// Changes the journal by `scribble`, lets `check` see what becomes of taking out, puts it back.
  void with_journal(const std::function<void(abi::Journal&)>& scribble,
                    const std::function<void()>& check) {
    const abi::Journal whole = journal();
    abi::Journal wrong = whole;
    scribble(wrong);
    write(data_ + abi::kJournalOffset, wrong);
    check();
    write(data_ + abi::kJournalOffset, whole);
  }
  void with_site(const std::function<void(abi::SiteEntry&)>& scribble,
                 const std::function<void()>& check) {
    const abi::SiteEntry whole = site();
    abi::SiteEntry wrong = whole;
    scribble(wrong);
    write(sites_, wrong);
    check();
    write(sites_, whole);
  }

  void expect_nothing_is_touched() {
    const Snapshot during = Snapshot::of(worker_.pid());
    auto report = detach_leftovers(worker_.pid());
    EXPECT_FALSE(report) << "something was believed";
    if (!report) {
      EXPECT_EQ(report.error().code, ErrorCode::kCorrupt) << report.error().message;
    }
    expect_same(during, Snapshot::of(worker_.pid()));
    worker_.run(100);
  }
  void expect_all_is_taken_out() {
    auto report = detach_leftovers(worker_.pid());
    EXPECT_TRUE(report) << report.error().message;
    expect_same(before_, Snapshot::of(worker_.pid()));
    worker_.run(100);
  }

  Worker worker_;
  Snapshot before_;
  std::optional<target::Target> target_;
  TargetAddr data_{0}, sites_{0};
};

TEST_F(Leftovers, AreTakenOutWhereTheJournalIsWhole) {
  expect_all_is_taken_out();
}

/// The saved bytes must be the file's: else a process could have any bytes written over its code.
TEST_F(Leftovers, BytesThatAreNotTheFilesAreNotPutBack) {
  with_site([](abi::SiteEntry& s) { s.original[1] ^= 0x10; }, [&] { expect_nothing_is_touched(); });
  expect_all_is_taken_out();
}

/// A jump into our code that no entry explains: to unmap that code would kill the process.
TEST_F(Leftovers, CodeThatAnUnknownJumpLeadsToStays) {
  with_site([](abi::SiteEntry& s) { s.state = abi::SiteState::kEmpty; },
            [&] { expect_nothing_is_touched(); });
  expect_all_is_taken_out();
}

TEST_F(Leftovers, AnEntryOfImpossibleLengthIsNotBelieved) {
  with_site([](abi::SiteEntry& s) { s.length = 255; }, [&] { expect_nothing_is_touched(); });
  expect_all_is_taken_out();
}

/// Somebody's own jump, and an entry that says it was ours.
TEST_F(Leftovers, WhatDoesNotLeadToOurCodeIsNotOurs) {
  using Jump = std::array<uint8_t, 5>;
  const TargetAddr foreign(reinterpret_cast<uint64_t>(&spile_engine_test_cold));
  const auto original = read<Jump>(foreign);
  const Jump jump = {0xe9, 1, 0, 0, 0};
  write(foreign, jump);
  abi::SiteEntry entry = site();
  entry.address = foreign.value;
  entry.length = jump.size();
  std::ranges::copy(original, entry.original);
  std::ranges::copy(jump, entry.patched);
  write(sites_ + sizeof entry, entry);
  abi::Journal two = journal();
  two.site_count = 2;
  write(data_ + abi::kJournalOffset, two);
  auto report = detach_leftovers(worker_.pid());
  EXPECT_TRUE(report) << report.error().message;
  EXPECT_EQ(read<Jump>(foreign), jump) << "it was another's";
  write(foreign, original);
  expect_same(before_, Snapshot::of(worker_.pid()));
  worker_.run(100);
}

TEST_F(Leftovers, ATableLongerThanItsRegionIsNotRead) {
  with_journal([](abi::Journal& j) { j.site_count = 0x7fff'ffff; },
               [&] { expect_nothing_is_touched(); });
  expect_all_is_taken_out();
}

/// The tracer's number may be another process's by now: here this one's.
TEST_F(Leftovers, OfATracerWhoseNumberAnotherProcessHasAreTakenOut) {
  abi::Journal wrong = journal();
  wrong.tracer_pid = static_cast<uint32_t>(getpid());
  wrong.tracer_start_time = os::read_stat(getpid(), getpid())->start_time + 1;
  write(data_ + abi::kJournalOffset, wrong);
  expect_all_is_taken_out();
}

/// A parent that does not ask how its child ended keeps the number, not the tracer.
TEST_F(Leftovers, OfAZombieAreTakenOut) {
  const pid_t zombie = fork();
  if (zombie == 0) _exit(0);
  siginfo_t info{};
  ASSERT_EQ(waitid(P_PID, static_cast<id_t>(zombie), &info, WEXITED | WNOWAIT), 0);
  abi::Journal wrong = journal();
  wrong.tracer_pid = static_cast<uint32_t>(zombie);
  wrong.tracer_start_time = os::read_stat(zombie, zombie)->start_time;
  write(data_ + abi::kJournalOffset, wrong);
  expect_all_is_taken_out();
  EXPECT_EQ(waitpid(zombie, nullptr, 0), zombie);
}

/// Where a stub may be put if it must not be the first choice: behind a library's code.
target::StubPlace second_stub_place(const target::Target& target) {
  auto maps = target.maps();
  EXPECT_TRUE(maps);
  const auto places = target::find_stub_places(*maps, target.memory());
  EXPECT_GE(places.size(), 3u) << "the vdso is the last";
  return places.at(1);
}

/// The code by which a killed tracer had a thread work for it, where the next one puts none over
/// it.
void leave_stub(const target::Target& target) {
  const TargetAddr at = second_stub_place(target).address;
  EXPECT_TRUE(target.memory().write(at, target::make_stub({}, 0)));
  EXPECT_GT(second_stub_place(target).leftover_bytes, 0u);
}

TEST_F(Leftovers, StubsThatNoThreadIsInAreWiped) {
  leave_stub(*target_);
  expect_all_is_taken_out();
  EXPECT_EQ(second_stub_place(*target_).leftover_bytes, 0u);
}

/// Whoever stops the process last wipes them, also a tracer that did not leave them.
TEST(UserEngine, WipesAStubThatAnotherTracerLeft) {
  Worker worker;
  worker.run(1);
  const Snapshot before = Snapshot::of(worker.pid());
  auto target = target::Target::open(worker.pid());
  ASSERT_TRUE(target) << target.error().message;
  {
    auto trace = make_engine({})->attach(kept(counting_bundle()), {.pids = {worker.pid()}});
    ASSERT_TRUE(trace) << trace.error().message;
    leave_stub(*target);
    worker.run(100);
    EXPECT_EQ(total(**trace), 100u);
  }
  EXPECT_EQ(second_stub_place(*target).leftover_bytes, 0u);
  expect_same(before, Snapshot::of(worker.pid()));
  worker.run(100);
}

TEST_F(Leftovers, OfATracerThatLivesAreLeftAlone) {
  with_journal(
      [](abi::Journal& j) {
        j.tracer_pid = static_cast<uint32_t>(getpid());
        j.tracer_start_time = os::read_stat(getpid(), getpid())->start_time;
      },
      [&] {
        auto report = detach_leftovers(worker_.pid());
        ASSERT_FALSE(report);
        EXPECT_EQ(report.error().code, ErrorCode::kBusy) << report.error().message;
      });
  expect_all_is_taken_out();
}

}  // namespace
}  // namespace spile::user_engine
