#include "user_engine/patch/pointer_path.h"

#include <algorithm>

namespace spile::patch {
namespace {

using x86::Insn;
using x86::Kind;

constexpr size_t kMaxInsnsBack = 64;
constexpr size_t kMaxReads = 4;

bool is_register_form(const Insn& insn) {
  return insn.modrm_offset != 0 && (insn.modrm >> 6) == 3;
}
unsigned reg_of(const Insn& insn) {
  return (insn.modrm >> 3 & 7u) | (insn.rex & 4u) << 1;
}
unsigned rm_of(const Insn& insn) {
  return (insn.modrm & 7u) | (insn.rex & 1u) << 3;
}
/// Of the fs or gs segment: the address is another one.
bool has_segment(std::span<const uint8_t> text, const Insn& insn) {
  const auto prefixes = text.first(insn.opcode_offset);
  return std::ranges::any_of(prefixes, [](uint8_t b) { return b == 0x64 || b == 0x65; });
}

/// Goes back from the jump: what it needs is in `reg_`.
class Search {
 public:
  Search(const CodeMap& map, const Sweep& code) : map_(map), code_(code) {}

  std::optional<PointerPath> run(size_t index) {
    const auto jump = insn_at(index);
    if (!jump) return std::nullopt;
    if (is_register_form(*jump)) {
      reg_ = rm_of(*jump);
    } else if (!read(*jump, index)) {
      return std::nullopt;
    }
    const size_t stop = index > kMaxInsnsBack ? index - kMaxInsnsBack : 0;
    for (size_t i = index; i > stop && reg_ && !failed_; --i) look(i - 1);
    if (reg_ || failed_) path_.base.reset();
    if (path_.offsets.empty()) return std::nullopt;
    std::ranges::reverse(path_.offsets);
    return path_;
  }

 private:
  std::optional<Insn> insn_at(size_t i) const {
    return x86::decode(map_.text_from(code_.address(code_.insns[i])));
  }

  /// The value is the word of a memory operand.
  bool read(const Insn& insn, size_t i) {
    const TargetAddr at = code_.address(code_.insns[i]);
    const bool is_plain = insn.index == x86::kNoReg && !has_segment(map_.text_from(at), insn);
    if (!is_plain || path_.offsets.size() == kMaxReads) return false;
    if (insn.rip_relative) {
      path_.offsets.push_back(0);
      path_.base = insn.rip_target(at);
      reg_.reset();
      return true;
    }
    if (insn.base == x86::kNoReg) return false;
    path_.offsets.push_back(insn.disp);
    reg_ = insn.base;
    return true;
  }

  void look(size_t i) {
    const auto insn = insn_at(i);
    if (!insn) return fail();
    if ((insn->writes >> *reg_ & 1) == 0) return;
    const bool is_move = insn->map == 0 && (insn->rex & 8) != 0 && insn->modrm_offset != 0;
    if (!is_move) return fail();
    if (insn->opcode == 0x8b && reg_of(*insn) == *reg_) return load(*insn, i);
    if (insn->opcode == 0x89 && is_register_form(*insn) && rm_of(*insn) == *reg_) {
      reg_ = reg_of(*insn);
      return;
    }
    if (insn->opcode == 0x8d && reg_of(*insn) == *reg_) return take_address(*insn, i);
    fail();
  }

  void load(const Insn& insn, size_t i) {
    if (is_register_form(insn)) {
      reg_ = rm_of(insn);
    } else if (!read(insn, i)) {
      fail();
    }
  }

  /// lea: the address of a table, or of a member.
  void take_address(const Insn& insn, size_t i) {
    if (path_.offsets.empty() || insn.index != x86::kNoReg) return fail();
    if (insn.rip_relative) {
      path_.base = insn.rip_target(code_.address(code_.insns[i]));
      reg_.reset();
      return;
    }
    if (insn.base == x86::kNoReg) return fail();
    path_.offsets.back() += insn.disp;
    reg_ = insn.base;
  }

  void fail() { failed_ = true; }

  const CodeMap& map_;
  const Sweep& code_;
  std::optional<unsigned> reg_;
  bool failed_ = false;
  PointerPath path_;
};

}  // namespace

std::optional<PointerPath> find_pointer_path(const CodeMap& map, const Sweep& code, size_t index) {
  return Search(map, code).run(index);
}

}  // namespace spile::patch
