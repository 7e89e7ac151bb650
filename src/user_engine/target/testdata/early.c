// Says what runs before main. A constructor writes "constructor", main "exit-success".
#include <stdio.h>
__attribute__((constructor)) static void early(void) { puts("constructor"), fflush(stdout); }
int main(int argc, char** argv) {
  (void)argv;
  puts("exit-success");
  fflush(stdout);
  return argc - 1;
}
