#!/usr/bin/env python3
"""What a uprobe may name: any instruction by function and offset or by address, C++ names, patterns with exclusions, IFUNC
symbols; on both engines alike, and refused alike inside an instruction."""
import functools
import os
import re
import shutil

from harness import Process, check, need_tool
from tracing import (alive, check_says, check_status, compile_program, keyed, main, run, scalar, spile,
                     temporary_directory)

# `ladder` is of known instructions, all of which can be probed alone; `body` runs N times for each call.
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
long ladder(long n);
__asm__(".text\n.globl ladder\n.type ladder,@function\nladder:\n"
        "  mov %rdi,%rax\n"            /* 0: 3 bytes */
        "  lea 0x12345678(%rax),%rcx\n" /* 3: 7 */
        "  mov $0x90909090,%edx\n"     /* 10: 5 */
        "body: add $0x1000000,%rcx\n"  /* 15: 7 */
        "  sub $1,%rdi\n"              /* 22: 4 */
        "  jg body\n"                  /* 26: 2 */
        "  lea 8(%rcx),%rax\n"         /* 28: 4 */
        "  ret\n"                      /* 32 */
        ".size ladder,.-ladder\n");
__attribute__((noinline)) long fn_one(long n) { __asm__ volatile("" ::: "memory"); return n + 1; }
__attribute__((noinline)) long fn_two(long n) { __asm__ volatile("" ::: "memory"); return n + 2; }
__attribute__((noinline)) long fn_three(long n) { __asm__ volatile("" ::: "memory"); return n + 3; }
static size_t my_strlen_wide(const char *s) { size_t n = 0; while (s[n]) n++; return n; }
static void *resolve(void) { return (void *)my_strlen_wide; }
size_t my_strlen(const char *) __attribute__((ifunc("resolve")));
int main(int argc, char **argv) {
  long sum = 0;
  if (argc > 1) { puts("ready"); fflush(stdout); if (getchar() < 0) return 2; }
  for (long i = 1; i <= 20; i++) {
    sum += ladder(i) - fn_one(i) - fn_two(i) - fn_three(i);
    sum += (long)my_strlen("12345") - 5;
  }
  char *text = strdup(argv[0]);
  for (int i = 0; i < 50; i++) sum += strchr(text, 'q' + i % 3) == text;
  printf("sum=%ld\nEXIT-SUCCESS\n", sum);
  return 0;
}
"""

CPP = r"""
#include <cstdio>
#include <string>
namespace ns {
struct Thing {
  long n = 0;
  __attribute__((noinline)) long add(long x) { __asm__ volatile("" ::: "memory"); return n += x; }
  __attribute__((noinline)) long add(const std::string& x) { __asm__ volatile("" ::: "memory"); return n += (long)x.size(); }
};
template <typename T> __attribute__((noinline)) T twice(T x) { __asm__ volatile("" ::: "memory"); return x + x; }
}
int main() {
  ns::Thing thing;
  for (int i = 0; i < 10; i++) { thing.add(1); thing.add(1); thing.add(std::string("x")); ns::twice<int>(i); }
  std::printf("%ld\n", thing.n);
}
"""

HEADS = {0: 20, 3: 20, 10: 20, 15: 210, 22: 210, 26: 210, 28: 20, 32: 20}


class Work:
    directory = None

    @classmethod
    def program(cls):
        path = os.path.join(cls.directory, "work")
        if not os.path.exists(path):
            compile_program(cls.directory, "work", PROGRAM, ("-O2", "-fno-builtin"))
        return path


@functools.cache
def engines():
    result = spile("-q", "--engine", "kernel", "-e", f"uprobe:{Work.program()}:fn_one {{ @ = count(); }}", "-c",
                   Work.program())
    if result.status == 0:
        return ("user", "kernel")
    print(f"    only the user engine: {result.err.strip()}")
    return ("user",)


def traced(engine, script, command=None, *extra):
    result = spile("-q", "--engine", engine, *extra, "-e", script, "-c", command or Work.program())
    check_status(result, 0)
    return result


CASES = []


def case(function):
    CASES.append(function)
    return function


def address_of(program, symbol):
    lines = [line.split() for line in run(["nm", program]).out.splitlines()]
    return next(int(words[0], 16) for words in lines if len(words) == 3 and words[2] == symbol)


@case
def every_instruction_by_offset_and_by_address():
    """Each alone; the user engine may say that there is no safe way to one."""
    program, placed = Work.program(), 0
    start = address_of(program, "ladder")
    for engine in engines():
        for offset, expected in HEADS.items():
            for where in (f"ladder+{offset}", f"ladder+{offset:#x}", f"{start + offset:#x}"):
                result = spile("-q", "--engine", engine, "-e", f"uprobe:{program}:{where} {{ @ = count(); }}", "-c", program)
                if engine == "user" and result.status == 1:
                    check_says(result, r"no probe could be placed safely:\n.*0x[0-9a-f]+: ")
                    continue
                check_status(result, 0)
                placed += 1
                check("exact-count", scalar(result.out, "@") == expected, f"{engine} {where}\n{result.report()}")
                check("exit-success", "EXIT-SUCCESS" in result.out, result.report())
    check("hits-happened", placed >= len(engines()) * 12, f"{placed} places")


@case
def the_inside_of_an_instruction_is_refused_by_both():
    program = Work.program()
    start = address_of(program, "ladder")
    for engine in engines():
        for offset in range(32):
            if offset in HEADS:
                continue
            for where in (f"ladder+{offset}", f"{start + offset:#x}"):
                result = spile("-q", "--engine", engine, "-e", f"uprobe:{program}:{where} {{ @ = count(); }}", "-c", program)
                check_status(result, 1)
                check_says(result, r"(?s)0x[0-9a-f]+.*inside")
        for where, why in (("ladder+33", "only 33 bytes long"), ("0x7fffffff", "0x7fffffff"), ("nothing+4", "nothing")):
            result = spile("-q", "--engine", engine, "-e", f"uprobe:{program}:{where} {{ @ = count(); }}", "-c", program)
            check_status(result, 1)
            check_says(result, why)


@case
def arguments_and_probe_names_of_an_offset():
    program = Work.program()
    for engine in engines():
        result = traced(engine, f"uprobe:{program}:ladder+22 {{ @[probe] = sum(arg0); }}")
        check("exact-values", keyed(result.out, "@") == {f"uprobe:{program}:ladder+22": 20 * 21 * 22 // 6}, result.report())


@case
def patterns_with_exclusions():
    program = Work.program()
    for engine in engines():
        for script, names in ((f"uprobe:{program}:fn_*, !uprobe:{program}:fn_two", {"fn_one", "fn_three"}),
                              (f"!uprobe:{program}:fn_t*, uprobe:{program}:fn_*", {"fn_one"}),
                              (f"uprobe:{program}:fn_one, uprobe:{program}:fn_two", {"fn_one", "fn_two"})):
            result = traced(engine, f"{script} {{ @[func] = count(); }}")
            check("exact-count", keyed(result.out, "@") == {name: 20 for name in names}, result.report())
    check("listed", spile("-l", "-e", f"uprobe:{program}:fn_*, !uprobe:{program}:fn_two {{ exit(); }}").out.splitlines() ==
          [f"uprobe:{program}:fn_{name}" for name in ("one", "three")], "-l -e")


@case
def an_ifunc_means_the_implementation_of_this_process():
    program = Work.program()
    result = traced("user", f"uprobe:{program}:my_strlen {{ @own = count(); }} uprobe:libc:strchr /pid/ {{ @libc = count(); }}", None,
                    "-v")
    check("exact-count", scalar(result.out, "@own") == 20, result.report())
    check("at-least", (scalar(result.out, "@libc") or 0) >= 50, result.report())
    check("named", re.search(r"my_strlen_wide at 0x", result.err), result.report())
    with Process([program, "wait"]) as target:
        target.wait_for_line("ready")
        attached = spile("-q", "-e", "uprobe:libc:strchr { @ = count(); } interval:ms:50 { exit(); }", "-p", target.pid)
        check_status(attached, 0)
        check("target-survives", alive(target.pid), target.report())
    if "kernel" in engines():
        result = spile("-q", "--engine", "kernel", "-e", f"uprobe:{program}:my_strlen {{ @ = count(); }}", "-c", program)
        check_status(result, 1)
        check_says(result, "IFUNC.*-p.*user engine")


@case
def functions_by_their_cpp_names():
    need_tool("g++")
    path = os.path.join(Work.directory, "things")
    with open(path + ".cc", "w", encoding="utf-8") as file:
        file.write(CPP)
    check_status(run(["g++", "-O1", path + ".cc", "-o", path], seconds=60), 0)
    for engine in engines():
        for name, counts in (("ns::Thing::add", {20, 10}), ("ns::Thing::add(long)", {20}), ("ns::twice<int>", {10}),
                             ("ns::*", {20, 10})):
            result = traced(engine, f'uprobe:{path}:cpp:"{name}" {{ @[func] = count(); }}', path)
            check("exact-count", set(keyed(result.out, "@").values()) == counts, result.report())
            check("cpp-names", all(key.startswith("int ns::") or key.startswith("ns::") for key in keyed(result.out, "@")), result.report())
        result = spile("-e", f'uprobe:{path}:cpp:"ns::nothing" {{ exit(); }}')
        check_status(result, 1)
        check_says(result, "no C.. function matches ns::nothing")


@case
def a_copy_of_a_library_is_another_file():
    """Byte for byte the same, and so of one build-id: probed is what the script names."""
    one, other = (os.path.join(Work.directory, name) for name in ("one.so", "other.so"))
    with open(one + ".c", "w", encoding="utf-8") as file:
        file.write("int in_library(int x) { return x * 3 + 1; }\n")
    check_status(run([need_tool("gcc"), "-O2", "-shared", "-fPIC", "-Wl,--build-id", one + ".c", "-o", one], seconds=60), 0)
    shutil.copy(one, other)
    program = compile_program(Work.directory, "loads", """
#include <dlfcn.h>
int main(int argc, char **argv) {
  int (*call)(int) = (int (*)(int))dlsym(dlopen(argv[1], RTLD_NOW), "in_library");
  for (int i = 0; i < 10; i++) call(i);
  return 0;
}
""")
    script = f"uprobe:{one}:in_library {{ @one = count(); }} uprobe:{other}:in_library {{ @other = count(); }}"
    for engine in engines():
        for loaded, name in ((one, "@one"), (other, "@other")):
            result = traced(engine, script, f"{program} {loaded}")
            counts = {key: scalar(result.out, key) or 0 for key in ("@one", "@other")}
            check("exact-count", counts == {"@one": 0, "@other": 0, name: 10}, f"{loaded}\n{result.report()}")


@case
def the_cold_part_of_a_function_is_no_function():
    need_tool("g++")
    path = os.path.join(Work.directory, "throws")
    with open(path + ".cc", "w", encoding="utf-8") as file:
        file.write("""
#include <stdexcept>
__attribute__((noinline)) int throws(int x) { if (x % 5 == 0) throw std::runtime_error("five"); return x; }
int main() { int n = 0; for (int i = 1; i <= 20; i++) { try { n += throws(i); } catch (const std::exception&) { n++; } } return n == 164 ? 0 : 1; }
""")
    check_status(run(["g++", "-O2", path + ".cc", "-o", path], seconds=60), 0)
    check("has-a-cold-part", ".cold" in run(["nm", path]).out, "the compiler made none")
    for engine in engines():
        result = traced(engine, f'uprobe:{path}:cpp:"throws" {{ @ = count(); }}', path)
        check("exact-count", scalar(result.out, "@") == 20, result.report())


@case
def what_is_not_built_is_named():
    for script, name in (("watchpoint:f+arg1:8:w { exit(); }", "a watchpoint on an argument of a function"), ("asyncwatchpoint:f+arg1:8:w { exit(); }", "asyncwatchpoint")):
        result = spile("-e", script)
        check_status(result, 1)
        check_says(result, f"{name} is not built yet")
    stripped = spile("-e", "uprobe:/bin/sh@main.c:3 { exit(); }")
    check_status(stripped, 1)
    check_says(stripped, "/bin/sh has no debug information")


def cases():
    with temporary_directory() as directory:
        Work.directory = directory
        need_tool("gcc")
        yield from CASES


if __name__ == "__main__":
    main(cases(), seconds=120)
