// Script -> Bundle against the fake machine, for tests.
#pragma once

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "lang/codegen/compile.h"
#include "lang/sema/analyze.h"
#include "lang/sema/config.h"
#include "lang/sema/fake_world.h"
#include "lang/syntax/parser.h"

namespace spile::lang {

struct Compiled {
  std::optional<bundle::Bundle> bundle;
  std::string text;  ///< the diagnostics
};

inline Compiled compile_script(const std::string& script, CompileOptions options = {}) {
  Source source("stdin", script);
  Diagnostics diagnostics;
  ast::Program program = parse(source, {options.positional}, diagnostics);
  apply_config(program, options, diagnostics);
  FakeWorld world;
  std::optional<typed::Program> typed;
  if (!diagnostics.has_errors()) typed = analyze(program, world, options, diagnostics);
  if (!typed) return {std::nullopt, render(source, diagnostics)};
  auto bundle = generate(*typed, options);
  if (!bundle) return {std::nullopt, render(source, bundle.error())};
  return {std::move(*bundle), ""};
}

/// The bundle of a script that must compile; an empty one after a failure.
inline bundle::Bundle must_compile(const std::string& script, const CompileOptions& options = {}) {
  Compiled compiled = compile_script(script, options);
  EXPECT_TRUE(compiled.bundle.has_value()) << script << "\n" << compiled.text;
  return compiled.bundle ? std::move(*compiled.bundle) : bundle::Bundle{};
}

}  // namespace spile::lang
