#include "kernel_engine/uprobe_sites.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace spile::kernel_engine {
namespace {

using bundle::Probe;
using bundle::ProbeKind;

/// A function of known instructions: 1, 3, 5, 1 and 1 bytes.
constexpr const char* kSource = R"(
.text
.globl known
.type known, @function
known:
  push %rbp
  mov %rsp,%rbp
  mov $0x90909090,%eax
  pop %rbp
  ret
.size known, .-known
unknown_to_all: nop
.section .note.GNU-stack,"",@progbits
)";

class Boundary : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/spile-sites-XXXXXX";
    folder_ = ::mkdtemp(name);
    std::ofstream(folder_ / "a.s") << kSource;
    library_ = folder_ / "liba.so";
    if (std::system(fmt::format("gcc -shared -nostdlib -o {} {}/a.s 2>/dev/null", library_,
                                folder_.string())
                        .c_str()) != 0)
      GTEST_SKIP() << "no assembler";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  Result<std::vector<FileSite>> at_offset(uint64_t offset) {
    return SiteResolver().resolve(
        {.kind = ProbeKind::kUprobe, .path = library_, .symbol = "known", .offset = offset});
  }
  LinkAddr known() {
    auto module = symbols::ModuleSymbols::load(library_);
    return module->find("known").front()->addr;
  }
  Result<std::vector<FileSite>> at_address(ProbeKind kind, uint64_t address) {
    return SiteResolver().resolve(
        {.kind = kind, .name = "it", .path = library_, .address = address});
  }

  std::filesystem::path folder_;
  std::string library_;
};

TEST_F(Boundary, AcceptsTheFirstByteOfEachInstruction) {
  for (uint64_t offset : {0, 1, 4, 9, 10}) {
    auto sites = at_offset(offset);
    ASSERT_TRUE(sites) << offset << ": " << sites.error().message;
    EXPECT_EQ((*at_address(ProbeKind::kUprobe, known().value + offset))[0].offset,
              (*sites)[0].offset);
  }
}

TEST_F(Boundary, RefusesTheInsideOfAnInstruction) {
  for (uint64_t offset : {2, 3, 5, 6, 7, 8}) {
    auto sites = at_offset(offset);
    ASSERT_FALSE(sites) << offset;
    EXPECT_EQ(sites.error().code, ErrorCode::kInvalid);
    EXPECT_NE(sites.error().message.find("inside the instruction"), std::string::npos);
    EXPECT_FALSE(at_address(ProbeKind::kUprobe, known().value + offset));
  }
}

TEST_F(Boundary, RefusesWhatIsBehindTheFunction) {
  EXPECT_NE(at_offset(11).error().message.find("only 11 bytes long"), std::string::npos);
}

TEST_F(Boundary, RefusesUprobesWhereNoFunctionIsKnown) {
  EXPECT_EQ(at_address(ProbeKind::kUprobe, known().value + 11).error().code, ErrorCode::kUnsafe);
}

TEST_F(Boundary, BelievesANoteOnlyAtAnInstruction) {
  EXPECT_TRUE(at_address(ProbeKind::kUsdt, known().value + 4));
  EXPECT_FALSE(at_address(ProbeKind::kUsdt, known().value + 6));  // a 90 inside a constant
  EXPECT_TRUE(at_address(ProbeKind::kUsdt, known().value + 11));  // no function, but a nop
  EXPECT_FALSE(at_address(ProbeKind::kUsdt, 0x40));               // the file's header
}

}  // namespace
}  // namespace spile::kernel_engine
