#include "output/names.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "output/format.h"
#include "output/map_print.h"
#include "output/value.h"

namespace spile::output {
namespace {

using bundle::StackMode;
using bundle::ValueKind;
using bundle::ValueType;

/// Knows two addresses of process 5 and one of the kernel.
class FakeNames final : public Names {
 public:
  std::optional<Name> user(uint64_t pid, uint64_t address) override {
    if (pid == 5 && address == 0x1000) return Name{"leaf", 0, "/bin/work"};
    if (pid == 5 && address == 0x2004) return Name{"main", 4, "/bin/work"};
    return std::nullopt;
  }
  std::optional<Name> kernel(uint64_t address) override {
    if (address == 0xffffffff81000007) return Name{"vfs_read", 7, ""};
    if (address == 0x1000) return Name{"hook", 16, "nf"};
    return std::nullopt;
  }
};

class FakeTrace final : public engine::Trace {
 public:
  Result<size_t> poll(std::chrono::milliseconds, const engine::RecordSink&) override { return 0; }
  bool targets_gone() override { return false; }
  Result<std::vector<engine::MapEntry>> read_map(int) override {
    return std::vector<engine::MapEntry>();
  }
  Result<void> clear_map(int) override { return {}; }
  Result<void> zero_map(int) override { return {}; }
  Result<std::vector<uint64_t>> read_stack(int map, uint64_t id) override {
    if (map != 1 || id != 7) return fail(ErrorCode::kNotFound, "no stack {}", id);
    return std::vector<uint64_t>{0x1000, 0x2004, 0x3333};
  }
  Result<void> run_end() override { return {}; }
  Result<void> detach() override { return {}; }
  Result<engine::Stats> stats() override { return engine::Stats{}; }
  std::vector<engine::SiteReport> sites() override { return {}; }
};

ValueType stack_type(ValueKind kind, StackMode mode, uint32_t frames = 3) {
  ValueType type;
  type.kind = kind;
  type.size = kind == ValueKind::kUserStack ? 16 : 8;
  type.stack_mode = mode;
  type.frames = frames;
  return type;
}

class StackTest : public testing::Test {
 protected:
  StackTest() {
    bundle::MapSpec keyed{.name = "@",
                          .role = bundle::MapRole::kValue,
                          .key_size = 16,
                          .value_size = 8,
                          .key = stack_type(ValueKind::kUserStack, StackMode::kBpftrace),
                          .value = {ValueKind::kInt, 8, true, {}, {}}};
    bundle_.maps = {keyed, {.kind = bundle::MapKind::kStacks, .value_size = 24}};
  }

  static std::vector<uint8_t> words(std::initializer_list<uint64_t> list) {
    std::vector<uint8_t> out(list.size() * 8);
    std::memcpy(out.data(), list.begin(), out.size());
    return out;
  }
  std::string read(const ValueType& type, std::initializer_list<uint64_t> list) {
    auto value = read_value(type, words(list), meaning_);
    return value ? to_text(*value) : value.error().message;
  }
  std::string user(StackMode mode, uint64_t id = 7, uint64_t pid = 5) {
    return read(stack_type(ValueKind::kUserStack, mode), {id, pid});
  }

  bundle::Bundle bundle_;
  FakeNames names_;
  FakeTrace trace_;
  Meaning meaning_{bundle_, &names_, &trace_};
};

TEST_F(StackTest, HasOneLineAFrame) {
  EXPECT_EQ(user(StackMode::kBpftrace), "\n        leaf+0\n        main+4\n        0x3333\n");
}

TEST_F(StackTest, OfPerfModeHasAddressesAndFiles) {
  EXPECT_EQ(user(StackMode::kPerf),
            "\n\t1000 leaf+0 (/bin/work)\n\t2004 main+4 (/bin/work)\n\t3333 0x3333 ([unknown])\n");
}

TEST_F(StackTest, OfRawModeHasAddressesAlone) {
  EXPECT_EQ(user(StackMode::kRaw), "\n1000\n2004\n3333\n");
}

TEST_F(StackTest, OfTheKernelNamesItsModules) {
  EXPECT_EQ(read(stack_type(ValueKind::kKernelStack, StackMode::kPerf), {7}),
            "\n\t1000 hook+16 [nf]\n\t2004 0x2004\n\t3333 0x3333\n");
  EXPECT_EQ(read(stack_type(ValueKind::kKernelStack, StackMode::kBpftrace), {7}),
            "\n        hook+16\n        0x2004\n        0x3333\n");
}

TEST_F(StackTest, OfAnUnknownProcessHasNumbers) {
  EXPECT_EQ(user(StackMode::kBpftrace, 7, 6), "\n        0x1000\n        0x2004\n        0x3333\n");
}

TEST_F(StackTest, SaysWhyItHasNoFrames) {
  EXPECT_EQ(user(StackMode::kBpftrace, static_cast<uint64_t>(-14)), "\n");
  EXPECT_EQ(user(StackMode::kBpftrace, static_cast<uint64_t>(-17)), "\n        [lost stack]\n");
  EXPECT_EQ(user(StackMode::kBpftrace, 8), "\n        [unreadable stack]\n");
}

TEST_F(StackTest, AsAKeyIsIndentedByFour) {
  engine::MapEntry entry{words({7, 5}), {words({3})}};
  auto rows = merge_map(meaning_, bundle_.maps[0], {&entry, 1});
  ASSERT_TRUE(rows) << rows.error().message;
  EXPECT_EQ(map_text(*rows), "@[\n    leaf+0\n    main+4\n    0x3333\n]: 3\n");
  EXPECT_EQ(map_json(*rows),
            "{\"type\": \"map\", \"data\": {\"@\": {\"\\n    leaf+0\\n    main+4\\n    "
            "0x3333\\n\": 3}}}\n");
}

TEST_F(StackTest, InPrintfIsAString) {
  std::vector<bundle::RecordField> fields = {
      {stack_type(ValueKind::kUserStack, StackMode::kBpftrace), 0}};
  auto text = format_printf("[%s]", fields, words({7, 5}), meaning_);
  ASSERT_TRUE(text) << text.error().message;
  EXPECT_EQ(*text, "[\n        leaf+0\n        main+4\n        0x3333\n]");
}

TEST_F(StackTest, WithoutNamesOrTraceIsStillPrinted) {
  Meaning bare(bundle_);
  auto type = stack_type(ValueKind::kUserStack, StackMode::kBpftrace);
  EXPECT_EQ(to_text(*read_value(type, words({7, 5}), bare)), "\n");
}

TEST_F(StackTest, TooShortIsCorrupt) {
  auto type = stack_type(ValueKind::kUserStack, StackMode::kBpftrace);
  auto value = read_value(type, words({7}), meaning_);
  ASSERT_FALSE(value);
  EXPECT_EQ(value.error().code, ErrorCode::kCorrupt);
}

TEST_F(StackTest, SymbolsHaveNoOffset) {
  ValueType user{ValueKind::kUserSymbol, 16, false, {}, {}},
      kernel{ValueKind::kKernelSymbol, 8, false, {}, {}};
  EXPECT_EQ(read(user, {0x2004, 5}), "main");
  EXPECT_EQ(read(user, {0x2005, 5}), "0x2005");
  EXPECT_EQ(read(kernel, {0xffffffff81000007}), "vfs_read");
  EXPECT_EQ(read(kernel, {1}), "0x1");
}

}  // namespace
}  // namespace spile::output
