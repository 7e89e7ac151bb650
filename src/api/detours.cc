#include "api/detours.h"

#include <algorithm>

#include "x86/relocate.h"

namespace spile::api {

size_t head_of(const patch::SitePlan& plan) {
  return plan.probed.empty() ? 0 : plan.probed.front().offset;
}
uint64_t address_of(const patch::SitePlan& plan) {
  return plan.site.value + head_of(plan);
}
x86::Shape instruction_of(const patch::SitePlan& plan) {
  return x86::decode_shape(std::span(plan.window).subspan(head_of(plan))).value_or(x86::Shape{});
}

namespace {

using x86::Code;

/// Displaced instructions of window[from, to) for `at`.
Result<x86::RelocatedCode> relocated(const Place& place, size_t from, size_t to, TargetAddr at) {
  const auto bytes = std::span<const uint8_t>(place.plan.window).subspan(from, to - from);
  return x86::relocate(bytes, place.plan.site + from, at);
}

TargetAddr address_of(const CallSlot& slot, bool function) {
  return TargetAddr(reinterpret_cast<uint64_t>(function ? &slot.function : &slot.argument));
}

Result<void> append_call(Code& code, TargetAddr at, const CallSlot& slot) {
  return x86::append_call_over_red_zone(code, at + code.size(), address_of(slot, false),
                                        address_of(slot, true));
}

Result<void> append_relocated(
    Code& code, const Place& place, size_t from, size_t to, TargetAddr at, bool is_last) {
  SPILE_TRY(auto moved, relocated(place, from, to, at + code.size()));
  if (is_last) SPILE_TRY_VOID(x86::append_jump_back(moved));
  code.insert(code.end(), moved.bytes.begin(), moved.bytes.end());
  return {};
}

/// What follows the probed instruction, and the way back.
Result<void> append_others(Code& code, const Place& place, size_t from, TargetAddr at) {
  if (from < place.plan.window.size())
    return append_relocated(code, place, from, place.plan.window.size(), at, true);
  SPILE_TRY(const auto back, x86::encode_jmp(at + code.size(), place.plan.window_end()));
  code.insert(code.end(), back.begin(), back.end());
  return {};
}

}  // namespace

Result<Detour> make_detour(const Place& place, bool behind) {
  SPILE_TRY(const size_t displaced_bytes, patch::displaced_size_bytes(place.plan));
  const size_t room = displaced_bytes + 2 * x86::kCallOverRedZoneBytes + 64;
  SPILE_TRY(auto piece,
            take_code_memory(place.module_start, place.module_end, room, behind ? 2 : 1));
  Detour detour;
  detour.entry = piece.at.value;
  detour.slots = piece.slots;
  // window:   [0, head) what comes before   [head, behind_head) the probed instruction   the others
  const size_t head = head_of(place.plan), size = place.plan.window.size();
  const size_t behind_head = head + instruction_of(place.plan).length;
  Code code;
  if (head > 0) SPILE_TRY_VOID(append_relocated(code, place, 0, head, piece.at, false));
  SPILE_TRY_VOID(append_call(code, piece.at, piece.slots[0]));
  detour.displaced = (piece.at + code.size()).value;
  detour.next = (place.plan.site + behind_head).value;
  if (!behind) {
    SPILE_TRY_VOID(append_relocated(code, place, head, size, piece.at, true));
  } else {
    SPILE_TRY_VOID(append_relocated(code, place, head, behind_head, piece.at, false));
    SPILE_TRY_VOID(append_call(code, piece.at, piece.slots[1]));
    SPILE_TRY_VOID(append_others(code, place, behind_head, piece.at));
  }
  if (code.size() > piece.view.size())
    return fail(ErrorCode::kInternal, "a detour larger than its room");
  std::ranges::copy(code, piece.view.begin());
  return detour;
}

}  // namespace spile::api
