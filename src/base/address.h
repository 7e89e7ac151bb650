// Addresses that do not convert into each other by accident.
#pragma once

#include <fmt/format.h>

#include <compare>
#include <cstdint>

namespace spile {

/// One address space's addresses. Differences are plain numbers, sums need a number.
template <typename Tag>
struct Address {
  uint64_t value = 0;

  constexpr Address() = default;
  constexpr explicit Address(uint64_t v) : value(v) {}
  constexpr auto operator<=>(const Address&) const = default;
  constexpr Address operator+(uint64_t bytes) const { return Address(value + bytes); }
  constexpr Address operator-(uint64_t bytes) const { return Address(value - bytes); }
  constexpr int64_t operator-(Address other) const {
    return static_cast<int64_t>(value - other.value);
  }
  constexpr Address& operator+=(uint64_t bytes) {
    value += bytes;
    return *this;
  }
};

/// Where something is in the running target.
using TargetAddr = Address<struct TargetTag>;
/// Where the linker put it: st_value, p_vaddr, sh_addr.
using LinkAddr = Address<struct LinkTag>;
/// Where it is in the file: what a kernel uprobe takes.
using FileOffset = Address<struct FileTag>;

/// What the loader added: target address = link address + bias (modulo 2^64).
struct LoadBias {
  uint64_t value = 0;
  constexpr TargetAddr to_target(LinkAddr a) const { return TargetAddr(a.value + value); }
  constexpr LinkAddr to_link(TargetAddr a) const { return LinkAddr(a.value - value); }
  constexpr auto operator<=>(const LoadBias&) const = default;
};

}  // namespace spile

template <typename Tag>
struct fmt::formatter<spile::Address<Tag>> {
  constexpr auto parse(fmt::format_parse_context& c) { return c.begin(); }
  auto format(const spile::Address<Tag>& a, fmt::format_context& c) const {
    return fmt::format_to(c.out(), "{:#x}", a.value);
  }
};
