// Probes of user code -> places in files, checked: the kernel takes any offset and replaces a byte
// there, so that a probe inside an instruction would change what the program computes.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/address.h"
#include "base/error.h"
#include "bundle/bundle.h"
#include "symbols/module_symbols.h"

namespace spile::kernel_engine {

struct FileSite {
  FileOffset offset;
  FileOffset semaphore;  ///< usdt: of the counter that the kernel keeps above 0; 0: none
};

/// File offsets of uprobes and static tracepoints; a file's symbols are read once.
class SiteResolver {
 public:
  /// More than one where static functions share a name. Errors: not found, no such function;
  /// invalid, the address is not in the file's code, or not where an instruction begins;
  /// unsupported, an IFUNC, or a semaphore beyond what the kernel's interface can name; unsafe,
  /// code that cannot be decoded up to there, or of which no function is known.
  Result<std::vector<FileSite>> resolve(const bundle::Probe& probe);

 private:
  Result<const symbols::ModuleSymbols*> module(const std::string& path);

  std::map<std::string, std::unique_ptr<symbols::ModuleSymbols>> modules_;
};

/// Refuses an address that is not the first byte of an instruction: decodes the function from its
/// start. Where no function is known nothing can be decoded: refused, too. Errors: invalid, unsafe.
Result<void> check_boundary(const symbols::ModuleSymbols& module, LinkAddr address);

}  // namespace spile::kernel_engine
