#!/usr/bin/env python3
"""Return probes: what they print is what the program gets, on both engines; entries and returns agree; refusals say why."""
import os
import re
import shutil
import signal
import sys
import time

from harness import (Failure, Process, Skip, Spile, Target, check, check_exit_success, need_tool, target_path)
from tracing import (check_prints, check_says, check_status, compile_program, keyed, main, run, scalar, spile,
                     temporary_directory)

CASES = []
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
TRIES = 12


def case(function):
    CASES.append(function)
    return function


def traced(*words, **options):
    """A run of spile on a command. A `ret` is one byte: whether the one place where its jump could lead is free depends on
    where the loader has put the program, so another run may have more luck."""
    for _ in range(TRIES):
        result = spile(*words, **options)
        if "cannot be patched" not in result.err:
            return result
    return result


def engines():
    return ("user", "kernel") if os.getuid() == 0 else ("user",)


FOPEN = r"""
#include <stdio.h>
#include <stdlib.h>
int main(int argc, char **argv) {
  FILE *files[20];
  for (int i = 0; i < 20; i++) {
    files[i] = fopen(i % 5 == 4 ? "/nothing/here" : argv[0], "r");
    printf("program %#lx\n", (unsigned long)files[i]);
  }
  for (int i = 0; i < 20; i++)
    if (files[i] != NULL) fclose(files[i]);
  return argc > 5;
}
"""


@case
def fopen_returns_the_pointers_that_the_program_gets():
    """fopen is `mov $1,%edx; jmp __fopen_internal`: it has no ret of its own."""
    with temporary_directory() as directory:
        program = compile_program(directory, "opens", FOPEN)
        script = 'uretprobe:libc:fopen { printf("probe %#lx\\n", retval); }'
        for engine in ("user", "kernel") if os.getuid() == 0 else ("user",):
            result = traced("--engine", engine, "-e", script, "-c", program)
            check_status(result, 0)
            of = lambda who: re.findall(rf"^{who} (\S+)$", result.out, re.M)
            check("same-pointers", of("program") == of("probe") and len(of("probe")) == 20 and "0" in of("probe"),
                  f"{engine}\n{result.report()}")


# Functions that leave by a jump into another one, called the same number of times each.
DRIVER = r"""
import ctypes, sys
libc, crypto = ctypes.CDLL("libc.so.6"), ctypes.CDLL("libcrypto.so.3")
sqlite, cxx = ctypes.CDLL("libsqlite3.so.0"), ctypes.CDLL("libstdc++.so.6")
def pointer(library, name):
    function = getattr(library, name)
    function.restype = ctypes.c_void_p
    return function
now, zone = ctypes.c_long(1700000000), ctypes.byref(ctypes.c_long(1700000000))
text = ctypes.create_string_buffer(b"1234 and more")
wide = ctypes.create_unicode_buffer("12.5 and more")
calls = {}
def call(library, name, *arguments):
    calls[name] = lambda: pointer(library, name)(*arguments)
call(libc, "fopen", b"/nothing/here", b"r")
call(libc, "gmtime", zone)
call(libc, "localtime", zone)
call(libc, "ctime", zone)
call(libc, "atol", text)
call(libc, "atoll", text)
call(libc, "strtod", text, None)
call(libc, "strtof", text, None)
call(libc, "wcstod", wide, None)
call(libc, "wcstof", wide, None)
call(libc, "hcreate", 0)
for kind in "INTEGER ENUMERATED OCTET_STRING BIT_STRING UTF8STRING IA5STRING UTCTIME GENERALIZEDTIME".split():
    call(crypto, f"ASN1_{kind}_new")
call(crypto, "ASN1_STRING_new")
call(crypto, "ASN1_TIME_new")
call(sqlite, "sqlite3_errstr", 5)
call(sqlite, "sqlite3_soft_heap_limit", 0)
call(cxx, "_Znam", ctypes.c_size_t(24))
call(cxx, "_ZnamRKSt9nothrow_t", ctypes.c_size_t(24), text)
for function in calls.values():
    function()  # bound now
print("ready", flush=True)
sys.stdin.readline()
got = [(name, function() or 0) for name, function in calls.items() for _ in range(30)]
for name, value in got:
    print(f"program {name} {value:x}")
print(f"calls={30 * len(calls)}", flush=True)
print("EXIT-SUCCESS", flush=True)
"""


def library_of(name):
    if name.startswith("ASN1"):
        return f"{LIBRARIES}/libcrypto.so.3"
    if name.startswith("sqlite3"):
        return f"{LIBRARIES}/libsqlite3.so.0"
    return f"{LIBRARIES}/libstdc++.so.6" if name.startswith("_Z") else "libc"


def drive(names, kinds, engine, tries=TRIES):
    """Counts by function name, of the driver's 30 calls each."""
    need_tool("python3")
    for library in ("libcrypto.so.3", "libsqlite3.so.0", "libstdc++.so.6"):
        if not os.path.exists(f"{LIBRARIES}/{library}"):
            raise Skip(f"needs {library}")
    script = " ".join(", ".join(f"{kind}:{library_of(name)}:{name}" for name in names)
                      + f" {{ @{kind}[func] = count(); }}" for kind in kinds)
    for _ in range(tries):
        with Process([shutil.which("python3"), "-c", DRIVER]) as target:
            target.wait_for_line("ready$")
            with Spile(script, pid=target.pid, extra=["--engine", engine]) as tracer:
                if not tracer.wait_attached(30):
                    if tracer.finish(10) == 1 and "cannot be patched" in "\n".join(tracer.err):
                        continue
                    raise Failure(tracer.report())
                partly = any("not probed" in line for line in tracer.err)
                target.send_line()
                check_exit_success(target.finish(60), target)
                tracer.finish(30)
                return {kind: tracer.maps().get(f"@{kind}", {}) for kind in kinds}, partly, tracer
    raise Skip("the places where the jumps could lead are all taken")


NAMES = ["fopen", "gmtime", "localtime", "ctime", "atol", "atoll", "strtod", "strtof", "wcstod", "wcstof", "hcreate",
         *(f"ASN1_{kind}_new" for kind in ("INTEGER", "ENUMERATED", "OCTET_STRING", "BIT_STRING", "UTF8STRING", "IA5STRING",
                                           "UTCTIME", "GENERALIZEDTIME", "STRING", "TIME")),
         "sqlite3_errstr", "sqlite3_soft_heap_limit", "_Znam", "_ZnamRKSt9nothrow_t"]


@case
def functions_of_four_libraries_that_end_in_tail_jumps_return_as_often_as_they_are_called():
    counts, partly, tracer = drive(NAMES, ["uprobe", "uretprobe"], "user")
    entries, returns = counts["uprobe"], counts["uretprobe"]
    check("enough", len(returns) >= 20, f"only {sorted(returns)}\n{tracer.report()}")
    for name, count in returns.items():
        check("exact-count", count == entries.get(name, count) and count >= 30, f"{name}: {count} of {entries.get(name)}")
        # The interpreter itself may call a function, and some call others of the list.
        check("exact-count", count == 30 or name in ("_Znam", "gmtime", "localtime"), f"{name}: {count}\n{tracer.report()}")
    check("all", partly or len(returns) == len(NAMES), tracer.report())


# Of NAMES, those whose result is a number or an address.
VALUED = [name for name in NAMES if not re.match("strto|wcsto|sqlite3_soft", name)]


@case
def twenty_functions_that_end_in_tail_jumps_return_what_the_program_gets():
    check("twenty", len(VALUED) == 20, f"{VALUED}")
    script = " ".join(f'uretprobe:{library_of(name)}:{name} {{ printf("probe {name} %lx\\n", retval); }}' for name in VALUED)
    for engine in engines():
        for attempt in range(TRIES):
            with Process([shutil.which("python3"), "-c", DRIVER]) as target:
                target.wait_for_line("ready$")
                with Spile(script, pid=target.pid, extra=["--engine", engine]) as tracer:
                    if not tracer.wait_attached(30):
                        raise Failure(tracer.report())
                    partly = any("not probed" in line for line in tracer.err)
                    if partly and attempt + 1 < TRIES:
                        continue
                    target.send_line()
                    check_exit_success(target.finish(60), target)
                    tracer.finish(30)
                    printed = "".join(tracer.of_type("printf")).splitlines()
                    break
        program, probe = ({name: [] for name in VALUED} for _ in range(2))
        for found, lines, who in ((program, target.out, "program"), (probe, printed, "probe")):
            for line in lines:
                match = re.fullmatch(rf"{who} (\S+) ([0-9a-f]+)", line.strip())
                if match and match[1] in found:
                    found[match[1]].append(int(match[2], 16))
        for name in VALUED:
            if partly and not probe[name]:
                continue
            mask = 0xffffffff if name == "hcreate" else 2**64 - 1
            values = [value & mask for value in probe[name]]
            # The interpreter itself calls some of them, and some call others of the list.
            others = name in ("_Znam", "gmtime", "localtime")
            rest = iter(values)
            agrees = all(value in rest for value in program[name]) if others else values == program[name]
            check("same-values", len(program[name]) == 30 and agrees,
                  f"{engine} {name}: {program[name][:4]} {values[:4]} ({len(values)})\n{tracer.report()}")


LAZY = r"""
#include <stdio.h>
#include <stdlib.h>
__attribute__((noinline)) long number(const char *text) { return atol(text); }      // jmp atol@plt
__attribute__((noinline)) void *room(unsigned long n) { return malloc(n); }         // jmp malloc@plt
__attribute__((noinline)) int same(const void *a, const void *b) { return __builtin_memcmp(a, b, 3 + *(volatile char *)a % 2); }
int main(void) {
  long sum = 0;
  for (int i = 0; i < 50; i++) {
    sum += number("12");
    void *p = room(100);
    sum += p != NULL;
    free(p);
    sum += same("abcd", "abcd");
  }
  printf("sum=%ld\n", sum);
  return sum != 50 * 13;
}
"""


@case
def words_that_the_loader_has_not_bound_yet_are_followed_by_name():
    with temporary_directory() as directory:
        for flags in (("-O2", "-Wl,-z,lazy"), ("-O2", "-Wl,-z,now"), ("-O2", "-fno-plt"), ("-O2", "-no-pie", "-Wl,-z,lazy"),
                      ("-O2", "-fcf-protection", "-Wl,-z,lazy"), ("-O2", "-static")):
            program = compile_program(directory, "lazy", LAZY, flags)
            result = traced("--engine", "user", "-e",
                            f"uretprobe:{program}:number, uretprobe:{program}:room, uretprobe:{program}:same "
                            "{ @[func] = count(); }", "-c", program)
            if "-static" in flags or "-no-pie" in flags:
                # Low addresses leave a jump of one byte few places; and what a static program chooses by the CPU is not
                # chosen yet when it starts.
                check("in-words", result.status == 0 or re.search("cannot be patched|is not known", result.err), result.report())
                if result.status != 0:
                    continue
            check_status(result, 0)
            check_prints(result, "sum=650")
            counts = keyed(result.out, "@")
            expected = {"number": 50, "room": 50, "same": 50}
            check("exact-count", all(counts.get(name, count) == count for name, count in expected.items()) and
                  (len(counts) == 3 or "not probed" in result.err) and counts, f"{flags}\n{result.report()}")


@case
def entries_and_returns_of_a_recursive_function_agree():
    program = target_path("case_32_recursion")
    script = (f"uprobe:{program}:probe_me_tracked {{ @in = count(); }} "
              f"uretprobe:{program}:probe_me_tracked {{ @out = count(); }}")
    result = traced("-e", script, "-c", f"{program} --mode tracked")
    check_status(result, 0)
    check("pairs", scalar(result.out, "@in") == scalar(result.out, "@out") == 300000, result.report())


@case
def several_probes_on_one_function_run_at_each_return():
    program = target_path("case_10_tail_jumps")
    script = (f"uretprobe:{program}:probe_me_direct {{ @a = count(); }} uretprobe:{program}:probe_me_direct {{ @b = sum(retval); }} "
              f"uretprobe:{program}:probe_me_conditional {{ @c = count(); }}")
    result = traced("-e", script, "-c", f"{program} --rounds 80")
    check_status(result, 0)
    check("each", (scalar(result.out, "@a"), scalar(result.out, "@c")) == (80, 80), result.report())
    check("sum", scalar(result.out, "@b") == sum(3 * (i % 8 + 1) + 1 for i in range(80)), result.report())


GO = r"""
package main
import "fmt"
//go:noinline
func leaf(n int) (int, int) { return n * 3, n + 1 }
//go:noinline
func grows(n int) int {
	var room [64]int
	for i := range room { room[i] = n + i }
	if n == 0 { return room[5] - 4 }
	return grows(n-1) + 1
}
func main() {
	done := make(chan int)
	for g := 0; g < 8; g++ {
		go func() {
			sum := 0
			for i := 0; i < 50; i++ { a, b := leaf(i); sum += a + b; sum += grows(100) }
			done <- sum
		}()
	}
	total := 0
	for g := 0; g < 8; g++ { total += <-done }
	fmt.Println("total", total)
}
"""


@case
def go_functions_return_on_stacks_that_move():
    need_tool("go")
    with temporary_directory() as directory:
        with open(f"{directory}/main.go", "w", encoding="utf-8") as file:
            file.write(GO)
        env = {"HOME": directory, "GOCACHE": f"{directory}/cache", "GO111MODULE": "off"}
        built = run(["go", "build", "-o", f"{directory}/goer", f"{directory}/main.go"], seconds=120, env=env)
        check_status(built, 0)
        bare = run([f"{directory}/goer"])
        result = spile("--engine", "user", "-e", f"uretprobe:{directory}/goer:main.grows {{ @ = count(); }}", "-c",
                       f"{directory}/goer")
        if "no probe could be placed" in result.err:
            check_says(result, "cannot be patched|does not check its stack")
            raise Skip("no place for the jump: " + result.err.strip()[-200:])
        check_status(result, 0)
        check("same-output", bare.out.strip() in result.out, result.report())
        check("exact-count", scalar(result.out, "@") == 8 * 50 * 101, result.report())


HOOKS = r"""
#include <stdio.h>
typedef long (*function)(long);
__attribute__((noinline)) long plus(long n) { __asm__ volatile(""); return n + 1; }
__attribute__((noinline)) long minus(long n) { __asm__ volatile(""); return n - 1; }
function volatile chosen = plus;                                    // mov chosen(%rip),%rax; jmp *%rax
struct { long count; function act; } volatile table = {0, plus};
function simple = plus;                                             // jmp *simple(%rip)
struct object { const function *methods; } object;
static const function methods[] = {plus, minus};
__attribute__((noinline)) long hook(long n) { if (n < 0) return -7; return chosen(n * 2); }
__attribute__((noinline)) long member(long n) { if (n < 0) return -7; return table.act(n * 2); }
__attribute__((noinline)) long word(long n) { if (n < 0) return -7; return simple(n); }
__attribute__((noinline)) long method(struct object *o, long n) { if (n < 0) return -7; return o->methods[n % 2](n); }
__attribute__((noinline)) long leads_there(long n) { __asm__ volatile(""); return hook(n + 1); }
int main(void) {
  long sum = 0;
  object.methods = methods;
  for (int i = 0; i < 50; i++) sum += hook(i) + member(i) + leads_there(i) + word(i);
  chosen = simple = table.act = minus;
  for (int i = 0; i < 30; i++) sum += hook(i) + member(i) + leads_there(i) + word(i);
  for (int i = 0; i < 20; i++) sum += hook(-1) + member(-1) + leads_there(-2) + word(-1);
  for (int i = 0; i < 10; i++) sum += method(&object, i - 5);
  printf("sum=%ld\n", sum);
  return 0;
}
"""


def unseen_returns(result):
    found = re.search(r"(\d+) returns not seen, of calls that left through a pointer", result.err)
    return int(found.group(1)) if found else 0


@case
def a_hook_is_followed_where_it_leads_and_counted_where_it_does_not():
    with temporary_directory() as directory:
        program = compile_program(directory, "hooks", HOOKS)
        bare = run([program]).out
        for functions, told, unseen, in_kernel in ((["hook"], [140], 60, [200]), (["member"], [70], 30, [100]), (["word"], [70], 30, [100]),
                                                   (["leads_there"], [70], 30, [100]), (["method"], [5], 5, [10]),
                                                   (["hook", "leads_there", "member", "plus"], [140, 70, 70, 203], 120,
                                                    [200, 100, 100, 203])):
            probes = " ".join(f"uretprobe:{program}:{name} {{ @{name} = count(); }}" for name in functions)
            result = traced("--engine", "user", "-e", probes, "-c", program)
            check_status(result, 0)
            counts = [scalar(result.out, f"@{name}") for name in functions]
            check("told", all(count >= least for count, least in zip(counts, told)), f"{functions} {counts}\n{result.report()}")
            # The tracer may come to watch what the pointers lead to while the program runs.
            not_seen = unseen_returns(result)
            check("exact-or-counted", sum(counts) + not_seen == sum(in_kernel) and not_seen <= unseen, f"{functions} {counts}\n{result.report()}")
            check("same-output", bare.strip() in result.out, result.report())
            if os.getuid() == 0:
                result = traced("--engine", "kernel", "-e", probes, "-c", program)
                check_status(result, 0)
                counts = [scalar(result.out, f"@{name}") for name in functions]
                check("exact-count", counts == in_kernel, f"{functions} {counts}\n{result.report()}")


METHODS = r"""
#include <cstdio>
#include <cstdlib>
#include <cstring>
struct Shape {
  virtual ~Shape() = default;
  virtual long name() const { asm volatile(""); return 1; }
  virtual long area(long n) const = 0;
};
struct Square : Shape { long area(long n) const override { asm volatile(""); return n * n; } };
struct Line : Shape { long area(long n) const override { asm volatile(""); return n; } };
__attribute__((noinline)) long area_of(const Shape &shape, long n) { return shape.area(n + 1); }     // jmp *24(%rax)
int main() {
  Shape *shapes[] = {new Square, new Line, new Line};
  // An object whose table nobody wrote down: what is not watched is counted.
  void *copy = malloc(64);
  memcpy(copy, *reinterpret_cast<void **>(shapes[2]), 32);
  static long (*odd)(const Shape *, long) = [](const Shape *, long n) { asm volatile(""); return 3 * n; };
  memcpy(static_cast<char *>(copy) + 24, &odd, 8);
  *reinterpret_cast<void **>(shapes[2]) = copy;
  long sum = 0;
  for (long i = 0; i < 60; i++) sum += area_of(*shapes[i % 3], i);
  std::printf("sum=%ld\n", sum);
}
"""


@case
def virtual_functions_are_found_in_their_tables():
    with temporary_directory() as directory:
        program = compile_program(directory, "methods", METHODS, ("-x", "c++", "-O2", "-fno-inline"), "g++")
        bare = run([program]).out
        result = traced("--engine", "user", "-e", f"uretprobe:{program}:*area_of* {{ @[retval] = count(); @n = count(); }}",
                        "-c", program)
        check_status(result, 0)
        check("same-output", bare.strip() in result.out, result.report())
        expected = {}
        for i in range(60):
            if i % 3 != 2:
                value = str((i + 1) ** 2 if i % 3 == 0 else i + 1)
                expected[value] = expected.get(value, 0) + 1
        told = keyed(result.out, "@")
        check("every-call", all(told.get(value, 0) >= count for value, count in expected.items()), f"{expected}\n{result.report()}")
        check("exact-or-counted", sum(told.values()) + unseen_returns(result) == 60, result.report())


@case
def what_cannot_be_followed_is_refused_with_the_reason():
    source = r"""
    #include <stdlib.h>
    typedef long (*function)(long);
    long plus(long n) { return n + 1; }
    long volatile key = 0x5a5a, scrambled;
    __attribute__((noinline)) long method(void *o, long n) { return ((function)(scrambled ^ key))(n * 2); }
    __attribute__((noinline, noreturn)) void never(void) { exit(0); }
    __attribute__((noinline)) long leads_there(void *o, long n) { __asm__ volatile(""); return method(o, n); }
    int main(void) { scrambled = (long)plus ^ key; if (leads_there(0, 3) == 0) never(); return 1; }
    """
    with temporary_directory() as directory:
        program = compile_program(directory, "leaves", source)
        for function in ("method", "leads_there"):
            result = spile("--engine", "user", "-e", f"uretprobe:{program}:{function} {{ @ = count(); }}", "-c", program)
            check_status(result, 1)  # the program's
            check("exact-or-counted", (scalar(result.out, "@") or 0) + unseen_returns(result) == 1, result.report())
        for path, function, reason in (("libc", "__longjmp", r"only leaves through a pointer, `jmp.*`: .*not known before it runs"),
                                       (program, "never", "never returns")):
            if path == "libc" and "__longjmp" not in spile("-l", "uprobe:libc:__longjmp").out:
                continue  # stripped
            result = spile("--engine", "user", "-e", f"uretprobe:{path}:{function} {{ @ = count(); }}", "-c", program)
            check_status(result, 1)
            check_says(result, reason)


@case
def a_listing_names_return_probes_and_sites_tell_what_they_watch():
    listed = spile("-l", "uretprobe:libc:fopen")
    check_prints(listed, r"^uretprobe:/\S*libc\S*:fopen$")
    with Target(target_path("case_46_counter"), wait=True) as target:
        result = spile("sites", "-p", target.pid, "-e", "uretprobe:libc:fopen { @ = count(); }")
        check_prints(result, r"libc\S*:fopen at 0x[0-9a-f]+: \[returns of noted calls\] 1 tail jump to __fopen_internal; \d places patched")


@case
def the_table_of_calls_goes_when_spile_is_killed_and_its_leftovers_are_taken_out():
    table = 4 << 20
    path = target_path("case_10_tail_jumps")
    with Target(path, wait=True, loop=60) as target:
        target.send_line()

        def tables():
            with open(f"/proc/{target.pid}/maps", encoding="utf-8") as maps:
                ranges = [line.split() for line in maps]
            sizes = [int(r[0].split("-")[1], 16) - int(r[0].split("-")[0], 16) for r in ranges if r[1] == "rw-p" and len(r) == 5]
            return sizes.count(table)

        with Spile(f"uretprobe:{path}:probe_me_chain {{ @ = count(); }}", pid=target.pid) as tracer:
            if not tracer.wait_attached():
                raise Skip("no place for the jump")
            check("mapped", tables() == 1, f"{tables()} tables")
            tracer.send(signal.SIGKILL)
            tracer.finish(10)
        check("still-there", tables() == 1, "taken out by nobody")
        check_status(spile("detach", "-p", target.pid), 0)
        check("gone", tables() == 0, f"{tables()} tables")
        check("alive", target.alive(), target.report())


PING_PONG = r"""
#include <stdio.h>
__attribute__((noinline)) long pong(long n);
__attribute__((noinline)) long ping(long n) { if (n <= 0) return 7; __asm__ volatile(""); return pong(n - 1); }   // jmp pong
__attribute__((noinline)) long pong(long n) { if (n <= 0) return 8; __asm__ volatile(""); return ping(n - 1); }   // jmp ping
int main(void) {
  long sum = 0;
  for (long i = 0; i < 20; i++) sum += ping(i) + 100 * pong(i);
  printf("sum=%ld\n", sum);
  return 0;
}
"""


@case
def a_call_that_jumps_back_to_its_entry_returns_as_often_as_it_was_entered():
    with temporary_directory() as directory:
        program = compile_program(directory, "pingpong", PING_PONG, ("-O2", "-fno-inline"))
        script = " ".join(f"{kind}:{program}:{name} {{ @{kind}_{name} = count(); }}" for name in ("ping", "pong")
                          for kind in ("uprobe", "uretprobe"))
        for engine in engines():
            result = traced("--engine", engine, "-e", script, "-c", program)
            check_status(result, 0)
            entries = sum(i // 2 + 1 for i in range(20)) + sum((i + 1) // 2 for i in range(20))
            for name in ("ping", "pong"):
                counts = (scalar(result.out, f"@uprobe_{name}"), scalar(result.out, f"@uretprobe_{name}"))
                check("exact-count", counts == (entries, entries), f"{engine} {name} {counts} {entries}\n{result.report()}")


OVERRIDDEN = r"""
#include <stdio.h>
__attribute__((noinline)) long last(long n) { __asm__ volatile(""); return n + 1; }
__attribute__((noinline)) long plain(long n) { __asm__ volatile(""); return n * 2; }
__attribute__((noinline)) long tracked(long n) { __asm__ volatile(""); return last(n * 3); }
int main(void) {
  long a = 0, b = 0;
  for (long i = 0; i < 40; i++) { a += plain(i); b += tracked(i); last(i); }
  printf("plain=%ld tracked=%ld\n", a, b);
  return 0;
}
"""


@case
def a_call_that_is_overridden_has_not_run_and_its_return_is_not_told():
    with temporary_directory() as directory:
        program = compile_program(directory, "overridden", OVERRIDDEN)
        script = (" ".join(f"uprobe:{program}:{name} /arg0 % 4 == 1/ {{ override(1000); }} "
                           f"uretprobe:{program}:{name} {{ @{name}[retval] = count(); @{name}_n = count(); "
                           f"@{name}_args = sum(arg0); }}" for name in ("plain", "tracked")))
        result = traced("--engine", "user", "--unsafe", "-e", script, "-c", program)
        check_status(result, 0)
        kept = [i for i in range(40) if i % 4 != 1]
        check_prints(result, f"plain={10000 + sum(2 * i for i in kept)} tracked={10000 + sum(3 * i + 1 for i in kept)}")
        check("plain", keyed(result.out, "@plain") == {str(2 * i): 1 for i in kept}, result.report())
        check("tracked", keyed(result.out, "@tracked") == {str(3 * i + 1): 1 for i in kept}, result.report())
        for name in ("plain", "tracked"):
            check("arguments", scalar(result.out, f"@{name}_args") == sum(kept), result.report())


SESSIONS = r"""
#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#include <sys/wait.h>
static jmp_buf back;
__attribute__((noinline)) long fibonacci(long n) {                              // recursion
  if (n < 2) return n;
  long a = fibonacci(n - 1);
  __asm__ volatile("" : "+r"(a));
  long b = fibonacci(n - 2);
  __asm__ volatile("" : "+r"(b));                                               // or it becomes a loop
  return a + b;
}
__attribute__((noinline)) long odd(long n);
__attribute__((noinline)) long even(long n) { if (n == 0) return 1; long r = odd(n - 1); __asm__ volatile("" : "+r"(r)); return r; }
__attribute__((noinline)) long odd(long n) { if (n == 0) return 0; long r = even(n - 1); __asm__ volatile("" : "+r"(r)); return r; }
__attribute__((noinline)) long maybe(long n, long jumps) {                     // every third call ends by longjmp
  if (jumps) longjmp(back, 1);
  __asm__ volatile("");
  return n * 3;
}
__attribute__((noinline)) long tail(long n) { __asm__ volatile(""); return maybe(n + 1, 0); }
static ucontext_t home, inside;
__attribute__((noinline)) long yields(long n) { swapcontext(&inside, &home); __asm__ volatile(""); return n + 100; }
static void body(void) { yields(41); }
static void *resume(void *arg) { (void)arg; swapcontext(&home, &inside); return NULL; }
static void *work(void *arg) { for (int i = 0; i < 200; i++) fibonacci((long)arg); return NULL; }
__attribute__((noinline)) long waits(long ms) { struct timespec t = {0, ms * 1000000}; nanosleep(&t, NULL); return ms; }
int main(int argc, char **argv) {
  (void)argv;
  printf("fib %ld\n", fibonacci(10));
  printf("even %ld\n", even(7));
  for (long i = 0; i < 30; i++) if (!setjmp(back)) maybe(i, i % 3 == 0);
  for (long i = 0; i < 10; i++) tail(i);
  static char stack[65536];
  pthread_t threads[4];
  if (argc == 1) {
  getcontext(&inside);
  inside.uc_stack.ss_sp = stack; inside.uc_stack.ss_size = sizeof stack; inside.uc_link = &home;
  makecontext(&inside, body, 0);
  resume(NULL);
  pthread_create(&threads[0], NULL, resume, NULL);                              // the coroutine returns on another thread
  pthread_join(threads[0], NULL);
  }
  for (long i = 0; i < 4; i++) pthread_create(&threads[i], NULL, work, (void *)i);
  for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
  for (long i = 1; i <= 3; i++) waits(10 * i);
  fflush(stdout);
  if (fork() == 0) _exit(fibonacci(6) != 8);
  int status; wait(&status);
  printf("done %d\n", status);
  return 0;
}
"""


@case
def arguments_at_the_return_are_those_of_the_call_on_both_engines():
    with temporary_directory() as directory:
        program = compile_program(directory, "sessions", SESSIONS, ("-O1", "-foptimize-sibling-calls", "-pthread"))
        script = (" ".join(f"uretprobe:{program}:{name} {{ @{name}[arg0, retval] = count(); }}"
                           for name in ("fibonacci", "even", "odd", "tail", "yields"))
                  + f" uretprobe:{program}:maybe {{ @maybe[arg0, arg1, retval] = count(); }}"
                  + f" uretprobe:{program}:waits {{ @waits[arg0] = max(duration); @shortest[arg0] = min(duration); }}")
        fib = [0, 1]
        while len(fib) < 11:
            fib.append(fib[-1] + fib[-2])
        expected = dict.fromkeys(range(11), 0)
        def add(top, times):
            if top >= 2:
                add(top - 1, times)
                add(top - 2, times)
            expected[top] += times
        add(10, 1)
        for top in range(4):
            add(top, 200)
        for engine in engines():
            # A return on another thread than the call's: the kernel's uretprobe kills the program (SIGILL).
            words = program if engine == "user" else f"{program} without-coroutine"
            result = traced("--engine", engine, "-e", script, "-c", words)
            check_status(result, 0)
            for line in ("fib 55", "even 0", "done 0"):
                check_prints(result, line)
            maps = {name: keyed(result.out, f"@{name}") for name in
                    ("fibonacci", "even", "odd", "tail", "yields", "maybe", "waits", "shortest")}
            seen = {int(k.split(",")[0]): v for k, v in maps["fibonacci"].items()}
            right = all(int(k.split(",")[1]) == fib[int(k.split(",")[0])] for k in maps["fibonacci"])
            # The forked child runs fibonacci(6), under probes or with them taken out already.
            more = dict(zip(range(7), (5, 8, 5, 3, 2, 1, 1)))
            fits = all(expected[n] <= seen.get(n, 0) <= expected[n] + more.get(n, 0) for n in expected)
            check("every-call", right and fits, f"{engine} {seen} {expected}\n{result.report()}")
            check("mutual", maps["even"] == {f"{n}, 0": 1 for n in (1, 3, 5, 7)}
                  and maps["odd"] == {f"{n}, 0": 1 for n in (0, 2, 4, 6)}, result.report())
            jumped = {f"{n}, 0, {3 * n}": 1 for n in range(30) if n % 3}
            for n in range(1, 11):
                key = f"{n}, 0, {3 * n}"
                jumped[key] = jumped.get(key, 0) + 1
            check("longjmp", maps["maybe"] == jumped, f"{maps['maybe']}\n{result.report()}")
            check("tail", maps["tail"] == {f"{n}, {3 * (n + 1)}": 1 for n in range(10)}, result.report())
            check("coroutine", maps["yields"] == ({"41, 141": 1} if engine == "user" else {}), result.report())
            for ms in (10, 20, 30):
                low, high = maps["shortest"][str(ms)], maps["waits"][str(ms)]
                check("duration", ms * 1_000_000 <= low <= high, f"{ms}: {low} {high}\n{result.report()}")


PAUSED = r"""
#include <stdio.h>
#include <time.h>
#include <unistd.h>
__attribute__((noinline)) long slow(long n) { usleep(n % 7 * 1000 + 500); return n * 3; }
int main(void) {
  puts("ready");
  fflush(stdout);
  for (long i = 1; i <= 700; i++) slow(i);
  puts("EXIT-SUCCESS");
  return 0;
}
"""


@case
def a_return_after_a_pause_finds_the_entry_of_its_own_call():
    """The probes are switched off and on while calls are under way, always at the same place of the stack."""
    with temporary_directory() as directory:
        program = compile_program(directory, "paused", PAUSED)
        with Process([program]) as target:
            target.wait_for_line("ready$")
            script = f'uretprobe:{program}:slow {{ printf("%d %d %d\\n", arg0, retval, duration / 1000); }}'
            with Spile(script, pid=target.pid, extra=["--engine", "user"]) as tracer:
                check("attached", tracer.wait_attached(30), tracer.report())
                for i in range(200):
                    tracer.send(signal.SIGUSR2)
                    time.sleep(0.004 + i % 5 * 0.002)
                check_exit_success(target.finish(60), target)
                tracer.finish(30)
                told = [tuple(map(int, line.split())) for line in "".join(tracer.of_type("printf")).splitlines()]
        check("some", 20 < len(told) < 700, f"{len(told)} told\n{tracer.report()}")
        for argument, result, microseconds in told:
            check("own-entry", result == 3 * argument and microseconds < 1_000_000, f"{argument} {result} {microseconds}")


STRAYS = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#define APART __attribute__((noinline, noclone, noipa))
typedef long (*method)(long);
struct object { method call; char pad[40]; };
APART long shared(long n) { __asm__ volatile(""); return n * 7; }
APART long first(long n) { __asm__ volatile(""); return n + 1; }
APART long second(long n) { __asm__ volatile(""); if (n > 100) return shared(n); return n + 2; }
APART long third(long n) { __asm__ volatile(""); if (n > 200) return shared(n + 1); return n + 3; }
APART long probe_me(struct object *o, long n) { if (n < 0) return -1; return o->call(n); }

int main(void) {
  struct object *o = calloc(1, sizeof *o);
  const method all[] = {first, second, third};
  long times, which, n, calls = 0;
  printf("ready\n"), fflush(stdout);
  while (scanf("%ld %ld %ld", &times, &which, &n) == 3) {
    o->call = all[which];
    for (long i = 0; i < times; i++) probe_me(o, n), calls++;
    printf("calls=%ld\n", calls), fflush(stdout);
  }
  return 0;
}
"""


def strayed(tracer):
    found = re.search(r"(\d+) returns not seen", "\n".join(tracer.err))
    return int(found.group(1)) if found else 0


@case
def returns_behind_unforeseen_pointers_are_watched_from_then_on():
    """A pointer that no guess finds: the first calls are counted, then the returns behind it are told. What two of its targets
    share is watched once, and each return told once."""
    with temporary_directory() as directory:
        program = compile_program(directory, "strays", STRAYS)
        for value in ("1", "duration > 0", "arg1 >= -5"):
            script = f"uretprobe:{program}:probe_me {{ if ({value}) {{ @[retval] = count(); }} }} interval:ms:5 {{ print(@); }}"
            with Process([program]) as target:
                target.wait_for_line("ready$")
                with Spile(script, pid=target.pid) as tracer:
                    check("attached", tracer.wait_attached(), tracer.report())

                    def call(times, which, n):
                        before = len(target.out)
                        target.process.stdin.write(f"{times} {which} {n}\n")
                        target.process.stdin.flush()
                        end = time.monotonic() + 20
                        while len(target.out) == before:
                            check("in-time", time.monotonic() < end and target.alive(), target.report())
                            time.sleep(0.001)

                    def told(result):
                        return int(tracer.maps().get("@", {}).get(str(result), 0))

                    call(7, 0, -1)  # a return of its own
                    results = {(0, 1): 2, (1, 101): 707, (2, 201): 1414, (0, 5): 6, (2, 1): 4}
                    for (which, n), result in results.items():
                        end = time.monotonic() + 30
                        while told(result) == 0:
                            check("in-time", time.monotonic() < end, f"calls of {which} are never told\n{target.report()}{tracer.report()}")
                            call(1, which, n)
                            time.sleep(0.01)
                        call(300, which, n)
                    tracer.stop()
                    calls = int(target.out[-1].split("=")[1])
                    counts = {int(result): int(count) for result, count in tracer.maps()["@"].items()}
                    check("exact-or-counted", sum(counts.values()) + strayed(tracer) == calls, f"{calls} calls, {counts}\n{tracer.report()}")
                    check("told-from-then-on", all(counts[r] > 300 for r in results.values()) and counts[2**64 - 1 if 2**64 - 1 in counts else -1] == 7,
                          f"{calls} calls, {counts}\n{tracer.report()}")


PLUGIN = "long method_of_plugin(long n) { __asm__ volatile(\"\"); return n + 50; }"
HOST = r"""
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
struct object { char pad[8]; long (*call)(long); };
static struct object object;
__attribute__((noinline, noclone)) long probe_me(struct object *o, long n) { if (n < 0) return -1; return o->call(n); }
int main(int argc, char **argv) {
  char word[16];
  void *plugin = NULL;
  long value, calls = 0;
  printf("ready\n"), fflush(stdout);
  while (scanf("%15s %ld", word, &value) == 2) {
    if (!strcmp(word, "load")) plugin = dlopen(argv[1], RTLD_NOW), object.call = (long (*)(long))dlsym(plugin, "method_of_plugin");
    if (!strcmp(word, "unload")) dlclose(plugin);
    if (!strcmp(word, "call")) for (long i = 0; i < value; i++) probe_me(&object, 1), calls++;
    printf("calls=%ld\n", calls), fflush(stdout);
  }
  return argc > 5;
}
"""


@case
def returns_of_code_that_may_be_unloaded_are_watched_only_where_that_is_noticed():
    with temporary_directory() as directory:
        program = compile_program(directory, "host", HOST)
        plugin = compile_program(directory, "plugin.so", PLUGIN, ("-O2", "-shared", "-fPIC"))
        other = compile_program(directory, "other.so", PLUGIN.replace("method", "another"), ("-O2", "-shared", "-fPIC"))
        for notices in (False, True):
            script = f"uretprobe:{program}:probe_me {{ @ = count(); }} interval:ms:5 {{ print(@); }}"
            if notices:
                script += f" uprobe:{other}:another_of_plugin {{ @other = count(); }}"
            with Process([program, plugin]) as target:
                target.wait_for_line("ready$")

                def ask(words):
                    before, end = len(target.out), time.monotonic() + 20
                    target.process.stdin.write(words + "\n")
                    target.process.stdin.flush()
                    while len(target.out) == before:
                        check("in-time", time.monotonic() < end and target.alive(), target.report())
                        time.sleep(0.001)

                with Spile(script, pid=target.pid) as tracer:
                    check("attached", tracer.wait_attached(), tracer.report())
                    for _ in range(3):
                        ask("load 0")
                        ask("call 1")
                        end, before = time.monotonic() + 30, int(tracer.maps().get("@", 0))
                        while notices and int(tracer.maps().get("@", 0)) <= before + 300:
                            check("in-time", time.monotonic() < end, f"never told\n{tracer.maps()} {target.out[-1]}\n{tracer.report()}")
                            ask("call 40")
                            time.sleep(0.01)
                        ask("call 100")
                        ask("unload 0")
                    tracer.stop()
                    calls, told = int(target.out[-1].split("=")[1]), int(tracer.maps().get("@", 0))
                    check("exact-or-counted", told + strayed(tracer) == calls, f"{told} of {calls}\n{tracer.report()}")
                    check("told", (told > 900) == notices and (told == 0) != notices, f"{told} of {calls}\n{tracer.report()}")


@case
def returns_of_rust_functions_beside_panics():
    """Panics unwind through probed functions: those calls have no return, and leave nothing behind that another call could be told by."""
    path = target_path("rust_program")
    if not os.path.exists(path):
        raise Skip("needs rustc")
    rounds = 300
    script = (f"uprobe:{path}:probe_me {{ @entered = count(); }} "
              f"uretprobe:{path}:probe_me {{ @returned = count(); @timed = sum(duration > 0 ? 1 : 0); }} "
              f"uprobe:{path}:probe_me_panics {{ @panics = count(); }} uretprobe:{path}:probe_me_panics {{ @never = count(); @n = sum(arg0); }}")
    result = spile("--engine", "user", "-e", script, "-c", f"{path} --rounds {rounds}")
    check_status(result, 0)
    check("exit-success", "EXIT-SUCCESS" in result.out, result.report())
    counts = [scalar(result.out, f"@{name}") or 0 for name in ("entered", "returned", "timed", "never", "panics")]
    expected = sum((2 * r + i) % 9 + 1 for r in range(rounds) for i in range(2))
    check("exact-count", counts == [4 * rounds] * 3 + [0, expected], f"{counts}, {expected} calls that panic\n{result.report()}")


@case
def returns_in_node_while_its_compiler_is_at_work():
    """Threads that make code and throw it away: what they run beside it is patched, entered and left as often."""
    node = need_tool("node")
    path = os.path.realpath(node)
    if "uv_fs_stat" not in spile("-l", f"uprobe:{path}:uv_fs_stat").out:
        raise Skip("this node has no libuv of its own")
    work = """
      const fs = require('fs'); let sum = 0;
      const hot = n => { let s = 0; for (let i = 0; i < 200; i++) s += (i ^ n) % 7; return s; };
      for (let i = 0; i < 3000; i++) { sum += hot(i); sum += fs.statSync(i % 5 ? '/' : '/etc').mode % 3; }
      const made = []; for (let i = 0; i < 300; i++) made.push(new Function('x', `return x + ${i}`)(i));
      let left = 200; for (let i = 0; i < 200; i++) fs.stat('/', () => { if (--left == 0) console.log('done', sum, made.length); });
    """
    with temporary_directory() as directory:
        script_path = os.path.join(directory, "work.js")
        with open(script_path, "w", encoding="utf-8") as file:
            file.write(work)
        bare = run([node, script_path]).out
        script = (f"uprobe:{path}:uv_fs_stat {{ @entered = count(); }} "
                  f"uretprobe:{path}:uv_fs_stat {{ @returned = count(); @timed = sum(duration > 0 ? 1 : 0); }}")
        result = spile("--engine", "user", "-e", script, "-c", f"{node} {script_path}", seconds=100)
        check_status(result, 0)
        check("same-output", bare.strip() in result.out and "done" in bare, result.report())
        counts = [scalar(result.out, f"@{name}") or 0 for name in ("entered", "returned", "timed")]
        check("exact-count", counts[0] >= 200 and counts == [counts[0]] * 3, f"{counts}\n{result.report()}")


def coverage():
    """How many functions take a return probe, by library: the table of docs/coverage.md. Not a test.

    always: no jump through a pointer is there; as it is: every such jump has its pointer at a known place, and what that holds now
    is watched; open: some go to what objects or callers say."""
    print("| file | functions that return | taken | every return is told | told, as long as hooks stay as they are | some counted until they have run | refused |")
    with Process([shutil.which("python3"), "-c", DRIVER]) as target:
        target.wait_for_line("ready$")
        for name in ("libc.so.6", "libstdc++.so.6", "libcrypto.so.3", "libsqlite3.so.0"):
            coverage_of(f"{LIBRARIES}/{name}", name, target.pid)
    rust = target_path("rust_program")
    if os.path.exists(rust):
        with Target(rust, wait=True) as target:
            coverage_of(rust, "a Rust program", target.pid)
    node = shutil.which("node")
    if node:
        with Process([node, "-e", "console.log('ready'); setInterval(() => 0, 1000)"]) as target:
            target.wait_for_line("ready$")
            coverage_of(os.path.realpath(node), "node", target.pid)


def coverage_of(path, name, pid):
    lines = spile("sites", "-p", pid, "-e", f"uretprobe:{path}:* {{ @ = count(); }}", seconds=3000).out.splitlines()
    taken = [line for line in lines if "[returns" in line]
    refused = [line for line in lines if "REFUSED" in line and "never returns" not in line and "IFUNC" not in line]
    pointers = sum("through a pointer" in line for line in taken)
    is_open = sum("is seen when it runs" in line for line in taken)
    functions = len(taken) + len(refused)
    share = lambda count: f"{count:,} ({100 * count / functions:.2f} %)"
    print(f"| {name} | {functions:,} | {share(len(taken))} | {share(len(taken) - pointers)} | {share(len(taken) - is_open)} | {is_open:,} | "
          f"{len(refused)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--coverage"]:
        coverage()
    else:
        main(CASES, 300)
