// An ELF file as the planner wants it: text, functions, code pointers. Only for measuring; the
// engine asks src/elf.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "user_engine/patch/plan.h"

namespace spile::patch {

struct ElfCode {
  std::vector<uint8_t> file;
  ModuleCode module;
  std::vector<TargetAddr> symbols;  ///< entries of named functions, sorted, each once
  bool is_program = false;          ///< has an interpreter, or a fixed address
  TargetAddr start, end;            ///< of all that is loaded
  std::vector<TargetAddr> entries;  ///< those and the functions that only .eh_frame knows
};

/// Where position-independent files are placed if nobody says otherwise.
inline constexpr uint64_t kDefaultBase = 0x7f0000000000;

/// `base` is added to the addresses of position-independent files.
Result<ElfCode> read_elf_code(const std::string& path, uint64_t base = kDefaultBase);

}  // namespace spile::patch
