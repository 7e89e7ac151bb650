// Where a probe may sit, and how: code bytes and sites in, patches out. Pure: nothing here reads a
// process or a file.
//
// A probe is a jmp rel32 over the first five bytes of its site. The instructions under it (the
// *window*) move into a detour. That is safe if and only if nothing but the jump's first byte is
// ever entered:
//
//   site ->  55           push %rbp          e9 xx xx xx xx   jmp detour
//            48 89 e5     mov %rsp,%rbp
//            41 54        push %r12          54               (left as it was, never reached)
//            ...                             ...
//
// So every way into bytes 1..4 must be known: direct branches of the whole module, jump tables,
// code pointers in data, landing pads, other symbols, stopped threads. Where one is found, or where
// it cannot be excluded, only the first instruction's own bytes may change: a *short* site, for
// which placement.h looks for a way. Where that is not safe either, the site is refused with the
// reason: no probe is better than a wrong one.
//
// One window may carry several probes, each at the head of one of its instructions: the detour then
// is a row of *segments*, the first jumped to by the site, each running its probes and then its
// instructions up to the next probed head.
#pragma once

#include <array>
#include <cstdint>
#include <expected>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/address.h"
#include "base/error.h"
#include "x86/encode.h"
#include "x86/relocate.h"

namespace spile::patch {

/// Bytes that a patch overwrites.
inline constexpr size_t kPatchBytes = x86::kJmpBytes;
using PatchBytes = std::array<uint8_t, kPatchBytes>;

/// Bytes and where they are in the target.
struct Bytes {
  TargetAddr start;
  std::span<const uint8_t> bytes;

  TargetAddr end() const { return start + bytes.size(); }
  bool contains(TargetAddr a) const { return a >= start && a < end(); }
};

/// [start, end). end == start means that the size is not known: it then ends where the next
/// function starts.
struct Function {
  TargetAddr start, end;
  std::string_view name;  ///< may be empty: known from .eh_frame only
};

/// Bytes never to patch, with the reason that users get to read: rseq critical sections, the vdso,
/// prefix data, ...
struct Reserved {
  TargetAddr start, end;
  std::string reason;
};

/// One loaded module as the target has it in memory, foreign patches and our own taken out (the
/// original contents). The spans and names must outlive the call. All lists are sorted by start.
struct ModuleCode {
  std::vector<Bytes> text;  ///< executable segments (or sections); the more complete, the safer
  std::vector<Function> functions;  ///< symbols and .eh_frame entries; aliases and nesting allowed
  /// Every address that data may hold: relocation addends, words that look like pointers into text,
  /// landing pads, init arrays, e_entry, dynamic symbols.
  std::vector<TargetAddr> code_pointers;
  std::vector<Bytes> read_only;  ///< constant data: where jump tables are
  std::vector<Reserved> reserved;
  /// The program's runtime turns memory faults into its own exceptions by looking at the faulting
  /// instruction's address (Go, Java, WebAssembly engines): then nothing that may fault is moved.
  bool handles_faults_by_address = false;
  bool is_go = false;  ///< compiled by Go's own compiler
};

/// The safety rules. All on, always; a test switches one off to show the harm that it prevents.
struct PlanRules {
  bool direct_branches = true;  ///< no jmp, jcc, loop, call of the module enters the window
  bool jump_tables = true;      ///< no switch or computed goto enters it; unknown tables refuse
  bool code_pointers = true;    ///< no pointer in data, landing pad, ... enters it
  bool code_references =
      true;  ///< no lea, no read of code as data, no absolute address in an instruction
  bool shared_bytes = true;     ///< no byte is part of an instruction of another stream
  bool endbr_inside = true;     ///< an endbr64 inside the window is a way in
  bool other_functions = true;  ///< no symbol starts inside
  bool other_sites = true;      ///< no two windows overlap
  bool padding_only = true;     ///< past the function's end, and after a jump or ret, only padding
  bool padding_before_code =
      true;  ///< a run of nops is padding only up to where code may begin: else it begins data
  bool page_boundary = true;  ///< the five bytes lie in one page
  bool reserved = true;       ///< ModuleCode::reserved
  bool known_code =
      true;  ///< not functions that are known to be copied, or compared by address, by name
  bool restore_rt = true;   ///< not the signal return trampoline
  bool breakpoints = true;  ///< no int3 of somebody else
  bool call_last = true;    ///< a call's return address is not overwritten
  // Not a safety rule: off for whoever wants to see what the first choice would have been.
  bool puns = true;  ///< a punned jump where five bytes are refused
};

enum class Mechanism : uint8_t {
  kEntryNops,  ///< nops that a compiler left at the entry
  kJump,       ///< over one or several instructions
  kPadding,    ///< over a short function and the padding behind it
  kShort,      ///< only the first instruction's bytes may change: placement.h finds out how
  kTrap,       ///< int3 over the first byte, which alone changes: only where it was asked for
};
std::string_view to_string(Mechanism mechanism);

enum class RefusalKind : uint8_t {
  kNoFunction,        ///< no function is known at the address
  kUndecodable,       ///< bytes that are no instructions, here or where it would matter
  kNotAnInstruction,  ///< the address is inside an instruction
  kTooShort,          ///< no room: fewer than five bytes and no padding
  kDirectBranch,
  kJumpTable,
  kUnknownJump,  ///< an indirect jump of this function whose targets are not known
  kCodePointer,
  kCodeReference,
  kSharedBytes,  ///< another stream of instructions has the bytes
  kEndbrInside,
  kOtherFunction,
  kOtherSite,
  kPageBoundary,
  kReserved,
  kKnownCode,
  kRestoreRt,
  kBreakpoint,
  kCall,         ///< a call would return into the patch
  kInstruction,  ///< an instruction that cannot be moved
};
std::string_view to_string(RefusalKind kind);

struct Refusal {
  RefusalKind kind = RefusalKind::kNoFunction;
  TargetAddr address;       ///< the offending instruction, pointer's target, ...
  std::string instruction;  ///< its text, may be empty
  std::string reason;       ///< one sentence for people

  Error to_error() const { return {ErrorCode::kUnsafe, reason}; }
};

/// The head of an instruction of the window at which probes run.
struct ProbedHead {
  uint8_t offset = 0;      ///< from the site
  bool flags_live = true;  ///< the programs must keep the status flags
};

/// Everything needed to patch a site, to undo it, and to explain it.
struct SitePlan {
  TargetAddr site;      ///< where the jump goes: after an endbr64
  TargetAddr function;  ///< start of the function
  Mechanism mechanism = Mechanism::kJump;
  PatchBytes before{};  ///< what the jump overwrites
  /// Bytes from `site` on that may change: kShort has 1 to 4, kTrap 1.
  uint8_t written = kPatchBytes;
  std::vector<uint8_t>
      window;  ///< the displaced instructions: 1..64 bytes, may be fewer than five (padding)
  std::vector<uint8_t> heads;  ///< offsets of their first bytes; [0] is 0
  /// By offset, a subset of `heads`. Mostly only [0]; empty: an instruction that was moved to make
  /// room for the jump of another site.
  std::vector<ProbedHead> probed;
  bool falls_through = true;  ///< control continues at site + window.size()
  bool may_fault =
      false;           ///< a displaced instruction accesses memory other than stack and constants
  std::string reason;  ///< why this mechanism: "jump over 2 instructions"

  TargetAddr window_end() const { return site + window.size(); }
  /// Where segments begin: 0 and the probed heads.
  std::vector<uint8_t> segment_starts() const;
};

using Outcome = std::expected<SitePlan, Refusal>;

/// Plans probes at many places of a module at once; outcome i belongs to sites[i]. A site at a
/// function's start is moved behind its endbr64. The same site twice gives the same plan twice; of
/// overlapping windows the first in `sites` wins. Cost: about one pass over the text (1 to 2 ns a
/// byte) and some microseconds a site.
std::vector<Outcome> plan_sites(const ModuleCode& module,
                                std::span<const TargetAddr> sites,
                                const PlanRules& rules = {});

/// Where a requested address is probed.
struct Spot {
  size_t site = 0;     ///< index into Plans::sites
  uint8_t offset = 0;  ///< of its head in that site's window
};

struct Plans {
  std::vector<SitePlan> sites;                         ///< by address; windows do not overlap
  std::vector<std::expected<Spot, Refusal>> outcomes;  ///< one an address asked for
};

/// Plans probes at many places of a module at once, with as few windows as will do: an address that
/// is inside the window of another one is probed there. An address at a function's start is moved
/// behind its endbr64. Cost: as plan_sites.
Plans plan_windows(const ModuleCode& module,
                   std::span<const TargetAddr> addresses,
                   const PlanRules& rules = {});

/// One address alone.
Outcome plan_entry(const ModuleCode& module, TargetAddr site, const PlanRules& rules = {});

/// The same as a short site, although five bytes would fit: a thread stands inside the window, and
/// behind the first instruction it is in nobody's way.
Outcome plan_short(const ModuleCode& module, TargetAddr site, const PlanRules& rules = {});

/// The last resort, for whoever has allowed it: each address as a site of which only the first byte
/// changes, to an int3. What enters the instruction behind that byte runs the original on. Outcome
/// i belongs to addresses[i]. Windows are one instruction; that no other site's window has it is
/// for the caller to check. Cost: as plan_sites.
std::vector<Outcome> plan_traps(const ModuleCode& module,
                                std::span<const TargetAddr> addresses,
                                const PlanRules& rules = {});

/// The window's instructions as they must stand at `address`, and the jump back behind them.
Result<x86::RelocatedCode> displaced_code(const SitePlan& plan, TargetAddr address);
/// Those of one segment; the jump back is behind the last one only.
Result<x86::RelocatedCode> displaced_segment(const SitePlan& plan,
                                             size_t segment,
                                             TargetAddr address);

/// An upper bound of the size of displaced_code, or of all segments together, wherever they go.
Result<size_t> displaced_size_bytes(const SitePlan& plan);

/// An int3 in one byte.
inline constexpr uint8_t kTrapByte = 0xcc;

/// What to write at plan.site so that it continues at `detour`. Errors: unsupported, out of reach;
/// invalid, a short site or a trap.
Result<PatchBytes> patch_bytes(const SitePlan& plan, TargetAddr detour);

/// One segment of a detour: at `entry` its probes run, then `displaced`.
struct Segment {
  TargetAddr entry;
  x86::RelocatedCode displaced;
};

/// Where a thread that is stopped at `rip` must continue once the site is patched: mostly at `rip`,
/// else in the copy. `in_syscall`: the thread is inside a system call (orig_rax >= 0), so that the
/// kernel may step rip back over the syscall instruction to restart it; that instruction must then
/// be the displaced copy. Errors: unsafe, rip is in the patched bytes but at no displaced
/// instruction: leave this site alone.
Result<TargetAddr> rip_after_attach(const SitePlan& plan,
                                    std::span<const Segment> segments,
                                    TargetAddr rip,
                                    bool in_syscall);

/// Where a thread that is stopped at `rip` inside the displaced code continues in the original code
/// once that is back. nullopt: not in it.
std::optional<x86::ResumePoint> rip_after_detach(const x86::RelocatedCode& displaced,
                                                 TargetAddr rip);

/// True if `bytes` (a function's first) are Go's stack check:
///   cmp 0x10(%r14),%rsp | lea -x(%rsp),%r12; cmp 0x10(%r14),%r12 | mov %fs:-8,%rcx; cmp
///   0x10(%rcx),%rsp (before 1.17)
bool is_go_stack_checked(std::span<const uint8_t> bytes);

/// In a Go program: Go's names have their package. Assembly's parts of functions and what C has put
/// in have no dot in theirs, but for the parts that gcc makes of functions ("f.cold").
bool is_go_function(std::string_view name);

}  // namespace spile::patch
