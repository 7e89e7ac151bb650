#include "kernel_engine/perf_output.h"

#include <algorithm>
#include <optional>

#include "kernel_engine/session_program.h"

namespace spile::kernel_engine {

namespace {

using bpf::Helper;
using bpf::Insn;
using bpf::Program;
using bpf::Reg;

constexpr int16_t kContextAt = -512, kKeyAt = -504, kRecordAt = kKeyAt;
constexpr int kOwnBytes = 16;
constexpr int32_t kPerfEventOutput = 25;  // enum bpf_func_id
constexpr int32_t kThisCpu = -1;          // BPF_F_CURRENT_CPU, as 32 bits
constexpr uint8_t kLddw = bpf::kClassLd | bpf::kModeImm | bpf::kSizeDw;
constexpr size_t kNotFar = 4;  ///< instructions from a call's size argument to the call

Insn make(uint8_t code, Reg dst, Reg src = Reg::r0, int16_t off = 0, int32_t imm = 0) {
  return {code, static_cast<uint8_t>(static_cast<uint8_t>(dst) | static_cast<uint8_t>(src) << 4),
          off, imm};
}
Insn mov(Reg dst, Reg src) {
  return make(bpf::kClassAlu64 | bpf::kMov | bpf::kSrcX, dst, src);
}
Insn mov_imm(Reg dst, int32_t imm) {
  return make(bpf::kClassAlu64 | bpf::kMov, dst, Reg::r0, 0, imm);
}
Insn call(int32_t helper) {
  return make(bpf::kClassJmp | bpf::kCall, Reg::r0, Reg::r0, 0, helper);
}
Insn load(Reg dst, Reg base, int16_t off) {
  return make(bpf::kClassLdx | bpf::kModeMem | bpf::kSizeDw, dst, base, off);
}
Insn if_zero(Reg reg, int16_t over) {
  return make(bpf::kClassJmp | bpf::kJeq, reg, Reg::r0, over);
}
Insn jump(int16_t over) {
  return make(bpf::kClassJmp | bpf::kJa, Reg::r0, Reg::r0, over);
}
void load_map(Program& out, Reg dst, int map) {
  Insn first = make(kLddw, dst, Reg::r0, 0, map);
  first.regs |= static_cast<uint8_t>(bpf::kPseudoMapIdx << 4);
  out.insert(out.end(), {first, Insn{}});
}

bool is_call(const Insn& insn, Helper helper) {
  return insn.code == (bpf::kClassJmp | bpf::kCall) && insn.src() == bpf::kCallHelper &&
         insn.imm == static_cast<int32_t>(helper);
}

bool is_jump(const Insn& insn) {
  const uint8_t group = insn.code & 7, op = insn.code & 0xf0;
  return (group == bpf::kClassJmp || group == bpf::kClassJmp32) && op != bpf::kCall &&
         op != bpf::kExit;
}

/// The lowest byte of the stack that may be used: of every r10-based access, and every number that
/// could be added to r10. Too low rather than too high.
int lowest_stack_byte(const Program& code) {
  int lowest = 0;
  for (const Insn& insn : code) {
    const uint8_t group = insn.code & 7;
    const bool is_store = group == bpf::kClassSt || group == bpf::kClassStx;
    const auto r10 = static_cast<uint8_t>(Reg::r10);
    if ((is_store && insn.dst() == r10) || (group == bpf::kClassLdx && insn.src() == r10))
      lowest = std::min(lowest, static_cast<int>(insn.off));
    if (insn.code == (bpf::kClassAlu64 | bpf::kAdd) && insn.imm >= -512)
      lowest = std::min(lowest, insn.imm);
  }
  return lowest;
}

/// One record on its way: what its reserve said.
struct Sent {
  int32_t size = 0;
  size_t lost = 0;  ///< where the program goes on when there is no room
};

/// Rewrites into `code`, with jumps that are set right when all is in place.
class Rewriter {
 public:
  Rewriter(const Program& from, int ring, int scratch, Claim claim)
      : from_(from), ring_(ring), scratch_(scratch), claim_(claim) {}

  Result<Program> run() {
    out_.push_back(
        make(bpf::kClassStx | bpf::kModeMem | bpf::kSizeDw, Reg::r10, Reg::r1, kContextAt));
    for (size_t i = 0; i < from_.size(); i++) {
      starts_.push_back(out_.size());
      if (is_call(from_[i], Helper::kRingbufReserve)) {
        SPILE_TRY(sent_, read_reserve(i));
        reserve();
      } else if (is_call(from_[i], Helper::kRingbufSubmit)) {
        if (!sent_) return strange("submits what it has not reserved");
        submit();
      } else {
        copy(i);
      }
    }
    return finish();
  }

 private:
  static std::unexpected<Error> strange(std::string_view what) {
    return fail(ErrorCode::kInternal, "for the perf buffer: a program {}", what);
  }

  /// Code that reserves goes: r2 = size; r3 = 0; call; if r0 != 0 goto ...
  Result<Sent> read_reserve(size_t at) const {
    Sent sent;
    for (size_t back = 1; back <= kNotFar && back <= at && sent.size == 0; back++) {
      const Insn& insn = from_[at - back];
      if (insn.code == (bpf::kClassAlu64 | bpf::kMov) &&
          insn.dst() == static_cast<uint8_t>(Reg::r2))
        sent.size = insn.imm;
    }
    const uint8_t if_not = bpf::kClassJmp | bpf::kJne;
    const bool is_tested = at + 2 < from_.size() && from_[at + 1].code == if_not &&
                           from_[at + 1].dst() == 0 && from_[at + 1].imm == 0;
    if (sent.size <= 0 || !is_tested) return strange("reserves in another form");
    sent.lost = at + 2;
    return sent;
  }

  void reserve() {
    out_.push_back(make(bpf::kClassSt | bpf::kModeMem | bpf::kSizeDw, Reg::r10, Reg::r0, kKeyAt));
    out_.push_back(mov(Reg::r2, Reg::r10));
    out_.push_back(make(bpf::kClassAlu64 | bpf::kAdd, Reg::r2, Reg::r0, 0, kKeyAt));
    load_map(out_, Reg::r1, scratch_);
    out_.push_back(call(static_cast<int32_t>(Helper::kMapLookupElem)));
    claim_ == Claim::kExchange ? claim_by_exchange() : claim_by_store();
  }

  /// r0: the value, or null -> the record in it, or null: not there, or taken.
  void claim_by_exchange() {
    Insn exchange =
        make(bpf::kClassStx | bpf::kModeAtomic | bpf::kSizeDw, Reg::r0, Reg::r1, 0, bpf::kXchg);
    out_.insert(out_.end(), {if_zero(Reg::r0, 6), mov_imm(Reg::r1, 1), exchange,
                             if_zero(Reg::r1, 2), mov_imm(Reg::r0, 0), jump(1), to_record()});
  }
  void claim_by_store() {
    const Insn take = make(bpf::kClassSt | bpf::kModeMem | bpf::kSizeDw, Reg::r0, Reg::r0, 0, 1);
    out_.insert(out_.end(), {if_zero(Reg::r0, 6), load(Reg::r1, Reg::r0, 0), if_zero(Reg::r1, 2),
                             mov_imm(Reg::r0, 0), jump(2), take, to_record()});
  }
  static Insn to_record() {
    return make(bpf::kClassAlu64 | bpf::kAdd, Reg::r0, Reg::r0, 0, kScratchHeader);
  }

  void submit() {
    out_.push_back(
        make(bpf::kClassStx | bpf::kModeMem | bpf::kSizeDw, Reg::r10, Reg::r1, kRecordAt));
    out_.push_back(mov(Reg::r4, Reg::r1));
    out_.push_back(mov_imm(Reg::r5, sent_->size));
    out_.push_back(load(Reg::r1, Reg::r10, kContextAt));
    load_map(out_, Reg::r2, ring_);
    out_.push_back(make(bpf::kClassAlu | bpf::kMov, Reg::r3, Reg::r0, 0, kThisCpu));
    out_.push_back(call(kPerfEventOutput));
    out_.push_back(load(Reg::r1, Reg::r10, kRecordAt));
    out_.push_back(make(bpf::kClassSt | bpf::kModeMem | bpf::kSizeDw, Reg::r1, Reg::r0,
                        -static_cast<int16_t>(kScratchHeader)));
    jumps_.push_back({out_.size(), sent_->lost});
    out_.push_back(make(bpf::kClassJmp | bpf::kJne, Reg::r0));
    sent_.reset();
  }

  /// The second half of a lddw has code 0 and is copied as any other.
  void copy(size_t at) {
    const Insn& insn = from_[at];
    if (is_jump(insn))
      jumps_.push_back({out_.size(), static_cast<size_t>(static_cast<int64_t>(at) + 1 + insn.off)});
    out_.push_back(insn);
  }

  Result<Program> finish() {
    starts_.push_back(out_.size());
    for (const auto& [from, to] : jumps_) {
      if (to >= starts_.size()) return strange("jumps out of itself");
      const auto distance = static_cast<int64_t>(starts_[to]) - static_cast<int64_t>(from) - 1;
      if (distance != static_cast<int16_t>(distance))
        return fail(ErrorCode::kUnsupported, "for the perf buffer a program is too long");
      out_[from].off = static_cast<int16_t>(distance);
    }
    return std::move(out_);
  }

  struct Jump {
    size_t from;  ///< in `out_`
    size_t to;    ///< in `from_`
  };
  const Program& from_;
  int ring_, scratch_;
  Claim claim_;
  Program out_;
  std::vector<size_t> starts_;  ///< by place in `from_`, its place in `out_`
  std::vector<Jump> jumps_;
  std::optional<Sent> sent_;
};

}  // namespace

bool sends_records(const bpf::Program& code) {
  return calls(code, Helper::kRingbufReserve);
}

Result<bpf::Program> with_perf_output(const bpf::Program& code,
                                      int ring,
                                      int scratch,
                                      Claim claim) {
  if (!sends_records(code)) return code;
  if (lowest_stack_byte(code) < -512 + kOwnBytes)
    return fail(ErrorCode::kUnsupported,
                "a clause needs all of a program's stack, of which a perf buffer takes {} bytes: "
                "give it fewer or shorter strings",
                kOwnBytes);
  return Rewriter(code, ring, scratch, claim).run();
}

}  // namespace spile::kernel_engine
