#!/usr/bin/env python3
"""The tracer is killed before each of its ptrace and memory operations in turn, from the first to the last of a trace.

Whatever the step: the target works on and ends with the right result, and `spile detach` leaves its code bytes, its
mappings and descriptors as they were. One target lives through a batch of kills: what one leaves must not spoil the next.
"""
import os

from harness import SPILE, Failure, Picture, Target, check, target_path
from instructions import Heads
from tracing import (KILLED, SOAK, alive, check_process_as_before, check_status, has_our_mappings, main, run, spile,
                     traced_by,
                     wait_until)

DENSE_STEPS = 140  # every one of these, then so many of the rest
SPARSE_STEPS = 20
BATCH = 12         # kills that one target lives through
LOOP_SECONDS = 1.0


class Victim:
    """A target at work that lives through a batch of kills, is looked at after each, and judges itself in the end.

    It works for LOOP_SECONDS and then waits in read(): the kills meet it busy and blocked."""

    def __init__(self, name, *args):
        self.path = target_path(name)
        self.args = args
        self.target = None
        self.before = None
        self.kills = 0

    def __enter__(self):
        return self

    def __exit__(self, *details):
        if self.target is not None:
            self.target.__exit__(*details)

    def ready(self):
        """Its pid; a new one now and then."""
        if self.kills >= BATCH:
            self.retire()
        if self.target is None:
            self.target = Target(self.path, self.args, wait=True, hold=True, loop=LOOP_SECONDS)
            self.before = Picture(self.target.pid)
            self.target.send_line()
        self.kills += 1
        return self.target.pid

    def check_left_alone(self, step):
        pid = self.target.pid
        self.check_alive(f"killing spile before step {step}")
        wait_until(lambda: traced_by(pid) == 0, f"step {step}: the end of the ptrace link")
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            check("target-runs", stat.read().rsplit(")", 1)[1].split()[0] not in "tT",
                  f"the target is left stopped by step {step}")
        check("mappings-unchanged", not has_our_mappings(pid),
              f"spile's mappings are still there after `spile detach`, step {step}")
        try:
            check_process_as_before(self.before, Picture(pid))
        except Failure as failure:
            raise Failure(f"step {step}: {failure}") from None

    def check_alive(self, what):
        check("target-survives", alive(self.target.pid), f"{what} ended the target\n{self.target.report()}")

    def retire(self):
        """Lets it end: it has checked every result and every count."""
        if self.target is None:
            return
        self.target.wait_for_line("(done|EXIT-)")
        self.target.finish_well()
        self.target.__exit__(None, None, None)
        self.target = None
        self.kills = 0


def trace(pid, probes, step, extra=()):
    program = ", ".join(f"uprobe:{probe}" for probe in probes) + " { @ = count(); } interval:ms:1 { exit(); }"
    return run([SPILE, "-q", *extra, "-e", program, "-p", pid], env={"SPILE_KILL_AT_STEP": str(step)})


def kill_once(victim, probes, step, extra=()):
    """True where the step was reached."""
    pid = victim.ready()
    result = trace(pid, probes, step, extra)
    check("killed-or-done", result.status in (0, KILLED), result.report())
    victim.check_alive(f"killing spile before step {step}")
    cleaned = spile("detach", "-p", pid)
    victim.check_alive(f"`spile detach` after step {step}")
    check("detach-after-kill", cleaned.status == 0, f"step {step}\n{cleaned.report()}")
    victim.check_left_alone(step)
    return result.status == KILLED


def last_step(victim, probes, extra):
    """The number of operations of one trace from attach to detach, found by halving."""
    low, high = 1, 64
    while kill_once(victim, probes, high, extra):
        low, high = high, high * 2
    while high - low > 8:
        middle = (low + high) // 2
        low, high = (middle, high) if kill_once(victim, probes, middle, extra) else (low, middle)
    return high


def every_step(name, args, probes, dense, extra=()):
    with Victim(name, *args) as victim:
        path = victim.path
        probes = [f"{path}:{probe}" for probe in probes]
        last = last_step(victim, probes, extra)
        dense = last if SOAK else min(last, dense)
        sparse = max(1, -(-(last - dense) // SPARSE_STEPS))
        steps = list(range(1, dense + 1)) + list(range(dense + 1, last + 4, sparse))
        killed = sum(kill_once(victim, probes, step, extra) for step in steps)
        victim.retire()
    print(f"  {name}: about {last} steps, killed before {killed} of {len(steps)} tried")
    check("hits-happened", killed >= len(steps) * 3 // 4, f"only {killed} kills of {len(steps)} tries")


def one_busy_thread():
    every_step("case_46_counter", [], ["probe_me", "probe_me_too"], DENSE_STEPS)


def several_busy_threads():
    every_step("case_42_spinning_threads", ["--mode", "2"], ["probe_me"], DENSE_STEPS // 4)


def many_stops():
    """So many functions that attaching and detaching take several stops: the target runs in between."""
    every_step("case_63_many_functions", [], ["probe_me*"], 8)


def probes_on_each_instruction():
    """Short instructions, jumps in padding and moved neighbours: each state between two of those writes is left behind once."""
    for name, args, dense in (("case_42_spinning_threads", ["--mode", "2"], 8), ("case_07_jcc_loops", [], 8), ("variant_O3", [], 8)):
        every_step(name, args, list(Heads(target_path(name), ["probe_me*"]).heads), dense)


def a_run_that_is_not_killed_says_so():
    """The way of killing itself is sound: a step that is never reached changes nothing."""
    with Victim("case_46_counter") as victim:
        result = trace(victim.ready(), [f"{victim.path}:probe_me"], 1 << 40)
        check_status(result, 0)
        check("hits-happened", "@: " in result.out, result.report())
        victim.check_left_alone("none")


def the_next_trace_cleans_up_or_names_the_leftovers():
    """Somebody who knows nothing of `spile detach` simply traces again."""
    for step in range(1, 140) if SOAK else (45, 60, 75, 90):
        with Victim("case_46_counter") as victim:
            pid = victim.ready()
            trace(pid, [f"{victim.path}:probe_me"], step)
            again = trace(pid, [f"{victim.path}:probe_me"], 1 << 40)
            if again.status != 0:
                check("refusal-in-words", "detach" in again.err, f"after step {step}\n{again.report()}")
            cleaned = spile("detach", "-p", pid)
            check("detach-after-kill", cleaned.status == 0, f"step {step}\n{cleaned.report()}")
            victim.check_left_alone(step)
            victim.retire()


if __name__ == "__main__":
    os.environ.pop("SPILE_KILL_AT_STEP", None)
    main([a_run_that_is_not_killed_says_so, one_busy_thread, several_busy_threads, many_stops, probes_on_each_instruction,
          the_next_trace_cleans_up_or_names_the_leftovers], 200)
