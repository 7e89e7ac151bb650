// Tracepoints in a server: a nop each, until the program itself or a tracer outside looks.
//
//   ./server 1000 &
//   spile -e 'usdt:./server:server:request { @[str(arg1)] = count(); }' -p $!
#include <spile/tracepoint.hpp>

#include <cstdio>
#include <cstdlib>
#include <ctime>

SPILE_TRACEPOINT(server, request, (int, id), (const char*, path))
SPILE_TRACEPOINT(server, reply, (int, id), (unsigned, status), (long, bytes))

__attribute__((noinline)) static long serve(int id) {
  const char* path = id % 3 == 0 ? "/index" : "/data";
  trace_server_request(id, path);
  const long bytes = 100L + id;
  trace_server_reply(id, id % 7 == 0 ? 404u : 200u, bytes);
  return bytes;
}

int main(int argc, char** argv) {
  const int requests = argc > 1 ? std::atoi(argv[1]) : 21;
  const long pause_ms = argc > 2 ? std::atol(argv[2]) : 0;
  long errors = 0;
  auto seen = tracepoint_server_reply.subscribe(
      [&](int, unsigned status, long) noexcept { errors += status == 404; });
  if (!seen) {
    std::fprintf(stderr, "%s\n", spile_error_text());
    return 1;
  }
  long bytes = 0;
  for (int id = 1; id <= requests; ++id) {
    bytes += serve(id);
    const timespec pause{pause_ms / 1000, pause_ms % 1000 * 1000000};
    if (pause_ms > 0) nanosleep(&pause, nullptr);
  }
  std::printf("served %ld bytes, %ld errors\n", bytes, errors);
  return errors == requests / 7 ? 0 : 1;
}
