#include "dwarf/dwarf.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/wait.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

namespace spile::dwarf {
namespace {

constexpr const char* kSource = R"(
typedef struct pair { int left; long right; } pair;
struct big { long a, b, c; };
struct node { struct node *next; unsigned low : 3, high : 7; char name[12]; union { int u; char v; }; pair in[2]; };
enum color { RED, BLUE };
long plain(int n, const char *name, struct node *list, unsigned char small, enum color c, void *data, int seventh) {
  return n + small + c + seventh + (name != 0) + (list != 0) + (data != 0);
}
long mixed(double d, int after, struct big big, int behind_big, pair p, int lost) {
  return (long)d + after + big.a + behind_big + p.left + lost;
}
struct big returned(int n) { struct big b = {n, n, n}; return b; }
int main(void) { return 0; }
)";

/// A program that gcc makes on the spot.
class Compiled : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    char directory[] = "/tmp/spile_dwarf_XXXXXX";
    if (mkdtemp(directory) == nullptr) return;
    directory_ = directory;
    std::ofstream(directory_ + "/a.c") << kSource;
    const std::string command =
        "gcc -g -O0 -no-pie " + directory_ + "/a.c -o " + directory_ + "/a.out 2>/dev/null";
    is_built_ = std::system(command.c_str()) == 0;
  }
  static void TearDownTestSuite() { std::filesystem::remove_all(directory_); }

  void SetUp() override {
    if (!is_built_) GTEST_SKIP() << "gcc cannot compile here";
  }

  static std::string path() { return directory_ + "/a.out"; }
  static uint64_t address_of(const std::string& symbol) {
    FILE* nm = popen(("nm " + path()).c_str(), "r");
    uint64_t address = 0;
    char line[512], name[256];
    while (nm != nullptr && std::fgets(line, sizeof line, nm) != nullptr) {
      unsigned long at = 0;
      if (std::sscanf(line, "%lx %*c %255s", &at, name) == 2 && symbol == name) address = at;
    }
    if (nm != nullptr) pclose(nm);
    return address;
  }
  static std::vector<Parameter> parameters(const std::string& symbol) {
    auto file = File::open(path());
    EXPECT_TRUE(file) << file.error().message;
    auto found = file->parameters(address_of(symbol));
    EXPECT_TRUE(found) << found.error().message;
    return found.value_or(std::vector<Parameter>());
  }

  static inline std::string directory_;
  static inline bool is_built_ = false;
};

using Kind = Type::Kind;

TEST_F(Compiled, ParametersHaveNamesTypesAndRegisters) {
  const auto found = parameters("plain");
  ASSERT_EQ(found.size(), 7u);
  const char* const names[] = {"n", "name", "list", "small", "c", "data", "seventh"};
  for (int i = 0; i < 7; i++) {
    EXPECT_EQ(found[i].name, names[i]);
    EXPECT_EQ(found[i].register_index, i < 6 ? i : -1);
  }
  EXPECT_TRUE(found[0].type.is_signed);
  EXPECT_EQ(found[0].type.size_bytes, 4u);
  EXPECT_EQ(found[1].type.kind, Kind::kPointer);
  EXPECT_TRUE(found[1].type.target->is_char);
  EXPECT_EQ(found[2].type.target->name, "node");
  EXPECT_FALSE(found[3].type.is_signed);
  EXPECT_EQ(found[3].type.size_bytes, 1u);
  EXPECT_EQ(found[4].type.size_bytes, 4u);
  EXPECT_EQ(found[5].type.target, nullptr);
  EXPECT_NE(found[6].problem.find("not passed in a register"), std::string::npos);
}

TEST_F(Compiled, WhatIsNotInAnIntegerRegisterSaysWhy) {
  const auto found = parameters("mixed");
  ASSERT_EQ(found.size(), 6u);
  EXPECT_NE(found[0].problem.find("floating-point"), std::string::npos);
  EXPECT_EQ(found[1].register_index, 0);
  EXPECT_NE(found[2].problem.find("by value"), std::string::npos);
  EXPECT_EQ(found[3].register_index, 1);  // a struct of 24 bytes uses no register
  EXPECT_NE(found[4].problem.find("by value"), std::string::npos);
  EXPECT_NE(found[5].problem.find("behind a struct"), std::string::npos);
  EXPECT_EQ(parameters("returned").front().register_index, 1);  // rdi: where the result goes
}

TEST_F(Compiled, StructsHaveTheirFields) {
  auto file = File::open(path());
  ASSERT_TRUE(file) << file.error().message;
  auto node = file->structure("node", false);
  ASSERT_TRUE(node) << node.error().message;
  ASSERT_EQ(node->fields.size(), 6u);
  EXPECT_EQ(node->fields[0].type.target->name, "node");
  EXPECT_EQ(node->fields[1].bits, 3u);
  EXPECT_EQ(node->fields[2].offset_bits, 64u + 3);
  EXPECT_EQ(node->fields[3].type.count, 12u);
  EXPECT_EQ(node->fields[4].name, "");
  auto anonymous = file->structure_at(node->fields[4].type.die);
  ASSERT_TRUE(anonymous);
  EXPECT_EQ(anonymous->fields[0].name, "u");
  EXPECT_EQ(node->fields[5].type.target->name, "pair");
  EXPECT_FALSE(file->structure("nothing", false));
  EXPECT_FALSE(file->structure("node", true));
}

TEST_F(Compiled, LinesBeginWhereTheirCodeDoes) {
  auto file = File::open(path());
  ASSERT_TRUE(file);
  // kSource begins with a newline: line 6 is the one that begins plain().
  const auto entry = file->line("a.c", 6, 0);
  ASSERT_TRUE(entry) << entry.error().message;
  ASSERT_EQ(entry->size(), 1u);
  EXPECT_EQ((*entry)[0].address, address_of("plain"));
  EXPECT_EQ((*entry)[0].function, "plain");
  const auto body = file->line(directory_ + "/a.c", 7, 0);
  ASSERT_TRUE(body) << body.error().message;
  EXPECT_GT((*body)[0].address, address_of("plain"));
  EXPECT_LT((*body)[0].address, address_of("mixed"));
}

TEST_F(Compiled, LinesWithoutCodeNameTheNextOne) {
  auto file = File::open(path());
  ASSERT_TRUE(file);
  const auto none = file->line("a.c", 2, 0);
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().message, "no code begins at line 2 of a.c; the next line with code is 6");
  EXPECT_FALSE(file->line("a.c", 6, 1000));
  const auto other = file->line("b.c", 6, 0);
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().message, "the debug information has no source file 'b.c'");
  EXPECT_FALSE(file->line(".c", 6, 0)) << "a part of a name is no name";
}

TEST_F(Compiled, RefusesWhatIsNotThere) {
  auto file = File::open(path());
  ASSERT_TRUE(file);
  EXPECT_FALSE(file->parameters(0x1234));
  EXPECT_FALSE(File::open("/no/such/file"));
}

}  // namespace
}  // namespace spile::dwarf
