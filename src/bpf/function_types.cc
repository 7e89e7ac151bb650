#include "bpf/function_types.h"

#include <cstring>
#include <string>

namespace spile::bpf {

namespace {

constexpr uint32_t kKindInt = 1, kKindFunc = 12, kKindFuncProto = 13;
constexpr uint32_t kSigned = 1u << 24;
constexpr uint32_t kIntId = 1, kLongId = 2, kProtoId = 3;
constexpr uint32_t kParameters = 4;

class BtfWriter {
 public:
  /// Offset of the string.
  uint32_t name(const std::string& text) {
    const auto at = static_cast<uint32_t>(strings_.size());
    strings_.insert(strings_.end(), text.begin(), text.end());
    strings_.push_back(0);
    return at;
  }
  /// `last`: the size of an int, the type of others.
  void type(const std::string& text, uint32_t kind, uint32_t count, uint32_t last) {
    word(text.empty() ? 0 : name(text));
    word(kind << 24 | count);
    word(last);
  }
  void word(uint32_t value) { types_.push_back(value); }

  std::vector<uint8_t> finish() && {
    const auto types = static_cast<uint32_t>(types_.size() * sizeof(uint32_t));
    const auto strings = static_cast<uint32_t>(strings_.size());
    constexpr uint32_t kHeaderBytes = 24, kMagicAndVersion = 0x0001eb9f;
    const uint32_t header[] = {kMagicAndVersion, kHeaderBytes, 0, types, types, strings};
    std::vector<uint8_t> out(kHeaderBytes + types + strings);
    std::memcpy(out.data(), header, kHeaderBytes);
    std::memcpy(out.data() + kHeaderBytes, types_.data(), types);
    std::memcpy(out.data() + kHeaderBytes + types, strings_.data(), strings);
    return out;
  }

 private:
  std::vector<uint32_t> types_;
  std::vector<uint8_t> strings_{0};
};

void number_type(BtfWriter& writer, const char* name, uint32_t bytes) {
  writer.type(name, kKindInt, 0, bytes);
  writer.word(kSigned | bytes * 8);
}

}  // namespace

FunctionTypes function_types(std::span<const uint32_t> starts) {
  BtfWriter writer;
  number_type(writer, "int", 4);
  number_type(writer, "long", 8);
  writer.type("", kKindFuncProto, kParameters, kIntId);
  for (uint32_t i = 0; i < kParameters; ++i) {
    writer.word(writer.name("p" + std::to_string(i)));
    writer.word(kLongId);
  }
  FunctionTypes types;
  for (uint32_t i = 0; i <= starts.size(); ++i) {
    writer.type("f" + std::to_string(i), kKindFunc, 0, kProtoId);
    types.functions.push_back({i == 0 ? 0 : starts[i - 1], kProtoId + 1 + i});
  }
  types.btf = std::move(writer).finish();
  return types;
}

}  // namespace spile::bpf
