#include "user_engine/patch/pointer_path.h"

#include <gtest/gtest.h>

#include <memory>

namespace spile::patch {
namespace {

using Code = std::vector<uint8_t>;
constexpr uint64_t kText = 0x400000;

/// The path of the last instruction.
std::optional<PointerPath> path_of(const Code& code) {
  ModuleCode module{{{TargetAddr(kText), code}},
                    {{TargetAddr(kText), TargetAddr(kText + code.size()), "f"}},
                    {},
                    {},
                    {}};
  const CodeMap map(module);
  const Sweep row = sweep(map, map.region_at(TargetAddr(kText)));
  return find_pointer_path(map, row, row.insns.size() - 1);
}

void expect_path(const Code& code,
                 std::optional<uint64_t> base,
                 const std::vector<int64_t>& offsets) {
  const auto path = path_of(code);
  ASSERT_TRUE(path);
  EXPECT_EQ(path->base.has_value(), base.has_value());
  EXPECT_EQ(path->base.value_or(TargetAddr()).value, base.value_or(0));
  EXPECT_EQ(path->offsets, offsets);
}

TEST(PointerPath, AVariable) {
  // mov 0x10(%rip),%rax; add %rdi,%rdi; jmp *%rax
  expect_path({0x48, 0x8b, 0x05, 0x10, 0, 0, 0, 0x48, 0x01, 0xff, 0xff, 0xe0}, kText + 0x17, {0});
}

TEST(PointerPath, AMemberOfAStructure) {
  // lea 0x10(%rip),%rax; jmp *0x90(%rax)
  expect_path({0x48, 0x8d, 0x05, 0x10, 0, 0, 0, 0xff, 0xa0, 0x90, 0, 0, 0}, kText + 0x17, {0x90});
}

TEST(PointerPath, AMemberOfAStructureElsewhere) {
  // mov 0x10(%rip),%rdx; mov %rdx,%rcx; mov 8(%rcx),%rax; jmp *-8(%rax)
  expect_path(
      {0x48, 0x8b, 0x15, 0x10, 0, 0, 0, 0x48, 0x89, 0xd1, 0x48, 0x8b, 0x41, 0x08, 0xff, 0x60, 0xf8},
      kText + 0x17, {0, 8, -8});
}

TEST(PointerPath, AVirtualFunctionHasNoBase) {
  // mov (%rdi),%rax; jmp *0x18(%rax)
  expect_path({0x48, 0x8b, 0x07, 0xff, 0x60, 0x18}, std::nullopt, {0, 0x18});
}

TEST(PointerPath, ANearerWriteOfTheRegisterHidesAFartherOne) {
  // mov 0x10(%rip),%rax; rol $17,%rax; jmp *%rax: a pointer that is kept scrambled
  EXPECT_FALSE(path_of({0x48, 0x8b, 0x05, 0x10, 0, 0, 0, 0x48, 0xc1, 0xc0, 0x11, 0xff, 0xe0}));
}

TEST(PointerPath, AnElementOfAnArrayIsNotKnown) {
  // jmp *(%rdx,%rax,8)
  EXPECT_FALSE(path_of({0xff, 0x24, 0xc2}));
}

TEST(PointerPath, ThreadLocalMemoryIsNotKnown) {
  // mov %fs:0x10,%rax; jmp *%rax
  EXPECT_FALSE(path_of({0x64, 0x48, 0x8b, 0x04, 0x25, 0x10, 0, 0, 0, 0xff, 0xe0}));
}

}  // namespace
}  // namespace spile::patch
