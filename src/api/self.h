// The program itself as the planner wants to see it: modules, symbols, code, where functions
// return.
//
// Made at the first registration, made anew when libraries have come or gone, and in a forked
// child. Reading a module costs what attaching to it does: milliseconds for a large one, once.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/error.h"
#include "user_engine/patch/exits.h"
#include "user_engine/process_code.h"

namespace spile::api {

class Self {
 public:
  /// Errors: those of target::Target::open; denied, a program that may not look at itself.
  static Result<Self*> now();
  /// Changes when libraries have come or gone.
  unsigned long long generation() const { return loads_; }
  /// Closes the descriptors. Programs close what they do not know, and the numbers become somebody
  /// else's.
  static void let_go();

  /// Addresses of the functions named "f" or "library:f"; the first module that has some, the
  /// program before its libraries. Errors: not found.
  Result<std::vector<TargetAddr>> find(const std::string& name);
  /// All functions that match "glob" (of the program) or "library:glob", and not `except`; by
  /// address, each once.
  Result<std::vector<TargetAddr>> match(const std::string& filter, const std::string& except);
  /// nullptr: no code of a module is there.
  const user_engine::ModuleImage* image_at(TargetAddr at);
  /// "f+0x10 library.so", or "".
  std::string describe(TargetAddr at);
  /// Where the functions that begin at `starts` return; the text of each module is searched once
  /// for all.
  using FoundReturns = std::map<TargetAddr, std::expected<patch::Returns, patch::Refusal>>;
  Result<FoundReturns> returns_of(std::span<const TargetAddr> starts);

 private:
  Self() = default;
  /// Before anything of the program is read; what has been read already needs no descriptors.
  Result<void> look();
  Result<user_engine::ModuleImage*> image_of(const target::Module& module);
  static std::unique_ptr<Self>& instance();
  bool is_current() const;
  std::vector<const target::Module*> modules_named(const std::string& library) const;

  /// Only between look() and let_go(); what refers to it finds it at the same place again.
  std::optional<target::Target> target_;
  user_engine::ProcessImages images_;
  std::unique_ptr<user_engine::ProcessCode> code_;
  /// Of functions that leave by nothing but returns: nothing that changes later decides that.
  FoundReturns plain_returns_;
  std::set<const target::Module*> known_;  ///< their images have been read
  unsigned long long loads_ = 0;
  pid_t pid_ = 0;
};

}  // namespace spile::api
