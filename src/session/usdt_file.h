// The static tracepoints of one file, as the language wants them: places of arguments resolved.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "elf/file.h"
#include "elf/usdt_fields.h"
#include "elf/usdt_notes.h"
#include "elf/variables.h"
#include "lang/sema/world.h"

namespace spile::session {

class UsdtFile {
 public:
  /// Errors: those of elf::File::open and elf::read_usdt_notes.
  static Result<UsdtFile> load(const std::string& path);

  /// By address. UsdtSite::path is left to the caller. Only `*` is a wildcard.
  std::vector<lang::UsdtSite> sites(std::string_view provider, std::string_view name);
  const std::vector<elf::UsdtNote>& notes() const { return notes_; }

 private:
  explicit UsdtFile(elf::File file) : file_(std::make_unique<elf::File>(std::move(file))) {}
  std::vector<lang::UsdtField> fields_of(const lang::UsdtSite& site) const;
  lang::UsdtArgument argument(const elf::UsdtNote& note, std::string_view text);
  Result<int64_t> distance_to(const elf::UsdtNote& note, std::string_view symbol);

  std::unique_ptr<elf::File> file_;  ///< names point into it
  std::vector<elf::UsdtNote> notes_;
  std::map<std::pair<std::string, std::string>, std::vector<elf::UsdtField>> fields_;
  std::optional<Result<elf::Variables>> variables_;  ///< read for the first argument that names one
};

}  // namespace spile::session
