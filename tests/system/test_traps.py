#!/usr/bin/env python3
"""--allow-trap (docs/design/0012-traps.md): int3s that are served, refused, and taken out before they would kill.

SPILE_ONLY_TRAPS=1 makes every probe an int3, so that functions which would take a jump show what traps do."""
import os
import re
import signal
import time

from harness import (Failure, Picture, Skip, Spile, Target, check, check_count, check_left_as_before, check_no_loss,
                     check_refused_in_words, count_program, target_path)
from test_kill_steps import every_step
from tracing import SPILE, main, run, spile, wait_until

PATH = target_path("case_52_around_traps")
ALLOW = ["--allow-trap"]


def program(path=PATH, probe="probe_me"):
    return count_program([f"{path}:{probe}"], "uprobe")


def caught(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        return int(re.search(r"SigCgt:\s*(\w+)", status.read()).group(1), 16) >> (signal.SIGTRAP - 1) & 1


def is_in_pause(pid):
    with open(f"/proc/{pid}/syscall", encoding="utf-8") as call:
        return call.read().split()[0] == "34"


def calls_of(spile_run):
    return int(spile_run.maps().get("@calls", 0))


class Probed:
    """A target in a mode, with an int3 in probe_me; `work` lets it go."""

    def __init__(self, mode, path=PATH, hold=True, **options):
        self.target = Target(path, ["--mode", mode], wait=True, hold=hold, **options)

    def __enter__(self):
        self.target.__enter__()
        self.before = Picture(self.target.pid)
        self.spile = Spile(program(self.target_path()), pid=self.target.pid, extra=[*ALLOW, "-v"])
        self.spile.__enter__()
        return self

    def __exit__(self, *details):
        self.spile.__exit__(*details)
        self.target.__exit__(*details)

    def target_path(self):
        return os.readlink(f"/proc/{self.target.pid}/exe")

    def attached(self):
        if not self.spile.wait_attached():
            raise Failure(f"attached: spile refused\n{self.spile.report()}")
        check("handler-installed", caught(self.target.pid), "SIGTRAP has no handler")
        return self

    def finish(self):
        self.target.send_line()
        self.target.wait_for_line("(done|EXIT-)", 20)
        self.spile.stop()
        check_left_as_before(self.before, Picture(self.target.pid), strict=False)
        self.target.finish_well(20)


def threads_and_handlers():
    """Two threads and a timer's handler on alternate stacks, exact."""
    with Probed("plain") as run_:
        run_.attached().finish()
        check_count("exact", calls_of(run_.spile), run_.target.calls(), run_.spile)
        check_no_loss(run_.spile)
        check("int3-used", "int3 with slot" in "\n".join(run_.spile.err), run_.spile.report())


def the_action_is_given_back():
    with Probed("plain") as run_:
        run_.attached()
        run_.spile.stop()
        check("handler-gone", not caught(run_.target.pid), "SIGTRAP has a handler after detach")
        run_.target.send_line()
        run_.target.wait_for_line("(done|EXIT-)", 20)
        run_.target.finish_well(20)


def attach_and_detach_under_load():
    """A thread may have run into the int3 and not have its signal yet when everything is taken out."""
    hits = cycles = 0
    with Target(PATH, ["--mode", "plain"], wait=True, hold=True, loop=6.0) as target:
        before = Picture(target.pid)
        target.send_line()
        end = time.monotonic() + 4.5
        while time.monotonic() < end and target.alive() and cycles < 60:
            with Spile(program(), pid=target.pid, extra=ALLOW) as one:
                check("attached", one.wait_attached(), one.report())
                time.sleep(0.002 * (cycles % 5))
                one.stop()
                hits += calls_of(one)
                cycles += 1
            check("target-survives", target.alive(), target.report())
            check_left_as_before(before, Picture(target.pid), strict=False)
        target.wait_for_line("(done|EXIT-)", 20)
        target.finish_well(20)
    print(f"  {cycles} cycles, {hits} hits")
    check("hits-happened", hits > 0 and cycles > 0, f"{cycles} cycles, {hits} hits")


def refused(mode, path, message, script=None):
    with Target(path, ["--mode", mode], wait=True, hold=True) as target:
        before = Picture(target.pid)
        with Spile(script or program(path), pid=target.pid, extra=ALLOW) as one:
            check("refused", not one.wait_attached(), f"spile took it\n{one.report()}")
            check_refused_in_words(one, message)
        check("no-handler", mode == "handler" or not caught(target.pid), "SIGTRAP has a handler after a refusal")
        check_left_as_before(before, Picture(target.pid))
        target.send_line()
        target.wait_for_line("(done|EXIT-)", 20)
        target.finish_well(20)


def programs_that_a_trap_would_kill_are_refused():
    own = target_path("case_52_own_traps")
    refused("blocked", own, "blocks SIGTRAP")
    refused("ignored", own, "ignores SIGTRAP")
    refused("handler", own, "handler of its own for SIGTRAP")
    refused("full_mask", PATH, r"handler of signal 10 .* blocks SIGTRAP")


def code_that_blocks_signals_is_refused():
    refused("plain", PATH, "code of the C library", script="uprobe:libc:getppid { @calls = count(); }")


def static_programs_are_refused():
    with Target(target_path("case_65_no_libc"), [], wait=True, hold=True) as target:
        with Spile(program(target_path("case_65_no_libc"), "probe_me*"), pid=target.pid, extra=ALLOW) as one:
            check("refused", not one.wait_attached(), f"spile took it\n{one.report()}")
            check_refused_in_words(one, "no C library is seen")
        target.send_line()
        target.wait_for_line("(done|EXIT-)", 20)
        target.finish_well(20)


def without_the_option_nothing_changes():
    """The refusal names what would do; nothing else is tried."""
    path = target_path("case_03_ret_with_zeros")
    os.environ.pop("SPILE_ONLY_TRAPS")
    try:
        with Target(path, [], wait=True, hold=True) as target:
            with Spile(program(path, "probe_me*"), pid=target.pid) as one:
                if one.wait_attached():
                    raise Skip("a jump found a place in this run")
                check_refused_in_words(one, "an int3 would do, see --allow-trap")
            check("no-handler", not caught(target.pid), "SIGTRAP has a handler without --allow-trap")
            target.send_line()
            target.wait_for_line("(done|EXIT-)", 20)
            target.finish_well(20)
    finally:
        os.environ["SPILE_ONLY_TRAPS"] = "1"


def changed(mode):
    """The calls before the change are counted, then the int3s go, and the target lives."""
    with Probed(mode) as run_:
        run_.attached().finish()
        check("told", "have been taken out" in "\n".join(run_.spile.err), run_.spile.report())
        check("hits-happened", calls_of(run_.spile) >= 100, run_.spile.report())


def changes_through_the_c_library_wait_for_us():
    for mode in ("full_mask_later", "own_handler_later", "block_later", "default_later"):
        changed(mode)


def changes_by_system_call_are_seen():
    for mode in ("raw_block", "raw_default"):
        changed(mode)


def a_forked_child_waits_too():
    changed("forked")


def traps_that_are_not_ours_end_the_program():
    for mode, act in (("own_int3", lambda pid: None), ("waits", lambda pid: os.kill(pid, signal.SIGTRAP))):
        with Probed(mode, hold=False) as run_:
            run_.attached()
            run_.target.send_line()
            if mode == "waits":
                wait_until(lambda: is_in_pause(run_.target.pid), "the end of its calls")
            act(run_.target.pid)
            status = run_.target.finish(10)
            check("died-of-sigtrap", status == -signal.SIGTRAP, f"status {status}\n{run_.target.report()}")
            run_.spile.finish(10)
            check_count("exact", calls_of(run_.spile), 100, run_.spile)


def a_killed_tracer_leaves_served_traps():
    with Target(PATH, ["--mode", "plain"], wait=True, hold=True) as target:
        before = Picture(target.pid)
        with Spile(program(), pid=target.pid, extra=ALLOW) as one:
            check("attached", one.wait_attached(), one.report())
            os.kill(one.pid, signal.SIGKILL)
        target.send_line()
        target.wait_for_line("(done|EXIT-)", 20)
        shown = spile("sites", "-p", target.pid)
        check("sites-shown", "int3 with slot" in shown.out, shown.report())
        cleaned = spile("detach", "-p", target.pid)
        check("detach-after-kill", cleaned.status == 0, cleaned.report())
        check("handler-gone", not caught(target.pid), "SIGTRAP has a handler after `spile detach`")
        check_left_as_before(before, Picture(target.pid), strict=False)
        target.finish_well(20)


def killed_before_each_step():
    every_step("case_46_counter", [], ["probe_me", "probe_me_too"], 40, extra=ALLOW)


def sites_show_the_mechanism():
    with Target(PATH, ["--mode", "plain"], wait=True, hold=True) as target:
        shown = run([SPILE, "sites", *ALLOW, "-p", target.pid, "-e", program()])
        check("sites-shown", "[int3 with slot]" in shown.out and "a signal a hit" in shown.out, shown.report())
        target.send_line()
        target.wait_for_line("(done|EXIT-)", 20)
        target.finish_well(20)


if __name__ == "__main__":
    os.environ["SPILE_ONLY_TRAPS"] = "1"
    main([threads_and_handlers, the_action_is_given_back, attach_and_detach_under_load,
          programs_that_a_trap_would_kill_are_refused, code_that_blocks_signals_is_refused, static_programs_are_refused,
          without_the_option_nothing_changes, changes_through_the_c_library_wait_for_us, changes_by_system_call_are_seen,
          a_forked_child_waits_too, traps_that_are_not_ours_end_the_program, a_killed_tracer_leaves_served_traps,
          sites_show_the_mechanism, killed_before_each_step], 200)
