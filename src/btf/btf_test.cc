#include "btf/btf.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

namespace spile::btf {
namespace {

/// A section written by hand.
class Section {
 public:
  Section() { strings_.push_back('\0'); }
  uint32_t name(const std::string& text) {
    const auto at = string_bytes();
    strings_ += text + '\0';
    return at + shift_;
  }
  uint32_t string_bytes() const { return static_cast<uint32_t>(strings_.size()); }
  uint32_t name_of(const std::string& text) const {
    return static_cast<uint32_t>(strings_.find('\0' + text + '\0') + 1);
  }
  /// Of a split section: offsets into the strings count from the base's.
  void shift_strings(uint32_t by) { shift_ = by; }
  void add_named(uint32_t name, Kind kind, uint32_t length, uint32_t last) {
    words_.insert(words_.end(), {name, static_cast<uint32_t>(kind) << 24 | length, last});
  }
  /// One entry; returns its number.
  uint32_t add(const std::string& name,
               Kind kind,
               uint32_t length,
               uint32_t last,
               std::vector<uint32_t> more = {},
               bool flag = false) {
    words_.push_back(name.empty() ? 0 : this->name(name));
    words_.push_back(static_cast<uint32_t>(kind) << 24 | length | (flag ? 1u << 31 : 0));
    words_.push_back(last);
    words_.insert(words_.end(), more.begin(), more.end());
    return ++count_;
  }
  std::vector<uint8_t> bytes() const {
    const auto types = static_cast<uint32_t>(words_.size() * 4);
    std::vector<uint32_t> all = {0x0001eb9f, 24,    0,
                                 types,      types, static_cast<uint32_t>(strings_.size())};
    all.insert(all.end(), words_.begin(), words_.end());
    std::vector<uint8_t> out(all.size() * 4 + strings_.size());
    std::memcpy(out.data(), all.data(), all.size() * 4);
    std::memcpy(out.data() + all.size() * 4, strings_.data(), strings_.size());
    return out;
  }

 private:
  std::string strings_;
  std::vector<uint32_t> words_;
  uint32_t count_ = 0, shift_ = 0;
};

Section example() {
  Section s;
  const uint32_t integer = s.add("int", Kind::kInt, 0, 4, {1u << 24 | 32});
  const uint32_t pointer = s.add("", Kind::kPointer, 0, integer);
  const uint32_t a = s.name("a"), b = s.name("b");
  s.add("pair", Kind::kStruct, 2, 16, {a, integer, 3u << 24 | 0, b, pointer, 64}, true);
  const uint32_t alias = s.add("alias", Kind::kTypedef, 0, integer);
  s.add("", Kind::kConst, 0, alias);
  s.add("color", Kind::kEnum, 1, 4, {s.name("RED"), 0xffffffff}, true);
  return s;
}

Types must_parse(const Section& section) {
  auto types = Types::parse(section.bytes());
  EXPECT_TRUE(types) << types.error().message;
  return types ? std::move(*types) : Types();
}

TEST(Btf, ReadsStructsAndBitfields) {
  const Types types = must_parse(example());
  const auto pair = types.find(Kind::kStruct, "pair");
  ASSERT_TRUE(pair);
  EXPECT_EQ(types.type(*pair).size_bytes, 16u);
  const auto members = types.members(*pair);
  ASSERT_EQ(members.size(), 2u);
  EXPECT_EQ(members[0].name, "a");
  EXPECT_EQ(members[0].bits, 3u);
  EXPECT_EQ(members[1].offset_bits, 64u);
  EXPECT_EQ(types.type(members[1].type).kind, Kind::kPointer);
}

TEST(Btf, StripsNamesAndQualifiers) {
  const Types types = must_parse(example());
  EXPECT_EQ(types.type(types.strip(5)).name, "int");
  EXPECT_TRUE(types.type(types.strip(5)).is_signed);
}

TEST(Btf, KnowsEnumerators) {
  const Types types = must_parse(example());
  EXPECT_EQ(types.enumerator("RED"), -1);
  EXPECT_FALSE(types.enumerator("BLUE"));
  EXPECT_FALSE(types.find(Kind::kUnion, "pair"));
}

TEST(Btf, ATypedefOfItselfEnds) {
  Section section;
  section.add("loop", Kind::kTypedef, 0, 1);
  EXPECT_EQ(must_parse(section).strip(1), 0u);
}

/// A module's section: strings and numbers go on where those of its base end.
std::vector<uint8_t> split(const Section& base, uint32_t strings_before) {
  Section module;
  module.shift_strings(strings_before);
  module.add("owner", Kind::kTypedef, 0, 3);                   // struct pair of the base
  module.add("alias", Kind::kTypedef, 0, 2);                   // a name that the base has, too
  module.add_named(base.name_of("pair"), Kind::kUnion, 0, 8);  // a name of the base's table
  return module.bytes();
}

TEST(SplitBtf, NumbersGoOnWhereTheBaseEnds) {
  const Section below = example();
  auto base = std::make_shared<const Types>(must_parse(below));
  auto types = Types::parse(split(below, below.string_bytes()), base);
  ASSERT_TRUE(types) << types.error().message;
  EXPECT_EQ(types->first(), base->count());
  EXPECT_EQ(types->count(), base->count() + 3);
  const auto owner = types->find(Kind::kTypedef, "owner");
  ASSERT_EQ(owner, base->count());
  EXPECT_EQ(types->type(types->strip(*owner)).name, "pair");
  EXPECT_EQ(types->members(types->strip(*owner)).size(), 2u);
  EXPECT_EQ(types->find(Kind::kTypedef, "alias"), base->count() + 1) << "its own first";
  EXPECT_EQ(types->find(Kind::kUnion, "pair"), base->count() + 2);
  EXPECT_EQ(types->find(Kind::kEnum, "color"), base->find(Kind::kEnum, "color"));
  EXPECT_EQ(types->enumerator("RED"), -1);
  EXPECT_EQ(types->type(types->count()).kind, Kind::kVoid);
}

TEST(Btf, ManyNamesAreFoundAsFewAre) {
  const Types types = must_parse(example());
  for (int i = 0; i < 100; i++) {
    EXPECT_EQ(types.find(Kind::kInt, "int"), 1u) << i;
    EXPECT_EQ(types.find(Kind::kStruct, "pair"), 3u) << i;
    EXPECT_FALSE(types.find(Kind::kStruct, "alias")) << i;
    EXPECT_FALSE(types.find(Kind::kUnion, "nothing")) << i;
    EXPECT_EQ(types.find(Kind::kPointer, ""), 2u) << i;
  }
}

TEST(Btf, RefusesWhatLiesOutside) {
  auto bytes = example().bytes();
  for (size_t size = 0; size < bytes.size(); size++)
    EXPECT_FALSE(
        Types::parse(std::vector(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(size))))
        << size;
  bytes[0] ^= 1;
  EXPECT_FALSE(Types::parse(bytes));
}

/// Any damage: refused, or read without touching what is outside (the sanitizers look).
TEST(Btf, SurvivesDamage) {
  const auto good = example().bytes();
  for (size_t at = 0; at < good.size(); at++) {
    for (const int bit : {0, 3, 7}) {
      auto bytes = good;
      bytes[at] ^= static_cast<uint8_t>(1 << bit);
      auto types = Types::parse(bytes);
      if (!types) continue;
      for (uint32_t i = 0; i < types->count(); i++) {
        types->members(i);
        types->enumerators(i);
        types->parameters(i);
        types->strip(i);
      }
      types->find(Kind::kStruct, "pair");
    }
  }
}

TEST(Btf, ReadsTheKernelsOwn) {
  std::ifstream file("/sys/kernel/btf/vmlinux", std::ios::binary);
  if (!file) GTEST_SKIP() << "this kernel has no BTF";
  auto types = Types::parse(std::vector<uint8_t>(std::istreambuf_iterator<char>(file), {}));
  ASSERT_TRUE(types) << types.error().message;
  const auto task = types->find(Kind::kStruct, "task_struct");
  ASSERT_TRUE(task);
  bool has_comm = false;
  for (const Member& member : types->members(*task)) has_comm |= member.name == "comm";
  EXPECT_TRUE(has_comm);
}

/// Every named type is found by table as by walking.
TEST(Btf, TheTableOfNamesAgreesWithTheWalk) {
  std::ifstream file("/sys/kernel/btf/vmlinux", std::ios::binary);
  if (!file) GTEST_SKIP() << "this kernel has no BTF";
  const std::vector<uint8_t> bytes(std::istreambuf_iterator<char>(file), {});
  auto table = Types::parse(bytes);
  ASSERT_TRUE(table) << table.error().message;
  for (int i = 0; i < 100; i++) table->find(Kind::kStruct, "task_struct");
  size_t compared = 0;
  for (uint32_t number = 1; number < table->count(); number += 3001) {
    const Type type = table->type(number);
    if (type.name.empty()) continue;
    auto fresh = Types::parse(bytes);
    ASSERT_TRUE(fresh);
    EXPECT_EQ(table->find(type.kind, type.name), fresh->find(type.kind, type.name)) << type.name;
    compared++;
  }
  EXPECT_GT(compared, 10u);
}

}  // namespace
}  // namespace spile::btf
