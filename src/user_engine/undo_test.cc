#include "user_engine/undo.h"

#include <gtest/gtest.h>

namespace spile::user_engine {
namespace {

using namespace std::chrono_literals;

TEST(RestAfterVainStop, IsTenTimesWhatTheStopTook) {
  EXPECT_EQ(rest_after_vain_stop(0ns), 0ns);
  EXPECT_EQ(rest_after_vain_stop(300us), 3ms);
  EXPECT_EQ(rest_after_vain_stop(150ms), 1500ms);
}

TEST(RestAfterVainStop, IsBoundedForWhoWaitsForTheEnd) {
  EXPECT_EQ(rest_after_vain_stop(500ms), 2s) << "a thread that did not stop in time";
  EXPECT_EQ(rest_after_vain_stop(4s), 2s) << "a machine that stood still";
  EXPECT_EQ(rest_after_vain_stop(std::chrono::nanoseconds::max()), 2s);
}

}  // namespace
}  // namespace spile::user_engine
