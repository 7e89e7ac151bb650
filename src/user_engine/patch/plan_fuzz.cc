// Any bytes as a module: planning ends, and what it accepts can be displaced, moved into and out
// of.
#include <cstdint>
#include <cstring>

#include "user_engine/patch/plan.h"

using namespace spile;
using namespace spile::patch;

namespace {

constexpr uint64_t kFar = 0x7f0000000000, kLow = 0x400000;

/// The first 16 bytes shape the module, the rest is text and constants.
ModuleCode module_of(std::span<const uint8_t> shape, std::span<const uint8_t> bytes) {
  const TargetAddr start((shape[0] & 1 ? kFar : kLow) + shape[1] * 64);
  const size_t text_bytes = bytes.size() * 3 / 4;
  ModuleCode m;
  m.text.push_back({start, bytes.first(text_bytes)});
  m.read_only.push_back({start + 0x10000, bytes.subspan(text_bytes)});
  TargetAddr at = start;
  for (size_t i = 2; i < 10; ++i) {
    at += shape[i];
    m.functions.push_back({at, at + (shape[i] & 0x3f), i & 1 ? "f.cold" : "f"});
  }
  m.code_pointers.push_back(start + shape[10]);
  m.reserved.push_back({start + shape[11], start + shape[11] + 3, "reserved"});
  m.handles_faults_by_address = (shape[12] & 1) != 0;
  return m;
}

void check(const SitePlan& plan) {
  const auto copy = displaced_code(plan, plan.site + 0x100000);
  if (!copy) return;
  const std::vector<Segment> segments = {{copy->address, *copy}};
  SPILE_CHECK(copy->bytes.size() == *displaced_size_bytes(plan));
  SPILE_CHECK(plan.heads.size() == copy->insns.size());
  for (const uint8_t head : plan.heads) {
    SPILE_CHECK(rip_after_attach(plan, segments, plan.site + head, false).has_value());
    SPILE_CHECK(rip_after_attach(plan, segments, plan.site + head, true).has_value());
  }
  for (const x86::ResumePoint& p : copy->points) {
    SPILE_CHECK(rip_after_detach(*copy, copy->address + p.offset)->original == p.original);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 32 || size > 4096) return 0;
  const std::span bytes(data, size);
  const ModuleCode module = module_of(bytes.first(16), bytes.subspan(16));
  std::vector<TargetAddr> sites;
  for (const Function& f : module.functions) sites.push_back(f.start);
  sites.push_back(module.text[0].start + data[13]);
  for (const Outcome& plan : plan_sites(module, sites)) {
    if (plan) check(*plan);
  }
  return 0;
}
