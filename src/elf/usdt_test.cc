#include <elf.h>
#include <gtest/gtest.h>

#include <cstring>

#include "elf/test_files.h"
#include "elf/usdt_argument.h"
#include "elf/usdt_fields.h"
#include "elf/usdt_notes.h"
#include "elf/variables.h"

namespace spile::elf {
namespace {

using testing::Scratch;
using Place = UsdtArgument::Place;
constexpr uint8_t kNone = UsdtArgument::kNoRegister;

// ---- arguments

UsdtArgument argument(std::string_view text) {
  auto parsed = parse_usdt_argument(text);
  EXPECT_TRUE(parsed) << text << ": " << (parsed ? "" : parsed.error().message);
  return parsed.value_or(UsdtArgument{});
}

void expect_refused(std::string_view text, std::string_view why) {
  auto parsed = parse_usdt_argument(text);
  ASSERT_FALSE(parsed) << text;
  EXPECT_EQ(parsed.error().code, ErrorCode::kUnsupported);
  EXPECT_NE(parsed.error().message.find(why), std::string::npos) << parsed.error().message;
}

TEST(UsdtArgument, ReadsRegistersOfEverySize) {
  const struct {
    const char* text;
    uint8_t number, size;
    bool is_signed, is_high;
  } cases[] = {{"8@%rax", 0, 8, false, false}, {"-4@%edi", 7, 4, true, false},
               {"2@%cx", 1, 2, false, false},  {"-1@%dil", 7, 1, true, false},
               {"1@%al", 0, 1, false, false},  {"1@%ah", 0, 1, false, true},
               {"1@%bh", 3, 1, false, true},   {"-8@%r15", 15, 8, true, false},
               {"4@%r8d", 8, 4, false, false}, {"2@%r10w", 10, 2, false, false},
               {"1@%r9b", 9, 1, false, false}, {"8@%rsp", 4, 8, false, false},
               {"1@%spl", 4, 1, false, false}, {"2@%r11", 11, 2, false, false}};
  for (const auto& c : cases) {
    const auto a = argument(c.text);
    EXPECT_EQ(a.place, Place::kRegister) << c.text;
    EXPECT_EQ(a.base, c.number) << c.text;
    EXPECT_EQ(a.size, c.size) << c.text;
    EXPECT_EQ(a.is_signed, c.is_signed) << c.text;
    EXPECT_EQ(a.is_high_byte, c.is_high) << c.text;
  }
}

TEST(UsdtArgument, ReadsConstants) {
  EXPECT_EQ(argument("-4@$-5").number, -5);
  EXPECT_EQ(argument("8@$0x10").number, 16);
  EXPECT_EQ(argument("8@$18446744073709551615").number, -1);
  EXPECT_EQ(argument("4@$7").place, Place::kConstant);
}

TEST(UsdtArgument, ReadsMemory) {
  auto a = argument("8@-8(%rbp)");
  EXPECT_EQ(a.place, Place::kMemory);
  EXPECT_EQ(a.base, 5);
  EXPECT_EQ(a.index, kNone);
  EXPECT_EQ(a.number, -8);
  a = argument("-2@(%r8,%r9,2)");
  EXPECT_EQ(a.base, 8);
  EXPECT_EQ(a.index, 9);
  EXPECT_EQ(a.scale, 2);
  a = argument("8@16(%rax,%rcx)");
  EXPECT_EQ(a.scale, 1);
  EXPECT_EQ(a.number, 16);
  a = argument("4@table(,%rbx,8)");
  EXPECT_EQ(a.base, kNone);
  EXPECT_EQ(a.index, 3);
  EXPECT_EQ(a.symbol, "table");
}

TEST(UsdtArgument, ReadsSymbolsWithNumbersOnEitherSide) {
  auto a = argument("4@counter(%rip)");
  EXPECT_EQ(a.symbol, "counter");
  EXPECT_EQ(a.base, kNone);
  EXPECT_EQ(argument("-2@2+g(%rip)").number, 2);
  EXPECT_EQ(argument("-2@g-4(%rip)").number, -4);
  EXPECT_EQ(argument("8@g+8+8(%rip)").number, 16);
  EXPECT_EQ(argument("8@name.0(%rip)").symbol, "name.0");
  EXPECT_EQ(argument("8@plain").symbol, "plain");
}

TEST(UsdtArgument, RefusesInWords) {
  expect_refused("8f@%xmm0", "floating-point");
  expect_refused("8f@%rdi", "floating-point");
  expect_refused("8@%xmm1", "vector register");
  expect_refused("16@%rax", "1, 2, 4 and 8");
  expect_refused("3@%rax", "1, 2, 4 and 8");
  expect_refused("%rax", "size");
  expect_refused("8@%fs:16", "segment");
  expect_refused("8@%zax", "not a register");
  expect_refused("8@%eax", "smaller");
  expect_refused("8@[rbp-4]", "operand");
  expect_refused("8@8(%eax)", "64 bits");
  expect_refused("8@(%rax,%rsp,1)", "rsp");
  expect_refused("8@(%rax,%rcx,3)", "scale");
  expect_refused("8@8(%rip)", "symbol");
  expect_refused("8@g(%rip,%rax,1)", "rip");
  expect_refused("8@4096", "absolute");
  expect_refused("8@$name", "address of a symbol");
  expect_refused("8@8(%rax", "operand");
  expect_refused("8@a+b(%rip)", "operand");
  expect_refused("8@-a(%rip)", "operand");
  expect_refused("8@x@GOTPCREL(%rip)", "operand");
  expect_refused("8@()", "without a register");
  expect_refused("@", "");
  expect_refused("", "");
  expect_refused("8@$99999999999999999999", "operand");
}

TEST(UsdtArgument, SplitsAtBlanks) {
  EXPECT_EQ(split_usdt_arguments("-4@%eax  8@8(%rsp,%rax,8) 1@$3").size(), 3u);
  EXPECT_TRUE(split_usdt_arguments("").empty());
  EXPECT_TRUE(split_usdt_arguments("   ").empty());
}

// ---- notes

constexpr const char* kSource = R"c(
asm(".pushsection .stapsdt.base,\"aG\",\"progbits\",.stapsdt.base,comdat\n"
    ".weak _.stapsdt.base\n_.stapsdt.base: .space 1\n.popsection\n");
#define NOTE(place, semaphore, name, args) \
  asm volatile(#place ": nop\n.pushsection .note.stapsdt,\"\",\"note\"\n.balign 4\n" \
      ".4byte 992f-991f,994f-993f,3\n991: .asciz \"stapsdt\"\n992: .balign 4\n" \
      "993: .8byte " #place ",_.stapsdt.base," #semaphore "\n.asciz \"prov\"\n.asciz \"" name "\"\n.asciz \"" args "\"\n" \
      "994: .balign 4\n.popsection\n")
unsigned short gate __attribute__((section(".probes"))) = 0;
static int counter = 5;
int main(void) {
  counter++;
  NOTE(here1, 0, "plain", "-4@%edi 8@$7");
  NOTE(here2, gate, "gated", "-4@counter(%rip)");
  NOTE(here3, 0, "plain", "8@%rsi");
  return 0;
}
)c";

class Notes : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!testing::compile(kSource, scratch_ / "prog", "-O0 -pie -fPIE"))
      GTEST_SKIP() << "no C compiler";
    bytes_ = testing::bytes_of(scratch_ / "prog");
  }
  File open() { return std::move(*File::from_bytes(bytes_, "prog")); }
  /// Where in the file's bytes the n-th note of the section has its header.
  size_t note(int n) {
    const File file = open();
    size_t at = file.section(".note.stapsdt")->offset.value;
    for (; n > 0; --n) {
      Elf64_Nhdr h;
      std::memcpy(&h, &bytes_[at], sizeof h);
      at += sizeof h + ((h.n_namesz + 3) & ~3u) + ((h.n_descsz + 3) & ~3u);
    }
    return at;
  }
  template <typename T>
  void put(size_t at, T value) {
    std::memcpy(&bytes_[at], &value, sizeof value);
  }
  static constexpr size_t kData = sizeof(Elf64_Nhdr) + 8;  // address, base, semaphore, strings

  Scratch scratch_;
  std::vector<uint8_t> bytes_;
};

TEST_F(Notes, SayWhatTheCompilerWrote) {
  const File file = open();
  const auto notes = read_usdt_notes(file);
  ASSERT_TRUE(notes) << notes.error().message;
  ASSERT_EQ(notes->size(), 3u);
  EXPECT_EQ((*notes)[0].provider, "prov");
  EXPECT_EQ((*notes)[0].name, "plain");
  EXPECT_EQ((*notes)[0].arguments, "-4@%edi 8@$7");
  EXPECT_EQ((*notes)[0].semaphore.value, 0u);
  EXPECT_EQ(*(*file.read((*notes)[0].address, 1)).begin(), 0x90);
  EXPECT_EQ((*notes)[2].name, "plain");
  EXPECT_NE((*notes)[0].address, (*notes)[2].address);
  const auto variables = read_variables(file);
  ASSERT_TRUE(variables);
  ASSERT_TRUE(variables->at("gate"));
  EXPECT_EQ((*notes)[1].semaphore, variables->at("gate")->address);
  EXPECT_TRUE(variables->contains("counter"));
}

TEST_F(Notes, FollowAPrelinkedBase) {
  const auto before = (*read_usdt_notes(open()))[1];
  uint64_t base = 0;
  std::memcpy(&base, &bytes_[note(1) + kData + 8], 8);
  put<uint64_t>(note(1) + kData, before.address.value - 0x10);
  put<uint64_t>(note(1) + kData + 8, base - 0x10);
  put<uint64_t>(note(1) + kData + 16, before.semaphore.value - 0x10);
  const auto after = (*read_usdt_notes(open()))[1];
  EXPECT_EQ(after.address, before.address);
  EXPECT_EQ(after.semaphore, before.semaphore);
}

TEST_F(Notes, OfThrownAwayCodeAreLeftOut) {
  put<uint64_t>(note(0) + kData, 0);
  put<uint64_t>(note(2) + kData, uint64_t{1} << 40);
  EXPECT_EQ(read_usdt_notes(open())->size(), 1u);
}

TEST_F(Notes, WithASemaphoreInCodeAreCorrupt) {
  const auto place = (*read_usdt_notes(open()))[1].address;
  put<uint64_t>(note(1) + kData + 16, place.value & ~uint64_t{1});
  const auto notes = read_usdt_notes(open());
  ASSERT_FALSE(notes);
  EXPECT_EQ(notes.error().code, ErrorCode::kCorrupt);
}

TEST_F(Notes, ThatLeaveTheirSectionAreCorrupt) {
  const auto good = bytes_;
  for (uint32_t size : {uint32_t{0x7fffffff}, uint32_t{0xffffffff}, uint32_t{0x1000}}) {
    bytes_ = good;
    put<uint32_t>(note(0) + 4, size);
    EXPECT_EQ(read_usdt_notes(open()).error().code, ErrorCode::kCorrupt) << size;
    bytes_ = good;
    put<uint32_t>(note(0), size);
    EXPECT_EQ(read_usdt_notes(open()).error().code, ErrorCode::kCorrupt) << size;
  }
  bytes_ = good;
  put<uint32_t>(note(0) + 4, 20);  // shorter than its addresses
  EXPECT_EQ(read_usdt_notes(open()).error().code, ErrorCode::kCorrupt);
}

TEST_F(Notes, SurviveEverySingleDamagedByte) {
  const size_t begin = note(0);
  const size_t end = begin + open().section(".note.stapsdt")->size;
  const auto good = bytes_;
  for (size_t at = begin; at < end; ++at) {
    for (uint8_t value : {uint8_t{0}, uint8_t{0xff}, uint8_t{0x80}}) {
      bytes_ = good;
      bytes_[at] = value;
      const File file = open();
      const auto notes = read_usdt_notes(file);
      if (!notes) continue;
      for (const auto& n : *notes) {
        EXPECT_TRUE(file.is_executable(n.address));
        for (auto text : split_usdt_arguments(n.arguments)) (void)parse_usdt_argument(text);
      }
    }
  }
}

// ---- names of arguments

std::string joined(const std::vector<UsdtField>& fields) {
  std::string text;
  for (const auto& f : fields) text += f.type + "|" + f.name + ";";
  return text;
}

TEST(UsdtFields, AreReadAsParameters) {
  EXPECT_EQ(joined(parse_usdt_fields("int id, const char* path")), "int|id;const char*|path;");
  EXPECT_EQ(joined(parse_usdt_fields("unsigned long bytes")), "unsigned long|bytes;");
  EXPECT_EQ(joined(parse_usdt_fields("char *x ,ns::Colour c_2")), "char *|x;ns::Colour|c_2;");
  EXPECT_EQ(joined(parse_usdt_fields("pair<int, long>* p, int n")), "pair<int, long>*|p;int|n;");
}

TEST(UsdtFields, ThatAreNoPlainDeclarationsLeaveNone) {
  for (const char* text :
       {"", " ", "void", "int", "int (*f)(int)", "int a[3]", "int 3", "int a,, int b", "int a = 3",
        "int a, long", "*", "int a, int b, int c, int d, int e, int f, int g, int h, int i"})
    EXPECT_EQ(joined(parse_usdt_fields(text)), "") << text;
}

constexpr const char* kFieldNotes = R"c(
#define STRING(x) ".asciz \"" x "\"\n"
#define NOTE(type, key, strings) \
  asm(".pushsection .note.spile,\"G\",\"note\",\"" key "\",comdat\n.balign 4\n.4byte 2f-1f,4f-3f," #type "\n" \
      "1: .asciz \"spile\"\n2: .balign 4\n3: " strings "4: .balign 4\n.popsection\n")
NOTE(1, "a", STRING("p") STRING("request") STRING("int id, const char* path"));
NOTE(2, "b", STRING("Io") STRING("int fd, long bytes"));
NOTE(3, "c", STRING("p") STRING("read") STRING("ns::Io"));
NOTE(3, "d", STRING("p") STRING("write") STRING("Io"));
NOTE(3, "e", STRING("p") STRING("lost") STRING("Nowhere"));
NOTE(1, "f", STRING("p") STRING("twice") STRING("int a"));
NOTE(1, "g", STRING("p") STRING("twice") STRING("int b"));
NOTE(2, "h", STRING("Two") STRING("int a"));
NOTE(2, "i", STRING("Two") STRING("long a"));
NOTE(3, "j", STRING("p") STRING("of_two") STRING("Two"));
NOTE(9, "k", STRING("later"));
int main(void) { return 0; }
)c";

class FieldNotes : public Notes {
 protected:
  void SetUp() override {
    if (!testing::compile(kFieldNotes, scratch_ / "prog", "-O0")) GTEST_SKIP() << "no C compiler";
    bytes_ = testing::bytes_of(scratch_ / "prog");
  }
};

TEST_F(FieldNotes, NameTheArgumentsOfTracepointsAndOfClasses) {
  const auto fields = read_usdt_fields(open());
  ASSERT_TRUE(fields) << fields.error().message;
  EXPECT_EQ(joined(fields->at({"p", "request"})), "int|id;const char*|path;");
  EXPECT_EQ(joined(fields->at({"p", "read"})), "int|fd;long|bytes;");
  EXPECT_EQ(joined(fields->at({"p", "write"})), "int|fd;long|bytes;");
  EXPECT_EQ(fields->size(), 3u);  // nothing of what is told twice, or not at all
}

TEST_F(FieldNotes, SurviveEverySingleDamagedByte) {
  const File good = open();
  const size_t begin = good.section(".note.spile")->offset.value;
  const size_t end = begin + good.section(".note.spile")->size;
  const auto bytes = bytes_;
  for (size_t at = begin; at < end; ++at) {
    for (uint8_t value : {uint8_t{0}, uint8_t{0xff}, uint8_t{0x80}}) {
      bytes_ = bytes;
      bytes_[at] = value;
      const auto fields = read_usdt_fields(open());
      if (fields) continue;
      EXPECT_EQ(fields.error().code, ErrorCode::kCorrupt);
    }
  }
}

}  // namespace
}  // namespace spile::elf
