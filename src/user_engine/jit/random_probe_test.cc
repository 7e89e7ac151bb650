// Random programs in the shape that probe programs have: context, stack, maps, helpers, null
// checks. They are what the optimisations work on (facts.h, liveness.h), so each is run as it
// stands, optimised and with and without inlined lookups, and compared with the interpreter: r0,
// every map value, every register that a body may not touch.
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "bpf/disasm.h"
#include "user_engine/jit/print.h"
#include "user_engine/jit/test_programs.h"

namespace spile::jit {
namespace {

using namespace testing;
using bpf::Builder;
using bpf::Helper;
using bpf::Program;
using bpf::Reg;

constexpr int kSlots = 12;  // 8-byte stack slots, all initialised first
constexpr uint32_t kEntries = 6;
uint64_t readable_memory[4] = {11, 22, 33, 44};

class Generator {
 public:
  Generator(uint64_t seed, int maps) : random_(seed), maps_(maps) {}

  Program run() {
    b_.mov(Reg::r6, Reg::r1);
    for (int i = 0; i < kSlots; ++i) b_.store_imm(8, Reg::r10, slot(i), i * 3);
    for (Reg reg : {Reg::r7, Reg::r8, Reg::r9}) b_.load(8, reg, Reg::r6, context_offset());
    block(18, 2);
    finish();
    return *std::move(b_).finish();
  }

 private:
  int pick(int below) { return static_cast<int>(random_() % static_cast<uint64_t>(below)); }
  static int16_t slot(int i) { return static_cast<int16_t>(-8 * (i + 1)); }
  int16_t any_slot() { return slot(pick(kSlots)); }
  int16_t context_offset() { return static_cast<int16_t>(8 * pick(15)); }
  Reg number() { return static_cast<Reg>(7 + pick(3)); }

  void block(int operations, int depth) {
    for (int i = 0; i < operations; ++i) operation(depth);
  }

  void operation(int depth) {
    switch (pick(13)) {
      case 0: return b_.load(1 << pick(4), number(), Reg::r6, context_offset());
      case 1: return arithmetic();
      case 2: return b_.store(8, Reg::r10, any_slot(), number());
      case 3:
        return b_.store(1 << pick(3), Reg::r10, static_cast<int16_t>(any_slot() + 4 * pick(2)),
                        number());
      case 4: return b_.store_imm(4, Reg::r10, any_slot(), pick(100));
      case 5: return b_.load(1 << pick(4), number(), Reg::r10, any_slot());
      case 6: return depth > 0 ? branch(depth) : arithmetic();
      case 7: return depth > 1 ? loop() : arithmetic();
      case 8: return cookie();
      case 9: return read_memory();
      case 10: return stack_pointer();
      default: return lookup();
    }
  }

  void arithmetic() {
    static constexpr uint8_t kOps[] = {bpf::kAdd, bpf::kSub, bpf::kMul, bpf::kDiv,
                                       bpf::kOr,  bpf::kAnd, bpf::kLsh, bpf::kRsh,
                                       bpf::kMod, bpf::kXor, bpf::kMov, bpf::kArsh};
    uint8_t op = kOps[pick(std::size(kOps))];
    bool is_shift = op == bpf::kLsh || op == bpf::kRsh || op == bpf::kArsh;
    bool divides = op == bpf::kDiv || op == bpf::kMod;
    int imm = is_shift ? pick(32) : divides ? 1 + pick(9) : pick(1000) - 500;
    switch (pick(4)) {
      case 0: return b_.alu(op, number(), number());
      case 1: return b_.alu32(op, number(), number());
      case 2: return b_.alu32_imm(op, number(), imm);
      default: return b_.alu_imm(op, number(), imm);
    }
  }

  void branch(int depth) {
    static constexpr uint8_t kOps[] = {bpf::kJeq,  bpf::kJne,  bpf::kJgt, bpf::kJlt,
                                       bpf::kJsge, bpf::kJsle, bpf::kJset};
    auto over = b_.new_label();
    uint8_t op = kOps[pick(std::size(kOps))];
    if (pick(2) == 0)
      b_.jump_if(op, number(), number(), over);
    else
      b_.jump_if_imm(op, number(), pick(10), over);
    block(3, depth - 1);
    if (pick(2) == 0) return b_.bind(over);
    auto end = b_.new_label();
    b_.jump(end);
    b_.bind(over);
    block(2, depth - 1);
    b_.bind(end);
  }

  /// A counted loop; the counter has a slot of its own below the others.
  void loop() {
    int16_t counter = slot(kSlots);
    auto again = b_.new_label();
    b_.store_imm(8, Reg::r10, counter, 1 + pick(4));
    b_.bind(again);
    block(3, 0);
    b_.load(8, Reg::r1, Reg::r10, counter);
    b_.alu_imm(bpf::kSub, Reg::r1, 1);
    b_.store(8, Reg::r10, counter, Reg::r1);
    b_.jump_if_imm(bpf::kJne, Reg::r1, 0, again);
  }

  void cookie() {
    b_.mov(Reg::r1, Reg::r6);
    b_.call(Helper::kGetAttachCookie);
    b_.mov(number(), Reg::r0);
  }

  void read_memory() {
    b_.mov(Reg::r1, Reg::r10);
    b_.alu_imm(bpf::kAdd, Reg::r1, any_slot());
    b_.mov_imm(Reg::r2, 8);
    b_.load_imm64(Reg::r3, reinterpret_cast<uint64_t>(&readable_memory[pick(4)]));
    b_.call(Helper::kProbeReadUser);
  }

  /// Through a pointer that was spilled, moved or is variable: what liveness must not lose track
  /// of.
  void stack_pointer() {
    b_.mov(Reg::r1, Reg::r10);
    b_.alu_imm(bpf::kAdd, Reg::r1, slot(kSlots - 1));
    switch (pick(3)) {
      case 0: {  // variable
        b_.mov(Reg::r2, number());
        b_.alu_imm(bpf::kAnd, Reg::r2, 56);
        b_.alu(bpf::kAdd, Reg::r1, Reg::r2);
        break;
      }
      case 1: {  // spilled
        b_.store(8, Reg::r10, slot(kSlots + 1), Reg::r1);
        b_.load(8, Reg::r1, Reg::r10, slot(kSlots + 1));
        break;
      }
      default: break;
    }
    if (pick(2) == 0)
      b_.load(8, number(), Reg::r1, 0);
    else
      b_.store(8, Reg::r1, 0, number());
  }

  void lookup() {
    int16_t key = any_slot();
    if (pick(2) == 0) {
      b_.store_imm(4, Reg::r10, key, pick(kEntries + 1));
    } else {
      Reg from = number();
      if (pick(2) == 0) b_.alu_imm(bpf::kAnd, from, 7);
      b_.store(4, Reg::r10, key, from);
    }
    b_.mov(Reg::r2, Reg::r10);
    b_.alu_imm(bpf::kAdd, Reg::r2, key);
    b_.load_map(Reg::r1, pick(maps_));
    b_.call(Helper::kMapLookupElem);
    auto out = b_.new_label();
    if (pick(2) == 0) {
      b_.jump_if_imm(bpf::kJeq, Reg::r0, 0, out);
    } else {
      auto found = b_.new_label();
      b_.jump_if_imm(bpf::kJne, Reg::r0, 0, found);
      b_.alu_imm(bpf::kAdd, number(), 1);
      b_.jump(out);
      b_.bind(found);
    }
    use_value();
    b_.bind(out);
  }

  void use_value() {
    switch (pick(5)) {
      case 0:
        b_.mov_imm(Reg::r1, pick(3) - 1);
        return b_.atomic(8, bpf::kAtomicAdd, Reg::r0, 0, Reg::r1);
      case 1: return b_.atomic(8, bpf::kAtomicAdd | bpf::kFetch, Reg::r0, 0, number());
      case 2: return b_.atomic(4, bpf::kAtomicOr | bpf::kFetch, Reg::r0, 8, number());
      case 3: return b_.load(8, number(), Reg::r0, 8);
      default: return b_.store(8, Reg::r0, 0, number());
    }
  }

  void finish() {
    b_.mov(Reg::r0, Reg::r7);
    b_.alu(bpf::kXor, Reg::r0, Reg::r8);
    b_.alu(bpf::kAdd, Reg::r0, Reg::r9);
    for (int i = 0; i < kSlots; i += 1 + pick(4)) {
      b_.load(8, Reg::r1, Reg::r10, slot(i));
      b_.alu(bpf::kXor, Reg::r0, Reg::r1);
    }
    b_.exit();
  }

  std::mt19937_64 random_;
  int maps_;
  Builder b_;
};

struct Outcome {
  uint64_t r0 = 0;
  std::vector<uint64_t> map_sums;
  bool operator==(const Outcome&) const = default;
};

enum class How { kInterpreter, kPlain, kOptimised, kNotInlined };

/// Arrays only: a per-CPU value read back is another one after a migration.
Outcome run(
    const Program& program, How how, const abi::HitFrame& frame, uint64_t seed, std::string& text) {
  World world;
  for (int i = 0; i < 3; ++i) world.add_array(kEntries, 16);
  Outcome outcome;
  if (how == How::kInterpreter) {
    outcome.r0 = world.interpret(program, frame);
  } else {
    JitEnv env = world.env();
    env.optimise = how != How::kPlain;
    env.inline_lookups = how == How::kOptimised;
    Body body = world.compile(program, env);
    text = to_text(body);
    outcome.r0 = run_body(body, frame, seed);
  }
  for (int i = 0; i < 3; ++i) {
    for (uint32_t key = 0; key < kEntries; ++key) {
      outcome.map_sums.push_back(world.map(i).value(key)[0]);
      outcome.map_sums.push_back(world.map(i).value(key)[1]);
    }
  }
  return outcome;
}

abi::HitFrame random_frame(uint64_t seed) {
  std::mt19937_64 random(seed);
  abi::HitFrame frame;
  auto* words = reinterpret_cast<uint64_t*>(&frame);
  for (size_t i = 0; i < sizeof frame / 8; ++i) words[i] = random() >> (random() % 64);
  return frame;
}

TEST(JitConformance, RandomProbeProgramsDoWhatTheInterpreterDoes) {
  const char* wanted = std::getenv("SPILE_JIT_RANDOM_PROBES");
  uint64_t count = wanted == nullptr ? 2'000 : std::strtoull(wanted, nullptr, 10);
  uint64_t refused = 0;
  for (uint64_t seed = 0; seed < count; ++seed) {
    Program program = Generator(seed, 3).run();
    World world;
    for (int i = 0; i < 3; ++i) world.add_array(kEntries, 16);
    if (auto analysis = world.check(program); !analysis) {
      if (refused++ == 0) std::printf("first refused: %s\n", analysis.error().message.c_str());
      continue;
    }
    abi::HitFrame frame = random_frame(seed);
    std::string text;
    Outcome expected = run(program, How::kInterpreter, frame, seed, text);
    for (How how : {How::kPlain, How::kOptimised, How::kNotInlined}) {
      Outcome outcome = run(program, how, frame, seed, text);
      ASSERT_EQ(outcome.r0, expected.r0)
          << "seed " << seed << " how " << static_cast<int>(how) << "\n"
          << bpf::disassemble(program) << text;
      ASSERT_EQ(outcome.map_sums, expected.map_sums)
          << "seed " << seed << " how " << static_cast<int>(how) << "\n"
          << bpf::disassemble(program) << text;
    }
    ASSERT_FALSE(HasFailure()) << "seed " << seed;
  }
  std::printf("%lu of %lu programs refused by the checker\n", static_cast<unsigned long>(refused),
              static_cast<unsigned long>(count));
  EXPECT_LT(refused, count / 10);
}

}  // namespace
}  // namespace spile::jit
