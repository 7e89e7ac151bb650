// Pieces -> lines.
//
// A statement that was written in one line, holds at most two others and fits stays in one line.
// Else each of its blocks is opened: a line a statement. A line that is too long is broken where
// the outermost construct allows it: behind commas, before ? and :, behind operators, the weakest
// first; each break is made only where what follows up to the next break of its rank does not fit.
#pragma once

#include <string>
#include <vector>

#include "lang/fmt/pieces.h"

namespace spile::lang {

/// `pieces` end with kEnd.
std::string lay_out(std::vector<Piece> pieces, uint32_t width);

}  // namespace spile::lang
