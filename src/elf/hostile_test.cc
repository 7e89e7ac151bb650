// Damaged files: every answer may be an error, none may be a crash, a hang or a huge allocation.

#include <elf.h>

#include <chrono>
#include <cstring>
#include <initializer_list>
#include <random>

#include "elf/code_pointers.h"
#include "elf/debug_file.h"
#include "elf/symbol.h"
#include "elf/test_files.h"
#include "elf/unwind.h"

namespace spile::elf {
namespace {

using namespace testing;

/// Asks everything. Returns how many bytes of answers came, so that nothing is optimised away.
size_t ask_everything(std::vector<uint8_t> bytes) {
  auto file = File::from_bytes(std::move(bytes), "hostile");
  if (!file) return 0;
  size_t answers = file->sections().size() + file->build_id().size() + file->needed().size();
  if (auto symbols = read_symbols(*file))
    for (const auto& s : *symbols) answers += s.name.size() + s.version.size();
  if (auto table = UnwindTable::read(*file)) {
    answers += table->functions().size();
    if (auto pads = table->all_landing_pads()) answers += pads->size();
  }
  if (auto pointers = read_code_pointers(*file)) answers += pointers->size();
  if (auto mini = open_gnu_debugdata(*file)) answers += 1;
  for (const auto& s : file->sections()) static_cast<void>(file->bytes(s));
  for (const auto& s : file->segments()) answers += file->to_link(s.offset).has_value();
  return answers;
}

/// A small C++ library with exceptions, versions, and everything else; the compiler's own runtime
/// otherwise.
std::vector<uint8_t> victim() {
  Scratch scratch;
  const std::string source =
      "#include <stdexcept>\nvoid f(int);\n"
      "int g(int x) { try { f(x); } catch (std::exception&) { return 1; } return 0; }\n"
      "struct V { virtual int m(); virtual ~V(); }; int V::m() { return 1; } V::~V() {}\n"
      "extern \"C\" int versioned() { return 3; }\n";
  write_file(scratch / "map", "V1 { global: versioned; local: none; };\n");
  if (compile(source, scratch / "v.so",
              "-O1 -shared -fPIC -Wl,--version-script=" + (scratch / "map"), "cc"))
    return bytes_of(scratch / "v.so");
  return bytes_of("/lib/x86_64-linux-gnu/libgcc_s.so.1");
}

class Hostile : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_GT(ask_everything(victim_), 0u); }
  std::vector<uint8_t> victim_ = victim();
  std::mt19937 random_{12345};
};

TEST_F(Hostile, TruncationsAreAnErrorAndNothingWorse) {
  for (size_t size = 0; size < victim_.size(); size += 1 + victim_.size() / 1500)
    ask_everything({victim_.begin(), victim_.begin() + static_cast<ptrdiff_t>(size)});
}

TEST_F(Hostile, FlippedBytesAnywhereAreSurvived) {
  for (int round = 0; round < 2000; ++round) {
    auto bytes = victim_;
    for (int flips = 1 + static_cast<int>(random_() % 20); flips > 0; --flips)
      bytes[random_() % bytes.size()] ^= 1 << (random_() % 8);
    ask_everything(std::move(bytes));
  }
}

TEST_F(Hostile, WildNumbersInHeadersAreSurvived) {
  const uint64_t wild[] = {
      0,           1, 7, 0x7f, 0xffff, 0x7fffffff, 0xffffffff, uint64_t{1} << 40, ~uint64_t{0} >> 1,
      ~uint64_t{0}};
  for (int round = 0; round < 2000; ++round) {
    auto bytes = victim_;
    uint64_t shoff;
    std::memcpy(&shoff, bytes.data() + 0x28, sizeof shoff);
    const size_t table = random_() % 2 == 0 ? 0x10 : static_cast<size_t>(shoff);
    const size_t at = std::min<size_t>(table + random_() % 700, bytes.size() - 8);
    std::memcpy(bytes.data() + at, &wild[random_() % std::size(wild)], 1 << (random_() % 4));
    ask_everything(std::move(bytes));
  }
}

TEST_F(Hostile, DynamicAndUnwindTablesAreSurvived) {
  auto file = File::from_bytes(victim_, "victim");
  ASSERT_TRUE(file);
  for (const char* name : {".dynamic", ".eh_frame", ".eh_frame_hdr", ".gcc_except_table", ".dynsym",
                           ".gnu.version_d", ".gnu.hash", ".rela.dyn"}) {
    const auto* section = file->section(name);
    if (section == nullptr || section->size == 0) continue;
    for (int round = 0; round < 250; ++round) {
      auto bytes = victim_;
      for (int changes = 0; changes < 3; ++changes)
        bytes[section->offset.value + random_() % section->size] = static_cast<uint8_t>(random_());
      if (round % 2 == 1)
        std::memset(bytes.data() + 0x28, 0, 8),
            std::memset(bytes.data() + 0x3c, 0, 4);  // no sections
      ask_everything(std::move(bytes));
    }
  }
}

/// Symbols whose names all share one long string would cost size squared.
TEST(HostileNames, ThatOverlapAreRefusedQuickly) {
  Scratch scratch;
  if (!compile("int main(void) { return 0; }\n", scratch / "p", "-O1 -no-pie"))
    GTEST_SKIP() << "no C compiler";
  auto bytes = bytes_of(scratch / "p");
  auto file = File::from_bytes(bytes, "p");
  ASSERT_TRUE(file);
  const auto entry = file->entry();
  // Append a string table of one 900 KB name and a symbol table of 200,000 entries that all use it.
  const auto append_section = [&](const char* name, const std::vector<uint8_t>& content) {
    const auto* section = file->section(name);
    uint64_t header, where = bytes.size(), size = content.size();
    std::memcpy(&header, bytes.data() + 0x28, 8);
    header += section->index * 64;
    std::memcpy(bytes.data() + header + 24, &where, 8);
    std::memcpy(bytes.data() + header + 32, &size, 8);
    bytes.insert(bytes.end(), content.begin(), content.end());
  };
  std::vector<uint8_t> names(900'000, 'n'), symbols(24 * 200'000);
  names.back() = 0;
  for (size_t i = 0; i < symbols.size(); i += 24) {
    symbols[i + 4] = 0x12;  // STB_GLOBAL, STT_FUNC
    symbols[i + 6] = 1;
    std::memcpy(&symbols[i + 8], &entry.value, 8);
  }
  append_section(".strtab", names);
  append_section(".symtab", symbols);
  auto hostile = File::from_bytes(std::move(bytes), "hostile");
  ASSERT_TRUE(hostile) << hostile.error().message;
  const auto before = std::chrono::steady_clock::now();
  const auto result = read_symbols(*hostile);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::kCorrupt);
  EXPECT_LT(std::chrono::steady_clock::now() - before, std::chrono::seconds(2));
}

// ---- built by hand
// -----------------------------------------------------------------------------------------------

/// A library of one executable segment that holds the whole file at address 0, without section
/// headers.
class Handmade {
 public:
  Handmade() { bytes_.resize(sizeof(Elf64_Ehdr) + 2 * sizeof(Elf64_Phdr)); }
  uint64_t here() const { return bytes_.size(); }
  template <typename T>
  Handmade& put(T value) {
    const auto* raw = reinterpret_cast<const uint8_t*>(&value);
    bytes_.insert(bytes_.end(), raw, raw + sizeof value);
    return *this;
  }
  Handmade& put_bytes(std::initializer_list<uint8_t> bytes) {
    return bytes_.insert(bytes_.end(), bytes), *this;
  }
  Handmade& align() { return bytes_.resize((bytes_.size() + 7) & ~size_t{7}), *this; }

  /// The second program header: of this type, from `start` to here.
  File finish(uint32_t type, uint64_t start) {
    Elf64_Ehdr h{};
    std::memcpy(h.e_ident, ELFMAG, SELFMAG);
    h.e_ident[EI_CLASS] = ELFCLASS64, h.e_ident[EI_DATA] = ELFDATA2LSB;
    h.e_type = ET_DYN, h.e_machine = EM_X86_64, h.e_phoff = sizeof h,
    h.e_phentsize = sizeof(Elf64_Phdr), h.e_phnum = 2;
    const Elf64_Phdr headers[] = {
        {PT_LOAD, PF_R | PF_X, 0, 0, 0, here(), here(), 4096},
        {type, PF_R, start, start, start, here() - start, here() - start, 8}};
    std::memcpy(bytes_.data(), &h, sizeof h);
    std::memcpy(bytes_.data() + sizeof h, headers, sizeof headers);
    auto file = File::from_bytes(bytes_, "handmade");
    EXPECT_TRUE(file) << file.error().message;
    return std::move(*file);
  }

 private:
  std::vector<uint8_t> bytes_;
};

/// `functions` FDEs that all name one call-site table of `sites` entries.
File with_shared_call_sites(uint32_t functions, uint32_t sites) {
  Handmade h;
  const auto lsda = static_cast<uint32_t>(h.here());
  h.put_bytes({0xff, 0xff, 0x01});  // no LPStart, no types, uleb128 call sites
  const uint32_t length = sites * 4;
  for (int i = 0; i < 4; ++i)
    h.put(static_cast<uint8_t>((length >> (7 * i) & 0x7f) | (i < 3 ? 0x80 : 0)));
  for (uint32_t i = 0; i < sites; ++i) h.put_bytes({1, 1, 1, 0});
  h.align();
  const auto frames = static_cast<uint32_t>(h.here());
  h.put(uint32_t{16})
      .put(uint32_t{0})
      .put_bytes({1, 'z', 'L', 'R', 0, 1, 0x78, 16, 2, 0x03, 0x03, 0});  // CIE: 32-bit absolute
  for (uint32_t i = 0; i < functions; ++i)
    h.put(uint32_t{20})
        .put(static_cast<uint32_t>(h.here() - frames))
        .put(uint32_t{64 + i})
        .put(uint32_t{1})
        .put(uint8_t{4})
        .put(lsda)
        .put_bytes({0, 0, 0});
  h.put(uint32_t{0}).align();
  const auto header = h.here();
  h.put_bytes({1, 0x03, 0xff, 0xff}).put(frames);
  return h.finish(PT_GNU_EH_FRAME, header);
}

TEST(HostileCallSites, OfOneFunctionAreReadWhole) {
  const auto file = with_shared_call_sites(2, 100);
  const auto table = UnwindTable::read(file);
  ASSERT_TRUE(table) << table.error().message;
  ASSERT_EQ(table->functions().size(), 2u);
  const auto pads = table->all_landing_pads();
  ASSERT_TRUE(pads) << pads.error().message;
  EXPECT_EQ(pads->size(), 2u);
}

TEST(HostileCallSites, ThatEveryFunctionSharesAreRefusedQuickly) {
  const auto file = with_shared_call_sites(20'000, 400'000);
  const auto table = UnwindTable::read(file);
  ASSERT_TRUE(table) << table.error().message;
  const auto before = std::chrono::steady_clock::now();
  const auto pads = table->all_landing_pads();
  ASSERT_FALSE(pads);
  EXPECT_EQ(pads.error().code, ErrorCode::kCorrupt);
  EXPECT_LT(std::chrono::steady_clock::now() - before, std::chrono::seconds(2));
}

TEST(HostileRelr, ThatNamesWordsTwiceIsRefused) {
  Handmade h;
  const uint64_t table = h.align().here();
  for (int i = 0; i < 20'000; ++i) h.put(uint64_t{64}).put(~uint64_t{0});
  const uint64_t size = h.here() - table, dynamic = h.here();
  for (const uint64_t word : {uint64_t{36}, table, uint64_t{35}, size, uint64_t{0}, uint64_t{0}})
    h.put(word);  // DT_RELR, DT_RELRSZ
  const auto file = h.finish(PT_DYNAMIC, dynamic);
  const auto pointers = read_code_pointers(file);
  ASSERT_FALSE(pointers);
  EXPECT_EQ(pointers.error().code, ErrorCode::kCorrupt);
}

}  // namespace
}  // namespace spile::elf
