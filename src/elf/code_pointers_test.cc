#include "elf/code_pointers.h"

#include <algorithm>
#include <set>
#include <sstream>

#include "elf/symbol.h"
#include "elf/test_files.h"

namespace spile::elf {
namespace {

using namespace testing;

bool has(const std::vector<LinkAddr>& sorted, LinkAddr addr) {
  return std::ranges::binary_search(sorted, addr);
}

LinkAddr address_of(const File& file, std::string_view name) {
  auto symbols = read_symbols(file);
  const auto found = std::ranges::find(*symbols, name, &Symbol::name);
  return found == symbols->end() ? LinkAddr() : found->addr;
}

// A computed goto: the labels are inside the function and only data names them.
constexpr const char* kProgram =
    "int run(int c) {\n"
    "  static void* const to[] = {&&a, &&b, &&c3};\n"
    "  goto *to[c % 3];\n"
    "a: asm volatile(\".globl label_a\\nlabel_a:\\n\"); return 1;\n"
    "b: asm volatile(\".globl label_b\\nlabel_b:\\n\"); return 2;\n"
    "c3: return c;\n"
    "}\n"
    "static int called(void) { return 4; }\n"
    "int (*volatile pointer)(void) = called;\n"
    "int main(int c, char** v) { return run(c) + pointer(); }\n";

void expect_all(const std::string& path) {
  auto file = File::open(path);
  ASSERT_TRUE(file);
  auto found = read_code_pointers(*file);
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_TRUE(has(*found, address_of(*file, "label_a")));
  EXPECT_TRUE(has(*found, address_of(*file, "label_b")));
  EXPECT_TRUE(has(*found, address_of(*file, "called")));
  EXPECT_TRUE(has(*found, file->entry()));
  for (const auto addr : *found) EXPECT_TRUE(file->is_executable(addr));
}

TEST(CodePointers, AreFoundInRelocationsRelrAndFixedData) {
  Scratch scratch;
  if (!compile(kProgram, scratch / "pie", "-O1 -fno-toplevel-reorder -pie -fPIE"))
    GTEST_SKIP() << "no C compiler";
  expect_all(scratch / "pie");
  if (compile(kProgram, scratch / "relr", "-O1 -pie -fPIE -Wl,-z,pack-relative-relocs"))
    expect_all(scratch / "relr");
  ASSERT_TRUE(compile(kProgram, scratch / "fixed", "-O1 -no-pie -fno-pie"));
  expect_all(scratch / "fixed");
  ASSERT_TRUE(compile(kProgram, scratch / "old", "-O1 -no-pie -fno-pie -Wl,-z,noseparate-code"));
  expect_all(scratch / "old");
}

TEST(CodePointers, CoverEveryRelocationThatReadelfShows) {
  if (!has_tool("readelf")) GTEST_SKIP() << "no readelf";
  auto file = File::open(kLibstdcxx);
  ASSERT_TRUE(file);
  auto found = read_code_pointers(*file);
  ASSERT_TRUE(found);
  std::istringstream lines(output_of(std::string("readelf -rW ") + kLibstdcxx));
  std::string offset, info, type, addend;
  size_t in_code = 0;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    if (!(words >> offset >> info >> type >> addend) || type != "R_X86_64_RELATIVE") continue;
    const LinkAddr addr(std::stoull(addend, nullptr, 16));
    if (!file->is_executable(addr)) continue;
    ++in_code;
    EXPECT_TRUE(has(*found, addr)) << addend;
  }
  EXPECT_GT(in_code, 100u);
}

}  // namespace
}  // namespace spile::elf
