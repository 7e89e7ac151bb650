#!/usr/bin/env python3
"""Signals to a running spile: probes switched off and on, maps printed, an end that is never lost."""
import os
import re
import signal
import subprocess
import time

from harness import SPILE, Picture, Skip, Spile, Target, check, check_text_unchanged, target_path, wait_until_caught
from tracing import (check_prints, check_says, check_status, compile_program, has_our_mappings, main, run, scalar, spile,
                     temporary_directory, wait_until)

# Calls as often as each line of stdin says, checks every result, and answers "done".
WORKER = r"""
#include <stdio.h>
#include <stdlib.h>
__attribute__((noinline)) long probe_me(long n) { __asm__ volatile("" : "+r"(n)); return 3 * n + 1; }
__attribute__((noinline)) long once(long n) { __asm__ volatile("" : "+r"(n)); return n; }
int main(void) {
  char line[64];
  while (fgets(line, sizeof line, stdin)) {
    for (long i = 0, n = atol(line); i < n; i++)
      if (probe_me(i) != 3 * i + 1) return 1;
    if (once(7) != 7) return 1;
    puts("done");
    fflush(stdout);
  }
  puts("exit-success");
  return 0;
}
"""


class Worker:
    def __init__(self, directory):
        self.path = compile_program(directory, "worker", WORKER)
        self.process = subprocess.Popen([self.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def begin(self, calls):
        self.process.stdin.write(f"{calls}\n")
        self.process.stdin.flush()

    def end(self):
        check("results-unchanged", self.process.stdout.readline() == "done\n", "the target has found something else")

    def call(self, calls):
        self.begin(calls)
        self.end()


def said(trace, what):
    return sum(what in line for line in trace.err)


def switch(trace, word):
    before = said(trace, word)
    trace.send(signal.SIGUSR2)
    wait_until(lambda: said(trace, word) > before, f"spile says {word!r}")


def need_kernel_engine():
    if os.geteuid() != 0:
        raise Skip("needs root")


def probes_are_switched_by_sigusr2(engine=("--engine", "user"), rounds=20):
    """Off: nothing is counted. On: everything. The text of the program does not change by it."""
    with temporary_directory() as directory, Worker(directory) as worker:
        before = Picture(worker.pid)
        with Spile(f"uprobe:{worker.path}:probe_me {{ @ = count(); }} uretprobe:{worker.path}:probe_me {{ @r = count(); }} "
                   "interval:ms:1 { @i = count(); }", pid=worker.pid, extra=list(engine)) as trace:
            check("attached", trace.wait_attached(), trace.report())
            patched = Picture(worker.pid)
            for _ in range(rounds):
                worker.call(1000)
                switch(trace, "paused")
                worker.call(1000)
                check_text_unchanged(patched, Picture(worker.pid))
                switch(trace, "resumed")
            switch(trace, "paused")
            worker.call(500)
            trace.stop()
            maps = trace.maps()
            check("exact-count", (int(maps.get("@", 0)), int(maps.get("@r", 0))) == (1000 * rounds, 1000 * rounds), f"{maps}\n{trace.report()}")
            check("hits-happened", int(maps.get("@i", 0)) > 0, f"{maps}")
        worker.call(10)
        if "user" in engine:  # the kernel leaves pages of its own
            check_text_unchanged(before, Picture(worker.pid))


def probes_of_the_kernel_engine_are_switched_too():
    """Two links with a gate each, one program at both ends, programs with cookies in their code."""
    need_kernel_engine()
    for path in ("auto", "multi", "ioctl"):
        probes_are_switched_by_sigusr2(("--engine", "kernel", "--attach", path), 3)


def calls_keep_their_own_arguments_across_switches(engine="user"):
    """A call that returns while probes are off must not leave its arguments to the next that begins while they are off."""
    with temporary_directory() as directory:
        path = compile_program(directory, "blocking", r"""
#include <stdio.h>
__attribute__((noinline)) long outer(long tag) {
  char line[64];
  puts("inside");
  fflush(stdout);
  if (!fgets(line, sizeof line, stdin)) return -1;
  return tag;
}
int main(void) {
  for (long tag = 1; outer(tag) == tag; tag++) { puts("outside"); fflush(stdout); }
  return 0;
}
""", flags=("-O1",))
        target = subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def go_on():
            target.stdin.write("on\n")
            target.stdin.flush()
            return target.stdout.readline(), target.stdout.readline()

        try:
            target.stdout.readline()
            with Spile(f'uretprobe:{path}:outer {{ printf("%d\\n", arg0); }}', pid=target.pid,
                       extra=["--engine", engine]) as trace:
                check("attached", trace.wait_attached(), trace.report())
                go_on()  # call 1 began before the probes were there
                go_on()  # call 2 is seen whole; call 3 begins
                switch(trace, "paused")
                go_on()  # call 3 returns unseen, 4 begins unseen
                switch(trace, "resumed")
                go_on()  # call 4 returns
                go_on()  # call 5
                wait_until(lambda: len(trace.of_type("printf")) >= 3, "three returns are told")
                trace.stop()
                told = [int(text) for text in trace.of_type("printf")]
                check("same-output", told == [2, 4, 5], f"{told}\n{trace.report()}")
        finally:
            target.kill()
            target.wait()
            target.stdin.close()
            target.stdout.close()


def calls_keep_their_own_arguments_in_the_kernel_engine_too():
    need_kernel_engine()
    calls_keep_their_own_arguments_across_switches("kernel")


def paused_probes_wait_for_sigusr2(engine="user"):
    with temporary_directory() as directory, Worker(directory) as worker:
        with Spile(f"uprobe:{worker.path}:probe_me {{ @ = count(); }} interval:ms:1 {{ @i = count(); }} BEGIN {{ @b = count(); }}",
                   pid=worker.pid, extra=["--paused", "--engine", engine]) as trace:
            check("attached", trace.wait_attached(), trace.report())
            worker.call(1000)
            time.sleep(0.05)
            switch(trace, "resumed")
            worker.call(100)
            trace.stop()
            maps = trace.maps()
            check("exact-count", (int(maps.get("@", 0)), int(maps.get("@b", 0))) == (100, 1), f"{maps}\n{trace.report()}")


def paused_probes_of_the_kernel_engine_wait_too():
    need_kernel_engine()
    paused_probes_wait_for_sigusr2("kernel")


def maps_are_printed_on_sigusr1():
    with temporary_directory() as directory, Worker(directory) as worker:
        with Spile(f"uprobe:{worker.path}:probe_me {{ @ = count(); }}", pid=worker.pid) as trace:
            check("attached", trace.wait_attached(), trace.report())
            seen = []
            for _ in range(3):
                worker.call(1000)
                printed = len(trace.of_type("map"))
                trace.send(signal.SIGUSR1)
                wait_until(lambda: len(trace.of_type("map")) > printed, "the map is printed")  # pylint: disable=cell-var-from-loop
                seen.append(int(trace.maps()["@"]))
            check("exact-count", seen == [1000, 2000, 3000], f"{seen}")
            trace.stop()
            check("exact-count", int(trace.maps()["@"]) == 3000, trace.report())


def an_exit_is_not_lost_in_a_full_ring():
    """Records of a spile that sleeps fill the ring; then exit(3) is called once."""
    with temporary_directory() as directory, Worker(directory) as worker:
        with Spile(f'uprobe:{worker.path}:probe_me {{ printf("%d %s\\n", arg0, "a word"); }} uprobe:{worker.path}:once {{ exit(3); }}',
                   pid=worker.pid) as trace:
            check("attached", trace.wait_attached(), trace.report())
            trace.send(signal.SIGSTOP)
            worker.call(3_000_000)
            trace.send(signal.SIGCONT)
            status = trace.finish(30)
            check("exit-status", status == 3, f"{status}\n{trace.report()[-2000:]}")
            check("lost-records", trace.lost() > 0, "the ring was not full: the test shows nothing")
            check("hits-happened", len(trace.of_type("printf")) > 0, "no record at all")


def ctrl_c_ends_an_attach_that_waits():
    """A parent in vfork cannot be stopped; the attach tries again after a while."""
    with Target(target_path("case_54_vfork_parent"), [], wait=True) as target:
        target.send_line()
        with Spile("uprobe:libc:getppid { @ = count(); }", pid=target.pid) as trace:
            wait_until_caught(trace, signal.SIGINT)
            trace.send(signal.SIGINT)
            status = trace.finish(10)
            check("says-why", status == 1 and said(trace, "interrupted while waiting; nothing of the process is changed"),
                  trace.report())
        check("untouched", not has_our_mappings(target.pid), "something stayed")


def a_program_given_as_script_is_called_one():
    result = spile("/bin/ls")
    check_status(result, 1)
    check_says(result, r"^spile: /bin/ls is a program \(an ELF file\), not a script")
    check("one-line", result.err.count("\n") == 1, result.report())


def what_has_no_address_is_refused_without_one():
    result = spile("-e", "uprobe:/bin/true:0x1 { @ = count(); } uprobe:libc:exit { @e = count(); }", "-c", "/bin/true")
    check("says-why", "0x0:" not in result.err, result.report())


def names_of_templates():
    with temporary_directory() as directory:
        path = compile_program(directory, "templates", r"""
namespace ns { template <typename T> __attribute__((noinline)) T tf(T t) { __asm__ volatile(""); return t; } }
int main() { int sum = 0; for (int i = 0; i < 5; i++) sum += ns::tf<int>(i) + (int)ns::tf<long>(i); return sum != 20; }
""", flags=("-O1", "-x", "c++"), compiler="g++")
        result = spile("-q", "-e", f'uprobe:{path}:cpp:"ns::tf" {{ @ = count(); }}', "-c", path)
        check_status(result, 0)
        check_prints(result, "@: 10")
        check("exact-count", scalar(result.out, "@") == 10, result.report())


if __name__ == "__main__":
    main([probes_are_switched_by_sigusr2, probes_of_the_kernel_engine_are_switched_too,
          calls_keep_their_own_arguments_across_switches, calls_keep_their_own_arguments_in_the_kernel_engine_too,
          paused_probes_wait_for_sigusr2, paused_probes_of_the_kernel_engine_wait_too,
          maps_are_printed_on_sigusr1, an_exit_is_not_lost_in_a_full_ring, ctrl_c_ends_an_attach_that_waits,
          a_program_given_as_script_is_called_one, what_has_no_address_is_refused_without_one, names_of_templates], 120)
