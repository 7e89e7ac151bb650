// A module's code, indexed: which bytes, which function, which stretch to decode from where.
#pragma once

#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "user_engine/patch/plan.h"
#include "x86/decode.h"

namespace spile::patch {

/// A stretch of text whose start is the head of an instruction as far as we know: from a symbol to
/// the next symbol, or from a function's end to the next symbol (a *gap*: padding, or code whose
/// symbols were stripped).
struct Region {
  TargetAddr start, end;
  bool is_gap = false;

  bool contains(TargetAddr a) const { return a >= start && a < end; }
  bool operator==(const Region&) const = default;
};

/// Aliases merged, unknown sizes filled in, clipped to the text.
struct FunctionSpan {
  TargetAddr start, end;
  std::string_view name;
};

class CodeMap {
 public:
  explicit CodeMap(const ModuleCode& module);

  const ModuleCode& module() const { return module_; }

  /// The text from `at` to the end of its range; empty if `at` is not text.
  std::span<const uint8_t> text_from(TargetAddr at) const;
  std::span<const uint8_t> text_of(const Region& region) const;
  bool is_text(TargetAddr at) const { return !text_from(at).empty(); }

  /// The innermost function that holds `at`, nullptr if none.
  const FunctionSpan* function_at(TargetAddr at) const;
  /// The first function start in [from, to).
  std::optional<TargetAddr> first_start_in(TargetAddr from, TargetAddr to) const;
  /// The stretch to decode in order to reach `at`. Start == end if `at` is not text.
  Region region_at(TargetAddr at) const;
  /// Every region of the text, in order.
  std::vector<Region> regions() const;

  /// `size` bytes of constant data at `at`; nullopt if they are not all there.
  template <typename T>
  std::optional<T> read(TargetAddr at) const {
    T value;
    if (!read_bytes(at, &value, sizeof value)) return std::nullopt;
    return value;
  }
  bool is_read_only(TargetAddr at) const;

  /// "name+0x12", or the bare address.
  std::string describe(TargetAddr at) const;

 private:
  bool read_bytes(TargetAddr at, void* to, size_t size_bytes) const;

  const ModuleCode& module_;
  std::vector<FunctionSpan> functions_;  ///< one a start
  std::vector<TargetAddr> covered_to_;   ///< the largest end among functions_[0..i]
};

/// One instruction of a sweep.
struct SweptInsn {
  uint32_t offset = 0;  ///< from the region's start
  x86::Shape shape;
};

/// All instructions of a region, decoded in a row from its start, and those that the row skips: at
/// branch targets (behind a lock prefix, for example), and where an address points that the region
/// takes (to jump there: data between may have swallowed the first instructions) or that data hold.
struct Sweep {
  Region region;
  std::vector<SweptInsn> insns;       ///< in order of address
  std::vector<SweptInsn> overlapped;  ///< reached inside one of `insns`: see below
  std::optional<SweptInsn> cut;       ///< the last instruction, which ends behind the region
  bool complete = false;              ///< no byte was undecodable
  bool holds_data =
      false;  ///< instructions that programs do not have (in, out, far jumps): some bytes are data
  TargetAddr decoded_to;  ///< end, or the first undecodable byte

  /// What is not in `insns` is no instruction: nothing speaks against it.
  bool is_trustworthy() const { return complete && !holds_data && !region.is_gap; }
  TargetAddr address(const SweptInsn& insn) const { return region.start + insn.offset; }
  /// The instruction of the row that holds `at`.
  const SweptInsn* covering(TargetAddr at) const;
};

Sweep sweep(const CodeMap& map, const Region& region);
/// Sweep::cut alone.
std::optional<SweptInsn> find_cut(const CodeMap& map, const Region& region);

/// Whether some way of decoding the bytes before `at` arrives at `at`. Where code begins is not
/// known in stripped text with data between: since decoding falls into step with the true
/// instructions after a few of them, an instruction that really is there is found from one of the
/// starts tried.
bool may_be_instruction(const CodeMap& map, TargetAddr at);

}  // namespace spile::patch
