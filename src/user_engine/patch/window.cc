#include "user_engine/patch/window.h"

#include <fmt/format.h>

#include <algorithm>

#include "user_engine/patch/padding.h"
#include "x86/format.h"

namespace spile::patch {
namespace {

using x86::Kind;

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

bool is_call(const x86::Insn& insn) {
  return insn.kind == Kind::kCall || insn.kind == Kind::kCallIndirect;
}

/// mov %fs:-8,%r14: the thread's own variables.
bool is_thread_local(const x86::Insn& insn, std::span<const uint8_t> bytes) {
  constexpr uint8_t kFs = 0x64;
  const bool is_constant = insn.base == x86::kNoReg && insn.index == x86::kNoReg;
  return is_constant && bytes.front() == kFs;
}

/// Memory of the own stack frame, of the thread and of the module is there; other memory may not
/// be. String instructions and xlat have no ModRM operand, push and pop use the stack.
bool may_fault(const x86::Insn& insn, std::span<const uint8_t> bytes) {
  if (insn.has_memory)
    return !insn.rip_relative && insn.base != x86::kRsp && !is_thread_local(insn, bytes);
  return insn.implicit_memory && (insn.writes & 1u << x86::kRsp) == 0 && !is_call(insn);
}

}  // namespace

Sweeps::Kept& Sweeps::kept(TargetAddr at) {
  for (Kept& k : kept_) {
    if (k.sweep.region.contains(at)) return k;
  }
  if (kept_.size() == kKept) kept_.pop_front();
  return kept_.emplace_back(sweep(map_, map_.region_at(at)), std::nullopt);
}

const Sweep& Sweeps::around(TargetAddr at) {
  return kept(at).sweep;
}

bool Sweeps::is_branch_target(TargetAddr at) {
  Kept& k = kept(at);
  if (!k.targets) {
    k.targets.emplace();
    for (const auto* insns : {&k.sweep.insns, &k.sweep.overlapped}) {
      for (const SweptInsn& insn : *insns) {
        if (insn.shape.is_direct_branch())
          k.targets->push_back(insn.shape.branch_target(k.sweep.address(insn)));
      }
    }
    std::ranges::sort(*k.targets);
  }
  return std::ranges::binary_search(*k.targets, at);
}

const std::optional<x86::Insn>& Sweeps::insn(TargetAddr at) {
  Decoded& slot = insns_[at.value % kInsns];
  if (slot.at != at) slot = {at, x86::decode(map_.text_from(at))};
  return slot.insn;
}

Window::Window(const Scene& scene, TargetAddr start)
    : scene_(&scene), bytes_(scene.map.text_from(start)) {
  constexpr size_t kUsualBytes = 16, kUsualInsns = 8;
  plan_.site = start;
  plan_.window.reserve(kUsualBytes);
  plan_.heads.reserve(kUsualInsns);
}

template <typename... Args>
Refusal Window::refusal(RefusalKind kind,
                        size_t offset,
                        const char* format,
                        const Args&... args) const {
  Refusal r{kind, at(offset), {}, fmt::format(fmt::runtime(format), args...)};
  if (offset < bytes_.size()) r.instruction = x86::format_insn(bytes_.subspan(offset), at(offset));
  return r;
}

bool Window::is_entry() const {
  return plan_.site == function_->start || plan_.site == skip_endbr(scene_->map, function_->start);
}

// ---- the steps
// ---------------------------------------------------------------------------------------------------

Window::MaybeRefusal Window::begin() {
  if (function_ != nullptr) return std::nullopt;
  function_ = scene_->map.function_at(plan_.site);
  if (function_ == nullptr)
    return refusal(RefusalKind::kNoFunction, 0, "no function is known at {}", plan_.site);
  plan_.function = function_->start;
  for (const auto check : {&Window::check_place, &Window::check_is_head}) {
    if (auto r = (this->*check)()) {
      function_ = nullptr;
      return r;
    }
  }
  first_way_in_ = scene_->ways.into(at(1), at(kMaxWindowBytes));
  unresolved_ = scene_->ways.unresolved(plan_.site);
  return std::nullopt;
}

Window::MaybeRefusal Window::take_full(TargetAddr through) {
  if (auto r = begin()) return r;
  if (bytes_.size() < kPatchBytes) {
    return refusal(RefusalKind::kTooShort, 0, "fewer than {} bytes before the end of the code",
                   kPatchBytes);
  }
  if (scene_->rules.page_boundary && plan_.site.value / kPageBytes != at(4).value / kPageBytes) {
    return refusal(RefusalKind::kPageBoundary, 0, "the jump would cross a page boundary");
  }
  plan_.written = kPatchBytes;
  if (auto r = take_until(kPatchBytes, through)) return r;
  if (plan_.window.size() < kPatchBytes) {
    uses_padding_ = true;
    if (auto r = check_padding(plan_.window.size())) return r;
  }
  for (const auto check : {&Window::check_changed_bytes, &Window::check_reserved}) {
    if (auto r = (this->*check)()) return r;
  }
  describe(false);
  return std::nullopt;
}

Window::MaybeRefusal Window::take_short(TargetAddr through, bool one_instruction) {
  if (auto r = begin()) return r;
  plan_.written = 1;  // a call may come next: it ends the window
  if (auto r = take_until(1, through)) return r;
  const size_t in_page = kPageBytes - plan_.site.value % kPageBytes;
  const size_t room = std::min({in_page, kPatchBytes - 1, bytes_.size()});
  while (!one_instruction && plan_.falls_through && plan_.window.size() < room) {
    if (take_next()) break;
  }
  size_t own = plan_.window.size();
  if (!one_instruction && !plan_.falls_through) own += padding_behind(own);
  plan_.written = static_cast<uint8_t>(std::min(own, room));
  for (const auto check : {&Window::check_changed_bytes, &Window::check_reserved}) {
    if (auto r = (this->*check)()) return r;
  }
  describe(true);
  return std::nullopt;
}

Window::MaybeRefusal Window::take_trap() {
  if (auto r = begin()) return r;
  plan_.mechanism = Mechanism::kTrap;
  plan_.written = 1;
  if (auto r = take_next()) return r;
  for (const auto check : {&Window::check_changed_bytes, &Window::check_reserved}) {
    if (auto r = (this->*check)()) return r;
  }
  plan_.reason = "an int3 over the first byte: a signal a hit, microseconds";
  return std::nullopt;
}

Window::MaybeRefusal Window::extend(TargetAddr through) {
  const SitePlan before = plan_;
  const bool nops_only = nops_only_, uses_padding = uses_padding_;
  auto r = take_until(kPatchBytes, through);
  if (!r) r = check_reserved();
  if (r) {
    plan_ = before;
    nops_only_ = nops_only;
    uses_padding_ = uses_padding;
    return r;
  }
  describe(false);
  return std::nullopt;
}

/// Instructions until there are `want` bytes, if control goes on for so long, and `through` is one
/// of them.
Window::MaybeRefusal Window::take_until(size_t want, TargetAddr through) {
  const auto last = static_cast<size_t>(through - plan_.site);
  while ((plan_.window.size() < want || plan_.window.size() <= last) && plan_.falls_through) {
    if (auto r = take_next()) return r;
  }
  if (has_head(through)) return std::nullopt;
  return refusal(RefusalKind::kNotAnInstruction, last,
                 "no straight line leads from the start of the window to {}", through);
}

Window::MaybeRefusal Window::take_next() {
  const size_t size = plan_.window.size();
  const std::optional<x86::Insn> insn = scene_->sweeps.insn(at(size));
  if (!insn) return refusal(RefusalKind::kUndecodable, size, "no instruction at {}", at(size));
  if (size + insn->length > kMaxWindowBytes) {
    return refusal(RefusalKind::kTooShort, size, "the window would be longer than {} bytes",
                   kMaxWindowBytes);
  }
  const bool past_end = at(size) >= function_->end;
  if (past_end && scene_->rules.padding_only && insn->kind != Kind::kNop) {
    return refusal(RefusalKind::kTooShort, size,
                   "the function ends after {} bytes, and no padding follows", size);
  }
  if (auto r = check_instruction(*insn, size)) return r;
  if (auto r = check_entered(*insn, size)) return r;
  if (insn->is_direct_branch()) own_targets_.push_back(insn->branch_target(at(size)));
  uses_padding_ |= past_end;
  nops_only_ &= insn->kind == Kind::kNop;
  plan_.may_fault |= may_fault_here(*insn, size);
  plan_.heads.push_back(static_cast<uint8_t>(size));
  const auto code = bytes_.subspan(size, insn->length);
  plan_.window.insert(plan_.window.end(), code.begin(), code.end());
  if (insn->ends_flow() || is_call(*insn)) plan_.falls_through = false;
  return std::nullopt;
}

bool Window::has_head(TargetAddr a) const {
  const uint64_t offset = a - plan_.site;
  return a >= plan_.site && offset < kMaxWindowBytes &&
         std::binary_search(plan_.heads.begin(), plan_.heads.end(), static_cast<uint8_t>(offset));
}

void Window::add_probe(TargetAddr a) {
  SPILE_CHECK(has_head(a));
  const auto offset = static_cast<uint8_t>(a - plan_.site);
  auto it = std::lower_bound(plan_.probed.begin(), plan_.probed.end(), offset,
                             [](const ProbedHead& h, uint8_t o) { return h.offset < o; });
  if (it != plan_.probed.end() && it->offset == offset) return;
  plan_.probed.insert(it, {offset, flags_live_at(scene_->sweeps, a)});
}

SitePlan Window::finish() {
  std::copy_n(bytes_.begin(), std::min(kPatchBytes, bytes_.size()), plan_.before.begin());
  return std::move(plan_);
}

// ---- the rules
// ---------------------------------------------------------------------------------------------------

Window::MaybeRefusal Window::check_place() const {
  if (scene_->rules.breakpoints && !bytes_.empty() && bytes_[0] == 0xcc) {
    return refusal(RefusalKind::kBreakpoint, 0, "a breakpoint of somebody else is here");
  }
  if (const KnownCode* known = find_known_code(function_->name);
      known != nullptr && scene_->rules.known_code) {
    return refusal(RefusalKind::kKnownCode, 0, "{}", known->reason);
  }
  return check_restore_rt();
}

/// Unwinders recognise the signal trampoline by these bytes, so they must stay as they are.
Window::MaybeRefusal Window::check_restore_rt() const {
  if (!scene_->rules.restore_rt) return std::nullopt;
  constexpr uint64_t kLength = x86::kRestoreRt.size();
  for (uint64_t i = 0; i < kLength + kPatchBytes - 1; ++i) {
    // From behind the window's first byte to before its last.
    if (!starts_with(scene_->map.text_from(plan_.site + kPatchBytes - 1 - i), x86::kRestoreRt))
      continue;
    return refusal(RefusalKind::kRestoreRt, 0,
                   "the signal return trampoline, which unwinders know by its bytes");
  }
  return std::nullopt;
}

/// Inside a function, decoding from its start must arrive at the site.
Window::MaybeRefusal Window::check_is_head() const {
  if (is_entry()) return std::nullopt;
  const Sweep& code = scene_->sweeps.around(plan_.site);
  const SweptInsn* insn = code.covering(plan_.site);
  if (insn == nullptr || !code.is_trustworthy()) {
    return refusal(RefusalKind::kUndecodable, 0, "the function around {} does not decode",
                   plan_.site);
  }
  if (code.address(*insn) == plan_.site) return std::nullopt;
  return refusal(RefusalKind::kNotAnInstruction, 0, "{} is inside the instruction at {}",
                 plan_.site, code.address(*insn));
}

/// Go's stack check reads the goroutine's descriptor, which is there.
bool Window::may_fault_here(const x86::Insn& insn, size_t offset) const {
  if (!may_fault(insn, bytes_.subspan(offset))) return false;
  const TargetAddr start = function_->start;
  return at(offset + insn.length) > start + go_stack_check_bytes(scene_->map.text_from(start));
}

/// Go's handler takes a fault at an unknown address for a bad call if it finds a return address at
/// the stack pointer: the caller panics (runtime/panic.go, shouldPushSigpanic, before 1.15
/// preparePanic). As long as a function has pushed nothing that is what happens anyhow, but that
/// the trace lacks a line: nothing was deferred in it yet. Parts of assembly, whose names have no
/// package, may be jumped to with something on the stack.
bool Window::faults_in_caller(const x86::Insn& insn) const {
  if (!scene_->map.module().is_go || !is_entry() || insn.kind != Kind::kPlain) return false;
  if (!is_go_function(function_->name)) return false;
  constexpr auto moves_stack = [](const x86::Insn& i) { return (i.writes >> x86::kRsp & 1) != 0; };
  return !moves_stack(insn) && std::ranges::none_of(plan_.heads, [&](uint8_t head) {
    const auto before = scene_->sweeps.insn(at(head));
    return !before || moves_stack(*before);
  });
}

Window::MaybeRefusal Window::check_instruction(const x86::Insn& insn, size_t offset) {
  const PlanRules& rules = scene_->rules;
  if (insn.kind == Kind::kBreakpoint && rules.breakpoints) {
    return refusal(RefusalKind::kBreakpoint, offset, "a breakpoint of somebody else is at {}",
                   at(offset));
  }
  // At the start too: a probe is set behind it, and no jump to make room covers it.
  if (insn.kind == Kind::kEndbr && rules.endbr_inside) {
    return refusal(RefusalKind::kEndbrInside, offset,
                   "indirect branches may enter at the endbr64 at {}", at(offset));
  }
  if (is_call(insn) && rules.call_last && offset + insn.length < plan_.written) {
    return refusal(RefusalKind::kCall, offset, "the call at {} would return into the patch",
                   at(offset));
  }
  if (may_fault_here(insn, offset) && scene_->map.module().handles_faults_by_address &&
      !faults_in_caller(insn)) {
    return refusal(RefusalKind::kInstruction, offset, "`{}` cannot be moved: {}",
                   x86::format_insn(bytes_.subspan(offset), at(offset)),
                   scene_->map.module().is_go
                       ? "Go makes a panic of a nil pointer's fault by the address of the "
                         "instruction, which must be one of the function once that has a frame"
                       : "it may fault, and this program handles faults by their address");
  }
  if (auto ok = x86::check_relocatable(insn); !ok) {
    return refusal(RefusalKind::kInstruction, offset, "`{}` cannot be moved: {}",
                   x86::format_insn(bytes_.subspan(offset), at(offset)), ok.error().message);
  }
  return std::nullopt;
}

/// Behind the start, an instruction that is entered would not run in the copy, nor would those
/// behind it; bytes that are entered cannot change; and relocated code cannot branch into itself.
Window::MaybeRefusal Window::check_entered(const x86::Insn& insn, size_t offset) const {
  // Whoever enters behind an int3 finds the original bytes.
  if (plan_.mechanism == Mechanism::kTrap) return std::nullopt;
  if (offset > 0 && unresolved_ != nullptr) return refusal_of(scene_->map, *unresolved_);
  const size_t end = offset + insn.length;
  for (const TargetAddr target : own_targets_) {
    if (target > plan_.site && target < at(end)) {
      return refusal(RefusalKind::kDirectBranch, offset, "the window branches into itself, to {}",
                     target);
    }
  }
  if (!first_way_in_ || first_way_in_->target >= at(end)) return std::nullopt;
  // Whoever enters before this head runs on to it in the original.
  if (offset > 0 && first_way_in_->target <= at(offset))
    return refusal_of(scene_->map, *first_way_in_);
  if (const auto way = scene_->ways.into(at(offset + 1), at(std::min(end, kPatchBytes))))
    return refusal_of(scene_->map, *way);
  return std::nullopt;
}

/// How many bytes behind the end of control flow are nobody's code, of those that a jump needs.
size_t Window::padding_behind(size_t size) const {
  if (size >= kPatchBytes || size >= bytes_.size()) return 0;
  size_t padding = std::min(padding_bytes_at(*scene_, at(size)), kPatchBytes - size);
  const auto last = plan_.heads.empty() ? size_t{0} : plan_.heads.back();
  const auto insn = x86::decode_shape(bytes_.subspan(last));
  // A call comes back to it.
  if (!insn || !insn->ends_flow()) return 0;
  if (first_way_in_ && first_way_in_->target < at(size + padding))
    padding = first_way_in_->target <= at(size)
                  ? 0
                  : static_cast<size_t>(first_way_in_->target - at(size));
  return padding;
}

/// Control has left before the fifth byte: what lies behind must be nobody's code.
Window::MaybeRefusal Window::check_padding(size_t size) const {
  if (!scene_->rules.padding_only) return std::nullopt;
  if (padding_bytes_at(*scene_, at(size)) >= kPatchBytes - size) return std::nullopt;
  return refusal(RefusalKind::kTooShort, size, "only {} bytes, and no padding follows", size);
}

Window::MaybeRefusal Window::check_changed_bytes() const {
  if (first_way_in_ && first_way_in_->target < at(plan_.written))
    return refusal_of(scene_->map, *first_way_in_);
  if (const Entrance* reader = scene_->ways.reader_of(plan_.site, at(plan_.written)))
    return refusal_of(scene_->map, *reader);
  return std::nullopt;
}

Window::MaybeRefusal Window::check_reserved() const {
  if (!scene_->rules.reserved) return std::nullopt;
  const TargetAddr end = std::max(plan_.window_end(), at(plan_.written));
  for (const Reserved& r : scene_->map.module().reserved) {
    if (r.start < end && plan_.site < r.end)
      return refusal(RefusalKind::kReserved, 0, "{}", r.reason);
  }
  return std::nullopt;
}

void Window::describe(bool is_short) {
  const size_t count = plan_.heads.size();
  if (is_short) {
    plan_.mechanism = Mechanism::kShort;
    plan_.reason =
        count == 1
            ? fmt::format("only the {} byte{} of the first instruction may change", plan_.written,
                          plan_.written == 1 ? "" : "s")
            : fmt::format("only {} bytes may change, of {} instructions", plan_.written, count);
  } else if (uses_padding_) {
    plan_.mechanism = Mechanism::kPadding;
    plan_.reason =
        fmt::format("jump over a short function of {} bytes and its padding", plan_.window.size());
  } else if (nops_only_) {
    plan_.mechanism = Mechanism::kEntryNops;
    plan_.reason = "jump over nops that were left for it";
  } else {
    plan_.mechanism = Mechanism::kJump;
    plan_.reason =
        count == 1 ? "jump over 1 instruction" : fmt::format("jump over {} instructions", count);
  }
}

// ---- reasons
// -----------------------------------------------------------------------------------------------------

namespace {

std::string reason_for(const CodeMap& map, const Entrance& e) {
  const std::string source = map.describe(e.source), target = map.describe(e.target);
  const std::string text = fmt::format("`{}`", x86::format_insn(map.text_from(e.source), e.source));
  switch (e.kind) {
    case RefusalKind::kDirectBranch:
      return fmt::format("{} at {} {} into the window, to {}", text, source,
                         e.certain ? "jumps" : "may jump", target);
    case RefusalKind::kCodeReference:
      return fmt::format("{} at {} {} the window's bytes at {}", text, source,
                         e.certain ? "uses" : "may use", target);
    case RefusalKind::kSharedBytes:
      return fmt::format("{} at {}, decoded from another start, {} the window's bytes at {}", text,
                         source, e.certain ? "reaches" : "may reach", target);
    case RefusalKind::kJumpTable:
      return fmt::format("a jump table of {} leads into the window, to {}", source, target);
    case RefusalKind::kUnknownJump:
      return fmt::format("{} at {} may go anywhere in the function: its table was not found", text,
                         source);
    case RefusalKind::kCodePointer:
      return fmt::format("data holds a pointer into the window, to {}", target);
    case RefusalKind::kOtherFunction: return fmt::format("{} begins inside the window", target);
    default: return fmt::format("the function does not decode at {}", source);
  }
}

}  // namespace

Refusal refusal_of(const CodeMap& map, const Entrance& e) {
  Refusal r{e.kind, e.source, {}, reason_for(map, e)};
  if (const auto bytes = map.text_from(e.source); !bytes.empty())
    r.instruction = x86::format_insn(bytes, e.source);
  return r;
}

bool is_known_code(std::string_view name) {
  return find_known_code(name) != nullptr;
}

TargetAddr skip_endbr(const CodeMap& map, TargetAddr site) {
  if (!starts_with(map.text_from(site), x86::kEndbr64)) return site;
  return site + x86::kEndbr64.size();
}

}  // namespace spile::patch
