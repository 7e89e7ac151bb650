// The typed program as text: `spile dump --stage typed`, golden tests, bug reports.
#pragma once

#include <string>

#include "lang/sema/typed.h"

namespace spile::lang {

std::string print_typed(const typed::Program& program);

}  // namespace spile::lang
