// What the tree knows about places in the text and tokens alone do not say.
#pragma once

#include <cstdint>
#include <vector>

#include "lang/syntax/ast.h"

namespace spile::lang {

enum Mark : uint8_t {
  kNoMark = 0,
  kStatement = 1,  ///< a statement or setting begins here
  kPrefix = 2,     ///< an operator before its operand: -x, *p, ++$i
  kDeclared = 4,   ///< a name whose type follows behind ':'
  kTypeEnd = 8,    ///< the byte behind the type of a cast: its ')' comes next
  kInType = 16,    ///< a '*' here is a pointer's
};

/// One byte of Mark bits for each byte of the script, and one more for its end.
std::vector<uint8_t> marks_of(const ast::Program& program, uint32_t source_size);

}  // namespace spile::lang
