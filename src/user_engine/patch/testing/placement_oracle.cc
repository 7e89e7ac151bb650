#include "user_engine/patch/testing/placement_oracle.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "user_engine/patch/code_map.h"
#include "x86/format.h"

namespace spile::patch {

PlacementOracle::PlacementOracle(const ModuleCode& module) : module_(module) {
  const CodeMap map(module);
  for (const TargetAddr a : module.code_pointers) targets_.insert(a.value);
  for (const Function& f : module.functions) targets_.insert(f.start.value);
  bool reached = true;
  for (const Region& region : map.regions()) {
    const Sweep code = sweep(map, region);
    if (region.is_gap) {
      // Nops right behind code that ends.
      const auto bytes = map.text_of(region);
      const size_t size = reached ? 0 : x86::padding_bytes(bytes);
      for (size_t i = 0; i < size; ++i) padding_.insert((region.start + i).value);
      reached = true;
      continue;
    }
    reached = true;
    for (const SweptInsn& insn : code.insns) {
      const TargetAddr at = code.address(insn);
      const x86::Shape& s = insn.shape;
      if (s.is_direct_branch()) targets_.insert(s.branch_target(at).value);
      if (s.kind == x86::Kind::kCall || s.kind == x86::Kind::kCallIndirect)
        targets_.insert((at + s.length).value);
      const bool nothing = s.kind == x86::Kind::kNop || s.kind == x86::Kind::kBreakpoint;
      if (!reached && nothing) {
        for (size_t i = 0; i < s.length; ++i) padding_.insert((at + i).value);
      } else {
        reached = !s.ends_flow();
      }
    }
  }
}

/// One check: the text as it is after some of the edits.
class Run {
 public:
  Run(const PlacementOracle& oracle, const std::vector<SitePlan>& sites, const Placements& placed)
      : oracle_(oracle) {
    for (size_t i = 0; i < sites.size(); ++i) {
      if (placed.refused.contains(i)) continue;
      const auto placement = placed.placed.find(i);
      if (placement != placed.placed.end())
        add(sites[i], placement->second.edits, placement->second.stone);
      else
        add_ordinary(sites[i]);
    }
    for (const Evicted& e : placed.evicted) add(e.plan, e.placement.edits, e.placement.stone);
  }

  std::string run(std::mt19937_64& random) {
    for (const Window& w : windows_) check_window(w);
    std::ranges::shuffle(steps_, random);
    std::ranges::stable_sort(steps_, {}, [](const Step& s) { return s.edit.level; });
    for (const Step& step : steps_) {
      if (!problem_.empty()) break;
      apply(step);
    }
    return problem_;
  }

 private:
  struct Window {
    SitePlan plan;
    TargetAddr leads_to;
    bool written = false;
  };
  struct Step {
    Edit edit;
    size_t window = 0;
    bool at_site = false;
  };

  void fail(std::string what) {
    if (problem_.empty()) problem_ = std::move(what);
  }

  void add(const SitePlan& plan, const std::vector<Edit>& edits, TargetAddr leads_to) {
    if (edits.empty() || edits.back().at != plan.site)
      return fail(fmt::format("the last edit of {} is not at the site", plan.site));
    for (size_t i = 0; i < edits.size(); ++i)
      steps_.push_back({edits[i], windows_.size(), i + 1 == edits.size()});
    windows_.push_back({plan, leads_to});
    check_stone(plan, leads_to);
  }

  void add_ordinary(const SitePlan& plan) {
    if (plan.written != kPatchBytes)
      return fail(fmt::format("the short site {} was neither placed nor refused", plan.site));
    // A detour somewhere within reach.
    const TargetAddr detour = plan.site + 0x30000000 + windows_.size() * 64;
    const auto jump = *patch_bytes(plan, detour);
    Edit edit{plan.site, {plan.before.begin(), plan.before.end()}, {jump.begin(), jump.end()}};
    steps_.push_back({std::move(edit), windows_.size(), true});
    windows_.push_back({plan, detour});
  }

  void check_stone(const SitePlan& plan, TargetAddr at) {
    const auto next = stones_.lower_bound(at.value);
    if ((next != stones_.end() && *next < stone_end(at).value) ||
        (next != stones_.begin() && stone_end(TargetAddr(*std::prev(next))) > at))
      fail(fmt::format("the stone of {} lies on another", plan.site));
    stones_.insert(at.value);
  }

  uint8_t original(TargetAddr a) const {
    for (const Bytes& t : oracle_.module_.text) {
      if (t.contains(a)) return t.bytes[static_cast<size_t>(a - t.start)];
    }
    return 0;
  }
  bool is_text(TargetAddr a) const {
    return std::ranges::any_of(oracle_.module_.text, [&](const Bytes& t) { return t.contains(a); });
  }
  uint8_t now(TargetAddr a) const {
    const auto it = changed_.find(a.value);
    return it == changed_.end() ? original(a) : it->second;
  }

  /// Nothing leads behind a window's first byte, as far as its bytes change or its probes go.
  void check_window(const Window& w) {
    const SitePlan& plan = w.plan;
    const uint64_t last_probe = plan.probed.empty() ? 0 : plan.probed.back().offset;
    const uint64_t end = (plan.site + std::max<uint64_t>(plan.written, last_probe + 1)).value;
    const auto way = oracle_.targets_.upper_bound(plan.site.value);
    if (way != oracle_.targets_.end() && *way < end)
      fail(fmt::format("{} is entered at {:#x}", plan.site, *way));
    size_t size = 0;
    for (size_t i = 0; i < plan.segment_starts().size(); ++i) {
      const auto segment = displaced_segment(plan, i, plan.site + 0x30000000 + size);
      if (!segment) return fail(fmt::format("{}: {}", plan.site, segment.error().message));
      size += segment->bytes.size();
    }
    if (size > *displaced_size_bytes(plan)) fail(fmt::format("{} is larger than said", plan.site));
  }

  /// Bytes that nothing reaches: behind a window's start, once its jump is there; padding.
  bool is_dead(TargetAddr a) const {
    for (const Window& w : windows_) {
      const TargetAddr end = std::max(w.plan.window_end(), w.plan.site + w.plan.written);
      if (w.written && a > w.plan.site && a < end) return true;
    }
    return oracle_.padding_.contains(a.value) && !oracle_.targets_.contains(a.value);
  }

  void apply(const Step& step) {
    const Edit& e = step.edit;
    const size_t size = e.before.size();
    if (size == 0 || size > 16 || e.after.size() != size) fail("an edit of a wrong size");
    if (e.at.value / 4096 != (e.at.value + size - 1) / 4096)
      fail(fmt::format("the edit at {} crosses a page", e.at));
    Window& own = windows_[step.window];
    if (step.at_site) own.written = true;
    for (size_t i = 0; i < size; ++i) {
      const TargetAddr a = e.at + i;
      if (changed_.contains(a.value)) fail(fmt::format("{} is edited twice", a));
      if (original(a) != e.before[i]) fail(fmt::format("{} is not what the edit says", a));
      if (!(step.at_site && i == 0) && !is_dead(a))
        fail(fmt::format("{} is live when the edit at {} changes it", a, e.at));
      changed_.emplace(a.value, e.after[i]);
    }
    for (const Window& w : windows_) {
      if (w.written) check_way(w);
    }
  }

  /// Whether the original code at `at` goes on, whatever happens, into the next page.
  bool runs_into_next_page(TargetAddr at) const {
    const uint64_t page = at.value / 4096;
    while (at.value / 4096 == page) {
      x86::Code bytes;
      for (size_t i = 0; i < x86::kMaxInsnBytes && is_text(at + i); ++i)
        bytes.push_back(original(at + i));
      const auto insn = x86::decode(bytes);
      if (!insn || (insn->kind != x86::Kind::kPlain && insn->kind != x86::Kind::kNop)) return false;
      at = at + insn->length;
    }
    return true;
  }

  /// From the site, jump after jump, to the stone or detour.
  void check_way(const Window& w) {
    TargetAddr at = w.plan.site;
    for (int hops = 0; hops < 3; ++hops) {
      x86::Code bytes;
      for (size_t i = 0; i < x86::kMaxInsnBytes && is_text(at + i); ++i)
        bytes.push_back(now(at + i));
      const auto insn = x86::decode(bytes);
      if (!insn || insn->kind != x86::Kind::kJmp || insn->operand16)
        return fail(
            fmt::format("no jump at {} on the way from {}: {}", at, w.plan.site, x86::hex(bytes)));
      const bool on_two_pages = at.value / 4096 != (at.value + insn->length - 1) / 4096;
      if (on_two_pages && !(hops == 0 && runs_into_next_page(at)))
        return fail(fmt::format("the jump at {} lies on two pages", at));
      at = insn->branch_target(at);
      if (at == w.leads_to) return;
      if (!is_text(at)) break;
    }
    fail(fmt::format("{} leads to {}, not to {}", w.plan.site, at, w.leads_to));
  }

  const PlacementOracle& oracle_;
  std::vector<Window> windows_;
  std::vector<Step> steps_;
  std::map<uint64_t, uint8_t> changed_;
  std::set<uint64_t> stones_;
  std::string problem_;
};

std::string PlacementOracle::check(const std::vector<SitePlan>& sites,
                                   const Placements& placements,
                                   std::mt19937_64& random) const {
  return Run(*this, sites, placements).run(random);
}

}  // namespace spile::patch
