// A program that traces itself with a script: which sizes does it ask malloc for, and how long does a function take?
#include <spile/tracer.hpp>

#include <cstdio>
#include <cstdlib>

extern "C" __attribute__((noinline)) long parse(long n) {
  void* volatile buffer = std::malloc(static_cast<size_t>(1000 * n));
  std::free(buffer);
  return n;
}

int main() {
  auto tracer = spile::Tracer::start(
      "uprobe:parse { @calls = count(); @bytes = hist(arg0 * 1000); }"
      "uretprobe:parse { @ns = stats(duration); printf(\"parsed %d\", retval); }");
  if (!tracer) {
    std::fprintf(stderr, "%s\n", tracer.error_text().c_str());
    for (const spile::ScriptError& e : tracer.script_errors()) std::fprintf(stderr, "line %u: %s\n", e.line, e.message.c_str());
    return 1;
  }
  for (long n = 1; n <= 5; ++n) parse(n);

  spile::Map map;
  if (tracer.read_map("@calls", map) != 0) return 1;
  const long calls = map.rows.at(0).value.number();
  tracer.stop();  // takes the probes out; the maps stay readable
  parse(6);

  int printed = 0;
  tracer.poll([&](const spile::Event& event) {
    if (event.kind == spile::Event::Kind::kText) ++printed;
  });
  tracer.read_map("@bytes", map);
  for (const spile::Bucket& b : map.rows.at(0).buckets) std::printf("%ld to %ld bytes: %lu\n", b.low, b.high, b.count);
  tracer.read_map("@ns", map);
  const long timed = map.rows.at(0).value.part("count")->number();
  std::printf("%ld calls, %d lines, %ld timed, %lu lost\n", calls, printed, timed, tracer.losses().records);
  return calls == 5 && printed == 5 && timed == 5 ? 0 : 1;
}
