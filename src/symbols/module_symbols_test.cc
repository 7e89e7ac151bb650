#include "symbols/module_symbols.h"

#include <algorithm>
#include <chrono>

#include "elf/test_files.h"

namespace spile::symbols {
namespace {

using elf::testing::compile;
using elf::testing::has_tool;
using elf::testing::kLibc;
using elf::testing::Scratch;
using elf::testing::succeeds;

ModuleSymbols load(const std::string& path, LoadOptions options = {}) {
  auto module = ModuleSymbols::load(path, std::move(options));
  EXPECT_TRUE(module) << module.error().message;
  return std::move(*module);
}

TEST(ModuleSymbols, FindsTheDefaultVersionOnlyUnlessAsked) {
  const auto libc = load(kLibc);
  ASSERT_EQ(libc.find("memcpy").size(), 1u);
  EXPECT_EQ(libc.find("memcpy")[0]->version, "GLIBC_2.14");
  ASSERT_EQ(libc.find("memcpy@GLIBC_2.2.5").size(), 1u);
  EXPECT_NE(libc.find("memcpy@GLIBC_2.2.5")[0]->addr, libc.find("memcpy")[0]->addr);
  EXPECT_EQ(libc.find("memcpy@@GLIBC_2.14")[0], libc.find("memcpy")[0]);
  EXPECT_TRUE(libc.find("memcpy@GLIBC_9").empty());
  EXPECT_TRUE(libc.find("no_such_function").empty());
}

TEST(ModuleSymbols, MatchesStarsAndNothingElse) {
  const auto libc = load(kLibc);
  const auto all = libc.match("fopen*");
  EXPECT_TRUE(std::ranges::all_of(all, [](auto* f) { return f->name.starts_with("fopen"); }));
  EXPECT_GE(all.size(), 3u);  // fopen, fopen64, fopencookie
  EXPECT_TRUE(libc.match("fope?").empty());
  EXPECT_TRUE(libc.match("[f]open").empty());
  EXPECT_EQ(libc.match("fopen").size(), 1u);
  EXPECT_TRUE(std::ranges::is_sorted(all, {}, &Function::addr));
}

TEST(ModuleSymbols, SuggestsNearNames) {
  const auto libc = load(kLibc);
  const auto near = libc.nearest("fopne");
  ASSERT_FALSE(near.empty());
  EXPECT_EQ(near[0], "fopen");
  EXPECT_LE(near.size(), 3u);
  EXPECT_TRUE(libc.nearest("nothing_like_this_anywhere_at_all").empty());
}

TEST(ModuleSymbols, ResolvesEveryFunctionBackToItself) {
  const auto libc = load(kLibc);
  for (const auto& f : libc.functions()) {
    const auto at = libc.resolve(f.addr + f.size / 2);
    ASSERT_TRUE(at) << f.name;
    EXPECT_GE(at->function->addr, f.addr) << f.name;
    EXPECT_EQ(at->function->addr + at->offset, f.addr + f.size / 2);
  }
  EXPECT_FALSE(libc.resolve(LinkAddr(1)));
}

TEST(ModuleSymbols, CompletesSizesFromTheUnwindTable) {
  Scratch scratch;
  const std::string source =
      "asm(\".text\\n.globl sizeless\\n.type sizeless,@function\\nsizeless: "
      ".cfi_startproc\\nnop\\nnop\\nret\\n.cfi_endproc\\n.skip 64\\n\"\n"
      "    \".globl bare\\n.type bare,@function\\nbare: nop\\nret\\n.globl after\\n.type "
      "after,@function\\nafter: "
      "ret\\n\");\n"
      "int main(void) { return 0; }\n";
  if (!compile(source, scratch / "p", "-O1")) GTEST_SKIP() << "no C compiler";
  const auto p = load(scratch / "p");
  ASSERT_EQ(p.find("sizeless").size(), 1u);
  EXPECT_EQ(p.find("sizeless")[0]->size, 3u);
  EXPECT_TRUE(p.find("sizeless")[0]->size_is_guessed);
  EXPECT_EQ(p.find("bare")[0]->size, 2u);  // up to `after`
  EXPECT_FALSE(p.find("main")[0]->size_is_guessed);
}

TEST(ModuleSymbols, GivesStaticFunctionsOfOneNameAll) {
  Scratch scratch;
  elf::testing::write_file(
      scratch / "a.c",
      "static __attribute__((noinline)) int twin(int x) { asm(\"\"); return x + 1; }\nint fa(int "
      "x) { return twin(x); }\n");
  elf::testing::write_file(
      scratch / "b.c",
      "static __attribute__((noinline)) int twin(int x) { asm(\"\"); return x + 2; }\nint "
      "fa(int);\nint main(int c, char** v) { return fa(c) + twin(c); }\n");
  if (!succeeds("cd " + scratch.path() + " && gcc -O1 -o p a.c b.c"))
    GTEST_SKIP() << "no C compiler";
  EXPECT_EQ(load(scratch / "p").find("twin").size(), 2u);
}

TEST(ModuleSymbols, OfAStrippedProgramComeFromItsDebugFile) {
  Scratch scratch;
  const std::string source =
      "static __attribute__((noinline)) int hidden(int x) { asm(\"\"); return x * 3; }\nint "
      "main(int c, char** v) { "
      "return hidden(c); }\n";
  if (!compile(source, scratch / "p", "-O1 -Wl,--build-id=0xabcdef") || !has_tool("objcopy"))
    GTEST_SKIP() << "no C compiler or binutils";
  ASSERT_TRUE(succeeds("cd " + scratch.path() +
                       " && mkdir -p usr/lib/debug/.build-id/ab && strip -o stripped p"));
  const auto before = load(scratch / "stripped", {scratch.path(), "/stripped", true});
  EXPECT_FALSE(before.has_full_symbols());
  EXPECT_TRUE(before.find("hidden").empty());
  ASSERT_TRUE(succeeds("cd " + scratch.path() +
                       " && objcopy --only-keep-debug p usr/lib/debug/.build-id/ab/cdef.debug"));
  const auto after = load(scratch / "stripped", {scratch.path(), "/stripped", true});
  EXPECT_TRUE(after.has_full_symbols());
  EXPECT_EQ(after.find("hidden").size(), 1u);
  EXPECT_TRUE(
      load(scratch / "stripped", {scratch.path(), "/stripped", false}).find("hidden").empty());
}

TEST(ModuleSymbols, StaysUsableAfterAMove) {
  auto first = load(kLibc);
  const auto* fopen = first.find("fopen")[0];
  const auto second = std::move(first);
  EXPECT_EQ(second.find("fopen")[0], fopen);
  EXPECT_EQ(fopen->name, "fopen");
  EXPECT_TRUE(second.unwind());
}

TEST(ModuleSymbols, OfALargeProgramLoadQuickly) {
  if (::access("/usr/bin/node", R_OK) != 0) GTEST_SKIP() << "no node";
  const auto start = std::chrono::steady_clock::now();
  const auto node = load("/usr/bin/node");
  const auto loaded = std::chrono::steady_clock::now();
  EXPECT_GT(node.functions().size(), 50'000u);
  ASSERT_TRUE(node.code_pointers());
  const auto pointers = std::chrono::steady_clock::now();
  const auto table = node.unwind();
  ASSERT_TRUE(table) << table.error().message;
  ASSERT_TRUE((*table)->all_landing_pads());
  const auto unwound = std::chrono::steady_clock::now();
  const auto ms = [](auto d) {
    return std::chrono::duration_cast<std::chrono::milliseconds>(d).count();
  };
  RecordProperty("load_ms", static_cast<int>(ms(loaded - start)));
  fmt::print(
      "node: {} functions {} ms, {} code pointers {} ms, {} ranges and {} landing pads {} ms\n",
      node.functions().size(), ms(loaded - start), node.code_pointers()->size(),
      ms(pointers - loaded), (*table)->functions().size(), (*table)->all_landing_pads()->size(),
      ms(unwound - pointers));
  EXPECT_LT(loaded - start, std::chrono::seconds(2));
}

}  // namespace
}  // namespace spile::symbols
