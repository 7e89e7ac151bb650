#include "x86/format.h"

#include <Zydis/Zydis.h>
#include <fmt/format.h>

#include <vector>

#include "x86/decode.h"

namespace spile::x86 {
namespace {

struct Line {
  TargetAddr at;
  std::string bytes, text;
  bool operator==(const Line&) const = default;
};

std::vector<Line> lines_of(std::span<const uint8_t> bytes, TargetAddr at) {
  std::vector<Line> lines;
  for (size_t i = 0; i < bytes.size();) {
    const auto rest = bytes.subspan(i);
    const auto insn = decode_shape(rest);
    const size_t n = insn ? insn->length : 1;
    lines.push_back({at + i, hex(rest.first(n)), format_insn(rest, at + i)});
    i += n;
  }
  return lines;
}

std::string text_of(const Line& line) {
  return fmt::format("{}  {:<30}  {}\n", line.at, line.bytes, line.text);
}

}  // namespace

std::string hex(std::span<const uint8_t> bytes) {
  return fmt::format("{:02x}", fmt::join(bytes, " "));
}

std::string format_insn(std::span<const uint8_t> bytes, TargetAddr at) {
  ZydisDisassembledInstruction insn;
  if (ZYAN_FAILED(ZydisDisassembleATT(ZYDIS_MACHINE_MODE_LONG_64, at.value, bytes.data(),
                                      bytes.size(), &insn))) {
    return "(bad)";
  }
  return insn.text;
}

std::string format_code(std::span<const uint8_t> bytes, TargetAddr at) {
  std::string out;
  for (const Line& line : lines_of(bytes, at)) out += text_of(line);
  return out;
}

std::string format_diff(std::span<const uint8_t> before,
                        std::span<const uint8_t> after,
                        TargetAddr at) {
  const auto old_lines = lines_of(before, at), new_lines = lines_of(after, at);
  const auto marked = [](const std::vector<Line>& lines, const std::vector<Line>& others,
                         char mark) {
    std::string out;
    for (const Line& line : lines) {
      bool same = false;
      for (const Line& other : others) same |= line == other;
      out += fmt::format("{} {}", same ? ' ' : mark, text_of(line));
    }
    return out;
  };
  return marked(old_lines, new_lines, '-') + marked(new_lines, old_lines, '+');
}

}  // namespace spile::x86
