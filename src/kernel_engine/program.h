// The Bundle's programs as loaded programs.
#pragma once

#include <compare>
#include <map>
#include <optional>

#include "base/fd.h"
#include "kernel_engine/gate.h"
#include "kernel_engine/kernel_types.h"
#include "kernel_engine/maps.h"

namespace spile::kernel_engine {

/// What a program is loaded as.
enum class LoadType : uint8_t {
  kKprobe,
  kKprobeMulti,
  kKprobeSession,
  kUprobeMulti,
  kUprobeSession,
  kTracepoint,
  kPerfEvent,
  kTestRun,
  kRawTracepoint,
  kFentry,
  kFexit,
  kIter
};

/// Loads one program: map indices become descriptors. `target`: of the types that BTF describes.
///
/// Errors: denied; unsupported; internal, with the verifier's log: a program of ours that the
/// verifier refuses is our fault.
Result<Fd> load_program(const bundle::Program& program,
                        LoadType type,
                        const Maps& maps,
                        const TypeTarget* target = nullptr);

/// Whether this kernel takes programs at the entries of its functions. Errors: unsupported, denied.
Result<void> takes_function_programs(KernelTypes& types);

/// Runs a kTestRun program once in this process: its result.
Result<uint32_t> run_once(int program_fd, std::string_view what);

struct RunCounts {
  uint64_t runs = 0, time_ns = 0, missed = 0;
};
Result<RunCounts> run_counts(int program_fd);

/// Loaded programs, each variant once.
class Programs {
 public:
  Programs(const bundle::Bundle& bundle,
           const Maps& maps,
           const Gate& gate,
           std::shared_ptr<KernelTypes> types)
      : bundle_(bundle), maps_(maps), gate_(gate), types_(std::move(types)) {}

  /// For any probe of the program: its cookie comes with the link.
  Result<int> shared(int index, LoadType type);
  /// For one probe alone: its cookie is part of the code, and so is what BTF says of it.
  Result<int> of_probe(size_t probe, LoadType type);
  /// An entry and a return program in one. Where `entry_probe` is given the cookies of these two
  /// probes are part of the code.
  struct Pair {
    int entry = -1, at_return = -1;
    std::optional<size_t> entry_probe, return_probe;
  };
  Result<int> session(const Pair& pair, LoadType type);

  /// Of all that ran at hits.
  Result<RunCounts> counts() const;

 private:
  struct Key {
    int index;
    LoadType type;
    int64_t probe;  ///< -1: shared
    auto operator<=>(const Key&) const = default;
  };
  Result<bundle::Program> prepared(int index, LoadType type) const;

  const bundle::Bundle& bundle_;
  const Maps& maps_;
  const Gate& gate_;
  std::shared_ptr<KernelTypes> types_;
  std::map<Key, Fd> loaded_;
};

}  // namespace spile::kernel_engine
