// Records from the ring -> what they ask for: text printed, maps printed or cleared, the end of the
// trace.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "base/error.h"
#include "bundle/bundle.h"
#include "engine/engine.h"
#include "output/output.h"

namespace spile::output {

class Records {
 public:
  /// All must outlive this.
  /// `names` may be null: then addresses have none.
  Records(const bundle::Bundle& bundle, Output& output, Names* names = nullptr)
      : bundle_(bundle), output_(output), names_(names) {}

  /// Does what one record asks for. Returns the exit code when it is exit().
  ///
  /// A record comes from memory that a target may write: its size, action and fields are checked.
  /// Errors:  corrupt      the record makes no sense and nothing was done; count it and go on
  ///          target gone  nobody reads the output any more: end the trace
  ///          others       of the output or of the trace
  Result<std::optional<int>> handle(std::span<const uint8_t> record, engine::Trace& trace);

  /// Does what an action of a map asks for, as its record would. Errors: as handle().
  Result<void> act(size_t action, engine::Trace& trace);

  /// Of another exit() after the first, for one: nothing that a reader misses.
  bool is_exit(std::span<const uint8_t> record) const;

  /// All maps that the script names, in the bundle's order (by name): what is printed at the end.
  /// Errors: corrupt when one of them makes no sense; the others have been printed.
  Result<void> print_maps(engine::Trace& trace);
  Result<void> print_map(int map, const PrintLimits& limits, engine::Trace& trace);

 private:
  Result<const bundle::Action*> action_of(std::span<const uint8_t> record) const;
  Result<void> run(const bundle::Action& action,
                   std::span<const uint8_t> record,
                   engine::Trace& trace);
  Result<int> exit_code(const bundle::Action& action, std::span<const uint8_t> record) const;
  Result<void> print_value(const bundle::Action& action,
                           std::span<const uint8_t> record,
                           engine::Trace& trace);
  bool has_map(int map) const;
  Result<void> no_map(int map) const;
  Result<void> join(const bundle::Action& action, std::span<const uint8_t> record);

  const bundle::Bundle& bundle_;
  Output& output_;
  Names* names_;
};

}  // namespace spile::output
