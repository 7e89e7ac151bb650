#include "symbols/library_path.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <random>

#include "elf/test_files.h"

namespace spile::symbols {
namespace {

using elf::testing::Scratch;
using elf::testing::write_file;

/// A root file system with what the test puts in.
class Root : public ::testing::Test {
 protected:
  void put(const std::string& path, const std::string& text = "\177ELF fake") {
    std::filesystem::create_directories(std::filesystem::path(root_ / path).parent_path());
    write_file(root_ / path, text);
  }
  void link(const std::string& to, const std::string& path) {
    std::filesystem::create_directories(std::filesystem::path(root_ / path).parent_path());
    std::filesystem::create_symlink(to, root_ / path);
  }
  std::vector<std::string> paths_of(std::string_view name) {
    std::vector<std::string> paths;
    if (auto found = locate(name, root_.path()))
      for (const auto& f : *found) paths.push_back(f.path);
    return paths;
  }
  using Paths = std::vector<std::string>;
  Scratch root_;
};

void put_u32(std::string& bytes, size_t at, uint32_t value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

struct CacheLine {
  std::string soname, path;
  uint32_t flags = 0x0303;
};

std::string make_cache(const std::vector<CacheLine>& lines) {
  std::string bytes("glibc-ld.so.cache1.1");
  bytes.resize(48 + 24 * lines.size());
  put_u32(bytes, 20, static_cast<uint32_t>(lines.size()));
  for (size_t i = 0; i < lines.size(); ++i) {
    put_u32(bytes, 48 + i * 24, lines[i].flags);
    put_u32(bytes, 48 + i * 24 + 4, static_cast<uint32_t>(bytes.size()));
    bytes += lines[i].soname + '\0';
    put_u32(bytes, 48 + i * 24 + 8, static_cast<uint32_t>(bytes.size()));
    bytes += lines[i].path + '\0';
  }
  return bytes;
}

TEST(LibraryName, MatchesItsSonameInEveryLength) {
  EXPECT_TRUE(library_name_matches("libc", "libc.so.6"));
  EXPECT_TRUE(library_name_matches("libc.so", "libc.so.6"));
  EXPECT_TRUE(library_name_matches("libc.so.6", "libc.so.6"));
  EXPECT_TRUE(library_name_matches("libz*", "libzstd.so.1"));
  EXPECT_TRUE(library_name_matches("libc", "libc.musl-x86_64.so.1"));
  EXPECT_FALSE(library_name_matches("libc", "libcrypt.so.1"));
  EXPECT_FALSE(library_name_matches("libssl.so.1", "libssl.so.11"));
  EXPECT_FALSE(library_name_matches("libc", "libc.a"));
  EXPECT_FALSE(library_name_matches("libc", "libc"));
}

TEST_F(Root, LibrariesComeFromTheLoadersCache) {
  put("opt/odd/libodd.so.3");
  put("usr/lib/libodd.so.2");
  put("etc/ld.so.cache", make_cache({{"libodd.so.3", "/opt/odd/libodd.so.3"},
                                     {"libodd.so.9", "/opt/i386/libodd.so.9", 0x0003}}));
  EXPECT_EQ(paths_of("libodd"), Paths{"/opt/odd/libodd.so.3"});
  EXPECT_EQ(paths_of("libodd.so.3"), Paths{"/opt/odd/libodd.so.3"});
}

TEST_F(Root, LibrariesWithoutACacheComeFromTheDefaultFolders) {
  put("usr/lib/x86_64-linux-gnu/libodd.so.3.1");
  link("libodd.so.3.1", "usr/lib/x86_64-linux-gnu/libodd.so.3");
  put("usr/lib/x86_64-linux-gnu/libodd.so", "/* GNU ld script */");
  EXPECT_EQ(paths_of("libodd"), Paths{"/usr/lib/x86_64-linux-gnu/libodd.so.3.1"});
}

TEST_F(Root, MuslsFoldersAreSearched) {
  put("srv/musl/libodd.so");
  put("etc/ld-musl-x86_64.path", "/nowhere:/srv/musl\n");
  link("libodd.so", "lib/libold.so.1");
  EXPECT_EQ(paths_of("libodd"), Paths{"/srv/musl/libodd.so"});
}

TEST_F(Root, OneFileUnderTwoFoldersCountsOnce) {
  put("usr/lib/x86_64-linux-gnu/libodd.so.3");
  link("usr/lib", "lib");
  put("etc/ld.so.cache", make_cache({{"libodd.so.3", "/lib/x86_64-linux-gnu/libodd.so.3"},
                                     {"libodd.so.3", "/usr/lib/x86_64-linux-gnu/libodd.so.3"}}));
  EXPECT_EQ(paths_of("libodd"), Paths{"/usr/lib/x86_64-linux-gnu/libodd.so.3"});
  auto found = locate("libodd", root_.path());
  ASSERT_TRUE(found);
  EXPECT_EQ(found->front().found_as, "/lib/x86_64-linux-gnu/libodd.so.3");
  EXPECT_EQ(found->front().host_path, root_ / "usr/lib/x86_64-linux-gnu/libodd.so.3");
}

TEST_F(Root, AbsoluteLinksStayInside) {
  put("usr/bin/real");
  link("/usr/bin/real", "usr/bin/prog");
  EXPECT_EQ(paths_of("/usr/bin/prog"), Paths{"/usr/bin/real"});
  link("/etc/passwd", "usr/bin/escape");
  EXPECT_TRUE(paths_of("/usr/bin/escape").empty());
}

TEST_F(Root, ProgramsAreFoundOnceInPath) {
  put("usr/bin/prog");
  put("bin/prog");
  EXPECT_EQ(paths_of("prog"), Paths{"/usr/bin/prog"});
  put("usr/bin/script", "#!/bin/sh");
  EXPECT_TRUE(paths_of("script").empty());
}

TEST_F(Root, PathPatternsMatchWithinOneFolderName) {
  put("opt/a1/bin/x");
  put("opt/a2/bin/x");
  put("opt/a2/deeper/bin/x");
  put("opt/.hidden/bin/x");
  EXPECT_EQ(paths_of("/opt/*/bin/x"), (Paths{"/opt/a1/bin/x", "/opt/a2/bin/x"}));
  EXPECT_EQ(paths_of("/opt/a*/bin/*"), (Paths{"/opt/a1/bin/x", "/opt/a2/bin/x"}));
}

TEST_F(Root, WhatIsNotThereSaysWhereItWasLookedFor) {
  const auto library = locate("libnowhere", root_.path());
  ASSERT_FALSE(library);
  EXPECT_EQ(library.error().code, ErrorCode::kNotFound);
  EXPECT_NE(library.error().message.find("ld.so.cache"), std::string::npos);
  EXPECT_EQ(locate("nowhere", root_.path()).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(locate("/nowhere", root_.path()).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(locate("", root_.path()).error().code, ErrorCode::kInvalid);
}

TEST(Locate, FollowsTheLinksOfProc) {
  const auto found = locate("/proc/self/exe");
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_TRUE(std::filesystem::equivalent(found->front().host_path, "/proc/self/exe"));
  EXPECT_FALSE(found->front().path.starts_with("/proc"));
}

TEST(Locate, KeepsAPathThatOnlyTheKernelCanFollow) {
  // A deleted program: the text of its link leads nowhere.
  Scratch scratch;
  const auto copy = scratch / "copy";
  std::filesystem::copy_file("/bin/sleep", copy);
  const pid_t child = ::fork();
  if (child == 0) {
    ::execl(copy.c_str(), "copy", "20", nullptr);
    ::_exit(1);
  }
  const auto link = fmt::format("/proc/{}/exe", child);
  for (int i = 0; i < 200 && !std::filesystem::equivalent(link, copy); ++i) ::usleep(5000);
  std::filesystem::remove(copy);
  const auto found = locate(link);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_EQ(found->front().host_path, link);
}

TEST(LdCache, OfThisMachineHoldsLibc) {
  const auto bytes = elf::testing::bytes_of("/etc/ld.so.cache");
  if (bytes.empty()) GTEST_SKIP() << "no loader cache";
  const std::string text(bytes.begin(), bytes.end());
  const auto entries = parse_ld_cache(text);
  ASSERT_TRUE(entries) << entries.error().message;
  bool has_libc = false;
  for (const auto& e : *entries) has_libc |= e.soname == "libc.so.6";
  EXPECT_TRUE(has_libc);
  const auto found = locate("libc");
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_TRUE(std::filesystem::equivalent(found->front().host_path, elf::testing::kLibc));
}

TEST(LdCache, BehindTheOldFormatIsRead) {
  const auto text =
      "ld.so-1.7.0" + std::string(21, '\0') + make_cache({{"libx.so.1", "/lib/libx.so.1"}});
  const auto entries = parse_ld_cache(text);
  ASSERT_TRUE(entries);
  ASSERT_EQ(entries->size(), 1u);
  EXPECT_EQ((*entries)[0].path, "/lib/libx.so.1");
}

TEST(LdCache, DamagedOnesAreRefusedOrReadButNeverLeft) {
  const auto good = make_cache({{"liba.so.1", "/lib/liba.so.1"}, {"libb.so.2", "/lib/libb.so.2"}});
  EXPECT_EQ(parse_ld_cache("nonsense").error().code, ErrorCode::kUnsupported);
  for (size_t size = 20; size < 48 + 48; ++size)
    EXPECT_FALSE(parse_ld_cache(std::string_view(good).substr(0, size)));
  std::mt19937 random(7);
  for (int round = 0; round < 5000; ++round) {
    auto bytes = good;
    bytes[20 + random() % (bytes.size() - 20)] = static_cast<char>(random());
    const auto entries = parse_ld_cache(bytes);
    if (!entries) continue;
    for (const auto& e : *entries) {
      EXPECT_GE(e.soname.data(), bytes.data());
      EXPECT_LT(e.path.data() + e.path.size(), bytes.data() + bytes.size());
    }
  }
}

}  // namespace
}  // namespace spile::symbols
