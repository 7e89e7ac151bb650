#include "session/program_link.h"

#include <gtest/gtest.h>
#include <spile/detail/tracer_core.h>
#include <sys/socket.h>

#include "base/fd.h"

namespace spile::session {
namespace {

template <typename T>
std::string bytes_of(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}
std::string text_of(const std::string& text) {
  return bytes_of(static_cast<uint32_t>(text.size())) + text;
}
std::string frame_of(uint8_t type, const std::string& body) {
  return bytes_of(static_cast<uint32_t>(body.size() + 1)) + bytes_of(type) + body;
}
std::string request_body(uint32_t version = SPILE_TRACER_PROTOCOL) {
  return bytes_of(version) + bytes_of(uint8_t{SPILE_ENGINE_KERNEL}) +
         bytes_of(uint8_t{SPILE_TRACER_ALLOW_TRAP}) + text_of("BEGIN { exit(); }") +
         bytes_of(uint32_t{2}) + bytes_of(int32_t{7}) + bytes_of(int32_t{8}) +
         bytes_of(uint32_t{1}) + text_of("first");
}

class Link : public ::testing::Test {
 protected:
  Link() {
    int ends[2];
    EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    program_ = Fd(ends[0]);
    ours_ = Fd(ends[1]);
  }
  void send(const std::string& bytes) {
    ASSERT_EQ(::send(program_.get(), bytes.data(), bytes.size(), 0),
              static_cast<ssize_t>(bytes.size()));
  }
  Fd program_, ours_;
};

TEST_F(Link, ReadsARequest) {
  ProgramLink link(ours_.get());
  send(frame_of(SPILE_FRAME_START, request_body()));
  const auto request = link.read_request();
  ASSERT_TRUE(request) << request.error().message;
  EXPECT_EQ(request->script.text, "BEGIN { exit(); }");
  EXPECT_EQ(request->target.pids, (std::vector<pid_t>{7, 8}));
  EXPECT_EQ(request->target.engine, EngineChoice::kKernel);
  EXPECT_TRUE(request->target.allow_trap);
  EXPECT_FALSE(request->allow_unsafe);
  EXPECT_EQ(request->script.positional, std::vector<std::string>{"first"});
  EXPECT_EQ(request->program, &link);
}

TEST_F(Link, RefusesWhatIsNoRequest) {
  const std::string whole = request_body();
  for (size_t size = 0; size < whole.size(); ++size) {
    ProgramLink link(ours_.get());
    send(frame_of(SPILE_FRAME_START, whole.substr(0, size)));
    EXPECT_FALSE(link.read_request()) << size;
  }
  ProgramLink link(ours_.get());
  send(frame_of(SPILE_FRAME_START, request_body(SPILE_TRACER_PROTOCOL + 1)));
  EXPECT_EQ(link.read_request().error().code, ErrorCode::kUnsupported);
  send(frame_of(SPILE_FRAME_STOP, ""));
  EXPECT_EQ(link.read_request().error().code, ErrorCode::kCorrupt);
}

TEST_F(Link, AFrameOfImpossibleSizeIsTheEnd) {
  for (uint32_t size : {uint32_t{0}, ~uint32_t{0}}) {
    ProgramLink link(ours_.get());
    send(bytes_of(size) + "abc");
    EXPECT_EQ(link.read_request().error().code, ErrorCode::kTargetGone);
    EXPECT_EQ(link.next()->kind, ProgramLink::Command::Kind::kStop);
  }
}

TEST_F(Link, GivesCommandsWhenTheyAreWhole) {
  ProgramLink link(ours_.get());
  EXPECT_FALSE(link.next());
  const std::string read = frame_of(SPILE_FRAME_READ_MAP, text_of("@x"));
  for (size_t i = 0; i + 1 < read.size(); ++i) {
    send(read.substr(i, 1));
    EXPECT_FALSE(link.next());
  }
  send(read.substr(read.size() - 1) + frame_of(99, "of a later version") +
       frame_of(SPILE_FRAME_STOP, ""));
  const auto command = link.next();
  ASSERT_TRUE(command);
  EXPECT_EQ(command->kind, ProgramLink::Command::Kind::kReadMap);
  EXPECT_EQ(command->name, "@x");
  EXPECT_EQ(link.next()->kind, ProgramLink::Command::Kind::kStop);
  EXPECT_FALSE(link.next());
  program_.reset();
  EXPECT_EQ(link.next()->kind, ProgramLink::Command::Kind::kStop);
}

}  // namespace
}  // namespace spile::session
