#include "kernel_engine/record_order.h"

#include <gtest/gtest.h>

namespace spile::kernel_engine {
namespace {

class Streams : public ::testing::Test {
 protected:
  void comes(uint64_t time_ns, const std::string& text) {
    order_.add(time_ns, {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  }
  std::vector<std::string> given(uint64_t until_ns) {
    std::vector<std::string> texts;
    const size_t count = order_.give(until_ns, [&](std::span<const uint8_t> record) {
      texts.emplace_back(record.begin(), record.end());
    });
    EXPECT_EQ(count, texts.size());
    return texts;
  }
  RecordOrder order_;
};
using Texts = std::vector<std::string>;

TEST_F(Streams, BecomeOneInTimeOrder) {
  comes(10, "a");
  comes(30, "exit");
  comes(20, "of another CPU, from before the exit");
  comes(40, "from behind it");
  EXPECT_EQ(given(UINT64_MAX),
            Texts({"a", "of another CPU, from before the exit", "exit", "from behind it"}));
  EXPECT_TRUE(order_.empty());
}

TEST_F(Streams, KeepWhatIsTooYoung) {
  comes(30, "c");
  comes(10, "a");
  EXPECT_EQ(given(20), Texts({"a"}));
  EXPECT_FALSE(order_.empty());
  comes(25, "late, but not too late");
  EXPECT_EQ(given(20), Texts());
  EXPECT_EQ(given(30), Texts({"late, but not too late", "c"}));
}

TEST_F(Streams, KeepTheirOrderWithinOneMoment) {
  for (const char* text : {"1", "22", "", "4444"}) comes(7, text);
  EXPECT_EQ(given(7), Texts({"1", "22", "", "4444"}));
}

}  // namespace
}  // namespace spile::kernel_engine
