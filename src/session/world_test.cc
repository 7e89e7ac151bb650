#include "session/world.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include "bpf/insn.h"
#include "session/tracepoint_format.h"

namespace spile::session {
namespace {

using Shape = lang::EventField::Shape;
namespace fs = std::filesystem;

constexpr const char* kSwitch =
    "name: sched_switch\nID: 372\nformat:\n"
    "\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n"
    "\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;\n"
    "\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;\n"
    "\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n"
    "\tfield:char prev_comm[16];\toffset:8;\tsize:16;\tsigned:0;\n"
    "\tfield:pid_t prev_pid;\toffset:24;\tsize:4;\tsigned:1;\n"
    "\tfield:const char * filename;\toffset:32;\tsize:8;\tsigned:0;\n"
    "\tfield:__data_loc char[] name;\toffset:40;\tsize:4;\tsigned:0;\n"
    "\tfield:__rel_loc char[] rel;\toffset:44;\tsize:4;\tsigned:0;\n"
    "\tfield:__data_loc u32[] ids;\toffset:48;\tsize:4;\tsigned:0;\n"
    "\tfield:u8 fsid[16];\toffset:52;\tsize:16;\tsigned:0;\n"
    "\tfield:struct thing t;\toffset:68;\tsize:12;\tsigned:0;\n"
    "\nprint fmt: \"field:int x;\toffset:1\", REC->prev_comm\n";

class Machine : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/spile-world-XXXXXX";
    folder_ = ::mkdtemp(name);
    write("tracing/events/sched/sched_switch/format", kSwitch);
    write("tracing/events/sched/sched_wakeup/format", kSwitch);
    write("tracing/events/net/net_dev_xmit/format", kSwitch);
    write("tracing/events/enable", "0");
    write("kallsyms",
          "ffffffff81000000 T vfs_read\nffffffff81000100 T vfs_write\nffffffff81000180 t "
          "__pfx_vfs_open\n"
          "ffffffffc0000000 t nft_init\t[nft]\nffffffffc0000010 t nft_init\t[nft]\n");
  }
  void TearDown() override { fs::remove_all(folder_); }
  void write(const std::string& path, const std::string& text) {
    fs::create_directories((folder_ / path).parent_path());
    std::ofstream(folder_ / path) << text;
  }
  WorldOptions options() {
    WorldOptions o;
    o.kallsyms = folder_ / "kallsyms";
    o.tracefs = {folder_ / "absent", folder_ / "tracing"};
    return o;
  }
  fs::path folder_;
};

const lang::EventField& field(const lang::Tracepoint& t, std::string_view name) {
  return *std::ranges::find(t.fields, name, &lang::EventField::name);
}

TEST(TracepointFormat, GivesFieldsTheirShapes) {
  const auto t = parse_tracepoint_format("sched", "sched_switch", kSwitch);
  ASSERT_TRUE(t) << t.error().message;
  ASSERT_EQ(t->fields.size(), 12u);
  EXPECT_EQ(t->record_size, 80u);
  EXPECT_EQ(field(*t, "prev_comm").shape, Shape::kCharArray);
  EXPECT_EQ(field(*t, "prev_comm").type, "char[16]");
  EXPECT_EQ(field(*t, "prev_pid").shape, Shape::kInt);
  EXPECT_TRUE(field(*t, "prev_pid").is_signed);
  EXPECT_EQ(field(*t, "filename").shape, Shape::kPointer);
  EXPECT_EQ(field(*t, "filename").type, "const char *");
  EXPECT_EQ(field(*t, "name").shape, Shape::kDataLocStr);
  EXPECT_EQ(field(*t, "name").type, "__data_loc char[]");
  EXPECT_EQ(field(*t, "rel").shape, Shape::kRelLocStr);
  EXPECT_EQ(field(*t, "ids").shape, Shape::kDataLoc);
  EXPECT_EQ(field(*t, "fsid").shape, Shape::kIntArray);
  EXPECT_EQ(field(*t, "t").shape, Shape::kOther);
}

TEST(TracepointFormat, RefusesLinesThatItDoesNotUnderstand) {
  EXPECT_EQ(parse_tracepoint_format("a", "b", "").error().code, ErrorCode::kCorrupt);
  EXPECT_EQ(parse_tracepoint_format("a", "b", "\tfield:int;\toffset:0;\tsize:4;\n").error().code,
            ErrorCode::kCorrupt);
  EXPECT_EQ(parse_tracepoint_format("a", "b", "\tfield:int x;\tsize:4;\n").error().code,
            ErrorCode::kCorrupt);
  EXPECT_EQ(parse_tracepoint_format("a", "b", "\tfield:int x;\toffset:99999999999;\tsize:4;\n")
                .error()
                .code,
            ErrorCode::kCorrupt);
}

TEST(TracepointFormat, SurvivesDamagedText) {
  std::mt19937 random(3);
  for (int round = 0; round < 3000; ++round) {
    std::string text = kSwitch;
    for (int i = 0; i < 8; ++i) text[random() % text.size()] = static_cast<char>(random() % 128);
    text.resize(random() % text.size());
    const auto t = parse_tracepoint_format("a", "b", text);
    EXPECT_TRUE(!t || t->record_size <= 2u << 16);
  }
}

TEST_F(Machine, ExpandsTracepointPatterns) {
  MachineWorld world(options());
  EXPECT_EQ(world.tracepoints("sched", "*")->size(), 2u);
  EXPECT_EQ(world.tracepoints("*", "*")->size(), 3u);
  EXPECT_EQ(world.tracepoints("sched", "sched_switch")->front().event, "sched_switch");
  EXPECT_EQ(world.tracepoints("sched", "nothing").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(world.tracepoints("..", "*").error().code, ErrorCode::kNotFound);
  ASSERT_FALSE(world.near_tracepoints("sched", "sched_swich").empty());
  EXPECT_EQ(world.near_tracepoints("sched", "sched_swich")[0], "sched:sched_switch");
}

TEST_F(Machine, SaysWhereTracefsWasLookedFor) {
  auto o = options();
  o.tracefs = {folder_ / "absent"};
  const auto found = MachineWorld(o).tracepoints("sched", "*");
  ASSERT_FALSE(found);
  EXPECT_EQ(found.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(found.error().message.find("absent"), std::string::npos);
}

TEST_F(Machine, ExpandsKernelFunctions) {
  MachineWorld world(options());
  EXPECT_EQ(world.kernel_functions("", "vfs_*")->size(), 2u);
  EXPECT_EQ(world.kernel_functions("", "*")->size(), 3u);  // one nft_init, no __pfx_
  const auto init = world.kernel_functions("", "nft_*");
  ASSERT_EQ(init->size(), 1u);
  EXPECT_EQ(init->front().module, "nft");
  EXPECT_EQ(world.kernel_functions("vmlinux", "nft_*").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(world.near_kernel_functions("vfs_raed")[0], "vfs_read");
}

TEST_F(Machine, LetsTheKernelJudgeAName) {
  auto o = options();
  o.kallsyms = folder_ / "absent";
  MachineWorld world(o);
  EXPECT_EQ(world.kernel_functions("", "anything")->size(), 1u);
  EXPECT_EQ(world.kernel_functions("vmlinux", "anything")->front().module, "");
  EXPECT_FALSE(world.kernel_functions("", "any*"));
}

TEST_F(Machine, APatternMeansWhatFtraceCanTrace) {
  auto o = options();
  std::ofstream(fs::path(o.tracefs.back()) / "available_filter_functions")
      << "vfs_read\nvfs_open\nvfs_hook [nft]\n";
  MachineWorld world(o);
  EXPECT_EQ(world.kernel_functions("", "vfs_*")->size(), 3u);
  EXPECT_EQ(world.kernel_functions("nft", "vfs_*")->size(), 1u);
  EXPECT_EQ(world.kernel_functions("vmlinux", "vfs_*")->size(), 2u);
  EXPECT_FALSE(world.kernel_functions("", "ext4_*"));
}

TEST_F(Machine, FindsUserFunctionsBySonamePathAndProgram) {
  MachineWorld world(options());
  const auto by_soname = world.user_functions("libc", "fopen");
  ASSERT_TRUE(by_soname) << by_soname.error().message;
  ASSERT_EQ(by_soname->size(), 1u);
  EXPECT_EQ(by_soname->front().symbol, "fopen");
  const auto by_path = world.user_functions("/lib/x86_64-linux-gnu/libc.so.6", "fopen");
  ASSERT_TRUE(by_path);
  EXPECT_TRUE(fs::equivalent(by_path->front().path, by_soname->front().path));
  EXPECT_GE(world.user_functions("libc", "fopen*")->size(), 3u);
  const auto wrong = world.user_functions("libc", "fopne");
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().code, ErrorCode::kNotFound);
  EXPECT_EQ(world.near_user_functions("libc", "fopne")[0], "fopen");
  EXPECT_EQ(world.user_functions("/absent/file", "x").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(world.user_functions("", "x").error().code, ErrorCode::kInvalid);
}

TEST_F(Machine, FindsStaticTracepoints) {
  // The C++ library has three: catch, throw and rethrow, each with two arguments.
  MachineWorld world(options());
  if (!world.user_file("libstdc++.so.6")) GTEST_SKIP() << "no libstdc++";
  const auto all = world.usdt_sites("libstdc++.so.6", "", "*");
  if (!all) GTEST_SKIP() << all.error().message;
  EXPECT_EQ(all->size(), 3u);
  EXPECT_TRUE(std::ranges::is_sorted(*all, {}, &lang::UsdtSite::address));
  const auto one = world.usdt_sites("libstdc++.so.6", "libstdcxx", "throw");
  ASSERT_TRUE(one);
  ASSERT_EQ(one->front().arguments.size(), 2u);
  EXPECT_EQ(one->front().arguments[0].text, "8@%rdi");
  EXPECT_EQ(one->front().arguments[0].base, bpf::x86_64_regs::kDi);
  EXPECT_EQ(world.usdt_sites("libstdc++.so.6", "other", "throw").error().code,
            ErrorCode::kNotFound);
  EXPECT_EQ(world.near_usdt("libstdc++.so.6", "thorw").front(), "libstdcxx:throw");
  EXPECT_EQ(world.usdt_sites("libc", "", "*").error().code, ErrorCode::kNotFound);
}

TEST_F(Machine, KeepsAVersionThatWasAskedFor) {
  MachineWorld world(options());
  const auto old = world.user_functions("libc", "memcpy@GLIBC_2.2.5");
  ASSERT_TRUE(old) << old.error().message;
  EXPECT_EQ(old->front().symbol, "memcpy@GLIBC_2.2.5");
  EXPECT_EQ(world.user_functions("libc", "memcpy")->size(), 1u);
}

TEST_F(Machine, MeansTheFilesOfTheProcess) {
  auto o = options();
  o.pids = {::getpid()};
  MachineWorld world(o);
  const auto self = world.user_file("");
  ASSERT_TRUE(self) << self.error().message;
  EXPECT_TRUE(fs::equivalent(*self, "/proc/self/exe"));
  const auto libc = world.user_file("libc");
  ASSERT_TRUE(libc) << libc.error().message;
  EXPECT_NE(libc->find("libc.so.6"), std::string::npos);
  const auto everywhere = world.user_functions("*", "fopen");
  ASSERT_TRUE(everywhere) << everywhere.error().message;
  EXPECT_EQ(everywhere->size(), 1u);
}

/// A process in a root of its own: names mean the files there.
TEST_F(Machine, MeansTheFilesOfAnotherRoot) {
  if (::geteuid() != 0) GTEST_SKIP() << "chroot needs root";
  write("root/prog.c",
        "int only_here(void) { return 1; }\nint main(void) { for (;;) __builtin_ia32_pause(); "
        "return only_here(); }\n");
  const auto prog = folder_ / "root/prog";
  if (std::system(fmt::format("gcc -static -O1 -o {0} {0}.c 2>/dev/null", prog.string()).c_str()) !=
      0)
    GTEST_SKIP() << "no static C library";
  const pid_t child = ::fork();
  if (child == 0) {
    if (::chroot((folder_ / "root").c_str()) == 0 && ::chdir("/") == 0)
      ::execl("/prog", "prog", nullptr);
    ::_exit(1);
  }
  std::error_code ignored;
  for (int i = 0; i < 400 && !fs::equivalent(fmt::format("/proc/{}/exe", child), prog, ignored);
       ++i)
    ::usleep(5000);
  auto o = options();
  o.pids = {child};
  MachineWorld world(o);
  const auto by_path = world.user_functions("/prog", "only_here"),
             by_default = world.user_functions("", "only_here");
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  ASSERT_TRUE(by_path) << by_path.error().message;
  EXPECT_EQ(by_path->front().path, fmt::format("/proc/{}/root/prog", child));
  ASSERT_TRUE(by_default) << by_default.error().message;
}

TEST_F(Machine, SaysThatAProcessIsGone) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ::waitpid(child, nullptr, 0);
  auto o = options();
  o.pids = {child};
  EXPECT_FALSE(MachineWorld(o).user_file(""));
}

TEST(RealMachine, UnderstandsEveryTracepointFormat) {
  MachineWorld world({});
  const auto all = world.tracepoints("*", "*");
  if (!all && all.error().code != ErrorCode::kCorrupt) GTEST_SKIP() << all.error().message;
  ASSERT_TRUE(all) << all.error().message;
  EXPECT_GT(all->size(), 100u);
}

}  // namespace
}  // namespace spile::session
