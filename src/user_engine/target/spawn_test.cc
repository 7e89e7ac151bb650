#include "user_engine/target/spawn.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <map>

#include "os/process.h"
#include "os/step.h"
#include "user_engine/target/inject.h"
#include "user_engine/target/test_program.h"

namespace spile::target {
namespace {

/// Addresses of the loader's symbols, as nm prints them.
std::optional<LinkAddr> symbol(const std::string& file, const std::string& name) {
  const std::string command =
      "nm -D " + file + " 2>/dev/null | awk '{sub(/@.*/,\"\",$3)} $3==\"" + name + "\"{print $1}'";
  FILE* pipe = ::popen(command.c_str(), "r");
  char line[64] = {};
  const bool found = ::fgets(line, sizeof line, pipe) != nullptr;
  ::pclose(pipe);
  if (!found) return std::nullopt;
  return LinkAddr(::strtoull(line, nullptr, 16));
}

std::optional<LoaderSymbols> find_symbols(const Module& loader) {
  static std::map<std::string, LoaderSymbols> known;
  if (const auto it = known.find(loader.path); it != known.end()) return it->second;
  const auto debug_state = symbol(loader.host_path, "_dl_debug_state");
  if (!debug_state) return std::nullopt;
  return known[loader.path] = LoaderSymbols{*debug_state, symbol(loader.host_path, "_r_debug")};
}

/// Runs a command with its output in a pipe; `at_stop` sees the child before it has run.
struct Outcome {
  SpawnStop stop;
  std::string before, all;
  ExitStatus exit;
};
Result<Outcome> run(const std::vector<std::string>& command,
                    const std::function<void(StoppedProcess&)>& at_stop,
                    const FindLoaderSymbols& symbols = find_symbols) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return fail(ErrorCode::kInternal, "pipe");
  const auto read_now = [&](int timeout_ms) {
    std::string text;
    char buffer[256];
    pollfd p{ends[0], POLLIN, 0};
    while (::poll(&p, 1, timeout_ms) > 0) {
      const ssize_t n = ::read(ends[0], buffer, sizeof buffer);
      if (n <= 0) break;
      text.append(buffer, static_cast<size_t>(n));
    }
    return text;
  };
  const int saved = ::dup(1);
  ::dup2(ends[1], 1);
  Outcome outcome;
  auto done = with_tracer_thread([&]() -> Result<pid_t> {
    SPILE_TRY(Child child, Child::spawn(command, symbols));
    outcome.stop = child.stop();
    {
      SPILE_TRY(StoppedProcess process, child.take_stopped());
      outcome.before = read_now(20);
      at_stop(process);
    }
    child.release();
    return child.pid();
  });
  ::dup2(saved, 1);
  ::close(saved);
  ::close(ends[1]);
  if (done) {
    outcome.all = read_now(5000);
    SPILE_TRY(outcome.exit, wait_exit(*done));
  }
  ::close(ends[0]);
  if (!done) return forward(done);
  return outcome;
}

void map_something(StoppedProcess& process) {
  auto maps = process.target().maps();
  auto rules = gap_rules(process.target());
  ASSERT_TRUE(maps && rules);
  AddressRange near{maps->front().start, maps->front().end};
  auto at = find_gap(*maps, *rules, {&near, 1}, 0x10000);
  ASSERT_TRUE(at);
  const RegionSpec spec{RegionSpec::Kind::kCode, "spile-code", *at, 0x10000};
  auto regions = map_shared(process, {&spec, 1});
  ASSERT_TRUE(regions) << regions.error().message;
}

void expect_stopped_early(const std::string& program, SpawnStop stop) {
  if (program.empty()) GTEST_SKIP() << "cannot build this kind of program";
  auto outcome = run({program, "x", "y"}, map_something);
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->stop, stop);
  EXPECT_EQ(outcome->before, "") << "a constructor has run before the stop";
  EXPECT_EQ(outcome->all, "constructor\nexit-success\n");
  EXPECT_FALSE(outcome->exit.signaled);
  EXPECT_EQ(outcome->exit.value, 2);
}

TEST(Spawn, StopsADynamicProgramBeforeItsConstructors) {
  expect_stopped_early(build_program("early.c", "cc -O1"), SpawnStop::kLibrariesMapped);
}
TEST(Spawn, StopsAMuslProgramBeforeItsConstructors) {
  expect_stopped_early(build_program("early.c", "musl-gcc -O1"), SpawnStop::kLibrariesMapped);
}
TEST(Spawn, StopsAStaticProgramAtItsFirstInstruction) {
  expect_stopped_early(build_program("early.c", "cc -O1 -static"), SpawnStop::kStatic);
}
TEST(Spawn, StopsAStaticPieAtItsFirstInstruction) {
  expect_stopped_early(build_program("early.c", "cc -O1 -static-pie"), SpawnStop::kStatic);
}

TEST(Spawn, HasTheLibrariesMappedWhenItStops) {
  auto outcome = run({build_program("early.c", "cc -O1")}, [](StoppedProcess& process) {
    auto modules = process.target().modules();
    ASSERT_TRUE(modules);
    EXPECT_TRUE(std::any_of(modules->begin(), modules->end(),
                            [](auto& m) { return m.path.find("libc.so") != std::string::npos; }));
    for (const Module& m : *modules) {
      if (m.vdso) continue;
      EXPECT_TRUE(process.target().compare_text(m)->empty())
          << m.path << ": the int3 is still there";
    }
  });
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->exit.value, 0);
}

TEST(Spawn, StopsAtTheExecWhereTheLoaderIsUnknown) {
  auto outcome = run(
      {build_program("early.c", "cc -O1")}, [](StoppedProcess&) {},
      [](const Module&) { return std::nullopt; });
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->stop, SpawnStop::kLoaderUnknown);
  EXPECT_EQ(outcome->all, "constructor\nexit-success\n");
}

TEST(Spawn, PassesOnTheExitStatusAndTheSignal) {
  auto outcome = run({"sh", "-c", "exit 7"}, [](StoppedProcess&) {});
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->exit.shell_status(), 7);
  outcome = run({"sh", "-c", "kill -TERM $$"}, [](StoppedProcess&) {});
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(outcome->exit.shell_status(), 128 + 15);
}

TEST(Spawn, RunsTheCommandWithoutOurSignalMask) {
  // No shell in between: many clear the mask themselves.
  auto outcome = run({"grep", "SigBlk", "/proc/self/status"}, [](StoppedProcess&) {});
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_NE(outcome->all.find("0000000000000000"), std::string::npos) << outcome->all;
}

TEST(Spawn, RunsTheCommandWithOurCreatorsScheduling) {
  const auto line_of = [](const std::string& text) {
    const size_t at = text.find("se.slice");
    return at == std::string::npos ? "" : text.substr(at, text.find('\n', at) - at);
  };
  auto ours = os::read_file("/proc/self/sched");
  if (!ours || line_of(*ours).empty()) GTEST_SKIP() << "needs a kernel that tells of slices";
  auto outcome = run({"cat", "/proc/self/sched"}, [](StoppedProcess&) {});
  ASSERT_TRUE(outcome) << outcome.error().message;
  EXPECT_EQ(line_of(outcome->all), line_of(*ours));
}

TEST(Spawn, SaysThatThereIsNoSuchProgram) {
  auto outcome = run({"no-such-program-here"}, [](StoppedProcess&) {});
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, ErrorCode::kNotFound);
  outcome = run({"/etc/passwd"}, [](StoppedProcess&) {});
  ASSERT_FALSE(outcome);
  EXPECT_EQ(outcome.error().code, ErrorCode::kDenied);
}

/// Processes that run this program file.
int running(const std::string& program) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    auto exe = os::read_link(entry.path() / "exe");
    count += exe && *exe == program ? 1 : 0;
  }
  return count;
}

TEST(Spawn, LeavesNoChildWhenTheTracerDies) {
  const std::string program = build_program("early.c", "cc -O1");
  for (uint64_t number = 1; number < 30; number += 2) {
    const pid_t tracer = ::fork();
    if (tracer == 0) {
      ::close(1);
      ::open("/dev/null", O_WRONLY);
      os::kill_at_step(number);
      (void)run({program}, [](StoppedProcess&) {});
      ::_exit(0);
    }
    ::waitpid(tracer, nullptr, 0);
  }
  // Whatever was started has been killed, or has run to its end.
  for (int i = 0; i < 100 && running(program) != 0; ++i) ::usleep(10'000);
  EXPECT_EQ(running(program), 0);
}

TEST(SplitCommand, QuotesLikeAShell) {
  using Words = std::vector<std::string>;
  EXPECT_EQ(*split_command("  ls  -l "), (Words{"ls", "-l"}));
  EXPECT_EQ(*split_command("sh -c 'echo \"a b\" \\ c'"), (Words{"sh", "-c", "echo \"a b\" \\ c"}));
  EXPECT_EQ(*split_command(R"(a\ b "c \"d\" \n" '')"), (Words{"a b", "c \"d\" \\n", ""}));
  EXPECT_EQ(*split_command(""), Words{});
  EXPECT_EQ(split_command("echo 'x").error().code, ErrorCode::kInvalid);
}

}  // namespace
}  // namespace spile::target
