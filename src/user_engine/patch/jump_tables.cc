// Where indirect jumps go.
//
// A switch is compiled to a jump through a table, in one of these forms (GCC, Clang, rustc, Go):
//
//   lea table(%rip),%rdx; movslq (%rdx,%rax,4),%rax; add %rdx,%rax; jmp *%rax     entries relative
//   to the table lea base(%rip),%rdx;  lea table(%rip),%rcx; movslq (%rcx,%rax,4) ... entries
//   relative to code (a label) jmp *table(,%rax,8) absolute entries lea table(%rip),%rdx; jmp
//   *(%rdx,%rax,8)                                      absolute entries
//
// Absolute entries are pointers in data, which ModuleCode::code_pointers has. For relative ones,
// every constant that a region with an indirect jump takes the address of is read as a table,
// against itself and against every code address that the region takes, for as long as entries land
// in text. That reads too much (the tables behind, for one), never too little. A jump through a
// register that was computed but where no table is found is reported as unresolved.
#include <algorithm>
#include <cstring>
#include <set>

#include "user_engine/patch/entrances.h"

namespace spile::patch {
namespace {

using x86::Kind;
using x86::Shape;

constexpr uint64_t kMaxEntries = 1 << 16;
/// Up to this share of a module's functions it pays to look for the parts of those first.
constexpr size_t kFewOfAll = 4;
constexpr int64_t kMaxPairedRegionBytes = 1 << 18;
constexpr size_t kMaxLookBack = 256;
/// A table may have entries elsewhere (cold blocks), but this many different ones in a row are
/// another table's.
constexpr int kMaxForeignRun = 32;

/// ff /4 somewhere in the bytes: any indirect jump has it, few other places do.
bool may_jump_indirectly(std::span<const uint8_t> bytes) {
  for (size_t i = 0; i + 1 < bytes.size(); ++i) {
    if (bytes[i] == 0xff && (bytes[i + 1] & 0x38) == 0x20) return true;
  }
  return false;
}

bool is_lea(const Shape& s) {
  return s.map == 0 && s.opcode == 0x8d;
}
/// add, or, adc, ..., cmp r/m,r and r,r/m: 00..3b.
bool is_arithmetic(const Shape& s) {
  return s.map == 0 && s.opcode < 0x3c;
}

/// How the register of an indirect jump was made.
enum class Origin { kPointer, kComputed };

/// `reg` of mov %reg,%other or the like: where its value came from; nullopt if this is no such
/// move.
std::optional<unsigned> moved_from(const x86::Insn& insn) {
  const bool move =
      insn.map == 0 && (insn.opcode == 0x8b || insn.opcode == 0x89) && (insn.modrm >> 6) == 3;
  if (!move) return std::nullopt;
  const bool to_rm = insn.opcode == 0x89;
  return to_rm ? (insn.modrm >> 3 & 7) | (insn.rex & 4) << 1
               : (insn.modrm & 7) | (insn.rex & 1) << 3;
}

bool is_cmov(const x86::Insn& insn) {
  return insn.map == 1 && (insn.opcode & 0xf0) == 0x40;
}

/// An instruction that makes a jump target out of a table's entry. Loads of 64 bits, pops, xor
/// (glibc's pointer guard), a lea of code and the like make pointers.
bool computes_target(const CodeMap& map, const x86::Insn& insn, TargetAddr at) {
  if (is_lea(insn) && insn.rip_relative) return !map.is_text(insn.rip_target(at));
  const bool half_load = insn.map == 0 && insn.opcode == 0x8b && (insn.rex & 8) == 0;
  const bool movslq = insn.map == 0 && insn.opcode == 0x63;
  const bool is_xor = (insn.opcode & 0x38) == 0x30;
  return is_lea(insn) || half_load || movslq || (is_arithmetic(insn) && !is_xor);
}

/// Finds what wrote a register, along all ways that lead to an instruction.
class OriginSearch {
 public:
  OriginSearch(const CodeMap& map, const Sweep& code) : map_(map), code_(code) {
    for (size_t i = 0; i < code.insns.size(); ++i) {
      if (code.insns[i].shape.is_direct_branch() && code.insns[i].shape.kind != Kind::kCall) {
        branches_.push_back({code.insns[i].shape.branch_target(code.address(code.insns[i])), i});
      }
    }
    std::sort(branches_.begin(), branches_.end());
  }

  Origin of(size_t jump, unsigned reg) {
    seen_.clear();
    pending_ = {};
    add_predecessors(jump, reg);
    for (size_t steps = 0; !pending_.empty(); ++steps) {
      if (steps == kMaxLookBack) return Origin::kComputed;
      const auto [i, r] = pending_.back();
      pending_.pop_back();
      if (step(i, r)) return Origin::kComputed;
    }
    return Origin::kPointer;  // every way ends in a pointer or in an argument
  }

 private:
  /// True if this computes the register.
  bool step(size_t i, unsigned reg) {
    const auto insn = x86::decode(map_.text_from(code_.address(code_.insns[i])));
    if (!insn) return true;
    if (insn->kind == Kind::kCall || insn->kind == Kind::kCallIndirect) {
      const bool callee_saved = reg == x86::kRbx || reg == x86::kRbp || (reg >= 12 && reg <= 15);
      if (callee_saved) add_predecessors(i, reg);
      return false;
    }
    if ((insn->writes >> reg & 1) == 0) {
      add_predecessors(i, reg);
    } else if (is_cmov(*insn)) {
      add_predecessors(i, reg);
      const unsigned other = (insn->modrm & 7) | (insn->rex & 1) << 3;
      if ((insn->modrm >> 6) == 3) add_predecessors(i, other);
    } else if (const auto source = moved_from(*insn)) {
      add_predecessors(i, *source);
    } else {
      return computes_target(map_, *insn, code_.address(code_.insns[i]));
    }
    return false;
  }

  void add_predecessors(size_t i, unsigned reg) {
    if (!seen_.insert({i, reg}).second) return;
    if (i > 0 && !code_.insns[i - 1].shape.ends_flow()) pending_.push_back({i - 1, reg});
    const TargetAddr at = code_.address(code_.insns[i]);
    for (auto it = std::lower_bound(branches_.begin(), branches_.end(), std::pair{at, size_t{0}});
         it != branches_.end() && it->first == at; ++it) {
      pending_.push_back({it->second, reg});
    }
  }

  const CodeMap& map_;
  const Sweep& code_;
  std::vector<std::pair<TargetAddr, size_t>> branches_;
  std::vector<std::pair<size_t, unsigned>> pending_;
  std::set<std::pair<size_t, unsigned>> seen_;
};

bool jumps_into(const Sweep& code, const Region& region) {
  for (const SweptInsn& insn : code.insns) {
    if (!insn.shape.is_direct_branch() || insn.shape.kind == Kind::kCall) continue;
    if (region.contains(insn.shape.branch_target(code.address(insn)))) return true;
  }
  return false;
}

/// What one region takes the address of, what its indirect jumps need, and where its tables lead.
class RegionTables {
 public:
  RegionTables(const CodeMap& map, const Sweep& code) : map_(map), code_(code) { collect(); }

  bool has_jumps() const { return jumps_; }
  /// A jump through a register that was computed.
  std::optional<TargetAddr> computed_jump() const {
    return computed_jumps_.empty() ? std::nullopt : std::optional(computed_jumps_.back());
  }
  const std::vector<TargetAddr>& computed_jumps() const { return computed_jumps_; }

  /// Labels of a region as large as no compiler makes functions are not paired with its tables:
  /// that would take forever.
  bool labels_ignored() const { return !bases_.empty() && !pairs_labels(); }

  /// Calls visit(target) for every entry of every table. Targets outside the region may be those of
  /// other tables.
  template <typename Visit>
  void for_each_target(Visit visit) const {
    for (const TargetAddr table : tables_) {
      for (const uint64_t bias : biases_) read_table(table + bias, visit);
    }
  }

 private:
  void collect() {
    for (size_t i = 0; i < code_.insns.size(); ++i) {
      const Shape& s = code_.insns[i].shape;
      const TargetAddr at = code_.address(code_.insns[i]);
      if (is_lea(s) && s.rip_relative) add_constant(s.rip_target(at));
      // Modules that lie low name tables by their absolute address: mov $table,%edx; mov
      // table(,%rax,4),%eax.
      if (s.map == 0 && s.opcode >= 0xb8 && s.opcode <= 0xbf)
        add_constant(TargetAddr(static_cast<uint64_t>(s.imm)));
      if (s.disp_bytes == 4 && !s.rip_relative)
        add_constant(TargetAddr(static_cast<uint64_t>(s.disp)));
      add_bias(s);
      if (s.kind == Kind::kJmpIndirect) add_jump(i, s, at);
    }
  }

  void add_constant(TargetAddr a) {
    if (code_.region.contains(a)) bases_.insert(a);
    if (map_.is_read_only(a)) tables_.insert(a);
  }

  /// (base,index,4) with a displacement: the table begins elsewhere than where lea points.
  void add_bias(const Shape& s) {
    const bool by_sib = s.modrm_offset != 0 && (s.modrm >> 6) != 3 && (s.modrm & 7) == 4;
    if (by_sib && (s.sib >> 6) == 2 && s.disp_bytes == 1)
      biases_.insert(static_cast<uint64_t>(s.disp));
  }

  void add_jump(size_t i, const Shape& s, TargetAddr at) {
    jumps_ = true;
    if ((s.modrm >> 6) != 3) return;  // through memory: the entries are pointers
    const unsigned reg = (s.modrm & 7) | (s.rex & 1) << 3;
    if (!origins_) origins_.emplace(map_, code_);
    if (origins_->of(i, reg) == Origin::kComputed) computed_jumps_.push_back(at);
  }

  template <typename Visit>
  void read_table(TargetAddr table, Visit visit) const {
    read_entries<int32_t>(table, table, visit);
    read_entries<int32_t>(table, TargetAddr(0), visit);
    if (pairs_labels()) {
      for (const TargetAddr base : bases_) read_entries<int32_t>(table, base, visit);
    }
    read_entries<int64_t>(table, TargetAddr(0), visit);
  }

  template <typename Entry, typename Visit>
  void read_entries(TargetAddr table, TargetAddr base, Visit visit) const {
    int foreign_run = 0;
    TargetAddr last_foreign;
    for (uint64_t i = 0; i < kMaxEntries; ++i) {
      const auto entry = map_.read<Entry>(table + i * sizeof(Entry));
      if (!entry) return;
      const TargetAddr target = base + static_cast<uint64_t>(static_cast<int64_t>(*entry));
      if (code_.region.contains(target)) {
        if (!may_be_head(target)) return;
        foreign_run = 0;
      } else {
        if (!map_.is_text(target)) return;
        if (target != last_foreign && ++foreign_run > kMaxForeignRun) return;
        last_foreign = target;
      }
      visit(target);
    }
  }

  bool pairs_labels() const {
    return code_.region.end - code_.region.start <= kMaxPairedRegionBytes;
  }

  bool may_be_head(TargetAddr target) const {
    const SweptInsn* insn = code_.covering(target);
    return insn == nullptr || code_.address(*insn) == target;
  }

  const CodeMap& map_;
  const Sweep& code_;
  bool jumps_ = false;
  std::vector<TargetAddr> computed_jumps_;
  std::optional<OriginSearch> origins_;
  std::set<TargetAddr> tables_, bases_;
  std::set<uint64_t> biases_ = {0};
};

/// Judges the targets of one region's tables.
class TableJudge {
 public:
  TableJudge(const CodeMap& map, const Areas& areas, const Sweep& code, TableScan& out)
      : map_(map), areas_(areas), code_(code), tables_(map, code), out_(out) {}

  RegionJumps region_jumps() const {
    RegionJumps jumps;
    if (!tables_.has_jumps()) return jumps;
    std::set<TargetAddr> elsewhere;
    bool found = false;
    tables_.for_each_target([&](TargetAddr target) {
      found |= code_.region.contains(target);
      if (!code_.region.contains(target)) elsewhere.insert(target);
    });
    for (const TargetAddr target : elsewhere) {
      if (leads_to_part(target)) jumps.parts.push_back(target);
    }
    if ((found || !jumps.parts.empty()) && !tables_.labels_ignored())
      jumps.by_table = tables_.computed_jumps();
    return jumps;
  }

  void run() {
    if (!tables_.has_jumps()) return;
    bool found = false;
    std::set<TargetAddr> inside;
    tables_.for_each_target([&](TargetAddr target) {
      found |= code_.region.contains(target);
      if (areas_.is_inside(target)) inside.insert(target);
    });
    for (const TargetAddr target : inside) {
      if (code_.region.contains(target) || leads_to_part(target)) {
        out_.entrances.push_back({code_.region.start, target, RefusalKind::kJumpTable, true});
      }
    }
    if (tables_.computed_jump() && (tables_.labels_ignored() || (!found && !found_in_parts()))) {
      out_.unresolved.push_back(
          {*tables_.computed_jump(), code_.region.start, RefusalKind::kUnknownJump, true});
    }
  }

 private:
  /// A target elsewhere is real only if it is an instruction of another part of this function.
  bool leads_to_part(TargetAddr target) const {
    const Sweep other = sweep(map_, map_.region_at(target));
    const SweptInsn* insn = other.covering(target);
    if (insn != nullptr && other.address(*insn) != target) return false;
    return is_part(other);
  }

  /// Two regions are parts of one function if one jumps into the other: the compiler moves cold
  /// blocks away, and their symbols are often stripped.
  bool is_part(const Sweep& other) const {
    if (jumps_into(code_, other.region) || jumps_into(other, code_.region)) return true;
    bool leads_here = false;
    const RegionTables tables(map_, other);
    if (!tables.has_jumps()) return false;
    tables.for_each_target([&](TargetAddr target) { leads_here |= code_.region.contains(target); });
    return leads_here;
  }

  bool found_in_parts() const {
    std::set<TargetAddr> regions;
    tables_.for_each_target(
        [&](TargetAddr target) { regions.insert(map_.region_at(target).start); });
    return std::any_of(regions.begin(), regions.end(), [&](TargetAddr start) {
      return is_part(sweep(map_, map_.region_at(start)));
    });
  }

  const CodeMap& map_;
  const Areas& areas_;
  const Sweep& code_;
  RegionTables tables_;
  TableScan& out_;
};

/// The regions whose tables may lead into the areas, without decoding the whole module: those of
/// the areas, and every other part of their functions as TableJudge::is_part defines it.
class PartFinder {
 public:
  PartFinder(const CodeMap& map, const Areas& areas) : map_(map) {
    for (const Areas::Stretch& s : areas.stretches()) {
      for (TargetAddr at = s.start; at < s.end; at = map_.region_at(at).end) {
        if (!map_.is_text(at)) break;
        own_.insert(map_.region_at(at).start);
      }
    }
  }

  std::set<TargetAddr> run() {
    if (own_.empty()) return {};
    parts_ = own_;
    own_end_ = map_.region_at(*own_.rbegin()).end;
    for (const TargetAddr start : own_) add_outgoing(start);
    for (const Bytes& range : map_.module().text) add_incoming(range);
    return std::move(parts_);
  }

 private:
  void add(std::set<TargetAddr>& regions, TargetAddr at) {
    if (map_.is_text(at)) regions.insert(map_.region_at(at).start);
  }

  void add_outgoing(TargetAddr start) {
    const Sweep code = sweep(map_, map_.region_at(start));
    for (const SweptInsn& insn : code.insns) {
      const bool leaves = insn.shape.is_direct_branch() && insn.shape.kind != Kind::kCall;
      if (leaves) add(parts_, insn.shape.branch_target(code.address(insn)));
    }
    if (!may_jump_indirectly(map_.text_of(code.region))) return;
    RegionTables(map_, code).for_each_target([this](TargetAddr target) { add(parts_, target); });
  }

  /// Whatever looks like jmp rel32 or jcc rel32 into one of the regions.
  void add_incoming(const Bytes& range) {
    for (size_t i = 0; i + 6 <= range.bytes.size(); ++i) {
      const uint8_t b = range.bytes[i];
      if (b != 0xe9 && b != 0x0f) continue;
      if (b == 0x0f && (range.bytes[i + 1] & 0xf0) != 0x80) continue;
      const size_t field = b == 0xe9 ? i + 1 : i + 2;
      int32_t distance;
      std::memcpy(&distance, &range.bytes[field], sizeof distance);
      const TargetAddr target =
          range.start + field + 4 + static_cast<uint64_t>(static_cast<int64_t>(distance));
      if (is_own(target)) add(parts_, range.start + i);
    }
    // Short branches come from next door.
    for (const TargetAddr start : own_) {
      const Region region = map_.region_at(start);
      for (uint64_t near = 1; near <= 128; near += 16) {
        add(parts_, region.start - near);
        add(parts_, region.end + near);
      }
    }
  }

  bool is_own(TargetAddr target) const {
    if (target < *own_.begin() || target >= own_end_ || !map_.is_text(target)) return false;
    const TargetAddr candidate = *std::prev(own_.upper_bound(target));
    return map_.region_at(candidate).contains(target);
  }

  const CodeMap& map_;
  std::set<TargetAddr> own_, parts_;
  TargetAddr own_end_;
};

void scan_region(const CodeMap& map, const Areas& areas, const Region& region, TableScan& out) {
  if (!may_jump_indirectly(map.text_of(region))) return;
  const Sweep code = sweep(map, region);
  TableJudge(map, areas, code, out).run();
  // What was not decoded may hold a table jump that nobody saw.
  if (!code.complete && !region.is_gap) {
    out.unresolved.push_back({code.decoded_to, region.start, RefusalKind::kUndecodable, true});
  }
}

}  // namespace

RegionJumps find_region_jumps(const CodeMap& map, const Sweep& code) {
  if (!may_jump_indirectly(map.text_of(code.region))) return {};
  const Areas none({}, {});
  TableScan unused;
  return TableJudge(map, none, code, unused).region_jumps();
}

TableScan find_table_targets(const CodeMap& map, const Areas& areas) {
  TableScan out;
  if (areas.empty()) return out;
  if (areas.stretches().size() * kFewOfAll <= map.module().functions.size()) {
    for (const TargetAddr start : PartFinder(map, areas).run()) {
      scan_region(map, areas, map.region_at(start), out);
    }
  } else {
    for (const Region& region : map.regions()) scan_region(map, areas, region, out);
  }
  return out;
}

}  // namespace spile::patch
