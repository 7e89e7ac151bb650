#include "user_engine/patch/window.h"

#include <fmt/format.h>

#include <algorithm>

#include "x86/format.h"

namespace spile::patch {
namespace {

using x86::Kind;

constexpr uint64_t kPageBytes = 4096;

/// Functions that look like any other but must stay as they are.
struct KnownCode {
  std::string_view name;
  bool is_prefix;
  std::string_view reason;
};
constexpr KnownCode kKnownCode[] = {
    // On machines with much memory V8 copies its built-ins near its heap at start ("short builtin
    // calls"): node
    // crashes.
    {"Builtins_", true, "V8 may run a copy of its built-in code, where the jump would lead astray"},
    // Cancellation points: the signal handler compares the interrupted address with labels inside;
    // a thread in
    // displaced code would block for ever although it was cancelled (musl; glibc since 2.41).
    {"__syscall_cp_asm", false,
     "the C library's cancellation compares addresses with labels in this function"},
    {"__syscall_cancel_arch", false,
     "the C library's cancellation compares addresses with labels in this function"},
    {"__cp_begin", false,
     "the C library's cancellation compares addresses with labels in this function"},
};

const KnownCode* find_known_code(std::string_view name) {
  for (const KnownCode& k : kKnownCode) {
    if (k.is_prefix ? name.starts_with(k.name) : name == k.name) return &k;
  }
  return nullptr;
}

bool starts_with(std::span<const uint8_t> bytes, std::span<const uint8_t> prefix) {
  return bytes.size() >= prefix.size() && std::equal(prefix.begin(), prefix.end(), bytes.begin());
}

/// Decides on one site. The checks come in the order in which their reasons help most.
class WindowChoice {
 public:
  WindowChoice(const CodeMap& map, TargetAddr site, const PlanRules& rules)
      : map_(map), rules_(rules), bytes_(map.text_from(site)) {
    plan_.site = site;
  }

  Outcome run_pun() {
    function_ = map_.function_at(plan_.site);
    if (function_ == nullptr)
      return refuse(RefusalKind::kNoFunction, 0, "no function is known at {}", plan_.site);
    plan_.function = function_->start;
    const auto insn = x86::decode(bytes_);
    if (!insn || bytes_.size() < kPatchBytes || insn->length >= kPatchBytes) {
      return refuse(RefusalKind::kTooShort, 0, "no short instruction at {}", plan_.site);
    }
    plan_.written = insn->length;
    for (const auto check : {&WindowChoice::check_place, &WindowChoice::check_is_head}) {
      if (auto refusal = (this->*check)()) return std::unexpected(std::move(*refusal));
    }
    if (auto refusal = check_instruction(*insn, 0)) return std::unexpected(std::move(*refusal));
    plan_.heads.push_back(0);
    plan_.falls_through = !insn->ends_flow() && !is_call(*insn);
    plan_.window.assign(bytes_.begin(), bytes_.begin() + insn->length);
    for (const auto check : {&WindowChoice::check_starts, &WindowChoice::check_reserved}) {
      if (auto refusal = (this->*check)()) return std::unexpected(std::move(*refusal));
    }
    finish();
    plan_.mechanism = Mechanism::kShort;
    plan_.reason = fmt::format("only the {} byte{} of the first instruction may change",
                               plan_.window.size(), plan_.window.size() == 1 ? "" : "s");
    return std::move(plan_);
  }

  Outcome run() {
    function_ = map_.function_at(plan_.site);
    if (function_ == nullptr)
      return refuse(RefusalKind::kNoFunction, 0, "no function is known at {}", plan_.site);
    plan_.function = function_->start;
    for (const auto check : {&WindowChoice::check_place, &WindowChoice::check_is_head,
                             &WindowChoice::take_instructions, &WindowChoice::check_starts,
                             &WindowChoice::check_reserved}) {
      if (auto refusal = (this->*check)()) return std::unexpected(std::move(*refusal));
    }
    finish();
    return std::move(plan_);
  }

 private:
  using MaybeRefusal = std::optional<Refusal>;

  template <typename... Args>
  std::unexpected<Refusal> refuse(RefusalKind kind,
                                  size_t offset,
                                  fmt::format_string<Args...> format,
                                  Args&&... args) {
    return std::unexpected(refusal(kind, offset, format, std::forward<Args>(args)...));
  }

  template <typename... Args>
  Refusal refusal(RefusalKind kind,
                  size_t offset,
                  fmt::format_string<Args...> format,
                  Args&&... args) {
    const TargetAddr at = plan_.site + offset;
    Refusal r{kind, at, {}, fmt::format(format, std::forward<Args>(args)...)};
    if (offset < bytes_.size()) r.instruction = x86::format_insn(bytes_.subspan(offset), at);
    return r;
  }

  bool is_entry() const {
    return plan_.site == function_->start || plan_.site == skip_endbr(map_, function_->start);
  }

  MaybeRefusal check_place() {
    if (bytes_.size() < kPatchBytes) {
      return refusal(RefusalKind::kTooShort, 0, "fewer than {} bytes before the end of the code",
                     kPatchBytes);
    }
    const uint64_t first = plan_.site.value / kPageBytes,
                   last = (plan_.site.value + kPatchBytes - 1) / kPageBytes;
    if (rules_.page_boundary && first != last) {
      return refusal(RefusalKind::kPageBoundary, 0, "the jump would cross a page boundary");
    }
    if (rules_.breakpoints && bytes_[0] == 0xcc) {
      return refusal(RefusalKind::kBreakpoint, 0, "a breakpoint of somebody else is here");
    }
    if (const KnownCode* known = find_known_code(function_->name);
        known != nullptr && rules_.known_code) {
      return refusal(RefusalKind::kKnownCode, 0, "{}", known->reason);
    }
    return check_restore_rt();
  }

  /// Unwinders recognise the signal trampoline by these bytes, so they must stay as they are.
  MaybeRefusal check_restore_rt() {
    if (!rules_.restore_rt) return std::nullopt;
    for (uint64_t back = 0; back < x86::kRestoreRt.size(); ++back) {
      if (starts_with(map_.text_from(plan_.site - back), x86::kRestoreRt))
        return restore_rt_refusal();
    }
    for (uint64_t ahead = 1; ahead < kPatchBytes; ++ahead) {
      if (starts_with(bytes_.subspan(ahead), x86::kRestoreRt)) return restore_rt_refusal();
    }
    return std::nullopt;
  }

  Refusal restore_rt_refusal() {
    return refusal(RefusalKind::kRestoreRt, 0,
                   "the signal return trampoline, which unwinders know by its bytes");
  }

  /// Inside a function, decoding from its start must arrive at the site.
  MaybeRefusal check_is_head() {
    if (is_entry()) return std::nullopt;
    const Sweep code = sweep(map_, map_.region_at(plan_.site));
    const SweptInsn* insn = code.covering(plan_.site);
    if (insn == nullptr || !code.is_trustworthy()) {
      return refusal(RefusalKind::kUndecodable, 0, "the function around {} does not decode",
                     plan_.site);
    }
    if (code.address(*insn) == plan_.site) return std::nullopt;
    return refusal(RefusalKind::kNotAnInstruction, 0, "{} is inside the instruction at {}",
                   plan_.site, code.address(*insn));
  }

  MaybeRefusal take_instructions() {
    const auto limit = static_cast<size_t>(function_->end - plan_.site);
    size_t size = 0;
    while (size < kPatchBytes && plan_.falls_through) {
      const auto insn = x86::decode(bytes_.subspan(size));
      if (!insn)
        return refusal(RefusalKind::kUndecodable, size, "no instruction at {}", plan_.site + size);
      const bool past_end = size >= limit;
      if (past_end && rules_.padding_only && insn->kind != Kind::kNop) {
        return refusal(RefusalKind::kTooShort, size,
                       "the function ends after {} bytes, and no padding follows", size);
      }
      if (auto r = check_instruction(*insn, size)) return r;
      uses_padding_ |= past_end;
      nops_only_ &= insn->kind == Kind::kNop;
      plan_.heads.push_back(static_cast<uint8_t>(size));
      size += insn->length;
      if (insn->ends_flow() || is_call(*insn)) plan_.falls_through = false;
    }
    plan_.window.assign(bytes_.begin(), bytes_.begin() + static_cast<ptrdiff_t>(size));
    return size < kPatchBytes ? check_padding(size) : std::nullopt;
  }

  static bool is_call(const x86::Insn& insn) {
    return insn.kind == Kind::kCall || insn.kind == Kind::kCallIndirect;
  }

  /// Memory of the own stack frame and of the module is there; other memory may not be. String
  /// instructions and xlat have no ModRM operand, push and pop use the stack.
  static bool may_fault(const x86::Insn& insn) {
    if (insn.has_memory) return !insn.rip_relative && insn.base != x86::kRsp;
    return insn.implicit_memory && (insn.writes & 1u << x86::kRsp) == 0 && !is_call(insn);
  }

  MaybeRefusal check_instruction(const x86::Insn& insn, size_t offset) {
    if (insn.kind == Kind::kBreakpoint && rules_.breakpoints) {
      return refusal(RefusalKind::kBreakpoint, offset, "a breakpoint of somebody else is at {}",
                     plan_.site + offset);
    }
    if (insn.kind == Kind::kEndbr && rules_.endbr_inside && offset > 0) {
      return refusal(RefusalKind::kEndbrInside, offset,
                     "indirect branches may enter at the endbr64 at {}", plan_.site + offset);
    }
    if (is_call(insn) && rules_.call_last && offset + insn.length < plan_.written) {
      return refusal(RefusalKind::kCall, offset, "the call at {} would return into the patch",
                     plan_.site + offset);
    }
    plan_.may_fault |= may_fault(insn);
    if (plan_.may_fault && map_.module().handles_faults_by_address) {
      return refusal(
          RefusalKind::kInstruction, offset,
          "`{}` cannot be moved: it may fault, and this program handles faults by their address",
          x86::format_insn(bytes_.subspan(offset), plan_.site + offset));
    }
    if (auto ok = x86::check_relocatable(insn); !ok) {
      return refusal(RefusalKind::kInstruction, offset, "`{}` cannot be moved: {}",
                     x86::format_insn(bytes_.subspan(offset), plan_.site + offset),
                     ok.error().message);
    }
    return std::nullopt;
  }

  /// Control has left before the fifth byte: what lies behind must be nobody's code.
  MaybeRefusal check_padding(size_t size) {
    uses_padding_ = true;
    if (!rules_.padding_only) return std::nullopt;
    const auto behind =
        bytes_.subspan(size, std::min(bytes_.size() - size, kPatchBytes + x86::kMaxInsnBytes));
    if (x86::padding_bytes(behind) >= kPatchBytes - size) return std::nullopt;
    return refusal(RefusalKind::kTooShort, size, "only {} bytes, and no padding follows", size);
  }

  MaybeRefusal check_starts() {
    if (!rules_.other_functions) return std::nullopt;
    const auto start = map_.first_start_in(plan_.site + 1, plan_.site + plan_.written);
    if (!start) return std::nullopt;
    return refusal(RefusalKind::kOtherFunction, static_cast<size_t>(*start - plan_.site),
                   "{} begins inside the window", map_.describe(*start));
  }

  MaybeRefusal check_reserved() {
    if (!rules_.reserved) return std::nullopt;
    const TargetAddr end = std::max(plan_.window_end(), plan_.site + plan_.written);
    for (const Reserved& r : map_.module().reserved) {
      if (r.start < end && plan_.site < r.end) {
        return refusal(RefusalKind::kReserved, 0, "{}", r.reason);
      }
    }
    return std::nullopt;
  }

  void finish() {
    std::copy_n(bytes_.begin(), kPatchBytes, plan_.before.begin());
    plan_.probed = {{0, flags_live_at(map_, plan_.site)}};
    plan_.go_stack_check = is_go_stack_checked(map_.text_from(function_->start));
    const size_t count = plan_.heads.size();
    if (uses_padding_) {
      plan_.mechanism = Mechanism::kPadding;
      plan_.reason = fmt::format("jump over a short function of {} bytes and its padding",
                                 plan_.window.size());
    } else if (nops_only_) {
      plan_.mechanism = Mechanism::kEntryNops;
      plan_.reason = "jump over nops that were left for it";
    } else {
      plan_.mechanism = Mechanism::kJump;
      plan_.reason =
          count == 1 ? "jump over 1 instruction" : fmt::format("jump over {} instructions", count);
    }
  }

  const CodeMap& map_;
  const PlanRules& rules_;
  std::span<const uint8_t> bytes_;
  const FunctionSpan* function_ = nullptr;
  bool uses_padding_ = false;
  bool nops_only_ = true;
  SitePlan plan_;
};

}  // namespace

TargetAddr skip_endbr(const CodeMap& map, TargetAddr site) {
  const FunctionSpan* f = map.function_at(site);
  if (f == nullptr || f->start != site || !starts_with(map.text_from(site), x86::kEndbr64))
    return site;
  return site + x86::kEndbr64.size();
}

Outcome choose_window(const CodeMap& map, TargetAddr site, const PlanRules& rules) {
  return WindowChoice(map, site, rules).run();
}

Outcome choose_pun(const CodeMap& map, TargetAddr site, const PlanRules& rules) {
  return WindowChoice(map, site, rules).run_pun();
}

}  // namespace spile::patch
