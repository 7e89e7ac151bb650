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
    const auto at = static_cast<uint32_t>(strings_.size());
    strings_ += text + '\0';
    return at;
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
  uint32_t count_ = 0;
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

TEST(Btf, RefusesWhatLiesOutside) {
  auto bytes = example().bytes();
  for (size_t size = 0; size < bytes.size(); size++)
    EXPECT_FALSE(Types::parse({bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(size)}))
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
  auto types = Types::parse({std::istreambuf_iterator<char>(file), {}});
  ASSERT_TRUE(types) << types.error().message;
  const auto task = types->find(Kind::kStruct, "task_struct");
  ASSERT_TRUE(task);
  bool has_comm = false;
  for (const Member& member : types->members(*task)) has_comm |= member.name == "comm";
  EXPECT_TRUE(has_comm);
}

}  // namespace
}  // namespace spile::btf
