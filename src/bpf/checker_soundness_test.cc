// What the checker accepts must never leave its memory and must not depend on what was not
// initialised.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>

#include "bpf/checker.h"
#include "bpf/disasm.h"
#include "bpf/grown_program.h"
#include "bpf/interpreter.h"

namespace spile::bpf {
namespace {

/// Runs a program with everything it may touch in known places, and complains about the rest.
class World {
 public:
  World(const Program& program, const Analysis& analysis) : program_(program), analysis_(analysis) {
    for (auto& value : hash_) value.assign(16, 1);
    array_.assign(4 * 32, 2);
    context_.assign(kGrownContextBytes / 8, 0);
    stack_.assign(64, 0);
    provide();
  }

  struct Outcome {
    bool ended = false;
    uint64_t r0 = 0;
    std::vector<uint8_t> array;
    bool operator==(const Outcome&) const = default;
  };

  Outcome run_with(uint64_t seed, uint64_t poison) {
    std::mt19937_64 random(seed);
    // Small numbers, numbers with a small byte, half or sign-extended half, and any.
    for (uint64_t& word : context_) {
      uint64_t small = random() % 48;
      uint64_t forms[] = {small, 0 - small, small | random() << 8, small | random() << 32,
                          random() >> random() % 64};
      word = forms[random() % 5];
    }
    std::ranges::fill(stack_, poison);
    ranges_ = {{address(context_.data()), kGrownContextBytes, false},
               {address(array_.data()), array_.size(), true}};
    for (auto& value : hash_) ranges_.push_back({address(value.data()), value.size(), true});
    std::span<uint8_t> stack{reinterpret_cast<uint8_t*>(stack_.data()), 512};
    uint64_t maps[] = {100, 101, 102};
    Result<RunResult> result = run(program_, address(context_.data()),
                                   {.helpers = &helpers_,
                                    .maps = maps,
                                    .insn_budget = 3000,
                                    .ranges = &ranges_,
                                    .stack = stack,
                                    .other_regs = poison});
    if (!result) {
      EXPECT_NE(result.error().message.find("budget"), std::string::npos) << result.error().message;
      return {};
    }
    EXPECT_TRUE(records_.empty()) << "a record is still held at the exit";
    return {true, result->r0, array_};
  }

 private:
  template <typename T>
  static uint64_t address(const T* p) {
    return reinterpret_cast<uint64_t>(p);
  }

  bool is_inside(uint64_t at, uint64_t size, bool is_write) const {
    uint64_t stack = address(stack_.data());
    if (at >= stack && at + size <= stack + 512) return true;
    return std::ranges::any_of(ranges_, [&](const MemoryRange& range) {
      return at >= range.begin && at + size <= range.begin + range.size_bytes &&
             (range.writable || !is_write);
    });
  }
  void require(uint64_t at, uint64_t size, bool is_write) const {
    EXPECT_TRUE(size == 0 || is_inside(at, size, is_write))
        << "a helper gets memory outside: " << size << " bytes";
  }

  uint64_t lookup(uint64_t map, uint64_t key) {
    require(key, kGrownMaps[map - 100].key_size, false);
    uint64_t index = 0;
    std::memcpy(&index, reinterpret_cast<void*>(key), kGrownMaps[map - 100].key_size);
    if (map == 100) return index % 3 == 0 ? 0 : address(hash_[index % 4].data());
    return index < 4 ? address(array_.data() + 32 * index) : 0;
  }

  uint64_t read(uint64_t dst, uint64_t size, bool is_string) {
    require(dst, size, true);
    std::memset(reinterpret_cast<void*>(dst), 0x41, size);
    return is_string ? size : 0;
  }

  uint64_t reserve(uint64_t size) {
    if (++reservations_ % 3 == 0) return 0;
    auto memory = std::make_unique<std::vector<uint64_t>>(size / 8, 0);
    uint64_t at = address(memory->data());
    ranges_.push_back({at, size, true});
    records_.emplace_back(at, std::move(memory));
    return at;
  }

  uint64_t release(uint64_t at) {
    auto is_it = [&](const auto& record) { return record.first == at; };
    EXPECT_EQ(std::erase_if(records_, is_it), 1u) << "releases what is no record";
    std::erase_if(ranges_, [&](const MemoryRange& range) { return range.begin == at; });
    return 0;
  }

  void provide() {
    helpers_.set(Helper::kMapLookupElem,
                 [this](uint64_t m, uint64_t k, auto...) { return lookup(m, k); });
    helpers_.set(Helper::kMapUpdateElem, [this](uint64_t m, uint64_t k, uint64_t v, auto...) {
      require(k, kGrownMaps[m - 100].key_size, false);
      require(v, kGrownMaps[m - 100].value_size, false);
      return 0;
    });
    helpers_.set(Helper::kProbeReadKernel,
                 [this](uint64_t d, uint64_t n, auto...) { return read(d, n, false); });
    helpers_.set(Helper::kProbeReadKernelStr,
                 [this](uint64_t d, uint64_t n, auto...) { return read(d, n, true); });
    helpers_.set(Helper::kRingbufReserve,
                 [this](uint64_t, uint64_t n, auto...) { return reserve(n); });
    helpers_.set(Helper::kRingbufSubmit, [this](uint64_t r, auto...) { return release(r); });
    helpers_.set(Helper::kRingbufDiscard, [this](uint64_t r, auto...) { return release(r); });
  }

  const Program& program_;
  const Analysis& analysis_;
  HelperTable helpers_;
  std::vector<MemoryRange> ranges_;
  std::vector<uint64_t> context_, stack_;
  std::array<std::vector<uint8_t>, 4> hash_;
  std::vector<uint8_t> array_;
  std::vector<std::pair<uint64_t, std::unique_ptr<std::vector<uint64_t>>>> records_;
  int reservations_ = 0;
};

void expect_sound(uint32_t states_kept) {
  uint64_t first = 1, count = 300;
  if (const char* range = std::getenv("SPILE_SOUNDNESS_PROGRAMS"))
    count = std::strtoull(range, nullptr, 10);
  if (const char* seed = std::getenv("SPILE_SOUNDNESS_SEED"))
    first = std::strtoull(seed, nullptr, 10);
  size_t insns = 0, ended = 0;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    ProgramGrower grower(seed, true, states_kept);
    Program program = grower.grow(60);
    Result<Analysis> analysis = check(program, grower.env());
    ASSERT_TRUE(analysis) << analysis.error().message;
    insns += program.size();
    for (uint64_t input = 0; input < 24; ++input) {
      World::Outcome a = World(program, *analysis).run_with(input, 0);
      World::Outcome b = World(program, *analysis).run_with(input, 0xfedcba9876543210);
      ended += a.ended ? 1 : 0;
      EXPECT_EQ(a.ended, b.ended);
      EXPECT_EQ(a.r0, b.r0) << "the result depends on registers or stack that were not initialised";
      EXPECT_TRUE(a.array == b.array);
      ASSERT_FALSE(testing::Test::HasFailure()) << "seed " << seed << ", input " << input << '\n'
                                                << disassemble(program);
    }
  }
  EXPECT_GT(insns, count * 20) << "the programs are too small to show anything";
  EXPECT_GT(ended, count * 6) << "too few programs come to an end";
}

TEST(CheckerSoundness, AcceptedProgramsStayInTheirMemoryAndDoNotReadWhatIsNotInitialised) {
  expect_sound(8);
}
TEST(CheckerSoundness, TheSameWhereAllPathsAreJoined) {
  expect_sound(1);
}

}  // namespace
}  // namespace spile::bpf
