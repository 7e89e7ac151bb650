#include <dirent.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <spile/probes.h>
#include <spile/tracer.hpp>

using spile::Event;
using spile::Map;
using spile::MapRow;
using spile::Tracer;
using spile::TracerOptions;
using spile::Value;

#define KEPT extern "C" __attribute__((noinline, noclone))
KEPT long traced_work(long n, const char* name) {
  __asm__ volatile("" : : "r"(n), "r"(name) : "memory");
  return n * 2;
}

KEPT long traced_elsewhere(long n) {
  __asm__ volatile("" : : "r"(n) : "memory");
  return n * 3 + 1;
}

namespace {

constexpr size_t kBytes = 16;
using Bytes = std::string;
Bytes bytes_of_work() { return Bytes(reinterpret_cast<const char*>(&traced_work), kBytes); }

void work(long count, const char* name = "a") {
  for (long i = 0; i < count; ++i) traced_work(i, name);
}

const MapRow* row_of(const Map& map, int64_t key) {
  for (const MapRow& row : map.rows) {
    if (row.key.number() == key) return &row;
  }
  return nullptr;
}

std::vector<Event> events_of(Tracer& tracer) {
  std::vector<Event> all;
  tracer.poll([&](const Event& e) { all.push_back(e); });
  return all;
}

#define ASSERT_STARTED(tracer) ASSERT_TRUE(tracer) << (tracer).error() << ": " << (tracer).error_text()

TEST(Tracer, CountsInItsOwnProcess) {
  const Bytes before = bytes_of_work();
  auto tracer = Tracer::start("uprobe:traced_work { @ = count(); @n[arg0] = sum(arg0 * 10); }");
  ASSERT_STARTED(tracer);
  EXPECT_EQ(tracer.probes(), 1u);
  EXPECT_NE(bytes_of_work(), before);
  EXPECT_TRUE(tracer.is_running());
  work(5);
  Map map;
  ASSERT_EQ(tracer.read_map("@", map), 0);
  EXPECT_FALSE(map.has_keys);
  ASSERT_EQ(map.rows.size(), 1u);
  EXPECT_EQ(map.rows[0].value.number(), 5);
  work(5);
  ASSERT_EQ(tracer.read_map("@n", map), 0);
  EXPECT_TRUE(map.has_keys);
  ASSERT_EQ(map.rows.size(), 5u);
  ASSERT_NE(row_of(map, 3), nullptr);
  EXPECT_EQ(row_of(map, 3)->value.number(), 60);
  ASSERT_EQ(tracer.stop(), 0);
  EXPECT_EQ(bytes_of_work(), before);
  work(5);
  ASSERT_EQ(tracer.read_map("@", map), 0);  // as it was at the end
  EXPECT_EQ(map.rows[0].value.number(), 10);
  EXPECT_EQ(tracer.losses().missed + tracer.losses().records + tracer.losses().full_maps, 0u);
}

TEST(Tracer, GivesEveryKindOfValue) {
  auto tracer = Tracer::start(
      "uprobe:traced_work { @t[arg0, str(arg1)] = count(); @h = hist(arg0); @l = lhist(arg0, 0, 10, 5); "
      "@s = stats(arg0); @min = min(-arg0); @last = str(arg1); @p[\"x\"] = (arg0, \"y\"); }");
  ASSERT_STARTED(tracer);
  for (long n : {0, 1, 2, 3, 12}) traced_work(n, "name");
  Map map;
  ASSERT_EQ(tracer.read_map("@t", map), 0);
  ASSERT_EQ(map.rows.size(), 5u);
  for (const MapRow& row : map.rows) {
    ASSERT_EQ(row.key.kind, Value::Kind::kTuple);
    EXPECT_TRUE(row.key.parts[0].is_number());
    EXPECT_EQ(row.key.parts[1].text, "name");
    EXPECT_EQ(row.value.number(), 1);
  }
  const auto buckets = [&](const char* name) {
    std::string text;
    EXPECT_EQ(tracer.read_map(name, map), 0);
    for (const auto& b : map.rows.at(0).buckets)
      text += std::to_string(b.low) + ".." + std::to_string(b.high) + ":" + std::to_string(b.count) + " ";
    return text;
  };
  EXPECT_EQ(buckets("@h"), "0..0:1 1..1:1 2..3:2 4..7:0 8..15:1 ");
  EXPECT_EQ(buckets("@l"), "0..4:4 5..9:0 10..9223372036854775807:1 ");
  ASSERT_EQ(tracer.read_map("@s", map), 0);
  const Value& stats = map.rows.at(0).value;
  ASSERT_EQ(stats.kind, Value::Kind::kRecord);
  EXPECT_EQ(stats.part("count")->number(), 5);
  EXPECT_EQ(stats.part("average")->number(), 3);
  EXPECT_EQ(stats.part("total")->number(), 18);
  EXPECT_EQ(stats.part("nothing"), nullptr);
  ASSERT_EQ(tracer.read_map("@min", map), 0);
  EXPECT_EQ(map.rows.at(0).value.kind, Value::Kind::kSigned);
  EXPECT_EQ(map.rows.at(0).value.number(), -12);
  ASSERT_EQ(tracer.read_map("@last", map), 0);
  EXPECT_EQ(map.rows.at(0).value.text, "name");
  ASSERT_EQ(tracer.read_map("@p", map), 0);
  EXPECT_EQ(map.rows.at(0).key.text, "x");
  EXPECT_EQ(map.rows.at(0).value.parts.at(1).text, "y");
  EXPECT_EQ(tracer.read_map("@nothing", map), -ENOENT);
  EXPECT_EQ(tracer.read_map("", map), -ENOENT);
}

TEST(Tracer, HandsOutWhatIsPrinted) {
  auto tracer = Tracer::start(
      "BEGIN { printf(\"begin %s\", str($1)); } uprobe:traced_work { printf(\"n=%d\", arg0); print((arg0, \"v\")); "
      "@[arg0] = count(); } END { print(@); printf(\"end\"); }",
      {{}, {"here"}, SPILE_ENGINE_USER, 0, {}});
  ASSERT_STARTED(tracer);
  work(3);
  ASSERT_EQ(tracer.stop(), 0);
  const auto events = events_of(tracer);
  std::string texts;
  int values = 0, maps = 0;
  for (const Event& e : events) {
    if (e.kind == Event::Kind::kText) texts += e.text + ";";
    if (e.kind == Event::Kind::kValue) {
      EXPECT_EQ(e.value.parts.at(0).number(), values++);
    }
    if (e.kind == Event::Kind::kMap) maps += static_cast<int>(e.map.rows.size());
  }
  EXPECT_EQ(texts, "begin here;n=0;n=1;n=2;end;");
  EXPECT_EQ(values, 3);
  EXPECT_EQ(maps, 3);
  EXPECT_TRUE(events_of(tracer).empty());
}

TEST(Tracer, PollWaitsForWhatComes) {
  auto tracer = Tracer::start("uprobe:traced_work { print(arg0); }");
  ASSERT_STARTED(tracer);
  EXPECT_EQ(tracer.poll([](const Event&) {}, 0), 0);
  traced_work(77, "");
  int64_t seen = 0;
  EXPECT_EQ(tracer.poll([&](const Event& e) { seen = e.value.number(); }, -1), 1);
  EXPECT_EQ(seen, 77);
}

TEST(Tracer, ExitEndsIt) {
  auto tracer = Tracer::start("uprobe:traced_work { @ = count(); exit(); }");
  ASSERT_STARTED(tracer);
  traced_work(1, "");
  EXPECT_EQ(tracer.poll([](const Event&) {}, -1), 0);  // waits for its end
  EXPECT_FALSE(tracer.is_running());
  Map map;
  EXPECT_EQ(tracer.read_map("@", map), 0);
  EXPECT_EQ(tracer.stop(), 0);
}

TEST(Tracer, SaysWhereAScriptIsWrong) {
  auto tracer = Tracer::start("BEGIN { @ = 1; }\nuprobe:traced_work { printf(\"%d\", arg9); }");
  EXPECT_FALSE(tracer);
  EXPECT_EQ(tracer.error(), -EINVAL);
  ASSERT_EQ(tracer.script_errors().size(), 1u);
  EXPECT_EQ(tracer.script_errors()[0].line, 2u);
  EXPECT_EQ(tracer.script_errors()[0].column, 35u);
  EXPECT_NE(tracer.script_errors()[0].message.find("arg9"), std::string::npos);
  EXPECT_NE(tracer.error_text().find("script:2:35"), std::string::npos) << tracer.error_text();
  Map map;
  EXPECT_EQ(tracer.read_map("@", map), -EINVAL);
  EXPECT_EQ(tracer.stop(), -EINVAL);
  EXPECT_EQ(tracer.poll([](const Event&) {}, -1), 0);
}

TEST(Tracer, TakesScriptsThatNoCommandLineHolds) {
  const std::string comment = "/* " + std::string(300'000, 'x') + " */ ";
  auto wrong = Tracer::start(comment + "BEGIN { nothing(); }");
  EXPECT_EQ(wrong.error(), -EINVAL);
  ASSERT_EQ(wrong.script_errors().size(), 1u);
  EXPECT_EQ(wrong.script_errors()[0].column, comment.size() + 9);
  auto right = Tracer::start(comment + "BEGIN { @ = 1; }");
  ASSERT_STARTED(right);
  ASSERT_EQ(right.stop(), 0);
  Map map;
  EXPECT_EQ(right.read_map("@", map), 0);
}

TEST(Tracer, SaysWhatElseKeepsItFromStarting) {
  auto missing = Tracer::start("uprobe:there_is_no_such_function { @ = 1; }");
  EXPECT_EQ(missing.error(), -EINVAL);
  EXPECT_NE(missing.error_text().find("there_is_no_such_function"), std::string::npos);
  TracerOptions options;
  options.program = "/nowhere/spile";
  auto nowhere = Tracer::start("BEGIN { exit(); }", options);
  EXPECT_EQ(nowhere.error(), -ENOENT);
  EXPECT_NE(nowhere.error_text().find("/nowhere/spile"), std::string::npos);
  options.program = "/bin/true";  // ends without a word
  auto other = Tracer::start("BEGIN { exit(); }", options);
  EXPECT_EQ(other.error(), -EIO);
  EXPECT_NE(other.error_text(), "");
  options.program.clear();
  options.pids = {1 << 29};
  auto nobody = Tracer::start("uprobe:libc:malloc { @ = 1; }", options);
  EXPECT_FALSE(nobody);
  EXPECT_NE(nobody.error_text(), "");
  Tracer empty;
  Map map;
  EXPECT_FALSE(empty);
  EXPECT_EQ(empty.stop(), -EINVAL);
  EXPECT_EQ(empty.read_map("@", map), -EINVAL);
}

TEST(Tracer, OfEightThreadsIsExact) {
  constexpr int kThreads = 8, kCalls = 2000;
  auto tracer = Tracer::start("uprobe:traced_work { @[str(arg1)] = count(); }");
  ASSERT_STARTED(tracer);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([i] { work(kCalls, i % 2 == 0 ? "even" : "odd"); });
  }
  for (auto& t : threads) t.join();
  Map map;
  ASSERT_EQ(tracer.read_map("@", map), 0);
  ASSERT_EQ(map.rows.size(), 2u);
  for (const MapRow& row : map.rows) EXPECT_EQ(row.value.number(), kThreads / 2 * kCalls);
}

/// Nobody polls: what finds no room is counted, and nobody waits for anybody.
TEST(Tracer, EventsThatNobodyTakesAreHandedOutOrCountedAsLost) {
  constexpr long kEvents = 60000;
  auto tracer = Tracer::start("uprobe:traced_work { printf(\"%d and a text that takes some room in a socket\", arg0); }");
  ASSERT_STARTED(tracer);
  work(kEvents);
  Map map;
  EXPECT_EQ(tracer.read_map("@", map), -ENOENT);
  ASSERT_EQ(tracer.stop(), 0);
  uint64_t texts = 0;
  for (const Event& e : events_of(tracer)) texts += e.kind == Event::Kind::kText;
  EXPECT_GT(texts, 0u);
  EXPECT_EQ(texts + tracer.losses().records, static_cast<uint64_t>(kEvents));
}

/// One place is of one of them; what else they probe goes on.
TEST(Tracer, AndProbesOfTheLibraryKeepOutOfEachOthersPlaces) {
  spile_kprobe probe = {};
  probe.symbol_name = "traced_work";
  probe.pre_handler = [](spile_kprobe* p, spile_regs*) { return ++*static_cast<long*>(p->data), 0; };
  long hits = 0;
  probe.data = &hits;
  ASSERT_EQ(spile_register_kprobe(&probe), 0) << spile_error_text();
  auto refused = Tracer::start("uprobe:traced_work { @ = count(); }");
  EXPECT_EQ(refused.error(), -EIO);
  EXPECT_NE(refused.error_text().find("another tool has patched it"), std::string::npos) << refused.error_text();
  {
    auto elsewhere = Tracer::start("uprobe:traced_elsewhere { @ = count(); }");
    ASSERT_STARTED(elsewhere);
    traced_elsewhere(1);
    work(1);
    Map map;
    ASSERT_EQ(elsewhere.read_map("@", map), 0);
    EXPECT_EQ(map.rows.at(0).value.number(), 1);
  }
  work(1);
  ASSERT_EQ(spile_unregister_kprobe(&probe), 0) << spile_error_text();
  EXPECT_EQ(hits, 2);
  auto tracer = Tracer::start("uprobe:traced_work { @ = count(); }");
  ASSERT_STARTED(tracer);
  EXPECT_NE(spile_register_kprobe(&probe), 0);
  EXPECT_NE(std::string(spile_error_text()), "");
  work(4);
  Map map;
  ASSERT_EQ(tracer.read_map("@", map), 0);
  EXPECT_EQ(map.rows.at(0).value.number(), 4);
  EXPECT_EQ(hits, 2);
}

TEST(Tracer, TakesItsProbesOutWithTheObject) {
  const Bytes before = bytes_of_work();
  {
    auto first = Tracer::start("uprobe:traced_work { @ = count(); }");
    ASSERT_STARTED(first);
    Tracer second = std::move(first);
    EXPECT_FALSE(first);  // NOLINT: what was moved from is empty
    EXPECT_NE(bytes_of_work(), before);
    EXPECT_TRUE(second.is_running());
  }
  EXPECT_EQ(bytes_of_work(), before);
}

size_t open_descriptors() {
  size_t count = 0;
  DIR* all = opendir("/proc/self/fd");
  while (readdir(all) != nullptr) ++count;
  closedir(all);
  return count;
}

TEST(Tracer, LeavesTheProgramItsDescriptorsAndChildren) {
  static volatile sig_atomic_t died = 0;
  signal(SIGCHLD, [](int) { died = died + 1; });
  const size_t before = open_descriptors();
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);  // not closed on exec
  {
    auto tracer = Tracer::start("uprobe:traced_work { @ = count(); }");
    ASSERT_STARTED(tracer);
    EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1);
    EXPECT_EQ(errno, ECHILD);
    close(ends[1]);
    char byte = 0;
    EXPECT_EQ(read(ends[0], &byte, 1), 0);  // the end: the tracing process has not got the other one
    close(ends[0]);
    EXPECT_TRUE(tracer.is_running());
  }
  EXPECT_EQ(open_descriptors(), before);
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1);
  EXPECT_EQ(died, 0);
  signal(SIGCHLD, SIG_DFL);
}

TEST(Tracer, AForkedChildLeavesTheTraceAlone) {
  auto tracer = Tracer::start("uprobe:traced_work { @ = count(); }");
  ASSERT_STARTED(tracer);
  work(2);
  const pid_t child = fork();
  if (child == 0) {
    Map map;
    const bool refused = tracer.read_map("@", map) != 0;
    { Tracer gone = std::move(tracer); }
    _exit(refused ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  work(3);
  Map map;
  ASSERT_EQ(tracer.read_map("@", map), 0);
  EXPECT_EQ(map.rows.at(0).value.number(), 5);
}

/// A child that answers each byte: how its function looks, after calling it once.
class Target {
 public:
  Target() {
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends_), 0);
    pid_ = fork();
    if (pid_ != 0) return;
    char byte = 0;
    while (recv(ends_[1], &byte, 1, 0) == 1) {
      traced_work(4, "target");
      const Bytes now = bytes_of_work();
      (void)!write(ends_[1], now.data(), now.size());
    }
    _exit(0);
  }
  ~Target() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    close(ends_[0]);
    close(ends_[1]);
  }
  Bytes call() {
    char bytes[kBytes] = {};
    EXPECT_EQ(write(ends_[0], "x", 1), 1);
    EXPECT_EQ(recv(ends_[0], bytes, sizeof bytes, MSG_WAITALL), static_cast<ssize_t>(sizeof bytes));
    return Bytes(bytes, sizeof bytes);
  }
  int pid() const { return pid_; }

 private:
  int ends_[2] = {-1, -1};
  pid_t pid_ = -1;
};

TEST(Tracer, TracesAnotherProcess) {
  Target target;
  const Bytes before = target.call();
  TracerOptions options;
  options.pids = {target.pid()};
  auto tracer = Tracer::start("uprobe:traced_work { @[str(arg1)] = sum(arg0); }", options);
  ASSERT_STARTED(tracer);
  work(10);  // not ours
  EXPECT_NE(target.call(), before);
  target.call();
  Map map;
  ASSERT_EQ(tracer.read_map("@", map), 0);
  ASSERT_EQ(map.rows.size(), 1u);
  EXPECT_EQ(map.rows[0].key.text, "target");
  EXPECT_EQ(map.rows[0].value.number(), 8);
  ASSERT_EQ(tracer.stop(), 0);
  EXPECT_EQ(target.call(), before);
}

/// The program is killed: its trace of another process ends all the same.
TEST(Tracer, EndsWithTheProgram) {
  Target target;
  const Bytes before = target.call();
  const pid_t host = fork();
  if (host == 0) {
    TracerOptions options;
    options.pids = {target.pid()};
    auto tracer = Tracer::start("uprobe:traced_work { @ = count(); }", options);
    if (!tracer) _exit(1);
    kill(getpid(), SIGKILL);
  }
  int status = -1;
  waitpid(host, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status)) << "the trace could not be started";
  while (target.call() != before) usleep(1000);  // the test's own time limit ends a wait in vain
}

/// A child that it has forked, and that lives on, has copies of all that was open.
TEST(Tracer, EndsWithTheProgramWhileAForkedChildLivesOn) {
  Target target;
  const Bytes before = target.call();
  int alive[2];
  ASSERT_EQ(pipe(alive), 0);
  const pid_t host = fork();
  if (host == 0) {
    TracerOptions options;
    options.pids = {target.pid()};
    auto tracer = Tracer::start("uprobe:traced_work { @ = count(); }", options);
    if (!tracer) _exit(1);
    if (fork() == 0) {
      close(alive[1]);
      char byte = 0;
      (void)!read(alive[0], &byte, 1);  // until the test has ended
      _exit(0);
    }
    kill(getpid(), SIGKILL);
  }
  close(alive[0]);
  int status = -1;
  waitpid(host, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status)) << "the trace could not be started";
  while (target.call() != before) usleep(1000);  // the test's own time limit ends a wait in vain
  close(alive[1]);
}

TEST(Tracer, IsRefusedUnderSeccomp) {
  const pid_t host = fork();
  if (host == 0) {
    sock_filter allow[] = {{BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}};
    sock_fprog program = {1, allow};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) _exit(1);
    _exit(Tracer::start("BEGIN { @ = 1; }").error() == -EPERM ? 0 : 2);
  }
  int status = -1;
  waitpid(host, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

/// Its socket is closed: no SIGPIPE, which would end the program.
TEST(Tracer, ThatHasEndedIsToldByANumber) {
  spile_tracer_request request = {};
  request.script = "BEGIN { exit(); }";
  spile_tracer* tracer = nullptr;
  ASSERT_EQ(spile_tracer_open(&request, &tracer), 0) << spile_error_text();
  const unsigned char* frame = nullptr;
  size_t size = 0;
  while (spile_tracer_receive(tracer, -1, &frame, &size) > 0) {
  }
  EXPECT_EQ(spile_tracer_send(tracer, SPILE_FRAME_START, "", 0), -EPIPE);
  spile_tracer_close(tracer);
}

/// A program that takes orphans (the first of a container, PR_SET_CHILD_SUBREAPER) becomes the parent of what it starts.
TEST(Tracer, LeavesNoZombieToAProgramThatTakesOrphans) {
  const pid_t host = fork();
  if (host == 0) {
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    char path[] = "/tmp/spile-test-XXXXXX";
    const int file = mkstemp(path);
    (void)!write(file, "no program", 10);
    fchmod(file, 0700);
    close(file);
    TracerOptions options;
    options.program = path;
    const bool refused = Tracer::start("BEGIN { @ = 1; }", options).error() != 0;
    unlink(path);
    const bool left = waitpid(-1, nullptr, WNOHANG | __WALL) != -1;
    const bool ran = static_cast<bool>(Tracer::start("uprobe:traced_work { @ = 1; }"));
    const bool left_behind_it = waitpid(-1, nullptr, WNOHANG | __WALL) != -1;
    _exit((refused ? 0 : 1) + (left ? 2 : 0) + (ran ? 0 : 4) + (left_behind_it ? 8 : 0));
  }
  int status = -1;
  waitpid(host, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
}

TEST(Tracer, HandsOutWhatTheCompilerWarnsOf) {
  auto tracer = Tracer::start("uprobe:traced_work { @ = buf(arg1, 5000); }");
  ASSERT_STARTED(tracer);
  ASSERT_EQ(tracer.stop(), 0);
  std::string messages;
  for (const Event& e : events_of(tracer)) {
    if (e.kind == Event::Kind::kMessage) messages += e.text;
  }
  EXPECT_NE(messages.find("bytes are read"), std::string::npos) << messages;
}

TEST(Tracer, OnTheKernelEngine) {
  TracerOptions options;
  options.engine = SPILE_ENGINE_KERNEL;
  auto tracer = Tracer::start("uprobe:libc:getppid { @ = count(); }", options);
  if (!tracer) GTEST_SKIP() << tracer.error_text();
  for (int i = 0; i < 7; ++i) (void)getppid();
  Map map;
  ASSERT_EQ(tracer.read_map("@", map), 0);
  EXPECT_EQ(map.rows.at(0).value.number(), 7);
}

std::string text_frame(uint32_t size, const std::string& text) {
  return std::string(reinterpret_cast<const char*>(&size), sizeof size) + text;
}

TEST(FrameReader, StaysInsideWhatItWasGiven) {
  std::string map = text_frame(2, "@x") + '\1' + std::string("\2\0\0\0", 4);
  for (int i = 0; i < 2; ++i)
    map += std::string("\6\1\0\0\0\4", 6) + text_frame(1, "k") + std::string("\1\1\0\0\0", 5) + std::string(24, 'b');
  {
    spile::detail::FrameReader whole(reinterpret_cast<const unsigned char*>(map.data()), map.size());
    const Map read = whole.map();
    EXPECT_TRUE(whole.ok());
    ASSERT_EQ(read.rows.size(), 2u);
    EXPECT_EQ(read.rows[1].key.parts.at(0).text, "k");
    EXPECT_EQ(read.rows[1].buckets.size(), 1u);
  }
  for (size_t size = 0; size < map.size(); ++size) {
    const std::vector<unsigned char> cut(map.begin(), map.begin() + static_cast<long>(size));
    spile::detail::FrameReader reader(cut.data(), cut.size());
    (void)reader.map();
    EXPECT_FALSE(reader.ok()) << size;
  }
  for (size_t at = 0; at < map.size(); ++at) {
    std::string damaged = map;
    damaged[at] = '\xff';
    spile::detail::FrameReader reader(reinterpret_cast<const unsigned char*>(damaged.data()), damaged.size());
    (void)reader.map();
  }
}

}  // namespace
