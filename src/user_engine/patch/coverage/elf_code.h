// An ELF file as the planner wants it: text, functions, code pointers. Only for measuring; the engine asks src/elf.
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
  std::vector<TargetAddr> entries;  ///< those and the functions that only .eh_frame knows
};

/// Position-independent files are placed at 0x7f0000000000.
Result<ElfCode> read_elf_code(const std::string& path);

}  // namespace spile::patch
