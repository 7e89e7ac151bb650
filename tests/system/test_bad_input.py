#!/usr/bin/env python3
"""Each bad input gets its message or its count and its exit status; and the command line does what --help says."""
import json
import os
import random
import re
import signal
import struct
import subprocess
import time

from harness import RUN_SECONDS, SPILE, Picture, Process, Skip, Target, check, need_root, need_tool, target_path, wait_for_work
from tracing import (NOBODY, check_as_before_soon, check_code_as_before, check_prints, check_says, check_status,
                     compile_program, has_our_mappings, keyed,
                     main, public_copy, run, scalar, spile, temporary_directory, traced_by, wait_until)


CASES = []


def case(function):
    CASES.append(function)
    return function


class Busy(Target):
    """A target at work that checks its own results, to try bad things on."""

    def __init__(self, **options):
        super().__init__(target_path("case_46_counter"), wait=True, loop=600, **options)
        self.probe = f"uprobe:{target_path('case_46_counter')}:probe_me"
        self.before = Picture(self.pid)
        self.send_line()

    def check_intact(self):
        check("target-survives", self.alive(), self.report())
        wait_until(lambda: traced_by(self.pid) == 0, "the end of the ptrace link")
        check_as_before_soon(self.before, self.pid)


def check_caret(result, line, pattern):
    """file:line:columns: ERROR: ..., then the line of the script, then the place under it."""
    check_status(result, 1)
    place = rf"^\S+:{line}:\d+-\d+: ERROR: .*{pattern}.*\n.+\n *~+$"
    check("diagnostic", re.search(place, result.err, re.M), result.report())
    check("nothing-attached", "Attached" not in result.err, result.report())


# --- wrong scripts --------------------------------------------------------------------------------------------


@case
def a_syntax_error_shows_its_place():
    check_caret(spile("-e", "BEGIN {\n  @a = ;\n}"), 2, "expected an expression")


@case
def several_errors_are_told_in_one_run():
    result = spile("-e", "BEGIN { @a = ; @b = = 3; }")
    check_status(result, 1)
    check("diagnostic", result.err.count("ERROR") == 2, result.report())


@case
def a_type_error_shows_its_place():
    check_caret(spile("-e", 'BEGIN { $x = "a"; $x = 3; }'), 1, r"\$x")


@case
def an_unknown_script_function_is_named():
    check_caret(spile("-e", "BEGIN { $x = nosuch(3); }"), 1, "nosuch")


@case
def junk_is_refused_in_words():
    source = random.Random(1)
    for _ in range(20):
        junk = "".join(chr(source.randrange(1, 127)) for _ in range(source.randrange(1, 200)))
        result = spile("-e", "BEGIN {" + junk)
        check("no-crash", result.status in (1, 2), result.report())
        check_says(result, r"\S")
    check_status(spile("-e", "{" * 50000), 1)
    check_status(spile("-e", "BEGIN { @ = " + "(" * 50000), 1)


@case
def what_is_not_built_says_so():
    for script, name in (("BEGIN { debugf(\"x\"); }", "debugf"),
                         ("uprobe:libc:fopen { print(ustack(build_id)); }", "build_id"),
                         ("watchpoint:main+arg1:8:w { @ = count(); }", "watchpoint")):
        result = spile("-e", script)
        check_caret(result, 1, f"{name}.* is not built yet")


@case
def an_unknown_function_offers_the_nearest_names():
    with Busy() as target:
        result = spile("-e", "uprobe:libc:fopne { @ = count(); }", "-p", target.pid)
        check_caret(result, 1, "fopne")
        check_says(result, r"(?i)did you mean.*\bfopen\b")
        result = spile("-e", f"{target.probe}x {{ @ = count(); }}", "-p", target.pid)
        check_says(result, r"(?i)did you mean.*\bprobe_me\b")
        target.check_intact()


@case
def missing_files_probes_and_glob_matches_are_named():
    for script, pattern in (("uprobe:/nonexistent:foo { @ = count(); }", "/nonexistent"),
                            ("uprobe:/etc/passwd:foo { @ = count(); }", "/etc/passwd"),
                            ("tracepoint:nosuch:thing { @ = count(); }", "nosuch"),
                            ("nosuchprobe:x { @ = count(); }", "nosuchprobe"),
                            ("uprobe:libc:zzz_nothing_* { @ = count(); }", "zzz_nothing_")):
        result = spile("-e", script)
        check_status(result, 1)
        check_says(result, re.escape(pattern))


@case
def an_empty_command_is_refused():
    for command in ("", " ", "\t\n"):
        result = spile("-e", "BEGIN { exit(); }", "-c", command)
        check_status(result, 2)
        check_says(result, "the command is empty")
    result = spile("stat", "-x,", "-e", "page-faults", "--", "true")
    check_status(result, 2)
    check_says(result, "-x: .*not built yet")


# --- endless loops --------------------------------------------------------------------------------------------


@case
def an_endless_loop_ends():
    result = spile("-e", "BEGIN { while (1) { @x++; } }")
    check_status(result, 1)
    check_says(result, r"stdin:1:15-18: ERROR: this loop never ends")
    result = spile("-e", "BEGIN { while (@x >= 0) { @x++; } }")
    check_status(result, 0)
    check("exact-count", "@x: 65536" in result.out, result.report())
    check_says(result, r"1 loops ended before their bound")


@case
def endless_loops_in_each_other_end():
    script = "BEGIN { while (@x >= 0) { while (@x >= 0) { while (@x >= 0) { @x++; } } } }"
    for probe in ("BEGIN", "interval:ms:10"):
        result = spile("--engine", "user", "-e", script.replace("BEGIN", probe))
        check_status(result, 1)
        check_says(result, probe + r" was given up after \d+ steps")
    need_root()
    result = spile("--engine", "kernel", "-e", script)
    check_status(result, 0)
    check("bounded", 500000 < scalar(result.out, "@x") <= 1 << 20, result.report())
    check_says(result, r"loops ended before their bound")


@case
def an_endless_loop_at_a_hit_does_not_hold_the_target():
    with Busy() as target:
        result = spile("-e", f"{target.probe} {{ while (@x >= 0) {{ @x++; }} }} interval:ms:20 /@x > 100000/ {{ exit(); }}", "-p",
                       target.pid)
        check("refused-or-bounded", result.status in (0, 1), result.report())
        check_says(result, r"budget|loop|bound|missed")
        target.check_intact()


# --- wrong targets --------------------------------------------------------------------------------------------


@case
def an_unknown_pid_is_named():
    result = spile("-e", "uprobe:libc:fopen { @ = count(); }", "-p", "4194000")
    check_status(result, 1)
    check_says(result, "4194000")
    check_says(spile("-e", "uprobe:main { @ = count(); }", "-p", "4194000"), "there is no process 4194000 with a program")
    for wrong in ("0", "-1", "x", "12x", "1.5", "99999999999999"):
        result = spile("-e", "uprobe:libc:fopen { @ = count(); }", "-p", wrong)
        check_status(result, 2)
        check_says(result, f"'{wrong}' is not the number of a process")


@case
def another_users_process_is_refused():
    need_root()
    need_tool("setpriv")
    with Busy() as target, temporary_directory() as directory:
        result = run([*NOBODY, public_copy(directory, SPILE), "-e", "uprobe:libc:read { @ = count(); }", "-p",
                      target.pid])
        check_status(result, 1)
        check_says(result, r"user 0.*65534|CAP_SYS_PTRACE")
        target.check_intact()


@case
def a_process_that_forbids_ptrace_is_refused():
    """Not dumpable, of the same user: only the capability would do."""
    need_root()
    need_tool("setpriv")
    with temporary_directory() as directory:
        program = compile_program(directory, "hidden", '''#include <stdio.h>
#include <sys/prctl.h>
#include <unistd.h>
int main(void) { prctl(PR_SET_DUMPABLE, 0); puts("ready"); fflush(stdout); return (int)read(0, &(char){0}, 1); }
''')
        with Process([*NOBODY, program]) as target:
            target.wait_for_line("ready")
            result = run([*NOBODY, public_copy(directory, SPILE), "-e", "uprobe:libc:read { @ = count(); }", "-p",
                          target.pid])
            check_status(result, 1)
            check_says(result, r"CAP_SYS_PTRACE|cannot be traced|dumpable")
            check("target-survives", target.alive(), target.report())


@case
def a_process_that_is_traced_already_is_refused():
    need_tool("strace")
    with Busy() as target:
        with Process(["strace", "-qq", "-p", target.pid]):
            wait_until(lambda: traced_by(target.pid) != 0, "strace's attach")
            result = spile("-e", f"{target.probe} {{ @ = count(); }}", "-p", target.pid)
            check_status(result, 1)
            check_says(result, str(traced_by(target.pid)))
        target.check_intact()


def elf32():
    """i386: pause() for ever; header, one program header, code."""
    code = bytes.fromhex("b81d000000cd80ebf7")  # mov eax, 29; int 0x80; jmp back
    base, offset = 0x8048000, 84
    header = b"\x7fELF\x01\x01\x01" + bytes(9) + struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, base + offset, 52, 0, 0, 52, 32,
                                                             1, 0, 0, 0)
    segment = struct.pack("<IIIIIIII", 1, 0, base, base, offset + len(code), offset + len(code), 5, 4096)
    return header + segment + code


@case
def a_32_bit_process_is_refused():
    with temporary_directory() as directory:
        program = os.path.join(directory, "small")
        with open(program, "wb") as file:
            file.write(elf32())
        os.chmod(program, 0o755)
        # Its symbols are asked of it before it is: a probe by a name that another file has.
        result = spile("-e", "uprobe:libc:fopen { @ = count(); }", "-c", program)
        check_status(result, 1)
        check_says(result, r"32-bit|i386|x86-64|not loaded|Exec format error")
        try:
            target = Process([program])
        except OSError as error:
            raise Skip(f"this kernel does not run 32-bit programs: {error}") from None
        with target:
            time.sleep(0.1)
            if not target.alive():
                raise Skip("this kernel does not run 32-bit programs")
            result = spile("-e", "uprobe:libc:fopen { @ = count(); }", "-p", target.pid)
            check_status(result, 1)
            check_says(result, r"32-bit|i386")
            check("target-survives", target.alive(), target.report())


@case
def a_command_that_cannot_start_is_named():
    for command in ("/nonexistent/program", "no-such-program-anywhere", "/etc/passwd", '"open quote'):
        result = spile("-e", "uprobe:libc:fopen { @ = count(); }", "-c", command)
        check("exit-status", result.status in (1, 2), result.report())
        check_says(result, r"\S")


# --- full, unreadable, overwritten ----------------------------------------------------------------------------


@case
def a_full_map_is_counted():
    with Busy() as target:
        # The address of a local differs little, nsecs always.
        result = spile("-e",
                       f"{target.probe} {{ @[nsecs, arg0] = count(); @calls = count(); }} interval:ms:20 /@calls > 50000/ {{ exit(); }}", "-p", target.pid)
        check_status(result, 0)
        found = re.search(r"(\d+) updates of full maps", result.err)
        check("loss-counted", found and int(found.group(1)) > 0, result.err)
        kept, calls = sum(keyed(result.out, "@").values()), scalar(result.out, "@calls")
        check("exact-count", kept + int(found.group(1)) == calls,
              f"{kept} kept and {found.group(1)} refused of {calls}")
        target.check_intact()


@case
def a_full_ring_is_counted():
    with Busy() as target:
        tracer = Process([SPILE, "-e", f'{target.probe} {{ printf("%d\\n", arg0); @calls = count(); }}', "-p",
                          target.pid])
        with tracer:
            wait_until(lambda: len(tracer.out) > 100, "the first records")
            os.kill(tracer.pid, signal.SIGSTOP)  # a reader that is held up
            wait_for_work(target.pid, 0.3)
            os.kill(tracer.pid, signal.SIGCONT)
            tracer.send(signal.SIGINT)
            status = tracer.finish(60)
            check("clean-stop", status == 0, tracer.report())
            text = "\n".join(tracer.err)
            found = re.search(r"(\d+) records lost", text)
            check("loss-counted", found and int(found.group(1)) > 0, tracer.report())
            lines = sum(line.isdigit() for line in tracer.out)
            calls = scalar("\n".join(tracer.out), "@calls")
            check("exact-count", lines + int(found.group(1)) == calls,
                  f"{lines} printed and {found.group(1)} lost of {calls}")
        target.check_intact()


@case
def an_unreadable_pointer_is_an_empty_string():
    with Busy() as target:
        script = (f"{target.probe} {{ @[str(1)] = count(); @[str(0xffffffffff600000)] = count(); @n[str(arg1)] = count(); @seen = 1; }} "
                  "interval:ms:20 /@seen/ { exit(); }")
        result = spile("-e", script, "-p", target.pid)
        check_status(result, 0)
        check("hits-happened", keyed(result.out, "@").get("", 0) > 0, result.report())
        check("readable-is-read", keyed(result.out, "@n").get("name", 0) > 0, result.report())
        found = re.search(r"(\d+) failed reads", result.err)
        check("loss-counted", found and int(found.group(1)) == keyed(result.out, "@").get(""), result.report())
        target.check_intact()


SCRIBBLER = r"""
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
__attribute__((noinline)) long probe_me(long n, const char *text) { __asm__ volatile("" : : "r"(text) : "memory"); return n * 3; }
static uint64_t state = 88172645463325252ull;
static uint64_t next(void) { state ^= state << 13; state ^= state >> 7; state ^= state << 17; return state; }
static volatile unsigned long begin, end;
static sigjmp_buf gone;
// What is unmapped while we write to it is no fault of the tracer's; any other fault is.
static void on_fault(int number, siginfo_t *info, void *context) {
  unsigned long at = (unsigned long)info->si_addr;
  (void)context;
  if (at >= begin && at < end) siglongjmp(gone, 1);
  signal(number, SIG_DFL);
}
// Overwrites all of the data that a tracer shares with us, or pieces of it, while it is read.
static int scribble(void) {
  FILE *maps = fopen("/proc/self/maps", "r");
  char line[512];
  volatile int found = 0;
  while (maps && fgets(line, sizeof line, maps)) {
    unsigned long from, to;
    char rights[8];
    if (!strstr(line, "memfd:spile") || sscanf(line, "%lx-%lx %7s", &from, &to, rights) != 3 || rights[1] != 'w') continue;
    found = 1;
    begin = from;
    end = to;
    if (sigsetjmp(gone, 1)) break;
    volatile uint64_t *words = (uint64_t *)begin;
    size_t count = (end - begin) / 8;
    int whole = next() % 4 == 0;
    for (size_t i = 0; i < count; i++) {
      if (whole) words[i] = next() % 3 ? next() : next() % 1024;
      else if (next() % 64 == 0) words[i] = next();
    }
  }
  begin = end = 0;
  if (maps) fclose(maps);
  return found;
}
int main(int argc, char **argv) {
  long found = 0, limit = argc > 1 ? atol(argv[1]) : 2000000000;
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
  sigaction(SIGSEGV, &action, NULL);
  sigaction(SIGBUS, &action, NULL);
  state ^= (uint64_t)getpid() * 2654435761u;
  puts("ready"); fflush(stdout);
  for (long i = 0; i < limit; i++) {
    for (long n = 0; n < 200; n++) if (probe_me(n, "text") != n * 3) { puts("EXIT-FAILURE: a wrong result"); return 1; }
    if (found < 300 || i % 64 == 0) found += scribble();
    if (i % 16 == 0) usleep(500);
  }
  printf("scribbled=%ld\nEXIT-SUCCESS\n", found);
}
"""


def scribble_script(program, rest=""):
    return (f'uprobe:{program}:probe_me {{ @c = count(); @[str(arg1), arg0 % 5] = count(); @h = hist(arg0); @v[arg0] = arg0; '
            f'printf("%d %s\\n", arg0, str(arg1)); }} interval:ms:50 {{ print(@); }} {rest}')


@case
def a_target_that_scribbles_over_shared_memory_harms_only_itself():
    with temporary_directory() as directory:
        program = compile_program(directory, "scribbler", SCRIBBLER)
        reported = 0
        for _ in range(4):
            with Process([program]) as target:
                target.wait_for_line("ready")
                before = Picture(target.pid)
                with Process([SPILE, "-e", scribble_script(program), "-p", target.pid]) as tracer:
                    wait_until(lambda: "Attached" in "".join(tracer.err) or not tracer.alive(), "the attach")
                    wait_for_work(target.pid, 0.5)
                    tracer.send(signal.SIGINT)
                    status = tracer.finish()
                    check("no-crash", status in (0, 1), tracer.report())
                    reported += bool(re.search(r"overwritten|corrupt|given up|does not hold together",
                                               "\n".join(tracer.err)))
                # The journal was in what it overwrote: its own spile knows its sites all the same.
                check("target-survives", target.alive(), target.report())
                check_code_as_before(before, Picture(target.pid))
        check("corruption-reported", reported, "not one of four runs said that its shared memory was overwritten")


@case
def exit_works_although_the_ring_was_overwritten():
    with temporary_directory() as directory:
        program = compile_program(directory, "scribbler", SCRIBBLER)
        with Process([program]) as target:
            target.wait_for_line("ready")
            result = spile("-e", scribble_script(program, "interval:ms:500 { exit(); }"), "-p", target.pid)
            check("no-crash", result.status in (0, 1), result.report())
            check("target-survives", target.alive(), target.report())


@case
def detach_does_not_believe_an_overwritten_journal():
    """The tracer is gone, the journal is junk: `spile detach` may refuse, it must not harm."""
    with temporary_directory() as directory:
        program = compile_program(directory, "scribbler", SCRIBBLER)
        for _ in range(4):
            with Process([program]) as target:
                target.wait_for_line("ready")
                with Process([SPILE, "-e", f"uprobe:{program}:probe_me {{ @ = count(); }}", "-p",
                              target.pid]) as tracer:
                    wait_until(lambda: has_our_mappings(target.pid) or not tracer.alive(), "the attach")
                    wait_until(lambda: traced_by(target.pid) == 0, "the end of the ptrace link")
                    time.sleep(0.05)
                    tracer.send(signal.SIGKILL)
                    tracer.finish()
                time.sleep(0.05)
                result = spile("detach", "-p", target.pid)
                check("refused-or-done", result.status in (0, 1), result.report())
                if result.status == 1:
                    check_says(result, r"\S")
                time.sleep(0.05)
                check("target-survives", target.alive(), f"{target.report()}\n{result.report()}")


# --- the ends of a run ----------------------------------------------------------------------------------------


@case
def a_closed_pipe_ends_the_trace_and_detaches():
    with Busy() as target:
        tracer = subprocess.Popen([SPILE, "-q", "-e", f'{target.probe} {{ printf("%d\\n", arg0); }}', "-p",
                                   str(target.pid)],
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        head = subprocess.run(["head", "-n", "1"], stdin=tracer.stdout, capture_output=True, text=True,
                              timeout=RUN_SECONDS, check=False)
        tracer.stdout.close()
        try:
            _, errors = tracer.communicate(timeout=RUN_SECONDS)
        finally:
            tracer.kill()
        check("prints", head.stdout.strip().isdigit(), head.stdout)
        check("clean-stop", tracer.returncode in (0, -signal.SIGPIPE, 141), f"status {tracer.returncode}\n{errors}")
        target.check_intact()


@case
def ctrl_c_at_any_moment_detaches():
    source = random.Random(os.getpid())
    with Busy() as target:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM) * 10:
            delay = source.uniform(0, 0.3) if number == signal.SIGINT else source.uniform(0, 0.1)
            with Process([SPILE, "-e", f"{target.probe} {{ @ = count(); }} BEGIN {{ @x = 1; }}", "-p",
                          target.pid]) as tracer:
                time.sleep(delay)
                tracer.send(number)
                status = tracer.finish()
                # Before it has set up its handlers it ends by the signal itself, and has touched nothing.
                check("clean-stop", status == 0 or (status == -number and not tracer.err),
                      f"after {delay * 1000:.0f} ms\n{tracer.report()}")
            check("target-survives", target.alive(), f"after {delay * 1000:.0f} ms\n{target.report()}")
            check("mappings-unchanged", not has_our_mappings(target.pid),
                  f"spile's mappings are left after {delay * 1000:.0f} ms")
        target.check_intact()


@case
def ctrl_c_with_a_command_leaves_no_stopped_child():
    source = random.Random(os.getpid())
    path = target_path("case_46_counter")
    for _ in range(8):
        with Process([SPILE, "-e", f"uprobe:{path}:probe_me {{ @ = count(); }}", "-c", f"{path} --loop 0.4"]) as tracer:
            time.sleep(source.uniform(0, 0.3))
            tracer.send(signal.SIGINT)
            status = tracer.finish()
            check("clean-stop", status in (0, -signal.SIGINT, 130), tracer.report())


@case
def a_target_that_ends_ends_the_trace():
    path = target_path("case_46_counter")
    with Target(path, [], wait=True) as target:
        tracer = Process([SPILE, "-e", f"uprobe:{path}:probe_me {{ @ = count(); }}", "-p", target.pid])
        with tracer:
            wait_until(lambda: "Attached" in "".join(tracer.err), "the attach")
            target.send_line()
            target.finish_well()
            check("clean-stop", tracer.finish() == 0, tracer.report())
            check("exact-count", scalar("\n".join(tracer.out), "@") == target.calls(), tracer.report())


@case
def a_target_that_is_killed_ends_the_trace():
    with Busy() as target, Process([SPILE, "-e", f"{target.probe} {{ @ = count(); }}", "-p", target.pid]) as tracer:
        wait_until(lambda: "Attached" in "".join(tracer.err), "the attach")
        wait_for_work(target.pid)
        target.send(signal.SIGKILL)
        check("clean-stop", tracer.finish() == 0, tracer.report())
        check("hits-happened", scalar("\n".join(tracer.out), "@"), tracer.report())


@case
def statuses_are_passed_on():
    check_status(spile("-e", "BEGIN { exit(3); }"), 3)
    check_status(spile("-e", "BEGIN { exit(); }"), 0)
    script = "uprobe:libc:malloc { @ = count(); }"
    check_status(spile("-e", script, "-c", "sh -c 'exit 7'"), 7)
    check_status(spile("-e", script, "-c", "sh -c 'kill -TERM $$'"), 128 + signal.SIGTERM)
    check_status(spile("-e", script, "-c", "true"), 0)


@case
def a_command_that_calls_exec_is_waited_for():
    inner = "sh -c 'sleep 1; echo at the end; exit 7'"
    with temporary_directory() as directory:
        path = os.path.join(directory, "wrapper")
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"#!/bin/sh\nexec {inner}\n")
        os.chmod(path, 0o755)
        result = spile("-e", "uprobe:libc:* { @calls = count(); }", "-c", path)
    check_status(result, 7)
    check_prints(result, "at the end[^@]*@calls: [1-9]")
    check_says(result, r"process \d+ has started another program \(exec\)")


@case
def short_commands_end_cleanly_every_time():
    """The child may have ended before spile has looked at it again."""
    path = target_path("case_46_counter")
    for _ in range(15):
        result = spile("-e", f"uprobe:{path}:probe_me {{ @ = count(); }}", "-c", f"{path} --rounds 3")
        check_status(result, 0)
        check("exact-count", scalar(result.out, "@") == 300, result.report())


# --- the command line -----------------------------------------------------------------------------------------


@case
def options_do_what_help_says():
    help_ = spile("--help")
    check_status(help_, 0)
    for word in ("-e", "--pid", "--cmd", "--engine", "--list", "--format", "--output", "-B", "--quiet", "--verbose",
                 "detach", "sites", "dump"):
        check_prints(help_, re.escape(word))
    version = spile("--version")
    check_status(version, 0)
    check_prints(version, r"^spile \d+\.\d+")
    check_status(spile(), 2)
    check_status(spile("--nonsense"), 2)
    check_status(spile("-e", "BEGIN { exit(); }", "-f", "xml"), 2)
    check_status(spile("-e", "BEGIN { exit(); }", "--engine", "steam"), 2)
    check_status(spile("/nonexistent/script.bt"), 1)


@case
def output_options():
    script = 'BEGIN { printf("hello\\n"); @x = 3; exit(); }'
    with temporary_directory() as directory:
        path = os.path.join(directory, "out")
        result = spile("-o", path, "-e", script)
        check_status(result, 0)
        with open(path, encoding="utf-8") as file:
            text = file.read()
        check("output-file", "hello\n" in text and "@x: 3\n" in text and "hello" not in result.out,
              text + result.report())
        refused = spile("-o", directory + "/no/such/file", "-e", script)
        check_status(refused, 1)
        check_says(refused, "no/such/file")
    quiet = spile("-q", "-e", script)
    check("quiet", quiet.err == "" and "hello" in quiet.out, quiet.report())
    check_says(spile("-e", script), "Attached 1 probe")
    for buffering in ("line", "full", "none"):
        check_prints(spile("-B", buffering, "-e", script), r"hello\n[\s\S]*@x: 3")
    records = [json.loads(line) for line in spile("-f", "json", "-e", script).out.splitlines() if line]
    kinds = {record["type"] for record in records}
    check("json", {"attached_probes", "printf", "map"} <= kinds, str(records))
    check("json", {"type": "map", "data": {"@x": 3}} in records, str(records))
    full = spile("-o", "/dev/full", "-e", script)
    check("full-disk", full.status == 1 and re.search("No space left", full.err), full.report())
    many = spile("-o", "/dev/full", "-B", "line", "-e", r'BEGIN { for ($i : 0..100) { printf("line\n"); } }')
    check("told-once", many.status == 1 and len(re.findall("No space left", many.err)) == 1, many.report())


@case
def lists():
    result = spile("-l", "uprobe:libc:fope*")
    check_status(result, 0)
    check_prints(result, r"(^|\n)uprobe:\S*libc\S*:fopen\n")
    if os.path.exists("/sys/kernel/tracing/available_events") or os.path.exists("/sys/kernel/debug/tracing/available_events"):
        check_prints(spile("-l", "tracepoint:syscalls:sys_enter_opena*"), r"tracepoint:syscalls:sys_enter_openat\b")
        verbose = spile("-lv", "tracepoint:syscalls:sys_enter_openat")
        check_prints(verbose, r"const char \* ?filename")


@case
def positional_parameters():
    result = spile("-e", 'BEGIN { printf("%d %s %d %s|\\n", $1, str($2), $#, str($9)); exit(); }', "7", "seven")
    check_status(result, 0)
    check_prints(result, r"^7 seven 2 \|")


@case
def scripts_from_files():
    with temporary_directory() as directory:
        path = os.path.join(directory, "hello.bt")
        with open(path, "w", encoding="utf-8") as file:
            file.write(f"#!{os.path.realpath(SPILE)}\n// a comment\nBEGIN\n{{\n  printf(\"from a file %d\\n\", $1);\n  exit();\n}}\n")
        os.chmod(path, 0o755)
        check_prints(spile(path, "5"), "^from a file 5")
        check_prints(run([path, "6"]), "^from a file 6")
        with open(path, encoding="utf-8") as file:
            check_prints(run([SPILE, "-", "7"], stdin=file.read()), "^from a file 7")
        with open(path, "a", encoding="utf-8") as file:
            file.write("END { @ = ; }\n")
        wrong = spile(path, "5")
        check_caret(wrong, 8, "expected an expression")
        check_says(wrong, re.escape("hello.bt:8:"))
        open(os.path.join(directory, "empty"), "w", encoding="utf-8").close()
        check_status(spile(os.path.join(directory, "empty")), 1)


if __name__ == "__main__":
    main(CASES, 240)
