#include "user_engine/patch/code_map.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

namespace spile::patch {
namespace {

/// The range of a sorted list that holds `at`.
const Bytes* range_at(const std::vector<Bytes>& ranges, TargetAddr at) {
  auto next = std::upper_bound(ranges.begin(), ranges.end(), at,
                               [](TargetAddr a, const Bytes& range) { return a < range.start; });
  if (next == ranges.begin() || !std::prev(next)->contains(at)) return nullptr;
  return &*std::prev(next);
}

std::vector<FunctionSpan> merge_aliases(const std::vector<Function>& functions) {
  std::vector<FunctionSpan> merged;
  for (const Function& f : functions) {
    if (merged.empty() || merged.back().start != f.start) {
      merged.push_back({f.start, f.end, f.name});
      continue;
    }
    merged.back().end = std::max(merged.back().end, f.end);
    if (merged.back().name.empty()) merged.back().name = f.name;
  }
  return merged;
}

bool starts_before(TargetAddr a, const FunctionSpan& f) {
  return a < f.start;
}

}  // namespace

CodeMap::CodeMap(const ModuleCode& module)
    : module_(module), functions_(merge_aliases(module.functions)) {
  const auto by_start = [](const auto& a, const auto& b) { return a.start < b.start; };
  SPILE_CHECK(std::is_sorted(module.text.begin(), module.text.end(), by_start));
  SPILE_CHECK(std::is_sorted(module.functions.begin(), module.functions.end(), by_start));
  SPILE_CHECK(std::is_sorted(module.read_only.begin(), module.read_only.end(), by_start));
  SPILE_CHECK(std::is_sorted(module.code_pointers.begin(), module.code_pointers.end()));
  std::erase_if(functions_, [this](const FunctionSpan& f) { return !is_text(f.start); });
  covered_to_.reserve(functions_.size());
  TargetAddr covered;
  for (size_t i = 0; i < functions_.size(); ++i) {
    FunctionSpan& f = functions_[i];
    const TargetAddr text_end = range_at(module_.text, f.start)->end();
    const bool last_of_range = i + 1 == functions_.size() || functions_[i + 1].start >= text_end;
    if (f.end <= f.start) f.end = last_of_range ? text_end : functions_[i + 1].start;
    f.end = std::min(f.end, text_end);
    covered = std::max(covered, f.end);
    covered_to_.push_back(covered);
  }
}

std::span<const uint8_t> CodeMap::text_from(TargetAddr at) const {
  const Bytes* range = range_at(module_.text, at);
  if (range == nullptr) return {};
  return range->bytes.subspan(static_cast<size_t>(at - range->start));
}

std::span<const uint8_t> CodeMap::text_of(const Region& region) const {
  const auto bytes = text_from(region.start);
  return bytes.first(
      std::min<size_t>(bytes.size(), static_cast<size_t>(region.end - region.start)));
}

const FunctionSpan* CodeMap::function_at(TargetAddr at) const {
  auto next = std::upper_bound(functions_.begin(), functions_.end(), at, starts_before);
  // Walk out of nested symbols, as long as an earlier function may still cover `at`.
  while (next != functions_.begin()) {
    --next;
    if (at < next->end) return &*next;
    if (covered_to_[static_cast<size_t>(next - functions_.begin())] <= at) return nullptr;
  }
  return nullptr;
}

std::optional<TargetAddr> CodeMap::first_start_in(TargetAddr from, TargetAddr to) const {
  auto it = std::lower_bound(functions_.begin(), functions_.end(), from,
                             [](const FunctionSpan& f, TargetAddr a) { return f.start < a; });
  if (it == functions_.end() || it->start >= to) return std::nullopt;
  return it->start;
}

Region CodeMap::region_at(TargetAddr at) const {
  const Bytes* range = range_at(module_.text, at);
  if (range == nullptr) return {at, at, true};
  auto next = std::upper_bound(functions_.begin(), functions_.end(), at, starts_before);
  const TargetAddr end =
      next == functions_.end() ? range->end() : std::min(next->start, range->end());
  if (next == functions_.begin() || std::prev(next)->start < range->start)
    return {range->start, end, true};
  const auto i = static_cast<size_t>(std::prev(next) - functions_.begin());
  const TargetAddr covered = std::min(covered_to_[i], end);
  if (at < covered) return {functions_[i].start, covered, false};
  return {covered, end, true};
}

std::vector<Region> CodeMap::regions() const {
  std::vector<Region> all;
  for (const Bytes& range : module_.text) {
    for (TargetAddr at = range.start; at < range.end();) {
      all.push_back(region_at(at));
      at = all.back().end;
    }
  }
  return all;
}

bool CodeMap::is_read_only(TargetAddr at) const {
  return range_at(module_.read_only, at) != nullptr;
}

bool CodeMap::read_bytes(TargetAddr at, void* to, size_t size_bytes) const {
  const Bytes* range = range_at(module_.read_only, at);
  if (range == nullptr || static_cast<uint64_t>(range->end() - at) < size_bytes) return false;
  std::memcpy(to, range->bytes.data() + (at - range->start), size_bytes);
  return true;
}

std::string CodeMap::describe(TargetAddr at) const {
  const FunctionSpan* f = function_at(at);
  if (f == nullptr || f->name.empty()) return fmt::format("{}", at);
  return at == f->start ? std::string(f->name) : fmt::format("{}+{:#x}", f->name, at - f->start);
}

const SweptInsn* Sweep::covering(TargetAddr at) const {
  if (at < region.start || at >= decoded_to) return nullptr;
  const auto offset = static_cast<uint32_t>(at - region.start);
  auto next = std::upper_bound(insns.begin(), insns.end(), offset,
                               [](uint32_t o, const SweptInsn& insn) { return o < insn.offset; });
  return next == insns.begin() ? nullptr : &*std::prev(next);
}

namespace {

/// Finds the instructions that the row skips.
class OverlapSweep {
 public:
  OverlapSweep(const CodeMap& map, Sweep& out) : map_(map), out_(out) {}

  void run() {
    for (const SweptInsn& insn : out_.insns) add_starts(insn);
    const auto& pointers = map_.module().code_pointers;
    for (auto it = std::lower_bound(pointers.begin(), pointers.end(), out_.region.start);
         it != pointers.end() && *it < out_.region.end; ++it) {
      add_start(*it);
    }
    while (!starts_.empty()) {
      const uint32_t start = starts_.back();
      starts_.pop_back();
      follow(start);
    }
  }

 private:
  /// Where the instruction leads, or what address it takes.
  void add_starts(const SweptInsn& insn) {
    const x86::Shape& s = insn.shape;
    const TargetAddr at = out_.address(insn);
    if (s.is_direct_branch()) return add_start(s.branch_target(at));
    if (s.rip_relative && s.map == 0 && s.opcode == 0x8d) return add_start(s.rip_target(at));
    // In modules that lie low.
    if (s.imm_bytes >= 4) add_start(TargetAddr(static_cast<uint64_t>(s.imm)));
    if (s.disp_bytes == 4 && !s.rip_relative) add_start(TargetAddr(static_cast<uint64_t>(s.disp)));
  }

  void add_start(TargetAddr at) {
    const SweptInsn* hit = out_.covering(at);
    if (hit != nullptr && out_.address(*hit) != at)
      starts_.push_back(static_cast<uint32_t>(at - out_.region.start));
  }

  /// Decodes until a known head is met.
  void follow(uint32_t offset) {
    const auto bytes = map_.text_of(out_.region);
    if (heads_.empty()) {  // only if there is such a start at all: they are very rare
      heads_.resize(bytes.size());
      for (const SweptInsn& insn : out_.insns) heads_[insn.offset] = true;
    }
    while (offset < bytes.size() && !heads_[offset]) {
      const auto shape = x86::decode_shape(bytes.subspan(offset));
      if (!shape) return;
      heads_[offset] = true;
      out_.overlapped.push_back({offset, *shape});
      add_starts(out_.overlapped.back());
      if (shape->ends_flow()) return;
      offset += shape->length;
    }
  }

  const CodeMap& map_;
  Sweep& out_;
  std::vector<bool> heads_;
  std::vector<uint32_t> starts_;
};

/// in, out, ins, outs and far transfers only fault in programs: decoding has left the code.
bool looks_like_data(const x86::Shape& s) {
  const bool io = s.map == 0 && ((s.opcode >= 0xe4 && s.opcode <= 0xe7) ||
                                 (s.opcode >= 0xec && s.opcode <= 0xef) ||
                                 (s.opcode >= 0x6c && s.opcode <= 0x6f));
  return io || s.kind == x86::Kind::kFar;
}

/// Where the region's bytes alone make no instruction.
std::optional<SweptInsn> cut_at(const CodeMap& map, const Region& region, uint32_t offset) {
  const auto shape = x86::decode_shape(map.text_from(region.start + offset));
  if (!shape) return std::nullopt;
  return SweptInsn{offset, *shape};
}

}  // namespace

std::optional<SweptInsn> find_cut(const CodeMap& map, const Region& region) {
  const auto bytes = map.text_of(region);
  uint32_t offset = 0;
  while (offset < bytes.size()) {
    const auto shape = x86::decode_shape(bytes.subspan(offset));
    if (!shape) return cut_at(map, region, offset);
    offset += shape->length;
  }
  return std::nullopt;
}

Sweep sweep(const CodeMap& map, const Region& region) {
  Sweep out{.region = region};
  const auto bytes = map.text_of(region);
  out.insns.reserve(bytes.size() / 4);
  uint32_t offset = 0;
  while (offset < bytes.size()) {
    const auto shape = x86::decode_shape(bytes.subspan(offset));
    if (!shape) {
      out.cut = cut_at(map, region, offset);
      break;
    }
    out.insns.push_back({offset, *shape});
    out.holds_data |= looks_like_data(*shape);
    offset += shape->length;
  }
  out.complete = offset >= bytes.size();
  out.decoded_to = region.start + offset;
  OverlapSweep(map, out).run();
  return out;
}

bool may_be_instruction(const CodeMap& map, TargetAddr at) {
  constexpr uint64_t kNearest =
      2 * x86::kMaxInsnBytes;  // leaves the decoder some instructions to fall into step
  constexpr uint64_t kFarthest = kNearest + 2 * x86::kMaxInsnBytes;
  const TargetAddr text_start = map.region_at(at).start;
  for (uint64_t back = kNearest; back < kFarthest; ++back) {
    const bool before_start = static_cast<uint64_t>(at - text_start) < back;
    TargetAddr p = before_start ? text_start : at - back;
    while (p < at) {
      const auto shape = x86::decode_shape(map.text_from(p));
      p += shape ? shape->length : 1;
    }
    if (p == at) return true;
    if (before_start) return false;
  }
  return false;
}

}  // namespace spile::patch
