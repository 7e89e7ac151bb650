#include "output/wire.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <spile/tracer.hpp>

#include "base/fd.h"

namespace spile::output {
namespace {

/// What comes out is read as a program reads it.
class Wire : public ::testing::Test {
 protected:
  Wire() {
    int ends[2];
    EXPECT_EQ(::pipe(ends), 0);
    from_ = Fd(ends[0]);
    to_ = Fd(ends[1]);
    output_.emplace(Sink(to_.get(), Buffering::kFull));
  }
  /// A frame, its type first.
  std::string next() {
    uint32_t size = 0;
    EXPECT_EQ(::read(from_.get(), &size, sizeof size), static_cast<ssize_t>(sizeof size));
    std::string frame(size, '\0');
    EXPECT_EQ(::read(from_.get(), frame.data(), size), static_cast<ssize_t>(size));
    return frame;
  }
  static spile::detail::FrameReader reader(const std::string& frame) {
    return {reinterpret_cast<const unsigned char*>(frame.data()) + 1, frame.size() - 1};
  }
  spile::Map map_of(const MapRows& rows) {
    EXPECT_TRUE(output_->map(rows));
    frame_ = next();
    auto in = reader(frame_);
    auto map = in.map();
    EXPECT_TRUE(in.ok());
    return map;
  }

  Fd from_, to_;
  std::optional<WireOutput> output_;
  std::string frame_;
};

TEST_F(Wire, EveryKindOfValueArrives) {
  Value record{Value::Kind::kRecord, 0, {}, {}, {"a", "b"}};
  record.fields = {Value::number(static_cast<uint64_t>(-3), true),
                   {Value::Kind::kPointer, 0x7f00, {}, {}}};
  Value all{Value::Kind::kTuple, 0, {}, {}};
  all.fields = {Value{},
                Value::number(~0ull, false),
                {Value::Kind::kText, 0, "text", {}},
                {Value::Kind::kBuffer, 0, std::string("\0x", 2), {}},
                record};
  ASSERT_TRUE(output_->value(all));
  const std::string frame = next();
  EXPECT_EQ(frame[0], SPILE_FRAME_VALUE);
  auto in = reader(frame);
  const spile::Value got = in.value();
  ASSERT_TRUE(in.ok());
  ASSERT_EQ(got.parts.size(), 5u);
  EXPECT_EQ(got.parts[0].kind, spile::Value::Kind::kNone);
  EXPECT_EQ(got.parts[1].bits, ~0ull);
  EXPECT_EQ(got.parts[2].text, "text");
  EXPECT_EQ(got.parts[3].text, std::string("\0x", 2));
  EXPECT_EQ(got.parts[4].part("a")->number(), -3);
  EXPECT_EQ(got.parts[4].part("b")->kind, spile::Value::Kind::kPointer);
}

TEST_F(Wire, BucketsWithoutABoundHaveThatOfTheirType) {
  MapRows rows{.name = "@h", .role = bundle::MapRole::kHist, .rows = {}};
  rows.rows.push_back({Value{}, Histogram{{0, 1}, {1, 2}, {65, 3}}});
  const auto hist = map_of(rows);
  ASSERT_EQ(hist.rows.size(), 1u);
  const auto& buckets = hist.rows[0].buckets;
  EXPECT_EQ(buckets.front().low, INT64_MIN);
  EXPECT_EQ(buckets.front().high, -1);
  EXPECT_EQ(buckets[1].low, 0);
  EXPECT_EQ(buckets[1].high, 0);
  EXPECT_EQ(buckets.back().high, INT64_MAX);
  EXPECT_EQ(buckets.back().count, 3u);
  rows.role = bundle::MapRole::kLhist;
  rows.lhist_min = -10, rows.lhist_max = 10, rows.lhist_step = 15;
  rows.rows[0].value = Histogram{{0, 1}, {1, 1}, {2, 1}, {3, 1}};
  std::string text;
  const auto lhist = map_of(rows);
  for (const auto& b : lhist.rows[0].buckets) text += fmt::format("{}..{} ", b.low, b.high);
  EXPECT_EQ(text, "-9223372036854775808..-11 -10..4 5..9 10..9223372036854775807 ");
}

TEST_F(Wire, AnAnswerIsToldFromWhatTheScriptPrints) {
  const MapRows rows{.name = "@", .rows = {}};
  output_->answer_next_map();
  ASSERT_TRUE(output_->map(rows));
  EXPECT_EQ(next()[0], SPILE_FRAME_MAP_READ);
  ASSERT_TRUE(output_->map(rows));
  EXPECT_EQ(next()[0], SPILE_FRAME_MAP);
  output_->answer_next_map();
  ASSERT_TRUE(output_->no_map("why"));
  EXPECT_EQ(next()[0], SPILE_FRAME_NO_MAP);
  ASSERT_TRUE(output_->map(rows));
  EXPECT_EQ(next()[0], SPILE_FRAME_MAP);
}

}  // namespace
}  // namespace spile::output
