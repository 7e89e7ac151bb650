// One program per opcode. The expected results were computed by an independent model in another
// language, not by the interpreter.
#include <fmt/format.h>

#include <iterator>

#include "bpf/encoding.h"
#include "bpf/random_program.h"

namespace spile::bpf {

namespace {

constexpr Insn insn(uint8_t code, int dst, int src, int off, int64_t imm) {
  return {code, static_cast<uint8_t>(dst | src << 4), static_cast<int16_t>(off),
          static_cast<int32_t>(imm)};
}

void load_constant(Program& p, int reg, uint64_t value) {
  p.push_back(insn(kClassLd | kSizeDw | kModeImm, reg, 0, 0, static_cast<int32_t>(value)));
  p.push_back(insn(0, 0, 0, 0, static_cast<int32_t>(value >> 32)));
}
constexpr Insn kExitInsn = insn(kClassJmp | kExit, 0, 0, 0, 0);
constexpr uint8_t kMov64X = kClassAlu64 | kMov | kSrcX, kMov64K = kClassAlu64 | kMov;

bool fits_imm(uint64_t value) {
  return static_cast<uint64_t>(int64_t{static_cast<int32_t>(value)}) == value;
}

// ---- arithmetic
// ----------------------------------------------------------------------------------------------------

struct AluRow {
  uint8_t op;
  int off;
  uint64_t a, b, result64, result32;
};

constexpr AluRow kAluRows[] = {
    {kAdd, 0, 0x5, 0x7, 0xc, 0xc},
    {kAdd, 0, 0xffffffffffffffff, 0x1, 0x0, 0x0},
    {kAdd, 0, 0x7fffffff, 0x1, 0x80000000, 0x80000000},
    {kAdd, 0, 0xffffffff, 0x1, 0x100000000, 0x0},
    {kAdd, 0, 0x3, 0xfffffffffffffffb, 0xfffffffffffffffe, 0xfffffffe},
    {kSub, 0, 0x5, 0x7, 0xfffffffffffffffe, 0xfffffffe},
    {kSub, 0, 0x0, 0x1, 0xffffffffffffffff, 0xffffffff},
    {kSub, 0, 0x8000000000000000, 0x1, 0x7fffffffffffffff, 0xffffffff},
    {kSub, 0, 0x100000000, 0x1, 0xffffffff, 0xffffffff},
    {kMul, 0, 0x6, 0x7, 0x2a, 0x2a},
    {kMul, 0, 0x100000001, 0x100000001, 0x200000001, 0x1},
    {kMul, 0, 0xfffffffffffffffd, 0x5, 0xfffffffffffffff1, 0xfffffff1},
    {kMul, 0, 0xffffffff, 0xffffffff, 0xfffffffe00000001, 0x1},
    {kDiv, 0, 0x64, 0x7, 0xe, 0xe},
    {kDiv, 0, 0xffffffffffffffff, 0x2, 0x7fffffffffffffff, 0x7fffffff},
    {kDiv, 0, 0x5, 0x0, 0x0, 0x0},
    {kDiv, 0, 0xffffffffffffffff, 0xffffffffffffffff, 0x1, 0x1},
    {kDiv, 0, 0xfffffffe00000000, 0x10, 0xfffffffe0000000, 0x0},
    {kDiv, 0, 0x7, 0x100000000, 0x0, 0x0},
    {kMod, 0, 0x64, 0x7, 0x2, 0x2},
    {kMod, 0, 0xffffffffffffffff, 0xa, 0x5, 0x5},
    {kMod, 0, 0x5, 0x0, 0x5, 0x5},
    {kMod, 0, 0x1234567890, 0x0, 0x1234567890, 0x34567890},
    {kMod, 0, 0x7, 0xffffffffffffffff, 0x7, 0x7},
    {kMod, 0, 0x7, 0x100000000, 0x7, 0x7},
    {kDiv, 1, 0xffffffffffffff9c, 0x7, 0xfffffffffffffff2, 0xfffffff2},
    {kDiv, 1, 0x64, 0xfffffffffffffff9, 0xfffffffffffffff2, 0xfffffff2},
    {kDiv, 1, 0xffffffffffffff9c, 0xfffffffffffffff9, 0xe, 0xe},
    {kDiv, 1, 0x5, 0x0, 0x0, 0x0},
    {kDiv, 1, 0x8000000000000000, 0xffffffffffffffff, 0x8000000000000000, 0x0},
    {kDiv, 1, 0x80000000, 0xffffffffffffffff, 0xffffffff80000000, 0x80000000},
    {kDiv, 1, 0xfffffffffffffff9, 0x2, 0xfffffffffffffffd, 0xfffffffd},
    {kMod, 1, 0xffffffffffffff9c, 0x7, 0xfffffffffffffffe, 0xfffffffe},
    {kMod, 1, 0x64, 0xfffffffffffffff9, 0x2, 0x2},
    {kMod, 1, 0xffffffffffffff9c, 0xfffffffffffffff9, 0xfffffffffffffffe, 0xfffffffe},
    {kMod, 1, 0xfffffffffffffffb, 0x0, 0xfffffffffffffffb, 0xfffffffb},
    {kMod, 1, 0x8000000000000000, 0xffffffffffffffff, 0x0, 0x0},
    {kMod, 1, 0x80000000, 0xffffffffffffffff, 0x0, 0x0},
    {kMod, 1, 0xfffffffffffffff9, 0x2, 0xffffffffffffffff, 0xffffffff},
    {kOr, 0, 0xf0, 0xf, 0xff, 0xff},
    {kOr, 0, 0x1234567800000000, 0xffffffffffffff00, 0xffffffffffffff00, 0xffffff00},
    {kAnd, 0, 0xff00ff00ff00ff00, 0xff0, 0xf00, 0xf00},
    {kAnd, 0, 0xffffffffffffffff, 0xfffffffffffffffe, 0xfffffffffffffffe, 0xfffffffe},
    {kAnd, 0, 0x123456789abcdef0, 0x7fffffff, 0x1abcdef0, 0x1abcdef0},
    {kXor, 0, 0xaaaaaaaaaaaaaaaa, 0x55, 0xaaaaaaaaaaaaaaff, 0xaaaaaaff},
    {kXor, 0, 0xffffffffffffffff, 0xffffffffffffffff, 0x0, 0x0},
    {kLsh, 0, 0x1, 0x1f, 0x80000000, 0x80000000},
    {kLsh, 0, 0x1, 0x3f, 0x8000000000000000, 0x80000000},
    {kLsh, 0, 0x3, 0x40, 0x3, 0x3},
    {kLsh, 0, 0x3, 0x21, 0x600000000, 0x6},
    {kLsh, 0, 0xffffffff, 0x4, 0xffffffff0, 0xfffffff0},
    {kLsh, 0, 0x5, 0x0, 0x5, 0x5},
    {kRsh, 0, 0x8000000000000000, 0x3f, 0x1, 0x0},
    {kRsh, 0, 0xffffffffffffffff, 0x1, 0x7fffffffffffffff, 0x7fffffff},
    {kRsh, 0, 0xffffffffffffffff, 0x41, 0x7fffffffffffffff, 0x7fffffff},
    {kRsh, 0, 0x80000000, 0x1f, 0x1, 0x1},
    {kRsh, 0, 0xdeadbeefcafebabe, 0x20, 0xdeadbeef, 0xcafebabe},
    {kArsh, 0, 0x8000000000000000, 0x3f, 0xffffffffffffffff, 0x0},
    {kArsh, 0, 0x80000000, 0x1f, 0x1, 0xffffffff},
    {kArsh, 0, 0xfffffffffffffff0, 0x2, 0xfffffffffffffffc, 0xfffffffc},
    {kArsh, 0, 0xfffffffffffffff0, 0x42, 0xfffffffffffffffc, 0xfffffffc},
    {kArsh, 0, 0x7fffffffffffffff, 0x8, 0x7fffffffffffff, 0xffffffff},
    {kArsh, 0, 0xf0000000, 0x4, 0xf000000, 0xff000000},
    {kMov, 0, 0x1, 0xffffffffffffffff, 0xffffffffffffffff, 0xffffffff},
    {kMov, 0, 0x1, 0x80000000, 0x80000000, 0x80000000},
    {kMov, 0, 0x1, 0x123456789abcdef0, 0x123456789abcdef0, 0x9abcdef0},
    {kNeg, 0, 0x5, 0x0, 0xfffffffffffffffb, 0xfffffffb},
    {kNeg, 0, 0x0, 0x0, 0x0, 0x0},
    {kNeg, 0, 0x8000000000000000, 0x0, 0x8000000000000000, 0x0},
    {kNeg, 0, 0x80000000, 0x0, 0xffffffff80000000, 0x80000000},
    {kMov, 8, 0x0, 0x80, 0xffffffffffffff80, 0xffffff80},
    {kMov, 8, 0x0, 0x17f, 0x7f, 0x7f},
    {kMov, 16, 0x0, 0x8000, 0xffffffffffff8000, 0xffff8000},
    {kMov, 16, 0x0, 0x17fff, 0x7fff, 0x7fff},
    {kMov, 32, 0x0, 0x80000000, 0xffffffff80000000, 0x80000000},
    {kMov, 32, 0x0, 0x17fffffff, 0x7fffffff, 0x7fffffff},
};

bool is_shift(uint8_t op) {
  return op == kLsh || op == kRsh || op == kArsh;
}

/// May b be the constant of the instruction?
bool has_constant_form(const AluRow& row, int bits) {
  if (row.op == kMov && row.off != 0) return false;
  if (bits == 64 && !fits_imm(row.b)) return false;
  if ((row.op == kDiv || row.op == kMod) && static_cast<uint32_t>(row.b) == 0) return false;
  return !is_shift(row.op) || row.b < static_cast<uint64_t>(bits);
}

OpcodeCase alu_case(const AluRow& row, int bits, bool is_constant) {
  auto code = static_cast<uint8_t>((bits == 64 ? kClassAlu64 : kClassAlu) | row.op);
  Program p;
  load_constant(p, 0, row.a);
  if (is_constant || row.op == kNeg) {
    p.push_back(insn(code, 0, 0, row.off, static_cast<int32_t>(row.b)));
  } else {
    load_constant(p, 3, row.b);
    p.push_back(insn(code | kSrcX, 0, 3, row.off, 0));
  }
  p.push_back(kExitInsn);
  std::string name = fmt::format("alu{} op {:#x} off {} {} {:#x}, {:#x}", bits, row.op, row.off,
                                 is_constant ? "constant" : "register", row.a, row.b);
  return {name, std::move(p), bits == 64 ? row.result64 : row.result32, row.off != 0};
}

void add_alu_cases(std::vector<OpcodeCase>& cases) {
  for (const AluRow& row : kAluRows) {
    for (int bits : {64, 32}) {
      if (bits == 32 && row.op == kMov && row.off == 32) continue;
      cases.push_back(alu_case(row, bits, false));
      if (has_constant_form(row, bits)) cases.push_back(alu_case(row, bits, true));
    }
  }
}

struct SwapRow {
  uint8_t code;
  int bits;
  uint64_t result;
};

constexpr uint64_t kSwapInput = 0x0123456789abcdef;
constexpr SwapRow kSwapRows[] = {
    {kClassAlu | kEnd, 16, 0xcdef},
    {kClassAlu | kEnd, 32, 0x89abcdef},
    {kClassAlu | kEnd, 64, 0x0123456789abcdef},
    {kClassAlu | kEnd | kSrcX, 16, 0xefcd},
    {kClassAlu | kEnd | kSrcX, 32, 0xefcdab89},
    {kClassAlu | kEnd | kSrcX, 64, 0xefcdab8967452301},
    {kClassAlu64 | kEnd, 16, 0xefcd},
    {kClassAlu64 | kEnd, 32, 0xefcdab89},
    {kClassAlu64 | kEnd, 64, 0xefcdab8967452301},
};

void add_swap_cases(std::vector<OpcodeCase>& cases) {
  for (const SwapRow& row : kSwapRows) {
    Program p;
    load_constant(p, 0, kSwapInput);
    p.push_back(insn(row.code, 0, 0, 0, row.bits));
    p.push_back(kExitInsn);
    bool is_v4 = (row.code & 7) == kClassAlu64;
    cases.push_back({fmt::format("byte swap {:#x} of {} bits", row.code, row.bits), std::move(p),
                     row.result, is_v4});
  }
}

// ---- jumps
// ---------------------------------------------------------------------------------------------------------

constexpr uint8_t kJumpOps[] = {kJeq, kJne,  kJset, kJgt,  kJge, kJlt,
                                kJle, kJsgt, kJsge, kJslt, kJsle};

/// Bit n of `taken`: whether `a kJumpOps[n] b` holds, in 64 and in 32 bits.
struct JumpRow {
  uint64_t a, b;
  uint32_t taken64, taken32;
};

constexpr JumpRow kJumpRows[] = {
    {0x5, 0x5, 0b10101010101, 0b10101010101},
    {0x5, 0x7, 0b11001100110, 0b11001100110},
    {0x7, 0x5, 0b00110011110, 0b00110011110},
    {0xffffffffffffffff, 0x1, 0b11000011110, 0b11000011110},
    {0x1, 0xffffffffffffffff, 0b00111100110, 0b00111100110},
    {0x100000005, 0x5, 0b00110011110, 0b10101010101},
    {0x80000000, 0x1, 0b00110011010, 0b11000011010},
    {0x8000000000000000, 0x7fffffff, 0b11000011010, 0b11001100010},
    {0xf0, 0xf, 0b00110011010, 0b00110011010},
    {0xf0, 0x10, 0b00110011110, 0b00110011110},
    {0x100000000, 0xffffffffffffffff, 0b00111100110, 0b00111100010},
};

/// r0 is 1 where the jump was taken, else 2.
OpcodeCase jump_case(const JumpRow& row, size_t op, int bits, bool is_constant) {
  auto code = static_cast<uint8_t>((bits == 64 ? kClassJmp : kClassJmp32) | kJumpOps[op]);
  Program p;
  load_constant(p, 2, row.a);
  load_constant(p, 7, row.b);
  p.push_back(insn(kMov64K, 0, 0, 0, 1));
  p.push_back(is_constant ? insn(code, 2, 0, 1, static_cast<int32_t>(row.b))
                          : insn(code | kSrcX, 2, 7, 1, 0));
  p.push_back(insn(kMov64K, 0, 0, 0, 2));
  p.push_back(kExitInsn);
  bool is_taken = ((bits == 64 ? row.taken64 : row.taken32) >> op & 1) != 0;
  std::string name = fmt::format("jump{} op {:#x} {} {:#x}, {:#x}", bits, kJumpOps[op],
                                 is_constant ? "constant" : "register", row.a, row.b);
  return {name, std::move(p), is_taken ? uint64_t{1} : 2};
}

void add_jump_cases(std::vector<OpcodeCase>& cases) {
  for (const JumpRow& row : kJumpRows) {
    for (size_t op = 0; op < std::size(kJumpOps); ++op) {
      for (int bits : {64, 32}) {
        cases.push_back(jump_case(row, op, bits, false));
        if (bits == 32 || fits_imm(row.b)) cases.push_back(jump_case(row, op, bits, true));
      }
    }
  }
}

void add_goto_cases(std::vector<OpcodeCase>& cases) {
  // r0 = 1; goto b; a: r0 += 10; goto end; b: r0 += 100; if r0 < 1000 goto a; end: exit
  for (uint8_t code : {uint8_t{kClassJmp | kJa}, uint8_t{kClassJmp32 | kJa}}) {
    bool is_long = code == (kClassJmp32 | kJa);
    auto jump = [&](int distance) {
      return insn(code, 0, 0, is_long ? 0 : distance, is_long ? distance : 0);
    };
    Program p{insn(kMov64K, 0, 0, 0, 1),
              jump(2),
              insn(kClassAlu64 | kAdd, 0, 0, 0, 10),
              jump(2),
              insn(kClassAlu64 | kAdd, 0, 0, 0, 100),
              insn(kClassJmp | kJlt, 0, 0, -4, 1000),
              kExitInsn};
    cases.push_back({is_long ? "gotol forwards and back" : "goto forwards and back", std::move(p),
                     111, is_long});
  }
  // The sum of 1 to 10.
  cases.push_back(
      {"loop",
       {insn(kMov64K, 0, 0, 0, 0), insn(kMov64K, 1, 0, 0, 10),
        insn(kClassAlu64 | kAdd | kSrcX, 0, 1, 0, 0), insn(kClassAlu64 | kSub, 1, 0, 0, 1),
        insn(kClassJmp | kJne, 1, 0, -3, 0), kExitInsn},
       55});
}

// ---- memory
// --------------------------------------------------------------------------------------------------------

constexpr uint8_t kSizes[] = {kSizeB, kSizeH, kSizeW, kSizeDw};
constexpr uint64_t kMemoryInput = 0xf1e2d3c4b5a69788;
constexpr uint64_t kLoaded[] = {0x88, 0x9788, 0xb5a69788, kMemoryInput};
constexpr uint64_t kLoadedSigned[] = {0xffffffffffffff88, 0xffffffffffff9788, 0xffffffffb5a69788};
// The input stored over eight bytes of 0x11, and the constant -2 stored over them.
constexpr uint64_t kStored[] = {0x1111111111111188, 0x1111111111119788, 0x11111111b5a69788,
                                kMemoryInput};
constexpr uint64_t kStoredConstant[] = {0x11111111111111fe, 0x111111111111fffe, 0x11111111fffffffe,
                                        0xfffffffffffffffe};

/// r1 = before; *(u64 *)(r10 - 16) = r1; then `middle`, then `last` and exit.
Program memory_program(uint64_t before, std::initializer_list<Insn> rest) {
  Program p;
  load_constant(p, 1, before);
  p.push_back(insn(kClassStx | kSizeDw | kModeMem, 10, 1, -16, 0));
  p.insert(p.end(), rest);
  p.push_back(kExitInsn);
  return p;
}

constexpr Insn kLoadAll = insn(kClassLdx | kSizeDw | kModeMem, 0, 10, -16, 0);

void add_memory_cases(std::vector<OpcodeCase>& cases) {
  for (size_t i = 0; i < std::size(kSizes); ++i) {
    uint8_t size = kSizes[i];
    cases.push_back(
        {fmt::format("load size {:#x}", size),
         memory_program(kMemoryInput, {insn(kClassLdx | size | kModeMem, 0, 10, -16, 0)}),
         kLoaded[i]});
    Program store = memory_program(0x1111111111111111, {});
    store.pop_back();
    load_constant(store, 2, kMemoryInput);
    store.insert(store.end(),
                 {insn(kClassStx | size | kModeMem, 10, 2, -16, 0), kLoadAll, kExitInsn});
    cases.push_back({fmt::format("store size {:#x}", size), std::move(store), kStored[i]});
    cases.push_back({fmt::format("store constant size {:#x}", size),
                     memory_program(0x1111111111111111,
                                    {insn(kClassSt | size | kModeMem, 10, 0, -16, -2), kLoadAll}),
                     kStoredConstant[i]});
    if (size == kSizeDw) continue;
    cases.push_back(
        {fmt::format("load signed size {:#x}", size),
         memory_program(kMemoryInput, {insn(kClassLdx | size | kModeMemSx, 0, 10, -16, 0)}),
         kLoadedSigned[i], true});
  }
  cases.push_back(
      {"load through a copy of r10",
       memory_program(77, {insn(kMov64X, 3, 10, 0, 0), insn(kClassAlu64 | kAdd, 3, 0, 0, -24),
                           insn(kClassLdx | kSizeDw | kModeMem, 0, 3, 8, 0)}),
       77});
}

struct AtomicRow {
  int32_t operation;
  uint64_t memory, src, r0;
  uint64_t memory_after64, memory_after32;  ///< of all eight bytes
};

constexpr uint64_t kOld = 0xffffffff80000001;
constexpr AtomicRow kAtomicRows[] = {
    {kAtomicAdd, kOld, 0x17fffffff, 0, 0x0000000100000000, 0xffffffff00000000},
    {kAtomicOr, kOld, 0x10, 0, 0xffffffff80000011, 0xffffffff80000011},
    {kAtomicAnd, kOld, 0x80000000, 0, 0x80000000, 0xffffffff80000000},
    {kAtomicXor, kOld, 0xffffffffffffffff, 0, 0x7ffffffe, 0xffffffff7ffffffe},
    {kXchg, kOld, 0x1122334455667788, 0, 0x1122334455667788, 0xffffffff55667788},
    {kCmpXchg, kOld, 0x55, kOld, 0x55, 0xffffffff00000055},
    {kCmpXchg, kOld, 0x55, 0x80000001, kOld, 0xffffffff00000055},
    {kCmpXchg, kOld, 0x55, 0, kOld, kOld},
};

/// `wants_memory`: r0 is what the memory holds afterwards; else what the instruction gave back.
OpcodeCase atomic_case(const AtomicRow& row, int32_t operation, int bits, bool wants_memory) {
  uint8_t size = bits == 64 ? kSizeDw : kSizeW;
  Program p;
  load_constant(p, 1, row.memory);
  p.push_back(insn(kClassStx | kSizeDw | kModeMem, 10, 1, -16, 0));
  load_constant(p, 2, row.src);
  load_constant(p, 0, row.r0);
  p.push_back(insn(kClassStx | size | kModeAtomic, 10, 2, -16, operation));
  uint64_t expected = bits == 64 ? row.memory_after64 : row.memory_after32;
  if (wants_memory) {
    p.push_back(kLoadAll);
  } else {
    if (operation != kCmpXchg) p.push_back(insn(kMov64X, 0, 2, 0, 0));
    bool fetches = (operation & kFetch) != 0;
    expected = !fetches ? row.src : bits == 64 ? row.memory : static_cast<uint32_t>(row.memory);
  }
  p.push_back(kExitInsn);
  std::string name = fmt::format("atomic{} {:#x} with {:#x}, {:#x}: {}", bits, operation, row.src,
                                 row.r0, wants_memory ? "memory" : "register");
  return {name, std::move(p), expected};
}

void add_atomic_cases(std::vector<OpcodeCase>& cases) {
  for (const AtomicRow& row : kAtomicRows) {
    for (int32_t fetch : {0, kFetch}) {
      if (fetch != 0 && (row.operation & kFetch) != 0) continue;
      for (int bits : {64, 32}) {
        cases.push_back(atomic_case(row, row.operation | fetch, bits, true));
        cases.push_back(atomic_case(row, row.operation | fetch, bits, false));
      }
    }
  }
}

std::vector<OpcodeCase> make_cases() {
  std::vector<OpcodeCase> cases;
  add_alu_cases(cases);
  add_swap_cases(cases);
  add_jump_cases(cases);
  add_goto_cases(cases);
  add_memory_cases(cases);
  add_atomic_cases(cases);
  return cases;
}

}  // namespace

const std::vector<OpcodeCase>& opcode_cases() {
  static const std::vector<OpcodeCase> cases = make_cases();
  return cases;
}

}  // namespace spile::bpf
