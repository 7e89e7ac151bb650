// What a trace says, as frames for the library: include/spile/detail/tracer_core.h has the
// protocol.
#pragma once

#include <string>

#include "engine/engine.h"
#include "output/output.h"

namespace spile::output {

class WireOutput final : public Output {
 public:
  using Output::Output;

  Result<void> attached_probes(size_t count) override;
  Result<void> printf(std::string_view text) override;
  Result<void> value(const Value& value) override;
  Result<void> map(const MapRows& rows) override;
  Result<void> time(std::string_view text) override;
  Result<void> join(std::string_view text) override;
  Result<void> system(std::string_view text) override;
  Result<void> cat(std::string_view text) override;
  Result<void> message(bool is_error,
                       const bundle::ScriptPlace& place,
                       std::string_view words) override;
  Result<void> lost_events(uint64_t count) override;
  Result<void> end() override;

  /// Of the script, before it runs. Lines and columns from 1.
  Result<void> script_error(uint32_t line,
                            uint32_t column,
                            std::string_view message,
                            std::string_view hint);
  Result<void> stats(const engine::Stats& stats, uint64_t lost);
  /// The next map() answers a request.
  void answer_next_map() { answers_ = true; }
  Result<void> no_map(std::string_view why);

 private:
  Result<void> send(unsigned type, std::string_view body);
  Result<void> text(unsigned source, std::string_view text);
  bool answers_ = false;
};

}  // namespace spile::output
