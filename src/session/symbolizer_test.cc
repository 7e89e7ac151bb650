#include "session/symbolizer.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

namespace spile::session {
namespace {

extern "C" [[gnu::noinline]] int symbolizer_test_function(int n) {
  asm volatile("" : "+r"(n));
  return n;
}

uint64_t address_of(void* p) {
  return reinterpret_cast<uint64_t>(p);
}
const uint64_t kOwn = reinterpret_cast<uint64_t>(&symbolizer_test_function);

pid_t sleeping_child() {
  pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  return child;
}
void end(pid_t child) {
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
}

TEST(Symbolizer, NamesFunctionsOfProgramsAndLibraries) {
  Symbolizer symbolizer;
  auto pid = static_cast<uint64_t>(getpid());
  auto own = symbolizer.user(pid, kOwn + 1);
  ASSERT_TRUE(own);
  EXPECT_EQ(own->symbol, "symbolizer_test_function");
  EXPECT_EQ(own->offset, 1u);
  EXPECT_NE(own->module.find("spile_session_test"), std::string::npos);
  auto library = symbolizer.user(pid, address_of(dlsym(RTLD_DEFAULT, "getpid")));
  ASSERT_TRUE(library);
  EXPECT_NE(library->symbol.find("getpid"), std::string::npos);
  EXPECT_NE(library->module.find("libc"), std::string::npos);
}

TEST(Symbolizer, HasNoNameForWhatIsNoCode) {
  Symbolizer symbolizer;
  int local = 0;
  auto pid = static_cast<uint64_t>(getpid());
  EXPECT_FALSE(symbolizer.user(pid, 0));
  EXPECT_FALSE(symbolizer.user(pid, 1));
  EXPECT_FALSE(symbolizer.user(pid, address_of(&local)));
  EXPECT_FALSE(symbolizer.user(pid, ~uint64_t{0}));
}

TEST(Symbolizer, KnowsAProcessThatHasEndedIfItWasSeen) {
  Symbolizer seen, unseen;
  pid_t child = sleeping_child();
  seen.remember(child);
  end(child);
  auto name = seen.user(static_cast<uint64_t>(child), kOwn);
  ASSERT_TRUE(name);
  EXPECT_EQ(name->symbol, "symbolizer_test_function");
  EXPECT_FALSE(unseen.user(static_cast<uint64_t>(child), kOwn));
}

TEST(Symbolizer, TakesWhatItNeverSawForAForkWhereTold) {
  Symbolizer symbolizer;
  pid_t child = sleeping_child();
  symbolizer.remember(getpid());
  symbolizer.take_unknown_for(getpid());
  end(child);
  EXPECT_TRUE(symbolizer.user(static_cast<uint64_t>(child), kOwn));
}

TEST(Symbolizer, KeepsWhatItKnowsOfAProcessThatIsGoneWhenAskedToLookAgain) {
  Symbolizer symbolizer;
  pid_t child = sleeping_child();
  symbolizer.remember(child);
  end(child);
  symbolizer.remember(child);
  EXPECT_TRUE(symbolizer.user(static_cast<uint64_t>(child), kOwn));
}

TEST(Symbolizer, WritesNamesOfCxxAsTheirAuthorsDo) {
  Symbolizer symbolizer;
  auto address = reinterpret_cast<uint64_t>(&sleeping_child);
  auto name = symbolizer.user(static_cast<uint64_t>(getpid()), address);
  ASSERT_TRUE(name);
  EXPECT_NE(name->symbol.find("sleeping_child()"), std::string::npos) << name->symbol;
}

TEST(Symbolizer, NamesFunctionsOfTheKernelWhereItTells) {
  Symbolizer symbolizer;
  auto kallsyms = symbols::Kallsyms::load();
  if (!kallsyms || !kallsyms->has_addresses()) GTEST_SKIP() << "the kernel hides its addresses";
  const auto found = kallsyms->find("vfs_read");
  ASSERT_FALSE(found.empty());
  auto name = symbolizer.kernel(found.front()->addr + 3);
  ASSERT_TRUE(name);
  EXPECT_EQ(name->symbol, "vfs_read");
  EXPECT_EQ(name->offset, 3u);
  EXPECT_FALSE(symbolizer.kernel(1));
}

}  // namespace
}  // namespace spile::session
