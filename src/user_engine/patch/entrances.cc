#include "user_engine/patch/entrances.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace spile::patch {

namespace {

void set_bits(std::vector<uint64_t>& bits, uint64_t from, uint64_t to) {
  for (; from < to && (from & 63) != 0; ++from) bits[from >> 6] |= uint64_t{1} << (from & 63);
  for (; from + 64 <= to; from += 64) bits[from >> 6] = ~uint64_t{0};
  for (; from < to; ++from) bits[from >> 6] |= uint64_t{1} << (from & 63);
}

std::vector<Areas::Stretch> joined(std::vector<Areas::Stretch> stretches) {
  const auto by_start = [](const auto& a, const auto& b) { return a.start < b.start; };
  if (!std::is_sorted(stretches.begin(), stretches.end(), by_start))
    std::sort(stretches.begin(), stretches.end(), by_start);
  std::vector<Areas::Stretch> out;
  for (const Areas::Stretch& s : stretches) {
    if (s.end <= s.start) continue;
    if (out.empty() || out.back().end < s.start)
      out.push_back(s);
    else
      out.back().end = std::max(out.back().end, s.end);
  }
  return out;
}

}  // namespace

Areas::Areas(std::vector<Stretch> inside, std::span<const TargetAddr> sites) {
  inside = joined(std::move(inside));
  stretches_ = inside;
  const auto covered = [&](TargetAddr a) {
    const auto next = std::upper_bound(inside.begin(), inside.end(), a,
                                       [](TargetAddr x, const Stretch& s) { return x < s.start; });
    return next != inside.begin() && a < std::prev(next)->end;
  };
  for (const TargetAddr site : sites) {
    if (!covered(site)) stretches_.push_back({site, site + 1});
  }
  stretches_ = joined(std::move(stretches_));
  if (stretches_.empty()) return;
  base_ = stretches_.front().start.value;
  span_ = stretches_.back().end.value - base_;
  inside_.resize(span_ / 64 + 1);
  sites_.resize(span_ / 64 + 1);
  for (const Stretch& s : inside) set_bits(inside_, s.start.value - base_, s.end.value - base_);
  for (const TargetAddr site : sites) {
    const uint64_t i = site.value - base_;
    sites_[i >> 6] |= uint64_t{1} << (i & 63);
    inside_[i >> 6] &= ~(uint64_t{1} << (i & 63));
  }
}

namespace {

/// What a byte may be the start of, seen alone.
enum class Lead : uint8_t {
  kNothing,
  kRel32,     ///< e8, e9
  kRel8,      ///< 70..7f, e0..e3, eb
  kEscape,    ///< 0f: 0f 80..8f rel32
  kXbegin,    ///< c7: c7 f8 rel32
  kModrmRip,  ///< a ModRM byte with mod 0, rm 5: disp32 follows
};

constexpr std::array<Lead, 256> make_leads() {
  std::array<Lead, 256> leads{};
  for (unsigned b = 0; b < 256; ++b) {
    if ((b & 0xc7) == 0x05) leads[b] = Lead::kModrmRip;
    if ((b >= 0x70 && b <= 0x7f) || (b >= 0xe0 && b <= 0xe3) || b == 0xeb) leads[b] = Lead::kRel8;
  }
  leads[0xe8] = leads[0xe9] = Lead::kRel32;
  leads[0x0f] = Lead::kEscape;
  leads[0xc7] = Lead::kXbegin;
  return leads;
}
constexpr auto kLeads = make_leads();

/// A byte pattern that names an address inside an area. `source` is the pattern's first byte: an
/// opcode byte (behind prefixes, if any), a ModRM byte, or the first byte of an absolute address.
struct Candidate {
  TargetAddr source, target;
  enum class Form : uint8_t { kBranch, kRipRelative, kAbsolute } form = Form::kBranch;
};

/// Pass one over one stretch of text.
class PatternScan {
 public:
  PatternScan(const Bytes& range,
              const Areas& areas,
              const PlanRules& rules,
              std::vector<Candidate>& out)
      : bytes_(range.bytes), start_(range.start), areas_(areas), rules_(rules), out_(out) {}

  void run() {
    for (size_t i = 0; i < bytes_.size(); ++i) {
      const Lead lead = kLeads[bytes_[i]];
      if (lead != Lead::kNothing) look(i, lead);
    }
    // Absolute addresses fit an instruction's 32-bit fields only in modules that lie low (not
    // position-independent).
    if (rules_.code_references && areas_.lowest().value < uint64_t{1} << 32) scan_absolute();
  }

 private:
  void look(size_t i, Lead lead) {
    switch (lead) {
      case Lead::kRel8: return branch8(i);
      case Lead::kRel32: return branch32(i, 1);
      case Lead::kEscape:
        if (i + 1 < bytes_.size() && (bytes_[i + 1] & 0xf0) == 0x80) branch32(i, 2);
        return;
      case Lead::kXbegin:
        if (i + 1 < bytes_.size() && bytes_[i + 1] == 0xf8) branch32(i, 2);
        return;
      case Lead::kModrmRip: return rip_relative(i);
      case Lead::kNothing: return;
    }
  }

  void branch8(size_t i) {
    if (i + 2 > bytes_.size()) return;
    add_branch(i,
               start_ + i + 2 +
                   static_cast<uint64_t>(static_cast<int64_t>(static_cast<int8_t>(bytes_[i + 1]))));
  }

  void branch32(size_t i, size_t opcode_bytes) {
    if (i + opcode_bytes + 4 > bytes_.size()) return;
    add_branch(i, start_ + i + opcode_bytes + 4 + disp32(i + opcode_bytes));
  }

  void add_branch(size_t i, TargetAddr target) {
    if (areas_.is_inside(target)) out_.push_back({start_ + i, target, Candidate::Form::kBranch});
  }

  /// An immediate of 0, 1, 2 or 4 bytes may follow the displacement. Naming a site itself is
  /// harmless in a lea (it takes the function's address), reading it is not.
  void rip_relative(size_t i) {
    if (!rules_.code_references || i + 5 > bytes_.size()) return;
    const TargetAddr base = start_ + i + 5 + disp32(i + 1);
    const bool is_lea = i > 0 && bytes_[i - 1] == 0x8d;
    for (const uint64_t imm_bytes : {0, 1, 2, 4}) {
      const TargetAddr target = base + imm_bytes;
      if (areas_.is_inside(target) || (!is_lea && areas_.is_site(target))) {
        out_.push_back({start_ + i, target, Candidate::Form::kRipRelative});
      }
    }
  }

  void scan_absolute() {
    for (size_t i = 0; i + 4 <= bytes_.size(); ++i) {
      uint32_t value;
      std::memcpy(&value, &bytes_[i], sizeof value);
      const TargetAddr target(value);
      if (areas_.is_inside(target))
        out_.push_back({start_ + i, target, Candidate::Form::kAbsolute});
    }
  }

  uint64_t disp32(size_t i) const {
    int32_t value;
    std::memcpy(&value, &bytes_[i], sizeof value);
    return static_cast<uint64_t>(static_cast<int64_t>(value));
  }

  std::span<const uint8_t> bytes_;
  TargetAddr start_;
  const Areas& areas_;
  const PlanRules& rules_;
  std::vector<Candidate>& out_;
};

/// Whether the instruction at `at` is what the candidate's bytes look like.
bool matches(const Candidate& c, const x86::Shape& insn, TargetAddr at) {
  const auto field = [&](uint8_t offset) { return offset != 0 && at + offset == c.source; };
  switch (c.form) {
    case Candidate::Form::kBranch:
      return insn.is_direct_branch() && insn.branch_target(at) == c.target;
    case Candidate::Form::kRipRelative:
      return insn.rip_relative && insn.kind != x86::Kind::kNop && field(insn.modrm_offset) &&
             insn.rip_target(at) == c.target;
    case Candidate::Form::kAbsolute:
      if (insn.is_direct_branch() || insn.rip_relative) return false;
      return (field(insn.imm_offset) && static_cast<uint64_t>(insn.imm) == c.target.value) ||
             (field(insn.disp_offset) && static_cast<uint64_t>(insn.disp) == c.target.value);
  }
  return false;
}

/// Pass two: decodes where the candidates are. Remembers the last region, since candidates come in
/// order of address.
class Confirmer {
 public:
  explicit Confirmer(const CodeMap& map) : map_(map) {}

  std::optional<Entrance> confirm(const Candidate& c) {
    load_region(c.source);
    const auto kind = c.form == Candidate::Form::kBranch ? RefusalKind::kDirectBranch
                                                         : RefusalKind::kCodeReference;
    if (const auto at = certain_source(c))
      return Entrance{*at, c.target, kind, true, read_bytes(c, *at)};
    if (sweep_.is_trustworthy()) return std::nullopt;
    if (const auto at = possible_source(c))
      return Entrance{*at, c.target, kind, false, read_bytes(c, *at)};
    return std::nullopt;
  }

 private:
  /// lea takes the address only; of a number that is an address of code, nobody knows.
  uint8_t read_bytes(const Candidate& c, TargetAddr source) const {
    if (c.form != Candidate::Form::kRipRelative) return 0;
    const auto insn = x86::decode(map_.text_from(source));
    if (!insn || (insn->map == 0 && insn->opcode == 0x8d)) return 0;
    return std::max<uint8_t>(1, insn->memory_bytes);
  }

  void load_region(TargetAddr at) {
    if (at >= sweep_.region.start && at < sweep_.region.end) return;
    sweep_ = sweep(map_, map_.region_at(at));
  }

  std::optional<TargetAddr> certain_source(const Candidate& c) const {
    const SweptInsn* insn = sweep_.covering(c.source);
    if (insn != nullptr && matches(c, insn->shape, sweep_.address(*insn)))
      return sweep_.address(*insn);
    for (const SweptInsn& other : sweep_.overlapped) {
      if (sweep_.address(other) <= c.source && matches(c, other.shape, sweep_.address(other))) {
        return sweep_.address(other);
      }
    }
    return std::nullopt;
  }

  /// The instruction may begin some bytes before the pattern: prefixes, opcode bytes.
  std::optional<TargetAddr> possible_source(const Candidate& c) const {
    for (uint64_t back = 0; back < x86::kMaxInsnBytes; ++back) {
      const TargetAddr at = c.source - back;
      if (at < sweep_.region.start) break;
      const auto shape = x86::decode_shape(map_.text_from(at));
      if (shape && matches(c, *shape, at) && may_be_instruction(map_, at)) return at;
    }
    return std::nullopt;
  }

  const CodeMap& map_;
  Sweep sweep_;
};

}  // namespace

std::vector<Entrance> find_references(const CodeMap& map,
                                      const Areas& areas,
                                      const PlanRules& rules) {
  std::vector<Entrance> entrances;
  if (areas.empty()) return entrances;
  Confirmer confirmer(map);
  for (const Bytes& range : map.module().text) {
    std::vector<Candidate> candidates;
    PatternScan(range, areas, rules, candidates).run();
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const Candidate& a, const Candidate& b) { return a.source < b.source; });
    for (const Candidate& c : candidates) {
      if (!rules.direct_branches && c.form == Candidate::Form::kBranch) continue;
      if (const auto entrance = confirmer.confirm(c)) entrances.push_back(*entrance);
    }
  }
  return entrances;
}

}  // namespace spile::patch
