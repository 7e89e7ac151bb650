#include "elf/usdt_fields.h"

#include <cctype>
#include <optional>

#include "elf/notes.h"
#include "elf/reader.h"

namespace spile::elf {
namespace {

constexpr std::string_view kSection = ".note.spile";
constexpr std::string_view kOwner{"spile", 6};  // with its NUL
enum Type : uint32_t { kTracepoint = 1, kClass = 2, kOfClass = 3 };
constexpr size_t kMaxFields = 8;

bool is_name(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_';
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

/// "const char* path": what is in front of the last word, and that.
std::optional<UsdtField> parse_field(std::string_view text) {
  text = trimmed(text);
  size_t begin = text.size();
  while (begin > 0 && is_name(text[begin - 1])) --begin;
  const auto type = trimmed(text.substr(0, begin)), name = text.substr(begin);
  const bool is_plain = text.find_first_of("()[]=") == std::string_view::npos;
  if (!is_plain || type.empty() || name.empty() || std::isdigit(name[0]) != 0) return {};
  return UsdtField{std::string(type), std::string(name)};
}

/// The commas of "std::pair<int, long> x" are not between fields.
size_t end_of_field(std::string_view text) {
  int depth = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '<' || text[i] == '(') ++depth;
    if (text[i] == '>' || text[i] == ')') --depth;
    if (text[i] == ',' && depth == 0) return i;
  }
  return text.size();
}

/// Text by key; two that differ leave none.
class Texts {
 public:
  void add(const std::string& key, std::string_view text) {
    const auto [at, is_new] = texts_.try_emplace(key, text);
    if (!is_new && at->second != text) at->second = {};
  }
  std::string_view at(const std::string& key) const {
    const auto found = texts_.find(key);
    return found == texts_.end() ? std::string_view() : found->second;
  }

 private:
  std::map<std::string, std::string_view> texts_;
};

std::string last_component(std::string_view name) {
  const size_t colons = name.rfind("::");
  return std::string(colons == std::string_view::npos ? name : name.substr(colons + 2));
}

}  // namespace

std::vector<UsdtField> parse_usdt_fields(std::string_view parameters) {
  std::vector<UsdtField> fields;
  while (!trimmed(parameters).empty()) {
    const size_t end = end_of_field(parameters);
    auto field = parse_field(parameters.substr(0, end));
    if (!field || fields.size() == kMaxFields) return {};
    fields.push_back(std::move(*field));
    parameters.remove_prefix(std::min(end + 1, parameters.size()));
  }
  return fields;
}

Result<std::map<std::pair<std::string, std::string>, std::vector<UsdtField>>> read_usdt_fields(
    const File& file) {
  SPILE_TRY(const auto notes, read_notes(file, kSection));
  Texts classes;
  struct Described {
    std::pair<std::string, std::string> name;
    std::string_view text;
    bool is_class;
  };
  std::vector<Described> described;
  for (const Note& note : notes) {
    if (note.owner != kOwner || note.type < kTracepoint || note.type > kOfClass) continue;
    Reader reader(note.data);
    const auto first = reader.string(), second = reader.string();
    const auto third = note.type == kClass ? std::string_view() : reader.string();
    if (!reader.ok())
      return fail(ErrorCode::kCorrupt, "{}: the note at byte {:#x} of {} is damaged", file.path(),
                  note.at, kSection);
    if (note.type == kClass) {
      classes.add(last_component(first), second);
    } else {
      described.push_back(
          {{std::string(first), std::string(second)}, third, note.type == kOfClass});
    }
  }
  std::map<std::pair<std::string, std::string>, std::vector<UsdtField>> all;
  for (const Described& one : described) {
    auto fields = parse_usdt_fields(one.is_class ? classes.at(last_component(one.text)) : one.text);
    const auto [at, is_new] = all.try_emplace(one.name, fields);
    if (!is_new && at->second != fields) at->second.clear();
  }
  std::erase_if(all, [](const auto& one) { return one.second.empty(); });
  return all;
}

}  // namespace spile::elf
