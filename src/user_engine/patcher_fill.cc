// What a stop maps, and what is in it before the first jump leads there.
#include <algorithm>
#include <array>
#include <cstring>

#include "abi/data_region.h"
#include "abi/pending.h"
#include "abi/private_stack.h"
#include "os/process.h"
#include "user_engine/patcher.h"
#include "user_engine/sentries.h"

namespace spile::user_engine {

using target::AddressRange;
using target::StoppedProcess;

namespace {

constexpr std::string_view kCodeName = "spile-code", kDataName = "spile-data";

bool is_in(const std::vector<RegionRange>& ranges, TargetAddr a) {
  return std::ranges::any_of(ranges, [&](const RegionRange& r) { return r.range.contains(a); });
}

}  // namespace

std::vector<target::RegionSpec> Patcher::region_specs() const {
  using Kind = target::RegionSpec::Kind;
  const AddressPlan& addresses = prepared_.addresses;
  std::vector<target::RegionSpec> specs;
  // Where the process runs before the code is written, it need not wait for the pages.
  bool later = needs_many_stops();
  const std::string code_name(extended_ != nullptr ? target::kLateCodeName : kCodeName);
  for (const CodeImage& code : prepared_.code) {
    specs.push_back({Kind::kCode, code_name, code.base, code.bytes.size(), !later, later});
  }
  if (addresses.trap_page) {
    specs.push_back({Kind::kCode, std::string(kCodeName), addresses.trap_page->start,
                     addresses.trap_page->size(), true});
  }
  if (!addresses.stone_pages.empty()) {
    target::RegionSpec stones{Kind::kCode, code_name, {}, 0, true};
    for (const AddressRange& page : addresses.stone_pages) stones.add_piece(page);
    specs.push_back(std::move(stones));
  }
  if (extended_ != nullptr) return specs;
  specs.push_back({Kind::kData, std::string(kDataName), addresses.data_base,
                   prepared_.layout.size_bytes, false});
  specs.push_back({Kind::kPrivate, {}, addresses.private_base, kPageBytes, true});
  if (addresses.pending_base) {
    target::RegionSpec pending{
        Kind::kPrivate, {}, *addresses.pending_base, abi::kPendingTableBytes, false};
    pending.kept_by_fork = true;
    specs.push_back(std::move(pending));
  }
  if (addresses.stacks_base) {
    target::RegionSpec stacks{
        Kind::kPrivate, {}, *addresses.stacks_base, abi::kPrivatePoolBytes, false};
    stacks.kept_by_fork = true;
    specs.push_back(std::move(stacks));
  }
  return specs;
}

Result<void> Patcher::map_regions(StoppedProcess& process) {
  SPILE_TRY(auto memories, target::map_shared(process, region_specs()));
  mapped_ = true;
  code_.clear();
  for (target::RemoteMemory& memory : memories) {
    if (memory.spec.kind == target::RegionSpec::Kind::kCode) code_.push_back(std::move(memory));
    if (memory.spec.kind == target::RegionSpec::Kind::kData) data_ = std::move(memory.local);
  }
  // Now, while nothing can change: later the target may be gone, and its children still have them.
  SPILE_TRY(auto maps, target_.maps());
  mappings_ = target::our_mappings(maps);
  if (extended_ != nullptr)
    std::erase_if(mappings_, [&](const os::MapEntry& m) { return !is_in(ranges(), m.start); });
  return {};
}

/// Fresh memory is zero, as most of the image is.
Result<void> Patcher::fill_data() {
  if (extended_ != nullptr) return {};
  static constexpr std::array<uint8_t, kPageBytes> kZeroes{};
  auto from = prepared_.image.bytes();
  auto to = data_.bytes();
  for (size_t at = 0; at < from.size(); at += kPageBytes) {
    if (std::memcmp(&from[at], kZeroes.data(), kPageBytes) != 0)
      std::memcpy(&to[at], &from[at], kPageBytes);
  }
  SPILE_TRY(region_, shm::Region::view(to, prepared_.layout));
  context_.clock->publish(region_.time_page());
  return {};
}

abi::RtConsts Patcher::constants(const CodeImage& code) const {
  abi::RtConsts consts =
      shm::consts_for(prepared_.layout, prepared_.addresses.data_base.value, code.base.value);
  consts.saved_offset = code.saved_offset;
  consts.saved_count = code.saved_count;
  if (may_read_tsc()) consts.flags |= abi::kTscIsClock;
  if (tid_offset_) {
    consts.tid_source = abi::TidSource::kFsField;
    consts.tid_fs_offset = static_cast<int32_t>(*tid_offset_);
  }
  if (stack_offset_) consts.stack_fs_offset = static_cast<int32_t>(*stack_offset_);
  consts.allowed_calls = allowed_calls_;
  if (auto status = os::read_status(target_.pid());
      status && status->innermost_tid != target_.pid()) {
    consts.tgid_inside = static_cast<uint32_t>(status->innermost_tid);
    consts.tgid_outside = static_cast<uint32_t>(target_.pid());
  }
  consts.wipe_on_fork = prepared_.addresses.private_base.value;
  if (prepared_.addresses.pending_base)
    consts.pending_table = prepared_.addresses.pending_base->value;
  if (prepared_.addresses.stacks_base) {
    consts.private_pool = prepared_.addresses.stacks_base->value;
    consts.private_first = consts.private_pool + abi::private_control_offset(0);
    consts.private_end = consts.private_first + abi::kPrivatePoolBytes;
  }
  consts.main_stack_begin = prepared_.main_stack.begin;
  consts.main_stack_end = prepared_.main_stack.end;
  consts.safe_range_count = static_cast<uint32_t>(prepared_.safe_ranges.size());
  std::ranges::copy(prepared_.safe_ranges, consts.safe_ranges);
  return consts;
}

Result<void> Patcher::fill_code() {
  for (size_t i = 0; i < prepared_.code.size(); i++) {
    const CodeImage& code = prepared_.code[i];
    SPILE_TRY_VOID(target::allocate_pages(code_[i]));
    std::span<uint8_t> memory = code_[i].local.bytes();
    std::memcpy(memory.data(), code.bytes.data(), code.bytes.size());
    SPILE_TRY(uint64_t bodies, shm::write_code_prefix(memory, prepared_.layout, constants(code)));
    SPILE_CHECK(bodies <= abi::bodies_offset(prepared_.layout.maps.size()));
  }
  fill_trap_page();
  fill_stones();
  keep_views();
  return {};
}

/// Our writable views stay for switching probes, the only ones there are and will be: the files are
/// sealed. That of the stones goes.
void Patcher::keep_views() {
  if (extended_ != nullptr) {
    for (size_t i = 0; i < prepared_.code.size(); i++)
      extended_->switches.add(prepared_.code[i], std::move(code_[i].local));
    code_.clear();
    return;
  }
  switches_ = Switches(context_.bundle->probes.size());
  // Entries are noted for returns all the time: else a return after a pause would find the entry of
  // an earlier call at the same place of the stack.
  for (size_t i = 0; i < context_.bundle->probes.size(); i++) {
    if (context_.bundle->probes[i].entry_of >= 0) switches_.keep_on(i);
  }
  for (size_t i = 0; i < prepared_.code.size(); i++)
    switches_.add(prepared_.code[i], std::move(code_[i].local));
  code_.clear();
  if (!context_.paused) return;
  std::vector<int> all;
  for (size_t i = 0; i < context_.bundle->probes.size(); i++) {
    if (!is_sentry(context_.bundle->probes[i])) all.push_back(static_cast<int>(i));
  }
  switches_.set(all, false);
}

void Patcher::fill_trap_page() {
  if (!prepared_.addresses.trap_page) return;
  std::ranges::copy(prepared_.trap_page, code_[prepared_.code.size()].local.bytes().begin());
}

void Patcher::fill_stones() {
  const AddressPlan& addresses = prepared_.addresses;
  if (addresses.stone_pages.empty()) return;
  std::span<uint8_t> memory = code_.back().local.bytes();
  std::ranges::fill(memory, uint8_t{0xcc});
  std::vector<size_t> offsets;  // of each range of pages in the file
  size_t total = 0;
  for (const AddressRange& range : addresses.stone_pages) {
    offsets.push_back(total);
    total += range.size();
  }
  for (const BuiltSite* built : prepared_.built) {
    auto placed = addresses.placements.find(built->site);
    if (placed == addresses.placements.end()) continue;
    TargetAddr stone = placed->second.stone;
    auto after = std::ranges::upper_bound(addresses.stone_pages, stone, {}, &AddressRange::start);
    SPILE_CHECK(after != addresses.stone_pages.begin() && std::prev(after)->contains(stone));
    auto i = static_cast<size_t>(std::prev(after) - addresses.stone_pages.begin());
    auto bytes = patch::stone_bytes(stone, built->detour);
    std::ranges::copy(
        bytes, &memory[offsets[i] + static_cast<size_t>(stone - addresses.stone_pages[i].start)]);
  }
}

}  // namespace spile::user_engine
