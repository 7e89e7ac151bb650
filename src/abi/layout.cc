// Compiles every header of the module on its own terms: freestanding.
#include "abi/code_region.h"
#include "abi/data_region.h"
#include "abi/hit_frame.h"
#include "abi/journal.h"
#include "abi/map.h"
#include "abi/pending.h"
#include "abi/private_stack.h"
#include "abi/ring.h"
#include "abi/site.h"
#include "abi/time.h"

namespace spile::abi {
static_assert(bodies_offset(0) == kMapsOffset && bodies_offset(1) == kMapsOffset + 4096);
static_assert(private_control_offset(0) == kPrivateStackBytes - 64 &&
              private_control_offset(kPrivateStackBytes - 1) == kPrivateStackBytes - 64);
static_assert(record_length(record_header(RecordState::kBusy, 48, 7)) == 48);
static_assert(record_owner(record_header(RecordState::kBusy, 48, 7)) == 7);
}  // namespace spile::abi
