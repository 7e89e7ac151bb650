// spile_coverage [options] FILE...: how many places take a probe, and why the others do not.
//   --all          also functions that only .eh_frame knows
//   --instructions every instruction: alone, and all of a function at once
//   --first N      only the first N functions
//   --every N      only every N-th function
//   --traps        an int3 where no jump fits, as with --allow-trap
//   --show N       print N refusals of each kind
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <map>
#include <string>

#include "user_engine/patch/code_map.h"
#include "user_engine/patch/coverage/elf_code.h"
#include "user_engine/patch/coverage/process_model.h"
#include "user_engine/patch/placement.h"

namespace {

using namespace spile;
using namespace spile::patch;

/// The figures are about code and address space; an engine limits the mappings.
constexpr size_t kUnlimited = SIZE_MAX;

struct Options {
  bool all = false, instructions = false, traps = false;
  size_t show = 0, limit = SIZE_MAX, every = 1;
};

/// Processor time: the machine may be busy with other things.
class Stopwatch {
 public:
  double seconds() const { return now() - begin_; }

 private:
  static double now() {
    timespec t{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_nsec) * 1e-9;
  }
  double begin_ = now();
};

/// What became of a number of requests.
struct Tally {
  bool traps = false;
  double planning_seconds = 0;
  size_t asked = 0, accepted = 0, flags_live = 0, edits = 0, pages = 0, max_pages = 0;
  std::map<std::string, size_t> ways;
  std::map<std::string, std::vector<std::string>> refusals;

  double percent(size_t n) const {
    return 100.0 * static_cast<double>(n) / static_cast<double>(std::max<size_t>(asked, 1));
  }

  void refuse(const Refusal& r) {
    refusals[std::string(to_string(r.kind))].push_back(
        r.instruction.empty() ? fmt::format("{}: {}", r.address, r.reason)
                              : fmt::format("{} ({}): {}", r.address, r.instruction, r.reason));
  }

  /// What is refused is asked for as an int3.
  void refuse(const ElfCode& code, TargetAddr site, const Refusal& r) {
    if (traps) {
      const Outcome trap = plan_traps(code.module, {&site, 1}).front();
      if (trap) {
        ++accepted;
        flags_live += trap->probed.front().flags_live;
        ++ways[std::string(to_string(trap->mechanism))];
        return;
      }
    }
    refuse(r);
  }

  void print(std::string_view title, size_t show) const {
    fmt::print("  {:34} {:9} {:9.4f} %\n", title, accepted, percent(accepted));
    for (const auto& [way, n] : ways) fmt::print("    {:32} {:9} {:9.4f} %\n", way, n, percent(n));
    fmt::print("    {:32} {:9} {:9.4f} %\n", "(flags live)", flags_live, percent(flags_live));
    fmt::print("    {:32} {:9}\n", "(most pages of stones at once)", max_pages);
    for (const auto& [kind, reasons] : refusals) {
      fmt::print("    refused: {:23} {:9} {:9.4f} %\n", kind, reasons.size(),
                 percent(reasons.size()));
      const size_t n = std::min(show, reasons.size());
      // Spread over the file: neighbours look alike.
      for (size_t i = 0; i < n; ++i) fmt::print("        {}\n", reasons[i * reasons.size() / n]);
    }
  }
};

/// "hop to a jump at 0x..." -> "hop to a jump"
std::string way_of(const Placement& placement) {
  return placement.how.substr(0, placement.how.find(" at 0x"));
}

/// All of `sites` at once.
void count_together(const ElfCode& code, std::span<const TargetAddr> sites, Tally& tally) {
  const Stopwatch watch;
  Plans plans = plan_windows(code.module, sites);
  tally.planning_seconds = watch.seconds();
  std::vector<const SitePlan*> pointers;
  for (const SitePlan& plan : plans.sites) pointers.push_back(&plan);
  StoneSpace space = process_model(code, kUnlimited);
  const Placements placements = place_short_sites(code.module, pointers, space);
  size_t pages = 0;
  for (const auto& range : space.pages())
    pages += static_cast<size_t>(range.end - range.start) / StoneSpace::kPageBytes;
  tally.max_pages = std::max(tally.max_pages, pages);
  for (size_t i = 0; i < plans.outcomes.size(); ++i) {
    const auto& outcome = plans.outcomes[i];
    ++tally.asked;
    if (!outcome) {
      tally.refuse(code, sites[i], outcome.error());
      continue;
    }
    const SitePlan& plan = plans.sites[outcome->site];
    if (const auto refused = placements.refused.find(outcome->site);
        refused != placements.refused.end()) {
      tally.refuse(code, sites[i], refused->second);
      continue;
    }
    ++tally.accepted;
    const auto head = std::ranges::find(plan.probed, outcome->offset, &ProbedHead::offset);
    tally.flags_live += head->flags_live;
    const auto placed = placements.placed.find(outcome->site);
    const bool is_short = plan.mechanism == Mechanism::kShort;
    ++tally.ways[is_short ? way_of(placed->second) : std::string(to_string(plan.mechanism))];
  }
}

/// Each site as if it were the only one.
void count_alone(const ElfCode& code, std::span<const TargetAddr> sites, Tally& tally) {
  const auto outcomes = plan_sites(code.module, sites);
  std::vector<SitePlan> shorts;
  for (size_t i = 0; i < outcomes.size(); ++i) {
    const Outcome& o = outcomes[i];
    ++tally.asked;
    if (!o) {
      tally.refuse(code, sites[i], o.error());
    } else if (o->mechanism == Mechanism::kShort) {
      shorts.push_back(*o);
    } else {
      ++tally.accepted;
      tally.flags_live += o->probed.front().flags_live;
      ++tally.ways[std::string(to_string(o->mechanism))];
    }
  }
  const auto placements = place_each_alone(code.module, shorts, process_model(code, kUnlimited));
  for (size_t i = 0; i < placements.size(); ++i) {
    if (!placements[i]) {
      tally.refuse(code, shorts[i].site, placements[i].error());
      continue;
    }
    ++tally.accepted;
    tally.flags_live += shorts[i].probed.front().flags_live;
    ++tally.ways[way_of(*placements[i])];
  }
}

/// Every instruction of the functions that begin at `entries`: what control can reach, so no
/// padding between them.
std::vector<TargetAddr> instructions_of(const ElfCode& code, std::span<const TargetAddr> entries) {
  const CodeMap map(code.module);
  std::vector<TargetAddr> all;
  for (const TargetAddr entry : entries) {
    const FunctionSpan* f = map.function_at(entry);
    if (f == nullptr || f->start != entry) continue;
    const Sweep swept = sweep(map, map.region_at(entry));
    bool reached = true;
    for (const SweptInsn& insn : swept.insns) {
      const bool padding =
          insn.shape.kind == x86::Kind::kNop || insn.shape.kind == x86::Kind::kBreakpoint;
      if (!reached && padding) continue;
      all.push_back(swept.address(insn));
      reached = !insn.shape.ends_flow();
    }
  }
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

std::vector<TargetAddr> chosen(const std::vector<TargetAddr>& entries, const Options& options) {
  std::vector<TargetAddr> some;
  for (size_t i = 0; i < entries.size() && some.size() < options.limit; i += options.every)
    some.push_back(entries[i]);
  return some;
}

int report(const std::string& path, const Options& options) {
  auto code = read_elf_code(path);
  if (!code) {
    fmt::print(stderr, "{}\n", code.error().message);
    return 1;
  }
  const auto entries = chosen(options.all ? code->entries : code->symbols, options);
  size_t text_bytes = 0;
  for (const Bytes& t : code->module.text) text_bytes += t.bytes.size();
  fmt::print("{}: {:.1f} MB of text\n", path, static_cast<double>(text_bytes) / 1e6);
  const auto show = [&](const char* title, std::span<const TargetAddr> sites, auto count) {
    Tally tally;
    tally.traps = options.traps;
    const Stopwatch watch;
    count(*code, sites, tally);
    tally.print(fmt::format("{} ({})", title, tally.asked), options.show);
    fmt::print("    {:32} {:9.1f} ms, windows {:.1f} ms\n", "(processor time)",
               watch.seconds() * 1e3, tally.planning_seconds * 1e3);
  };
  show("entries at once", entries, count_together);
  if (!options.instructions) return 0;
  const auto instructions = instructions_of(*code, entries);
  show("each instruction", instructions, count_alone);
  show("all instructions", instructions, count_together);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  int status = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const auto number = [&] { return std::strtoul(argv[++i], nullptr, 10); };
    if (arg == "--all") {
      options.all = true;
    } else if (arg == "--instructions") {
      options.instructions = true;
    } else if (arg == "--traps") {
      options.traps = true;
    } else if (arg == "--show" && i + 1 < argc) {
      options.show = number();
    } else if (arg == "--first" && i + 1 < argc) {
      options.limit = number();
    } else if (arg == "--every" && i + 1 < argc) {
      options.every = std::max<size_t>(1, number());
    } else {
      status |= report(arg, options);
    }
  }
  return status;
}
