// Scripts: a trace of the own or another process, with its maps and what it prints as C++ values. C++17.
//
//   auto tracer = spile::Tracer::start("uprobe:libc:malloc { @[arg0] = count(); }");
//   if (!tracer) std::fprintf(stderr, "%s\n", tracer.error_text().c_str());
//   ...
//   spile::Map sizes;
//   if (tracer.read_map("@", sizes) == 0)
//     for (const spile::MapRow& row : sizes.rows) std::printf("%ld: %ld\n", row.key.number(), row.value.number());
//   tracer.stop();
//
// The language is that of the program `spile`, which runs as a process of its own and is started here: it is found beside
// the library, by $SPILE_PROGRAM or by $PATH. Where it must not trace (Yama, seccomp, no privilege) the words say so.
//
// Calls answer 0 or a negative errno. One thread uses a Tracer at a time. What is not polled for too long fills what lies
// between, and is counted as lost. Only std::bad_alloc is thrown.
#pragma once

#include <cerrno>
#include <cstring>
#include <deque>
#include <string>
#include <utility>
#include <vector>

#include <spile/detail/tracer_core.h>

namespace spile {

struct Value {
  enum class Kind : uint8_t { kNone, kSigned, kUnsigned, kPointer, kText, kBytes, kTuple, kRecord };
  Kind kind = Kind::kNone;
  uint64_t bits = 0;                ///< of numbers
  std::string text;                 ///< kText, kBytes
  std::vector<Value> parts;         ///< kTuple, kRecord
  std::vector<std::string> names;   ///< of a record's parts; stats() has count, average, total

  bool is_number() const noexcept { return kind == Kind::kSigned || kind == Kind::kUnsigned || kind == Kind::kPointer; }
  int64_t number() const noexcept { return static_cast<int64_t>(bits); }
  /// A part of a record; null: it has none of that name.
  const Value* part(const char* name) const noexcept {
    for (size_t i = 0; i < names.size() && i < parts.size(); ++i) {
      if (names[i] == name) return &parts[i];
    }
    return nullptr;
  }
  friend bool operator==(const Value& a, const Value& b) {
    return a.kind == b.kind && a.bits == b.bits && a.text == b.text && a.parts == b.parts && a.names == b.names;
  }
};

/// Of hist() and lhist(): so many values of low to high, both included. What has no bound has that of int64_t.
struct Bucket {
  int64_t low = 0, high = 0;
  uint64_t count = 0;
};

struct MapRow {
  Value key;                    ///< of a map with several keys a tuple; kNone: it has none
  Value value;                  ///< kNone: a histogram
  std::vector<Bucket> buckets;  ///< of a histogram, without those that are empty at both ends
};

struct Map {
  std::string name;  ///< "@", "@sizes"
  bool has_keys = false;
  std::vector<MapRow> rows;  ///< in the order in which they are printed
};

/// Something that a script printed.
struct Event {
  enum class Kind : uint8_t {
    kText,     ///< printf, time, join, system, cat
    kValue,    ///< print(value)
    kMap,      ///< print(@map)
    kLost,     ///< `lost` records
    kMessage,  ///< spile itself: a probe that was refused, a warning
  };
  Kind kind = Kind::kText;
  std::string text;
  Value value;
  Map map;
  uint64_t lost = 0;
};

struct ScriptError {
  unsigned line = 0, column = 0;  ///< from 1
  std::string message, hint;
};

/// Known once the trace has ended.
struct Losses {
  uint64_t missed = 0;          ///< hits that ran no program
  uint64_t records = 0;         ///< found no room: nobody polled
  uint64_t full_maps = 0;       ///< updates of maps
  uint64_t failed_reads = 0;    ///< of memory that was not there
  uint64_t stacks = 0;
  uint64_t unseen_returns = 0;  ///< of calls that left a function through a pointer
  uint64_t loops_cut = 0;
};

struct TracerOptions {
  std::vector<int> pids;                ///< none: the own process
  std::vector<std::string> parameters;  ///< $1, $2, ...
  spile_tracer_engine engine = SPILE_ENGINE_USER;
  unsigned flags = 0;   ///< spile_tracer_flags
  std::string program;  ///< the spile to run
};

namespace detail {

/// A frame. After a read beyond its end everything is 0.
class FrameReader {
 public:
  FrameReader(const unsigned char* data, size_t size) : at_(data), left_(size) {}
  bool ok() const { return ok_; }
  template <class T>
  T get() {
    T value{};
    if (!take(sizeof value)) return value;
    std::memcpy(&value, at_ - sizeof value, sizeof value);
    return value;
  }
  std::string text() {
    const auto size = get<uint32_t>();
    if (!take(size)) return {};
    return std::string(reinterpret_cast<const char*>(at_ - size), size);
  }
  Value value(int depth = 0) {
    Value v;
    const auto kind = get<uint8_t>();
    if (kind > SPILE_VALUE_RECORD || depth > 32) return fail(), v;
    v.kind = static_cast<Value::Kind>(kind);
    if (v.is_number()) v.bits = get<uint64_t>();
    if (kind == SPILE_VALUE_TEXT || kind == SPILE_VALUE_BYTES) v.text = text();
    if (kind != SPILE_VALUE_TUPLE && kind != SPILE_VALUE_RECORD) return v;
    const auto count = get<uint32_t>();
    for (uint32_t i = 0; i < count && ok_; ++i) v.parts.push_back(value(depth + 1));
    for (uint32_t i = 0; i < count && ok_ && kind == SPILE_VALUE_RECORD; ++i) v.names.push_back(text());
    return v;
  }
  Map map() {
    Map m;
    m.name = text();
    m.has_keys = get<uint8_t>() != 0;
    const auto count = get<uint32_t>();
    for (uint32_t i = 0; i < count && ok_; ++i) {
      MapRow row;
      row.key = value();
      if (get<uint8_t>() == 0) {
        row.value = value();
      } else {
        const auto buckets = get<uint32_t>();
        for (uint32_t b = 0; b < buckets && ok_; ++b) {
          const auto low = get<int64_t>(), high = get<int64_t>();
          row.buckets.push_back({low, high, get<uint64_t>()});
        }
      }
      m.rows.push_back(std::move(row));
    }
    return m;
  }

 private:
  void fail() {
    ok_ = false;
    left_ = 0;
  }
  bool take(size_t size) {
    if (size > left_ || !ok_) return fail(), false;
    at_ += size;
    left_ -= size;
    return true;
  }
  const unsigned char* at_;
  size_t left_;
  bool ok_ = true;
};

}  // namespace detail

/// A running trace. Ends with the object: the probes are taken out.
class Tracer {
 public:
  Tracer() = default;
  Tracer(Tracer&& other) noexcept { swap(other); }
  Tracer& operator=(Tracer&& other) noexcept {
    Tracer(std::move(other)).swap(*this);
    return *this;
  }
  ~Tracer() { spile_tracer_close(tracer_); }

  /// Back when the probes are in place and BEGIN has run, or with error().
  static Tracer start(const std::string& script, const TracerOptions& options = {}) {
    Tracer t;
    std::vector<const char*> parameters;
    for (const std::string& p : options.parameters) parameters.push_back(p.c_str());
    const spile_tracer_request request = {script.c_str(),
                                          options.program.empty() ? nullptr : options.program.c_str(),
                                          options.pids.data(),
                                          options.pids.size(),
                                          parameters.data(),
                                          parameters.size(),
                                          static_cast<unsigned>(options.engine),
                                          options.flags};
    t.error_ = spile_tracer_open(&request, &t.tracer_);
    if (t.error_ != 0) {
      t.error_text_ = spile_error_text();
      return t;
    }
    while (t.error_ == 0 && !t.is_running_ && !t.has_ended_) t.take(-1);
    return t;
  }

  explicit operator bool() const noexcept { return tracer_ != nullptr && error_ == 0; }
  /// Why it could not start, as a negative errno: -EINVAL the script is wrong, -ENOENT no spile to run it, -EIO what the
  /// words say.
  int error() const noexcept { return error_; }
  const std::string& error_text() const noexcept { return error_text_; }
  const std::vector<ScriptError>& script_errors() const noexcept { return script_errors_; }
  /// False once the script, the traced process or stop() has ended it.
  bool is_running() {
    while (is_running_ && take(0) > 0) {
    }
    return is_running_;
  }
  uint64_t probes() const noexcept { return probes_; }

  /// A map as it is now, or as it was at the end. -ENOENT: the script has none of that name ("@", "@x").
  int read_map(const std::string& name, Map& to) {
    if (!*this) return -EINVAL;
    if (is_running_) {
      const auto size = static_cast<uint32_t>(name.size());
      std::string body(reinterpret_cast<const char*>(&size), sizeof size);
      body += name;
      answer_ = Answer::kNone;
      if (spile_tracer_send(tracer_, SPILE_FRAME_READ_MAP, body.data(), body.size()) == 0) {
        while (answer_ == Answer::kNone && !has_ended_) take(-1);
      }
      if (answer_ == Answer::kNoMap) return -ENOENT;
      if (answer_ == Answer::kMap) {
        to = std::move(answered_);
        return 0;
      }
    }
    while (!has_ended_) take(-1);  // it ended meanwhile: its maps are on their way
    for (const Map& map : last_maps_) {
      if (map.name == name) return to = map, 0;
    }
    return -ENOENT;
  }

  /// Gives what has come to f(const Event&), waiting up to `timeout_ms` for the first (negative: until something comes or
  /// it ends). How many.
  template <class F>
  int poll(F&& f, int timeout_ms = 0) {
    if (events_.empty() && timeout_ms >= 0) take(timeout_ms);
    while (events_.empty() && timeout_ms < 0 && take(timeout_ms) >= 0) {
    }
    while (take(0) > 0) {
    }
    int count = 0;
    for (; !events_.empty(); ++count) {
      const Event event = std::move(events_.front());
      events_.pop_front();
      f(event);
    }
    return count;
  }

  /// Takes the probes out and runs END. Maps and what was printed can still be read. 0 also where it had ended.
  int stop() {
    if (!*this) return -EINVAL;
    if (is_running_) (void)spile_tracer_send(tracer_, SPILE_FRAME_STOP, nullptr, 0);
    while (!has_ended_) take(-1);
    return 0;
  }
  const Losses& losses() const noexcept { return losses_; }

 private:
  enum class Answer : uint8_t { kNone, kMap, kNoMap };

  void swap(Tracer& other) noexcept {
    std::swap(tracer_, other.tracer_);
    std::swap(error_, other.error_);
    std::swap(error_text_, other.error_text_);
    std::swap(script_errors_, other.script_errors_);
    std::swap(is_running_, other.is_running_);
    std::swap(has_ended_, other.has_ended_);
    std::swap(maps_follow_, other.maps_follow_);
    std::swap(has_started_, other.has_started_);
    std::swap(probes_, other.probes_);
    std::swap(events_, other.events_);
    std::swap(last_maps_, other.last_maps_);
    std::swap(losses_, other.losses_);
    std::swap(answer_, other.answer_);
    std::swap(answered_, other.answered_);
  }

  /// One frame. As spile_tracer_receive.
  int take(int timeout_ms) {
    if (tracer_ == nullptr || has_ended_) return -EPIPE;
    const unsigned char* frame = nullptr;
    size_t size = 0;
    const int got = spile_tracer_receive(tracer_, timeout_ms, &frame, &size);
    if (got > 0) handle(frame[0], detail::FrameReader(frame + 1, size - 1));
    take_messages();
    if (got < 0) ended();
    return got;
  }

  void take_messages() {
    char text[4096];
    while (const size_t n = spile_tracer_messages(tracer_, text, sizeof text)) {
      if (has_started_) {
        add(Event::Kind::kMessage).text.assign(text, n);
      } else {
        error_text_.append(text, n);
      }
    }
  }

  void ended() {
    if (!has_started_) {
      error_ = script_errors_.empty() ? -EIO : -EINVAL;
      if (error_text_.empty()) error_text_ = "the tracing process ended without a word";
    }
    has_ended_ = true;
    is_running_ = false;
  }

  Event& add(Event::Kind kind) {
    events_.emplace_back();
    events_.back().kind = kind;
    return events_.back();
  }

  void handle(unsigned type, detail::FrameReader frame) {
    switch (type) {
      case SPILE_FRAME_STARTED:
        (void)frame.get<uint32_t>();
        probes_ = frame.get<uint64_t>();
        has_started_ = is_running_ = true;
        break;
      case SPILE_FRAME_SCRIPT_ERROR: {
        ScriptError e;
        e.line = frame.get<uint32_t>();
        e.column = frame.get<uint32_t>();
        e.message = frame.text();
        e.hint = frame.text();
        script_errors_.push_back(std::move(e));
        break;
      }
      case SPILE_FRAME_TEXT: {
        const auto source = frame.get<uint8_t>();
        add(source == SPILE_TEXT_MESSAGE ? Event::Kind::kMessage : Event::Kind::kText).text = frame.text();
        break;
      }
      case SPILE_FRAME_VALUE: add(Event::Kind::kValue).value = frame.value(); break;
      case SPILE_FRAME_MAP:
        if (maps_follow_) {
          last_maps_.push_back(frame.map());
        } else {
          add(Event::Kind::kMap).map = frame.map();
        }
        break;
      case SPILE_FRAME_MAP_READ:
        answered_ = frame.map();
        answer_ = Answer::kMap;
        break;
      case SPILE_FRAME_NO_MAP: answer_ = Answer::kNoMap; break;
      case SPILE_FRAME_LOST: add(Event::Kind::kLost).lost = frame.get<uint64_t>(); break;
      case SPILE_FRAME_ENDED:
        maps_follow_ = true;
        is_running_ = false;
        break;
      case SPILE_FRAME_STATS:
        for (uint64_t* to : {&losses_.missed, &losses_.records, &losses_.full_maps, &losses_.failed_reads,
                             &losses_.stacks, &losses_.unseen_returns, &losses_.loops_cut})
          *to = frame.get<uint64_t>();
        break;
      default: break;
    }
  }

  spile_tracer* tracer_ = nullptr;
  int error_ = 0;
  std::string error_text_;
  std::vector<ScriptError> script_errors_;
  bool is_running_ = false, has_ended_ = false;
  bool maps_follow_ = false;  ///< END has run
  bool has_started_ = false;
  uint64_t probes_ = 0;
  std::deque<Event> events_;
  std::vector<Map> last_maps_;
  Losses losses_;
  Answer answer_ = Answer::kNone;
  Map answered_;
};

}  // namespace spile
