#include "session/compile.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>

#include "bpf/disasm.h"
#include "lang/codegen/compile.h"
#include "lang/sema/analyze.h"
#include "lang/sema/config.h"
#include "lang/sema/typed_print.h"
#include "lang/syntax/lexer.h"
#include "lang/syntax/parser.h"
#include "lang/syntax/print.h"
#include "session/imports.h"

namespace spile::session {

using lang::Diagnostics;
using lang::Source;

namespace {

lang::RenderOptions render_options() {
  return {.colour = isatty(STDERR_FILENO) == 1 && std::getenv("NO_COLOR") == nullptr};
}

/// "MAX_STRLEN" -> "max_strlen"
std::string key_of(std::string name) {
  std::ranges::transform(name, name.begin(),
                         [](char c) { return static_cast<char>(std::tolower(c)); });
  return name;
}

uint32_t number_from_environment(const char* name,
                                 uint32_t otherwise,
                                 std::set<std::string>& fixed) {
  for (const char* prefix : {"SPILE_", "BPFTRACE_"}) {
    const char* text = std::getenv((std::string(prefix) + name).c_str());
    if (text == nullptr) continue;
    char* end = nullptr;
    unsigned long value = std::strtoul(text, &end, 10);
    if (end != text && *end == '\0' && value > 0 && value <= 1u << 30) {
      fixed.insert(key_of(name));
      return static_cast<uint32_t>(value);
    }
  }
  return otherwise;
}

/// One of a few words; another one is as good as none.
template <typename T>
void word_from_environment(const char* name,
                           std::initializer_list<std::pair<std::string_view, T>> words,
                           T& value,
                           std::set<std::string>& fixed) {
  for (const char* prefix : {"SPILE_", "BPFTRACE_"}) {
    const char* text = std::getenv((std::string(prefix) + name).c_str());
    if (text == nullptr) continue;
    for (const auto& [word, meaning] : words) {
      if (word != text) continue;
      value = meaning;
      fixed.insert(key_of(name));
      return;
    }
  }
}

bundle::ScriptPlace place_of(const Source& source, lang::Span span) {
  const lang::Position from = source.position(span.begin);
  return {source.name(span.begin), from.line, from.column, lang::location(source, span)};
}

}  // namespace

lang::CompileOptions options_from_environment() {
  lang::CompileOptions options;
  auto number = [&options](const char* name, uint32_t otherwise) {
    return number_from_environment(name, otherwise, options.fixed);
  };
  options.max_strlen = number("MAX_STRLEN", options.max_strlen);
  options.max_map_keys = number("MAX_MAP_KEYS", options.max_map_keys);
  options.max_cat_bytes = number("MAX_CAT_BYTES", options.max_cat_bytes);
  uint32_t pages = number("PERF_RB_PAGES", options.ring_bytes / 4096);
  options.ring_bytes = std::min<uint32_t>(pages, 1u << 18) * 4096;
  using bundle::StackMode;
  using lang::MissingProbes;
  word_from_environment<StackMode>(
      "STACK_MODE",
      {{"bpftrace", StackMode::kBpftrace}, {"perf", StackMode::kPerf}, {"raw", StackMode::kRaw}},
      options.stack_mode, options.fixed);
  word_from_environment<MissingProbes>("MISSING_PROBES",
                                       {{"error", MissingProbes::kError},
                                        {"warn", MissingProbes::kWarn},
                                        {"ignore", MissingProbes::kIgnore}},
                                       options.missing_probes, options.fixed);
  word_from_environment<bool>("PRINT_MAPS_ON_EXIT",
                              {{"0", false}, {"false", false}, {"1", true}, {"true", true}},
                              options.prints_maps, options.fixed);
  return options;
}

std::expected<Compiled, std::string> compile(const Script& script,
                                             lang::World& world,
                                             lang::CompileOptions options,
                                             std::vector<ScriptError>* errors) {
  options.positional = script.positional;
  Diagnostics diagnostics;
  // Files -> text: the script with what it imports.
  const Source source = with_imports(script, diagnostics);
  options.locate = [&source](uint32_t begin, uint32_t end) {
    return place_of(source, {begin, end});
  };
  auto failed = [&](const Diagnostics& d) {
    for (const lang::Diagnostic& one : d) {
      if (errors != nullptr && one.severity == lang::Severity::kError)
        errors->push_back({source.position(one.span.begin), one.message, one.hint});
    }
    return std::unexpected(render(source, d, render_options()));
  };

  // Text -> AST. Every construct of the language is read, built or not.
  auto ast = lang::parse(source, {.positional = script.positional}, diagnostics);
  if (diagnostics.has_errors()) return failed(diagnostics);

  // The script's own settings; what the environment says goes before.
  lang::apply_config(ast, options, diagnostics);
  options.named = script.named;

  // AST -> typed program. From here on names are resolved, types known, and what is not built has
  // been refused by name.
  auto typed = lang::analyze(ast, world, options, diagnostics);
  if (!typed || diagnostics.has_errors()) return failed(diagnostics);

  // Typed program -> Bundle. From here on nothing knows the language.
  auto bundle = lang::generate(*typed, options);
  if (!bundle) return failed(bundle.error());

  return Compiled{std::move(*bundle), diagnostics.all().empty()
                                          ? std::string()
                                          : render(source, diagnostics, render_options())};
}

namespace {

std::string dump_bundle(const bundle::Bundle& bundle) {
  std::string text;
  for (size_t i = 0; i < bundle.maps.size(); i++) {
    const auto& map = bundle.maps[i];
    text += fmt::format("map[{}] {}: {} bytes -> {} bytes, {} entries\n", i,
                        map.name.empty() ? "(internal)" : map.name, map.key_size, map.value_size,
                        map.max_entries);
  }
  for (size_t i = 0; i < bundle.probes.size(); i++) {
    text += fmt::format("probe[{}] {}{}: program {}\n", i,
                        bundle.probes[i].entry_of < 0 ? "" : "entry of ", bundle.probes[i].name,
                        bundle.probes[i].program);
  }
  for (size_t i = 0; i < bundle.programs.size(); i++) {
    text += fmt::format("\nprogram[{}] {}:\n{}", i, bundle.programs[i].name,
                        bpf::disassemble(bundle.programs[i].code));
  }
  return text;
}

}  // namespace

std::expected<std::string, std::string> dump_stage(const Script& script,
                                                   lang::World& world,
                                                   lang::CompileOptions options,
                                                   std::string_view stage) {
  options.positional = script.positional;
  Diagnostics diagnostics;
  const Source source = with_imports(script, diagnostics);
  auto failed = [&] { return std::unexpected(render(source, diagnostics, render_options())); };
  if (stage == "tokens") return lang::print_tokens(source, lang::lex(source, diagnostics));
  auto ast = lang::parse(source, {.positional = script.positional}, diagnostics);
  if (stage == "ast" && !diagnostics.has_errors()) return lang::print_ast(ast);
  if (diagnostics.has_errors()) return failed();
  lang::apply_config(ast, options, diagnostics);
  options.named = script.named;
  auto typed = lang::analyze(ast, world, options, diagnostics);
  if (!typed || diagnostics.has_errors()) return failed();
  if (stage == "typed") return lang::print_typed(*typed);
  auto bundle = lang::generate(*typed, options);
  if (!bundle) return std::unexpected(render(source, bundle.error(), render_options()));
  return dump_bundle(*bundle);
}

}  // namespace spile::session
