#include "lang/sema/config.h"

#include <algorithm>
#include <array>
#include <vector>

namespace spile::lang {

namespace {

using ast::ConfigEntry;

/// Of bpftrace's own machinery: LLVM's stack, its symbol caches, its licence note, its limits on
/// what it generates. A script that sets them means the same without.
constexpr auto kWithoutMeaning = std::to_array<std::string_view>(
    {"cache_user_symbols", "cpp_demangle", "lazy_symbolication", "license", "log_size",
     "max_bpf_progs", "max_probes", "on_stack_limit", "show_debug_info", "str_trunc_trailer",
     "unstable_dw_ustack", "unstable_import", "unstable_import_statement", "unstable_macro",
     "unstable_map_decl", "unstable_tseries", "unstable_typeinfo", "use_blazesym"});
constexpr auto kKnown =
    std::to_array<std::string_view>({"max_strlen", "max_map_keys", "perf_rb_pages", "max_cat_bytes",
                                     "missing_probes", "print_maps_on_exit", "stack_mode"});

class Applier {
 public:
  Applier(CompileOptions& options, Diagnostics& diagnostics)
      : options_(options), diagnostics_(diagnostics) {}

  void apply(const ConfigEntry& entry) {
    if (std::ranges::find(kWithoutMeaning, entry.key) != kWithoutMeaning.end()) return;
    if (std::ranges::find(kKnown, entry.key) == kKnown.end()) return unknown(entry);
    if (options_.fixed.contains(entry.key)) return;
    if (entry.key == "max_strlen")
      return number(entry, 8, CompileOptions::kMaxStrlen, options_.max_strlen);
    if (entry.key == "max_map_keys") return number(entry, 1, 1u << 24, options_.max_map_keys);
    if (entry.key == "max_cat_bytes") return number(entry, 1, 1u << 30, options_.max_cat_bytes);
    if (entry.key == "perf_rb_pages") {
      uint32_t pages = options_.ring_bytes / kPageBytes;
      number(entry, 1, 1u << 18, pages);
      options_.ring_bytes = pages * kPageBytes;
      return;
    }
    if (entry.key == "print_maps_on_exit") return truth(entry, options_.prints_maps);
    if (entry.key == "stack_mode") return stack_mode(entry);
    missing_probes(entry);
  }

 private:
  static constexpr uint32_t kPageBytes = 4096;

  void unknown(const ConfigEntry& entry) {
    Diagnostic& diagnostic =
        diagnostics_.error(entry.key_span, "config: there is no setting '{}'", entry.key);
    std::vector<std::string_view> names(kKnown.begin(), kKnown.end());
    names.insert(names.end(), kWithoutMeaning.begin(), kWithoutMeaning.end());
    const std::string_view near = nearest(entry.key, names);
    if (!near.empty()) diagnostic.with_hint("did you mean '{}'?", near);
  }

  void number(const ConfigEntry& entry, uint64_t least, uint64_t most, uint32_t& value) {
    if (entry.kind == ConfigEntry::Kind::kInteger && entry.integer >= least &&
        entry.integer <= most) {
      value = static_cast<uint32_t>(entry.integer);
    } else {
      diagnostics_.error(entry.value_span, "config: {} is a number from {} to {}", entry.key, least,
                         most);
    }
  }

  void truth(const ConfigEntry& entry, bool& value) {
    const bool is_number = entry.kind == ConfigEntry::Kind::kInteger && entry.integer <= 1;
    if (entry.kind == ConfigEntry::Kind::kBool || is_number) {
      value = entry.integer != 0;
    } else {
      diagnostics_.error(entry.value_span, "config: {} is true or false", entry.key);
    }
  }

  void stack_mode(const ConfigEntry& entry) {
    using bundle::StackMode;
    if (entry.text == "bpftrace") {
      options_.stack_mode = StackMode::kBpftrace;
    } else if (entry.text == "perf") {
      options_.stack_mode = StackMode::kPerf;
    } else if (entry.text == "raw") {
      options_.stack_mode = StackMode::kRaw;
    } else {
      diagnostics_.error(entry.value_span, "config: stack_mode is bpftrace, perf or raw");
    }
  }

  void missing_probes(const ConfigEntry& entry) {
    if (entry.text == "error") {
      options_.missing_probes = MissingProbes::kError;
    } else if (entry.text == "warn") {
      options_.missing_probes = MissingProbes::kWarn;
    } else if (entry.text == "ignore") {
      options_.missing_probes = MissingProbes::kIgnore;
    } else {
      diagnostics_.error(entry.value_span, "config: missing_probes is error, warn or ignore");
    }
  }

  CompileOptions& options_;
  Diagnostics& diagnostics_;
};

}  // namespace

void apply_config(const ast::Program& program, CompileOptions& options, Diagnostics& diagnostics) {
  Applier applier(options, diagnostics);
  for (const ConfigEntry& entry : program.config) applier.apply(entry);
}

}  // namespace spile::lang
