// Bounded reading of little-endian tables: a cursor that cannot leave its bytes.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>

namespace spile::elf {

/// The structure at `offset` of `bytes`; empty where it does not fit.
template <typename T>
std::optional<T> load_at(std::span<const uint8_t> bytes, uint64_t offset) {
  static_assert(std::is_trivially_copyable_v<T>);
  if (offset > bytes.size() || bytes.size() - offset < sizeof(T)) return std::nullopt;
  T value;
  std::memcpy(&value, bytes.data() + offset, sizeof(T));
  return value;
}

/// The NUL-terminated string at `offset` of a string table; empty where it has no end within
/// `max_bytes`.
inline std::optional<std::string_view> string_at(std::span<const uint8_t> table,
                                                 uint64_t offset,
                                                 uint64_t max_bytes = 1 << 20) {
  if (offset >= table.size()) return std::nullopt;
  const uint64_t room = std::min<uint64_t>(table.size() - offset, max_bytes);
  const auto* start = table.data() + offset;
  const void* end = std::memchr(start, 0, room);
  if (end == nullptr) return std::nullopt;
  return std::string_view(reinterpret_cast<const char*>(start),
                          static_cast<const uint8_t*>(end) - start);
}

/// Reads on from a position. After a read beyond the end `ok()` is false and every value is 0.
class Reader {
 public:
  explicit Reader(std::span<const uint8_t> bytes, uint64_t position = 0)
      : bytes_(bytes), position_(position) {
    if (position_ > bytes_.size()) spoil();
  }

  bool ok() const { return ok_; }
  uint64_t position() const { return position_; }
  uint64_t left() const { return bytes_.size() - position_; }
  bool at_end() const { return left() == 0; }

  template <typename T>
  T value() {
    auto v = load_at<T>(bytes_, position_);
    if (!v) return spoil(), T{};
    position_ += sizeof(T);
    return *v;
  }

  uint64_t uleb128() {
    uint64_t result = 0;
    for (unsigned shift = 0;; shift += 7) {
      const auto byte = value<uint8_t>();
      if (!ok_ || shift > 63) return spoil(), 0;
      result |= uint64_t{byte & 0x7fu} << shift;
      if ((byte & 0x80) == 0) return result;
    }
  }

  int64_t sleb128() {
    uint64_t result = 0;
    for (unsigned shift = 0;; shift += 7) {
      const auto byte = value<uint8_t>();
      if (!ok_ || shift > 63) return spoil(), 0;
      result |= uint64_t{byte & 0x7fu} << shift;
      if ((byte & 0x80) != 0) continue;
      if ((byte & 0x40) != 0 && shift + 7 < 64) result |= ~uint64_t{0} << (shift + 7);
      return static_cast<int64_t>(result);
    }
  }

  std::string_view string() {
    auto s = string_at(bytes_, position_);
    if (!s) return spoil(), std::string_view();
    position_ += s->size() + 1;
    return *s;
  }

  void skip(uint64_t count) {
    if (count > left()) return spoil();
    position_ += count;
  }

 private:
  void spoil() {
    ok_ = false;
    position_ = bytes_.size();
  }

  std::span<const uint8_t> bytes_;
  uint64_t position_;
  bool ok_ = true;
};

}  // namespace spile::elf
