// What the bytes of a value refer to: the bundle they were made for, kept stacks, names of
// addresses.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "bundle/bundle.h"
#include "engine/engine.h"

namespace spile::output {

/// A name for an address.
struct Name {
  std::string symbol;
  uint64_t offset = 0;  ///< bytes after its start
  std::string module;   ///< file, or kernel module; "" for the kernel itself
};

/// Who knows the processes and the kernel. Answers may cost the reading of a file, once.
class Names {
 public:
  virtual ~Names() = default;
  /// Nothing: no symbol covers the address, or the process is gone and was never looked at.
  virtual std::optional<Name> user(uint64_t pid, uint64_t address) = 0;
  virtual std::optional<Name> kernel(uint64_t address) = 0;
};

/// All that reading a value may need. Without names addresses are printed as numbers, without a
/// trace stacks are empty.
struct Meaning {
  Meaning(const bundle::Bundle& b) : bundle(b) {}  // NOLINT: mostly a bundle is all there is
  Meaning(const bundle::Bundle& b, Names* n, engine::Trace* t) : bundle(b), names(n), trace(t) {}

  const bundle::Bundle& bundle;
  Names* names = nullptr;
  engine::Trace* trace = nullptr;
  uint32_t stack_indent = 8;  ///< blanks before each line of a stack; bpftrace has 4 in keys
};

/// `fopen`, or the address as `0x7f00` where there is no name: usym(), ksym().
std::string user_symbol_text(uint64_t pid, uint64_t address, const Meaning& meaning);
std::string kernel_symbol_text(uint64_t address, const Meaning& meaning);

/// A stack as bpftrace prints it: a line break, then a line a frame. `id` is what get_stackid gave:
/// a negative one is an empty stack, or one that was lost.
std::string stack_text(const bundle::ValueType& type,
                       int64_t id,
                       uint64_t pid,
                       const Meaning& meaning);

}  // namespace spile::output
