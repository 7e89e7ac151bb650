#!/usr/bin/env python3
"""Case 67: static tracepoints: every argument format, inlined copies, semaphores, on both engines; and what is refused."""
import functools
import glob
import os
import re
import signal
import struct
import time

from harness import SPILE, Picture, Process, Skip, Spile, check, need_root, need_tool
from tracing import (KILLED, SOAK, alive, check_process_as_before, check_prints, check_says, check_status,
                     compile_program, has_our_mappings, keyed, main, run, scalar, spile, temporary_directory, wait_until)

# `formats` has one of each place that an argument can be in, with known values. `twice` is inlined into three callers,
# each with its arguments elsewhere. `gated` is reached only while its semaphore is not zero.
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#define _SDT_HAS_SEMAPHORES 1
#include <sys/sdt.h>

#define SEMAPHORE(name) unsigned short name##_semaphore __attribute__((section(".probes"), used))
SEMAPHORE(demo_formats);
SEMAPHORE(demo_more);
SEMAPHORE(demo_words);
SEMAPHORE(demo_twice);
SEMAPHORE(demo_gated);
SEMAPHORE(demo_real);

long global = 0x1122334455667788;
static short numbers[8] = {10, -11, 12, -13, 14, -15, 16, -17};
struct { char pad[6]; short inner; } record = {"", -321};

// A note as <sys/sdt.h> writes it, with a text of our own.
#define NOTE(name, text) NOTE_OF("nop", name, text)
#define NOTE_OF(code, name, text)                                                           \
  "990: " code "\n.pushsection .note.stapsdt,\"\",\"note\"\n.balign 4\n"                         \
  ".4byte 992f-991f,994f-993f,3\n991: .asciz \"stapsdt\"\n992: .balign 4\n"                 \
  "993: .8byte 990b,_.stapsdt.base,0\n.asciz \"demo\"\n.asciz \"" name "\"\n.asciz \"" text \
  "\"\n994: .balign 4\n.popsection\n"

__attribute__((noinline)) static void formats(void) {
  long stack[4] = {-7000000000L, -2, 3, 4};
  __asm__ volatile(
      "mov $-5, %%eax\nmov $0x1234567890abcdef, %%rdx\nmov $3, %%ecx\nmov $-2, %%r8\n"
      NOTE("formats", "-4@%%eax 4@%%eax -8@%%rdx -2@%%dx 1@%%dl -1@%%dl 1@%%dh -4@%%r8d 8@%%rsi -8@8(%%rsi) -2@(%%rdi,%%rcx,2) -4@$-9 8@$7")
      : : "S"(stack), "D"(numbers), "m"(stack) : "rax", "rdx", "rcx", "r8", "memory");
  __asm__ volatile(NOTE("more", "8@global(%%rip) -2@6+record(%%rip) -2@record+6(%%rip) 1@$511 -1@$255 -8@-8(%%rsi) 2@4(%%rdi)")
      : : "S"(stack + 1), "D"(numbers) : "memory");
  // A nop of one byte for old tracers and one of five for new ones.
  __asm__ volatile(NOTE_OF("nop\n.byte 0x0f, 0x1f, 0x44, 0x00, 0x00", "combined", "-4@%%edi 8@%%rsi") : : "D"(-6L), "S"(66L) : "memory");
}

static inline __attribute__((always_inline)) void twice(long a, short b, const char *name) {
  if (__builtin_expect(demo_twice_semaphore, 0)) STAP_PROBE3(demo, twice, a, b, name);
}
__attribute__((noinline)) static long first(long n) { twice(n, (short)-n, "first"); return n; }
__attribute__((noinline)) static long second(long *n, short *b) {
  for (int i = 0; i < 3; i++) twice(n[i], b[i], "second");
  return n[0];
}
__attribute__((noinline)) static long third(long x, long n) {
  twice(41, 7, "third");
  return x + n;
}
__attribute__((noinline)) static void real(double d) { STAP_PROBE2(demo, real, d, 5); __asm__ volatile("" : : "x"(d)); }

static long gated;
static void work(long rounds) {
  long n[3] = {1, 2, 3};
  short b[3] = {-1, -2, -3};
  for (long i = 0; i < rounds; i++) {
    formats();
    first(i), second(n, b), third(i, i), real((double)i);
    if (__builtin_expect(demo_gated_semaphore, 0)) {
      gated++;
      STAP_PROBE1(demo, gated, gated);
    }
  }
}

static void wait_line(void) {
  char line[16];
  if (!fgets(line, sizeof line, stdin)) exit(2);
}

int main(int argc, char **argv) {
  long rounds = argc > 1 ? atol(argv[1]) : 10;
  const char *mode = argc > 2 ? argv[2] : "";
  printf("semaphore=%p\n", (void *)&demo_gated_semaphore);
  if (!strcmp(mode, "wait")) { puts("ready"); fflush(stdout); wait_line(); }
  if (!strcmp(mode, "fork")) {
    puts("ready"); fflush(stdout); wait_line();
    pid_t child = fork();
    if (child == 0) {
      wait_line();
      work(rounds);
      printf("child semaphore=%u gated=%ld\n", demo_gated_semaphore, gated);
      fflush(stdout);
      _exit(0);
    }
    printf("child=%d\n", (int)child); fflush(stdout);
    int status = 1;
    waitpid(child, &status, 0);
    if (status) return 3;
    work(rounds);
  } else if (!strcmp(mode, "forever")) {
    puts("ready"); fflush(stdout);
    for (long i = 0; i < 60000; i++) { work(10); usleep(1000); }
  } else {
    work(rounds);
  }
  printf("gated=%ld semaphore=%u\n", gated, demo_gated_semaphore);
  if (!strcmp(mode, "wait")) { puts("done"); fflush(stdout); wait_line(); printf("now=%u\n", demo_gated_semaphore); }
  puts("EXIT-SUCCESS");
  return 0;
}
"""

# A note may say anything: here the middle of an instruction, and an instruction that is no nop.
HOSTILE = r"""
#define NOTE(name, place) ".pushsection .note.stapsdt,\"\",\"note\"\n.balign 4\n.4byte 992f-991f,994f-993f,3\n991: .asciz \"stapsdt\"\n" \
  "992: .balign 4\n993: .8byte " place ",0,0\n.asciz \"bad\"\n.asciz \"" name "\"\n.asciz \"\"\n994: .balign 4\n.popsection\n"
#include <stdio.h>
#include <unistd.h>
__attribute__((noinline)) long work(long n) {
  // 90 is a byte of the constant: a nop to whoever looks at one byte alone.
  __asm__ volatile("1: mov $0x90909090, %%eax\n" NOTE("middle", "1b+2") NOTE("no_nop", "1b") : : : "eax");
  return n + 1;
}
int main(void) {
  long n = 0;
  puts("ready"); fflush(stdout);
  for (int i = 0; i < 4000; i++) { n = work(n); usleep(1000); }
  return n != 4000;
}
"""

GATE = r"""
#define _SDT_HAS_SEMAPHORES 1
#include <sys/sdt.h>
unsigned short lib_gate_semaphore __attribute__((section(".probes")));
__attribute__((noinline)) int gate(int n) { STAP_PROBE1(lib, gate, n); return n; }
"""

# Loads and unloads the library of its argument, and calls its function.
GUEST = r"""
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv) {
  char line[64];
  void *library = 0;
  puts("ready"); fflush(stdout);
  for (int turn = 1; argc > 1 && fgets(line, sizeof line, stdin); turn++) {
    if (line[0] == 'u') dlclose(library), library = 0;
    if (line[0] == 'l') {
      if (!(library = dlopen(argv[1], RTLD_NOW))) return 1;
      printf("at %p\n", dlsym(library, "lib_gate_semaphore"));
    }
    int (*gate)(int) = library ? (int (*)(int))dlsym(library, "gate") : 0;
    for (int i = 0; gate && line[0] == 'w' && i < 10; i++) gate(i);
    printf("turn %d\n", turn); fflush(stdout);
  }
}
"""

THROWER = r"""
#include <cstdio>
int main() {
  int caught = 0;
  for (int i = 0; i < 25; i++) {
    try { if (i % 5) throw i; } catch (int) { caught++; }
  }
  printf("caught=%d\n", caught);
}
"""

ENGINES = ("user", "kernel")


class Work:
    directory = None

    @classmethod
    def program(cls, name="demo", flags=("-O2",)):
        path = os.path.join(cls.directory, name)
        if not os.path.exists(path):
            if not any(os.path.exists(f"/usr/include/{place}sys/sdt.h") for place in ("", "x86_64-linux-gnu/")):
                raise Skip("needs <sys/sdt.h>: systemtap-sdt-dev")
            compile_program(cls.directory, name, HOSTILE if name == "hostile" else PROGRAM, flags)
        return path


@functools.cache
def kernel_engine_works():
    result = spile("-q", "--engine", "kernel", "-e", f"usdt:{Work.program()}:demo:real {{ @ = count(); }}", "-c",
                   f"{Work.program()} 1")
    return result.status == 0, result.err.strip()


def engines():
    """Both where the kernel lets us."""
    works, why = kernel_engine_works()
    if not works:
        print(f"    only the user engine: {why}")
    return ENGINES if works else ENGINES[:1]


def traced(engine, script, command, *extra):
    result = spile("-q", "--engine", engine, *extra, "-e", script, "-c", command)
    check_status(result, 0)
    return result


CASES = []


def case(function):
    CASES.append(function)
    return function


VARIANTS = {"demo": ("-O2",), "demo_no_pie": ("-O2", "-no-pie"), "demo_O0": ("-O0",), "demo_static": ("-O2", "-static")}


def refused_in_words(result, engine, name):
    """Without optimisation a branch target follows the nop, whose one byte finds not always a way: then it is named."""
    refusals = re.findall(r"not probed: .* at 0x[0-9a-f]+: .+", result.err)
    check("no-refusal", not refusals or (engine, name) == ("user", "demo_O0"), result.report())
    if refusals:
        print(f"    {name}: {len(refusals)} places refused: {refusals[0]}")
    return bool(refusals)


@case
def every_format_on_both_engines():
    """The values are those that the program has put there, whatever the place."""
    script = ('usdt:{0}:demo:formats {{ printf("F %d %u %lx %d %u %d %x %d %ld %d %d %d %d\\n", arg0, arg1, arg2, arg3, '
              'arg4, arg5, arg6, arg7, *(int64*)arg8, arg9, arg10, arg11, arg12); }} '
              'usdt:{0}:demo:more {{ printf("M %lx %d %d %d %d %ld %d\\n", arg0, arg1, arg2, arg3, arg4, arg5, arg6); }} '
              'usdt:{0}:demo:combined {{ printf("C %d %d\\n", arg0, arg1); }}')
    formats = "F -5 4294967291 1234567890abcdef -12817 239 -17 cd -2 -7000000000 -2 -13 -9 7"
    more = "M 1122334455667788 -321 -321 255 -1 -7000000000 12"
    for name, flags in VARIANTS.items():
        program = Work.program(name, flags)
        for engine in engines():
            result = traced(engine, script.format(program), f"{program} 5")
            refused = refused_in_words(result, engine, name)
            for line in () if refused else (formats, more, "C -6 66"):
                check("exact-values", result.out.splitlines().count(line) == 5,
                      f"{engine}, {name}: 5 times {line!r}\n{result.report()}")
            check("exit-success", "EXIT-SUCCESS" in result.out, result.report())


@case
def inlined_copies_are_one_name_with_exact_counts():
    """Four or more places, each with its own format; the kernel counts the same."""
    for name, flags in VARIANTS.items():
        program = Work.program(name, flags)
        places = spile("-lv", f"usdt:{program}:demo:twice").out.count("arg0")
        check("several-places", places >= (1 if name == "demo_O0" else 3), f"{name}: {places} places")
        for engine in engines():
            result = traced(engine, f'usdt:{program}:demo:twice {{ @n[str(arg2)] = count(); @s[str(arg2)] = sum((int16)arg1); '
                            '@a[str(arg2)] = sum(arg0); @p[probe] = count(); }', f"{program} 100")
            if refused_in_words(result, engine, name):
                continue
            check("exact-count", keyed(result.out, "@n") == {"first": 100, "second": 300, "third": 100}, result.report())
            check("exact-values", keyed(result.out, "@s") == {"first": -4950, "second": -600, "third": 700} and
                  keyed(result.out, "@a") == {"first": 4950, "second": 600, "third": 4100}, result.report())
            check("one-name", keyed(result.out, "@p") == {f"usdt:{program}:demo:twice": 500}, result.report())


@case
def a_glob_takes_all_and_probe_tells_them_apart():
    program = Work.program()
    for engine in engines():
        result = traced(engine, f"usdt:{program}:dem*:* {{ @[probe] = count(); }}", f"{program} 10")
        counts = {key.rsplit(":", 1)[1]: value for key, value in keyed(result.out, "@").items()}
        check("exact-count", counts == {"combined": 10, "formats": 10, "more": 10, "twice": 50, "real": 10, "gated": 10}, result.report())


@case
def a_semaphore_is_up_while_traced_from_the_start():
    program = Work.program()
    bare = run([program, "10"])
    check("bare", "gated=0 semaphore=0" in bare.out, bare.report())
    for engine in engines():
        result = traced(engine, f"usdt:{program}:demo:gated {{ @ = sum(arg0); }}", f"{program} 10")
        check("exact-count", scalar(result.out, "@") == 55 and "gated=10 semaphore=1" in result.out, result.report())


def counter(pid, address):
    with open(f"/proc/{pid}/mem", "rb") as memory:
        memory.seek(address)
        return struct.unpack("<H", memory.read(2))[0]


def set_counter(pid, address, value):
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(address)
        memory.write(struct.pack("<H", value))


class Waiting:
    """The program, waiting for a line before its work, and where its semaphore is."""

    def __init__(self, mode, rounds=10, environment=None):
        self.process = Process([Work.program(), str(rounds), mode], env={**os.environ, **(environment or {})})
        self.address = 0

    def __enter__(self):
        self.process.__enter__()
        self.address = int(self.process.wait_for_line(r"semaphore=(0x[0-9a-f]+)").group(1), 16)
        self.process.wait_for_line("ready")
        return self

    def __exit__(self, *details):
        self.process.__exit__(*details)

    @property
    def pid(self):
        return self.process.pid

    def semaphore(self):
        return counter(self.pid, self.address)


@case
def a_semaphore_goes_up_at_attach_and_down_at_detach():
    program = Work.program()
    for engine in engines():
        for others in (0, 3):
            if others and engine == "kernel":
                continue  # the kernel's own business
            with Waiting("wait") as target:
                before = Picture(target.pid)
                set_counter(target.pid, target.address, others)
                with Spile(f"usdt:{program}:demo:gated {{ @ = count(); }}", pid=target.pid,
                           extra=("--engine", engine)) as tracer:
                    tracer.wait_attached()
                    check("raised", target.semaphore() == others + 1, f"{engine}: {target.semaphore()}")
                    target.process.send_line()
                    target.process.wait_for_line(f"gated=10 semaphore={others + 1}")
                    tracer.stop()
                    check("exact-count", tracer.maps().get("@") == 10, tracer.report())
                check("lowered", target.semaphore() == others, f"{engine}: {target.semaphore()}")
                check_process_as_before(before, Picture(target.pid))
                target.process.send_line()
                target.process.wait_for_line("EXIT-SUCCESS")


@case
def one_semaphore_of_several_places_goes_up_once():
    program = Work.program()
    with Waiting("wait") as target:
        with Spile(f"usdt:{program}:demo:twice {{ @ = count(); }} usdt:{program}:demo:twice {{ @b = count(); }}",
                   pid=target.pid, extra=("--engine", "user")) as tracer:
            tracer.wait_attached()
            symbols = run(["nm", program]).out
            place = {name: int(value, 16) for value, _, name in (line.split() for line in symbols.splitlines() if len(line.split()) == 3)}
            twice = target.address + place["demo_twice_semaphore"] - place["demo_gated_semaphore"]
            check("once", counter(target.pid, twice) == 1, f"{counter(target.pid, twice)}")
            tracer.stop()
        check("lowered", counter(target.pid, twice) == 0, f"{counter(target.pid, twice)}")


@case
def a_forked_child_is_left_as_it_was():
    """The child has a copy of the raised counter: detaching lowers it there, too."""
    program = Work.program()
    with Waiting("fork") as target:
        with Spile(f"usdt:{program}:demo:gated {{ @ = count(); }}", pid=target.pid, extra=("--engine", "user")) as tracer:
            tracer.wait_attached()
            target.process.send_line()
            child = int(target.process.wait_for_line(r"child=(\d+)").group(1))
            check("raised", counter(child, target.address) == 1, "the child's copy")
            tracer.stop()
        check("lowered", counter(child, target.address) == 0 and target.semaphore() == 0,
              f"{counter(child, target.address)} {target.semaphore()}")
        target.process.send_line()
        target.process.wait_for_line("child semaphore=0 gated=0")
        target.process.wait_for_line("EXIT-SUCCESS")


def killed_at(target, program, step, others):
    result = run([SPILE, "-q", "--engine", "user", "-e",
                  f"usdt:{program}:demo:gated, usdt:{program}:demo:twice {{ @ = count(); }} interval:ms:1 {{ exit(); }}",
                  "-p", target.pid], env={"SPILE_KILL_AT_STEP": str(step)})
    check("killed-or-done", result.status in (0, KILLED), result.report())
    check("target-survives", alive(target.pid), f"step {step}")
    cleaned = spile("detach", "-p", target.pid)
    check("detach-after-kill", cleaned.status == 0, f"step {step}\n{cleaned.report()}")
    check("lowered", target.semaphore() == others, f"step {step}: {target.semaphore()} instead of {others}")
    check("mappings-unchanged", not has_our_mappings(target.pid), f"step {step}")
    return result.status == KILLED


@case
def a_tracer_killed_at_any_step_leaves_the_semaphore_as_it_was():
    program = Work.program()
    for others in (0, 2):
        with Waiting("forever") as target:
            before = Picture(target.pid)
            set_counter(target.pid, target.address, others)
            step, killed = 1, 0
            while killed_at(target, program, step, others):
                step, killed = step + (1 if not others or SOAK else 3), killed + 1
            check("hits-happened", killed > 10, f"{killed} kills")
            check_process_as_before(before, Picture(target.pid))
            os.kill(target.pid, signal.SIGKILL)


def module_base(pid, path):
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        return next(int(line.split("-")[0], 16) for line in maps if line.rstrip().endswith(path))


@case
def semaphores_change_once_over_many_stops():
    """More places than fit one stop, one with a counter in the first and one in the last of them."""
    many = next(iter(glob.glob("/usr/lib/x86_64-linux-gnu/libLLVM*.so*")), None)
    if many is None:
        raise Skip("needs a library of more than 16,000 functions: libLLVM")
    program, own = Work.program(), os.path.join(Work.directory, "libgate.so")
    with open(own + ".c", "w", encoding="utf-8") as file:
        file.write(GATE)
    check_status(run(["gcc", "-shared", "-fPIC", "-O2", own + ".c", "-o", own], seconds=60), 0)
    offset = next(int(line.split()[0], 16) for line in run(["nm", own]).out.splitlines() if line.endswith(" lib_gate_semaphore"))
    # The loader maps downwards: what is named first is above the rest.
    with Waiting("wait", environment={"LD_PRELOAD": f"{own} {many}"}) as target:
        gate = module_base(target.pid, own) + offset
        check("order", target.address < module_base(target.pid, os.path.realpath(many)) < gate, "the counters are not at both ends")
        before = Picture(target.pid)
        for address in (target.address, gate):
            set_counter(target.pid, address, 2)
        with Spile(f"usdt:{program}:demo:gated {{ @ = count(); }} usdt:{own}:lib:gate, uprobe:{many}:* {{ @library = count(); }}",
                   pid=target.pid, extra=("--engine", "user")) as tracer:
            tracer.wait_attached()
            check("raised", (target.semaphore(), counter(target.pid, gate)) == (3, 3), "")
            target.process.send_line()
            target.process.wait_for_line("gated=10 semaphore=3")
            tracer.stop()
            check("exact-count", tracer.maps().get("@") == 10, tracer.report())
        check("lowered", (target.semaphore(), counter(target.pid, gate)) == (2, 2),
              f"{target.semaphore()} {counter(target.pid, gate)}")
        check_process_as_before(before, Picture(target.pid))


@case
def a_semaphore_of_an_unloaded_library_is_forgotten():
    """The library comes back to its place, its counter with it. What others count there is left as it is."""
    own = os.path.join(Work.directory, "libguest.so")
    Work.program()
    with open(own + ".c", "w", encoding="utf-8") as file:
        file.write(GATE)
    check_status(run(["gcc", "-shared", "-fPIC", "-O2", own + ".c", "-o", own], seconds=60), 0)
    user = compile_program(Work.directory, "guest", GUEST, ("-O2",))
    turns, others = 0, 5
    with Process([user, own]) as target:
        def ask(what):
            nonlocal turns
            turns += 1
            target.process.stdin.write(what + "\n")
            target.process.stdin.flush()
            target.wait_for_line(f"turn {turns}$")
        target.wait_for_line("ready")
        ask("load")
        with Spile(f"usdt:{own}:lib:gate {{ @ = count(); }}", pid=target.pid, extra=("--engine", "user")) as tracer:
            tracer.wait_attached()
            for _ in range(3):
                ask("unload")
                ask("load")
                places = [int(line.split()[1], 16) for line in target.out if line.startswith("at ")]
                check("same-place", len(set(places)) == 1, f"{places}: the test says nothing")
                wait_until(lambda: counter(target.pid, places[0]) == 1, "the counter", 20)
                ask("work")
            set_counter(target.pid, places[0], others + 1)
            tracer.stop()
            check("exact-count", tracer.maps().get("@") == 30, tracer.report())
        check("lowered-once", counter(target.pid, places[0]) == others, f"{counter(target.pid, places[0])}")
        check("no-mapping-left", not has_our_mappings(target.pid), tracer.report())
        ask("work")


@case
def notes_that_point_into_instructions_are_refused():
    program = Work.program("hostile")
    for name in ("middle", "no_nop"):
        for engine in engines():
            with Process([program]) as target:
                target.wait_for_line("ready")
                result = spile("-q", "--engine", engine, "-e", f"usdt:{program}:bad:{name} {{ @ = count(); @n++; if (@n > 50) {{ exit(); }} }}",
                               "-p", target.pid)
                if name == "no_nop":
                    check_status(result, 0)  # an instruction begins there: any of them can be probed
                    check("hits-happened", (scalar(result.out, "@") or 0) > 50, result.report())
                else:
                    check_status(result, 1)
                    check_says(result, r"0x[0-9a-f]+.*inside")
                check("target-survives", alive(target.pid), target.report())


@case
def what_cannot_be_read_is_named():
    program = Work.program()
    for script, pattern in ((f"usdt:{program}:demo:real {{ @ = arg0; }}", r"arg0 of usdt:demo:real cannot be read.*floating"),
                            (f"usdt:{program}:demo:real {{ @ = arg2; }}", r"has 2 arguments: there is no arg2"),
                            (f"usdt:{program}:demo:gatde {{ @ = count(); }}", r"(?s)gatde.*did you mean.*demo:gated"),
                            (f"usdt:{program}:demo:gated {{ print(func); }}", "func is only there in uprobe"),
                            ("usdt:/etc/passwd:x { exit(); }", "/etc/passwd")):
        result = spile("-e", script)
        check_status(result, 1)
        check_says(result, pattern)


@case
def the_list_shows_names_places_and_formats():
    program = Work.program()
    names = spile("-l", f"usdt:{program}:*").out.splitlines()
    check("listed", names == [f"usdt:{program}:demo:{name}" for name in ("combined", "formats", "gated", "more", "real", "twice")], str(names))
    fields = spile("-lv", f"usdt:{program}:demo:more").out
    check("formats", "arg0 8@global(%rip), arg1 -2@6+record(%rip)" in fields, fields)
    check("semaphore", re.search("semaphore at 0x[0-9a-f]+", spile("-lv", f"usdt:{program}:gated").out), "")
    with Waiting("wait") as target:
        for pattern in ("usdt:*", f"usdt:{program}:*"):
            listed = spile("-l", pattern, "-p", target.pid)
            check("of-a-process", listed.out.splitlines() == names, listed.report())
        result = spile("-q", "-e", "usdt:gated { @ = count(); } interval:ms:50 { exit(); }", "-p", target.pid)
        check_status(result, 0)


@case
def python_says_which_functions_it_calls():
    need_tool("/usr/bin/python3")
    if "python:function__entry" not in spile("-l", "usdt:/usr/bin/python3:*").out:
        raise Skip("this python3 has no static tracepoints")
    script = os.path.join(Work.directory, "calls.py")
    with open(script, "w", encoding="utf-8") as file:
        file.write("def callee(n): return n\nfor i in range(7): list(map(callee, range(30)))\n")
    for engine in engines():
        result = traced(engine, "usdt:/usr/bin/python3:python:line { @lines = count(); } "
                        "usdt:/usr/bin/python3:python:function__entry { @[str(arg1)] = count(); }",
                        f"/usr/bin/python3 -S {script}")
        # Version 3.11 looks at its other tracepoints only while that of lines is on.
        check("exact-count", keyed(result.out, "@").get("callee") == 210, result.report())
        check("hits-happened", scalar(result.out, "@lines") > 200, result.report())


@case
def the_cplusplus_library_says_what_it_throws():
    need_tool("g++")
    path = os.path.join(Work.directory, "thrower")
    with open(path + ".cc", "w", encoding="utf-8") as file:
        file.write(THROWER)
    check_status(run(["g++", "-O2", path + ".cc", "-o", path], seconds=60), 0)
    library = "libstdc++.so.6"
    if "libstdcxx:throw" not in spile("-l", f"usdt:{library}:*").out:
        raise Skip("this libstdc++ has no static tracepoints")
    for engine in engines():
        result = traced(engine, f"usdt:{library}:libstdcxx:throw, usdt:{library}:libstdcxx:catch {{ @[probe] = count(); "
                        "@null = sum(arg0 == 0); }", path)
        counts = sorted(keyed(result.out, "@").values())
        check("exact-count", counts == [20, 20] and "caught=20" in result.out and scalar(result.out, "@null") == 0, result.report())


def cases():
    with temporary_directory() as directory:
        Work.directory = directory
        need_tool("gcc")
        yield from CASES


if __name__ == "__main__":
    main(cases(), seconds=150)
