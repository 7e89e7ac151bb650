// spile_coverage [--all] [--show N] [--first N] FILE...: how many function entries take a probe,
// and why the others do not.
//   --all     also functions that only .eh_frame knows
//   --show N  print N refusals of each kind
//   --first N only the first N entries
#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <string>

#include "user_engine/patch/coverage/elf_code.h"

namespace {

using namespace spile;
using namespace spile::patch;

struct Options {
  bool all = false;
  size_t show = 0;
  size_t limit = SIZE_MAX;
};

struct Tally {
  size_t accepted = 0, flags_live = 0;
  std::map<Mechanism, size_t> mechanisms;
  std::map<RefusalKind, std::vector<std::string>> refusals;
};

Tally tally(const std::vector<Outcome>& outcomes) {
  Tally t;
  for (const Outcome& o : outcomes) {
    if (!o) {
      t.refusals[o.error().kind].push_back(o.error().reason);
      continue;
    }
    ++t.accepted;
    ++t.mechanisms[o->mechanism];
    t.flags_live += o->probed.front().flags_live;
  }
  return t;
}

void print(const Tally& t, size_t total, const Options& options) {
  const auto percent = [&](size_t n) {
    return 100.0 * static_cast<double>(n) / static_cast<double>(total);
  };
  for (const auto& [mechanism, n] : t.mechanisms)
    fmt::print("  {:32} {:8} {:7.3f} %\n", to_string(mechanism), n, percent(n));
  fmt::print("  {:32} {:8} {:7.3f} %\n", "(flags live)", t.flags_live, percent(t.flags_live));
  for (const auto& [kind, reasons] : t.refusals) {
    fmt::print("  refused: {:23} {:8} {:7.3f} %\n", to_string(kind), reasons.size(),
               percent(reasons.size()));
    for (size_t i = 0; i < reasons.size() && i < options.show; ++i) {
      // Spread over the file: neighbours look alike.
      fmt::print("      {}\n",
                 reasons[i * reasons.size() / std::min(options.show, reasons.size())]);
    }
  }
}

int report(const std::string& path, const Options& options) {
  auto code = read_elf_code(path);
  if (!code) {
    fmt::print(stderr, "{}\n", code.error().message);
    return 1;
  }
  auto sites = options.all ? code->entries : code->symbols;
  if (sites.size() > options.limit) sites.resize(options.limit);
  const auto begin = std::chrono::steady_clock::now();
  const auto outcomes = plan_sites(code->module, sites);
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  size_t text_bytes = 0;
  for (const Bytes& t : code->module.text) text_bytes += t.bytes.size();
  const Tally t = tally(outcomes);
  fmt::print("{}: {} entries, {:.1f} MB of text, {:.2f} s\n  {:32} {:8} {:7.3f} %\n", path,
             sites.size(), static_cast<double>(text_bytes) / 1e6, taken.count(), "accepted",
             t.accepted,
             100.0 * static_cast<double>(t.accepted) /
                 static_cast<double>(std::max<size_t>(sites.size(), 1)));
  print(t, std::max<size_t>(sites.size(), 1), options);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  int status = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--all") {
      options.all = true;
    } else if (arg == "--show" && i + 1 < argc) {
      options.show = std::strtoul(argv[++i], nullptr, 10);
    } else if (arg == "--first" && i + 1 < argc) {
      options.limit = std::strtoul(argv[++i], nullptr, 10);
    } else {
      status |= report(arg, options);
    }
  }
  return status;
}
