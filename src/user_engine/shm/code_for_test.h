// A code region inside the test: the real blob, mapped R-X, called through its helper offsets.
#pragma once

#include <stdexcept>

#include "bpf/insn.h"
#include "user_engine/rt/blob.h"
#include "user_engine/shm/region_for_test.h"

namespace spile::shm {

class TestCode {
 public:
  static constexpr size_t kBytes = 0x20000;

  /// `change` may alter the constants before they become read-only.
  template <typename Change>
  TestCode(const TestRegion& region, Change change) {
    void* at = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    code_ = Mapping(at, kBytes);
    const auto data = reinterpret_cast<uint64_t>(region.region().memory().data());
    abi::RtConsts consts =
        consts_for(region.region().layout(), data, reinterpret_cast<uint64_t>(at));
    change(consts);
    const auto end = write_code_prefix(code_.bytes(), region.region().layout(), consts);
    if (!end) throw std::runtime_error(end.error().message);
    mprotect(at, kBytes, PROT_READ | PROT_EXEC);
  }
  explicit TestCode(const TestRegion& region) : TestCode(region, [](abi::RtConsts&) {}) {}

  using Function = uint64_t (*)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t);
  Function helper(bpf::Helper helper) const {
    const auto offset = rt::helper_offset(static_cast<int32_t>(helper));
    if (!offset) throw std::runtime_error("no such helper");
    return reinterpret_cast<Function>(code_.data() + *offset);
  }

  template <typename... Args>
  uint64_t call(bpf::Helper which, Args... args) const {
    const uint64_t padded[5] = {as_u64(args)...};
    return helper(which)(padded[0], padded[1], padded[2], padded[3], padded[4]);
  }
  /// What a program's lddw of map `index` loads.
  uint64_t map(uint64_t index = 0) const {
    return reinterpret_cast<uint64_t>(code_.data()) + abi::map_descriptor_offset(index);
  }
  uint64_t begin() const { return reinterpret_cast<uint64_t>(code_.data()); }

 private:
  template <typename T>
  static uint64_t as_u64(T value) {
    if constexpr (std::is_pointer_v<T>) {
      return reinterpret_cast<uint64_t>(value);
    } else {
      return static_cast<uint64_t>(value);
    }
  }
  Mapping code_;
};

}  // namespace spile::shm
