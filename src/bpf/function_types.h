// What the kernel wants to know of the functions in a program: their types, as BTF.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace spile::bpf {

/// Of one function; the layout of the kernel's struct bpf_func_info.
struct FunctionInfo {
  uint32_t insn_off;  ///< of its first instruction
  uint32_t type_id;
};

struct FunctionTypes {
  std::vector<uint8_t> btf;  ///< for BPF_BTF_LOAD
  std::vector<FunctionInfo> functions;
};

/// Of a program that begins at 0 and whose further functions begin at `starts`, in rising order.
///
/// Every function is called `int fN(long, long, long, long)` and is static, so that the verifier
/// looks at what it is called with, and at its type only for its presence.
/// Source: the kernel's Documentation/bpf/btf.rst, 2.1 and 3.3.
FunctionTypes function_types(std::span<const uint32_t> starts);

}  // namespace spile::bpf
