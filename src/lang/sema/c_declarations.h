// The C part of a script -> types and constants.
//
// Structs, unions, enums and typedefs are read by an own small reader of declarations and laid out
// as the System V ABI of x86-64 says: each field at the next multiple of its alignment, bitfields
// packed into units of their type. #if and its like choose among them; #define gives a name to an
// expression; #include reads no file: what a kernel header defines is known from BTF.
#pragma once

#include "lang/sema/type_table.h"
#include "lang/syntax/ast.h"
#include "lang/syntax/diagnostic.h"

namespace spile::lang {

/// Faults are reported with the span of the definition that has them.
void declare_c(const ast::Program& program, TypeTable& types, Diagnostics& diagnostics);

}  // namespace spile::lang
