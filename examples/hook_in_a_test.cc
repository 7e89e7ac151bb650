// A test that replaces what a function answers, for as long as an object lives.
#include <spile/kprobe.hpp>

#include <cstdio>

extern "C" __attribute__((noinline)) int disk_is_full(const char* path) {
  __asm__ volatile("" : : "r"(path));
  return 0;
}

static const char* save(const char* path) { return disk_is_full(path) ? "refused" : "saved"; }

int main() {
  std::printf("before: %s\n", save("/tmp/a"));
  const char* with_hook = "";
  {
    spile::Kprobe hook(&disk_is_full);
    hook.before([](spile::Regs& regs) {
      regs.return_from_function(1);
      return 1;  // the function does not run
    });
    if (hook.add() != 0) {
      std::fprintf(stderr, "%s\n", spile_error_text());
      return 1;
    }
    with_hook = save("/tmp/a");
    std::printf("with the hook: %s\n", with_hook);
  }
  std::printf("after: %s\n", save("/tmp/a"));
  return with_hook[0] == 'r' && save("/tmp/a")[0] == 's' ? 0 : 1;
}
