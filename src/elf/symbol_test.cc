#include "elf/symbol.h"

#include <algorithm>
#include <set>
#include <sstream>

#include "elf/debug_file.h"
#include "elf/test_files.h"

namespace spile::elf {
namespace {

using namespace testing;

std::string full_name(const Symbol& s) {
  if (s.version.empty()) return std::string(s.name);
  return fmt::format("{}{}{}", s.name, s.is_default_version ? "@@" : "@", s.version);
}

/// "address name" of every function that nm sees; absolute and data symbols left out.
std::set<std::string> functions_by_nm(const std::string& options, const std::string& path) {
  std::set<std::string> functions;
  std::istringstream lines(
      output_of("nm --defined-only --with-symbol-versions " + options + " " + path));
  std::string addr, type, name;
  while (lines >> addr >> type >> name)
    if (std::string("TtWwi").find(type) != std::string::npos) functions.insert(addr + " " + name);
  return functions;
}

std::set<std::string> functions_by_us(const std::vector<Symbol>& symbols) {
  std::set<std::string> functions;
  for (const auto& s : symbols)
    functions.insert(fmt::format("{:016x} {}", s.addr.value, full_name(s)));
  return functions;
}

std::vector<Symbol> named(const std::vector<Symbol>& symbols, std::string_view name) {
  std::vector<Symbol> found;
  std::ranges::copy_if(symbols, std::back_inserter(found),
                       [&](const Symbol& s) { return s.name == name; });
  return found;
}

TEST(Symbols, AreThoseOfNmForStrippedLibraries) {
  if (!has_tool("nm")) GTEST_SKIP() << "no nm";
  for (const char* path : {kLibc, kLibstdcxx, "/lib/x86_64-linux-gnu/libm.so.6"}) {
    auto file = File::open(path);
    ASSERT_TRUE(file);
    auto symbols = read_symbols(*file);
    ASSERT_TRUE(symbols) << symbols.error().message;
    EXPECT_EQ(functions_by_us(*symbols), functions_by_nm("-D", path)) << path;
  }
}

TEST(Symbols, KeepAllVersionsAndKnowTheDefaultOne) {
  auto file = File::open(kLibc);
  ASSERT_TRUE(file);
  auto symbols = read_symbols(*file);
  ASSERT_TRUE(symbols);
  const auto copies = named(*symbols, "memcpy");
  ASSERT_EQ(copies.size(), 2u);
  const auto& current = copies[0].is_default_version ? copies[0] : copies[1];
  const auto& old = copies[0].is_default_version ? copies[1] : copies[0];
  EXPECT_EQ(current.version, "GLIBC_2.14");
  EXPECT_EQ(old.version, "GLIBC_2.2.5");
  EXPECT_FALSE(old.is_default_version);
}

TEST(Symbols, MarkIfuncs) {
  auto file = File::open(kLibc);
  ASSERT_TRUE(file);
  auto symbols = read_symbols(*file);
  ASSERT_TRUE(symbols);
  ASSERT_FALSE(named(*symbols, "strlen").empty());
  EXPECT_EQ(named(*symbols, "strlen")[0].type, SymbolType::kIfunc);
  EXPECT_EQ(named(*symbols, "fopen")[0].type, SymbolType::kFunction);
}

TEST(Symbols, OfAFullProgramHaveStaticFunctionsLabelsAndAliases) {
  Scratch scratch;
  const std::string source =
      "static __attribute__((noinline)) int hidden(int x) { asm volatile(\"\"); return x * 3; }\n"
      "int visible(int x) { return hidden(x) + 1; }\n"
      "int other_name(int x) __attribute__((alias(\"visible\")));\n"
      "asm(\".globl bare\\nbare: nop\\nret\\nlocal_label: nop\\nret\\n\");\n"
      "int data_thing = 7;\n"
      "int main(int c, char** v) { return visible(c); }\n";
  if (!compile(source, scratch / "p", "-O1")) GTEST_SKIP() << "no C compiler";
  auto file = File::open(scratch / "p");
  ASSERT_TRUE(file);
  auto symbols = read_symbols(*file);
  ASSERT_TRUE(symbols);
  ASSERT_EQ(named(*symbols, "hidden").size(), 1u);
  EXPECT_EQ(named(*symbols, "hidden")[0].binding, Binding::kLocal);
  EXPECT_GT(named(*symbols, "hidden")[0].size, 0u);
  ASSERT_EQ(named(*symbols, "other_name").size(), 1u);
  EXPECT_EQ(named(*symbols, "other_name")[0].addr, named(*symbols, "visible")[0].addr);
  ASSERT_EQ(named(*symbols, "bare").size(), 1u);
  EXPECT_EQ(named(*symbols, "bare")[0].type, SymbolType::kLabel);
  EXPECT_TRUE(named(*symbols, "local_label").empty());
  EXPECT_TRUE(named(*symbols, "data_thing").empty());
}

TEST(Symbols, AreFoundWithoutSectionHeaders) {
  auto bytes = bytes_of(kLibc);
  auto whole = File::from_bytes(bytes, "whole");
  ASSERT_TRUE(whole);
  std::fill_n(bytes.begin() + 0x28, 8, uint8_t{0});  // e_shoff
  std::fill_n(bytes.begin() + 0x3c, 4, uint8_t{0});  // e_shnum, e_shstrndx
  auto bare = File::from_bytes(std::move(bytes), "bare");
  ASSERT_TRUE(bare) << bare.error().message;
  EXPECT_TRUE(bare->sections().empty());
  auto with = read_symbols(*whole), without = read_symbols(*bare);
  ASSERT_TRUE(with && without);
  EXPECT_EQ(functions_by_us(*with), functions_by_us(*without));
  EXPECT_FALSE(without->empty());
}

// ---- separate files
// ----------------------------------------------------------------------------------------------

constexpr const char* kProgram =
    "static __attribute__((noinline)) int hidden(int x) { asm volatile(\"\"); return x * 3; }\n"
    "int main(int c, char** v) { return hidden(c); }\n";

class SeparateFile : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_tool("objcopy") || !compile(kProgram, scratch_ / "full", "-O1 -Wl,--build-id=" + id_))
      GTEST_SKIP() << "no C compiler or binutils";
    run("objcopy --only-keep-debug full full.debug");
    run("strip -o stripped full");
  }
  void run(const std::string& command) {
    ASSERT_TRUE(succeeds("cd " + scratch_.path() + " && " + command)) << command;
  }
  std::optional<File> debug_of_stripped() {
    auto file = File::open(scratch_ / "stripped");
    if (!file) return std::nullopt;
    auto debug = open_debug_file(*file, scratch_.path(), "/stripped");
    if (debug) knows_hidden_ = !named(*read_symbols(*debug, *file), "hidden").empty();
    return debug;
  }
  Scratch scratch_;
  std::string id_ = "0x0123456789abcdef";
  bool knows_hidden_ = false;
};

TEST_F(SeparateFile, IsFoundByBuildId) {
  EXPECT_FALSE(debug_of_stripped());
  run("mkdir -p usr/lib/debug/.build-id/01 && cp full.debug "
      "usr/lib/debug/.build-id/01/23456789abcdef.debug");
  EXPECT_TRUE(debug_of_stripped());
  EXPECT_TRUE(knows_hidden_);
}

TEST_F(SeparateFile, WithAnotherBuildIdIsPassedOver) {
  ASSERT_TRUE(compile(kProgram, scratch_ / "foreign", "-O1 -Wl,--build-id=0xffff"));
  run("mkdir -p usr/lib/debug/.build-id/01 && cp foreign "
      "usr/lib/debug/.build-id/01/23456789abcdef.debug");
  EXPECT_FALSE(debug_of_stripped());
}

TEST_F(SeparateFile, IsFoundByDebugLink) {
  run("mkdir -p .debug && cp full.debug .debug/ && cd .debug && objcopy "
      "--add-gnu-debuglink=full.debug ../stripped");
  EXPECT_TRUE(debug_of_stripped());
  EXPECT_TRUE(knows_hidden_);
}

TEST_F(SeparateFile, WithoutBuildIdNeedsTheRightChecksum) {
  run("objcopy --remove-section=.note.gnu.build-id stripped && objcopy "
      "--remove-section=.note.gnu.build-id full.debug");
  run("objcopy --add-gnu-debuglink=full.debug stripped");
  ASSERT_TRUE(debug_of_stripped());
  run("truncate -s +1 full.debug");
  EXPECT_FALSE(debug_of_stripped());
}

TEST_F(SeparateFile, InsideTheProgramIsUnpacked) {
  if (!has_tool("xz")) GTEST_SKIP() << "no xz";
  run("objcopy --strip-debug full mini && xz -k mini && objcopy --add-section "
      ".gnu_debugdata=mini.xz stripped");
  auto file = File::open(scratch_ / "stripped");
  ASSERT_TRUE(file);
  auto mini = open_gnu_debugdata(*file);
  ASSERT_TRUE(mini) << mini.error().message;
  ASSERT_TRUE(*mini);
  EXPECT_EQ(named(*read_symbols(**mini, *file), "hidden").size(), 1u);
}

TEST_F(SeparateFile, ThatUnpacksWithoutEndIsRefused) {
  if (!has_tool("xz")) GTEST_SKIP() << "no xz";
  run("head -c 300M /dev/zero | xz -0 > bomb.xz && objcopy --add-section .gnu_debugdata=bomb.xz "
      "stripped");
  auto file = File::open(scratch_ / "stripped");
  ASSERT_TRUE(file);
  EXPECT_EQ(open_gnu_debugdata(*file).error().code, ErrorCode::kUnsupported);
}

}  // namespace
}  // namespace spile::elf
