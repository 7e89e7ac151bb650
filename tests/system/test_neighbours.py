#!/usr/bin/env python3
"""Whoever else has a hand in the target: debuggers beside us, a frozen group, huge pages, and the program that rewrites itself."""
import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import harness
from harness import (Picture, Process, Skip, Spile, Target, check, check_count, check_left_as_before,
                     check_refused_in_words, count_program, need_root, need_spile, need_tool, target_path)
from tracing import compile_program, temporary_directory, wait_until

COUNTER = "case_46_counter"


def counter(mode="slow", **options):
    return Target(target_path(COUNTER), ["--mode", mode], wait=True, hold=True, **options)


def gdb(pid, *commands, seconds=60):
    """One batch run of gdb on a running process; it detaches at its end."""
    words = [need_tool("gdb"), "-q", "-nx", "-batch", "-p", pid, "-ex", "set pagination off", "-ex", "set confirm off"]
    for command in commands:
        words += ["-ex", command]
    with Process(words) as run:
        status = run.finish(seconds * harness.SLOWNESS)
        check("gdb", status == 0, f"status {status}\n{run.report()}")
        return "\n".join(run.out)


def traced(target, program=None):
    return Spile(program or count_program([f"{target_path(COUNTER)}:probe_me"]), pid=target.pid)


def counted_all_and_left_nothing(target, spile, before):
    """The end of every case in which we stay attached while somebody else does something."""
    target.wait_for_line("done$", 40 * harness.SLOWNESS)
    spile.stop()
    check_left_as_before(before, Picture(target.pid), strict=False)
    target.finish_well()
    check_count("exact", int(spile.maps().get("@calls", 0)), target.calls(), spile)


# --- 46: debuggers ------------------------------------------------------------------------------------------------------


def case_46_gdb_holds_the_target():
    """gdb has it stopped: refused, naming gdb, and gdb goes on as before."""
    with counter() as target:
        with Process([need_tool("gdb"), "-q", "-nx", "-p", str(target.pid)]) as debugger:
            wait_until(lambda: tracer_of(target.pid) == debugger.pid, "gdb holds the target", 30)
            with traced(target) as spile:
                check("refusal-in-words", not spile.wait_attached(), f"attached beside gdb\n{spile.report()}")
                check_refused_in_words(spile, str(debugger.pid))
            debugger.process.stdin.write("detach\nquit\n")
            debugger.finish()
        target.send_line()
        target.wait_for_line("done$")
        target.finish_well()


def case_46_gdb_looks_while_attached():
    """gdb attaches to a traced process again and again, takes backtraces and reads code; every call is still counted."""
    with counter(loop=3 * harness.SLOWNESS) as target:
        before = Picture(target.pid)
        with traced(target) as spile:
            check("attached", spile.wait_attached(), spile.report())
            target.send_line()
            for _ in range(4):
                text = gdb(target.pid, "bt", "info registers", "x/8i probe_me", "info proc mappings")
                check("gdb-sees", "rip" in text and "main" in text, text)
            counted_all_and_left_nothing(target, spile, before)


def case_46_gdb_breakpoint_on_our_jump():
    """gdb's int3 replaces the first byte of our jump, is stepped over many times and taken away; then we detach."""
    with counter(loop=4 * harness.SLOWNESS) as target:
        before = Picture(target.pid)
        with traced(target) as spile:
            check("attached", spile.wait_attached(), spile.report())
            target.send_line()
            text = gdb(target.pid, "break *probe_me", *["continue"] * 20, "delete")
            check("gdb-stops", text.count("Breakpoint 1,") == 20, text)
            counted_all_and_left_nothing(target, spile, before)


def case_46_gdb_breakpoint_before_us():
    """gdb's int3 stands at the site while we plan: refused; behind gdb the same site is probed."""
    with counter(loop=4 * harness.SLOWNESS) as target:
        target.send_line()
        with Process([need_tool("gdb"), "-q", "-nx", "-p", str(target.pid)]) as debugger:
            debugger.process.stdin.write("break *probe_me\ncontinue\n")
            debugger.process.stdin.flush()
            debugger.wait_for_line(r".*Breakpoint 1,", 30)
            with traced(target) as spile:
                check("refused", not spile.wait_attached(), f"attached while gdb holds a breakpoint there\n{spile.report()}")
                check_refused_in_words(spile, str(debugger.pid))
            debugger.process.stdin.write("delete\ndetach\nquit\n")
            debugger.finish()
        with traced(target) as spile:
            check("attached", spile.wait_attached(), spile.report())
            target.wait_for_line("done$")
            spile.stop()
            check("hits-happened", int(spile.maps()["@calls"]) > 0, spile.report())
        target.finish_well()


def case_46_strace_while_attached():
    """strace comes and goes while we stay attached."""
    with counter(loop=3 * harness.SLOWNESS) as target:
        before = Picture(target.pid)
        with traced(target) as spile:
            check("attached", spile.wait_attached(), spile.report())
            target.send_line()
            for _ in range(5):
                with Process([need_tool("strace"), "-f", "-o", "/dev/null", "-p", str(target.pid)]) as other:
                    wait_until(lambda: tracer_of(target.pid) == other.pid, "strace holds the target", 20)
                    time.sleep(0.1)
                    other.send(signal.SIGINT)
                    other.finish()
            counted_all_and_left_nothing(target, spile, before)


def case_46_detach_while_gdb_holds_the_target():
    """We want to leave while gdb has the target stopped: nothing breaks, and what is left is taken out afterwards."""
    with counter(loop=3 * harness.SLOWNESS) as target:
        before = Picture(target.pid)
        with traced(target) as spile:
            check("attached", spile.wait_attached(), spile.report())
            target.send_line()
            with Process([need_tool("gdb"), "-q", "-nx", "-p", str(target.pid)]) as debugger:
                wait_until(lambda: tracer_of(target.pid) == debugger.pid, "gdb holds the target", 30)
                spile.send(signal.SIGINT)
                time.sleep(0.5)
                debugger.process.stdin.write("detach\nquit\n")
                debugger.finish()
            spile.finish(30 * harness.SLOWNESS)
        with Process([harness.SPILE, "detach", "-p", str(target.pid)]) as clean:
            clean.finish()
        target.wait_for_line("done$", 30 * harness.SLOWNESS)
        check_left_as_before(before, Picture(target.pid), strict=False)
        target.finish_well()


def case_17_gdb_steps_through_a_hit():
    """gdb steps one instruction at a time from the probed entry through the jump and all that is behind it."""
    with counter(loop=5 * harness.SLOWNESS) as target:
        before = Picture(target.pid)
        with traced(target) as spile:
            check("attached", spile.wait_attached(), spile.report())
            target.send_line()
            text = gdb(target.pid, "break *probe_me", "continue", "delete", *["stepi 40", "info registers rip"] * 6)
            check("gdb-steps", len(set(re.findall(r"^rip\s+(0x[0-9a-f]+)", text, re.M))) >= 3, text)
            counted_all_and_left_nothing(target, spile, before)


# --- 25: the program itself ---------------------------------------------------------------------------------------------


def case_25_rewritten_by_the_program():
    """It rewrites the probed function while we are there: detach leaves its bytes alone and says so."""
    path = target_path("case_25_own_code")
    with Target(path, ["--mode", "rewrite"], wait=True, hold=True) as target:
        with Spile(count_program([f"{path}:probe_me"]), pid=target.pid) as spile:
            check("attached", spile.wait_attached(), spile.report())
            target.send_line()
            target.wait_for_line("done$")
            spile.stop()
            check("says-why", re.search(r"0x[0-9a-f]+", "\n".join(spile.err)), f"nothing is said\n{spile.report()}")
            check_count("exact", int(spile.maps().get("@calls", 0)), 20000, spile)  # until it rewrote itself
        target.finish_well()  # calls the function once more


def case_68_jump_label_switched_all_the_time():
    """Probes come and go at a place that the program itself switches between a nop and a jump."""
    path = target_path("case_25_own_code")
    attached = 0
    with Target(path, ["--mode", "toggle"], wait=True, hold=True, loop=4 * harness.SLOWNESS) as target:
        before = Picture(target.pid)
        target.send_line()
        for cycle in range(25):
            with Spile(count_program([f"{path}:probe_me_label"]), pid=target.pid) as spile:
                if spile.wait_attached():
                    time.sleep(0.003 * (cycle % 5))
                    spile.stop()
                    attached += 1
                else:
                    check_refused_in_words(spile)  # it switched between plan and stop
            if "done" in target.out:
                break
        target.wait_for_line("done$", 20 * harness.SLOWNESS)
        check_left_as_before(before, Picture(target.pid), strict=False)
        target.finish_well()
        print(f"  attached {attached} times")
        check("attached", attached >= 1, spile.report())


# --- 55: a frozen group -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def freezer():
    """A control group of our own: (its directory, how to freeze, how to thaw)."""
    need_root()
    for root, file, words in (("/sys/fs/cgroup/freezer", "freezer.state", ("FROZEN", "THAWED")),
                              ("/sys/fs/cgroup/unified", "cgroup.freeze", ("1", "0")),
                              ("/sys/fs/cgroup", "cgroup.freeze", ("1", "0"))):
        group = f"{root}/spile-test-{os.getpid()}"
        with contextlib.suppress(OSError):
            os.mkdir(group)
            if not os.path.exists(f"{group}/{file}"):
                os.rmdir(group)
                continue
            try:
                yield group, lambda i: write(f"{group}/{file}", words[i])
            finally:
                write(f"{group}/{file}", words[1])
                wait_until(lambda: not open(f"{group}/cgroup.procs", encoding="utf-8").read().strip(), "the group is empty", 20)
                os.rmdir(group)
            return
    raise Skip("no control group that can freeze")


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def case_55_frozen_group():
    """Frozen threads cannot be stopped: the attach gives up in words and changes nothing; thawed, it works."""
    with freezer() as (group, freeze), counter(mode="busy") as target:
        write(f"{group}/cgroup.procs", str(target.pid))
        before = Picture(target.pid)
        freeze(0)
        time.sleep(0.2)
        with traced(target) as spile:
            attached = spile.wait_attached(60 * harness.SLOWNESS)
            if not attached:
                check_refused_in_words(spile, r"\w+ \w+")
            freeze(1)
            if attached:
                target.send_line()
                return counted_all_and_left_nothing(target, spile, before)
        check_left_as_before(before, Picture(target.pid), strict=False)
        with traced(target) as spile:
            check("attached", spile.wait_attached(), f"after the thaw\n{spile.report()}")
            target.send_line()
            counted_all_and_left_nothing(target, spile, before)


def case_55_frozen_while_attached():
    """The group freezes while we are attached and we leave: in time, in words; what stays is taken out after the thaw."""
    with freezer() as (group, freeze), counter(loop=2 * harness.SLOWNESS) as target:
        write(f"{group}/cgroup.procs", str(target.pid))
        before = Picture(target.pid)
        with traced(target) as spile:
            check("attached", spile.wait_attached(), spile.report())
            target.send_line()
            time.sleep(0.2)
            freeze(0)
            time.sleep(0.2)
            spile.send(signal.SIGINT)
            time.sleep(1)
            freeze(1)
            spile.finish(60 * harness.SLOWNESS)
        with Process([harness.SPILE, "detach", "-p", str(target.pid)]) as clean:
            clean.finish()
        target.wait_for_line("done$", 30 * harness.SLOWNESS)
        check_left_as_before(before, Picture(target.pid), strict=False)
        target.finish_well()


# --- 14: huge pages -----------------------------------------------------------------------------------------------------

HUGE = r"""
#include "target.h"
__asm__(".text\n.p2align 12\n.skip 6 << 20, 0x90\n");
PROBED uint64_t probe_me(uint64_t n) { return n * 13 + 6; }
int main(int argc, char **argv) {
  target_begin(argc, argv, 100000, 0);
  target_ready();
  for (long i = 0; target_more(i); i++) {
    target_count(1);
    TARGET_CHECK(probe_me((uint64_t)i) == (uint64_t)i * 13 + 6);
  }
  return target_end();
}
"""


def huge_text_kib(pid):
    with open(f"/proc/{pid}/smaps", encoding="utf-8") as maps:
        return sum(int(kib) for kib in re.findall(r"^(?:ShmemPmdMapped|FilePmdMapped):\s+(\d+)", maps.read(), re.M))


def case_14_huge_page_text():
    """Text that the kernel maps with one huge page: it is split for the patched page only, and every call is counted."""
    need_root()
    with temporary_directory() as directory:
        mount = os.path.join(directory, "huge")
        os.mkdir(mount)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "huge=always", "none", mount], check=False, capture_output=True).returncode:
            raise Skip("cannot mount a tmpfs with huge pages")
        try:
            sources = os.path.join(harness.ROOT, "tests/targets")
            path = compile_program(mount, "huge", HUGE, ["-O2", "-g", "-I", sources, os.path.join(sources, "target.c"),
                                                         "-Wl,-z,max-page-size=0x200000", "-Wl,-z,common-page-size=0x200000"])
            with Target(path, wait=True, hold=True) as target:
                huge = huge_text_kib(target.pid)
                if huge == 0:
                    raise Skip("this kernel maps no text with huge pages")
                before = Picture(target.pid)
                with Spile(count_program([f"{path}:probe_me"]), pid=target.pid) as spile:
                    check("attached", spile.wait_attached(), spile.report())
                    target.send_line()
                    counted_all_and_left_nothing(target, spile, before)
                print(f"  {huge} KiB of text were in huge pages before")
        finally:
            subprocess.run(["umount", mount], check=False)


def tracer_of(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        return int(re.search(r"^TracerPid:\s+(\d+)", status.read(), re.M).group(1))


CASES = {name: function for name, function in globals().items() if name.startswith("case_") and callable(function)}


def run(name):
    need_spile()
    CASES[name]()


if __name__ == "__main__":
    if sys.argv[1] == "--list":
        print("\n".join(CASES))
    else:
        harness.main(lambda: run(sys.argv[1]))
