#include "symbols/kallsyms.h"

#include <gtest/gtest.h>

namespace spile::symbols {
namespace {

constexpr const char* kText =
    "ffffffff81000000 T _stext\n"
    "ffffffff81001000 T vfs_read\n"
    "ffffffff81001800 D some_data\n"
    "ffffffff81002000 t twin\n"
    "ffffffff81003000 W weak_one\n"
    "ffffffffc0000000 t twin\t[nft]\n"
    "ffffffffc0000100 t nft_init\t[nft]\n";

TEST(Kallsyms, KnowsFunctionsAndTheirModules) {
  const auto k = Kallsyms::parse(kText);
  EXPECT_EQ(k.functions().size(), 6u);
  EXPECT_TRUE(k.exists("vfs_read"));
  EXPECT_TRUE(k.exists("weak_one"));
  EXPECT_FALSE(k.exists("some_data"));
  EXPECT_EQ(k.find("twin").size(), 2u);
  ASSERT_EQ(k.find("twin", "nft").size(), 1u);
  EXPECT_EQ(k.find("twin", "nft")[0]->addr, 0xffffffffc0000000u);
  EXPECT_EQ(k.find("twin", "vmlinux").size(), 1u);
  EXPECT_TRUE(k.has_addresses());
}

TEST(Kallsyms, MatchesPatternsInBothParts) {
  const auto k = Kallsyms::parse(kText);
  EXPECT_EQ(k.match("*_*").size(), 4u);
  EXPECT_EQ(k.match("*", "nf*").size(), 2u);
  EXPECT_EQ(k.match("t*", "vmlinux").size(), 1u);
}

TEST(Kallsyms, ResolvesAddresses) {
  const auto k = Kallsyms::parse(kText);
  const auto at = k.resolve(0xffffffff81001010);
  ASSERT_TRUE(at);
  EXPECT_EQ(at->function->name, "vfs_read");
  EXPECT_EQ(at->offset, 0x10u);
  EXPECT_FALSE(k.resolve(0x1000));
}

TEST(Kallsyms, WorksWithoutPrivilege) {
  const auto k = Kallsyms::parse("0000000000000000 T vfs_read\n0000000000000000 t x\t[m]\n");
  EXPECT_TRUE(k.exists("vfs_read"));
  EXPECT_FALSE(k.has_addresses());
  EXPECT_FALSE(k.resolve(0xffffffff81001010));
}

TEST(Kallsyms, PassesOverLinesThatMakeNoSense) {
  const auto k = Kallsyms::parse(
      "garbage\nffff T\n T x\nxyz T x\nffff TT x\nffff T x [m]y\nffffffff81000000 T good\n\nffff T "
      "last");
  EXPECT_TRUE(k.exists("good"));
  EXPECT_TRUE(k.exists("last"));
  EXPECT_GE(k.bad_lines(), 4u);
}

TEST(Kallsyms, SuggestsNearNames) {
  const auto near = Kallsyms::parse(kText).nearest("vfs_raed");
  ASSERT_FALSE(near.empty());
  EXPECT_EQ(near[0], "vfs_read");
}

TEST(Kallsyms, ReadsTheRunningKernel) {
  const auto k = Kallsyms::load();
  if (!k) GTEST_SKIP() << k.error().message;
  EXPECT_GT(k->functions().size(), 1000u);
  EXPECT_EQ(k->bad_lines(), 0u);
}

}  // namespace
}  // namespace spile::symbols
