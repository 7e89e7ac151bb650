#include "user_engine/patch/exits.h"

#include <fmt/format.h>

#include <algorithm>

#include "user_engine/patch/entrances.h"
#include "user_engine/patch/stack_depth.h"
#include "user_engine/patch/window.h"
#include "x86/format.h"

namespace spile::patch {
namespace {

using x86::Kind;
using x86::Shape;

constexpr uint64_t kMaxTableEntries = 4096;

std::string text_at(const CodeMap& map, TargetAddr at) {
  const auto bytes = map.text_from(at);
  return bytes.empty() ? std::string() : x86::format_insn(bytes, at);
}

bool is_cold_part(std::string_view name) {
  return name.find(".cold") != std::string_view::npos;
}

/// Finds out about one region.
class RegionScan {
 public:
  RegionScan(const CodeMap& map, const Region& region)
      : map_(map), region_(region), code_(sweep(map, region)) {}

  RegionExits run() {
    if (!code_.is_trustworthy()) {
      refuse(RefusalKind::kUndecodable, code_.decoded_to,
             fmt::format("{} does not decode, so a return may hide in it",
                         map_.describe(region_.start)));
      return std::move(out_);
    }
    depths_ = find_stack_depths(map_, code_, starts_function());
    tables_ = find_region_jumps(map_, code_);
    out_.parts = tables_.parts;
    if (depths_.switches_stack) {
      refuse(RefusalKind::kInstruction, *depths_.switches_stack,
             fmt::format("{} goes on on another stack", map_.describe(region_.start)));
    }
    for (size_t i = 0; i < code_.insns.size(); ++i) look(i);
    for (const SweptInsn& insn : code_.overlapped) look_overlapped(insn);
    run_into_next();
    return std::move(out_);
  }

 private:
  /// A part has no name, or that of its function and ".cold".
  bool starts_function() const {
    const FunctionSpan* f = map_.function_at(region_.start);
    return f != nullptr && f->start == region_.start && !f->name.empty() && !is_cold_part(f->name);
  }

  void refuse(RefusalKind kind, TargetAddr at, std::string reason) {
    if (!out_.refusal) out_.refusal = Refusal{kind, at, text_at(map_, at), std::move(reason)};
  }

  void look(size_t i) {
    const Shape& s = code_.insns[i].shape;
    const TargetAddr at = code_.address(code_.insns[i]);
    switch (s.kind) {
      case Kind::kRet: return ret(i, at);
      case Kind::kJmp:
      case Kind::kSwitch:
      case Kind::kJcc:
      case Kind::kLoop:
      case Kind::kXbegin: return leave(at, s.branch_target(at));
      case Kind::kJmpIndirect: return indirect(i, s, at);
      case Kind::kCall: return call(at, s);
      default: return;
    }
  }

  /// The row and its overlaps share most code: only a way out that the row does not show matters.
  void look_overlapped(const SweptInsn& insn) {
    const Shape& s = insn.shape;
    const TargetAddr at = code_.address(insn);
    const bool leaves =
        s.is_direct_branch() && s.kind != Kind::kCall && !region_.contains(s.branch_target(at));
    if (s.kind == Kind::kRet || s.kind == Kind::kJmpIndirect || s.kind == Kind::kFar || leaves) {
      refuse(RefusalKind::kUndecodable, at,
             "a way out of the function begins inside another instruction");
    }
  }

  void ret(size_t i, TargetAddr at) {
    const StackDepth& depth = depths_.before[i];
    if (depth.from_entry && depth.bytes.value_or(0) != 0) {
      refuse(RefusalKind::kInstruction, at,
             fmt::format("the return at {} pops what the function pushed: it is a jump",
                         map_.describe(at)));
    }
    if (i > 0 && writes_top_of_stack(code_.insns[i - 1])) {
      refuse(RefusalKind::kInstruction, at,
             fmt::format("the return at {} goes where the function has put it: it is a jump",
                         map_.describe(at)));
    }
    out_.rets.push_back(at);
  }

  /// mov %rax,(%rsp): the thunks of -mindirect-branch=thunk jump so.
  bool writes_top_of_stack(const SweptInsn& insn) const {
    const Shape& s = insn.shape;
    const bool is_top = s.modrm_offset != 0 && (s.modrm >> 6) == 0 && (s.modrm & 7) == 4 &&
                        (s.sib & 0x3f) == 0x24 && (s.rex & 3) == 0;
    const bool is_load = s.map != 0 || s.opcode == 0x8b || s.opcode == 0x8d || s.opcode == 0x85 ||
                         (s.opcode >= 0x38 && s.opcode <= 0x3b);
    return is_top && !is_load;
  }

  /// Subroutines of hand-written code that have no symbol of their own. call +0 only asks where it
  /// is.
  void call(TargetAddr at, const Shape& s) {
    const TargetAddr target = s.branch_target(at);
    out_.calls_itself |=
        region_.contains(target) && target != region_.start && target != at + s.length;
  }

  void leave(TargetAddr at, TargetAddr target) {
    if (!region_.contains(target)) out_.jumps.push_back({at, target});
    out_.loops_to_start |= target == region_.start || target == skip_endbr(map_, region_.start);
  }

  void indirect(size_t i, const Shape& s, TargetAddr at) {
    if (s.rip_relative) return out_.slots.push_back({at, s.rip_target(at)});
    if (depths_.before[i].bytes.value_or(0) != 0) return;  // the frame is still there
    if (has_notrack(s, at) || std::ranges::find(tables_.by_table, at) != tables_.by_table.end())
      return;
    if (read_absolute_table(s, at)) return;
    out_.pointers.push_back({at, find_pointer_path(map_, code_, i),
                             depths_.before[i].from_entry && depths_.before[i].bytes.has_value()});
  }

  /// 3e ff /4: compilers for indirect branch tracking mark switches so, since no endbr64 is there.
  bool has_notrack(const Shape& s, TargetAddr at) const {
    const auto prefixes = map_.text_from(at).first(s.opcode_offset);
    return std::ranges::find(prefixes, 0x3e) != prefixes.end();
  }

  /// jmp *table(,%reg,8) with the table in constant data: modules at fixed addresses have it for
  /// switches and for arrays of functions.
  bool read_absolute_table(const Shape& s, TargetAddr at) {
    const bool by_sib = s.modrm_offset != 0 && (s.modrm >> 6) == 0 && (s.modrm & 7) == 4 &&
                        (s.sib >> 6) == 3 && (s.sib & 7) == 5 && s.disp_bytes == 4;
    if (!by_sib) return false;
    const TargetAddr table(static_cast<uint64_t>(s.disp));
    bool found = false;
    for (uint64_t i = 0; i < kMaxTableEntries; ++i) {
      const auto entry = map_.read<uint64_t>(table + i * sizeof(uint64_t));
      if (!entry || !map_.is_text(TargetAddr(*entry))) break;
      leave(at, TargetAddr(*entry));
      found = true;
    }
    return found;
  }

  /// Hand-written code may run on into the next symbol; a call at the end does not come back.
  void run_into_next() {
    auto last = std::find_if(code_.insns.rbegin(), code_.insns.rend(),
                             [](const SweptInsn& i) { return i.shape.kind != Kind::kNop; });
    if (last == code_.insns.rend()) return continue_at(region_.start, region_.end);
    const bool is_call = last->shape.kind == Kind::kCall || last->shape.kind == Kind::kCallIndirect;
    if (last->shape.ends_flow() || is_call) return;
    continue_at(code_.address(*last), region_.end);
  }

  void continue_at(TargetAddr from, TargetAddr next) {
    const Region gap = map_.region_at(next);
    if (gap.is_gap && gap.end > gap.start) {
      const auto bytes = map_.text_of(gap);
      if (x86::padding_bytes(bytes) == bytes.size()) next = gap.end;
    }
    out_.jumps.push_back({from, next, true});
  }

  const CodeMap& map_;
  Region region_;
  Sweep code_;
  StackDepths depths_;
  RegionJumps tables_;
  RegionExits out_;
};

}  // namespace

RegionExits region_exits(const CodeMap& map, const Region& region) {
  return RegionScan(map, region).run();
}

}  // namespace spile::patch
