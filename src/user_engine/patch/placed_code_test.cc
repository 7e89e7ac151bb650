// Random programs of several functions, run bare, single-stepped, and with probes on some or all of
// their instructions, placed into the address space of this very process. Results must be the same,
// and every probe must have been hit if and only if its instruction ran. So must they be in the
// states between two writes, and when all is taken back.
//
// SPILE_PLACED_PROGRAMS=10000 runs more, SPILE_PLACED_SEED others.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <ucontext.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <map>
#include <set>

#include "user_engine/patch/placement.h"
#include "user_engine/patch/testing/machine.h"

namespace spile::patch {
namespace {

constexpr uint64_t kHits = 0x3000;  ///< offset in the data: one byte a probe
constexpr int64_t kTrapFlag = 0x100;

/// Addresses at which the code under test was about to run an instruction.
struct Steps {
  TargetAddr start, end;
  std::set<uint64_t> seen;
};
Steps g_steps;

void on_step(int, siginfo_t*, void* context) {
  auto& regs = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  const TargetAddr rip(static_cast<uint64_t>(regs[REG_RIP]));
  if (rip >= g_steps.start && rip < g_steps.end)
    g_steps.seen.insert(rip.value);
  else
    regs[REG_EFL] &= ~kTrapFlag;
}

/// Functions one behind the other, with padding of all kinds; short branches ahead inside them make
/// runs of few bytes.
class ProgramGenerator : public Generator {
 public:
  using Generator::Generator;

  struct Program {
    Code code;
    std::vector<uint64_t> heads;
    std::vector<std::pair<uint64_t, uint64_t>> functions;  ///< offsets
  };

  Program program() {
    Program p;
    code_.clear();
    add_leaf(p);
    const uint64_t functions = 2 + below(5);
    for (uint64_t i = 0; i < functions; ++i) add_function(p);
    p.code = code_;
    return p;
  }

 private:
  /// What calls come back from: nop; ret
  void add_leaf(Program& p) {
    p.heads.push_back(0);
    p.heads.push_back(1);
    code_.push_back(0x90);
    code_.push_back(0xc3);
    p.functions.emplace_back(0, code_.size());
    add_padding();
  }

  void add_function(Program& p) {
    const uint64_t start = code_.size();
    const uint64_t count = 2 + below(24), branch_every = 2 + below(6);
    std::vector<size_t> open;  // short branches without a target yet
    for (uint64_t i = 0; i < count; ++i) {
      close_some(open);
      p.heads.push_back(code_.size());
      if (below(branch_every) == 0)
        add_branch(open);
      else if (below(3) == 0)
        add_small();
      else if (below(16) == 0)
        add_prefix_skip(p);
      else if (below(12) == 0)
        below(2) == 0 ? add_call_of_leaf() : add_leaving();
      else
        add_plain();
    }
    close_all(open);
    p.heads.push_back(code_.size());
    add_end();
    p.functions.emplace_back(start, code_.size());
    add_padding();
  }

  /// Each target is the next instruction.
  void close_some(std::vector<size_t>& open) {
    std::erase_if(open, [&](size_t field) {
      const bool far = code_.size() - field > 90;
      if (!far && below(3) != 0) return false;
      code_[field] = static_cast<uint8_t>(code_.size() - (field + 1));
      return true;
    });
  }
  void close_all(std::vector<size_t>& open) {
    for (const size_t field : open) code_[field] = static_cast<uint8_t>(code_.size() - (field + 1));
    open.clear();
  }

  void add_branch(std::vector<size_t>& open) {
    const uint64_t kind = below(20);
    code_.push_back(kind == 0   ? uint8_t{0xeb}
                    : kind == 1 ? uint8_t{0xe3}
                                : static_cast<uint8_t>(0x70 | below(16)));
    code_.push_back(0);
    open.push_back(code_.size() - 1);
  }

  /// One byte: push, pop, cwde, nop, cmc.
  void add_small() {
    static constexpr uint8_t kSmall[] = {0x50, 0x51, 0x52, 0x55, 0x58, 0x59,
                                         0x5a, 0x5d, 0x98, 0x90, 0xf5};
    code_.push_back(kSmall[below(std::size(kSmall))]);
  }

  /// A branch, call or jump to an exit.
  void add_leaving() {
    const size_t at = code_.size();
    const int exit = 1 + static_cast<int>(below(kExitCount - 1));
    switch (below(5)) {
      case 0: add_call_anywhere(exit, at); return;
      case 1: append_jmp(arena_.exit_at(exit), at); return;
      case 2: code_.insert(code_.end(), {0x41, 0xff, 0xd3}); return;  // call *%r11
      case 3: code_.push_back(0xc3); return;
      default: add_jcc32(exit, at); return;
    }
  }
  /// jcc over the lock of lock cmpxchg %rdi,(%rsi), as in the C library: an entrance inside an
  /// instruction.
  void add_prefix_skip(Program& p) {
    code_.insert(code_.end(), {static_cast<uint8_t>(0x70 | below(16)), 0x01});
    p.heads.push_back(code_.size());
    code_.insert(code_.end(), {0xf0, 0x48, 0x0f, 0xb1, 0x3e});
  }

  void add_call_of_leaf() {
    const size_t at = code_.size();
    code_.push_back(0xe8);
    x86::append_u32(code_, static_cast<uint32_t>(*x86::rel32(here(at + 5), here(0))));
  }
  void add_call_anywhere(int exit, size_t at) {
    code_.push_back(0xe8);
    x86::append_u32(code_, static_cast<uint32_t>(*x86::rel32(here(at + 5), arena_.exit_at(exit))));
  }

  void add_end() {
    if (below(2) == 0)
      code_.push_back(0xc3);
    else
      append_jmp(arena_.exit_at(0), code_.size());
  }

  void add_padding() {
    const size_t size = below(2) == 0 ? (16 - code_.size() % 16) % 16 : below(9);
    if (below(4) == 0)
      code_.insert(code_.end(), size, 0xcc);
    else if (below(4) == 0)
      code_.insert(code_.end(), size, 0x90);
    else
      x86::append_nops(code_, size);
  }
};

std::vector<StoneSpace::Range> free_here() {
  std::vector<StoneSpace::Range> free;
  uint64_t at = 1 << 16;
  std::FILE* maps = std::fopen("/proc/self/maps", "re");
  char line[512];
  while (maps != nullptr && std::fgets(line, sizeof line, maps) != nullptr) {
    uint64_t start = 0, end = 0;
    if (std::sscanf(line, "%" SCNx64 "-%" SCNx64, &start, &end) != 2) continue;
    // What grows down needs room, and so does what the allocator asks for meanwhile.
    constexpr uint64_t kRoom = 64 << 20;
    const bool is_stack = std::strstr(line, "[stack]") != nullptr;
    const uint64_t low = is_stack ? start - kRoom : start;
    if (low > at && low < uint64_t{0x7fff} << 32) free.push_back({TargetAddr(at), TargetAddr(low)});
    at = std::max(at, std::strstr(line, "[heap]") != nullptr ? end + kRoom : end);
  }
  if (maps != nullptr) std::fclose(maps);
  return free;
}

/// Stones in this process.
class Stones {
 public:
  explicit Stones(const StoneSpace& space) {
    for (const auto& range : space.pages()) {
      void* at = reinterpret_cast<void*>(range.start.value);
      const auto size = static_cast<size_t>(range.end - range.start);
      void* got = mmap(at, size, PROT_READ | PROT_WRITE | PROT_EXEC,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
      if (got != at) {
        ok_ = false;
        return;
      }
      pages_.emplace_back(got, size);
    }
  }
  bool ok() const { return ok_; }
  void put(TargetAddr at, TargetAddr detour) {
    const auto bytes = stone_bytes(at, detour);
    std::memcpy(reinterpret_cast<void*>(at.value), bytes.data(), bytes.size());
  }

 private:
  std::vector<Mapping> pages_;
  bool ok_ = true;
};

struct Probe {
  TargetAddr head;
  size_t index;
};

/// A program in an arena, with its probes.
class Case {
 public:
  Case(Arena& arena, ProgramGenerator& generator, const PlanRules& rules = {})
      : arena_(arena), generator_(generator), rules_(rules), program_(generator.program()) {
    image_.assign(kTextBytes - 0x100, 0x06);
    std::ranges::copy(program_.code, image_.begin());
    arena_.write(kFunction, image_);
    const TargetAddr base = arena_.code_at(kFunction);
    module_.text = {{arena_.code_at(kFunction - 0x100), arena_.text()}};
    for (const auto& [start, end] : program_.functions)
      module_.functions.push_back({base + start, base + end, "f"});
  }

  /// What is wrong; empty: nothing.
  std::string run() {
    choose_sites();
    plans_ = plan_windows(original(), sites_, rules_);
    std::vector<const SitePlan*> pointers;
    for (const SitePlan& p : plans_.sites) pointers.push_back(&p);
    StoneSpace space(free_here(), 256);
    placements_ = place_short_sites(original(), pointers, space, rules_);
    Stones stones(space);
    if (!stones.ok()) return "a page that was free is taken";
    if (auto wrong = build(stones); !wrong.empty()) return wrong;
    if (auto wrong = write_step_by_step(); !wrong.empty()) return wrong;
    if (auto wrong = compare_all(true); !wrong.empty()) return "attached: " + wrong;
    if (auto wrong = undo_step_by_step(); !wrong.empty()) return wrong;
    const auto text = arena_.text().subspan(0x100);
    return std::ranges::equal(text, image_) ? "" : "the bytes are not those of before";
  }

  void count(std::map<std::string, int>& ways) const {
    for (size_t i = 0; i < plans_.sites.size(); ++i) {
      const auto placed = placements_.placed.find(i);
      const std::string how = placements_.refused.contains(i) ? "refused"
                              : placed != placements_.placed.end()
                                  ? placed->second.how
                                  : std::string(to_string(plans_.sites[i].mechanism));
      ++ways[how.substr(0, how.find(" at 0x"))];
      if (plans_.sites[i].probed.size() > 1) ++ways["(several probes in a window)"];
    }
    ways["(evicted)"] += static_cast<int>(placements_.evicted.size());
    ways["(hits)"] += hits_;
  }

  std::string describe() const {
    std::string out = x86::format_code(program_.code, arena_.code_at(kFunction));
    for (const SitePlan& p : plans_.sites)
      out += fmt::format("site {} window {} written {} {}\n", p.site, x86::hex(p.window), p.written,
                         p.reason);
    for (const Edit& e : steps_)
      out += fmt::format("level {} at {}: {} -> {}\n", e.level, e.at, x86::hex(e.before),
                         x86::hex(e.after));
    return out;
  }

 private:
  /// The arena's text changes under the planner's feet: it gets a copy.
  const ModuleCode& original() {
    if (copy_.empty()) {
      const auto text = arena_.text();
      copy_.assign(text.begin(), text.end());
      module_.text[0].bytes = copy_;
    }
    return module_;
  }

  void choose_sites() {
    const uint64_t one_in = 1 + generator_.below(5);
    for (const uint64_t head : program_.heads) {
      if (generator_.below(one_in) == 0) sites_.push_back(arena_.code_at(kFunction + head));
    }
    std::ranges::shuffle(sites_, generator_.random());
  }

  struct Built {
    const SitePlan* plan;
    std::vector<Segment> segments;
  };

  std::string build(Stones& stones) {
    uint64_t at = kDetour;
    for (size_t i = 0; i < plans_.sites.size(); ++i) {
      if (placements_.refused.contains(i)) continue;
      const SitePlan& plan = plans_.sites[i];
      const TargetAddr detour = arena_.code_at(at);
      if (auto wrong = put_detour(plan, at); !wrong.empty()) return wrong;
      const auto placed = placements_.placed.find(i);
      if (placed == placements_.placed.end()) {
        const auto jump = *patch_bytes(plan, detour);
        steps_.push_back(
            {plan.site, {plan.before.begin(), plan.before.end()}, {jump.begin(), jump.end()}});
      } else {
        stones.put(placed->second.stone, detour);
        steps_.insert(steps_.end(), placed->second.edits.begin(), placed->second.edits.end());
      }
    }
    for (const Evicted& e : placements_.evicted) {
      stones.put(e.placement.stone, arena_.code_at(at));
      if (auto wrong = put_detour(e.plan, at); !wrong.empty()) return wrong;
      steps_.insert(steps_.end(), e.placement.edits.begin(), e.placement.edits.end());
    }
    std::ranges::shuffle(steps_, generator_.random());
    std::ranges::stable_sort(steps_, {}, &Edit::level);
    return "";
  }

  std::string put_detour(const SitePlan& plan, uint64_t& at) {
    Built built{&plan, {}};
    const auto starts = plan.segment_starts();
    for (size_t i = 0; i < starts.size(); ++i) {
      Segment segment{arena_.code_at(at), {}};
      const bool probed =
          std::ranges::find(plan.probed, starts[i], &ProbedHead::offset) != plan.probed.end();
      if (probed) put_probe(plan.site + starts[i], at);
      auto displaced = displaced_segment(plan, i, arena_.code_at(at));
      if (!displaced) return displaced.error().message;
      arena_.write(at, displaced->bytes);
      at += displaced->bytes.size();
      segment.displaced = std::move(*displaced);
      built.segments.push_back(std::move(segment));
    }
    built_.push_back(std::move(built));
    return at < kCodeBytes - 0x1000 ? "" : "no more room";
  }

  /// movb $1,hits+i(%rip): changes no register and no flag.
  void put_probe(TargetAddr head, uint64_t& at) {
    constexpr size_t kProbeBytes = 7;
    Code code = {0xc6, 0x05};
    const TargetAddr byte = arena_.data_at(kHits + probes_.size());
    x86::append_u32(code,
                    static_cast<uint32_t>(*x86::rel32(arena_.code_at(at) + kProbeBytes, byte)));
    code.push_back(1);
    arena_.write(at, code);
    at += kProbeBytes;
    probes_.push_back({head, probes_.size()});
  }

  void write(const Edit& e, const EditBytes& bytes) {
    arena_.write(static_cast<uint64_t>(e.at - arena_.code_at(0)), bytes);
  }

  std::string write_step_by_step() {
    for (const Edit& e : steps_) {
      write(e, e.after);
      if (generator_.below(6) != 0) continue;
      if (auto wrong = compare_all(false); !wrong.empty())
        return fmt::format("after the write at {}: {}", e.at, wrong);
    }
    return "";
  }
  std::string undo_step_by_step() {
    for (auto e = steps_.rbegin(); e != steps_.rend(); ++e) {
      write(*e, e->before);
      if (generator_.below(6) != 0) continue;
      if (auto wrong = compare_all(false); !wrong.empty())
        return fmt::format("after taking back {}: {}", e->at, wrong);
    }
    return "";
  }

  /// Runs every function. The bare results are made once.
  std::string compare_all(bool all_written) {
    if (runs_.empty()) prepare_runs();
    for (const BareRun& run : runs_) {
      std::memset(arena_.data() + kHits, 0, probes_.size());
      Ending now = arena_.run(run.in);
      undo_move(run.end, now);
      if (const auto wrong = difference(run.end, now); !wrong.empty())
        return fmt::format("function at {:#x}: {}", run.in.rip, wrong);
      if (run.end.signal != 0 && run.end.state.rip != now.state.rip)
        return fmt::format("fault at {:#x}, not {:#x}", now.state.rip, run.end.state.rip);
      if (!all_written) continue;
      for (const Probe& p : probes_) {
        const bool hit = arena_.data()[kHits + p.index] != 0;
        hits_ += hit;
        if (hit != (run.steps.contains(p.head.value) || run.astray.contains(p.index)))
          return fmt::format("function at {:#x}: the probe at {} was {}hit", run.in.rip, p.head,
                             hit ? "" : "not ");
      }
    }
    return "";
  }

  /// A fault in a copy is one in the original.
  void undo_move(const Ending& bare, Ending& now) const {
    if (bare.signal == 0 || now.signal == 0) return;
    for (const Built& b : built_) {
      for (const Segment& s : b.segments) {
        if (const auto back = rip_after_detach(s.displaced, TargetAddr(now.state.rip))) {
          now.state.rip = back->original.value;
          now.state.gpr[x86::kRsp] += back->pop_bytes;
          return;
        }
      }
    }
  }

  struct BareRun {
    CpuState in;
    Ending end;
    std::set<uint64_t> steps;
    /// Probes in detours that it ran into by itself: a return to an address that it had calculated
    /// with may lead anywhere.
    std::set<size_t> astray;
  };

  /// As it was before anything was written.
  void prepare_runs() {
    std::vector<uint8_t> now(arena_.text().begin() + 0x100, arena_.text().end());
    arena_.write(kFunction, image_);
    for (const auto& [start, end] : program_.functions) {
      BareRun run{generator_.state(), {}, {}, {}};
      run.in.rip = arena_.code_at(kFunction + start).value;
      std::memset(arena_.data() + kHits, 0, probes_.size());
      run.end = arena_.run(run.in);
      for (const Probe& p : probes_) {
        if (arena_.data()[kHits + p.index] != 0) run.astray.insert(p.index);
      }
      g_steps = {arena_.code_at(kFunction), arena_.code_at(kFunction + image_.size()), {}};
      g_steps.seen.insert(run.in.rip);
      CpuState stepped = run.in;
      stepped.flags |= static_cast<uint64_t>(kTrapFlag);
      arena_.run(stepped);
      run.steps = std::move(g_steps.seen);
      runs_.push_back(std::move(run));
    }
    arena_.write(kFunction, now);
  }

  Arena& arena_;
  ProgramGenerator& generator_;
  PlanRules rules_;
  ProgramGenerator::Program program_;
  Code image_, copy_;
  ModuleCode module_;
  std::vector<TargetAddr> sites_;
  Plans plans_;
  Placements placements_;
  std::vector<Edit> steps_;
  std::vector<Built> built_;
  std::vector<Probe> probes_;
  std::vector<BareRun> runs_;
  int hits_ = 0;
};

/// Where programs, libraries and mappings may be.
void* random_place(std::mt19937_64& random) {
  const uint64_t page = 4096;
  switch (random() % 4) {
    case 0: return reinterpret_cast<void*>(0x400000 + random() % 0x1000 * page);
    case 1: return reinterpret_cast<void*>(0x10000000 + random() % 0x60000 * page);
    case 2: return reinterpret_cast<void*>(0x555500000000 + random() % 0x1000000 * page);
    default: return nullptr;
  }
}

/// Runs programs until something is wrong. A process of its own: code that is wrong may do
/// anything.
bool something_goes_wrong(const PlanRules& rules, int programs) {
  const pid_t child = fork();
  if (child == 0) {
    struct sigaction action{};
    action.sa_sigaction = on_step;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGTRAP, &action, nullptr);
    alarm(60);
    Arena arena;
    ProgramGenerator generator(arena, 1);
    for (int i = 0; i < programs; ++i) {
      if (!Case(arena, generator, rules).run().empty()) _exit(1);
    }
    _exit(0);
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return status != 0;
}

TEST(PlacedCode, IsWrongWithoutARule) {
  // The oracle sees what the rules prevent.
  constexpr int kPrograms = 100;
  EXPECT_FALSE(something_goes_wrong({}, kPrograms));
  for (bool PlanRules::* rule : {&PlanRules::direct_branches, &PlanRules::other_sites}) {
    PlanRules off;
    off.*rule = false;
    EXPECT_TRUE(something_goes_wrong(off, kPrograms));
  }
}

TEST(PlacedCode, RandomProgramsDoTheSameAndEveryProbeIsHit) {
  struct sigaction action{}, before{};
  action.sa_sigaction = on_step;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGTRAP, &action, &before);
  const uint64_t programs = number_from("SPILE_PLACED_PROGRAMS", 400);
  const uint64_t seed = number_from("SPILE_PLACED_SEED", 1);
  std::mt19937_64 random(seed);
  std::map<std::string, int> ways;
  for (uint64_t i = 0; i < programs && !testing::Test::HasFailure();) {
    Arena arena(random_place(random));
    ProgramGenerator generator(arena, random());
    for (int n = 0; n < 20; ++n, ++i) {
      Case test(arena, generator);
      const std::string wrong = test.run();
      test.count(ways);
      ASSERT_EQ(wrong, "") << "program " << i << " of seed " << seed << "\n" << test.describe();
    }
  }
  sigaction(SIGTRAP, &before, nullptr);
  for (const auto& [way, n] : ways) fmt::print("  {:40} {}\n", way, n);
  for (const char* way :
       {"jump", "jump into padding", "punned jump", "punned jump behind prefixes", "hop to a jump",
        "hop to a punned jump", "punned jump over a moved instruction",
        "(several probes in a window)", "(evicted)", "(hits)"}) {
    EXPECT_GT(ways[way], 0) << way << " was never tried";
  }
}

}  // namespace
}  // namespace spile::patch
