// IFUNC symbols -> the implementations that one process uses.
//
// The symbol's own address is that of a resolver, which runs once, before main, and returns the
// function that suits this CPU. The loader writes what it returned into GOT entries: those that
// name the resolver (IRELATIVE, in the module itself) and those that name the symbol (in every
// module that calls it). Their contents in the process say what we want to know; nothing is run or
// guessed.
//
// An entry that is not bound yet points to a stub of the PLT: it is passed over. Several symbols
// often share an implementation (memcpy and memmove): a probe on one then sees the calls of both.
#pragma once

#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "elf/bound_slots.h"
#include "user_engine/module_code.h"
#include "user_engine/target/process.h"

namespace spile::user_engine {

class IfuncFinder {
 public:
  IfuncFinder(const target::Target& target, const std::vector<target::Module>& modules)
      : target_(target), modules_(modules) {}

  /// Where the implementations of `symbol`, whose resolver is at `resolver`, begin in its module.
  /// Empty: the process has not bound it (yet).
  std::vector<LinkAddr> implementations(const ModuleImage& image,
                                        std::string_view symbol,
                                        LinkAddr resolver);

 private:
  const std::vector<elf::BoundSlot>& slots_of(const target::Module& module);
  void read_slot(const target::Module& owner,
                 const elf::BoundSlot& slot,
                 const ModuleImage& image,
                 std::set<LinkAddr>& found) const;

  const target::Target& target_;
  const std::vector<target::Module>& modules_;
  std::map<TargetAddr, std::vector<elf::BoundSlot>> slots_;  ///< by the module's start
  std::set<std::string> names_;                              ///< of symbols: the files are closed
};

}  // namespace spile::user_engine
