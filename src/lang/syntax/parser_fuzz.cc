// libFuzzer: any bytes must give a tree or diagnostics, and both must print.
#include <cstddef>
#include <cstdint>

#include "lang/syntax/lexer.h"
#include "lang/syntax/parser.h"
#include "lang/syntax/print.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const spile::lang::Source source("fuzz", std::string(reinterpret_cast<const char*>(data), size));
  spile::lang::Diagnostics diagnostics;
  const auto program = spile::lang::parse(source, {.positional = {"one", "2"}}, diagnostics);
  spile::lang::print_ast(program);
  spile::lang::render(source, diagnostics);
  spile::lang::Diagnostics again;
  spile::lang::print_tokens(source, spile::lang::lex(source, again));
  return 0;
}
