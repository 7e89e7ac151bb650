#include "user_engine/patch/jump_maker.h"

#include <algorithm>
#include <array>

#include "user_engine/patch/window.h"

namespace spile::patch {
namespace {

/// Segment overrides and REX mean nothing to a jmp rel32. Not 66, f2, f3: operand size, bnd, and
/// hints of future processors.
constexpr uint8_t kFirstBytes[] = {0xe9, 0x2e, 0x36, 0x3e, 0x26, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45,
                                   0x46, 0x47, 0x48, 0x49, 0x4a, 0x4b, 0x4c, 0x4d, 0x4e, 0x4f};
/// What is put before a jump whose first byte does not matter.
constexpr std::array<std::array<uint8_t, 4>, 4> kOpcodes = {
    {{0xe9}, {0x2e, 0xe9}, {0x2e, 0x36, 0xe9}, {0x2e, 0x36, 0x3e, 0xe9}}};
constexpr uint8_t kJmpOpcode = 0xe9;
constexpr size_t kDistanceBytes = 4;
constexpr uint64_t kReach = uint64_t{1} << 31;
/// Stones near their jump keep one page for many.
constexpr uint64_t kNear = uint64_t{1} << 30;
/// How many places are tried where only the lower bytes of a distance are fixed.
constexpr uint32_t kTries = 256;

uint64_t extended(uint32_t distance) {
  return static_cast<uint64_t>(static_cast<int64_t>(static_cast<int32_t>(distance)));
}

}  // namespace

/// A jump of which some distance bytes are still to be chosen: the low ones.
struct JumpMaker::Draft {
  TargetAddr at;
  EditBytes opcode, before;
  size_t chosen = 0;   ///< distance bytes that are ours
  uint32_t fixed = 0;  ///< the others, in their places
  uint8_t level = 0;

  TargetAddr behind() const { return at + opcode.size() + kDistanceBytes; }
  uint32_t most() const {
    return chosen == 0 ? fixed : fixed | static_cast<uint32_t>((uint64_t{1} << (8 * chosen)) - 1);
  }
  TargetAddr first() const {
    if (chosen < kDistanceBytes) return behind() + extended(fixed);
    return behind() - std::min(kReach, behind().value);
  }
  TargetAddr last() const {
    return chosen < kDistanceBytes ? behind() + extended(most()) : behind() + (kReach - 1);
  }
};

std::span<const uint8_t> JumpMaker::first_bytes() {
  return kFirstBytes;
}

std::optional<JumpMaker::Draft> JumpMaker::draft(
    TargetAddr at, size_t own, Opcode opcode, uint8_t level, bool crosses_page) const {
  own = std::min(own, opcode.size() + kDistanceBytes);
  if (own < opcode.size()) return std::nullopt;
  const uint64_t last = (at + opcode.size() + kDistanceBytes - 1).value;
  const bool in_one_page = at.value / kPageBytes == last / kPageBytes;
  if (rules_.page_boundary && !in_one_page && !crosses_page) return std::nullopt;
  Draft d{at, {opcode.begin(), opcode.end()}, {}, own - opcode.size(), 0, level};
  for (size_t i = d.chosen; i < kDistanceBytes; ++i) {
    const auto byte = ledger_.settled(at + opcode.size() + i);
    if (!byte) return std::nullopt;
    d.fixed |= uint32_t{byte->value} << (8 * i);
    d.level = std::max(d.level, byte->level);
  }
  for (size_t i = 0; i < own; ++i) {
    const auto byte = ledger_.original(at + i);
    if (!byte || !ledger_.is_untouched(at + i)) return std::nullopt;
    d.before.push_back(*byte);
  }
  return d;
}

std::optional<TargetAddr> JumpMaker::choose(const Draft& d, StoneSpace::Pages pages) const {
  const TargetAddr first = d.first(), last = d.last();
  if (last < first) return std::nullopt;  // around the end of the address space
  if (d.chosen == kDistanceBytes) {
    const TargetAddr low = d.at - std::min(kNear, d.at.value);
    if (const auto stone = space_.find(std::max(first, low), std::min(last, d.at + kNear), pages))
      return stone;
  }
  return space_.find(first, last, pages);
}

Jump JumpMaker::commit(const Draft& d, TargetAddr stone) {
  const auto distance = static_cast<uint32_t>(stone.value - d.behind().value);
  Jump jump{{d.at, d.before, d.opcode, d.level}, stone, {}, d.opcode.size() - 1};
  for (size_t i = 0; i < kDistanceBytes; ++i) {
    const auto byte = static_cast<uint8_t>(distance >> (8 * i));
    if (i < d.chosen)
      jump.edit.after.push_back(byte);
    else
      SPILE_CHECK(byte == static_cast<uint8_t>(d.fixed >> (8 * i)));
  }
  space_.take(stone);
  stones_.push_back(stone);
  ledger_.add_edit(jump.edit);
  const TargetAddr end = d.at + jump.edit.after.size();
  for (TargetAddr a = end; a < d.behind(); a += 1) ledger_.lock(a);
  if (end < d.behind()) jump.relies_on.push_back({end, d.behind()});
  return jump;
}

std::optional<Jump> JumpMaker::jump(TargetAddr at, size_t own, const Wish& wish) {
  for (size_t i = 0; i < kOpcodes.size(); ++i) {
    std::vector<uint8_t> opcode(kOpcodes[i].begin(), kOpcodes[i].begin() + i + 1);
    if (wish.first_byte) {
      if ((*wish.first_byte == kJmpOpcode) != (i == 0) || i > 1) continue;
      opcode[0] = *wish.first_byte;
    }
    const auto d = draft(at, own, opcode, wish.level, wish.crosses_page);
    if (!d) continue;
    if (const auto stone = choose(*d, wish.pages)) return commit(*d, *stone);
    if (own >= kPatchBytes && i == 0 && !wish.first_byte) break;  // all four bytes were free
  }
  return std::nullopt;
}

std::optional<JumpMaker::Pair> JumpMaker::pair(TargetAddr first, size_t own, TargetAddr second) {
  SPILE_CHECK(own >= 1 && own < kPatchBytes && second == first + own);
  // A prefix of the second jump changes what the first one's distance has in the place of e9.
  for (const uint8_t prefix : kFirstBytes) {
    std::vector<uint8_t> opcode = {prefix};
    if (prefix != kJmpOpcode) opcode.push_back(kJmpOpcode);
    if (auto pair = pair_with(first, own, second, opcode)) return pair;
  }
  return std::nullopt;
}

/// With the second jump's opcode given: tries values for the distance bytes of it that are part of
/// the first jump's distance.
std::optional<JumpMaker::Pair> JumpMaker::pair_with(TargetAddr first,
                                                    size_t own,
                                                    TargetAddr second,
                                                    Opcode opcode) {
  const size_t part = kPatchBytes - own;
  const size_t exposed = part > opcode.size() ? part - opcode.size() : 0;
  const uint32_t tries = exposed == 0 ? 1 : kTries;
  for (uint32_t i = 0; i < tries; ++i) {
    // The last one is the top byte of the first distance: near places before far ones. The others
    // are spread, so that not all lead to one page.
    std::array<uint8_t, 3> bytes;
    for (size_t b = 0; b < 3; ++b)
      bytes[b] = static_cast<uint8_t>((i * 0x9e3779b1u) >> (8 * b + 7));
    if (exposed > 0) bytes[exposed - 1] = static_cast<uint8_t>(i & 1 ? ~(i >> 1) : i >> 1);
    if (auto pair = finish_pair(first, own, second, opcode, std::span(bytes).first(exposed)))
      return pair;
  }
  return std::nullopt;
}

std::optional<JumpMaker::Pair> JumpMaker::finish_pair(TargetAddr first,
                                                      size_t own,
                                                      TargetAddr second,
                                                      Opcode opcode,
                                                      std::span<const uint8_t> exposed) {
  auto d2 = draft(second, kPatchBytes, opcode, 0);
  if (!d2) return std::nullopt;
  // The first jump, as if the second stood there.
  Draft d1{first, {kJmpOpcode}, {}, own - 1, 0, static_cast<uint8_t>(d2->level + 1)};
  std::vector<uint8_t> part(opcode.begin(), opcode.end());
  part.insert(part.end(), exposed.begin(), exposed.end());
  for (size_t i = d1.chosen; i < kDistanceBytes; ++i)
    d1.fixed |= uint32_t{part[i - d1.chosen]} << (8 * i);
  const auto stone1 = choose(d1, StoneSpace::Pages::kAny);
  if (!stone1) return std::nullopt;
  const Mark start = mark();
  // Taken at once: the second stone must not lie on it.
  space_.take(*stone1);
  uint32_t low = 0;
  for (size_t i = 0; i < exposed.size(); ++i) low |= uint32_t{exposed[i]} << (8 * i);
  std::optional<TargetAddr> stone2;
  if (exposed.empty()) {
    stone2 = choose(*d2, StoneSpace::Pages::kAny);
  } else {
    for (uint32_t i = 0; i < kTries && !stone2; ++i) {
      const uint32_t top = (i & 1 ? ~(i >> 1) : i >> 1) << 24;
      const uint32_t middle =
          exposed.size() < 3 ? (i * 0x9e3779b1u >> 8) << (8 * exposed.size()) & 0xffffffu : 0;
      uint32_t distance = low | top | middle;
      if (d2->chosen < kDistanceBytes) {
        const auto mask = static_cast<uint32_t>((uint64_t{1} << (8 * d2->chosen)) - 1);
        distance = (distance & mask) | d2->fixed;
        if (exposed.size() > d2->chosen) break;
      }
      const TargetAddr at = d2->behind() + extended(distance);
      if (space_.fits(at)) stone2 = at;
    }
  }
  space_.give_back(*stone1);
  if (!stone2) return std::nullopt;
  Pair pair;
  pair.second = commit(*d2, *stone2);
  const auto real = draft(first, own, d1.opcode, 0);
  if (!real || real->fixed != d1.fixed) {
    roll_back(start);
    return std::nullopt;
  }
  pair.first = commit(*real, *stone1);
  return pair;
}

void JumpMaker::roll_back(const Mark& mark) {
  while (stones_.size() > mark.stones) {
    space_.give_back(stones_.back());
    stones_.pop_back();
  }
  ledger_.roll_back(mark.ledger);
}

}  // namespace spile::patch
