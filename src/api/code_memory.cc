#include "api/code_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "base/fd.h"
#include "os/memory.h"
#include "user_engine/target/process.h"

namespace spile::api {
namespace {

constexpr size_t kCodeBytes = 1 << 20, kSlotBytes = 256 << 10, kAlignment = 16;
constexpr uint64_t kReach = (1ull << 31) - kCodeBytes - kSlotBytes - 4096;

struct Chunk {
  TargetAddr start;
  uint8_t* view = nullptr;
  size_t code_used = 0, slots_used = 0;
  pid_t owner = 0;

  bool reaches(TargetAddr from, TargetAddr to) const {
    const TargetAddr end = start + kCodeBytes + kSlotBytes;
    return static_cast<uint64_t>(std::max(end, to) - std::min(start, from)) < kReach;
  }
  bool has_room(size_t code_bytes, size_t slot_count) const {
    return code_used + code_bytes <= kCodeBytes &&
           slots_used + slot_count * sizeof(CallSlot) <= kSlotBytes;
  }
};

std::vector<Chunk>& chunks() {
  static auto* const kChunks = new std::vector<Chunk>;
  return *kChunks;
}

Result<Fd> make_file() {
  int fd = -1;
  for (const unsigned flags : os::memfd_flag_ladder()) {
    fd = ::memfd_create("libspile-code", flags);
    if (fd >= 0) break;
  }
  if (fd < 0) return fail_errno(errno, "make a memory file for detours");
  Fd file(fd);
  ::fcntl(fd, F_SETFD, FD_CLOEXEC);
  SPILE_TRY_VOID(os::set_size(file, kCodeBytes));
  return file;
}

Result<void> map_at(TargetAddr at, size_t bytes, int protection, int flags, int fd) {
  void* want = reinterpret_cast<void*>(at.value);
  void* got = ::mmap(want, bytes, protection, flags | MAP_FIXED_NOREPLACE, fd, 0);
  if (got == want) return {};
  const int error = got == MAP_FAILED ? errno : EEXIST;
  if (got != MAP_FAILED) ::munmap(got, bytes);
  return fail_errno(error, "map memory for detours at {}", at);
}

Result<TargetAddr> find_place(TargetAddr from, TargetAddr to) {
  SPILE_TRY(const auto maps, os::read_maps(::getpid()));
  target::GapRules rules;
  if (const auto stat = os::read_stat(::getpid(), ::getpid())) rules.start_brk = stat->start_brk;
  if (const auto limit = os::get_limit(::getpid(), 3 /* RLIMIT_STACK */))
    rules.stack_limit_bytes = limit->soft;
  const target::AddressRange near{from, to};
  return target::find_gap(maps, rules, std::span(&near, 1), kCodeBytes + kSlotBytes);
}

Result<Chunk> make_chunk(TargetAddr from, TargetAddr to) {
  Chunk chunk;
  SPILE_TRY(const Fd file, make_file());
  SPILE_TRY(chunk.start, find_place(from, to));
  SPILE_TRY_VOID(map_at(chunk.start, kCodeBytes, PROT_READ | PROT_EXEC, MAP_SHARED, file.get()));
  SPILE_TRY_VOID(map_at(chunk.start + kCodeBytes, kSlotBytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1));
  SPILE_TRY(auto view, os::map_read_write(file, kCodeBytes, false));
  chunk.view = view.data();
  (void)new Mapping(std::move(view));  // for as long as the program runs
  chunk.owner = ::getpid();
  return chunk;
}

CodePiece take(Chunk& chunk, size_t code_bytes, size_t slot_count) {
  CodePiece piece;
  piece.at = chunk.start + chunk.code_used;
  piece.view = {chunk.view + chunk.code_used, code_bytes};
  const TargetAddr slots = chunk.start + kCodeBytes + chunk.slots_used;
  piece.slots = {reinterpret_cast<CallSlot*>(slots.value), slot_count};
  chunk.code_used += (code_bytes + kAlignment - 1) / kAlignment * kAlignment;
  chunk.slots_used += slot_count * sizeof(CallSlot);
  return piece;
}

}  // namespace

Result<CodePiece> take_code_memory(TargetAddr near_start,
                                   TargetAddr near_end,
                                   size_t code_bytes,
                                   size_t slot_count) {
  const pid_t self = ::getpid();
  for (Chunk& chunk : chunks()) {
    if (chunk.owner == self && chunk.has_room(code_bytes, slot_count) &&
        chunk.reaches(near_start, near_end))
      return take(chunk, code_bytes, slot_count);
  }
  SPILE_TRY(auto chunk, make_chunk(near_start, near_end));
  chunks().push_back(chunk);
  return take(chunks().back(), code_bytes, slot_count);
}

}  // namespace spile::api
