// A few bytes, kept in place: what a vector would put on the heap, a hundred thousand times.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "base/error.h"

namespace spile {

/// At most `kMost` bytes, which is at most 255. More are a bug of ours, and end the program.
template <size_t kMost>
class InlineBytes {
 public:
  static_assert(kMost <= 255);

  InlineBytes() = default;
  InlineBytes(std::initializer_list<uint8_t> bytes) : InlineBytes(bytes.begin(), bytes.end()) {}
  template <typename Iterator>
  InlineBytes(Iterator first, Iterator last) {
    for (; first != last; ++first) push_back(*first);
  }

  void push_back(uint8_t byte) {
    SPILE_CHECK(size_ < kMost);
    bytes_[size_++] = byte;
  }
  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  const uint8_t* data() const { return bytes_.data(); }
  const uint8_t* begin() const { return bytes_.data(); }
  const uint8_t* end() const { return bytes_.data() + size_; }
  uint8_t operator[](size_t i) const { return bytes_[i]; }

  bool operator==(const InlineBytes& other) const {
    return std::equal(begin(), end(), other.begin(), other.end());
  }

 private:
  std::array<uint8_t, kMost> bytes_{};
  uint8_t size_ = 0;
};

}  // namespace spile
