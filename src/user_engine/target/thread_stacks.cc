// Where a libc keeps the bounds of its threads' stacks.
#include <algorithm>
#include <cstring>

#include "user_engine/target/stopped.h"

namespace spile::target {
namespace {

/// glibc's struct pthread has 2304 bytes, musl's 200.
constexpr size_t kControlBlockBytes = 2304;
constexpr uint64_t kPage = 4096;
/// A word that is larger is no size but an address.
constexpr uint64_t kMaxStackBytes = uint64_t{1} << 36;

/// The words of a thread that say where its stack is.
struct StackWords {
  uint64_t begin = 0, size = 0;
  bool holds(uint64_t address) const { return address - begin < size; }
};

/// What a thread's control block may say, by offset.
class ControlBlock {
 public:
  ControlBlock(const os::ProcessMemory& memory, const os::Registers& registers)
      : fs_(registers.fs_base), sp_(registers.rsp) {
    std::vector<uint8_t> bytes(kControlBlockBytes);
    bytes.resize(memory.read_some(TargetAddr(fs_), bytes));
    words_.resize(bytes.size() / 8);
    std::memcpy(words_.data(), bytes.data(), words_.size() * 8);
  }

  /// glibc's initial thread: no block, and where its stack pointer began instead of a size.
  bool is_initial_at(size_t i, uint64_t start_stack) const {
    return i + 1 < words_.size() && words_[i] == 0 && words_[i + 1] == start_stack;
  }
  /// A thread that may be on another stack at the moment.
  bool is_block_at(size_t i) const {
    if (i + 1 >= words_.size()) return false;
    const StackWords words{words_[i], words_[i + 1]};
    return words.begin >= kPage && words.begin % kPage == 0 && words.size <= kMaxStackBytes &&
           words.holds(fs_) && fs_ - words.begin > kPage;
  }
  bool is_on_block_at(size_t i) const {
    return is_block_at(i) && StackWords{words_[i], words_[i + 1]}.holds(sp_) && sp_ < fs_;
  }
  AddressRange in_use() const { return {TargetAddr(sp_), TargetAddr(fs_)}; }
  size_t size() const { return words_.size(); }

 private:
  uint64_t fs_, sp_;
  std::vector<uint64_t> words_;
};

/// One mapping after the other, readable and writable.
bool is_mapped(const std::vector<os::MapEntry>& maps, AddressRange range) {
  TargetAddr at = range.start;
  for (const os::MapEntry& map : maps) {
    if (at >= range.end) break;
    if (map.contains(at) && map.read && map.write) at = map.end;
  }
  return at >= range.end;
}

}  // namespace

std::optional<int64_t> StoppedProcess::stack_offset() const {
  if (!fs_bases_usable()) return std::nullopt;
  uint64_t start_stack = 0;
  if (auto stat = os::read_stat(target_->pid(), target_->pid())) start_stack = stat->start_stack;
  std::vector<ControlBlock> initial, others;
  for (const StoppedThread& thread : threads_) {
    const bool is_initial = thread.tid == target_->pid();
    (is_initial ? initial : others).emplace_back(memory(), thread.registers);
  }
  std::vector<size_t> common;
  for (size_t i = 2; i < kControlBlockBytes / 8; ++i) {
    const bool by_initial =
        !initial.empty() && start_stack != 0 && initial.front().is_initial_at(i, start_stack);
    auto is_here = [&](const ControlBlock& block) { return block.is_block_at(i); };
    const bool by_others =
        std::ranges::all_of(others, is_here) &&
        std::ranges::any_of(others, [&](const ControlBlock& b) { return b.is_on_block_at(i); });
    if (others.empty() ? by_initial : by_others) common.push_back(i);
  }
  if (common.size() != 1) return std::nullopt;
  auto maps = target_->maps();
  if (!maps) return std::nullopt;
  for (const ControlBlock& block : others) {
    if (block.is_on_block_at(common.front()) && !is_mapped(*maps, block.in_use()))
      return std::nullopt;
  }
  return static_cast<int64_t>(common.front() * 8);
}

}  // namespace spile::target
