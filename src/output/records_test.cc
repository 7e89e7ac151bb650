#include "output/records.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

namespace spile::output {
namespace {

using bundle::Action;
using bundle::ActionKind;
using bundle::MapRole;
using bundle::ValueKind;

/// Keeps what it was asked for and holds one map.
class FakeTrace final : public engine::Trace {
 public:
  std::vector<std::string> calls;
  std::vector<engine::MapEntry> entries;

  Result<size_t> poll(std::chrono::milliseconds, const engine::RecordSink&) override { return 0; }
  bool targets_gone() override { return false; }
  Result<std::vector<engine::MapEntry>> read_map(int map) override {
    calls.push_back(fmt::format("read {}", map));
    return entries;
  }
  Result<void> clear_map(int map) override { return note("clear", map); }
  Result<void> zero_map(int map) override { return note("zero", map); }
  Result<std::vector<uint64_t>> read_stack(int, uint64_t id) override {
    if (id != 7) return fail(ErrorCode::kNotFound, "no stack {}", id);
    return std::vector<uint64_t>{0x1000, 0x2004};
  }
  Result<void> run_end() override { return {}; }
  Result<void> detach() override { return {}; }
  Result<engine::Stats> stats() override { return engine::Stats{}; }
  std::vector<engine::SiteReport> sites() override { return {}; }

 private:
  Result<void> note(std::string_view what, int map) {
    calls.push_back(fmt::format("{} {}", what, map));
    return {};
  }
};

std::string slurp(const std::string& path) {
  std::ostringstream out;
  out << std::ifstream(path).rdbuf();
  return out.str();
}

/// A script's bundle with one action of each kind, and output into a file.
class RecordsTest : public testing::Test {
 protected:
  RecordsTest() {
    const bundle::ValueType number{ValueKind::kInt, 8, true, {}, {}},
        text{ValueKind::kString, 8, true, {}, {}};
    bundle_.maps.push_back(
        {.name = "@x", .role = MapRole::kCount, .key_size = 8, .value_size = 8, .key = number});
    bundle_.maps.push_back({.name = "", .role = MapRole::kRing});
    bundle_.actions = {
        {.kind = ActionKind::kPrintf,
         .format = "n=%d\n",
         .fields = {{number, 8}},
         .record_size = 16},
        {.kind = ActionKind::kPrintMap, .map = 0, .record_size = 8},
        {.kind = ActionKind::kPrintValue, .fields = {{text, 8}}, .record_size = 16},
        {.kind = ActionKind::kClearMap, .map = 0, .record_size = 8},
        {.kind = ActionKind::kZeroMap, .map = 0, .record_size = 8},
        {.kind = ActionKind::kExit, .fields = {{number, 8}}, .record_size = 16},
        {.kind = ActionKind::kTime, .format = "now\n", .record_size = 8},
        {.kind = ActionKind::kJoin,
         .format = " ",
         .fields = {{number, 8}, {text, 16}, {text, 24}},
         .record_size = 32},
        {.kind = ActionKind::kExit, .record_size = 8},
    };
    trace_.entries = {{std::vector<uint8_t>(8), {{5, 0, 0, 0, 0, 0, 0, 0}}}};
    path_ = testing::TempDir() + fmt::format("spile-records-{}", getpid());
  }
  ~RecordsTest() override { std::filesystem::remove(path_); }

  static std::vector<uint8_t> record(uint32_t action, uint32_t size, std::string_view fields = "") {
    std::vector<uint8_t> out(size);
    const bundle::RecordHeader header{action, size};
    std::memcpy(out.data(), &header, std::min<size_t>(size, sizeof(header)));
    std::memcpy(out.data() + 8, fields.data(), std::min<size_t>(fields.size(), size - 8));
    return out;
  }

  template <typename Form>
  std::string run(const std::vector<std::vector<uint8_t>>& records) {
    auto sink = Sink::create(path_, Buffering::kFull);
    Form output(std::move(*sink));
    Records handler(bundle_, output);
    for (const auto& r : records) {
      auto done = handler.handle(r, trace_);
      EXPECT_TRUE(done) << done.error().message;
    }
    EXPECT_TRUE(output.flush());
    return slurp(path_);
  }

  ErrorCode fault(const std::vector<uint8_t>& bytes) {
    TextOutput output(Sink(-1, Buffering::kFull));
    const auto done = Records(bundle_, output).handle(bytes, trace_);
    EXPECT_FALSE(done);
    return done ? ErrorCode::kInvalid : done.error().code;
  }

  const std::vector<std::vector<uint8_t>> all_ = {
      record(0, 16, "\7"),
      record(1, 8),
      record(2, 16, "hello"),
      record(6, 8),
      record(7, 32, std::string_view("\2\0\0\0\0\0\0\0ls\0\0\0\0\0\0-l", 18)),
  };
  bundle::Bundle bundle_;
  FakeTrace trace_;
  std::string path_;
};

TEST_F(RecordsTest, ArePrintedAsText) {
  EXPECT_EQ(run<TextOutput>(all_), "n=7\n@x[0]: 5\nhello\nnow\nls -l\n");
}

TEST_F(RecordsTest, ArePrintedAsJson) {
  EXPECT_EQ(run<JsonOutput>(all_),
            "{\"type\": \"printf\", \"data\": \"n=7\\n\"}\n"
            "{\"type\": \"map\", \"data\": {\"@x\": {\"0\": 5}}}\n"
            "{\"type\": \"value\", \"data\": \"hello\"}\n"
            "{\"type\": \"time\", \"data\": \"now\\n\"}\n"
            "{\"type\": \"join\", \"data\": \"ls -l\\n\"}\n");
}

TEST_F(RecordsTest, ClearAndZeroMaps) {
  run<TextOutput>({record(3, 8), record(4, 8)});
  EXPECT_EQ(trace_.calls, (std::vector<std::string>{"clear 0", "zero 0"}));
}

TEST_F(RecordsTest, ActionsOfMapsNeedNoRecord) {
  TextOutput output(std::move(*Sink::create(path_, Buffering::kFull)));
  Records handler(bundle_, output);
  for (size_t i = 0; i < bundle_.actions.size(); i++) {
    const auto kind = bundle_.actions[i].kind;
    const bool is_of_a_map = kind == ActionKind::kPrintMap || kind == ActionKind::kClearMap ||
                             kind == ActionKind::kZeroMap;
    EXPECT_EQ(handler.act(i, trace_).has_value(), is_of_a_map) << i;
  }
  EXPECT_EQ(trace_.calls, (std::vector<std::string>{"read 0", "clear 0", "zero 0"}));
  EXPECT_FALSE(handler.act(bundle_.actions.size(), trace_));
}

TEST_F(RecordsTest, EndTheTraceWithACode) {
  TextOutput output(Sink(-1, Buffering::kFull));
  Records handler(bundle_, output);
  EXPECT_EQ(**handler.handle(record(5, 16, "\3"), trace_), 3);
  EXPECT_EQ(**handler.handle(record(8, 8), trace_), 0);
  EXPECT_FALSE(handler.handle(record(3, 8), trace_)->has_value());
}

TEST_F(RecordsTest, OfAHostileTargetAreRefused) {
  EXPECT_EQ(fault({}), ErrorCode::kCorrupt);
  EXPECT_EQ(fault({0, 0, 0, 0}), ErrorCode::kCorrupt);
  EXPECT_EQ(fault(record(9, 8)), ErrorCode::kCorrupt);
  EXPECT_EQ(fault(record(UINT32_MAX, 8)), ErrorCode::kCorrupt);
  EXPECT_EQ(fault(record(0, 8)), ErrorCode::kCorrupt);
  EXPECT_EQ(fault(record(0, 24)), ErrorCode::kCorrupt);
  auto lying = record(0, 16);
  lying.resize(12);
  EXPECT_EQ(fault(lying), ErrorCode::kCorrupt);
  EXPECT_EQ(fault(record(7, 32, "\3")), ErrorCode::kCorrupt);
  EXPECT_EQ(fault(record(7, 32, "\xff\xff\xff\xff\xff\xff\xff\xff")), ErrorCode::kCorrupt);
}

TEST_F(RecordsTest, OfRandomBytesNeverHurt) {
  std::mt19937 random(7);
  auto sink = Sink::create("/dev/null", Buffering::kFull);
  JsonOutput output(std::move(*sink));
  Records handler(bundle_, output);
  for (int i = 0; i < 20'000; i++) {
    std::vector<uint8_t> bytes(random() % 64);
    for (uint8_t& b : bytes) b = static_cast<uint8_t>(random());
    if (bytes.size() >= 8) {
      const uint32_t action = random() % 10;
      const auto size = static_cast<uint32_t>(
          random() % 2 == 0 || action >= 9 ? bytes.size() : bundle_.actions[action].record_size);
      const bundle::RecordHeader header{action, size};
      std::memcpy(bytes.data(), &header, sizeof(header));
    }
    (void)handler.handle(bytes, trace_);
  }
  EXPECT_TRUE(output.flush());
}

TEST_F(RecordsTest, EndPrintsTheScriptsMapsOnly) {
  auto sink = Sink::create(path_, Buffering::kFull);
  TextOutput output(std::move(*sink));
  Records handler(bundle_, output);
  EXPECT_TRUE(output.end());
  EXPECT_TRUE(handler.print_maps(trace_));
  EXPECT_TRUE(output.flush());
  EXPECT_EQ(slurp(path_), "\n\n@x[0]: 5\n");
  EXPECT_EQ(trace_.calls, std::vector<std::string>{"read 0"});
}

TEST_F(RecordsTest, ACorruptMapDoesNotHideTheOthers) {
  bundle_.maps.insert(bundle_.maps.begin(), {.name = "@a",
                                             .role = MapRole::kCount,
                                             .key_size = 4,
                                             .value_size = 8,
                                             .key = {ValueKind::kInt, 4, true, {}, {}}});
  auto sink = Sink::create(path_, Buffering::kFull);
  TextOutput output(std::move(*sink));
  EXPECT_EQ(Records(bundle_, output).print_maps(trace_).error().code, ErrorCode::kCorrupt);
  EXPECT_TRUE(output.flush());
  EXPECT_EQ(slurp(path_), "@x[0]: 5\n");
}

TEST(Json, TellsProbesAndLosses) {
  const std::string path = testing::TempDir() + fmt::format("spile-json-{}", getpid());
  auto sink = Sink::create(path, Buffering::kLine);
  JsonOutput output(std::move(*sink));
  EXPECT_TRUE(output.attached_probes(3));
  EXPECT_TRUE(output.lost_events(7));
  EXPECT_EQ(slurp(path),
            "{\"type\": \"attached_probes\", \"count\": 3, \"data\": {\"probes\": 3}}\n"
            "{\"type\": \"lost_events\", \"count\": 7, \"data\": {\"events\": 7}}\n");
  std::filesystem::remove(path);
}

TEST(Sink, ReportsAReaderThatWentAwayWithoutASignal) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  close(ends[0]);
  Sink sink(ends[1], Buffering::kNone);
  const auto written = sink.write("text");
  ASSERT_FALSE(written);
  EXPECT_EQ(written.error().code, ErrorCode::kTargetGone);
  sigset_t pending;
  sigpending(&pending);
  EXPECT_EQ(sigismember(&pending, SIGPIPE), 0);
  close(ends[1]);
}

TEST(Sink, WaitsForAFullNonBlockingPipe) {
  int ends[2];
  ASSERT_EQ(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
  const std::string text(300'000, 'x');
  std::string seen;
  std::thread reader([&] {
    char part[4096];
    while (seen.size() < text.size()) {
      const ssize_t n = read(ends[0], part, sizeof(part));
      if (n > 0) seen.append(part, static_cast<size_t>(n));
      if (n < 0) usleep(1000);
    }
  });
  EXPECT_TRUE(Sink(ends[1], Buffering::kNone).write(text));
  reader.join();
  EXPECT_EQ(seen, text);
  close(ends[0]);
  close(ends[1]);
}

TEST(Sink, HandsOnLinesAtOnceAndTheRestLater) {
  const std::string path = testing::TempDir() + fmt::format("spile-sink-{}", getpid());
  auto sink = Sink::create(path, Buffering::kLine);
  ASSERT_TRUE(sink);
  EXPECT_TRUE(sink->write("half "));
  EXPECT_EQ(slurp(path), "");
  EXPECT_TRUE(sink->write("line\n"));
  EXPECT_EQ(slurp(path), "half line\n");
  std::filesystem::remove(path);
}

TEST(Sink, SaysWhichFileCanNotBeMade) {
  const auto sink = Sink::create("/nonexistent/file", Buffering::kLine);
  ASSERT_FALSE(sink);
  EXPECT_EQ(sink.error().code, ErrorCode::kNotFound);
  EXPECT_NE(sink.error().message.find("/nonexistent/file"), std::string::npos);
}

}  // namespace
}  // namespace spile::output
