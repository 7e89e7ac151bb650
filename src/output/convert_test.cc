#include "output/convert.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>

#include "output/cgroups.h"
#include "output/commands.h"

namespace spile::output {
namespace {

TEST(Convert, InternetAddresses) {
  const uint8_t four[16] = {192, 168, 0, 7};
  const uint8_t six[16] = {0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
  EXPECT_EQ(inet_text(2, four), "192.168.0.7");
  EXPECT_EQ(inet_text(10, six), "fe80::1");
  EXPECT_EQ(inet_text(77, four), "");
  EXPECT_EQ(inet_text(2, std::span(four, 4)), "");
}

TEST(Convert, MacAddresses) {
  const uint8_t mac[6] = {0xa6, 0xb2, 1, 0, 0, 0xf};
  EXPECT_EQ(mac_text(mac), "A6:B2:01:00:00:0F");
}

TEST(Convert, Names) {
  EXPECT_EQ(named_text("strerror", 2), "No such file or directory");
  EXPECT_EQ(named_text("signal_name", 9), "SIGKILL");
  EXPECT_EQ(named_text("signal_name", 9999), "9999");
  EXPECT_EQ(named_text("username", 0), "root");
  EXPECT_EQ(named_text("syscall_name", 0), "read");
  EXPECT_EQ(named_text("syscall_name", 257), "openat");
  EXPECT_EQ(named_text("syscall_name", 334), "rseq");
  EXPECT_EQ(named_text("syscall_name", 400), "400");
  EXPECT_EQ(named_text("syscall_name", -1), "-1");
  EXPECT_EQ(named_text("username", 3999999999), "3999999999");
}

TEST(Convert, ControlGroupsAreFoundByTheInodesOfTheirFolders) {
  char folder[] = "/tmp/spile_groups_XXXXXX";
  ASSERT_NE(mkdtemp(folder), nullptr);
  const std::string root = folder, deep = root + "/v2/a.slice/b.service";
  std::filesystem::create_directories(deep);
  std::filesystem::create_directories(root + "/cpu");
  std::filesystem::create_directory_symlink(deep, root + "/v2/link");
  std::ofstream(root + "/mounts") << "none " << root << "/v2 cgroup2 rw 0 0\nnone " << root
                                  << "/cpu cgroup rw 0 0\nnone " << root << " tmpfs rw 0 0\n";
  const auto text = [&](const std::string& path, const std::string& filter = "") {
    struct stat status = {};
    EXPECT_EQ(::stat(path.c_str(), &status), 0) << path;
    return cgroup_path_text(status.st_ino, filter, root + "/mounts");
  };
  EXPECT_EQ(text(deep), "unified:/a.slice/b.service");
  EXPECT_EQ(text(root + "/v2"), "unified:/");
  EXPECT_EQ(text(root + "/cpu"), "cpu:/");
  EXPECT_EQ(text(root), "");
  EXPECT_EQ(text(deep, "uni*"), "unified:/a.slice/b.service");
  EXPECT_EQ(text(deep, "cpu"), "");
  std::filesystem::remove_all(root);
}

TEST(Convert, TimesHaveParts) {
  constexpr uint64_t kTime = 1'000'000'000'123'456'789;
  EXPECT_EQ(timestamp_text("%f %l %k", kTime), "123456 123 123456789");
  EXPECT_EQ(timestamp_text("%%f", kTime), "%f");
  EXPECT_EQ(timestamp_text("a%", kTime), "a%");
  EXPECT_EQ(timestamp_text("%s", kTime), "1000000000");
}

TEST(Commands, GiveWhatTheySay) {
  EXPECT_EQ(run_command("printf 'one\\ntwo'"), "one\ntwo");
  EXPECT_EQ(read_for_cat("/proc/self/comm", 3).size(), 3u);
  EXPECT_EQ(read_for_cat("/no/such/file", 100), "");
}

}  // namespace
}  // namespace spile::output
