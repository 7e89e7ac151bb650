// Random instructions of real libraries, planned and placed together; the oracle looks at every
// state between two writes.
//
// SPILE_PLACEMENT_ROUNDS=1000 tries more, SPILE_PLACEMENT_SEED others, SPILE_PLACEMENT_FILE=...
// another library.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

#include "user_engine/patch/code_map.h"
#include "user_engine/patch/coverage/elf_code.h"
#include "user_engine/patch/coverage/process_model.h"
#include "user_engine/patch/testing/machine.h"
#include "user_engine/patch/testing/placement_oracle.h"

namespace spile::patch {
namespace {

constexpr const char* kLibraries[] = {"/lib/x86_64-linux-gnu/libc.so.6",
                                      "/lib/x86_64-linux-gnu/libm.so.6",
                                      "/usr/lib/x86_64-linux-gnu/libcrypto.so.3"};

/// Heads of the instructions of some neighbouring functions: all, or some of them.
std::vector<TargetAddr> some_instructions(const ElfCode& code, std::mt19937_64& random) {
  const CodeMap map(code.module);
  std::vector<TargetAddr> sites;
  const uint64_t one_in = 1 + random() % 4;
  size_t first = random() % code.entries.size();
  for (size_t i = first; i < std::min(first + 4, code.entries.size()); ++i) {
    const Sweep swept = sweep(map, map.region_at(code.entries[i]));
    for (const SweptInsn& insn : swept.insns) {
      if (random() % one_in == 0) sites.push_back(swept.address(insn));
    }
  }
  std::ranges::shuffle(sites, random);
  if (sites.size() > 600) sites.resize(600);
  return sites;
}

/// Free address space with holes, so that the later ways are gone too.
StoneSpace some_space(const ElfCode& code, std::mt19937_64& random) {
  if (random() % 3 == 0) return process_model(code, 64);
  std::vector<StoneSpace::Range> free;
  const uint64_t step = (uint64_t{1} << 16) << random() % 12;
  const uint64_t share = 1 + random() % 3;
  for (uint64_t at = code.start.value - (uint64_t{1} << 31);
       at < code.end.value + (uint64_t{1} << 31); at += step) {
    const bool near = at + step > code.start.value && at < code.end.value;
    if (!near && random() % 4 < share) free.push_back({TargetAddr(at), TargetAddr(at + step)});
  }
  return {std::move(free), 4096};
}

TEST(LibraryFuzz, EveryStateBetweenTwoWritesRunsRight) {
  std::mt19937_64 random(number_from("SPILE_PLACEMENT_SEED", 1));
  size_t placed = 0, evicted = 0, joined = 0, libraries = 0;
  for (const char* library : kLibraries) {
    const char* chosen = std::getenv("SPILE_PLACEMENT_FILE");
    const auto code = read_elf_code(chosen != nullptr ? chosen : library);
    if (!code) continue;
    ++libraries;
    const PlacementOracle oracle(code->module);
    const uint64_t rounds = number_from("SPILE_PLACEMENT_ROUNDS", 12);
    for (uint64_t round = 0; round < rounds; ++round) {
      const auto sites = some_instructions(*code, random);
      const Plans plans = plan_windows(code->module, sites);
      std::vector<const SitePlan*> pointers;
      for (const SitePlan& p : plans.sites) pointers.push_back(&p);
      StoneSpace space = some_space(*code, random);
      const Placements placements = place_short_sites(code->module, pointers, space);
      ASSERT_EQ(oracle.check(plans.sites, placements, random), "")
          << library << ", round " << round;
      placed += placements.placed.size();
      evicted += placements.evicted.size();
      for (const SitePlan& p : plans.sites) joined += p.probed.size() > 1;
    }
  }
  if (libraries == 0) GTEST_SKIP() << "none of the libraries is here";
  EXPECT_GT(placed, 20u);
  EXPECT_GT(joined, 100u);
  RecordProperty("placed", static_cast<int>(placed));
  RecordProperty("evicted", static_cast<int>(evicted));
}

}  // namespace
}  // namespace spile::patch
