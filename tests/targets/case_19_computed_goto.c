// Case 19: a threaded interpreter: label addresses in a table, every step an indirect jump inside the function.
#include "target.h"

PROBED uint64_t probe_me(const uint8_t *code, uint64_t value) {
  static const void *const kLabels[] = {&&add, &&mul, &&shift, &&halt};
  goto *kLabels[*code];
add:
  value += 12345;
  goto *kLabels[*++code];
mul:
  value *= 0x9e3779b97f4a7c15;
  goto *kLabels[*++code];
shift:
  value ^= value >> 13;
  goto *kLabels[*++code];
halt:
  return value;
}

static uint64_t expected(const uint8_t *code, uint64_t value) {
  for (;; code++) {
    if (*code == 0) value += 12345;
    else if (*code == 1) value *= 0x9e3779b97f4a7c15;
    else if (*code == 2) value ^= value >> 13;
    else return value;
  }
}

int main(int argc, char **argv) {
  uint64_t seed = 19;
  target_begin(argc, argv, 50000, 0);
  target_ready();
  for (long i = 0; target_more(i); i++) {
    uint8_t code[17];
    for (int k = 0; k < 16; k++) code[k] = (uint8_t)(target_random(&seed) % 3);
    code[target_random(&seed) % 16] = 3;
    code[16] = 3;
    const uint64_t value = target_random(&seed);
    target_count(1);
    TARGET_CHECK(probe_me(code, value) == expected(code, value));
  }
  return target_end();
}
