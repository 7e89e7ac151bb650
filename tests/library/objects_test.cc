#include <gtest/gtest.h>
#include <spile/kprobe.hpp>

#include <cerrno>
#include <string>

#include "probed.h"

namespace {

TEST(Objects, AKprobeUndoesItself) {
  long seen = 0, behind = 0;
  {
    spile::Kprobe p(&probed_sum);
    p.before([&](spile::Regs& regs) { seen = regs.argument<long>(1); });
    p.behind([&](spile::Regs&) { ++behind; });
    ASSERT_EQ(p.add(), 0) << spile_error_text();
    spile::Kprobe moved(std::move(p));
    EXPECT_EQ(probed_sum(1, 20), 110);
    EXPECT_EQ(seen, 20);
    EXPECT_EQ(behind, 1);
  }
  EXPECT_EQ(probed_sum(1, 30), 160);
  EXPECT_EQ(seen, 20);
}

TEST(Objects, ArgumentsAndTheResultCanBeReplaced) {
  spile::Kprobe change("probed_sum");
  change.before([](spile::Regs& regs) { regs.set_argument(0, 100); });
  ASSERT_EQ(change.add(), 0) << spile_error_text();
  EXPECT_EQ(probed_sum(1, 0), 307);
  spile::Kprobe replace("probed_sum");
  replace.before([](spile::Regs& regs) {
    regs.return_from_function(-1L);
    return true;
  });
  ASSERT_EQ(replace.add(), 0) << spile_error_text();
  EXPECT_EQ(probed_sum(1, 0), -1);
}

TEST(Objects, AKretprobeKeepsDataOfEachCall) {
  struct Depth {
    long argument = 5;
  };
  long sum = 0, fresh = 0;
  spile::Kretprobe<Depth> r("probed_recursive");
  r.entry([&](spile::Regs& regs, Depth& d) {
    fresh += d.argument == 5;
    d.argument = regs.argument<long>(0);
  });
  r.exit([&](spile::Regs& regs, Depth& d) { sum += d.argument * 1000 + regs.return_value<long>(); });
  r.max_active(20).options(SPILE_ALLOW_TRAP);
  ASSERT_EQ(r.add(), 0) << spile_error_text();
  EXPECT_EQ(probed_recursive(3), 6);
  EXPECT_EQ(sum, 6000 + 0 + 1 + 3 + 6);
  EXPECT_EQ(fresh, 4);
  EXPECT_EQ(r.missed(), 0);
}

TEST(Objects, AnFprobeSeesManyFunctions) {
  struct Kept {
    unsigned long function;
  };
  long entries = 0, exits = 0;
  spile::Fprobe<Kept> f;
  f.entry([&](spile::FunctionCall<Kept> c) {
    ++entries;
    c.data.function = c.function;
  });
  f.exit([&](spile::FunctionCall<Kept> c) { exits += c.data.function == c.function; });
  ASSERT_EQ(f.add("probed_*ner"), 0) << spile_error_text();  // probed_inner
  probed_outer(1);
  EXPECT_EQ(entries, 1);
  EXPECT_EQ(exits, 1);
  f.enable(false);
  probed_outer(1);
  EXPECT_EQ(entries, 1);
  EXPECT_EQ(f.add("probed_inner"), -EBUSY);
}

}  // namespace
