// Address space as it is around a module in a typical process, for measuring without one.
#pragma once

#include "user_engine/patch/coverage/elf_code.h"
#include "user_engine/patch/placement.h"

namespace spile::patch {

/// A library: 24 MiB of others behind it, 256 MiB of heaps and thread stacks before it. A program:
/// its break and the GiB behind that. Both: nothing below 64 KiB.
StoneSpace process_model(const ElfCode& code, size_t max_pages);

}  // namespace spile::patch
