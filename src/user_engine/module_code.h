// A module of the target as the planner wants it: original code, functions, every known way into
// them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/error.h"
#include "symbols/module_symbols.h"
#include "user_engine/patch/go_stack.h"
#include "user_engine/patch/plan.h"
#include "user_engine/target/process.h"

namespace spile::user_engine {

/// Owns what the ModuleCode points to. Read once per attach; nothing of the target is changed or
/// stopped.
class ModuleImage {
 public:
  /// Reads the module's file. The code in it is what the target had before anybody patched it;
  /// whether its memory still agrees is for the caller to check, site by site. Errors: not found
  /// there is no way to the file from here (deleted, other file system)
  ///         those of symbols::ModuleSymbols::load
  static Result<ModuleImage> load(const target::Target& target, const target::Module& module);

  const target::Module& module() const { return module_; }
  const symbols::ModuleSymbols& symbols() const { return *symbols_; }
  const patch::ModuleCode& code() const { return code_; }
  bool is_go() const { return is_go_; }
  /// Made of the process's memory: the file is out of reach.
  bool is_from_memory() const { return module_.image != nullptr; }

  /// At most so many original bytes at an address of the target: fewer where the code ends, none
  /// where there is no code.
  std::span<const uint8_t> original(TargetAddr at, size_t max_bytes) const;
  /// Where the byte is in the file.
  FileOffset file_offset(TargetAddr at) const;
  enum class Start : uint8_t {
    kNone,     ///< inside a function, or unknown code
    kLikely,   ///< a function symbol, and the file's unwind table does not know the place
    kCertain,  ///< the unwind table says so
  };
  /// Whether a function begins here that is entered by calls, so that the return address is at the
  /// stack pointer. Parts of functions that others jump to (.cold) and the program's entry are
  /// none.
  Start function_start(TargetAddr at) const;
  /// The stack that a hit right before the instruction at `at` may use.
  patch::GoStack hit_stack(TargetAddr at) const;
  /// "fopen" or "fopen+12", "" where no symbol covers it.
  std::string name_of(TargetAddr at) const;

 private:
  void leave_out_headers(patch::Bytes& text) const;
  Result<void> read_segments();
  Result<void> collect_functions();
  Result<void> collect_code_pointers();
  void add_goroutine_returns();
  void reserve_rseq_sections(const target::Target& target);
  void reserve_rseq_by_contents(const target::Target& target);
  void reserve_rseq(uint64_t start, uint64_t length, uint64_t abort);
  void reserve_signal_frames();

  target::Module module_;
  std::unique_ptr<symbols::ModuleSymbols> symbols_;
  patch::ModuleCode code_;
  bool is_go_ = false;
  mutable std::unique_ptr<patch::GoStacks> go_stacks_;  ///< made when first asked for
};

}  // namespace spile::user_engine
