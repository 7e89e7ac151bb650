#include "session/tracepoint_format.h"

#include <algorithm>
#include <charconv>
#include <optional>

namespace spile::session {
namespace {

using lang::EventField;
using Shape = EventField::Shape;

constexpr size_t kMaxFields = 1024;
constexpr uint32_t kMaxRecordBytes = 1 << 16;  ///< an event is at most a page; we are generous

std::string_view trim(std::string_view s) {
  const auto first = s.find_first_not_of(" \t\r"), last = s.find_last_not_of(" \t\r");
  return first == std::string_view::npos ? std::string_view() : s.substr(first, last - first + 1);
}

bool is_name_char(char c) {
  return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

/// The value of "key:value" among the parts of a line; empty where it is missing or no number.
std::optional<uint32_t> number_of(std::string_view line, std::string_view key) {
  const auto at = line.find(key);
  if (at == std::string_view::npos) return std::nullopt;
  const auto digits = line.substr(at + key.size());
  uint32_t value = 0;
  const auto [end, error] = std::from_chars(digits.begin(), digits.end(), value);
  if (error != std::errc() || end == digits.begin()) return std::nullopt;
  return value;
}

/// "char prev_comm[16]" -> "prev_comm", "char[16]"; "__data_loc char[] name" -> "name", "__data_loc
/// char[]".
bool split_declaration(std::string_view declaration, EventField& field) {
  declaration = trim(declaration);
  std::string_view array;
  if (const auto bracket = declaration.find('[');
      bracket != std::string_view::npos && declaration.ends_with(']')) {
    array = declaration.substr(bracket);
    declaration = trim(declaration.substr(0, bracket));
  }
  size_t start = declaration.size();
  while (start > 0 && is_name_char(declaration[start - 1])) --start;
  const auto type = trim(declaration.substr(0, start));
  if (start == declaration.size() || type.empty()) return false;
  field.name = std::string(declaration.substr(start));
  field.type = std::string(type) + std::string(array);
  return true;
}

Shape location_shape(std::string_view type, Shape of_string, Shape otherwise) {
  return type.ends_with(" char[]") ? of_string : otherwise;
}

Shape array_shape(const EventField& field) {
  if (field.size == 0) return Shape::kOther;  // char x[]: the rest of the record
  const auto element = std::string_view(field.type).substr(0, field.type.find('['));
  if (element == "char" || element == "const char") return Shape::kCharArray;
  return element.starts_with("struct ") || element.starts_with("union ") ? Shape::kOther
                                                                         : Shape::kIntArray;
}

Shape shape_of(const EventField& field) {
  const std::string_view type = field.type;
  if (type.starts_with("__data_loc"))
    return location_shape(type, Shape::kDataLocStr, Shape::kDataLoc);
  if (type.starts_with("__rel_loc")) return location_shape(type, Shape::kRelLocStr, Shape::kOther);
  if (type.ends_with(']')) return array_shape(field);
  if (type.ends_with('*')) return field.size == 8 ? Shape::kPointer : Shape::kOther;
  if (type.starts_with("struct ") || type.starts_with("union ")) return Shape::kOther;
  return field.size == 1 || field.size == 2 || field.size == 4 || field.size == 8 ? Shape::kInt
                                                                                  : Shape::kOther;
}

std::optional<EventField> parse_field(std::string_view line) {
  const auto declaration = line.substr(0, line.find(';'));
  const auto rest = line.substr(declaration.size());
  const auto offset = number_of(rest, "offset:"), size = number_of(rest, "size:");
  EventField field;
  if (!offset || !size || *offset > kMaxRecordBytes || *size > kMaxRecordBytes ||
      !split_declaration(declaration, field))
    return std::nullopt;
  field.offset = *offset;
  field.size = *size;
  field.is_signed = number_of(rest, "signed:").value_or(0) != 0;
  field.shape = shape_of(field);
  return field;
}

}  // namespace

Result<lang::Tracepoint> parse_tracepoint_format(std::string_view category,
                                                 std::string_view event,
                                                 std::string_view text) {
  constexpr std::string_view kField = "field:";
  lang::Tracepoint tracepoint{std::string(category), std::string(event), 0, {}};
  while (!text.empty()) {
    const auto line = trim(text.substr(0, text.find('\n')));
    text.remove_prefix(std::min(text.size(), text.find('\n') == std::string_view::npos
                                                 ? text.size()
                                                 : text.find('\n') + 1));
    if (line.starts_with("print fmt:")) break;
    if (!line.starts_with(kField)) continue;
    auto field = parse_field(line.substr(kField.size()));
    if (!field || tracepoint.fields.size() >= kMaxFields)
      return fail(ErrorCode::kCorrupt,
                  "the format of tracepoint:{}:{} has a line that is not understood: {}", category,
                  event, line);
    tracepoint.record_size = std::max(tracepoint.record_size, field->offset + field->size);
    tracepoint.fields.push_back(std::move(*field));
  }
  if (tracepoint.fields.empty())
    return fail(ErrorCode::kCorrupt, "the format of tracepoint:{}:{} lists no fields", category,
                event);
  return tracepoint;
}

}  // namespace spile::session
