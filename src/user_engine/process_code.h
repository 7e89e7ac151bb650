// The code of a whole process, module by module as it is asked for: what following a function's
// tail jumps takes.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "user_engine/module_code.h"
#include "user_engine/patch/exits.h"
#include "user_engine/target/process.h"

namespace spile::user_engine {

/// Images of a process's modules, each loaded at its first use.
class ProcessImages {
 public:
  static Result<ProcessImages> open(const target::Target& target);

  const std::vector<target::Module>& modules() const { return modules_; }
  /// Errors: those of ModuleImage::load.
  Result<ModuleImage*> image_of(const target::Module& module);
  /// nullptr where no module is, or it cannot be loaded.
  ModuleImage* image_at(TargetAddr at);
  const target::Module* module_at(TargetAddr at) const;

  /// The images made so far; they stay where they are.
  std::vector<std::unique_ptr<ModuleImage>> take() { return std::move(images_); }

 private:
  const target::Target* target_ = nullptr;
  std::vector<target::Module> modules_;
  std::vector<std::unique_ptr<ModuleImage>> images_;
};

/// Reads the process's memory: what a word of the global offset table holds decides where a tail
/// jump goes. A word that the loader has not bound yet, or not even relocated, is followed to every
/// function that it may be bound to: all that modules export under its name.
class ProcessCode : public patch::CodeSource {
 public:
  ProcessCode(const target::Target& target, ProcessImages& images)
      : target_(target), images_(images) {}

  const patch::CodeMap* code_at(TargetAddr at) override;
  std::vector<TargetAddr> slot_targets(TargetAddr slot) override;
  std::vector<TargetAddr> landing_pads(TargetAddr function) override;
  bool is_loaders_slot(TargetAddr slot) override;
  std::vector<TargetAddr> pointer_targets(const patch::PointerPath& path) override;
  const std::vector<TargetAddr>& table_targets(TargetAddr at, int64_t offset) override;

 private:
  /// Functions that follow each other in data.
  using FunctionTable = std::vector<TargetAddr>;
  const std::vector<FunctionTable>& tables_of(const ModuleImage& image);
  void find_tables(const target::Segment& segment,
                   const patch::CodeMap& map,
                   std::vector<FunctionTable>& tables) const;
  const std::set<uint64_t>& loaders_slots(const target::Module& module);
  std::string unbound_name(const ModuleImage& image, TargetAddr slot, TargetAddr stub) const;
  std::string name_in_relocation(TargetAddr slot) const;
  const std::vector<TargetAddr>& exported(const std::string& name);
  void add_exports(const target::Module& module,
                   const std::string& name,
                   std::vector<TargetAddr>& found);
  std::vector<TargetAddr> chosen_by(const target::Module& module,
                                    const elf::File& file,
                                    LinkAddr resolver) const;

  const target::Target& target_;
  ProcessImages& images_;
  std::map<const ModuleImage*, std::unique_ptr<patch::CodeMap>> maps_;
  std::map<std::string, std::vector<TargetAddr>> exports_;
  /// Export tables of modules that no image is needed of. By start.
  std::map<uint64_t, std::unique_ptr<elf::File>> files_;
  std::map<uint64_t, std::vector<elf::Symbol>> symbols_;
  std::map<const ModuleImage*, std::vector<FunctionTable>> tables_;
  /// A program has many jumps through its tables, and few offsets.
  std::map<std::pair<const ModuleImage*, int64_t>, std::vector<TargetAddr>> table_targets_;
  std::map<uint64_t, std::set<uint64_t>> loaders_slots_;  ///< by start of the module
};

}  // namespace spile::user_engine
