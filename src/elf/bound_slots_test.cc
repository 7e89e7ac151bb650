#include "elf/bound_slots.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "elf/test_files.h"

namespace spile::elf {
namespace {

using testing::Scratch;

constexpr const char* kSource = R"c(
#include <string.h>
#include <stdio.h>
static int one(void) { return 1; }
static void* choose(void) { return (void*)one; }
int chosen(void) __attribute__((ifunc("choose")));
int main(int argc, char** argv) { puts(argv[0]); return chosen() + (int)strlen(argv[0]); }
)c";

std::vector<BoundSlot> slots_of(const File& file) {
  auto slots = read_bound_slots(file);
  EXPECT_TRUE(slots) << (slots ? "" : slots.error().message);
  return slots.value_or(std::vector<BoundSlot>{});
}

bool has_symbol(const std::vector<BoundSlot>& slots, std::string_view name) {
  return std::ranges::find(slots, name, &BoundSlot::symbol) != slots.end();
}

size_t resolvers(const std::vector<BoundSlot>& slots) {
  return static_cast<size_t>(
      std::ranges::count_if(slots, [](const BoundSlot& s) { return s.resolver.value != 0; }));
}

TEST(BoundSlots, NameWhatTheProgramCalls) {
  Scratch scratch;
  if (!testing::compile(kSource, scratch / "prog", "-O0 -fno-builtin"))
    GTEST_SKIP() << "no C compiler";
  const File file = std::move(*File::open(scratch / "prog"));
  const auto slots = slots_of(file);
  EXPECT_TRUE(has_symbol(slots, "strlen"));
  EXPECT_TRUE(has_symbol(slots, "puts"));
  EXPECT_EQ(resolvers(slots), 1u);
  for (const BoundSlot& slot : slots) {
    const Segment* segment = file.segment_at(slot.slot);
    ASSERT_NE(segment, nullptr);
    EXPECT_TRUE(segment->writable);
  }
}

TEST(BoundSlots, AreFoundInStaticPrograms) {
  Scratch scratch;
  if (!testing::compile(kSource, scratch / "prog", "-O0 -fno-builtin -static -no-pie"))
    GTEST_SKIP() << "no static C library";
  const File file = std::move(*File::open(scratch / "prog"));
  const size_t wanted = std::stoul("0" + testing::output_of("readelf -rW " + (scratch / "prog") +
                                                            " | grep -c R_X86_64_IRELATIV"));
  EXPECT_GT(wanted, 1u);
  EXPECT_EQ(resolvers(slots_of(file)), wanted);
}

TEST(BoundSlots, SurviveDamagedTables) {
  Scratch scratch;
  if (!testing::compile(kSource, scratch / "prog", "-O0")) GTEST_SKIP() << "no C compiler";
  auto bytes = testing::bytes_of(scratch / "prog");
  const auto good = bytes;
  const File whole = std::move(*File::from_bytes(bytes, "prog"));
  const Section* table = whole.section(".rela.plt");
  ASSERT_NE(table, nullptr);
  for (uint64_t at = table->offset.value; at < table->offset.value + table->size; ++at) {
    bytes = good;
    bytes[at] ^= 0xff;
    const File file = std::move(*File::from_bytes(bytes, "prog"));
    (void)read_bound_slots(file);
  }
}

}  // namespace
}  // namespace spile::elf
