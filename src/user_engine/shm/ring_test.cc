#include <gtest/gtest.h>
#include <sched.h>
#include <setjmp.h>
#include <sys/time.h>

#include <atomic>
#include <csignal>
#include <map>
#include <random>
#include <thread>

#include "user_engine/rt/ring_ops.h"
#include "user_engine/shm/region_for_test.h"
#include "user_engine/shm/ring_reader.h"

namespace spile::shm {
namespace {

using std::chrono::milliseconds;

/// A record of the tests: who, which, and as many words as fit.
struct Word {
  uint64_t thread, number;
};

OwnerProbe always(OwnerState state) {
  return [state](uint32_t) { return state; };
}

class Rings : public testing::Test {
 protected:
  explicit Rings(uint32_t bytes = 65536) : r_({ring_spec(bytes)}) {}

  bool send(uint64_t thread, uint64_t number, uint64_t extra_words = 0) {
    uint8_t* body = reserve(sizeof(Word) + 8 * extra_words);
    if (body == nullptr) return false;
    auto* words = reinterpret_cast<uint64_t*>(body);
    words[0] = thread;
    for (uint64_t i = 0; i <= extra_words; ++i) words[1 + i] = number;
    rt::ring_submit(r_.consts(), body);
    return true;
  }
  uint8_t* reserve(uint64_t bytes) { return rt::ring_reserve(r_.consts(), r_.map(), bytes); }

  void open(ReaderOptions options = {}, OwnerState owner = OwnerState::kUnknown) {
    reader_ = RingReader(options);
    ASSERT_TRUE(reader_.add(r_.region(), 0, always(owner)));
  }
  std::vector<Word> read(bool last = false) {
    std::vector<Word> words;
    const RecordVisitor visit = [&](uint64_t tsc, std::span<const uint8_t> body) {
      EXPECT_GE(tsc, last_tsc_);
      last_tsc_ = tsc;
      ASSERT_GE(body.size(), sizeof(Word));
      Word word;
      std::memcpy(&word, body.data(), sizeof word);
      for (size_t at = 8; at < body.size(); at += 8) {
        EXPECT_EQ(std::memcmp(body.data() + at, &word.number, 8), 0) << "torn record";
      }
      words.push_back(word);
    };
    last ? reader_.finish(visit) : reader_.poll(visit);
    return words;
  }
  std::vector<uint64_t> numbers(bool last = false) {
    std::vector<uint64_t> result;
    for (const Word& word : read(last)) result.push_back(word.number);
    return result;
  }

  TestRegion r_;
  RingReader reader_;
  uint64_t last_tsc_ = 0;
};

using Numbers = std::vector<uint64_t>;

void pin_to(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof set, &set);
}

class Pin {
 public:
  explicit Pin(int cpu) {
    sched_getaffinity(0, sizeof before_, &before_);
    pin_to(cpu);
  }
  ~Pin() { sched_setaffinity(0, sizeof before_, &before_); }

 private:
  cpu_set_t before_;
};

TEST_F(Rings, RecordsComeOutAsTheyWentIn) {
  open();
  EXPECT_TRUE(numbers().empty());
  for (uint64_t i = 0; i < 5; ++i) EXPECT_TRUE(send(1, i, i));
  EXPECT_EQ(numbers(), (Numbers{0, 1, 2, 3, 4}));
  EXPECT_TRUE(numbers().empty());
}

TEST_F(Rings, ManyLapsWithRecordsOfEveryLength) {
  const Pin pin(0);
  open();
  uint64_t sent = 0, got = 0;
  std::mt19937 random(3);
  while (sent < 20'000) {
    for (int i = 0; i < 20; ++i) ASSERT_TRUE(send(1, sent++, random() % 60));
    for (const uint64_t number : numbers()) ASSERT_EQ(number, got++);
  }
  EXPECT_EQ(got, sent);
}

TEST_F(Rings, AFullRingRefusesAndTakesAgainOnceRead) {
  const Pin pin(0);
  open();
  for (int round = 0; round < 3; ++round) {
    uint64_t sent = 0;
    while (send(1, sent, 100)) ++sent;
    EXPECT_GE(sent, 2 * 65536 / (100 * 8 + 32) - 2) << "the second ring is used too";
    const size_t got = numbers().size();
    EXPECT_EQ(got, sent);
  }
}

TEST_F(Rings, RecordsThatAreTooLongAreRefused) {
  EXPECT_EQ(reserve(abi::kMaxRecordBytes + 1), nullptr);
  EXPECT_EQ(reserve(~uint64_t{0}), nullptr);
  EXPECT_NE(reserve(abi::kMaxRecordBytes), nullptr);
  const uint8_t byte = 0;
  EXPECT_LT(rt::ring_output(r_.consts(), r_.map(), &byte, abi::kMaxRecordBytes + 1), 0);
}

TEST_F(Rings, DiscardedRecordsAreSkipped) {
  open();
  send(1, 1);
  rt::ring_discard(r_.consts(), reserve(64));
  send(1, 2);
  EXPECT_EQ(numbers(), (Numbers{1, 2}));
  EXPECT_EQ(reader_.stats().abandoned, 0u);
}

TEST_F(Rings, SubmitLeavesForeignMemoryAlone) {
  uint64_t words[4] = {1, 1, 1, 1};
  rt::ring_submit(r_.consts(), reinterpret_cast<uint8_t*>(words + 2));
  rt::ring_submit(r_.consts(), nullptr);
  EXPECT_EQ(words[0], 1u);
}

TEST_F(Rings, ABusyRecordHoldsBackWhatIsLaterOnItsRing) {
  const Pin pin(0);
  open({.order_wait = milliseconds(0)}, OwnerState::kMayFinish);
  send(1, 1);
  uint8_t* busy = reserve(sizeof(Word));
  send(1, 3);
  EXPECT_EQ(numbers(), (Numbers{1}));
  std::memcpy(busy, std::array<uint64_t, 2>{1, 2}.data(), sizeof(Word));
  rt::ring_submit(r_.consts(), busy);
  EXPECT_EQ(numbers(), (Numbers{2, 3}));
}

TEST_F(Rings, ARecordOfADeadOwnerIsSkippedAndCounted) {
  const Pin pin(0);
  open({.owner_check_after = milliseconds(0)}, OwnerState::kGone);
  send(1, 1);
  reserve(1000);
  send(1, 3);
  EXPECT_EQ(numbers(), (Numbers{1, 3}));
  EXPECT_EQ(reader_.stats().abandoned, 1u);
}

TEST_F(Rings, ARecordThatItsLivingOwnerForgotIsSkippedInTime) {
  const Pin pin(0);
  open({.owner_check_after = milliseconds(0), .abandon_after = milliseconds(30)});
  uint8_t* forgotten = reserve(sizeof(Word));
  send(1, 3);
  EXPECT_TRUE(numbers().empty());
  std::this_thread::sleep_for(milliseconds(40));
  EXPECT_EQ(numbers(), (Numbers{3}));
  EXPECT_EQ(reader_.stats().abandoned, 1u);
  // Too late: the word is free for the next lap and must stay so.
  const uint64_t* word = reinterpret_cast<const uint64_t*>(forgotten) - 2;
  const uint64_t free = *word;
  rt::ring_submit(r_.consts(), forgotten);
  EXPECT_EQ(*word, free);
  for (uint64_t i = 0; i < 5000; ++i) {
    ASSERT_TRUE(send(1, i));
    ASSERT_EQ(numbers(), (Numbers{i}));
  }
}

TEST_F(Rings, FinishTakesWhatIsBehindAnUnfinishedRecord) {
  const Pin pin(0);
  open({}, OwnerState::kMayFinish);
  reserve(100);
  send(1, 3);
  EXPECT_TRUE(numbers().empty());
  EXPECT_EQ(numbers(true), (Numbers{3}));
  EXPECT_EQ(reader_.stats().abandoned, 1u);
}

TEST_F(Rings, RemovedRegionsHandOutWhatTheyHeld) {
  open();
  send(1, 1);
  reader_.remove(r_.region());
  EXPECT_EQ(numbers(), (Numbers{1}));
}

TEST_F(Rings, CpusAreMergedByTime) {
  if (std::thread::hardware_concurrency() < 2) GTEST_SKIP() << "needs two CPUs";
  cpu_set_t before;
  sched_getaffinity(0, sizeof before, &before);
  open();
  for (uint64_t i = 0; i < 100; ++i) {
    pin_to(static_cast<int>(i % 2));
    send(1, i);
  }
  sched_setaffinity(0, sizeof before, &before);
  Numbers expected(100);
  for (uint64_t i = 0; i < 100; ++i) expected[i] = i;
  EXPECT_EQ(numbers(), expected);
}

TEST_F(Rings, ABusyRecordHoldsBackLaterOnesOfOtherRingsForAWhile) {
  if (std::thread::hardware_concurrency() < 2) GTEST_SKIP() << "needs two CPUs";
  cpu_set_t before;
  sched_getaffinity(0, sizeof before, &before);
  open({.order_wait = milliseconds(50)}, OwnerState::kMayFinish);
  pin_to(0);
  send(1, 1);
  uint8_t* busy = reserve(sizeof(Word));
  pin_to(1);
  send(1, 3);
  EXPECT_EQ(numbers(), (Numbers{1}));
  std::memcpy(busy, std::array<uint64_t, 2>{1, 2}.data(), sizeof(Word));
  rt::ring_submit(r_.consts(), busy);
  EXPECT_EQ(numbers(), (Numbers{2, 3}));
  pin_to(0);
  reserve(sizeof(Word));
  pin_to(1);
  send(1, 5);
  EXPECT_TRUE(numbers().empty());
  std::this_thread::sleep_for(milliseconds(60));
  EXPECT_EQ(numbers(), (Numbers{5}));
  sched_setaffinity(0, sizeof before, &before);
}

TEST_F(Rings, AnybodyMovesTheProducerPositionOn) {
  const Pin pin(0);
  open();
  // A producer that died between claiming and moving on: only the header word is changed.
  const rt::Ring ring = rt::ring_of(r_.map(), rt::current_cpu(r_.consts()));
  uint64_t* word = ring.word_at(abi::kRingFirstPosition);
  *word = abi::record_header(abi::RecordState::kBusy, 32, 1);
  EXPECT_TRUE(send(1, 2));
  EXPECT_EQ(ring.head->producer_pos, abi::kRingFirstPosition + 64);
  EXPECT_EQ(numbers(true), (Numbers{2}));
}

TEST_F(Rings, TheReaderMovesAStuckProducerPositionOnBeforeItFreesTheRecord) {
  const Pin pin(0);
  open({.owner_check_after = milliseconds(0)}, OwnerState::kGone);
  const rt::Ring ring = rt::ring_of(r_.map(), rt::current_cpu(r_.consts()));
  *ring.word_at(abi::kRingFirstPosition) = abi::record_header(abi::RecordState::kBusy, 32, 1);
  EXPECT_TRUE(numbers().empty());
  EXPECT_EQ(ring.head->producer_pos, abi::kRingFirstPosition + 32);
  EXPECT_TRUE(send(1, 2));
  EXPECT_EQ(numbers(), (Numbers{2}));
}

/// Scribbled words: positions are multiples of eight, and no record goes over the ring's end.
TEST_F(Rings, APositionThatMakesNoSenseIsNotClaimedAndNotMovedOn) {
  const rt::Ring ring = rt::ring_of(r_.map(), 0);
  uint64_t* const producer = &ring.head->producer_pos;
  uint64_t position = 0;
  const uint64_t odd = abi::kRingFirstPosition + 4;
  *producer = odd;
  std::memcpy(reinterpret_cast<uint8_t*>(ring.word_at(odd)), &odd, sizeof odd);
  EXPECT_EQ(rt::claim_once(ring, 32, 1, &position), rt::Claim::kFull);
  const uint64_t late = abi::kRingFirstPosition + ring.size - 64;
  *producer = late;
  const uint64_t room = ring.size - (late & (ring.size - 1));
  *ring.word_at(late) = abi::record_header(abi::RecordState::kBusy, room + 8, 1);
  ring.head->consumer_pos = late;
  EXPECT_EQ(rt::claim_once(ring, 32, 1, &position), rt::Claim::kAgain);
  EXPECT_EQ(*producer, late);
}

TEST_F(Rings, AProducerThatSleptForALapCannotClaim) {
  const rt::Ring ring = rt::ring_of(r_.map(), 0);
  const uint64_t at = abi::kRingFirstPosition;
  uint64_t* word = ring.word_at(at);
  *word =
      at + ring.size;  // Free, of the next lap; the stale producer position still says this lap.
  uint64_t position = 0;
  EXPECT_EQ(rt::claim_once(ring, 32, 1, &position), rt::Claim::kAgain);
  EXPECT_EQ(*word, at + ring.size);
  EXPECT_EQ(ring.head->producer_pos, at);
}

// ---- threads and signals
// ------------------------------------------------------------------------------------------

TEST_F(Rings, EightThreadsLoseNothingUncounted) {
  open({}, OwnerState::kMayFinish);
  constexpr uint64_t kThreads = 8, kRecords = 40'000;
  std::atomic<uint64_t> lost = 0, running = kThreads;
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < kRecords; ++i) lost += send(t, i, i % 13) ? 0 : 1;
      --running;
    });
  }
  std::map<uint64_t, uint64_t> next;
  uint64_t got = 0;
  const auto take = [&](bool last) {
    for (const Word& word : read(last)) {
      EXPECT_GE(word.number, next[word.thread]) << "a thread's records out of order";
      next[word.thread] = word.number + 1;
      ++got;
    }
  };
  while (running != 0) take(false);
  for (std::thread& thread : threads) thread.join();
  take(true);
  EXPECT_EQ(got + lost, kThreads * kRecords);
  EXPECT_EQ(reader_.stats().abandoned, 0u);
  EXPECT_EQ(reader_.stats().corrupt_rings, 0u);
}

std::function<void()> on_alarm;
std::atomic<uint64_t> alarms;
void alarm_handler(int) {
  ++alarms;
  on_alarm();
}

class Storm {
 public:
  explicit Storm(std::function<void()> handler) {
    on_alarm = std::move(handler);
    alarms = 0;
    struct sigaction action = {};
    action.sa_handler = alarm_handler;
    action.sa_flags = SA_NODEFER;
    sigaction(SIGALRM, &action, nullptr);
    const itimerval often = {{0, 40}, {0, 40}};
    setitimer(ITIMER_REAL, &often, nullptr);
  }
  ~Storm() {
    const itimerval never = {};
    setitimer(ITIMER_REAL, &never, nullptr);
    signal(SIGALRM, SIG_IGN);
  }
};

TEST_F(Rings, HandlersMayReserveInsideAReservation) {
  open({}, OwnerState::kMayFinish);
  std::atomic<uint64_t> sent = 0, lost = 0;
  const auto one = [&](uint64_t who) {
    uint8_t* body = reserve(32);
    if (body == nullptr) {
      ++lost;
      return;
    }
    auto* words = reinterpret_cast<uint64_t*>(body);
    for (int i = 0; i < 4; ++i) words[i] = i == 0 ? who : sent.load();
    const uint64_t number = words[1];
    for (int i = 2; i < 4; ++i) words[i] = number;
    rt::ring_submit(r_.consts(), body);
    ++sent;
  };
  uint64_t got = 0;
  {
    const Storm storm([&] { one(2); });
    for (uint64_t i = 0; i < 4'000'000 && alarms < 5'000; ++i) {
      one(1);
      if (i % 256 == 0) got += read().size();
    }
  }
  got += read(true).size();
  EXPECT_EQ(got, sent);
  EXPECT_GT(alarms, 100u);
  EXPECT_EQ(reader_.stats().abandoned, 0u);
}

sigjmp_buf way_out;

TEST_F(Rings, AHandlerThatJumpsOutOfAHitLosesOneRecordAndBlocksNothing) {
  const Pin pin(0);
  open({.owner_check_after = milliseconds(0), .abandon_after = milliseconds(0)});
  uint64_t got = 0;
  volatile uint64_t sent = 0;
  {
    const Storm storm([] { siglongjmp(way_out, 1); });
    sigsetjmp(way_out, 1);
    while (alarms < 300) {
      if (send(1, sent, 3)) sent = sent + 1;
    }
  }
  // The jumps may have left the handler's storm half set up: it is off now.
  got += read(true).size();
  while (send(1, 7)) ++got;
  EXPECT_GE(got, 1000u);
  EXPECT_EQ(reader_.stats().corrupt_rings, 0u);
}

// ---- hostile memory
// -----------------------------------------------------------------------------------------------

TEST_F(Rings, ScribbledMemoryNeitherCrashesNorHangs) {
  std::atomic<bool> stop = false;
  std::thread scribbler([&] {
    std::mt19937_64 random(9);
    auto* words = reinterpret_cast<uint64_t*>(r_.memory().data());
    const uint64_t first = r_.region().layout().rings_offset / 8,
                   count = r_.memory().size() / 8 - first;
    while (!stop) {
      uint64_t word = random();
      if (word % 4 == 1) word = abi::kRingFirstPosition + random() % 100'000;
      if (word % 4 == 2) word = random() % 5 | (random() % 3000) << 3;
      // The heads more often than the data.
      const uint64_t at = random() % 4 == 0 ? random() % 24 : random() % count;
      __atomic_store_n(words + first + at, word, __ATOMIC_RELAXED);
    }
  });
  const auto end = std::chrono::steady_clock::now() + milliseconds(1000);
  const auto* begin = r_.memory().data();
  while (std::chrono::steady_clock::now() < end) {
    RingReader reader({.owner_check_after = milliseconds(0), .abandon_after = milliseconds(0)});
    ASSERT_TRUE(reader.add(r_.region(), 0, always(OwnerState::kUnknown)));
    for (int i = 0; i < 50; ++i) {
      uint8_t* body = reserve(64);
      if (body != nullptr) {
        ASSERT_TRUE(body >= begin && body + 64 <= begin + r_.memory().size());
        std::memset(body, 1, 64);
        rt::ring_submit(r_.consts(), body);
      }
      reader.poll([](uint64_t, std::span<const uint8_t> record) {
        ASSERT_LE(record.size(), abi::kMaxRecordBytes);
      });
    }
  }
  stop = true;
  scribbler.join();
}

TEST_F(Rings, ARingThatMakesNoSenseIsGivenUpAndCounted) {
  const Pin pin(0);
  open();
  send(1, 1);
  const rt::Ring ring = rt::ring_of(r_.map(), rt::current_cpu(r_.consts()));
  for (const uint64_t bad :
       {abi::record_header(abi::RecordState::kCommitted, 1 << 20, 1),
        abi::record_header(abi::RecordState::kCommitted, 8, 1),
        abi::record_header(abi::RecordState::kPadding, 64, 1), uint64_t{7} | 64}) {
    *ring.word_at(abi::kRingFirstPosition) = bad;
    RingReader reader;
    ASSERT_TRUE(reader.add(r_.region(), 0, always(OwnerState::kUnknown)));
    EXPECT_EQ(reader.finish([](uint64_t, std::span<const uint8_t>) {}), 0u);
    EXPECT_EQ(reader.stats().corrupt_rings, 1u);
  }
}

TEST_F(Rings, ATimeInTheFutureDoesNotStayPending) {
  open();
  uint8_t* body = reserve(sizeof(Word));
  std::memset(body, 0, sizeof(Word));
  reinterpret_cast<uint64_t*>(body)[-1] = ~uint64_t{0};
  rt::ring_submit(r_.consts(), body);
  read();
  last_tsc_ = 0;
  read();
  EXPECT_EQ(reader_.stats().records, 1u);
}

TEST(Ring, ThroughputIsPrinted) {
  TestRegion r({ring_spec(1 << 20)});
  RingReader reader;
  ASSERT_TRUE(reader.add(r.region(), 0, always(OwnerState::kMayFinish)));
  constexpr uint64_t kRecords = 200'000;
  const auto start = std::chrono::steady_clock::now();
  uint64_t got = 0, sent = 0;
  while (sent < kRecords) {
    for (int i = 0; i < 2000; ++i) {
      uint8_t* body = rt::ring_reserve(r.consts(), r.map(), 24);
      if (body == nullptr) continue;
      rt::ring_submit(r.consts(), body);
      ++sent;
    }
    got += reader.poll([](uint64_t, std::span<const uint8_t>) {});
  }
  got += reader.finish([](uint64_t, std::span<const uint8_t>) {});
  const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(got, sent);
  std::printf("ring: %.1f ns a record, written and read by one thread\n",
              took.count() / static_cast<double>(sent));
}

}  // namespace
}  // namespace spile::shm
