// Which nops and int3 are padding.
#pragma once

#include <cstddef>

#include "base/address.h"
#include "user_engine/patch/window.h"

namespace spile::patch {

/// How many of the bytes from `at` on fill the room up to where code begins, or may begin: a
/// symbol, a way in, an endbr64, the end of the text, or a multiple of 16.
///
///   c3 | 90 90 90 | 55 ...            padding, if 55 is entered
///   c3 | 90 | 1b 42 42 | 55 ...       none: 90 begins a type hash, which callers compare
///
/// At most some hundred bytes are looked at. Whether padding itself is entered or read: WaysIn.
size_t padding_bytes_at(const Scene& scene, TargetAddr at);

}  // namespace spile::patch
