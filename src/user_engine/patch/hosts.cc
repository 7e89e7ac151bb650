#include "user_engine/patch/hosts.h"

#include <algorithm>

#include "user_engine/patch/padding.h"
#include "x86/encode.h"

namespace spile::patch {
namespace {

using x86::Kind;

bool is_padding(const x86::Shape& insn) {
  return insn.kind == Kind::kNop || insn.kind == Kind::kBreakpoint;
}

}  // namespace

std::vector<HostArea> Padding::in(TargetAddr from, TargetAddr to) {
  std::vector<HostArea> areas;
  for (TargetAddr at = from; at < to;) {
    if (!scene_.map.is_text(at)) {
      at += 1;
      continue;
    }
    const Region region = scene_.map.region_at(at);
    for (const HostArea& area : of(region).areas) {
      // Whoever enters it before `from` would fall on into it.
      if (area.start < from || area.start >= to) continue;
      const HostArea part = safe_part({area.start, std::min(area.end, to), 0});
      if (part.start < part.end) areas.push_back(part);
    }
    at = region.end;
  }
  return areas;
}

HostArea Padding::safe_part(HostArea area) const {
  const HostArea none{area.start, area.start, 0};
  if (const auto way = scene_.ways.into(area.start, area.end)) area.end = way->target;
  // Whoever reads a part of a run of nops may read all of it.
  if (scene_.ways.reader_of(area.start, area.end) != nullptr) return none;
  if (scene_.rules.reserved) {
    for (const Reserved& r : scene_.map.module().reserved) {
      if (r.start < area.end && area.start < r.end) return none;
    }
  }
  return area;
}

const Padding::Found& Padding::of(const Region& region) {
  const auto known = regions_.find(region.start);
  if (known != regions_.end()) return known->second;
  Found found = look(region);
  return regions_.emplace(region.start, std::move(found)).first->second;
}

Padding::Found Padding::look(const Region& region) {
  Found found;
  if (region.is_gap) {
    // Code whose symbol was stripped may follow: only what directly follows a function that ends.
    const TargetAddr before = region.start - 1;
    if (!scene_.map.is_text(before)) return found;
    const Region previous = scene_.map.region_at(before);
    if (previous.is_gap || !of(previous).dead_at_end) return found;
    add_run(region, region.start, found);
    return found;
  }
  const FunctionSpan* function = scene_.map.function_at(region.start);
  if (function == nullptr || (scene_.rules.known_code && is_known_code(function->name)))
    return found;
  const Sweep& code = scene_.sweeps.around(region.start);
  if (!code.is_trustworthy()) return found;
  // An unknown jump table might lead to a nop.
  const bool unresolved = scene_.ways.unresolved(region.start) != nullptr;
  bool in_run = false;
  for (const SweptInsn& insn : code.insns) {
    if (found.dead_at_end && is_padding(insn.shape)) {
      if (!unresolved && !in_run) add_run(region, code.address(insn), found);
      in_run = true;
      continue;
    }
    in_run = false;
    found.dead_at_end = insn.shape.ends_flow();
  }
  return found;
}

void Padding::add_run(const Region& region, TargetAddr at, Found& found) const {
  const TargetAddr end = std::min(at + padding_bytes_at(scene_, at), region.end);
  if (end > at) found.areas.push_back({at, end, 0});
}

}  // namespace spile::patch
