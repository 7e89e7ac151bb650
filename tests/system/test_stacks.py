#!/usr/bin/env python3
"""Call stacks, symbols of addresses and override(): known stacks on both engines, and functions that do not run."""
import functools
import json
import re
import sys

from harness import Process, Skip, check, need_tool, wait_for_work
from tracing import (check_prints, check_process_as_before, check_says, check_status, compile_program, main, run,
                     scalar, spile, temporary_directory)
from harness import Picture, SPILE

# Frame pointers and known callers. `probe_me` says which shape it is called in. The process lives a little longer
# than its work, so that a tracer outside can still read its mappings.
SHAPES = r"""
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#define NOINLINE __attribute__((noinline))
#define HERE __asm__ volatile("" ::: "memory")
enum { kPlain, kDeep, kHandler, kAltStack, kThread, kCoroutine, kGarbage = 100 };
NOINLINE long probe_me(long shape) { HERE; return shape; }
NOINLINE long inner(long shape) { long r = probe_me(shape); HERE; return r; }
NOINLINE long outer(long shape) { long r = inner(shape); HERE; return r; }
NOINLINE long deep(long left) { long r = left == 0 ? probe_me(kDeep) : deep(left - 1); HERE; return r; }
NOINLINE void on_signal(int signal) { probe_me(signal == SIGUSR1 ? kHandler : kAltStack); HERE; }
// The signal comes at the end of this very system call.
NOINLINE void raises(int signal) {
  long r = SYS_tkill;
  __asm__ volatile("syscall" : "+a"(r) : "D"(syscall(SYS_gettid)), "S"((long)signal) : "rcx", "r11", "memory");
  HERE;
}
NOINLINE void *in_thread(void *arg) { for (int i = 0; i < 3; i++) outer(kThread); HERE; return arg; }
static ucontext_t main_context, coroutine_context;
NOINLINE void in_coroutine(void) { outer(kCoroutine); HERE; swapcontext(&coroutine_context, &main_context); }
NOINLINE void runs_coroutine(void) {
  char *stack = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  getcontext(&coroutine_context);
  coroutine_context.uc_stack.ss_sp = stack;
  coroutine_context.uc_stack.ss_size = 1 << 16;
  coroutine_context.uc_link = &main_context;
  makecontext(&coroutine_context, in_coroutine, 0);
  swapcontext(&main_context, &coroutine_context);
  HERE;
}
// Calls probe_me with any value in rbp.
NOINLINE void with_rbp(unsigned long rbp, long shape) {
  __asm__ volatile("push %%rbp\n\tpush %%rbp\n\tmov %0, %%rbp\n\tcall probe_me\n\tpop %%rbp\n\tpop %%rbp"
                   : : "a"(rbp), "D"(shape)
                   : "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "memory");
}
int main(void) {
  for (int i = 0; i < 2; i++) { outer(kPlain); HERE; }
  deep(5);
  struct sigaction action = {0};
  action.sa_handler = on_signal;
  sigaction(SIGUSR1, &action, NULL);
  stack_t alt = {0};
  alt.ss_size = 1 << 16;
  alt.ss_sp = malloc(alt.ss_size);
  sigaltstack(&alt, NULL);
  action.sa_flags = SA_ONSTACK;
  sigaction(SIGUSR2, &action, NULL);
  raises(SIGUSR1);
  raises(SIGUSR2);
  pthread_t thread;
  pthread_create(&thread, NULL, in_thread, NULL);
  pthread_join(thread, NULL);
  runs_coroutine();
  char *pages = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  mprotect(pages + 4096, 4096, PROT_NONE);
  unsigned long *loop = (unsigned long *)pages;
  loop[0] = (unsigned long)loop;                      // a frame that is its own caller
  loop[1] = (unsigned long)probe_me;
  unsigned long garbage[] = {0, 1, 8, 0xdeadbeef000, (unsigned long)pages + 4096, (unsigned long)pages + 4088,
                             (unsigned long)pages + 4084, 0x8000000000000000, ~0ul, ~7ul, ~15ul, (unsigned long)loop};
  for (int i = 0; i < (int)(sizeof garbage / sizeof *garbage); i++) with_rbp(garbage[i], kGarbage + i);
  printf("exit-success\n");
  fflush(stdout);
  usleep(200000);
  return 0;
}
"""
# Every function begins with `push %rbp`, so that Linux too sees that a hit is at an entry.
FRAMES = ("-O0", "-fno-omit-frame-pointer", "-mno-red-zone", "-fcf-protection=none")
GARBAGE = 12

# Functions whose results the program looks at.
CHECKED = r"""
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
__attribute__((noinline)) long answer(long n) { char text[64]; memset(text, (int)n, sizeof text); __asm__ volatile("" : : "r"(text) : "memory"); return n + text[0]; }
int main(void) {
  long overridden = 0, others = 0;
  for (long i = 0; i < 1000; i++) {
    register long kept __asm__("r12") = i * 3;
    __asm__ volatile("" : "+r"(kept));
    long got = answer(i % 100);
    __asm__ volatile("" : "+r"(kept));
    if (kept != i * 3) { printf("a register was lost\n"); return 3; }
    overridden += got == -77;
    others += got == 2 * (i % 100);
  }
  int nulls = 0;
  for (int i = 0; i < 50; i++) {
    void *p = malloc(7777);
    nulls += p == NULL;
    free(p);
  }
  int fd = open("/etc/passwd", O_RDONLY);
  printf("overridden=%ld others=%ld nulls=%d fd=%d\n", overridden, others, nulls, fd);
  fflush(stdout);
  return 0;
}
"""


class Work:
    shapes = checked = None


@functools.cache
def kernel_can_carry():
    result = spile("-q", "--engine", "kernel", "-e", f"uprobe:{Work.shapes}:probe_me {{ @ = count(); }}", "-c", Work.shapes)
    if result.status != 0:
        raise Skip(f"no kernel engine here: {result.err.strip()}")


def stacks_of(engine, expression="ustack"):
    """{shape: [stack, ...]}, a stack being the list of its lines, the innermost first."""
    if engine == "kernel":
        kernel_can_carry()
    result = spile("-q", "--engine", engine, "-e",
                   f'uprobe:{Work.shapes}:probe_me {{ printf("shape %d%s.\\n", arg0, {expression}); @ = count(); }}',
                   "-c", Work.shapes)
    check_status(result, 0)
    check_prints(result, "exit-success")
    stacks = {}
    for shape, lines in re.findall(r"^shape (\d+)\n((?:.*\n)*?)\.$", result.out, re.M):
        stacks.setdefault(int(shape), []).append([line.strip() for line in lines.splitlines()])
    hits = sum(len(list_) for list_ in stacks.values())
    check("exact-count", hits == scalar(result.out, "@") == 2 + 1 + 2 + 3 + 1 + GARBAGE, result.report())
    return stacks


def functions(stack):
    return [line.split("+")[0] for line in stack]


def check_stack(stack, wanted):
    check("known-stack", functions(stack)[:len(wanted)] == wanted, f"wanted {wanted}\ngot {stack}")


def known(engine):
    stacks = stacks_of(engine)
    plain = ["probe_me", "inner", "outer", "main"]
    for stack in stacks[0]:
        check_stack(stack, plain)
        check("offset", stack[0] == "probe_me+0" and re.fullmatch(r"inner\+[1-9]\d*", stack[1]), f"{stack}")
    check("each-call-has-its-own-place", len({tuple(stack) for stack in stacks[0]}) == 1, f"{stacks[0]}")
    check_stack(stacks[1][0], ["probe_me"] + ["deep"] * 6 + ["main"])
    # The function that was interrupted is not in the chain of frame pointers, its caller is.
    for shape in (2, 3):
        check_stack(stacks[shape][0][:2], ["probe_me", "on_signal"])
        check("to-the-interrupted-stack", functions(stacks[shape][0])[-2:-1] == ["main"] or
              "main" in functions(stacks[shape][0]), f"{stacks[shape]}")
    for stack in stacks[4]:
        check_stack(stack, ["probe_me", "inner", "outer", "in_thread"])
    check_stack(stacks[5][0], ["probe_me", "inner", "outer", "in_coroutine"])
    for i in range(GARBAGE):
        stack = stacks[100 + i][0]
        check_stack(stack, ["probe_me", "with_rbp"])
        is_loop = i == GARBAGE - 1
        check("garbage-is-an-end", is_loop or len(stack) == 2, f"rbp {i}: {stack}")


def known_stacks_in_the_user_engine():
    known("user")
    loop = stacks_of("user")[100 + GARBAGE - 1][0]
    check("a-loop-is-an-end", len(loop) == 3, f"{loop}")


def known_stacks_in_the_kernel_engine():
    kernel_can_carry()
    known("kernel")


def same_on_both_engines():
    """But for loops, which Linux follows to the end of its patience."""
    user, kernel = stacks_of("user"), stacks_of("kernel")
    for stacks in (user, kernel):
        del stacks[100 + GARBAGE - 1]
    check("same-on-both-engines", user == kernel, f"\nuser   {user}\nkernel {kernel}")
    user, kernel = stacks_of("user", "ustack(2)"), stacks_of("kernel", "ustack(2)")
    check("same-on-both-engines", user == kernel, f"\nuser   {user}\nkernel {kernel}")
    check("depth", all(len(stack) == 2 for list_ in user.values() for stack in list_), f"{user}")


def modes():
    for engine in ("user", "kernel"):
        if engine == "kernel":
            kernel_can_carry()
        perf = stacks_of(engine, "ustack(perf)")[0][0]
        check("perf-mode", re.fullmatch(rf"[0-9a-f]+ probe_me\+0 \({re.escape(Work.shapes)}\)", perf[0]), f"{perf}")
        raw = stacks_of(engine, "ustack(raw)")[0][0]
        check("raw-mode", len(raw) >= 4 and all(re.fullmatch("[0-9a-f]+", line) for line in raw), f"{raw}")


def maps_keyed_by_stacks():
    script = (f"uprobe:{Work.shapes}:probe_me /arg0 < 2/ {{ @[ustack(4)] = count(); @with[arg0, ustack(2), comm] = count(); "
              '@last = ustack(1); @who[usym(reg("ip"))] = count(); }')
    for engine in ("user", "kernel"):
        if engine == "kernel":
            kernel_can_carry()
        result = spile("-q", "--engine", engine, "-e", script, "-c", Work.shapes)
        check_status(result, 0)
        check_prints(result, r"@\[\n    probe_me\+0\n    inner\+\d+\n    outer\+\d+\n    main\+\d+\n\]: 2\n")
        check_prints(result, r"@\[\n    probe_me\+0\n    deep\+\d+\n    deep\+\d+\n    deep\+\d+\n\]: 1\n")
        check_prints(result, r"@with\[0, \n    probe_me\+0\n    inner\+\d+\n, shapes\]: 2\n")
        check_prints(result, r"@last: \n        probe_me\+0\n")
        check_prints(result, r"@who\[probe_me\]: 3\n")


def json_has_stacks_as_text():
    result = spile("-q", "-f", "json", "-e",
                   f"uprobe:{Work.shapes}:probe_me /arg0 == 0/ {{ @[ustack(2)] = count(); print(ustack(1)); }}", "-c",
                   Work.shapes)
    check_status(result, 0)
    lines = [json.loads(line) for line in result.out.splitlines() if line.startswith("{")]
    values = [line["data"] for line in lines if line["type"] == "value"]
    check("hits-happened", values == ["\n        probe_me+0\n"] * 2, result.report())
    keys = [key for line in lines if line["type"] == "map" for key in line["data"]["@"]]
    check("json", len(keys) == 1 and re.fullmatch(r"\n    probe_me\+0\n    inner\+\d+\n", keys[0]), result.report())


def functions_of_libc_called_from_python():
    """A program without frame pointers: the caller is there all the same, at an entry."""
    need_tool("python3")
    code = "import os\nfor i in range(500): os.getppid()"
    result = spile("-q", "-e", "uprobe:libc:getppid { @[ustack(perf, 2)] = count(); @all = count(); }", "-c",
                   f"{sys.executable} -c '{code}'")
    check_status(result, 0)
    check("exact-count", scalar(result.out, "@all") == 500, result.report())
    check_prints(result, r"\t[0-9a-f]+ getppid\+0 \(\S*libc\S*\)\n\t[0-9a-f]+ \S+ \(\S*python\S*\)\n\]: 500\n")


def names_of_a_process_that_has_ended():
    """The maps are printed when it is long gone."""
    result = spile("-q", "-e", "uprobe:libc:malloc { @[ustack(1)] = count(); } END { @done = 1; }", "-c", Work.checked)
    check_status(result, 0)
    check_prints(result, r"@\[\n    (__libc_)?malloc\+0\n\]: [1-9]")


def stacks_of_many_threads_and_of_children():
    """Each process has its own rows; the traced program is as before."""
    with temporary_directory() as directory:
        path = compile_program(directory, "many", r"""
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
#define NOINLINE __attribute__((noinline))
NOINLINE long probe_me(long n) { __asm__ volatile("" ::: "memory"); return n; }
NOINLINE long calls(long n) { long r = n == 0 ? probe_me(n) : calls(n - 1); __asm__ volatile("" ::: "memory"); return r; }
NOINLINE void *work(void *arg) { for (long i = 0; i < 20000; i++) calls(i % 10); return arg; }
static void all(void) {
  pthread_t threads[4];
  for (int i = 0; i < 4; i++) pthread_create(&threads[i], NULL, work, NULL);
  for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
}
int main(void) {
  all();
  if (fork() == 0) { all(); _exit(0); }
  wait(NULL);
  printf("exit-success\n");
  fflush(stdout);
  usleep(100000);
  return 0;
}
""", FRAMES)
        result = spile("-v", "-q", "-e", f"uprobe:{path}:probe_me {{ @[ustack] = count(); @all = count(); }}", "-c", path)
        check_status(result, 0)
        check_prints(result, "exit-success")
        check("exact-count", scalar(result.out, "@all") == 2 * 4 * 20000, result.report())
        rows = [(text.count("calls+"), int(count)) for text, count in
                re.findall(r"@\[\n((?:    .*\n)+)\]: (\d+)\n", result.out)]
        check("exact-count", sorted(rows) == sorted([(depth, 8000) for depth in range(1, 11)] * 2), f"{rows}")


def attached_and_left_as_before():
    with temporary_directory() as directory:
        path = compile_program(directory, "busy", r"""
#include <unistd.h>
__attribute__((noinline)) long probe_me(long n) { __asm__ volatile("" ::: "memory"); return n; }
int main(void) { for (long i = 0;; i++) { probe_me(i); if (i % 1000 == 0) usleep(100); } }
""", FRAMES)
        with Process([path]) as busy:
            wait_for_work(busy.pid, 0.02)  # its libraries are there
            before = Picture(busy.pid)
            result = spile("-q", "--unsafe", "-e",
                           f"uprobe:{path}:probe_me /arg0 % 7 == 0/ {{ @[ustack, tid] = count(); @seen = 1; override(1); }} "
                           "interval:ms:20 /@seen/ { exit(); }", "-p", busy.pid)
            check_status(result, 0)
            check_prints(result, r"probe_me\+0\n    main\+\d+\n(.*\n)*, \d+\]: [1-9]")
            check_process_as_before(before, Picture(busy.pid))


# ---- override


def override_ends_functions_before_they_begin():
    script = (f"uprobe:{Work.checked}:answer /arg0 % 10 == 3/ {{ @answers = count(); override(-77); }} "
              "uprobe:libc:malloc /arg0 == 7777/ { @mallocs = count(); override(0); } "
              'uprobe:libc:open /str(arg0) == "/etc/passwd"/ { @opens = count(); override(4242); }')
    result = spile("-q", "--unsafe", "-e", script, "-c", Work.checked)
    check_status(result, 0)
    check_prints(result, "overridden=100 others=900 nulls=50 fd=4242")
    check("exact-count", [scalar(result.out, name) for name in ("@answers", "@mallocs", "@opens")] == [100, 50, 1],
          result.report())
    bare = run([Work.checked])
    check_prints(bare, "overridden=0 others=1000 nulls=0 fd=[0-9]\n")


def override_is_refused():
    needs = f"uprobe:{Work.checked}:answer {{ override(1); }}"
    result = spile("-q", "-e", needs, "-c", Work.checked)
    check_status(result, 1)
    check_says(result, r"override\(\) changes what the traced program does\n(.*\n)*HINT: --unsafe allows it")
    check("not-run", "others=" not in result.out, result.report())
    result = spile("-q", "--unsafe", "--engine", "kernel", "-e", needs, "-c", Work.checked)
    check_status(result, 1)
    check_says(result, "the kernel cannot override functions of programs")
    inside = second_instruction(Work.checked, "answer")
    result = spile("-q", "--unsafe", "-e",
                   f"uprobe:{Work.checked}:answer+{inside} {{ override(1); }} uprobe:libc:open {{ @ = count(); }}", "-c",
                   Work.checked)
    check_prints(result, "overridden=0 others=1000")
    check_says(result, r"not probed: .*override\(\) returns before a function has begun")


def second_instruction(path, function):
    need_tool("objdump")
    listing = run(["objdump", "-d", "--no-show-raw-insn", f"--disassemble={function}", path])
    addresses = [int(at, 16) for at in re.findall(r"^\s+([0-9a-f]+):\t", listing.out, re.M)]
    check("disassembles", len(addresses) > 2, listing.report())
    return addresses[1] - addresses[0]


def kernel_stacks_are_the_kernel_engines():
    result = spile("-q", "--engine", "user", "-e", f"uprobe:{Work.shapes}:probe_me {{ @[kstack] = count(); }}", "-c",
                   Work.shapes)
    check_status(result, 1)
    check_says(result, "kstack: only the kernel has this")
    kernel_can_carry()
    result = spile("-q", "-e", "tracepoint:syscalls:sys_enter_getppid { @[kstack(2)] = count(); @u[ustack(1)] = count(); exit(); }",
                   "-c", f"{sys.executable} -c 'import os; os.getppid()'")
    if result.status != 0:
        raise Skip(f"no tracepoints here: {result.err.strip()}")
    check_prints(result, r"@\[\n    \S+\n    \S+\n\]: 1\n")
    check_prints(result, r"@u\[\n    getppid\+\d+\n\]: 1\n")


def verbose_estimates_what_a_hit_costs():
    result = spile("-v", "-e", f"uprobe:{Work.shapes}:probe_me {{ @ = count(); }}", "-c", Work.shapes)
    check_status(result, 0)
    check_says(result, r"end: 21 hits, .*, an estimated [1-9]\d* ns a hit")


def all_cases():
    with temporary_directory() as directory:
        Work.shapes = compile_program(directory, "shapes", SHAPES, FRAMES)
        Work.checked = compile_program(directory, "checked", CHECKED)
        main([known_stacks_in_the_user_engine, known_stacks_in_the_kernel_engine, same_on_both_engines, modes,
              maps_keyed_by_stacks, json_has_stacks_as_text, functions_of_libc_called_from_python,
              names_of_a_process_that_has_ended, stacks_of_many_threads_and_of_children, attached_and_left_as_before,
              override_ends_functions_before_they_begin, override_is_refused, kernel_stacks_are_the_kernel_engines,
              verbose_estimates_what_a_hit_costs], 120)


if __name__ == "__main__":
    all_cases()
