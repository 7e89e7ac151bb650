#include "output/wire.h"

#include <spile/detail/tracer_core.h>

#include "output/histogram.h"
#include "output/series.h"

namespace spile::output {
namespace {

template <typename T>
void put(std::string& to, T value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof value);
}

void put_text(std::string& to, std::string_view text) {
  put(to, static_cast<uint32_t>(text.size()));
  to += text;
}

spile_value_kind kind_of(Value::Kind kind) {
  switch (kind) {
    case Value::Kind::kNone: return SPILE_VALUE_NONE;
    case Value::Kind::kSigned: return SPILE_VALUE_SIGNED;
    case Value::Kind::kUnsigned: return SPILE_VALUE_UNSIGNED;
    case Value::Kind::kPointer: return SPILE_VALUE_POINTER;
    case Value::Kind::kText: return SPILE_VALUE_TEXT;
    case Value::Kind::kBuffer: return SPILE_VALUE_BYTES;
    case Value::Kind::kTuple: return SPILE_VALUE_TUPLE;
    case Value::Kind::kRecord: return SPILE_VALUE_RECORD;
    case Value::Kind::kArray: return SPILE_VALUE_TUPLE;
    case Value::Kind::kBool: return SPILE_VALUE_UNSIGNED;
  }
  return SPILE_VALUE_NONE;
}

void put_value(std::string& to, const Value& value) {
  const spile_value_kind kind = kind_of(value.kind);
  put(to, static_cast<uint8_t>(kind));
  if (value.is_number()) put(to, value.bits);
  if (kind == SPILE_VALUE_TEXT || kind == SPILE_VALUE_BYTES) put_text(to, value.text);
  if (kind != SPILE_VALUE_TUPLE && kind != SPILE_VALUE_RECORD) return;
  put(to, static_cast<uint32_t>(value.fields.size()));
  for (const Value& field : value.fields) put_value(to, field);
  if (kind != SPILE_VALUE_RECORD) return;
  for (const std::string& name : value.names) put_text(to, name);
}

void put_histogram(std::string& to, const MapRows& map, const Histogram& histogram) {
  const auto buckets = histogram_buckets(map, histogram);
  put(to, static_cast<uint32_t>(buckets.size()));
  for (const HistogramBucket& bucket : buckets) {
    put(to, bucket.low);
    put(to, bucket.high);
    put(to, bucket.count);
  }
}

/// A tuple of records (interval_start, value).
Value value_of(const MapRows& map, const Series& series) {
  Value all{Value::Kind::kTuple, 0, {}, {}};
  for (const auto& [interval, value] : series) {
    Value one{Value::Kind::kRecord, 0, {}, {}, {"interval_start", "value"}};
    one.fields = {{Value::Kind::kText, 0, interval_text(interval, map.series_ns), {}}, value};
    all.fields.push_back(std::move(one));
  }
  return all;
}

std::string map_body(const MapRows& map) {
  std::string body;
  put_text(body, map.name);
  put(body, static_cast<uint8_t>(map.is_keyed));
  put(body, static_cast<uint32_t>(map.rows.size()));
  for (const MapRow& row : map.rows) {
    put_value(body, row.key);
    const auto* histogram = std::get_if<Histogram>(&row.value);
    put(body, static_cast<uint8_t>(histogram != nullptr));
    if (histogram != nullptr) {
      put_histogram(body, map, *histogram);
    } else {
      const auto* series = std::get_if<Series>(&row.value);
      put_value(body, series != nullptr ? value_of(map, *series) : std::get<Value>(row.value));
    }
  }
  return body;
}

}  // namespace

Result<void> WireOutput::send(unsigned type, std::string_view body) {
  std::string frame;
  put(frame, static_cast<uint32_t>(body.size() + 1));
  put(frame, static_cast<uint8_t>(type));
  frame += body;
  SPILE_TRY_VOID(write(frame));
  return flush();
}

Result<void> WireOutput::text(unsigned source, std::string_view text) {
  std::string body;
  put(body, static_cast<uint8_t>(source));
  put_text(body, text);
  return send(SPILE_FRAME_TEXT, body);
}

Result<void> WireOutput::attached_probes(size_t count) {
  std::string body;
  put(body, uint32_t{SPILE_TRACER_PROTOCOL});
  put(body, uint64_t{count});
  return send(SPILE_FRAME_STARTED, body);
}
Result<void> WireOutput::printf(std::string_view words) {
  return text(SPILE_TEXT_PRINTF, words);
}
Result<void> WireOutput::time(std::string_view words) {
  return text(SPILE_TEXT_TIME, words);
}
Result<void> WireOutput::join(std::string_view words) {
  return text(SPILE_TEXT_JOIN, words);
}
Result<void> WireOutput::system(std::string_view words) {
  return text(SPILE_TEXT_SYSTEM, words);
}
Result<void> WireOutput::cat(std::string_view words) {
  return text(SPILE_TEXT_CAT, words);
}
Result<void> WireOutput::value(const Value& value) {
  std::string body;
  put_value(body, value);
  return send(SPILE_FRAME_VALUE, body);
}
Result<void> WireOutput::map(const MapRows& rows) {
  const bool is_answer = std::exchange(answers_, false);
  return send(is_answer ? SPILE_FRAME_MAP_READ : SPILE_FRAME_MAP, map_body(rows));
}
Result<void> WireOutput::message(bool is_error,
                                 const bundle::ScriptPlace& place,
                                 std::string_view words) {
  return text(SPILE_TEXT_MESSAGE, message_line(is_error, place, words));
}
Result<void> WireOutput::lost_events(uint64_t count) {
  std::string body;
  put(body, count);
  return send(SPILE_FRAME_LOST, body);
}
Result<void> WireOutput::end() {
  return send(SPILE_FRAME_ENDED, {});
}
Result<void> WireOutput::no_map(std::string_view why) {
  answers_ = false;
  std::string body;
  put_text(body, why);
  return send(SPILE_FRAME_NO_MAP, body);
}

Result<void> WireOutput::script_error(uint32_t line,
                                      uint32_t column,
                                      std::string_view message,
                                      std::string_view hint) {
  std::string body;
  put(body, line);
  put(body, column);
  put_text(body, message);
  put_text(body, hint);
  return send(SPILE_FRAME_SCRIPT_ERROR, body);
}

Result<void> WireOutput::stats(const engine::Stats& s, uint64_t lost) {
  std::string body;
  for (const uint64_t n :
       {s.missed, lost, s.map_full, s.read_failed, s.stacks_lost, s.unseen_returns, s.loops_cut})
    put(body, n);
  return send(SPILE_FRAME_STATS, body);
}

}  // namespace spile::output
