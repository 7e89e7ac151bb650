#include "user_engine/patch/branches_into.h"

#include <algorithm>
#include <cstring>

namespace spile::patch {
namespace {

class BranchScan {
 public:
  BranchScan(const CodeMap& map, std::span<const Region> regions) : map_(map), regions_(regions) {}

  std::vector<BranchInto> run() {
    for (const Bytes& range : map_.module().text) {
      for (size_t i = 0; i + 2 <= range.bytes.size(); ++i) look(range, i);
    }
    return std::move(found_);
  }

 private:
  /// Every byte may begin a branch; what is found so is then decoded in its region.
  void look(const Bytes& range, size_t i) {
    const uint8_t b = range.bytes[i], next = range.bytes[i + 1];
    if (b == 0xe8 || b == 0xe9) {
      rel32(range, i, 1);
    } else if ((b & 0xf0) == 0x70 || b == 0xeb || (b & 0xfc) == 0xe0) {
      const auto distance = static_cast<int8_t>(next);
      consider(range.start + i, range.start + i + 2 + static_cast<uint64_t>(int64_t{distance}));
    } else if ((b == 0x0f && (next & 0xf0) == 0x80) || (b == 0xc7 && next == 0xf8)) {
      rel32(range, i, 2);
    }
  }

  void rel32(const Bytes& range, size_t i, size_t opcode_bytes) {
    const size_t end = i + opcode_bytes + 4;
    if (end > range.bytes.size()) return;
    int32_t distance;
    std::memcpy(&distance, &range.bytes[i + opcode_bytes], sizeof distance);
    consider(range.start + i, range.start + end + static_cast<uint64_t>(int64_t{distance}));
  }

  void consider(TargetAddr source, TargetAddr target) {
    const Region* region = region_of(target);
    if (region == nullptr || region->contains(source) || is_entry(*region, target)) return;
    if (!is_swept(source)) sweep_ = sweep(map_, map_.region_at(source));
    if (is_branch(source, target)) {
      found_.push_back({source, target, true});
    } else if (!sweep_.is_trustworthy() && may_be_branch(source, target)) {
      found_.push_back({source, target, false});
    }
  }

  const Region* region_of(TargetAddr at) const {
    const auto next =
        std::ranges::upper_bound(regions_, at, {}, [](const Region& r) { return r.start; });
    if (next == regions_.begin() || !std::prev(next)->contains(at)) return nullptr;
    return &*std::prev(next);
  }

  bool is_entry(const Region& region, TargetAddr target) const {
    if (target == region.start) return true;
    const auto bytes = map_.text_of(region);
    const bool has_endbr = bytes.size() > x86::kEndbr64.size() &&
                           std::equal(x86::kEndbr64.begin(), x86::kEndbr64.end(), bytes.begin());
    return has_endbr && target == region.start + x86::kEndbr64.size();
  }

  bool is_swept(TargetAddr at) const {
    return sweep_.region.start < sweep_.region.end && sweep_.region.contains(at);
  }

  /// `source` is the opcode; prefixes may stand before it.
  bool is_branch(TargetAddr source, TargetAddr target) const {
    const SweptInsn* insn = sweep_.covering(source);
    if (insn != nullptr && leads_to(*insn, target)) return true;
    return std::ranges::any_of(sweep_.overlapped, [&](const SweptInsn& other) {
      return sweep_.address(other) == source && leads_to(other, target);
    });
  }
  bool leads_to(const SweptInsn& insn, TargetAddr target) const {
    return insn.shape.is_direct_branch() &&
           insn.shape.branch_target(sweep_.address(insn)) == target;
  }

  bool may_be_branch(TargetAddr source, TargetAddr target) const {
    const auto shape = x86::decode_shape(map_.text_from(source));
    return shape && shape->is_direct_branch() && shape->branch_target(source) == target &&
           may_be_instruction(map_, source);
  }

  const CodeMap& map_;
  std::span<const Region> regions_;
  Sweep sweep_;
  std::vector<BranchInto> found_;
};

}  // namespace

std::vector<BranchInto> find_branches_into(const CodeMap& map, std::span<const Region> regions) {
  if (regions.empty()) return {};
  return BranchScan(map, regions).run();
}

}  // namespace spile::patch
