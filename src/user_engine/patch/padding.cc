#include "user_engine/patch/padding.h"

#include <algorithm>

#include "x86/encode.h"

namespace spile::patch {
namespace {

using x86::Kind;

/// Compilers align functions to this or more, and the targets of loops to this or to what is then
/// entered.
constexpr uint64_t kAlignment = 16;
constexpr uint64_t kFarthest = 512;

/// Code begins here for sure.
bool is_start(const Scene& scene, TargetAddr at) {
  if (scene.map.first_start_in(at, at + 1) || scene.sweeps.is_branch_target(at)) return true;
  const auto bytes = scene.map.text_from(at);
  if (bytes.size() >= x86::kEndbr64.size() &&
      std::equal(x86::kEndbr64.begin(), x86::kEndbr64.end(), bytes.begin()))
    return true;
  const auto way = scene.ways.into(at, at + 1);
  return way && way->read_bytes == 0;
}

/// At a multiple of 16 that the run goes over, or ends at: but what then stands directly before a
/// function that is not aligned is its own.
bool may_be_start(const Scene& scene, TargetAddr at, bool goes_on) {
  if (at.value % kAlignment != 0) return false;
  return goes_on || !scene.map.first_start_in(at + 1, at + kAlignment);
}

}  // namespace

size_t padding_bytes_at(const Scene& scene, TargetAddr at) {
  if (!scene.rules.padding_before_code) return x86::padding_bytes(scene.map.text_from(at));
  TargetAddr sure = at;
  for (TargetAddr end = at; end < at + kFarthest;) {
    const auto bytes = scene.map.text_from(end);
    const auto insn = x86::decode_shape(bytes);
    const bool goes_on = !bytes.empty() && (bytes[0] == 0xcc || (insn && insn->kind == Kind::kNop));
    if (bytes.empty() || is_start(scene, end) || may_be_start(scene, end, goes_on)) sure = end;
    if (!goes_on) break;
    end += bytes[0] == 0xcc ? 1 : insn->length;
  }
  return static_cast<size_t>(sure - at);
}

}  // namespace spile::patch
