// Random programs that use everything: context, maps, records, loops, pointer arithmetic. What the checker accepts must
// never leave its memory, must not depend on what was not initialised, and the facts must be true.
//
// A program grows piece by piece; a piece that makes the checker refuse is dropped again. So the programs are accepted,
// and just barely: most pieces are at the edge of what is allowed.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>

#include <gtest/gtest.h>

#include "bpf/builder.h"
#include "bpf/checker.h"
#include "bpf/disasm.h"
#include "bpf/encoding.h"
#include "bpf/interpreter.h"

namespace spile::bpf {
namespace {

constexpr uint32_t kContextBytes = 64;
constexpr int kRing = 2;
const std::vector<MapInfo> kMaps = {{MapKind::kHash, 8, 16, 4}, {MapKind::kArray, 4, 32, 4}, {MapKind::kRing, 0, 0, 4096}};

constexpr uint8_t kAluOps[] = {kAdd, kSub, kMul, kDiv, kOr, kAnd, kLsh, kRsh, kMod, kXor, kMov, kArsh};
constexpr uint8_t kJumpOps[] = {kJeq, kJne, kJset, kJgt, kJge, kJlt, kJle, kJsgt, kJsge, kJslt, kJsle};
constexpr int32_t kAtomicOps[] = {kAtomicAdd, kAtomicOr, kAtomicAnd, kAtomicXor, kXchg, kCmpXchg};
constexpr uint8_t kSizes[] = {kSizeB, kSizeH, kSizeW, kSizeDw};

class Grower {
 public:
  explicit Grower(uint64_t seed) : random_(seed) {
    env_.context_size = kContextBytes;
    env_.maps = kMaps;
    emit(kClassAlu64 | kMov | kSrcX, 6, 1, 0, 0);
    emit(kClassAlu64 | kMov, 0, 0, 0, 1);
  }

  Program grow(int pieces) {
    for (int i = 0; i < pieces; ++i) {
      size_t before = code_.size();
      piece();
      if (!check(finished(), env_)) code_.resize(before);
    }
    return finished();
  }
  const CheckEnv& env() const { return env_; }

 private:
  uint64_t below(uint64_t bound) { return random_() % bound; }
  template <typename T, size_t N>
  T pick(const T (&from)[N]) {
    return from[below(N)];
  }
  int reg() { return static_cast<int>(below(11)); }
  int scratch() { return static_cast<int>(below(10)); }
  void emit(unsigned code, int dst, int src, int64_t off, int64_t imm) {
    code_.push_back({static_cast<uint8_t>(code), static_cast<uint8_t>(dst | src << 4), static_cast<int16_t>(off),
                     static_cast<int32_t>(imm)});
  }
  void call(Helper helper) { emit(kClassJmp | kCall, 0, 0, 0, static_cast<int32_t>(helper)); }
  void load_map(int dst, int map) {
    emit(kClassLd | kSizeDw | kModeImm, dst, kPseudoMapIdx, 0, map);
    emit(0, 0, 0, 0, 0);
  }

  Program finished() const {
    Program program = code_;
    program.push_back({kClassAlu64 | kMov | kSrcX, 0x80, 0, 0});  // r0 = r8
    program.push_back({kClassJmp | kExit, 0, 0, 0});
    Program without = code_;
    without.push_back({kClassAlu64 | kMov, 0, 0, 7});
    without.push_back({kClassJmp | kExit, 0, 0, 0});
    return check(program, env_) ? program : without;
  }

  int64_t small() {
    constexpr int64_t corners[] = {0, 1, 2, 4, 7, 8, 15, 16, 31, 32, 63, 64, -1, -8, 0x7fffffff, -0x80000000ll};
    return pick(corners);
  }
  int64_t stack_offset() { return -8 * static_cast<int64_t>(1 + below(6)) + (below(4) == 0 ? small() % 8 : 0); }

  void alu() {
    unsigned cls = below(3) != 0 ? kClassAlu64 : kClassAlu;
    uint8_t op = pick(kAluOps);
    if (below(2) != 0) op = below(2) != 0 ? kAdd : kMov;
    if (below(2) != 0) return emit(cls | op | kSrcX, scratch(), reg(), 0, 0);
    emit(cls | op, scratch(), 0, 0, small());
  }
  void memory() {
    int base = below(3) == 0 ? reg() : 10;
    int64_t off = base == 10 ? stack_offset() : static_cast<int64_t>(below(40)) - 4;
    switch (below(4)) {
      case 0: return emit(kClassLdx | pick(kSizes) | kModeMem, scratch(), base, off, 0);
      case 1: return emit(kClassLdx | pick(kSizes) | (below(3) == 0 ? kModeMemSx : kModeMem), scratch(), base, off, 0);
      case 2: return emit(kClassStx | pick(kSizes) | kModeMem, base, reg(), off, 0);
      default: return emit(kClassSt | pick(kSizes) | kModeMem, base, 0, off, small());
    }
  }
  void context() { emit(kClassLdx | pick(kSizes) | kModeMem, scratch(), 6, static_cast<int64_t>(below(9)) * 8, 0); }
  void atomic() {
    int32_t op = pick(kAtomicOps) | (below(2) != 0 ? kFetch : 0);
    emit(kClassStx | (below(2) != 0 ? kSizeDw : kSizeW) | kModeAtomic, below(2) != 0 ? 10 : reg(), scratch(),
         stack_offset(), op);
  }
  /// A bound: if reg op small goto over a few instructions.
  void branch() {
    unsigned cls = below(3) != 0 ? kClassJmp : kClassJmp32;
    size_t at = code_.size();
    bool with_reg = below(3) == 0;
    emit(cls | pick(kJumpOps) | (with_reg ? kSrcX : 0), scratch(), with_reg ? scratch() : 0, 0, with_reg ? 0 : small());
    for (uint64_t n = 1 + below(4); n > 0; --n) simple();
    if (below(3) == 0) {
      emit(kClassAlu64 | kMov, 0, 0, 0, 3);
      emit(kClassJmp | kExit, 0, 0, 0, 0);
    }
    code_[at].off = static_cast<int16_t>(code_.size() - at - 1);
  }
  void loop() {
    int64_t head = static_cast<int64_t>(code_.size());
    for (uint64_t n = 1 + below(4); n > 0; --n) simple();
    emit(kClassJmp | pick(kJumpOps), scratch(), 0, head - static_cast<int64_t>(code_.size()) - 1, small());
  }
  void lookup() {
    int map = static_cast<int>(below(2));
    if (below(2) != 0) emit(kClassSt | (map == 0 ? kSizeDw : kSizeW) | kModeMem, 10, 0, -8, static_cast<int64_t>(below(5)));
    if (below(2) != 0) emit(kClassStx | kSizeDw | kModeMem, 10, scratch(), -8, 0);
    emit(kClassAlu64 | kMov | kSrcX, 2, 10, 0, 0);
    emit(kClassAlu64 | kAdd, 2, 0, 0, -8);
    load_map(1, map);
    call(Helper::kMapLookupElem);
    if (below(4) == 0) return;
    emit(kClassJmp | kJne, 0, 0, 2, 0);
    emit(kClassAlu64 | kMov, 0, 0, 0, 5);
    emit(kClassJmp | kExit, 0, 0, 0, 0);
    if (below(2) != 0) emit(kClassAlu64 | kMov | kSrcX, 7 + static_cast<int>(below(3)), 0, 0, 0);
  }
  void update() {
    emit(kClassAlu64 | kMov | kSrcX, 2, 10, 0, 0);
    emit(kClassAlu64 | kAdd, 2, 0, 0, -8);
    emit(kClassAlu64 | kMov | kSrcX, 3, 10, 0, 0);
    emit(kClassAlu64 | kAdd, 3, 0, 0, stack_offset());
    emit(kClassAlu64 | kMov, 4, 0, 0, 0);
    load_map(1, static_cast<int>(below(2)));
    call(Helper::kMapUpdateElem);
  }
  void read() {
    emit(kClassAlu64 | kMov | kSrcX, 1, reg(), 0, 0);
    if (below(2) != 0) emit(kClassAlu64 | kMov | kSrcX, 1, 10, 0, 0);
    if (below(2) != 0) emit(kClassAlu64 | kAdd, 1, 0, 0, -static_cast<int64_t>(below(40)));
    emit(kClassAlu64 | kMov | kSrcX, 2, scratch(), 0, 0);
    if (below(2) != 0) emit(kClassAlu64 | kMov, 2, 0, 0, static_cast<int64_t>(below(40)));
    emit(kClassAlu64 | kMov | kSrcX, 3, 6, 0, 0);
    call(below(2) != 0 ? Helper::kProbeReadKernel : Helper::kProbeReadKernelStr);
  }
  void record() {
    load_map(1, kRing);
    emit(kClassAlu64 | kMov, 2, 0, 0, 16 + static_cast<int64_t>(below(3)) * 8);
    emit(kClassAlu64 | kMov, 3, 0, 0, 0);
    call(Helper::kRingbufReserve);
    int home = 7 + static_cast<int>(below(3));
    emit(kClassAlu64 | kMov | kSrcX, home, 0, 0, 0);
    size_t at = code_.size();
    emit(kClassJmp | kJeq, home, 0, 0, 0);
    for (uint64_t n = below(5); n > 0; --n) simple();
    emit(kClassAlu64 | kMov | kSrcX, 1, home, 0, 0);
    emit(kClassAlu64 | kMov, 2, 0, 0, 0);
    call(below(2) != 0 ? Helper::kRingbufSubmit : Helper::kRingbufDiscard);
    code_[at].off = static_cast<int16_t>(code_.size() - at - 1);
  }

  void simple() {
    switch (below(8)) {
      case 0:
      case 1: return alu();
      case 2:
      case 3: return memory();
      case 4: return context();
      case 5: return emit(kClassAlu64 | kAnd, scratch(), 0, 0, small());
      case 6: return emit(kClassJmp | pick(kJumpOps), scratch(), 0, 0, small());
      default: return atomic();
    }
  }
  void piece() {
    switch (below(12)) {
      case 0: return lookup();
      case 1: return branch();
      case 2: return branch();
      case 3: return loop();
      case 4: return read();
      case 5: return record();
      case 6: return update();
      default: return simple();
    }
  }

  CheckEnv env_;
  std::mt19937_64 random_;
  Program code_;
};

/// Runs a program with everything it may touch in known places, and complains about the rest.
class World {
 public:
  World(const Program& program, const Analysis& analysis) : program_(program), analysis_(analysis) {
    for (auto& value : hash_) value.assign(16, 1);
    array_.assign(4 * 32, 2);
    context_.assign(kContextBytes / 8, 0);
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
    for (uint64_t& word : context_) word = random() >> random() % 64;
    std::ranges::fill(stack_, poison);
    ranges_ = {{address(context_.data()), kContextBytes, false}, {address(array_.data()), array_.size(), true}};
    for (auto& value : hash_) ranges_.push_back({address(value.data()), value.size(), true});
    std::span<uint8_t> stack{reinterpret_cast<uint8_t*>(stack_.data()), 512};
    uint64_t maps[] = {100, 101, 102};
    Result<RunResult> result = run(program_, address(context_.data()),
                                   {.helpers = &helpers_, .maps = maps, .insn_budget = 3000, .ranges = &ranges_,
                                    .stack = stack, .other_regs = poison});
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
      return at >= range.begin && at + size <= range.begin + range.size_bytes && (range.writable || !is_write);
    });
  }
  void require(uint64_t at, uint64_t size, bool is_write) const {
    EXPECT_TRUE(size == 0 || is_inside(at, size, is_write)) << "a helper gets memory outside: " << size << " bytes";
  }

  uint64_t lookup(uint64_t map, uint64_t key) {
    require(key, kMaps[map - 100].key_size, false);
    uint64_t index = 0;
    std::memcpy(&index, reinterpret_cast<void*>(key), kMaps[map - 100].key_size);
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
    helpers_.set(Helper::kMapLookupElem, [this](uint64_t m, uint64_t k, auto...) { return lookup(m, k); });
    helpers_.set(Helper::kMapUpdateElem, [this](uint64_t m, uint64_t k, uint64_t v, auto...) {
      require(k, kMaps[m - 100].key_size, false);
      require(v, kMaps[m - 100].value_size, false);
      return 0;
    });
    helpers_.set(Helper::kProbeReadKernel, [this](uint64_t d, uint64_t n, auto...) { return read(d, n, false); });
    helpers_.set(Helper::kProbeReadKernelStr, [this](uint64_t d, uint64_t n, auto...) { return read(d, n, true); });
    helpers_.set(Helper::kRingbufReserve, [this](uint64_t, uint64_t n, auto...) { return reserve(n); });
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

TEST(CheckerSoundness, AcceptedProgramsStayInTheirMemoryAndDoNotReadWhatIsNotInitialised) {
  uint64_t first = 1, count = 400;
  if (const char* range = std::getenv("SPILE_SOUNDNESS_PROGRAMS")) count = std::strtoull(range, nullptr, 10);
  if (const char* seed = std::getenv("SPILE_SOUNDNESS_SEED")) first = std::strtoull(seed, nullptr, 10);
  size_t insns = 0, ended = 0;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    Grower grower(seed);
    Program program = grower.grow(60);
    Result<Analysis> analysis = check(program, grower.env());
    ASSERT_TRUE(analysis) << analysis.error().message;
    insns += program.size();
    for (uint64_t input = 0; input < 6; ++input) {
      World::Outcome a = World(program, *analysis).run_with(input, 0);
      World::Outcome b = World(program, *analysis).run_with(input, 0xfedcba9876543210);
      ended += a.ended ? 1 : 0;
      EXPECT_EQ(a.ended, b.ended);
      EXPECT_EQ(a.r0, b.r0) << "the result depends on registers or stack that were not initialised";
      EXPECT_TRUE(a.array == b.array);
      ASSERT_FALSE(HasFailure()) << "seed " << seed << ", input " << input << '\n' << disassemble(program);
    }
  }
  EXPECT_GT(insns, count * 20) << "the programs are too small to show anything";
  EXPECT_GT(ended, count * 3) << "too few programs come to an end";
}

}  // namespace
}  // namespace spile::bpf
