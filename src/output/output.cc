#include "output/output.h"

namespace spile::output {

std::string message_line(bool is_error, const bundle::ScriptPlace& place, std::string_view text) {
  return fmt::format("{}{}{}: {}\n", place.text, place.text.empty() ? "" : ": ",
                     is_error ? "ERROR" : "WARNING", text);
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
