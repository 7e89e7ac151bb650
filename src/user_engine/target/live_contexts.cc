// The signal frames that will come back, by the chain of saved stack pointers.
//
// A thread's registers say on which stack it runs and how deep. What it was doing before a signal
// lies in a frame further up that stack; the frame says where the stack pointer was then, which is
// another stack where the handler runs on an alternate one (SA_ONSTACK). So: look for frames from
// rsp upwards, go on from the stack pointer saved in each.
//
// There are no links between frames of one stack, so they are recognised by their look:
//
//   f+0    return address of the handler; f is 8 below a multiple of 16
//   f+24   alternate stack at that time: start, flags, size
//   f+168  rsp     f+176  rip     f+184  eflags     f+192  cs (0x33), gs, fs, ss
//
// Source: struct rt_sigframe (arch/x86/include/asm/sigframe.h), struct sigcontext_64
// (uapi/asm/sigcontext.h), align_sigframe() and __save_altstack() in the kernel.
//
// The same bytes stay behind where a handler has returned. Those below rsp are never looked at.
// Above rsp, in one mapping with our stack, may lie the alternate stacks of other threads (Go keeps
// all its stacks in one heap): a frame that lies on the alternate stack it names is ours only when
// the stack pointer we come from is on that stack too.
#include <algorithm>
#include <bitset>
#include <cstring>
#include <map>
#include <optional>
#include <set>

#include "abi/private_stack.h"
#include "user_engine/target/threads_inside.h"

namespace spile::target {
namespace {

constexpr uint64_t kPage = 4096, kBlock = 64 << 10;
/// From the saved rip: what a frame is recognised by lies this far below and above.
constexpr uint64_t kBelowRip = 160, kAboveRip = 32;
constexpr uint64_t kUserCode = 0x33;

/// A stack the kernel or a threads library made: its end is known, all of it is searched.
constexpr uint64_t kOwnStackLimit = 64 << 20;
/// A stack that the program made somewhere in its memory (coroutines): where it ends is not known.
/// So much above the stack pointer is searched.
constexpr uint64_t kMadeStackLimit = 8 << 20;
/// The same in a thread without a libc, which is in practice one of Go's: its handlers all run on
/// stacks of 32 KiB.
constexpr uint64_t kNoLibcStackLimit = 256 << 10;
/// The target stands still meanwhile: some 50 ms at most.
constexpr uint64_t kMaxBytesRead = 256 << 20;
constexpr size_t kMaxStacksPerThread = 64, kMaxFramesPerThread = 100'000;

struct Frame {
  TargetAddr rip_at;
  uint64_t rip = 0, rsp = 0;
  uint64_t alternate = 0, alternate_bytes = 0;

  /// As the kernel's on_sig_stack(): the very end is an empty stack, the very start a full one.
  bool on_alternate(uint64_t sp) const {
    return sp > alternate && sp - alternate <= alternate_bytes;
  }
};

/// Bits 3, 5, 15 and those above 21 are always zero, bit 1 always one.
bool looks_like_eflags(uint64_t word) {
  return (word & 2) != 0 && (word & ~uint64_t{0x3f7fd7}) == 0;
}

std::optional<Frame> frame_at(const uint8_t* rip, TargetAddr rip_at) {
  const auto word = [rip](ptrdiff_t offset) {
    uint64_t value;
    std::memcpy(&value, rip + offset, sizeof value);
    return value;
  };
  if ((word(16) & 0xffff) != kUserCode || !looks_like_eflags(word(8))) return std::nullopt;
  if (word(-8) >> 56 != 0 || word(0) >> 56 != 0) return std::nullopt;
  return Frame{rip_at, word(0), word(-8), word(-152), word(-136)};
}

/// What looks like frames, block by block: stacks that lie in one mapping are read once for all
/// threads.
class Frames {
 public:
  struct Block {
    std::vector<Frame> frames;
    std::bitset<kBlock / kPage> unreadable;
  };
  explicit Frames(const os::ProcessMemory& memory) : memory_(memory) {}

  /// nullptr: too much has been read already.
  const Block* block(uint64_t number) {
    if (auto known = blocks_.find(number); known != blocks_.end()) return &known->second;
    if (blocks_.size() >= kMaxBytesRead / kBlock) return nullptr;
    return &blocks_.emplace(number, read(TargetAddr(number * kBlock))).first->second;
  }

 private:
  Block read(TargetAddr start) const {
    Block block;
    std::vector<uint8_t> bytes(kBelowRip + kBlock + kAboveRip);
    if (memory_.read_some(start - kBelowRip, bytes) != bytes.size())
      block.unreadable = read_by_pages(start, bytes);
    for (uint64_t at = 8; at < kBlock; at += 16) {
      if (auto frame = frame_at(bytes.data() + kBelowRip + at, start + at))
        block.frames.push_back(*frame);
    }
    return block;
  }

  /// There are holes, or the block lies at the end of a mapping. What is not there stays zero.
  std::bitset<kBlock / kPage> read_by_pages(TargetAddr start, std::vector<uint8_t>& bytes) const {
    std::bitset<kBlock / kPage> unreadable;
    std::ranges::fill(bytes, uint8_t{0});
    (void)memory_.read_some(start - kBelowRip, {bytes.data(), kBelowRip});
    for (uint64_t at = 0; at < kBlock; at += kPage) {
      const std::span<uint8_t> page(bytes.data() + kBelowRip + at, kPage);
      if (memory_.read_some(start + at, page) != kPage) unreadable.set(at / kPage);
    }
    (void)memory_.read_some(start + kBlock, {bytes.data() + kBelowRip + kBlock, kAboveRip});
    return unreadable;
  }

  const os::ProcessMemory& memory_;
  std::map<uint64_t, Block> blocks_;
};

/// The part of a stack that is in use.
struct Extent {
  TargetAddr start, end;
  bool whole = true;  ///< false: there is more than we search
};

/// All stacks of one thread.
class Walk {
 public:
  Walk(const StoppedProcess& process,
       size_t thread,
       const std::vector<os::MapEntry>& maps,
       const AddressRange& private_stacks,
       Frames& frames)
      : process_(process),
        thread_(process.threads()[thread]),
        maps_(maps),
        private_stacks_(private_stacks),
        frames_(frames) {
    const TargetAddr fs(thread_.registers.fs_base);
    // The psABI's thread pointer points to itself; Go's own does not.
    has_libc_ = fs.value != 0 && process.memory().read_value<uint64_t>(fs).value_or(0) == fs.value;
  }

  /// False when something could not be searched.
  bool run(const std::function<void(const Frame&)>& found) {
    bool whole = extent(thread_.registers.rsp).has_value();
    stacks_.push_back(thread_.registers.rsp);
    for (size_t i = 0; i < stacks_.size(); ++i) {
      auto stack = extent(stacks_[i]);
      if (!stack) continue;  // the frame was none, or its context cannot run
      if (private_stacks_.contains(TargetAddr(stacks_[i]))) follow_home(stacks_[i]);
      if (!search(*stack, stacks_[i], found) || !stack->whole) whole = false;
      if (stacks_.size() > kMaxStacksPerThread || frames_seen_ > kMaxFramesPerThread) return false;
    }
    return whole;
  }

 private:
  const os::MapEntry* map_of(uint64_t address) const {
    auto after = std::ranges::upper_bound(maps_, TargetAddr(address), {}, &os::MapEntry::start);
    if (after == maps_.begin()) return nullptr;
    const os::MapEntry& map = *std::prev(after);
    return map.contains(TargetAddr(address)) ? &map : nullptr;
  }

  /// Mappings that follow without a gap and may hold data: the kernel splits a stack where its
  /// parts differ (advice).
  TargetAddr end_of(const os::MapEntry& map) const {
    TargetAddr end = map.end;
    const os::MapEntry* last = maps_.data() + maps_.size();
    for (const os::MapEntry* next = &map + 1; next != last && next->start == end && next->write;
         ++next) {
      end = next->end;
    }
    return end;
  }

  TargetAddr control_of(uint64_t private_sp) const {
    const TargetAddr pool = private_stacks_.start;
    return pool + abi::private_control_offset(private_sp - pool.value);
  }

  /// From a private stack to the target's: 0 where the hit has not left that yet, or is back.
  void follow_home(uint64_t private_sp) {
    const TargetAddr owner = control_of(private_sp) + offsetof(abi::PrivateStackControl, owner_sp);
    const uint64_t home = process_.memory().read_value<uint64_t>(owner).value_or(0);
    if (home != 0 && std::ranges::find(stacks_, home) == stacks_.end()) stacks_.push_back(home);
  }

  std::optional<Extent> extent(uint64_t sp) const {
    if (private_stacks_.contains(TargetAddr(sp)))
      return Extent{TargetAddr(sp & ~uint64_t{7}), control_of(sp)};
    const os::MapEntry* map = map_of(sp);
    if (map == nullptr) {
      if (map_of(sp - 1) == nullptr) return std::nullopt;
      return Extent{TargetAddr(sp), TargetAddr(sp)};  // an empty stack
    }
    Extent stack{TargetAddr(sp & ~uint64_t{7}), end_of(*map)};
    bool own = map->path == "[stack]";
    const TargetAddr fs(thread_.registers.fs_base);
    // glibc and musl keep the thread's own data at the top of the stack that they made for it.
    if (has_libc_ && thread_.tid != process_.target().pid() && map->contains(fs) &&
        fs > stack.start) {
      stack.end = fs;
      own = true;
    }
    const uint64_t limit = own ? kOwnStackLimit : has_libc_ ? kMadeStackLimit : kNoLibcStackLimit;
    if (static_cast<uint64_t>(stack.end - stack.start) > limit) {
      stack.end = stack.start + limit;
      stack.whole = !own;
    }
    return stack;
  }

  bool search(const Extent& stack, uint64_t sp, const std::function<void(const Frame&)>& found) {
    bool whole = true;
    for (uint64_t number = stack.start.value / kBlock; number * kBlock < stack.end.value;
         ++number) {
      const Frames::Block* block = frames_.block(number);
      if (block == nullptr) return false;
      whole &= is_readable(*block, number * kBlock, stack);
      for (const Frame& frame : block->frames) {
        if (frame.rip_at < stack.start || frame.rip_at >= stack.end) continue;
        if (++frames_seen_ > kMaxFramesPerThread) return false;
        if (frame.on_alternate(frame.rip_at.value) && !frame.on_alternate(sp)) continue;
        found(frame);
        follow(frame, stack);
      }
    }
    return whole;
  }

  static bool is_readable(const Frames::Block& block, uint64_t start, const Extent& stack) {
    if (block.unreadable.none()) return true;
    for (size_t i = 0; i < block.unreadable.size(); ++i) {
      const uint64_t page = start + i * kPage;
      if (block.unreadable[i] && page + kPage > stack.start.value && page < stack.end.value)
        return false;
    }
    return true;
  }

  void follow(const Frame& frame, const Extent& stack) {
    // Further up the same stack: that is being searched already.
    const bool here = frame.rsp >= stack.start.value && frame.rsp < stack.end.value;
    if (here && frame.on_alternate(frame.rip_at.value) == frame.on_alternate(frame.rsp)) return;
    if (stacks_.size() > kMaxStacksPerThread) return;  // run() gives up
    if (std::ranges::find(stacks_, frame.rsp) == stacks_.end()) stacks_.push_back(frame.rsp);
  }

  const StoppedProcess& process_;
  const StoppedThread& thread_;
  const std::vector<os::MapEntry>& maps_;
  const AddressRange private_stacks_;
  Frames& frames_;
  bool has_libc_ = false;
  std::vector<uint64_t> stacks_;  ///< stack pointers to search from; each once
  size_t frames_seen_ = 0;
};

}  // namespace

LiveContexts live_contexts(const StoppedProcess& process,
                           const std::function<bool(TargetAddr)>& points_there,
                           AddressRange private_stacks) {
  LiveContexts result;
  auto maps = process.target().maps();
  Frames frames(process.memory());
  for (size_t i = 0; i < process.threads().size(); ++i) {
    std::set<TargetAddr> known;  // a frame may be met again from another stack pointer
    const bool whole =
        maps && Walk(process, i, *maps, private_stacks, frames).run([&](const Frame& frame) {
          if (!known.insert(frame.rip_at).second || !points_there(TargetAddr(frame.rip))) return;
          result.found.push_back({i, TargetAddr(frame.rip), frame.rip_at});
        });
    if (!whole) result.incomplete.push_back(i);
  }
  return result;
}

LiveContexts live_contexts(const StoppedProcess& process,
                           std::span<const AddressRange> ranges,
                           AddressRange private_stacks) {
  const auto points_there = [&](TargetAddr a) {
    return std::ranges::any_of(ranges,
                               [a](const AddressRange& range) { return range.contains(a); });
  };
  return live_contexts(process, points_there, private_stacks);
}

}  // namespace spile::target
