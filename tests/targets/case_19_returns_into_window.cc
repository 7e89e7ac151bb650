// Case 19: setjmp's second return and a C++ landing pad, both inside the first five bytes of the function.
#include <csetjmp>
#include <cxxabi.h>

#include "target.h"

extern "C" {
int probe_me_setjmp(jmp_buf buffer, int (*save)(jmp_buf));
int probe_me_landing_pad(int value);
int _setjmp(jmp_buf);
jmp_buf saved_buffer;
static int thrown;
[[noreturn]] void jump_back(jmp_buf buffer) { longjmp(buffer, 1); }
[[noreturn]] void throw_it(int value) {
  thrown = value;
  throw value;
}
int caught(void *exception) {
  const int value = *static_cast<int *>(abi::__cxa_begin_catch(exception));
  abi::__cxa_end_catch();
  return value + 1;
}
}

int main(int argc, char **argv) {
  target_begin(argc, argv, 2000, nullptr);
  target_ready();
  for (long i = 0; target_more(i); i++) {
    target_count(2);
    TARGET_CHECK(probe_me_setjmp(saved_buffer, _setjmp) == 41);
    TARGET_CHECK(probe_me_landing_pad(static_cast<int>(i)) == i + 1);
    TARGET_CHECK(thrown == i);
  }
  return target_end();
}
