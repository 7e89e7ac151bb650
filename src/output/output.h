// What a trace says, as text or as JSON lines.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "output/map_print.h"
#include "output/sink.h"
#include "output/value.h"

namespace spile::output {

/// One row of what --bench tells.
struct Benchmark {
  std::string name;
  double ns = 0;  ///< a run
};

/// One call a message. Every call may fail with target gone: the reader of a pipe went away, and
/// the trace should end. Ends with a flush() by the caller: destructors do not write.
class Output {
 public:
  explicit Output(Sink sink) : sink_(std::move(sink)) {}
  virtual ~Output() = default;
  Output(const Output&) = delete;
  Output& operator=(const Output&) = delete;

  /// JSON only: people are told on standard error.
  virtual Result<void> attached_probes(size_t count) = 0;
  virtual Result<void> printf(std::string_view text) = 0;
  virtual Result<void> value(const Value& value) = 0;
  virtual Result<void> map(const MapRows& rows) = 0;
  virtual Result<void> time(std::string_view text) = 0;
  virtual Result<void> join(std::string_view text) = 0;
  /// What a command wrote, what a file holds.
  virtual Result<void> system(std::string_view text) = 0;
  virtual Result<void> cat(std::string_view text) = 0;
  /// Whether keys of a map that read alike are one: PrintLimits::joins_equal_texts.
  virtual bool joins_equal_texts() const { return false; }
  /// errorf() and warnf(): to people on standard error.
  virtual Result<void> message(bool is_error,
                               const bundle::ScriptPlace& place,
                               std::string_view text) = 0;
  /// `count` records were lost.
  virtual Result<void> lost_events(uint64_t count) = 0;
  /// One test of --test; `why` it did not pass, or "".
  virtual Result<void> test_result(std::string_view name, std::string_view why);
  virtual Result<void> test_summary(size_t passed, size_t failed);
  virtual Result<void> benchmarks(const std::vector<Benchmark>& rows);
  /// The script has ended; what follows are its maps.
  virtual Result<void> end() = 0;

  Result<void> flush() { return sink_.flush(); }

 protected:
  Result<void> write(std::string_view text) { return sink_.write(text); }

 private:
  Sink sink_;
};

/// What errorf() and warnf() tell people: "stdin:1:9-14: ERROR: text".
std::string message_line(bool is_error, const bundle::ScriptPlace& place, std::string_view text);

/// bpftrace's text.
class TextOutput final : public Output {
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
                       std::string_view text) override;
  Result<void> lost_events(uint64_t count) override;
  Result<void> end() override;
  /// Where message() goes; standard error as it comes.
  void send_messages_to(Sink sink) { messages_ = std::move(sink); }

 private:
  Sink messages_{2, Buffering::kLine};
};

/// bpftrace's JSON lines: one object a line, `{"type": ..., "data": ...}`.
class JsonOutput final : public Output {
 public:
  using Output::Output;
  Result<void> attached_probes(size_t count) override;
  Result<void> test_result(std::string_view name, std::string_view why) override;
  Result<void> test_summary(size_t passed, size_t failed) override;
  Result<void> benchmarks(const std::vector<Benchmark>& rows) override;
  Result<void> printf(std::string_view text) override;
  Result<void> value(const Value& value) override;
  Result<void> map(const MapRows& rows) override;
  Result<void> time(std::string_view text) override;
  Result<void> join(std::string_view text) override;
  Result<void> system(std::string_view text) override;
  Result<void> cat(std::string_view text) override;
  Result<void> message(bool is_error,
                       const bundle::ScriptPlace& place,
                       std::string_view text) override;
  Result<void> lost_events(uint64_t count) override;
  Result<void> end() override;
  bool joins_equal_texts() const override { return true; }

 private:
  Result<void> text_message(std::string_view type, std::string_view text);
};

}  // namespace spile::output
