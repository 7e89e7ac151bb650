#include "bpf/checker.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "bpf/builder.h"
#include "bpf/disasm.h"

namespace spile::bpf {
namespace {

using enum Reg;
using Emit = std::function<void(Builder&)>;

// The maps of the tests.
constexpr int kHash = 0;          // 8-byte keys, 16-byte values
constexpr int kArray = 1;         // 10 values of 8 bytes
constexpr int kRing = 2;          // 4096 bytes
constexpr int kPerCpu = 3;        // one value of 8 bytes a CPU
constexpr int kWide = 4;          // 4 values of 64 bytes
constexpr int kSmallKeyHash = 5;  // 4-byte keys, 8-byte values
constexpr int kStacks = 6;        // of 5 frames

Insn raw(uint8_t code, int dst, int src, int off, int32_t imm) {
  return {code, static_cast<uint8_t>(dst | src << 4), static_cast<int16_t>(off), imm};
}
const Insn kExitInsn = raw(kClassJmp | kExit, 0, 0, 0, 0);
const Insn kZeroR0 = raw(kClassAlu64 | kMov, 0, 0, 0, 0);

class Checker : public testing::Test {
 protected:
  Checker() {
    env_.context_size = x86_64_regs::kSize;
    env_.maps = {{MapKind::kHash, 8, 16, 100}, {MapKind::kArray, 4, 8, 10},
                 {MapKind::kRing, 0, 0, 4096}, {MapKind::kPerCpuArray, 4, 8, 1},
                 {MapKind::kArray, 4, 64, 4},  {MapKind::kHash, 4, 8, 10},
                 {MapKind::kStacks, 4, 40, 64}};
  }

  static Program built(const Emit& emit) {
    Builder b;
    emit(b);
    Result<Program> program = std::move(b).finish();
    EXPECT_TRUE(program.has_value()) << program.error().message;
    return program ? std::move(*program) : Program{};
  }

  /// Checks it as it is: no exit is added.
  Analysis accept_program(const Program& program) {
    Result<Analysis> result = check(program, env_);
    EXPECT_TRUE(result.has_value()) << result.error().message << '\n' << disassemble(program);
    return result ? std::move(*result) : Analysis{};
  }
  void refuse_program(std::string_view message, const Program& program) {
    Result<Analysis> result = check(program, env_);
    ASSERT_FALSE(result.has_value()) << "accepted, expected: " << message << '\n'
                                     << disassemble(program);
    EXPECT_NE(result.error().message.find(message), std::string::npos)
        << "expected: " << message << "\ngot:      " << result.error().message << '\n'
        << disassemble(program);
    // Joining paths early must not make anything right.
    CheckEnv joining = env_;
    joining.limits.states_kept = 1;
    EXPECT_FALSE(check(program, joining)) << "accepted when paths are joined early\n"
                                          << disassemble(program);
  }

  static Emit with_exit(const Emit& emit) {
    return [&emit](Builder& b) {
      emit(b);
      b.mov_imm(r0, 0);
      b.exit();
    };
  }
  /// Adds `r0 = 0; exit`.
  Analysis accept(const Emit& emit) { return accept_program(built(with_exit(emit))); }
  void refuse(std::string_view message, const Emit& emit) {
    refuse_program(message, built(with_exit(emit)));
  }

  CheckEnv env_;
};

// What a code generator emits, again and again.

/// r0 = value of kArray at `index` or null.
void lookup(Builder& b, int map = kArray, int32_t index = 0) {
  b.store_imm(4, r10, -4, index);
  b.mov(r2, r10);
  b.alu_imm(kAdd, r2, -4);
  b.load_map(r1, map);
  b.call(Helper::kMapLookupElem);
}
/// The same, and leaves the program where it is null.
void lookup_valid(Builder& b, int map = kArray, int32_t index = 0) {
  lookup(b, map, index);
  Builder::Label found = b.new_label();
  b.jump_if_imm(kJne, r0, 0, found);
  b.mov_imm(r0, 0);
  b.exit();
  b.bind(found);
}
/// r0 = a record of `size` bytes, not null.
void reserve(Builder& b, int32_t size = 24) {
  b.load_map(r1, kRing);
  b.mov_imm(r2, size);
  b.mov_imm(r3, 0);
  b.call(Helper::kRingbufReserve);
}
void reserve_valid(Builder& b, int32_t size = 24) {
  reserve(b, size);
  Builder::Label got = b.new_label();
  b.jump_if_imm(kJne, r0, 0, got);
  b.exit();
  b.bind(got);
}
void submit(Builder& b, Reg record) {
  b.mov(r1, record);
  b.mov_imm(r2, 0);
  b.call(Helper::kRingbufSubmit);
}
/// reg = a number that nothing is known about.
void unknown(Builder& b, Reg reg) {
  b.load(8, reg, r1, 0);
}

// ---- what must be accepted
// -----------------------------------------------------------------------------------------

TEST_F(Checker, AcceptsTheSmallestProgram) {
  Analysis a = accept([](Builder&) {});
  EXPECT_EQ(a.stack_bytes, 0u);
  EXPECT_EQ(a.longest_path, 2u);
  EXPECT_TRUE(a.back_edges.empty());
}

TEST_F(Checker, AcceptsTheCounterProtocol) {
  Analysis a = accept([](Builder& b) {
    lookup_valid(b, kPerCpu, 0);
    b.mov_imm(r1, 1);
    b.atomic(8, kAtomicAdd, r0, 0, r1);
  });
  ASSERT_EQ(a.calls.size(), 1u);
  const CallFacts& call = a.calls[0];
  EXPECT_EQ(call.helper, Helper::kMapLookupElem);
  EXPECT_EQ(call.map, kPerCpu);
  EXPECT_EQ(call.constant_key, (std::vector<uint8_t>{0, 0, 0, 0}));
  EXPECT_TRUE(call.never_null);
  EXPECT_EQ(a.call_at(call.insn), &call);
  EXPECT_EQ(a.call_at(call.insn + 1), nullptr);
  EXPECT_EQ(a.stack_bytes, 8u);
  EXPECT_EQ(a.helpers, std::vector<Helper>{Helper::kMapLookupElem});
}

TEST_F(Checker, AcceptsTheRecordProtocol) {
  Analysis a = accept([](Builder& b) {
    b.mov(r6, r1);
    reserve(b, 64);
    Builder::Label lost = b.new_label(), end = b.new_label();
    b.jump_if_imm(kJeq, r0, 0, lost);
    b.mov(r7, r0);
    b.store_imm(4, r7, 0, 3);
    b.store_imm(4, r7, 4, 64);
    b.load(8, r1, r6, x86_64_regs::kDi);
    b.store(8, r7, 8, r1);
    b.mov(r1, r7);
    b.alu_imm(kAdd, r1, 16);
    b.mov_imm(r2, 48);
    b.load(8, r3, r6, x86_64_regs::kSi);
    b.call(Helper::kProbeReadUserStr);
    submit(b, r7);
    b.jump(end);
    b.bind(lost);
    lookup(b, kPerCpu, 0);
    b.jump_if_imm(kJeq, r0, 0, end);
    b.mov_imm(r1, 1);
    b.atomic(8, kAtomicAdd, r0, 0, r1);
    b.bind(end);
  });
  EXPECT_EQ(a.context_reads,
            (std::vector<ContextRead>{{x86_64_regs::kSi, 8}, {x86_64_regs::kDi, 8}}));
  EXPECT_FALSE(a.context_escapes);
  EXPECT_EQ(a.calls[0].size, 64u);
  EXPECT_EQ(a.calls[1].size, 48u);
}

TEST_F(Checker, AcceptsARecordThatIsSubmittedOrDiscardedOnEachPath) {
  accept([](Builder& b) {
    b.load(8, r8, r1, 0);
    reserve_valid(b);
    b.mov(r7, r0);
    Builder::Label discard = b.new_label(), end = b.new_label();
    b.jump_if_imm(kJgt, r8, 10, discard);
    submit(b, r7);
    b.jump(end);
    b.bind(discard);
    b.mov(r1, r7);
    b.mov_imm(r2, 0);
    b.call(Helper::kRingbufDiscard);
    b.bind(end);
  });
}

TEST_F(Checker, AcceptsARecordHeldOverAMerge) {
  accept([](Builder& b) {
    b.load(8, r8, r1, 0);
    reserve_valid(b);
    b.mov(r7, r0);
    for (int i = 0; i < 20; ++i) {
      Builder::Label other = b.new_label(), end = b.new_label();
      b.jump_if_imm(kJeq, r8, i, other);
      b.store_imm(8, r7, 8, i);
      b.jump(end);
      b.bind(other);
      b.store(8, r7, 8, r8);
      b.bind(end);
    }
    submit(b, r7);
  });
}

TEST_F(Checker, AcceptsAHashUpdateWithKeyAndValueOnTheStack) {
  Analysis a = accept([](Builder& b) {
    unknown(b, r3);
    b.store(8, r10, -8, r3);
    b.store_imm(8, r10, -24, 1);
    b.store_imm(8, r10, -16, 0);
    b.mov(r2, r10);
    b.alu_imm(kAdd, r2, -8);
    b.mov(r3, r10);
    b.alu_imm(kAdd, r3, -24);
    b.mov_imm(r4, kUpdateAny);
    b.load_map(r1, kHash);
    b.call(Helper::kMapUpdateElem);
  });
  EXPECT_EQ(a.stack_bytes, 24u);
  EXPECT_FALSE(a.calls[0].constant_key.has_value());
}

TEST_F(Checker, LearnsTheNullnessOfEveryCopy) {
  accept([](Builder& b) {
    lookup(b);
    b.mov(r6, r0);
    b.store(8, r10, -16, r0);
    Builder::Label end = b.new_label();
    b.jump_if_imm(kJeq, r6, 0, end);
    b.load(8, r1, r0, 0);
    b.load(8, r7, r10, -16);
    b.load(8, r1, r7, 0);
    b.bind(end);
  });
}

TEST_F(Checker, AcceptsABoundedIndex) {
  accept([](Builder& b) {
    unknown(b, r8);
    lookup_valid(b, kWide);
    b.alu_imm(kAnd, r8, 7);
    b.alu_imm(kLsh, r8, 3);
    b.alu(kAdd, r0, r8);
    b.load(8, r1, r0, 0);
  });
}

TEST_F(Checker, AcceptsAnIndexBoundedByAComparisonOfItsCopy) {
  accept([](Builder& b) {
    unknown(b, r8);
    b.mov(r9, r8);
    lookup_valid(b, kWide);
    Builder::Label end = b.new_label();
    b.jump_if_imm(kJgt, r9, 60, end);
    b.alu(kAdd, r0, r8);
    b.load(4, r1, r0, 0);
    b.bind(end);
  });
}

TEST_F(Checker, AcceptsAnIndexBoundedBySignedComparisons) {
  accept([](Builder& b) {
    unknown(b, r8);
    lookup_valid(b, kWide);
    Builder::Label end = b.new_label();
    b.jump_if_imm(kJslt, r8, 0, end);
    b.jump_if_imm(kJsgt, r8, 56, end);
    b.alu(kAdd, r0, r8);
    b.load(8, r1, r0, 0);
    b.bind(end);
  });
}

TEST_F(Checker, AcceptsTheLengthThatAStringReadGave) {
  accept([](Builder& b) {
    b.mov(r6, r1);
    b.store_imm(8, r10, -16, 0);
    b.store_imm(8, r10, -8, 0);
    b.mov(r1, r10);
    b.alu_imm(kAdd, r1, -16);
    b.mov_imm(r2, 16);
    b.load(8, r3, r6, 0);
    b.call(Helper::kProbeReadUserStr);
    Builder::Label end = b.new_label();
    b.jump_if_imm(kJsle, r0, 0, end);
    b.mov(r1, r10);
    b.alu(kAdd, r1, r0);
    b.load(1, r2, r1, -17);
    b.bind(end);
  });
}

TEST_F(Checker, AcceptsAContextAddressForARead) {
  Analysis a = accept([](Builder& b) {
    b.mov(r3, r1);
    b.load(4, r4, r1, 8);
    b.alu_imm(kAnd, r4, 0xffff);
    b.alu(kAdd, r3, r4);
    b.mov(r1, r10);
    b.alu_imm(kAdd, r1, -16);
    b.mov_imm(r2, 16);
    b.call(Helper::kProbeReadKernelStr);
    b.load(8, r1, r10, -16);
  });
  EXPECT_TRUE(a.context_escapes);
}

TEST_F(Checker, AcceptsNullAndAValueOnTwoPaths) {
  accept([](Builder& b) {
    b.load(8, r6, r1, 0);
    b.mov_imm(r0, 0);
    Builder::Label skip = b.new_label(), end = b.new_label();
    b.jump_if_imm(kJeq, r6, 0, skip);
    lookup(b);
    b.bind(skip);
    b.jump_if_imm(kJeq, r0, 0, end);
    b.load(8, r1, r0, 0);
    b.bind(end);
  });
}

TEST_F(Checker, AcceptsASignedSignExtendedSpillAndReload) {
  accept([](Builder& b) {
    b.load(4, r2, r1, 0);
    b.alu_imm(kLsh, r2, 32);
    b.alu_imm(kArsh, r2, 32);
    b.store(8, r10, -8, r2);
    b.load(8, r3, r10, -8);
    b.store(8, r10, -16, r3);
  });
}

TEST_F(Checker, AcceptsManyPathsInAFewSteps) {
  env_.limits.max_steps = 50'000;
  accept([](Builder& b) {
    unknown(b, r6);
    b.mov_imm(r7, 0);
    for (int i = 0; i < 60; ++i) {
      Builder::Label skip = b.new_label();
      b.jump_if_imm(kJset, r6, 1 << (i % 30), skip);
      b.alu_imm(kAdd, r7, i + 1);
      b.bind(skip);
    }
    b.store(8, r10, -8, r7);
  });
}

TEST_F(Checker, AcceptsALoopOverTheStackAndReportsIt) {
  Analysis a = accept([](Builder& b) {
    for (int i = 1; i <= 8; ++i) b.store_imm(8, r10, static_cast<int16_t>(-8 * i), 0);
    b.mov_imm(r6, 0);
    Builder::Label head = b.new_label();
    b.bind(head);
    b.mov(r1, r10);
    b.alu_imm(kAdd, r1, -64);
    b.alu(kAdd, r1, r6);
    b.store_imm(1, r1, 0, 1);
    b.alu_imm(kAdd, r6, 1);
    b.jump_if_imm(kJlt, r6, 64, head);
  });
  EXPECT_EQ(a.back_edges.size(), 1u);
  EXPECT_EQ(a.back_edges[0].target, 9u);
  EXPECT_EQ(a.longest_path, 0u);
}

TEST_F(Checker, AcceptsALoopThatNeverEndsByItself) {
  Analysis a = accept_program({raw(kClassJmp | kJa, 0, 0, -1, 0)});
  EXPECT_EQ(a.back_edges.size(), 1u);
}

TEST_F(Checker, AcceptsNestedLoopsWithUnknownBounds) {
  accept([](Builder& b) {
    b.load(8, r6, r1, 0);
    b.load(8, r7, r1, 8);
    b.mov_imm(r8, 0);
    Builder::Label outer = b.new_label(), inner = b.new_label();
    b.bind(outer);
    b.mov(r9, r7);
    b.bind(inner);
    b.alu(kAdd, r8, r9);
    b.alu_imm(kSub, r9, 1);
    b.jump_if_imm(kJne, r9, 0, inner);
    b.alu_imm(kSub, r6, 1);
    b.jump_if_imm(kJne, r6, 0, outer);
    b.store(8, r10, -8, r8);
  });
}

TEST_F(Checker, DoesNotRequireCodeBehindADecidedConditionToBeRight) {
  Analysis a = accept([](Builder& b) {
    b.mov_imm(r6, 1);
    Builder::Label skip = b.new_label();
    b.jump_if_imm(kJeq, r6, 1, skip);
    b.load(8, r0, r9, 0);
    b.bind(skip);
  });
  EXPECT_TRUE(a.insns[1].reached);
  EXPECT_FALSE(a.insns[2].reached);
}

TEST_F(Checker, AcceptsStoresToAWritableContext) {
  env_.context_writable = true;
  accept([](Builder& b) { b.store_imm(8, r1, 0, 1); });
}

TEST_F(Checker, AcceptsUnalignedPlainAccessToValuesAndRecords) {
  accept([](Builder& b) {
    lookup_valid(b, kWide);
    b.load(8, r1, r0, 3);
    b.store(4, r0, 5, r1);
  });
}

// ---- what it finds out
// ---------------------------------------------------------------------------------------------

TEST_F(Checker, ForgetsFactsThatAreNotTheSameOnEveryPath) {
  Analysis a = accept([](Builder& b) {
    unknown(b, r6);
    Builder::Label other = b.new_label(), call = b.new_label(), end = b.new_label();
    b.store_imm(4, r10, -4, 3);
    b.load_map(r1, kArray);
    b.jump_if_imm(kJeq, r6, 0, call);
    b.jump(other);
    b.bind(other);
    b.store_imm(4, r10, -4, 4);
    b.load_map(r1, kWide);
    b.bind(call);
    b.mov(r2, r10);
    b.alu_imm(kAdd, r2, -4);
    b.call(Helper::kMapLookupElem);
    b.jump_if_imm(kJeq, r0, 0, end);
    b.load(8, r1, r0, 0);
    b.bind(end);
  });
  EXPECT_EQ(a.calls[0].map, -1);
  EXPECT_FALSE(a.calls[0].constant_key);
  EXPECT_FALSE(a.calls[0].never_null);
}

TEST_F(Checker, SaysNeverNullOnlyInsideTheArray) {
  EXPECT_TRUE(accept([](Builder& b) { lookup(b, kArray, 9); }).calls[0].never_null);
  EXPECT_FALSE(accept([](Builder& b) { lookup(b, kArray, 10); }).calls[0].never_null);
  EXPECT_FALSE(accept([](Builder& b) { lookup(b, kArray, -1); }).calls[0].never_null);
}

TEST_F(Checker, DoesNotSayNeverNullForAHash) {
  Analysis a = accept([](Builder& b) {
    b.store_imm(8, r10, -8, 0);
    b.mov(r2, r10);
    b.alu_imm(kAdd, r2, -8);
    b.load_map(r1, kHash);
    b.call(Helper::kMapLookupElem);
  });
  EXPECT_EQ(a.calls[0].constant_key, std::vector<uint8_t>(8, 0));
  EXPECT_FALSE(a.calls[0].never_null);
}

TEST_F(Checker, DoesNotSayNeverNullForAHashWithSmallKeys) {
  Analysis a = accept([](Builder& b) { lookup(b, kSmallKeyHash, 0); });
  EXPECT_TRUE(a.calls[0].constant_key);
  EXPECT_FALSE(a.calls[0].never_null);
}

/// Two paths that come to one call, the first of which is walked first.
Emit on_two_paths(const Emit& first, const Emit& second, const Emit& then) {
  return [=](Builder& b) {
    b.load(8, r6, r1, 0);
    Builder::Label other = b.new_label(), both = b.new_label();
    b.jump_if_imm(kJeq, r6, 0, other);
    first(b);
    b.jump(both);
    b.bind(other);
    second(b);
    b.bind(both);
    then(b);
  };
}

TEST_F(Checker, SaysNeverNullOnlyWhereItIsSoOnEveryPath) {
  auto key = [](int32_t index) { return [=](Builder& b) { b.store_imm(4, r10, -4, index); }; };
  auto call = [](Builder& b) {
    b.mov(r2, r10);
    b.alu_imm(kAdd, r2, -4);
    b.load_map(r1, kArray);
    b.call(Helper::kMapLookupElem);
  };
  EXPECT_TRUE(accept(on_two_paths(key(1), key(2), call)).calls[0].never_null);
  EXPECT_FALSE(accept(on_two_paths(key(1), key(10), call)).calls[0].never_null);
  EXPECT_FALSE(accept(on_two_paths(key(10), key(1), call)).calls[0].never_null);
}

TEST_F(Checker, ForgetsSizesThatDiffer) {
  auto size = [](int32_t bytes) { return [=](Builder& b) { b.mov_imm(r2, bytes); }; };
  auto call = [](Builder& b) {
    b.mov(r1, r10);
    b.alu_imm(kAdd, r1, -16);
    b.call(Helper::kGetCurrentComm);
  };
  EXPECT_EQ(accept(on_two_paths(size(8), size(8), call)).calls[0].size, 8u);
  EXPECT_FALSE(accept(on_two_paths(size(8), size(16), call)).calls[0].size);
}

TEST_F(Checker, CallsMemoryMixedThatDiffers) {
  auto stack = [](Builder& b) {
    b.store_imm(8, r10, -16, 0), b.mov(r7, r10), b.alu_imm(kAdd, r7, -16);
  };
  auto value = [](Builder& b) { lookup_valid(b), b.mov(r7, r0); };
  Program program =
      built(with_exit(on_two_paths(stack, value, [](Builder& b) { b.load(8, r8, r7, 0); })));
  auto load =
      std::ranges::find(program, raw(kClassLdx | kSizeDw | kModeMem, 8, 7, 0, 0)) - program.begin();
  EXPECT_EQ(accept_program(program).insns[static_cast<size_t>(load)].memory, Memory::kMixed);
}

TEST_F(Checker, DoesNotTakeTheFirstPathForTheSecond) {
  auto use = [](Builder& b) { b.load(8, r8, r0, 0); };
  refuse("compared with 0",
         on_two_paths([](Builder& b) { lookup_valid(b); }, [](Builder& b) { lookup(b); }, use));
  auto small = [](Builder& b) { lookup_valid(b), b.mov_imm(r7, 0); };
  auto large = [](Builder& b) { lookup_valid(b), b.mov_imm(r7, 8); };
  auto indexed = [](Builder& b) { b.alu(kAdd, r0, r7), b.load(1, r8, r0, 0); };
  refuse("not inside [0, 8)", on_two_paths(small, large, indexed));
  auto number = [](Builder& b) { b.store(8, r10, -8, r6); };
  refuse("not initialised",
         on_two_paths(number, [](Builder&) {}, [](Builder& b) { b.load(8, r8, r10, -8); }));
  auto half = [](Builder& b) { b.store(4, r10, -8, r6); };
  auto elsewhere = [](Builder& b) { b.store(4, r10, -16, r6); };
  refuse("not initialised",
         on_two_paths(half, [](Builder&) {}, [](Builder& b) { b.load(4, r8, r10, -8); }));
  refuse("not initialised",
         on_two_paths(half, elsewhere, [](Builder& b) { b.load(4, r8, r10, -8); }));
  auto null = [](Builder& b) { b.mov_imm(r0, 0); };
  auto start = [](Builder& b) { lookup_valid(b); };
  auto next = [](Builder& b) { lookup_valid(b), b.alu_imm(kAdd, r0, 8); };
  refuse("r0 is the number 0", on_two_paths(start, null, use));
  refuse("r0 is the number 0", on_two_paths(null, start, use));
  refuse("not inside [0, 8)", on_two_paths(start, next, use));
  auto map = [](int index) { return [=](Builder& b) { b.load_map(r1, index); }; };
  refuse("which is a ring", on_two_paths(map(kArray), map(kRing), [](Builder& b) {
           b.store_imm(4, r10, -4, 0);
           b.mov(r2, r10);
           b.alu_imm(kAdd, r2, -4);
           b.call(Helper::kMapLookupElem);
         }));
  auto array = [](Builder& b) { lookup_valid(b, kArray); };
  auto wide = [](Builder& b) { lookup_valid(b, kWide); };
  refuse("not inside [0, 8)", on_two_paths(wide, array, [](Builder& b) { b.load(8, r8, r0, 8); }));
  auto record = [](int32_t size) { return [=](Builder& b) { reserve_valid(b, size); }; };
  auto submitted = [](Builder& b) { b.store_imm(8, r0, 24, 0), submit(b, r0); };
  accept(on_two_paths(record(32), record(40), submitted));
  refuse("not inside [0, 24)", on_two_paths(record(32), record(24), submitted));
}

TEST_F(Checker, ForgetsWhichPathHadAValueOnceTheyAreJoined) {
  auto with = [](bool has_value) {
    return [=](Builder& b) {
      b.mov_imm(r0, 0);
      if (has_value) lookup_valid(b);
      b.mov_imm(r7, has_value ? 1 : 0);
    };
  };
  auto use = [](Builder& b) {
    Builder::Label end = b.new_label();
    b.jump_if_imm(kJeq, r7, 0, end);
    b.load(8, r8, r0, 0);
    b.bind(end);
  };
  accept(on_two_paths(with(true), with(false), use));
  accept(on_two_paths(with(false), with(true), use));
  env_.limits.states_kept = 1;
  refuse("compared with 0", on_two_paths(with(true), with(false), use));
  refuse("compared with 0", on_two_paths(with(false), with(true), use));
}

TEST_F(Checker, DoesNotMixUpTwoRecords) {
  auto two = [](Reg first, Reg second) {
    return [=](Builder& b) {
      Builder::Label leave = b.new_label(), got = b.new_label();
      reserve_valid(b);
      b.mov(first, r0);
      reserve(b);
      b.mov(second, r0);
      b.jump_if_imm(kJne, second, 0, got);
      submit(b, first);
      b.jump(leave);
      b.bind(leave);
      b.mov_imm(r0, 0);
      b.exit();
      b.bind(got);
    };
  };
  Emit both = [](Builder& b) { submit(b, r7), submit(b, r8); };
  Emit twice = [](Builder& b) { submit(b, r7), submit(b, r7); };
  accept(on_two_paths(two(r7, r8), two(r7, r8), both));
  accept(on_two_paths(two(r7, r8), two(r8, r7), both));
  refuse("r7 is not initialised", on_two_paths(two(r7, r8), two(r8, r7), twice));
  refuse("is held", on_two_paths(two(r7, r8), two(r8, r7), [](Builder& b) { submit(b, r7); }));
}

TEST_F(Checker, DoesNotTakeConstantsOfTheFirstPathForTheSecond) {
  auto key = [](int32_t index) { return [=](Builder& b) { b.store_imm(4, r10, -4, index); }; };
  Emit use = [](Builder& b) {
    lookup_valid(b, kWide);
    b.mov(r1, r0);
    b.load(4, r2, r10, -4);
    b.alu(kAdd, r1, r2);
    b.load(1, r3, r1, 0);
  };
  // lookup() writes the key at r10-4 again, so keep the number below it.
  auto number = [](int32_t value) { return [=](Builder& b) { b.store_imm(4, r10, -8, value); }; };
  Emit use_number = [](Builder& b) {
    lookup_valid(b, kWide);
    b.load(4, r2, r10, -8);
    b.alu(kAdd, r0, r2);
    b.load(1, r3, r0, 0);
  };
  accept(on_two_paths(key(1), key(2), use));
  accept(on_two_paths(number(1), number(63), use_number));
  refuse("not inside [0, 64)", on_two_paths(number(1), number(64), use_number));
}

/// The same with so many paths that they are joined.
TEST_F(Checker, JoinsWithoutForgettingAnyPath) {
  auto many = [](int32_t last, const Emit& use) {
    return [=](Builder& b) {
      b.load(8, r6, r1, 0);
      Builder::Label both = b.new_label();
      for (int i = 0; i < 30; ++i) {
        b.store_imm(4, r10, -8, i == 29 ? last : i);
        b.mov_imm(r7, i == 29 ? last : i);
        b.jump_if_imm(kJeq, r6, i, both);
      }
      b.bind(both);
      lookup_valid(b, kWide);
      use(b);
      b.alu(kAdd, r0, r7);
      b.load(1, r3, r0, 0);
    };
  };
  auto from_stack = [](Builder& b) { b.load(4, r7, r10, -8), b.alu_imm(kAnd, r7, 127); };
  accept(many(63, [](Builder&) {}));
  refuse("not inside [0, 64)", many(64, [](Builder&) {}));
  refuse("not inside [0, 64)", many(64, from_stack));
}

TEST_F(Checker, JoinsPointersThatMayBeNull) {
  auto many = [](bool last_is_checked) {
    return [=](Builder& b) {
      b.load(8, r6, r1, 0);
      Builder::Label both = b.new_label();
      for (int i = 0; i < 12; ++i) {
        if (i < 11 || last_is_checked) {
          lookup_valid(b);
        } else {
          lookup(b);
        }
        b.mov_imm(r7, i * i * 3);
        b.jump_if_imm(kJeq, r6, i, both);
      }
      b.bind(both);
      b.load(8, r1, r0, 0);
      b.store(8, r10, -16, r7);
    };
  };
  accept(many(true));
  refuse("compared with 0", many(false));
}

TEST_F(Checker, ForgetsAConstantKeyThatAHelperOverwrites) {
  Analysis a = accept([](Builder& b) {
    b.store_imm(4, r10, -4, 1);
    b.load(8, r3, r1, 0);
    b.mov(r1, r10);
    b.alu_imm(kAdd, r1, -4);
    b.mov_imm(r2, 4);
    b.call(Helper::kProbeReadUser);
    b.mov(r2, r10);
    b.alu_imm(kAdd, r2, -4);
    b.load_map(r1, kArray);
    b.call(Helper::kMapLookupElem);
  });
  EXPECT_FALSE(a.calls[1].constant_key);
  EXPECT_FALSE(a.calls[1].never_null);
}

TEST_F(Checker, ForgetsAConstantKeyThatALoopChanges) {
  Analysis a = accept([](Builder& b) {
    b.mov_imm(r6, 0);
    Builder::Label head = b.new_label();
    b.bind(head);
    b.store(4, r10, -4, r6);
    b.mov(r2, r10);
    b.alu_imm(kAdd, r2, -4);
    b.load_map(r1, kArray);
    b.call(Helper::kMapLookupElem);
    b.alu_imm(kAdd, r6, 1);
    b.jump_if_imm(kJlt, r6, 3, head);
  });
  EXPECT_FALSE(a.calls[0].constant_key);
}

TEST_F(Checker, TellsWhatMemoryEachInstructionUses) {
  Analysis a = accept([](Builder& b) {
    b.load(8, r2, r1, 0);     // 0
    b.store(8, r10, -8, r2);  // 1
    lookup_valid(b);          // 2 ... 10
    b.load(8, r1, r0, 0);     // 11
  });
  EXPECT_EQ(a.insns[0].memory, Memory::kContext);
  EXPECT_EQ(a.insns[1].memory, Memory::kStack);
  EXPECT_EQ(a.insns[11].memory, Memory::kMapValue);
  EXPECT_EQ(a.insns[12].memory, Memory::kNone);
}

TEST_F(Checker, TellsWhichRegistersAreLive) {
  Analysis a = accept([](Builder& b) {
    b.load(8, r6, r1, 0);         // 0
    b.mov(r7, r6);                // 1
    b.call(Helper::kKtimeGetNs);  // 2
    b.alu(kAdd, r0, r7);          // 3
    b.store(8, r10, -8, r0);      // 4
  });
  auto bits = [](std::initializer_list<int> regs) {
    int mask = 0;
    for (int reg : regs) mask |= 1 << reg;
    return mask;
  };
  EXPECT_EQ(a.insns[0].live_in, bits({1, 10}));
  EXPECT_EQ(a.insns[1].live_in, bits({6, 10}));
  EXPECT_EQ(a.insns[2].live_in, bits({7, 10}));
  EXPECT_EQ(a.insns[3].live_in, bits({0, 7, 10}));
  EXPECT_EQ(a.insns[4].live_out, 0);
}

TEST_F(Checker, KeepsRegistersLiveAroundALoop) {
  Analysis a = accept([](Builder& b) {
    b.load(8, r6, r1, 0);  // 0
    b.load(8, r7, r1, 8);  // 1
    Builder::Label head = b.new_label();
    b.bind(head);
    b.alu(kSub, r6, r7);               // 2
    b.jump_if_imm(kJne, r6, 0, head);  // 3
  });
  EXPECT_EQ(a.insns[3].live_out, 1 << 6 | 1 << 7);
}

// ---- form
// ----------------------------------------------------------------------------------------------------------

TEST_F(Checker, RefusesAnEmptyProgram) {
  refuse_program("empty", {});
}
TEST_F(Checker, RefusesTooManyInstructions) {
  env_.limits.max_insns = 3;
  refuse_program("has 4 instructions", {kZeroR0, kZeroR0, kZeroR0, kExitInsn});
}
TEST_F(Checker, RefusesALongRunWithoutLoops) {
  env_.limits.insn_budget = 2;
  refuse_program("can run 3 instructions", {kZeroR0, kZeroR0, kExitInsn});
}
TEST_F(Checker, RefusesAProgramThatRunsOffItsEnd) {
  refuse_program("runs off its end", {kZeroR0});
}
TEST_F(Checker, RefusesAConditionalJumpAtTheEnd) {
  refuse_program("runs off its end", {kZeroR0, raw(kClassJmp | kJeq, 0, 0, -2, 0)});
}
TEST_F(Checker, RefusesAJumpOutOfTheProgram) {
  refuse_program("jumps out", {kZeroR0, raw(kClassJmp | kJeq, 0, 0, 1, 0), kExitInsn});
  refuse_program("jumps out", {kZeroR0, raw(kClassJmp | kJeq, 0, 0, -3, 0), kExitInsn});
  refuse_program("jumps out", {kZeroR0, raw(kClassJmp32 | kJa, 0, 0, 0, 0x7fffffff), kExitInsn});
}
TEST_F(Checker, RefusesAJumpIntoAWideLoad) {
  refuse_program("into the middle",
                 {kZeroR0, raw(kClassJmp | kJeq, 0, 0, 1, 0), raw(kClassLd | kSizeDw, 1, 0, 0, 1),
                  raw(0, 0, 0, 0, 0), kExitInsn});
}
TEST_F(Checker, RefusesCodeThatNothingReaches) {
  refuse_program("insn 2: no path leads here", {kZeroR0, kExitInsn, kZeroR0, kExitInsn});
}
TEST_F(Checker, RefusesUnknownOpcodes) {
  // Bit n of word w: 32 * w + n is an opcode, by the tables of RFC 9669 without packet access.
  constexpr uint32_t opcodes[8] = {0xf1f090f0, 0xf0f0f0f0, 0xf0f0f0f0, 0xfefefefe,
                                   0x90b202b2, 0xf0f0f0f0, 0x78f0f0f8, 0x00000000};
  for (unsigned code = 0; code < 256; ++code) {
    if ((opcodes[code / 32] >> code % 32 & 1) != 0) continue;
    refuse_program("unknown opcode",
                   {kZeroR0, raw(static_cast<uint8_t>(code), 0, 0, 0, 0), kExitInsn});
  }
}
TEST_F(Checker, RefusesUnknownAtomicOperations) {
  refuse_program("unknown atomic",
                 {kZeroR0, raw(kClassStx | kSizeDw | kModeAtomic, 10, 0, -8, 0x10), kExitInsn});
  refuse_program("unknown opcode",
                 {kZeroR0, raw(kClassStx | kSizeH | kModeAtomic, 10, 0, -8, 0), kExitInsn});
}
TEST_F(Checker, RefusesRegistersThatDoNotExist) {
  refuse_program("no register r11", {raw(kClassAlu64 | kMov, 11, 0, 0, 0), kExitInsn});
  refuse_program("no register r15", {raw(kClassAlu64 | kMov | kSrcX, 0, 15, 0, 0), kExitInsn});
  refuse_program("no register r12",
                 {raw(kClassLd | kSizeDw, 12, 0, 0, 0), raw(0, 0, 0, 0, 0), kExitInsn});
}
TEST_F(Checker, RefusesNonZeroUnusedFields) {
  refuse_program("unused field imm",
                 {kZeroR0, raw(kClassAlu64 | kAdd | kSrcX, 0, 0, 0, 5), kExitInsn});
  refuse_program("unused field off", {kZeroR0, raw(kClassAlu64 | kAdd, 0, 0, 3, 5), kExitInsn});
  refuse_program("unused field src", {kZeroR0, raw(kClassAlu64 | kAdd, 0, 2, 0, 5), kExitInsn});
  refuse_program("unused field imm", {kZeroR0, raw(kClassAlu64 | kNeg, 0, 0, 0, 5), kExitInsn});
  refuse_program("unused field dst", {kZeroR0, raw(kClassJmp | kExit, 1, 0, 0, 0)});
  refuse_program("unused field off", {kZeroR0, raw(kClassJmp32 | kJa, 0, 0, 1, 0), kExitInsn});
  refuse_program("unused field src",
                 {kZeroR0, raw(kClassSt | kSizeW | kModeMem, 10, 1, -4, 0), kExitInsn});
  refuse_program("unused field imm",
                 {kZeroR0, raw(kClassLdx | kSizeW | kModeMem, 0, 1, 0, 1), kExitInsn});
  refuse_program("unused field off", {raw(kClassJmp | kCall, 0, 0, 1, 5), kExitInsn});
}
TEST_F(Checker, RefusesABrokenWideLoad) {
  refuse_program("malformed second half", {raw(kClassLd | kSizeDw, 0, 0, 0, 1),
                                           raw(kClassAlu64 | kMov, 0, 0, 0, 0), kExitInsn});
  refuse_program("second half of lddw is missing", {kZeroR0, raw(kClassLd | kSizeDw, 0, 0, 0, 1)});
}
TEST_F(Checker, RefusesWideLoadsOfOtherKinds) {
  refuse_program("lddw of kind 1",
                 {raw(kClassLd | kSizeDw, 1, 1, 0, 0), raw(0, 0, 0, 0, 0), kZeroR0, kExitInsn});
  refuse_program("lddw of kind 2",
                 {raw(kClassLd | kSizeDw, 1, 2, 0, 0), raw(0, 0, 0, 0, 0), kZeroR0, kExitInsn});
}
TEST_F(Checker, RefusesDivisionByTheConstantZero) {
  refuse("division by 0", [](Builder& b) { b.mov_imm(r2, 1), b.alu_imm(kDiv, r2, 0); });
  refuse("division by 0", [](Builder& b) { b.mov_imm(r2, 1), b.alu32_imm(kMod, r2, 0); });
}
TEST_F(Checker, RefusesConstantShiftsThatAreTooFar) {
  refuse("shift by 64", [](Builder& b) { b.mov_imm(r2, 1), b.alu_imm(kLsh, r2, 64); });
  refuse("shift by 32", [](Builder& b) { b.mov_imm(r2, 1), b.alu32_imm(kArsh, r2, 32); });
  refuse("shift by -1", [](Builder& b) { b.mov_imm(r2, 1), b.alu_imm(kRsh, r2, -1); });
}
TEST_F(Checker, RefusesByteSwapsOfOtherWidths) {
  refuse_program("byte swap of 8", {kZeroR0, raw(kClassAlu | kEnd, 0, 0, 0, 8), kExitInsn});
}
TEST_F(Checker, RefusesCallsThatAreNotBuilt) {
  refuse_program("functions in the program", {raw(kClassJmp | kCall, 0, 1, 0, 0), kExitInsn});
  refuse_program("BTF id", {raw(kClassJmp | kCall, 0, 2, 0, 5), kExitInsn});
  refuse_program("helper 6 is unknown", {raw(kClassJmp | kCall, 0, 0, 0, 6), kExitInsn});
}
TEST_F(Checker, RefusesHelpersThatTheEnvironmentDoesNotAllow) {
  env_.helpers = std::vector<Helper>{Helper::kKtimeGetNs};
  accept([](Builder& b) { b.call(Helper::kKtimeGetNs); });
  refuse("may not be called here", [](Builder& b) { b.call(Helper::kGetSmpProcessorId); });
}
TEST_F(Checker, RefusesAWalkThatIsTooLong) {
  env_.limits.max_steps = 5;
  refuse("too complex", [](Builder& b) {
    for (int i = 0; i < 6; ++i) b.mov_imm(r2, i);
  });
}

// ---- registers
// -----------------------------------------------------------------------------------------------------

TEST_F(Checker, RefusesRegistersThatWereNotWritten) {
  refuse("insn 0: r3 is not initialised", [](Builder& b) { b.mov(r2, r3); });
  refuse("r3 is not initialised", [](Builder& b) { b.alu_imm(kAdd, r3, 1); });
  refuse("r3 is not initialised", [](Builder& b) { b.mov_imm(r2, 0), b.alu(kAdd, r2, r3); });
  refuse("r3 is not initialised", [](Builder& b) { b.neg(r3); });
  refuse("r3 is not initialised", [](Builder& b) { b.end(r3, true, 16); });
  refuse("r3 is not initialised", [](Builder& b) { b.store(8, r10, -8, r3); });
  refuse("r3 is not initialised", [](Builder& b) { b.load(8, r2, r3, 0); });
  refuse("r3 is not initialised", [](Builder& b) {
    Builder::Label next = b.new_label();
    b.jump_if_imm(kJeq, r3, 0, next);
    b.bind(next);
  });
  refuse("r3 is not initialised", [](Builder& b) {
    Builder::Label next = b.new_label();
    b.mov_imm(r2, 0);
    b.jump_if(kJeq, r2, r3, next);
    b.bind(next);
  });
}
TEST_F(Checker, RefusesAnExitWithoutAResult) {
  refuse_program("r0 is not initialised", {kExitInsn});
}
TEST_F(Checker, RefusesAPointerAsResult) {
  refuse_program("expected a number at the exit",
                 built([](Builder& b) { b.mov(r0, r10), b.exit(); }));
}
TEST_F(Checker, RefusesArgumentRegistersAfterACall) {
  refuse("r1 is not initialised",
         [](Builder& b) { b.call(Helper::kKtimeGetNs), b.load(8, r0, r1, 0); });
  refuse("r5 is not initialised",
         [](Builder& b) { b.mov_imm(r5, 0), b.call(Helper::kKtimeGetNs), b.mov(r0, r5); });
}
TEST_F(Checker, RefusesWritesToR10) {
  refuse("r10, which is read-only", [](Builder& b) { b.alu_imm(kAdd, r10, -8); });
  refuse("r10, which is read-only", [](Builder& b) { b.mov_imm(r10, 0); });
  refuse("r10, which is read-only", [](Builder& b) { b.load_imm64(r10, 1ull << 40); });
  refuse("r10, which is read-only", [](Builder& b) { b.load(8, r10, r1, 0); });
}
TEST_F(Checker, RefusesARegisterThatOnePathDidNotWrite) {
  refuse("r6 is not initialised", [](Builder& b) {
    b.load(8, r2, r1, 0);
    Builder::Label skip = b.new_label();
    b.jump_if_imm(kJeq, r2, 0, skip);
    b.mov_imm(r6, 1);
    b.bind(skip);
    b.mov(r0, r6);
  });
}

// ---- pointer arithmetic
// --------------------------------------------------------------------------------------------

TEST_F(Checker, RefusesArithmeticOnPointersOtherThanAddAndSub) {
  for (uint8_t op : {kMul, kDiv, kOr, kAnd, kLsh, kRsh, kMod, kXor, kArsh}) {
    refuse("r1 is the context+0, expected a number", [&](Builder& b) { b.alu_imm(op, r1, 4); });
    refuse("r1 is the context+0, expected a number",
           [&](Builder& b) { b.mov_imm(r2, 4), b.alu(op, r2, r1); });
  }
  refuse("expected a number", [](Builder& b) { b.neg(r1); });
  refuse("expected a number", [](Builder& b) { b.end(r1, true, 64); });
}
TEST_F(Checker, RefusesHalfOfAPointer) {
  refuse("expected a number", [](Builder& b) { b.alu32(kMov, r2, r10); });
  refuse("expected a number", [](Builder& b) { b.mov(r2, r10), b.alu32_imm(kAdd, r2, -8); });
  refuse_program("expected a number",
                 {raw(kClassAlu64 | kMov | kSrcX, 2, 10, 8, 0), kZeroR0, kExitInsn});
}
TEST_F(Checker, RefusesSumsAndDifferencesOfPointers) {
  refuse("expected a number", [](Builder& b) { b.mov(r2, r10), b.alu(kAdd, r2, r10); });
  refuse("expected a number", [](Builder& b) { b.mov(r2, r10), b.alu(kSub, r2, r10); });
  refuse("expected a number", [](Builder& b) { b.mov_imm(r2, 8), b.alu(kSub, r2, r10); });
}
TEST_F(Checker, RefusesArithmeticOnAMap) {
  refuse("r1 is map 0", [](Builder& b) { b.load_map(r1, kHash), b.alu_imm(kAdd, r1, 8); });
}
TEST_F(Checker, RefusesArithmeticOnWhatMayBeNull) {
  refuse("compared with 0", [](Builder& b) { lookup(b), b.alu_imm(kAdd, r0, 0); });
}
TEST_F(Checker, RefusesOffsetsWithoutBound) {
  refuse("added or subtracted is too far", [](Builder& b) {
    b.load(8, r6, r1, 0);
    lookup_valid(b);
    b.alu(kAdd, r0, r6);
  });
}
TEST_F(Checker, RefusesOffsetsThatAreFarAway) {
  refuse("is too far from its object", [](Builder& b) {
    b.alu_imm(kAdd, r1, 1 << 29);
    b.alu_imm(kAdd, r1, 1 << 29);
  });
}
TEST_F(Checker, RefusesAPointerThatALoopMovesOn) {
  refuse("insn", [](Builder& b) {
    b.load(8, r6, r1, 0);
    lookup_valid(b, kWide);
    Builder::Label head = b.new_label();
    b.bind(head);
    b.store_imm(8, r0, 0, 1);
    b.alu_imm(kAdd, r0, 8);
    b.alu_imm(kSub, r6, 1);
    b.jump_if_imm(kJne, r6, 0, head);
  });
}
TEST_F(Checker, RefusesComparisonsOfPointers) {
  auto compare = [](uint8_t op, int32_t imm) {
    return [=](Builder& b) {
      Builder::Label next = b.new_label();
      b.jump_if_imm(op, r1, imm, next);
      b.bind(next);
    };
  };
  refuse("expected a number", compare(kJgt, 0));
  refuse("expected a number", compare(kJeq, 5));
  refuse("expected a number", [](Builder& b) {
    Builder::Label next = b.new_label();
    b.jump_if(kJeq, r1, r10, next);
    b.bind(next);
  });
  refuse("expected a number", [](Builder& b) {
    Builder::Label next = b.new_label();
    b.jump32_if_imm(kJeq, r1, 0, next);
    b.bind(next);
  });
  refuse("expected a number", [](Builder& b) {
    Builder::Label next = b.new_label();
    b.mov_imm(r2, 0);
    b.jump_if(kJgt, r2, r10, next);
    b.bind(next);
  });
}

// ---- memory
// --------------------------------------------------------------------------------------------------------

TEST_F(Checker, RefusesNumbersAsAddresses) {
  refuse("insn 1: r3 is the number 4096, expected a pointer to memory",
         [](Builder& b) { b.mov_imm(r3, 4096), b.load(8, r2, r3, 0); });
  refuse("expected a pointer to memory",
         [](Builder& b) { b.load(8, r2, r1, 0), b.store_imm(8, r2, 0, 0); });
  refuse("expected a pointer to memory", [](Builder& b) {
    b.mov_imm(r3, 0), b.mov_imm(r2, 0), b.atomic(8, kAtomicAdd, r3, 0, r2);
  });
}
TEST_F(Checker, RefusesMapsAsAddresses) {
  refuse("r1 is map 1, expected a pointer to memory",
         [](Builder& b) { b.load_map(r1, kArray), b.load(8, r2, r1, 0); });
}
TEST_F(Checker, RefusesAMapThatIsNotThere) {
  refuse("no map 7", [](Builder& b) { b.load_map(r1, 7); });
  refuse("no map -1", [](Builder& b) { b.load_map(r1, -1); });
}
TEST_F(Checker, RefusesStackOutsideItsBounds) {
  refuse("not inside [-512, 0)", [](Builder& b) { b.store_imm(8, r10, 0, 0); });
  refuse("not inside [-512, 0)", [](Builder& b) { b.store_imm(8, r10, -4, 0); });
  refuse("not inside [-512, 0)", [](Builder& b) { b.store_imm(8, r10, -520, 0); });
  refuse("not inside [-512, 0)", [](Builder& b) { b.store_imm(1, r10, -513, 0); });
  accept([](Builder& b) { b.store_imm(8, r10, -512, 0); });
  env_.limits.max_stack_bytes = 256;
  refuse("not inside [-256, 0)", [](Builder& b) { b.store_imm(8, r10, -264, 0); });
}
TEST_F(Checker, RefusesUnalignedStack) {
  refuse("not aligned", [](Builder& b) { b.store_imm(8, r10, -12, 0); });
  refuse("not aligned", [](Builder& b) { b.store_imm(8, r10, -8, 0), b.load(4, r2, r10, -7); });
}
TEST_F(Checker, RefusesStackThatIsNotInitialised) {
  refuse("byte r10-8 of the stack, which is not initialised",
         [](Builder& b) { b.load(8, r2, r10, -8); });
  refuse("byte r10-8 of the stack",
         [](Builder& b) { b.store_imm(4, r10, -4, 0), b.load(8, r2, r10, -8); });
  refuse("byte r10-3 of the stack",
         [](Builder& b) { b.store_imm(1, r10, -4, 0), b.load(4, r2, r10, -4); });
}
TEST_F(Checker, RefusesStackThatOnePathDidNotInitialise) {
  refuse("not initialised", [](Builder& b) {
    b.load(8, r2, r1, 0);
    Builder::Label skip = b.new_label();
    b.jump_if_imm(kJeq, r2, 0, skip);
    b.store_imm(8, r10, -8, 1);
    b.bind(skip);
    b.load(8, r3, r10, -8);
  });
}
TEST_F(Checker, RefusesTheBytesOfASpilledPointer) {
  refuse("part of the context",
         [](Builder& b) { b.store(8, r10, -8, r1), b.load(4, r2, r10, -8); });
}
TEST_F(Checker, RefusesAPointerWithAByteOverwritten) {
  refuse("not initialised", [](Builder& b) {
    b.store(8, r10, -8, r1);
    b.store_imm(1, r10, -8, 0);
    b.load(8, r2, r10, -8);
    b.load(8, r3, r2, 0);
  });
}
TEST_F(Checker, RefusesToOverwriteAPointerSomewhere) {
  refuse("could overwrite", [](Builder& b) {
    b.load(8, r6, r1, 0);
    b.store(8, r10, -16, r1);
    b.store_imm(8, r10, -8, 0);
    b.alu_imm(kAnd, r6, 8);
    b.mov(r2, r10);
    b.alu_imm(kAdd, r2, -16);
    b.alu(kAdd, r2, r6);
    b.store_imm(8, r2, 0, 0);
  });
}
TEST_F(Checker, RefusesSomeStackByteThatIsNotInitialised) {
  refuse("not initialised", [](Builder& b) {
    b.load(8, r6, r1, 0);
    b.store_imm(8, r10, -8, 0);
    b.alu_imm(kAnd, r6, 8);
    b.mov(r2, r10);
    b.alu_imm(kAdd, r2, -16);
    b.alu(kAdd, r2, r6);
    b.load(8, r3, r2, 0);
  });
}
TEST_F(Checker, DoesNotTakeAWriteSomewhereForInitialisation) {
  refuse("not initialised", [](Builder& b) {
    b.load(8, r6, r1, 0);
    b.alu_imm(kAnd, r6, 8);
    b.mov(r2, r10);
    b.alu_imm(kAdd, r2, -16);
    b.alu(kAdd, r2, r6);
    b.store_imm(8, r2, 0, 0);
    b.load(8, r3, r10, -8);
  });
}
TEST_F(Checker, ForgetsConstantsThatAWriteSomewhereMayChange) {
  Analysis a = accept([](Builder& b) {
    b.load(8, r6, r1, 0);
    b.store_imm(8, r10, -8, 0);
    b.store_imm(8, r10, -16, 0);
    b.alu_imm(kAnd, r6, 8);
    b.mov(r2, r10);
    b.alu_imm(kAdd, r2, -16);
    b.alu(kAdd, r2, r6);
    b.store_imm(8, r2, 0, 5);
    b.mov(r2, r10);
    b.alu_imm(kAdd, r2, -16);
    b.load_map(r1, kArray);
    b.call(Helper::kMapLookupElem);
  });
  EXPECT_FALSE(a.calls[0].constant_key);
}
TEST_F(Checker, RefusesTheContextOutsideItsBounds) {
  refuse("bytes [168, 176) of the context", [](Builder& b) { b.load(8, r2, r1, 168); });
  refuse("bytes [-8, 0) of the context", [](Builder& b) { b.load(8, r2, r1, -8); });
  env_.context_size = 0;
  refuse("bytes [0, 1) of the context", [](Builder& b) { b.load(1, r2, r1, 0); });
}
TEST_F(Checker, RefusesTheContextBeforeItsFirstByte) {
  env_.context_first_byte = 8;
  refuse("bytes [4, 8) of the context", [](Builder& b) { b.load(4, r2, r1, 4); });
  accept([](Builder& b) { b.load(4, r2, r1, 8); });
}
TEST_F(Checker, RefusesUnalignedContext) {
  refuse("not aligned", [](Builder& b) { b.load(8, r2, r1, 4); });
}
TEST_F(Checker, RefusesWritesToTheContext) {
  refuse("context, which is read-only", [](Builder& b) { b.store_imm(8, r1, 0, 0); });
  refuse("context, which is read-only",
         [](Builder& b) { b.mov_imm(r2, 0), b.store(8, r1, 0, r2); });
  refuse("atomic on the context",
         [](Builder& b) { b.mov_imm(r2, 0), b.atomic(8, kAtomicAdd, r1, 0, r2); });
}
TEST_F(Checker, RefusesAModifiedContextPointer) {
  refuse("the context as it came",
         [](Builder& b) { b.alu_imm(kAdd, r1, 8), b.load(8, r2, r1, 0); });
}
TEST_F(Checker, RefusesAnUncheckedLookupResult) {
  refuse("r0 is a value of map 1+0 or null, expected a pointer that was compared with 0",
         [](Builder& b) { lookup(b), b.load(8, r1, r0, 0); });
}
TEST_F(Checker, RefusesTheLookupResultOnItsNullPath) {
  refuse("r0 is the number 0", [](Builder& b) {
    lookup(b);
    Builder::Label end = b.new_label();
    b.jump_if_imm(kJne, r0, 0, end);
    b.load(8, r1, r0, 0);
    b.bind(end);
  });
}
TEST_F(Checker, DoesNotTakeOneLookupsCheckForAnother) {
  refuse("compared with 0", [](Builder& b) {
    lookup(b);
    b.mov(r6, r0);
    lookup(b);
    Builder::Label end = b.new_label();
    b.jump_if_imm(kJeq, r0, 0, end);
    b.load(8, r1, r6, 0);
    b.bind(end);
  });
}
TEST_F(Checker, DoesNotTakeTheLastRoundsCheckForThisOne) {
  refuse("r6 is a value of map 1+0 or null, expected a pointer that was compared with 0",
         [](Builder& b) {
           b.load(8, r8, r1, 0);
           lookup(b);
           b.mov(r6, r0);
           Builder::Label head = b.new_label(), next = b.new_label();
           b.bind(head);
           b.jump_if_imm(kJeq, r0, 0, next);
           b.load(8, r1, r6, 0);
           b.mov(r6, r0);
           b.bind(next);
           lookup(b);
           b.mov(r6, r0);
           lookup(b);
           b.alu_imm(kSub, r8, 1);
           b.jump_if_imm(kJne, r8, 0, head);
         });
}
TEST_F(Checker, RefusesMapValuesOutsideTheirBounds) {
  refuse("not inside [0, 8)", [](Builder& b) { lookup_valid(b), b.load(8, r1, r0, 1); });
  refuse("not inside [0, 8)", [](Builder& b) { lookup_valid(b), b.load(1, r1, r0, 8); });
  refuse("not inside [0, 8)", [](Builder& b) { lookup_valid(b), b.store_imm(1, r0, -1, 0); });
  refuse("not inside [0, 8)", [](Builder& b) {
    lookup_valid(b);
    b.mov_imm(r1, 0);
    b.atomic(8, kAtomicAdd, r0, 8, r1);
  });
}
TEST_F(Checker, RefusesAnIndexThatIsOneTooLarge) {
  auto indexed = [](int32_t limit) {
    return [=](Builder& b) {
      b.load(8, r8, r1, 0);
      lookup_valid(b, kWide);
      Builder::Label end = b.new_label();
      b.jump_if_imm(kJgt, r8, limit, end);
      b.alu(kAdd, r0, r8);
      b.load(1, r1, r0, 0);
      b.bind(end);
    };
  };
  accept(indexed(63));
  refuse("not inside [0, 64)", indexed(64));
}
TEST_F(Checker, RefusesAnIndexThatMayBeNegative) {
  refuse("added or subtracted is too far", [](Builder& b) {
    b.load(8, r8, r1, 0);
    lookup_valid(b, kWide);
    Builder::Label end = b.new_label();
    b.jump_if_imm(kJsgt, r8, 56, end);
    b.alu(kAdd, r0, r8);
    b.load(8, r1, r0, 0);
    b.bind(end);
  });
}
/// kWide[r8], after `compare` has ended the program for large numbers; r9 is free.
Emit index_after(const Emit& compare) {
  return [=](Builder& b) {
    b.mov(r6, r1);
    lookup_valid(b, kWide);
    b.load(8, r8, r6, 0);
    compare(b);
    b.alu(kAdd, r0, r8);
    b.load(1, r1, r0, 0);
  };
}
void end_if_above(Builder& b, Reg reg, int32_t limit) {
  Builder::Label fits = b.new_label();
  b.jump_if_imm(kJle, reg, limit, fits);
  b.mov_imm(r0, 0);
  b.exit();
  b.bind(fits);
}
TEST_F(Checker, DoesNotTakeTheComparisonOfAnotherNumberForThisOne) {
  accept(index_after([](Builder& b) { b.mov(r9, r8), end_if_above(b, r9, 63); }));
  refuse("is too far", index_after([](Builder& b) {
           b.load(8, r9, r6, 8);
           b.mov(r5, r9);
           end_if_above(b, r9, 63);
         }));
}
TEST_F(Checker, DoesNotTakePartOfANumberForTheNumber) {
  // r8 is a number of 32 bits, r9 its sign-extended byte or half; r9 <= 63 says nothing about r8.
  for (bool is_32bit : {false, true}) {
    for (int16_t off : {int16_t{8}, int16_t{16}}) {
      Program program = built(with_exit(index_after([](Builder& b) {
        b.load(4, r8, r6, 0);
        b.mov(r9, r8);
        end_if_above(b, r9, 63);
      })));
      auto copy = std::ranges::find(program, raw(kClassAlu64 | kMov | kSrcX, 9, 8, 0, 0));
      ASSERT_NE(copy, program.end());
      accept_program(program);
      copy->code = static_cast<uint8_t>((is_32bit ? kClassAlu : kClassAlu64) | kMov | kSrcX);
      copy->off = off;
      refuse_program("insn", program);
    }
  }
}
TEST_F(Checker, DoesNotTakeA32BitComparisonForA64BitOne) {
  refuse("added or subtracted is too far", [](Builder& b) {
    b.load(8, r8, r1, 0);
    lookup_valid(b, kWide);
    Builder::Label end = b.new_label();
    b.jump32_if_imm(kJgt, r8, 56, end);
    b.alu(kAdd, r0, r8);
    b.load(8, r1, r0, 0);
    b.bind(end);
  });
}
TEST_F(Checker, RefusesUnalignedAtomics) {
  refuse("not aligned", [](Builder& b) {
    lookup_valid(b, kWide);
    b.mov_imm(r1, 1);
    b.atomic(8, kAtomicAdd, r0, 4, r1);
  });
  refuse("not aligned", [](Builder& b) {
    b.load(8, r6, r1, 0);
    lookup_valid(b, kWide);
    b.alu_imm(kAnd, r6, 15);
    b.alu(kAdd, r0, r6);
    b.mov_imm(r1, 1);
    b.atomic(8, kAtomicAdd, r0, 0, r1);
  });
}
TEST_F(Checker, RefusesAtomicsWithPointers) {
  refuse("expected a number", [](Builder& b) {
    lookup_valid(b);
    b.atomic(8, kAtomicAdd, r0, 0, r10);
  });
  refuse("r0 is a value of map 1", [](Builder& b) {
    lookup_valid(b);
    b.mov_imm(r1, 0);
    b.atomic(8, kCmpXchg, r0, 0, r1);
  });
}
TEST_F(Checker, RefusesAtomicsOnStackThatIsNotInitialised) {
  refuse("not initialised",
         [](Builder& b) { b.mov_imm(r1, 0), b.atomic(8, kAtomicAdd, r10, -8, r1); });
}
TEST_F(Checker, ForgetsAConstantThatAnAtomicChanges) {
  Analysis a = accept([](Builder& b) {
    b.store_imm(8, r10, -8, 1);
    b.mov_imm(r3, 1);
    b.atomic(4, kAtomicAdd, r10, -8, r3);
    b.mov(r2, r10);
    b.alu_imm(kAdd, r2, -8);
    b.load_map(r1, kArray);
    b.call(Helper::kMapLookupElem);
  });
  EXPECT_FALSE(a.calls[0].constant_key);
}
TEST_F(Checker, RefusesPointersInMapValuesAndRecords) {
  refuse("stores the stack", [](Builder& b) { lookup_valid(b), b.store(8, r0, 0, r10); });
  refuse("stores a record", [](Builder& b) { reserve_valid(b), b.store(8, r0, 0, r0); });
  env_.context_writable = true;
  refuse("stores the stack", [](Builder& b) { b.store(8, r1, 0, r10); });
}
TEST_F(Checker, RefusesAPointerStoredInPart) {
  refuse("stores the context", [](Builder& b) { b.store(4, r10, -8, r1); });
}
TEST_F(Checker, RefusesAPointerStoredSomewhere) {
  refuse("stores the context", [](Builder& b) {
    b.load(8, r6, r1, 0);
    b.alu_imm(kAnd, r6, 8);
    b.mov(r2, r10);
    b.alu_imm(kAdd, r2, -16);
    b.alu(kAdd, r2, r6);
    b.store(8, r2, 0, r1);
  });
}
TEST_F(Checker, RefusesARegisterThatHoldsDifferentObjects) {
  refuse("r6", [](Builder& b) {
    b.load(8, r8, r1, 0);
    b.mov(r6, r1);
    Builder::Label skip = b.new_label();
    b.jump_if_imm(kJeq, r8, 0, skip);
    b.mov(r6, r8);
    b.bind(skip);
    b.load(8, r2, r6, 0);
  });
}

// ---- records
// -------------------------------------------------------------------------------------------------------

TEST_F(Checker, RefusesARecordThatIsNeverSubmitted) {
  refuse("exits while the record that insn 4 reserved is held",
         [](Builder& b) { reserve_valid(b); });
}
TEST_F(Checker, RefusesARecordThatOnePathDoesNotSubmit) {
  refuse("is held", [](Builder& b) {
    b.load(8, r8, r1, 0);
    reserve_valid(b);
    b.mov(r7, r0);
    Builder::Label skip = b.new_label();
    b.jump_if_imm(kJeq, r8, 3, skip);
    submit(b, r7);
    b.bind(skip);
  });
}
TEST_F(Checker, RefusesARecordThatIsNotLookedAt) {
  refuse("is held", [](Builder& b) { reserve(b); });
}
TEST_F(Checker, RefusesARecordSubmittedTwice) {
  refuse("r7 is not initialised", [](Builder& b) {
    reserve_valid(b);
    b.mov(r7, r0);
    submit(b, r7);
    submit(b, r7);
  });
}
TEST_F(Checker, RefusesACopyOfARecordAfterItsSubmission) {
  refuse("r8 is not initialised", [](Builder& b) {
    reserve_valid(b);
    b.mov(r7, r0);
    b.mov(r8, r0);
    submit(b, r7);
    b.store_imm(8, r8, 0, 1);
  });
}
TEST_F(Checker, RefusesASpilledCopyOfARecordAfterItsSubmission) {
  refuse("not initialised", [](Builder& b) {
    reserve_valid(b);
    b.store(8, r10, -8, r0);
    submit(b, r0);
    b.load(8, r8, r10, -8);
  });
}
TEST_F(Checker, RefusesTheResultOfASubmission) {
  refuse("r0 is not initialised",
         [](Builder& b) { reserve_valid(b), submit(b, r0), b.mov(r6, r0); });
}
TEST_F(Checker, RefusesToSubmitAnUncheckedRecord) {
  refuse("compared with 0", [](Builder& b) { reserve(b), submit(b, r0); });
}
TEST_F(Checker, RefusesToSubmitTheMiddleOfARecord) {
  refuse("the start of a record", [](Builder& b) {
    reserve_valid(b);
    b.alu_imm(kAdd, r0, 8);
    submit(b, r0);
  });
}
TEST_F(Checker, RefusesToSubmitAnythingElse) {
  refuse("the start of a record", [](Builder& b) { submit(b, r10); });
}
TEST_F(Checker, RefusesRecordsOutsideTheirBounds) {
  refuse("not inside [0, 24)", [](Builder& b) { reserve_valid(b, 24), b.store_imm(8, r0, 24, 0); });
}
TEST_F(Checker, RefusesARecordSizeThatIsNotConstant) {
  refuse("expected a constant size", [](Builder& b) {
    b.load(4, r2, r1, 0);
    b.load_map(r1, kRing);
    b.mov_imm(r3, 0);
    b.call(Helper::kRingbufReserve);
  });
  refuse("expected a constant size", [](Builder& b) {
    b.load(4, r2, r1, 0);
    b.alu_imm(kAnd, r2, 7);
    b.alu_imm(kAdd, r2, 8);
    b.load_map(r1, kRing);
    b.mov_imm(r3, 0);
    b.call(Helper::kRingbufReserve);
  });
  refuse("expected a constant size", [](Builder& b) { reserve(b, 0); });
}
TEST_F(Checker, RefusesARecordThatNeverFits) {
  refuse("never fits", [](Builder& b) { reserve(b, 4089); });
  accept([](Builder& b) { reserve_valid(b, 4088), submit(b, r0); });
}
TEST_F(Checker, RefusesReservationFlags) {
  refuse("expected the number 0", [](Builder& b) {
    b.load_map(r1, kRing);
    b.mov_imm(r2, 8);
    b.mov_imm(r3, 1);
    b.call(Helper::kRingbufReserve);
  });
}
TEST_F(Checker, RefusesARecordHeldOverAJumpBack) {
  refuse("jumps back while the record", [](Builder& b) {
    b.load(8, r8, r1, 0);
    reserve_valid(b);
    b.mov(r7, r0);
    Builder::Label head = b.new_label();
    b.bind(head);
    b.alu_imm(kSub, r8, 1);
    b.jump_if_imm(kJne, r8, 0, head);
    submit(b, r7);
  });
}
TEST_F(Checker, AcceptsARecordWithinEachRoundOfALoop) {
  accept([](Builder& b) {
    b.load(8, r8, r1, 0);
    Builder::Label head = b.new_label(), next = b.new_label();
    b.bind(head);
    reserve(b);
    b.jump_if_imm(kJeq, r0, 0, next);
    b.store(8, r0, 0, r8);
    submit(b, r0);
    b.bind(next);
    b.alu_imm(kSub, r8, 1);
    b.jump_if_imm(kJne, r8, 0, head);
  });
}
TEST_F(Checker, RefusesTheWrongOneOfTwoRecords) {
  refuse("is held", [](Builder& b) {
    reserve_valid(b);
    b.mov(r6, r0);
    reserve(b);
    b.mov(r7, r0);
    Builder::Label end = b.new_label();
    b.jump_if_imm(kJeq, r7, 0, end);
    submit(b, r7);
    b.bind(end);
  });
}

// ---- calls
// ---------------------------------------------------------------------------------------------------------

TEST_F(Checker, RefusesAnythingButAMapWhereAMapIsNeeded) {
  refuse("r1 is the context+0, expected a hash or array map",
         [](Builder& b) { b.call(Helper::kMapLookupElem); });
  refuse("which is a ring map, expected a hash", [](Builder& b) {
    b.load_map(r1, kRing);
    b.call(Helper::kMapLookupElem);
  });
  refuse("which is a hash or array map, expected a ring map", [](Builder& b) {
    b.load_map(r1, kHash);
    b.mov_imm(r2, 8);
    b.mov_imm(r3, 0);
    b.call(Helper::kRingbufReserve);
  });
}
TEST_F(Checker, RefusesAStackIdOfAnythingButTheContextAndAStackMap) {
  refuse("r2 is", [](Builder& b) {
    b.mov_imm(r2, 1);
    b.mov_imm(r3, 0);
    b.call(Helper::kGetStackid);
  });
  refuse("which is a hash or array map, expected a stack map", [](Builder& b) {
    b.load_map(r2, kHash);
    b.mov_imm(r3, 0);
    b.call(Helper::kGetStackid);
  });
  refuse("expected the context as it came", [](Builder& b) {
    b.mov(r1, r10);
    b.load_map(r2, kStacks);
    b.mov_imm(r3, 0);
    b.call(Helper::kGetStackid);
  });
  refuse("which is a stack map, expected a hash or array map", [](Builder& b) {
    b.store_imm(8, r10, -8, 0);
    b.mov(r2, r10);
    b.alu_imm(kAdd, r2, -8);
    b.load_map(r1, kStacks);
    b.call(Helper::kMapLookupElem);
  });
  accept([](Builder& b) {
    b.load_map(r2, kStacks);
    b.mov_imm(r3, bpf::kUserStack);
    b.call(Helper::kGetStackid);
  });
}
TEST_F(Checker, RefusesAnOverrideOfAnythingButTheContextAndANumber) {
  refuse("expected the context as it came", [](Builder& b) {
    b.mov_imm(r1, 0);
    b.mov_imm(r2, 0);
    b.call(Helper::kOverrideReturn);
  });
  refuse("r2 is", [](Builder& b) {
    b.mov(r2, r10);
    b.call(Helper::kOverrideReturn);
  });
}
TEST_F(Checker, RefusesAKeyThatIsNotInitialised) {
  refuse("byte r10-4 of the stack, which is not initialised", [](Builder& b) {
    b.store_imm(4, r10, -8, 0);
    b.mov(r2, r10);
    b.alu_imm(kAdd, r2, -8);
    b.load_map(r1, kHash);
    b.call(Helper::kMapLookupElem);
  });
}
TEST_F(Checker, RefusesAKeyThatIsTooShort) {
  refuse("not inside [-512, 0)", [](Builder& b) {
    b.store_imm(4, r10, -4, 0);
    b.mov(r2, r10);
    b.alu_imm(kAdd, r2, -4);
    b.load_map(r1, kHash);
    b.call(Helper::kMapLookupElem);
  });
}
TEST_F(Checker, RefusesAKeyWithAPointer) {
  refuse("part of the context", [](Builder& b) {
    b.store(8, r10, -8, r1);
    b.mov(r2, r10);
    b.alu_imm(kAdd, r2, -8);
    b.load_map(r1, kHash);
    b.call(Helper::kMapLookupElem);
  });
}
TEST_F(Checker, RefusesAKeyInTheContext) {
  refuse("expected the stack, a map value or a record", [](Builder& b) {
    b.mov(r2, r1);
    b.load_map(r1, kHash);
    b.call(Helper::kMapLookupElem);
  });
}
TEST_F(Checker, RefusesANumberAsKey) {
  refuse("r2 is the number 5, expected a pointer", [](Builder& b) {
    b.mov_imm(r2, 5);
    b.load_map(r1, kHash);
    b.call(Helper::kMapLookupElem);
  });
}
TEST_F(Checker, RefusesAValueThatIsTooShort) {
  refuse("r3 is the stack", [](Builder& b) {
    b.store_imm(8, r10, -8, 0);
    b.mov(r2, r10);
    b.alu_imm(kAdd, r2, -8);
    b.mov(r3, r2);
    b.mov_imm(r4, 0);
    b.load_map(r1, kHash);
    b.call(Helper::kMapUpdateElem);
  });
}
TEST_F(Checker, RefusesPointersAsFlags) {
  refuse("r4 is the stack at r10-8, expected a number", [](Builder& b) {
    b.store_imm(8, r10, -8, 0);
    b.mov(r2, r10);
    b.alu_imm(kAdd, r2, -8);
    b.mov(r3, r2);
    b.mov(r4, r2);
    b.load_map(r1, kArray);
    b.call(Helper::kMapUpdateElem);
  });
}

/// probe_read_user into the stack at r10 + `off`, `size` bytes as the callback leaves them in r2.
Emit read_into_stack(int32_t off, const Emit& size) {
  return [=](Builder& b) {
    b.load(8, r3, r1, 0);
    size(b);
    b.mov(r1, r10);
    b.alu_imm(kAdd, r1, off);
    b.call(Helper::kProbeReadUser);
  };
}
TEST_F(Checker, RefusesAReadBeyondItsBuffer) {
  accept(read_into_stack(-16, [](Builder& b) { b.mov_imm(r2, 16); }));
  refuse("not inside [-512, 0)", read_into_stack(-16, [](Builder& b) { b.mov_imm(r2, 17); }));
  refuse("not inside [-512, 0)", read_into_stack(-520, [](Builder& b) { b.mov_imm(r2, 8); }));
}
TEST_F(Checker, RefusesNoBytesAtTheEndOfTheStack) {
  refuse("not inside", read_into_stack(0, [](Builder& b) { b.mov_imm(r2, 0); }));
}
TEST_F(Checker, LooksAtBothSidesOfANullTestOfTheContext) {
  refuse("r9 is not initialised", [](Builder& b) {
    Builder::Label end = b.new_label();
    b.jump_if_imm(kJne, r1, 0, end);
    b.mov(r0, r9);
    b.bind(end);
  });
}
TEST_F(Checker, RefusesASizeWithoutBound) {
  refuse("not negative and has a bound",
         read_into_stack(-16, [](Builder& b) { b.load(8, r2, r1, 0); }));
  refuse("not negative and has a bound",
         read_into_stack(-16, [](Builder& b) { b.mov_imm(r2, -1); }));
  refuse("r2 is the context", read_into_stack(-16, [](Builder& b) { b.mov(r2, r1); }));
}
TEST_F(Checker, RefusesTheStackAfterAReadOfFewerBytes) {
  refuse("not initialised", [](Builder& b) {
    read_into_stack(-16, [](Builder& c) {
      c.load(8, r2, r1, 0);
      c.alu_imm(kAnd, r2, 15);
    })(b);
    b.load(8, r0, r10, -16);
  });
}
TEST_F(Checker, RefusesAReadOverASpilledPointer) {
  refuse("not initialised", [](Builder& b) {
    b.store(8, r10, -16, r1);
    read_into_stack(-12, [](Builder& c) { c.mov_imm(r2, 4); })(b);
    b.load(8, r0, r10, -16);
  });
}
TEST_F(Checker, RefusesAReadIntoTheContext) {
  refuse("expected the stack, a map value or a record", [](Builder& b) {
    b.mov_imm(r2, 8);
    b.load(8, r3, r1, 0);
    b.call(Helper::kProbeReadUser);
  });
}
TEST_F(Checker, RefusesAnUninitialisedAddress) {
  refuse("r3 is not initialised", [](Builder& b) {
    b.mov(r1, r10);
    b.alu_imm(kAdd, r1, -8);
    b.mov_imm(r2, 8);
    b.call(Helper::kProbeReadUser);
  });
}
TEST_F(Checker, RefusesASizeThatMayBeZeroWhereItMayNot) {
  refuse("expected 1 byte or more", [](Builder& b) {
    b.mov(r1, r10);
    b.alu_imm(kAdd, r1, -16);
    b.mov_imm(r2, 0);
    b.call(Helper::kGetCurrentComm);
  });
}
TEST_F(Checker, RefusesRingOutputOfUninitialisedBytes) {
  refuse("not initialised", [](Builder& b) {
    b.store_imm(8, r10, -8, 0);
    b.load_map(r1, kRing);
    b.mov(r2, r10);
    b.alu_imm(kAdd, r2, -16);
    b.mov_imm(r3, 16);
    b.mov_imm(r4, 0);
    b.call(Helper::kRingbufOutput);
  });
}
TEST_F(Checker, RefusesAnotherContextForTheCookie) {
  refuse("expected the context as it came",
         [](Builder& b) { b.mov(r1, r10), b.call(Helper::kGetAttachCookie); });
  refuse("expected the context as it came",
         [](Builder& b) { b.alu_imm(kAdd, r1, 8), b.call(Helper::kGetAttachCookie); });
}
TEST_F(Checker, DoesNotForgetThatAStringReadMayFail) {
  refuse("not inside", [](Builder& b) {
    b.load(8, r3, r1, 0);
    b.mov(r1, r10);
    b.alu_imm(kAdd, r1, -16);
    b.mov_imm(r2, 16);
    b.call(Helper::kProbeReadUserStr);
    b.mov(r1, r10);
    b.alu(kAdd, r1, r0);
    b.store_imm(1, r1, -17, 0);
  });
}
TEST_F(Checker, DoesNotTrustTheLengthThatAStringReadGaveTooFar) {
  auto indexed = [](int16_t off) {
    return [=](Builder& b) {
      b.mov(r6, r1);
      b.store_imm(8, r10, -8, 0);
      b.store_imm(8, r10, -16, 0);
      b.mov(r1, r10);
      b.alu_imm(kAdd, r1, -16);
      b.mov_imm(r2, 16);
      b.load(8, r3, r6, 0);
      b.call(Helper::kProbeReadUserStr);
      Builder::Label end = b.new_label();
      b.jump_if_imm(kJslt, r0, 0, end);
      b.mov(r1, r10);
      b.alu(kAdd, r1, r0);
      b.load(1, r2, r1, off);
      b.bind(end);
    };
  };
  refuse("not inside", indexed(-16));
  refuse("not initialised", indexed(-17));
}

}  // namespace
}  // namespace spile::bpf
