#include "output/output.h"

namespace spile::output {

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

Result<void> JsonOutput::lost_events(uint64_t count) {
  return write(fmt::format(
      "{{\"type\": \"lost_events\", \"count\": {0}, \"data\": {{\"events\": {0}}}}}\n", count));
}

}  // namespace spile::output
