#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "symbols/glob.h"
#include "symbols/nearest.h"

namespace spile::symbols {
namespace {

TEST(Glob, StarStandsForAnyBytes) {
  EXPECT_TRUE(glob_matches("*", ""));
  EXPECT_TRUE(glob_matches("a*c", "ac"));
  EXPECT_TRUE(glob_matches("a*c", "abcbc"));
  EXPECT_TRUE(glob_matches("*b*", "abc"));
  EXPECT_TRUE(glob_matches("**x**", "x"));
  EXPECT_FALSE(glob_matches("a*c", "abcd"));
  EXPECT_FALSE(glob_matches("", "a"));
  EXPECT_FALSE(glob_matches("abc", "ab"));
}

TEST(Glob, OtherSignsStandForThemselves) {
  EXPECT_FALSE(glob_matches("a?c", "abc"));
  EXPECT_TRUE(glob_matches("a?c", "a?c"));
  EXPECT_FALSE(glob_matches("[ab]", "a"));
}

TEST(Glob, DoesNotTakeExponentialTime) {
  const std::string text(20'000, 'a');
  const auto start = std::chrono::steady_clock::now();
  EXPECT_FALSE(glob_matches("a*a*a*a*a*a*a*a*a*a*b", text));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(2));
}

TEST(EditDistance, CountsInsertionsDeletionsReplacementsAndSwaps) {
  EXPECT_EQ(edit_distance("abc", "abc", 3), 0u);
  EXPECT_EQ(edit_distance("abc", "abxc", 3), 1u);
  EXPECT_EQ(edit_distance("abc", "ac", 3), 1u);
  EXPECT_EQ(edit_distance("abc", "axc", 3), 1u);
  EXPECT_EQ(edit_distance("abc", "acb", 3), 1u);
  EXPECT_EQ(edit_distance("kitten", "sitting", 3), 3u);
  EXPECT_EQ(edit_distance("kitten", "sitting", 2), 3u);
  EXPECT_EQ(edit_distance("", "abcd", 3), 4u);
  EXPECT_EQ(edit_distance("", "abc", 3), 3u);
}

TEST(Nearest, GivesTheBestFirstAndNothingTwice) {
  Nearest near("malloc", 3);
  for (const char* name : {"mallocs", "mallox", "calloc", "malloc_x", "mallox", "realloc", "zebra"})
    near.offer(name);
  const auto names = near.take();
  ASSERT_EQ(names.size(), 3u);
  EXPECT_EQ(names[0], "mallocs");
  EXPECT_EQ(names[1], "mallox");
  EXPECT_EQ(names[2], "calloc");
}

TEST(Nearest, SuggestsNothingForAVeryShortName) {
  Nearest near("f", 3);
  near.offer("g");
  EXPECT_TRUE(near.take().empty());
}

TEST(Nearest, PrefersALaterBetterName) {
  Nearest near("abcdef", 1);
  near.offer("abcxyf");
  near.offer("abcdeg");
  const auto names = near.take();
  ASSERT_EQ(names.size(), 1u);
  EXPECT_EQ(names[0], "abcdeg");
}

}  // namespace
}  // namespace spile::symbols
