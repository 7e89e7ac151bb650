#include "elf/unwind.h"

#include <elf.h>

#include <algorithm>
#include <map>

#include "elf/reader.h"

namespace spile::elf {
namespace {

// DW_EH_PE: how a pointer is written. Low four bits the format, the next three what it counts from.
constexpr uint8_t kOmit = 0xff, kIndirect = 0x80, kFormatMask = 0x0f, kBaseMask = 0x70;
enum Format : uint8_t {
  kAbsPtr = 0,
  kUleb = 1,
  kUdata2 = 2,
  kUdata4 = 3,
  kUdata8 = 4,
  kSleb = 9,
  kSdata2 = 10,
  kSdata4 = 11,
  kSdata8 = 12
};
enum Base : uint8_t {
  kAbsolute = 0x00,
  kPcRel = 0x10,
  kTextRel = 0x20,
  kDataRel = 0x30,
  kFuncRel = 0x40,
  kAligned = 0x50
};

constexpr uint32_t kExtendedLength = 0xffffffff;

/// Reads the bare number of an encoded pointer. Empty: unknown format.
std::optional<uint64_t> read_number(Reader& in, uint8_t encoding) {
  switch (encoding & kFormatMask) {
    case kAbsPtr:
    case kUdata8:
    case kSdata8: return in.value<uint64_t>();
    case kUleb: return in.uleb128();
    case kUdata2: return in.value<uint16_t>();
    case kUdata4: return in.value<uint32_t>();
    case kSleb: return static_cast<uint64_t>(in.sleb128());
    case kSdata2: return static_cast<uint64_t>(int64_t{in.value<int16_t>()});
    case kSdata4: return static_cast<uint64_t>(int64_t{in.value<int32_t>()});
    default: return std::nullopt;
  }
}

/// Reads an encoded pointer. `section` is where the reader's first byte is loaded. A zero stays
/// zero (no pointer). Empty: a form that neither GCC nor LLVM writes here.
std::optional<uint64_t> read_pointer(Reader& in, uint8_t encoding, LinkAddr section) {
  const uint64_t here = section.value + in.position();
  const auto number = read_number(in, encoding);
  if (!number || (encoding & kIndirect) != 0) return std::nullopt;
  switch (encoding & kBaseMask) {
    case kAbsolute: return number;
    case kPcRel: return *number == 0 ? 0 : *number + here;
    default: return std::nullopt;
  }
}

/// Where the frame of the caller ends (the CFA), at one instruction.
struct CfaRule {
  bool is_known = false;
  uint64_t reg = 0, offset = 0;

  bool operator==(const CfaRule&) const = default;
};
/// After a call: rsp (DWARF's number 7) is one return address below.
constexpr CfaRule kCfaAtCall{true, 7, 8};

/// Runs call frame instructions up to the first that speaks of a later place. What is not simple
/// makes the rule unknown. Source: DWARF 5, 6.4.2; 7.24 for the numbers.
void run_cfa(Reader& in, CfaRule& rule) {
  while (in.ok() && in.left() > 0) {
    const auto op = in.value<uint8_t>();
    const uint8_t packed = op & 0xc0;
    if (packed == 0x40 || (op >= 0x01 && op <= 0x04)) return;  // advance_loc, set_loc
    if (packed == 0x80) in.uleb128();                          // offset
    if (packed != 0 || op == 0x00) continue;                   // restore, nop
    switch (op) {
      case 0x0c: rule = {true, in.uleb128(), in.uleb128()}; break;  // def_cfa
      case 0x0d: rule.reg = in.uleb128(); break;                    // def_cfa_register
      case 0x0e: rule.offset = in.uleb128(); break;                 // def_cfa_offset
      case 0x05:                                                    // offset_extended
      case 0x09:
        in.uleb128();
        in.uleb128();
        break;                         // register
      case 0x06:                       // restore_extended
      case 0x07:                       // undefined
      case 0x08:                       // same_value
      case 0x2e: in.uleb128(); break;  // GNU_args_size
      default: rule.is_known = false; return;
    }
  }
}

/// What a CIE tells about its FDEs.
struct Cie {
  uint8_t pointer_encoding = kAbsPtr;
  uint8_t lsda_encoding = kOmit;
  bool has_augmentation_data = false;
  bool is_signal_frame = false;
  CfaRule cfa;
};

std::optional<Cie> parse_cie(std::span<const uint8_t> body) {
  Reader in(body);
  Cie cie;
  const auto version = in.value<uint8_t>();
  if (version != 1 && version != 3 && version != 4) return std::nullopt;
  const auto augmentation = in.string();
  if (version == 4) in.skip(2);                                 // address and segment selector size
  in.uleb128();                                                 // code alignment
  in.sleb128();                                                 // data alignment
  version == 1 ? in.skip(1) : static_cast<void>(in.uleb128());  // return address register
  if (!augmentation.starts_with('z')) {
    if (!in.ok() || !augmentation.empty()) return std::nullopt;
    run_cfa(in, cie.cfa);
    return cie;
  }
  cie.has_augmentation_data = true;
  const uint64_t data_bytes = in.uleb128(), data_at = in.position();
  for (const char letter : augmentation.substr(1)) {
    switch (letter) {
      case 'R': cie.pointer_encoding = in.value<uint8_t>(); break;
      case 'L': cie.lsda_encoding = in.value<uint8_t>(); break;
      case 'S': cie.is_signal_frame = true; break;
      case 'B': break;
      case 'P': {  // the personality routine: often indirect, and none of our business
        const auto encoding = in.value<uint8_t>();
        if ((encoding & kBaseMask) == kAligned || !read_number(in, encoding)) return std::nullopt;
        break;
      }
      default: return std::nullopt;
    }
  }
  if (!in.ok()) return std::nullopt;
  const uint64_t read_bytes = in.position() - data_at;
  if (read_bytes <= data_bytes) {
    in.skip(data_bytes - read_bytes);
    run_cfa(in, cie.cfa);
  }
  return cie;
}

/// The rule at the function's first instruction; `in` stands behind the FDE's augmentation data.
bool starts_at_call(Reader& in, const Cie& cie) {
  CfaRule rule = cie.cfa;
  run_cfa(in, rule);
  return in.ok() && rule == kCfaAtCall;
}

std::optional<FunctionRange> parse_fde(std::span<const uint8_t> body,
                                       LinkAddr addr,
                                       const Cie& cie) {
  Reader in(body);
  FunctionRange range;
  const auto start = read_pointer(in, cie.pointer_encoding, addr);
  const auto length = read_number(in, cie.pointer_encoding);
  if (!start || !length || !in.ok() || *start + *length < *start) return std::nullopt;
  range.start = LinkAddr(*start);
  range.end = range.start + *length;
  range.is_signal_frame = cie.is_signal_frame;
  if (!cie.has_augmentation_data) {
    range.starts_at_call = starts_at_call(in, cie);
    return range;
  }
  const uint64_t data_bytes = in.uleb128(), data_at = in.position();
  if (cie.lsda_encoding != kOmit) {
    const auto lsda = read_pointer(in, cie.lsda_encoding, addr);
    if (!lsda) return std::nullopt;
    if (*lsda != 0) range.lsda = LinkAddr(*lsda);
  }
  if (!in.ok()) return std::nullopt;
  const uint64_t read_bytes = in.position() - data_at;
  if (read_bytes <= data_bytes) {
    in.skip(data_bytes - read_bytes);
    range.starts_at_call = starts_at_call(in, cie);
  }
  return range;
}

/// Walks the entries of .eh_frame one after the other. A CIE always lies before its FDEs.
class EhFrameParser {
 public:
  EhFrameParser(std::span<const uint8_t> bytes, LinkAddr addr, bool stops_at_terminator)
      : bytes_(bytes), addr_(addr), stops_at_terminator_(stops_at_terminator) {}

  /// False: damaged at position().
  bool run(std::vector<FunctionRange>& out) {
    while (const auto length32 = load_at<uint32_t>(bytes_, position_)) {
      if (*length32 == 0) {  // ends the part of one object; crtend.o's is the last
        if (stops_at_terminator_) return true;
        position_ += 4;
        continue;
      }
      uint64_t length = *length32, header = 4;
      if (*length32 == kExtendedLength) {
        length = load_at<uint64_t>(bytes_, position_ + 4).value_or(0);
        header = 12;
      }
      if (length < 4 || header > bytes_.size() - position_ ||
          length > bytes_.size() - position_ - header)
        return false;
      if (!entry(position_ + header, length, out)) return false;
      position_ += header + length;
    }
    return true;
  }
  uint64_t position() const { return position_; }

 private:
  bool entry(uint64_t id_at, uint64_t length, std::vector<FunctionRange>& out) {
    const uint32_t id = *load_at<uint32_t>(bytes_, id_at);
    const auto body = bytes_.subspan(id_at + 4, length - 4);
    const auto body_addr = addr_ + (id_at + 4);
    if (id == 0) {
      const auto cie = parse_cie(body);
      if (cie) cies_.emplace(position_, *cie);
      return cie.has_value();
    }
    const auto cie = cies_.find(id_at - id);  // `id` is the distance back to the CIE
    if (cie == cies_.end()) return false;
    const auto range = parse_fde(body, body_addr, cie->second);
    if (!range) return false;
    if (range->start < range->end && range->start.value != 0)
      out.push_back(*range);  // 0: discarded by the linker
    return true;
  }

  std::span<const uint8_t> bytes_;
  LinkAddr addr_;
  bool stops_at_terminator_;
  uint64_t position_ = 0;
  std::map<uint64_t, Cie> cies_;
};

struct EhFrame {
  std::span<const uint8_t> bytes;
  LinkAddr addr;
  bool is_section = true;  ///< false: only its start is known
};

/// Without section headers, .eh_frame_hdr (PT_GNU_EH_FRAME) points to it.
Result<std::optional<EhFrame>> find_eh_frame(const File& file) {
  if (const auto* section = file.section(".eh_frame")) {
    SPILE_TRY(const auto bytes, file.bytes(*section));
    return EhFrame{bytes, section->addr, true};
  }
  const auto header = file.eh_frame_header();
  if (!header || !file.sections().empty()) return std::nullopt;
  SPILE_TRY(const auto bytes, file.bytes_from(*header));
  Reader in(bytes);
  const auto version = in.value<uint8_t>(), encoding = in.value<uint8_t>();
  in.skip(2);  // encodings of the count and the search table
  const auto addr = read_pointer(in, encoding, *header);
  if (!in.ok() || version != 1 || !addr)
    return fail(ErrorCode::kCorrupt, ".eh_frame_hdr of {} is damaged", file.path());
  SPILE_TRY(const auto frames, file.bytes_from(LinkAddr(*addr)));
  return EhFrame{frames, LinkAddr(*addr), false};
}

/// The call-site table of one function: landing pads are counted from `base`, zero means none.
///
///   u8 encoding of LPStart, [LPStart]     0xff: pads count from the function's start
///   u8 encoding of types,   [uleb128]     offset of the type table
///   u8 encoding of call sites, uleb128    length of the table in bytes
///   { start, length, landing pad: encoded numbers; uleb128 action } ...
///
/// Each table belongs to one function. `budget` bounds what is read of all of them together: a
/// hostile file could let every function share a huge one.
Result<void> append_landing_pads(const File& file,
                                 const FunctionRange& function,
                                 uint64_t& budget,
                                 std::vector<LinkAddr>& out) {
  SPILE_TRY(const auto bytes, file.bytes_from(*function.lsda));
  Reader in(bytes);
  const auto unknown = [&] {
    return fail(ErrorCode::kCorrupt,
                "the call-site table of the function at {} in {} cannot be read", function.start,
                file.path());
  };
  uint64_t base = function.start.value;
  if (const auto encoding = in.value<uint8_t>(); encoding != kOmit) {
    const auto start = read_pointer(in, encoding, *function.lsda);
    if (!start) return unknown();
    base = *start;
  }
  if (const auto encoding = in.value<uint8_t>(); encoding != kOmit) in.uleb128();
  const auto encoding = in.value<uint8_t>();
  const uint64_t length = in.uleb128();
  if (!in.ok() || length > in.left() || length > budget) return unknown();
  budget -= length;
  const uint64_t end = in.position() + length;
  while (in.position() < end) {
    const auto start = read_number(in, encoding), size = read_number(in, encoding),
               pad = read_number(in, encoding);
    in.uleb128();
    if (!in.ok() || !start || !size || !pad) return unknown();
    if (*pad == 0) continue;
    const LinkAddr addr(base + *pad);
    if (!file.is_executable(addr)) return unknown();
    out.push_back(addr);
  }
  return in.position() == end ? Result<void>() : unknown();
}

/// Folded functions may share a table, so a little more than the file holds.
uint64_t call_site_budget(const File& file) {
  return 2 * file.size_bytes() + (1 << 20);
}

void sort_unique(std::vector<LinkAddr>& addrs) {
  std::ranges::sort(addrs);
  addrs.erase(std::ranges::unique(addrs).begin(), addrs.end());
}

}  // namespace

Result<UnwindTable> UnwindTable::read(const File& file) {
  UnwindTable table;
  table.file_ = &file;
  SPILE_TRY(const auto frame, find_eh_frame(file));
  if (!frame) return table;
  EhFrameParser parser(frame->bytes, frame->addr, !frame->is_section);
  if (!parser.run(table.functions_))
    return fail(ErrorCode::kCorrupt, ".eh_frame of {} is damaged at byte {:#x}", file.path(),
                parser.position());
  std::ranges::sort(table.functions_, {}, &FunctionRange::start);
  return table;
}

const FunctionRange* UnwindTable::find(LinkAddr addr) const {
  const auto after = std::ranges::upper_bound(functions_, addr, {}, &FunctionRange::start);
  if (after == functions_.begin()) return nullptr;
  const auto& range = *std::prev(after);
  return range.contains(addr) ? &range : nullptr;
}

Result<std::vector<LinkAddr>> UnwindTable::landing_pads(const FunctionRange& function) const {
  std::vector<LinkAddr> pads;
  uint64_t budget = call_site_budget(*file_);
  if (function.lsda) SPILE_TRY_VOID(append_landing_pads(*file_, function, budget, pads));
  sort_unique(pads);
  return pads;
}

Result<std::span<const LinkAddr>> UnwindTable::all_landing_pads() const {
  if (!pads_are_known_) {
    std::vector<LinkAddr> pads;
    uint64_t budget = call_site_budget(*file_);
    for (const auto& function : functions_)
      if (function.lsda) SPILE_TRY_VOID(append_landing_pads(*file_, function, budget, pads));
    sort_unique(pads);
    pads_ = std::move(pads);
    pads_are_known_ = true;
  }
  return std::span<const LinkAddr>(pads_);
}

}  // namespace spile::elf
