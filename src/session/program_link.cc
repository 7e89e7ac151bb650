#include "session/program_link.h"

#include <spile/detail/tracer_core.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace spile::session {
namespace {

constexpr uint32_t kMaxFrameBytes = 64u << 20;

/// A frame behind its size. After a read beyond the end everything is 0.
class Frame {
 public:
  explicit Frame(std::string_view bytes) : left_(bytes) {}
  bool ok() const { return ok_; }
  template <typename T>
  T get() {
    T value{};
    if (left_.size() < sizeof value) return ok_ = false, value;
    left_.copy(reinterpret_cast<char*>(&value), sizeof value);
    left_.remove_prefix(sizeof value);
    return value;
  }
  std::string text() {
    const auto size = get<uint32_t>();
    if (left_.size() < size) return ok_ = false, std::string();
    std::string text(left_.substr(0, size));
    left_.remove_prefix(size);
    return text;
  }

 private:
  std::string_view left_;
  bool ok_ = true;
};

Result<void> send_map(const std::string& name,
                      const bundle::Bundle& bundle,
                      output::Records& records,
                      output::WireOutput& output,
                      engine::Trace& trace) {
  const auto known = std::ranges::find(bundle.maps, name, &bundle::MapSpec::name);
  if (name.empty() || known == bundle.maps.end())
    return output.no_map(fmt::format("the script has no map {}", name));
  output.answer_next_map();
  auto sent = records.print_map(static_cast<int>(known - bundle.maps.begin()), {}, trace);
  if (sent || sent.error().code == ErrorCode::kTargetGone) return sent;
  return output.no_map(sent.error().message);
}

EngineChoice engine_of(uint8_t engine) {
  switch (engine) {
    case SPILE_ENGINE_KERNEL: return EngineChoice::kKernel;
    case SPILE_ENGINE_AUTO: return EngineChoice::kAuto;
    default: return EngineChoice::kUser;
  }
}

}  // namespace

/// False: nothing came, or nothing will.
bool ProgramLink::receive(int flags) {
  char bytes[4096];
  ssize_t n = 0;
  do {
    n = ::recv(socket_, bytes, sizeof bytes, flags);
  } while (n < 0 && errno == EINTR && flags == 0);
  if (n > 0) pending_.append(bytes, static_cast<size_t>(n));
  const bool is_later = n < 0 && (errno == EAGAIN || errno == EINTR);
  if (n <= 0 && !is_later) is_closed_ = true;
  return n > 0;
}

std::optional<std::string> ProgramLink::take_frame() {
  uint32_t size = 0;
  if (pending_.size() < sizeof size) return {};
  std::memcpy(&size, pending_.data(), sizeof size);
  if (size == 0 || size > kMaxFrameBytes) {
    is_closed_ = true;
    return {};
  }
  if (pending_.size() - sizeof size < size) return {};
  std::string frame = pending_.substr(sizeof size, size);
  pending_.erase(0, sizeof size + size);
  return frame;
}

Result<std::string> ProgramLink::read_frame() {
  while (true) {
    if (auto frame = take_frame()) return std::move(*frame);
    if (is_closed_ || (!receive(0) && is_closed_))
      return fail(ErrorCode::kTargetGone, "the program has ended");
  }
}

Result<TraceRequest> ProgramLink::read_request() {
  const auto bytes = read_frame();
  if (!bytes) return std::unexpected(bytes.error());
  Frame frame(*bytes);
  if (frame.get<uint8_t>() != SPILE_FRAME_START)
    return fail(ErrorCode::kCorrupt, "this is for the library of spile, not to be run by hand");
  if (const auto version = frame.get<uint32_t>(); version != SPILE_TRACER_PROTOCOL)
    return fail(ErrorCode::kUnsupported,
                "the library is of another version than the program spile (protocol {}, not {}): "
                "install both from one build",
                version, SPILE_TRACER_PROTOCOL);
  TraceRequest request;
  request.target.engine = engine_of(frame.get<uint8_t>());
  const auto flags = frame.get<uint8_t>();
  request.target.allow_trap = (flags & SPILE_TRACER_ALLOW_TRAP) != 0;
  request.allow_unsafe = (flags & SPILE_TRACER_ALLOW_UNSAFE) != 0;
  request.script.name = "script";
  request.script.text = frame.text();
  for (auto n = frame.get<uint32_t>(); n > 0 && frame.ok(); --n)
    request.target.pids.push_back(frame.get<int32_t>());
  for (auto n = frame.get<uint32_t>(); n > 0 && frame.ok(); --n)
    request.script.positional.push_back(frame.text());
  if (!frame.ok()) return fail(ErrorCode::kCorrupt, "a request that is cut off");
  request.quiet = true;
  request.program = this;
  return request;
}

std::optional<ProgramLink::Command> ProgramLink::next() {
  while (true) {
    const auto bytes = take_frame();
    if (!bytes && !is_closed_ && receive(MSG_DONTWAIT)) continue;
    if (!bytes && is_closed_) return Command{};
    if (!bytes) return {};
    Frame frame(*bytes);
    const auto type = frame.get<uint8_t>();
    if (type == SPILE_FRAME_STOP) return Command{};
    if (type == SPILE_FRAME_READ_MAP) return Command{Command::Kind::kReadMap, frame.text()};
  }
}

Result<bool> ProgramLink::answer(const bundle::Bundle& bundle,
                                 output::Records& records,
                                 output::WireOutput& output,
                                 engine::Trace& trace) {
  while (const auto command = next()) {
    if (command->kind == Command::Kind::kStop) return false;
    SPILE_TRY_VOID(send_map(command->name, bundle, records, output, trace));
  }
  return true;
}

}  // namespace spile::session
