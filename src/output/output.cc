#include "output/output.h"

#include <algorithm>

namespace spile::output {

std::string message_line(bool is_error, const bundle::ScriptPlace& place, std::string_view text) {
  return fmt::format("{}{}{}: {}\n", place.text, place.text.empty() ? "" : ": ",
                     is_error ? "ERROR" : "WARNING", text);
}

Result<void> Output::test_result(std::string_view name, std::string_view why) {
  return write(why.empty() ? fmt::format("PASS {}\n", name)
                           : fmt::format("FAIL {}: {}\n", name, why));
}
Result<void> Output::test_summary(size_t passed, size_t failed) {
  return write(fmt::format("{} passed, {} failed\n", passed, failed));
}

/// bpftrace's table: as wide as its widest cells.
Result<void> Output::benchmarks(const std::vector<Benchmark>& rows) {
  size_t widest = 9, longest = 11;  // of the headers
  for (const Benchmark& row : rows) {
    widest = std::max(widest, row.name.size());
    longest = std::max(longest, fmt::format("{:.0f}", row.ns).size());
  }
  const std::string rule = fmt::format("+{:-<{}}+{:-<{}}+\n", "", widest + 2, "", longest + 2);
  std::string text = rule;
  text += fmt::format("| {:<{}} | {:<{}} |\n", "BENCHMARK", widest, "NANOSECONDS", longest) + rule;
  for (const Benchmark& row : rows)
    text += fmt::format("| {:<{}} | {:<{}.0f} |\n", row.name, widest, row.ns, longest);
  return write(text + rule);
}

Result<void> TextOutput::attached_probes(size_t) {
  return {};
}
Result<void> TextOutput::printf(std::string_view text) {
  return write(text);
}
Result<void> TextOutput::value(const Value& value) {
  return write(to_text(value) + "\n");
}
Result<void> TextOutput::map(const MapRows& rows) {
  return write(map_text(rows));
}
Result<void> TextOutput::time(std::string_view text) {
  return write(text);
}
Result<void> TextOutput::join(std::string_view text) {
  return write(text);
}
Result<void> TextOutput::system(std::string_view text) {
  return write(text);
}
Result<void> TextOutput::cat(std::string_view text) {
  return write(text);
}
Result<void> TextOutput::lost_events(uint64_t count) {
  return write(fmt::format("Lost {} events\n", count));
}
Result<void> TextOutput::message(bool is_error,
                                 const bundle::ScriptPlace& place,
                                 std::string_view text) {
  SPILE_TRY_VOID(messages_.write(message_line(is_error, place, text)));
  return messages_.flush();
}
Result<void> TextOutput::end() {
  return write("\n\n");
}

Result<void> JsonOutput::attached_probes(size_t count) {
  return write(fmt::format(
      "{{\"type\": \"attached_probes\", \"count\": {0}, \"data\": {{\"probes\": {0}}}}}\n", count));
}

Result<void> JsonOutput::test_result(std::string_view name, std::string_view why) {
  return write(fmt::format(
      "{{\"type\": \"test_result\", \"data\": {{\"name\": {}, \"passed\": {}, \"reason\": {}}}}}\n",
      json_string(name), why.empty(), json_string(why)));
}
Result<void> JsonOutput::test_summary(size_t, size_t) {
  return {};
}
Result<void> JsonOutput::benchmarks(const std::vector<Benchmark>& rows) {
  for (const Benchmark& row : rows)
    SPILE_TRY_VOID(write(fmt::format(
        "{{\"type\": \"benchmark_result\", \"data\": {{\"name\": {}, \"ns\": {:.0f}}}}}\n",
        json_string(row.name), row.ns)));
  return {};
}

Result<void> JsonOutput::text_message(std::string_view type, std::string_view text) {
  return write(fmt::format("{{\"type\": \"{}\", \"data\": {}}}\n", type, json_string(text)));
}

Result<void> JsonOutput::printf(std::string_view text) {
  return text_message("printf", text);
}
Result<void> JsonOutput::time(std::string_view text) {
  return text_message("time", text);
}
Result<void> JsonOutput::join(std::string_view text) {
  return text_message("join", text);
}
Result<void> JsonOutput::system(std::string_view text) {
  return text_message("syscall", text);
}
Result<void> JsonOutput::cat(std::string_view text) {
  return text_message("cat", text);
}
Result<void> JsonOutput::map(const MapRows& rows) {
  return write(map_json(rows));
}
Result<void> JsonOutput::end() {
  return {};
}

Result<void> JsonOutput::value(const Value& value) {
  return write(fmt::format("{{\"type\": \"value\", \"data\": {}}}\n", to_json(value)));
}

Result<void> JsonOutput::message(bool is_error,
                                 const bundle::ScriptPlace& place,
                                 std::string_view text) {
  return write(fmt::format(
      "{{\"type\": \"{}\", \"msg\": {}, \"filename\": {}, \"line\": {}, \"col\": {}}}\n",
      is_error ? "errorf" : "warnf", json_string(text), json_string(place.file), place.line,
      place.column));
}

Result<void> JsonOutput::lost_events(uint64_t count) {
  return write(fmt::format(
      "{{\"type\": \"lost_events\", \"count\": {0}, \"data\": {{\"events\": {0}}}}}\n", count));
}

}  // namespace spile::output
