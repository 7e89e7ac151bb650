// What .eh_frame and .gcc_except_table say about functions: where they start and end, and where a
// C++ (Rust, ...) exception may continue in them. Stripping keeps both, so this holds where symbols
// are gone.
//
// Source: Linux Standard Base 5, "Exception Frames"; GCC's unwind-pe.h and except.cc (call-site
// tables).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "base/address.h"
#include "base/error.h"
#include "elf/file.h"

namespace spile::elf {

/// One FDE. A function with a .cold part has two.
struct FunctionRange {
  LinkAddr start, end;           ///< [start, end)
  std::optional<LinkAddr> lsda;  ///< its call-site table
  bool is_signal_frame = false;  ///< __restore_rt: nobody returns to it by `ret`
  /// At `start` the return address is at the stack pointer (the CFA is rsp + 8): it is entered by
  /// calls. A .cold part is not.
  bool starts_at_call = false;

  bool contains(LinkAddr a) const { return a >= start && a < end; }
};

class UnwindTable {
 public:
  /// Reads .eh_frame. A file without one (Go, some assembly) gives an empty table.
  /// Errors: corrupt.
  /// `file` must outlive the table.
  static Result<UnwindTable> read(const File& file);

  std::span<const FunctionRange> functions() const { return functions_; }  ///< by start
  /// The FDE that covers `addr`.
  const FunctionRange* find(LinkAddr addr) const;

  /// Landing pads named by the call-site table of `function`; sorted. They may lie in another range
  /// (.cold). Errors: corrupt, unsupported (not the format that GCC and LLVM emit). The caller then
  /// knows nothing: an exception could continue anywhere in the function.
  Result<std::vector<LinkAddr>> landing_pads(const FunctionRange& function) const;
  /// Those of the whole file, sorted; computed at the first call (20 ms for 100,000 functions).
  Result<std::span<const LinkAddr>> all_landing_pads() const;

 private:
  const File* file_ = nullptr;
  std::vector<FunctionRange> functions_;
  mutable std::vector<LinkAddr> pads_;
  mutable bool pads_are_known_ = false;
};

}  // namespace spile::elf
