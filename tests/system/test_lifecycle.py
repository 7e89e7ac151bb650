#!/usr/bin/env python3
"""Cases that need more than one process beside the target: other tracers, deaths at every step, namespaces, full rings."""
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time

import harness
from harness import (SPILE, SLOWNESS, Failure, Picture, Process, Skip, Spile, Target, check, check_count,
                     check_descriptors_unchanged, check_left_as_before, check_mappings_unchanged, check_text_unchanged,
                     count_program, need_root, need_spile, need_tool, target_path, wait_for_work)

COUNTER = "case_46_counter"


def counter_program(name="@calls", function="probe_me"):
    return f"uprobe:{target_path(COUNTER)}:{function} {{ {name} = count(); }}"


def busy_counter(**options):
    return Target(target_path(COUNTER), ["--mode", "slow"], wait=True, hold=True, **options)


def detach(pid, seconds=20):
    """`spile detach -p PID`, as after a tracer that died."""
    with Process([SPILE, "detach", "-p", str(pid)]) as run:
        status = run.finish(seconds * SLOWNESS)
        check("detach", status == 0, f"status {status}\n{run.report()}")


# --- 46: other tracers ---------------------------------------------------------------------------------------------------


def case_46_two_tracers_same_site():
    """Both count everything, or the second is refused with the pid of the first; the target never notices."""
    with busy_counter() as target:
        before = Picture(target.pid)
        with Spile(counter_program(), pid=target.pid) as first, Spile(counter_program(), pid=target.pid) as second:
            attached = [first.wait_attached(), second.wait_attached()]
            check("attached", any(attached), f"neither attached\n{first.report()}\n{second.report()}")
            target.send_line()
            target.wait_for_line("done$")
            for spile, other, holds in ((first, second, attached[0]), (second, first, attached[1])):
                if holds:
                    spile.stop()
                else:
                    check("refusal-in-words", str(other.pid) in "\n".join(spile.err),
                          f"does not name pid {other.pid}\n{spile.report()}")
            check_left_as_before(before, Picture(target.pid), strict=False)
            target.finish_well()
            for spile, holds in ((first, attached[0]), (second, attached[1])):
                if holds:
                    check_count("exact", int(spile.maps().get("@calls", 0)), target.calls(), spile)


def case_46_two_tracers_detach_in_either_order():
    for first_leaves_first in (True, False):
        with busy_counter() as target:
            before = Picture(target.pid)
            with Spile(counter_program(), pid=target.pid) as first:
                check("attached", first.wait_attached(), first.report())
                with Spile(counter_program(function="probe_me_too"), pid=target.pid) as second:
                    both = second.wait_attached()
                    target.send_line()
                    time.sleep(0.1)
                    for spile in ([first, second] if first_leaves_first else [second, first]):
                        if spile is first or both:
                            spile.stop()
                    target.wait_for_line("done$")
                    check_left_as_before(before, Picture(target.pid), strict=False)
                    target.finish_well()


def case_46_under_strace():
    """strace holds the ptrace link: attaching is refused in words, or waits for nothing."""
    strace = need_tool("strace")
    with busy_counter() as target:
        with Process([strace, "-f", "-o", "/dev/null", "-p", str(target.pid)]) as holder:
            wait_until(lambda: tracer_of(target.pid) == holder.pid, "strace holds the target")
            with Spile(counter_program(), pid=target.pid) as spile:
                check("refusal-in-words", not spile.wait_attached(), f"attached under strace\n{spile.report()}")
                check("refusal-in-words", spile.process.returncode == 1 and str(holder.pid) in "\n".join(spile.err),
                      f"does not name the tracer {holder.pid}\n{spile.report()}")
            holder.send(signal.SIGINT)
            holder.finish()
        target.send_line()
        target.wait_for_line("done$")
        target.finish_well()


def case_46_foreign_breakpoint():
    """Another debugger's int3 stands at the entry: the site differs from its file and is refused; the int3 stays."""
    address = symbol_in("probe_me")
    with busy_counter() as target:
        where = load_base(target.pid) + address
        poke(target.pid, where, b"\xcc")
        with Spile(counter_program(), pid=target.pid) as spile:
            check("refused", not spile.wait_attached(), f"took a site that holds int3\n{spile.report()}")
            harness.check_refused_in_words(spile)
        check("text-unchanged", peek(target.pid, where, 1) == b"\xcc", "the foreign int3 is gone")
        poke(target.pid, where, original_byte("probe_me"))
        target.send_line()
        target.wait_for_line("done$")
        target.finish_well()


def case_46_foreign_write_while_attached():
    """Somebody changes the site while we hold it: detach leaves those bytes alone and says so."""
    address = symbol_in("probe_me")
    with busy_counter() as target:
        where = load_base(target.pid) + address
        with Spile(counter_program(), pid=target.pid) as spile:
            check("attached", spile.wait_attached(), spile.report())
            poke(target.pid, where, b"\xcc")
            spile.send(signal.SIGINT)
            spile.finish()
            check("foreign-bytes-kept", peek(target.pid, where, 1) == b"\xcc", f"overwritten\n{spile.report()}")
            check("refusal-in-words", "0x" in "\n".join(spile.err), f"nothing is said\n{spile.report()}")


def case_46_kernel_uprobe_first():
    """A kernel uprobe holds the site: the user engine refuses it, both ways round nobody crashes."""
    need_root()
    with busy_counter() as target:
        with Spile(counter_program(), pid=target.pid, extra=["--engine", "kernel"]) as kernel:
            if not kernel.wait_attached():
                raise Skip("the kernel engine cannot attach here: " + " ".join(kernel.err[-1:]))
            with Spile(counter_program(), pid=target.pid, extra=["--engine", "user"]) as user:
                attached = user.wait_attached()
                target.send_line()
                target.wait_for_line("done$")
                check("refused", not attached, f"took a site that a kernel uprobe holds\n{user.report()}")
            kernel.stop()
            target.finish_well()
            check_count("exact", int(kernel.maps().get("@calls", 0)), target.calls(), kernel)


def case_46_kernel_uprobe_second():
    need_root()
    with busy_counter() as target:
        with Spile(counter_program(), pid=target.pid, extra=["--engine", "user"]) as user:
            check("attached", user.wait_attached(), user.report())
            with Spile(counter_program(), pid=target.pid, extra=["--engine", "kernel"]) as kernel:
                attached = kernel.wait_attached()
                target.send_line()
                target.wait_for_line("done$")
                check("refused", not attached, f"set a kernel uprobe on a patched site: it kills\n{kernel.report()}")
            user.stop()
            target.finish_well()
            check_count("exact", int(user.maps().get("@calls", 0)), target.calls(), user)


# --- 53, 60: stops and deaths ----------------------------------------------------------------------------------------------


def case_53_stopped_target_stays_stopped():
    with busy_counter() as target:
        os.kill(target.pid, signal.SIGSTOP)
        wait_until(lambda: state_of(target.pid) == "T", "the target stops")
        with Spile(counter_program(), pid=target.pid) as spile:
            check("attached", spile.wait_attached(), spile.report())
            time.sleep(0.05)
            check("stays-stopped", state_of(target.pid) == "T", f"state {state_of(target.pid)} after attach")
            os.kill(target.pid, signal.SIGCONT)
            target.send_line()
            target.wait_for_line("done$")
            os.kill(target.pid, signal.SIGSTOP)
            wait_until(lambda: state_of(target.pid) == "T", "the target stops")
            spile.stop()
            check("stays-stopped", state_of(target.pid) == "T", f"state {state_of(target.pid)} after detach")
            os.kill(target.pid, signal.SIGCONT)
            target.finish_well()
            check_count("exact", int(spile.maps().get("@calls", 0)), target.calls(), target)


def case_53_continued_during_attach():
    for delay_ms in range(0, 40, 8):
        with busy_counter() as target:
            os.kill(target.pid, signal.SIGSTOP)
            with Spile(counter_program(), pid=target.pid) as spile:
                time.sleep(delay_ms / 1000)
                os.kill(target.pid, signal.SIGCONT)
                check("attached", spile.wait_attached(), spile.report())
                target.send_line()
                target.wait_for_line("done$")
                spile.stop()
                target.finish_well()
                check_count("exact", int(spile.maps().get("@calls", 0)), target.calls(), target)


def case_53_exit_during_attach():
    """The target ends by itself at any moment of an attach: spile ends too, without a crash."""
    for rounds in (1, 5, 10, 20, 40, 80):
        with Target(target_path(COUNTER), ["--mode", "slow"], wait=True, rounds=rounds) as target:
            with Spile(counter_program(), pid=target.pid) as spile:
                target.send_line()
                target.finish_well()
                end_of(spile, "the target has exited")


def case_53_exec_during_attach():
    """The target becomes another program at any moment of an attach: the new one must run as if nothing had been."""
    path = target_path("case_58_new_programs")
    for delay_ms in range(0, 24, 2):
        with Target(path, ["--mode", "exec_self"], wait=True) as target:
            with Spile(count_program([f"{path}:probe_me"]), pid=target.pid) as spile:
                time.sleep(delay_ms / 1000)
                target.send_line()
                target.finish_well()
                end_of(spile, f"the target called exec {delay_ms} ms after the start and ended")


def case_60_target_killed_during_attach():
    delays = [step * 0.004 for step in range(16)]
    for delay in delays:
        with busy_counter() as target:
            with Spile(counter_program(), pid=target.pid) as spile:
                time.sleep(delay)
                target.send(signal.SIGKILL)
                end_of(spile, f"the target was killed {delay * 1000:.0f} ms after the start")


def case_60_target_killed_at_each_ptrace_call():
    """spile itself is stopped at its n-th ptrace call; the target is killed there; spile goes on and must end well."""
    steps = 0
    for step in [*range(1, 16), *range(16, 120, 6)]:
        with busy_counter() as target:
            with injected(f"ptrace:signal=SIGSTOP:when={step}", target.pid) as spile:
                tracer = wait_for_stopped_child(spile, 5)
                if tracer is None:
                    break
                target.send(signal.SIGKILL)
                keep_going(tracer, spile)
                end_of(spile, f"the target was killed at ptrace call {step}")
                steps += 1
    print(f"  {steps} steps")
    check("steps", steps > 0, "spile was never stopped")


def case_60_target_killed_while_attached():
    with busy_counter(loop=20) as target:
        with Spile(counter_program(), pid=target.pid) as spile:
            check("attached", spile.wait_attached(), spile.report())
            target.send_line()
            wait_for_work(target.pid)
            target.send(signal.SIGKILL)
            target.process.wait()
            end_of(spile, "the target was killed")
            check("hits-happened", int(spile.maps().get("@calls", 0)) > 0, f"the counts are lost\n{spile.report()}")


# --- 57: forked children outlive the tracer ------------------------------------------------------------------------------------


def case_57_children_adrift():
    path = target_path("case_57_forks")
    with Target(path, ["--mode", "adrift"], wait=True, hold=True) as target:
        before = Picture(target.pid)
        with Spile(count_program([f"{path}:probe_me"]), pid=target.pid) as spile:
            check("attached", spile.wait_attached(), spile.report())
            target.send_line()
            forked = target.wait_for_line(r"forked (\d+) (\d+) (\d+)$")
            children = [int(pid) for pid in forked.groups()]
            wait_until(lambda: all(waits_in_read(pid) for pid in children), "the children have done their part")
            spile.stop()
            for pid in [target.pid, *children]:
                check_text_unchanged(before, Picture(pid))
                check_mappings_unchanged(before, Picture(pid), strict=False)
            counted = int(spile.maps().get("@calls", 0))
            target.send_line()
            target.wait_for_line("done$")
            target.finish_well()
            check_count("exact", counted, 4 * 1000, target)
            check("calls", target.calls() == 8 * 1000, f"{target.calls()}")


def case_57_parent_ends_first():
    """The trace goes on in the children of a target that has ended, says so, and ends with the last of them or on
    Ctrl-C; then they run on without probes."""
    path = target_path("case_57_forks")
    for by_hand in (True, False):
        with Target(path, ["--mode", "adrift"], wait=True, hold=True) as target:
            before = Picture(target.pid)
            with Spile(count_program([f"{path}:probe_me"]), pid=target.pid) as spile:
                check("attached", spile.wait_attached(), spile.report())
                target.send_line()
                forked = target.wait_for_line(r"forked (\d+) (\d+) (\d+)$")
                children = [int(pid) for pid in forked.groups()]
                wait_until(lambda: all(waits_in_read(pid) for pid in children), "the children have done their part")  # pylint: disable=cell-var-from-loop
                os.kill(target.pid, signal.SIGKILL)
                target.process.wait()
                wait_until(lambda: any("the trace goes on in 3 of the processes" in line for line in spile.err), "spile says that it goes on")
                check("goes-on", spile.alive(), spile.report())
                for pid in children if not by_hand else ():
                    os.kill(pid, signal.SIGKILL)
                if by_hand:
                    spile.stop()
                    check("told", any("3 of the processes that it forked ran on" in line for line in spile.err), spile.report())
                    for pid in children:
                        check_text_unchanged(before, Picture(pid))
                        os.kill(pid, signal.SIGKILL)
                end_of(spile, "the last child has ended")
                check("hits-happened", int(spile.maps().get("@calls", 0)) > 0, spile.report())


class Parker:
    """Leaves a process stopped (SIGSTOP) with its program counter at a given address, held by nobody."""

    CONT, GETREGS, SETREGS, ATTACH, DETACH = 7, 12, 13, 16, 17
    RIP = 16  # word of user_regs_struct

    def __init__(self, pid):
        self.pid = pid
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.ptrace.argtypes = [ctypes.c_long] * 2 + [ctypes.c_void_p] * 2

    def request(self, number, data=None):
        if self.libc.ptrace(number, self.pid, None, data) < 0:
            raise OSError(ctypes.get_errno(), f"ptrace {number}")

    def park_at(self, addresses):
        """By a breakpoint at each, gone again when one is hit. The address; None where the process ends first."""
        self.request(self.ATTACH)
        os.waitpid(self.pid, 0)
        with open(f"/proc/{self.pid}/mem", "r+b", buffering=0) as memory:
            saved = {}
            for address in addresses:
                memory.seek(address)
                saved[address] = memory.read(1)
                memory.seek(address)
                memory.write(b"\xcc")
            self.request(self.CONT)
            _, status = os.waitpid(self.pid, 0)
            if not os.WIFSTOPPED(status):
                return None
            for address, byte in saved.items():
                memory.seek(address)
                memory.write(byte)
        words = (ctypes.c_ulong * 27)()
        pointer = ctypes.cast(words, ctypes.c_void_p)
        self.request(self.GETREGS, pointer)
        words[self.RIP] -= 1
        self.request(self.SETREGS, pointer)
        self.request(self.DETACH, signal.SIGSTOP)
        return words[self.RIP]


def case_43_parked_between_two_jumps():
    """A thread has run the hop of a site and not yet the jump it leads to, in padding that detach puts back."""
    path = target_path("case_02_loop_to_interior_heads")
    for kill_first in (False, True):
        with Target(path, [], wait=True, hold=True, loop=1.0) as target:
            before = Picture(target.pid)
            with Spile(count_program([f"{path}:probe_me*"]), pid=target.pid, extra=["-v"]) as spile:
                check("attached", spile.wait_attached(), spile.report())
                wait_until(lambda: any("target stopped" in line for line in spile.err), "the list of sites")
                hosts = {int(address, 16) for line in spile.err for address in re.findall(r"hop to a jump at (0x[0-9a-f]+)", line)}
                check("hops", hosts, f"no site took a hop: this test shows nothing\n{spile.report()}")
                target.send_line()
                wait_for_work(target.pid)  # the first call must not be the one that is parked: it has no hit yet
                check("parked", Parker(target.pid).park_at(hosts) in hosts, "no thread came by a hop")
                if kill_first:
                    spile.send(signal.SIGKILL)
                    spile.process.wait()
                    detach(target.pid)
                else:
                    spile.stop()
                    check("hits-happened", int(spile.maps().get("@calls", 0)) > 0, spile.report())
                check_text_unchanged(before, Picture(target.pid))
                os.kill(target.pid, signal.SIGCONT)
                target.wait_for_line("done$")
                target.finish_well()


def our_mappings(pid):
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        return [line for line in maps if "/memfd:spile-" in line]


def case_43_stack_that_cannot_be_searched():
    """A thread's stack pointer points to nothing. Nobody knows where a signal may have interrupted it: of several instructions
    only the first changes, and what it might return to stays until it is seen elsewhere."""
    path = target_path("case_43_no_stack")
    for function in ("probe_me", "probe_me_long"):
        with Target(path, ["--mode", function], wait=True, hold=True) as target:
            before = Picture(target.pid)
            with Spile(count_program([f"{path}:{function}"]), pid=target.pid, extra=["-v"]) as spile:
                check("attached", spile.wait_attached(), spile.report())
                wait_until(lambda: any("target stopped" in line for line in spile.err), "the list of sites")  # pylint: disable=cell-var-from-loop
                one = "only the 4 bytes of the first instruction" if function == "probe_me" else "jump over 1 instruction"
                check("one-instruction", any(one in line for line in spile.err), spile.report())
                target.send_line()
                target.wait_for_line("done$")
                spile.stop()
                counted = int(spile.maps().get("@calls", 0))
                check("told", any("cannot be searched" in line for line in spile.err), spile.report())
                check("code-stays", any(" r-x" in line for line in our_mappings(target.pid)), f"the code is gone\n{spile.report()}")
            target.send(signal.SIGUSR1)
            target.wait_for_line("home$")
            detach(target.pid)
            check_left_as_before(before, Picture(target.pid), strict=False)
            check("no-mapping-left", not our_mappings(target.pid), "mappings are left")
            target.finish_well()
            check_count("exact", counted, target.calls(), spile)


def case_43_parked_threads_go_home():
    """Threads that wait in the copy of an instruction go on in the original when the probes leave: nothing of ours stays."""
    path = target_path("case_43_parked_threads")
    with Target(path, ["--mode", "syscall"], wait=True, hold=True) as target:
        before = Picture(target.pid)
        with Spile(count_program([f"{path}:probe_me*"]), pid=target.pid) as spile:
            check("attached", spile.wait_attached(), spile.report())
            spile.stop()
        check("no-mapping-left", not our_mappings(target.pid), f"mappings are left\n{spile.report()}")
        check_text_unchanged(before, Picture(target.pid))
        target.send_line()
        target.wait_for_line("done$")
        target.finish_well()


def case_57_children_killed_tracer():
    """The tracer dies while children run patched text; `spile detach` restores all of them."""
    path = target_path("case_57_forks")
    with Target(path, ["--mode", "adrift"], wait=True, hold=True) as target:
        before = Picture(target.pid)
        with Spile(count_program([f"{path}:probe_me"]), pid=target.pid) as spile:
            check("attached", spile.wait_attached(), spile.report())
            target.send_line()
            forked = target.wait_for_line(r"forked (\d+) (\d+) (\d+)$")
            spile.send(signal.SIGKILL)
            spile.process.wait()
            detach(target.pid)
            for pid in [target.pid, *map(int, forked.groups())]:
                check_text_unchanged(before, Picture(pid))
            target.send_line()
            target.wait_for_line("done$")
            target.finish_well()


# --- 59: the tracer is killed at each step ----------------------------------------------------------------------------------------


def kill_in_attach(calls, step):
    """Kills spile at the n-th of these calls that its attach makes; False once there is no such call any more."""
    with busy_counter(rounds=30) as target:
        before = Picture(target.pid)
        with injected(f"{calls}:signal=SIGKILL:when={step}", target.pid) as spile:
            survived = spile.wait_attached()
            if survived:
                os.kill(child_of(spile.pid), signal.SIGINT)
            ended_in_time(spile, f"attach, {calls} {step}")
        finish_after_kill(target, before)
        return not survived


def kill_in_detach(calls, step):
    """The same for detach: spile attaches undisturbed, then strace is put on it."""
    with busy_counter(rounds=30) as target:
        before = Picture(target.pid)
        with Spile(counter_program(), pid=target.pid) as spile:
            check("attached", spile.wait_attached(), spile.report())
            rule = f"{calls}:signal=SIGKILL:when={step}"
            with Process([need_tool("strace"), "-f", "-o", "/dev/null", "-p", str(spile.pid), "-e", f"trace={calls}",
                          "-e", f"inject={rule}"]):
                wait_until(lambda: tracer_of(spile.pid) != 0, "strace holds spile")
                spile.send(signal.SIGINT)
                ended_in_time(spile, f"detach, {calls} {step}")
            killed = spile.process.returncode == -signal.SIGKILL
        finish_after_kill(target, before)
        return killed


def ended_in_time(spile, what):
    with contextlib.suppress(subprocess.TimeoutExpired):
        spile.process.wait(15 * SLOWNESS)
    check("in-time", not spile.alive(), f"{what}: spile hangs\n{spile.report()}")


def finish_after_kill(target, before):
    """The target works on as it was left, is cleaned up, and has the right results."""
    target.send_line()
    target.wait_for_line("done$")
    detach(target.pid)
    check_left_as_before(before, Picture(target.pid), strict=False)
    target.finish_well()


def kill_at_every(kill, calls):
    """Kills at every such call in turn, until one run gets through."""
    step = 0
    while True:
        try:
            if not kill(calls, step + 1):
                break
        except Failure as failure:
            raise Failure(f"killed at {calls} number {step + 1}: {failure}") from None
        step += 1
    print(f"  killed at {step} steps")
    check("steps", step > 0, f"spile never called {calls}")


WRITES = "pwrite64,pwritev,process_vm_writev"


def case_59_tracer_killed_at_each_ptrace_call_of_attach():
    kill_at_every(kill_in_attach, "ptrace")


def case_59_tracer_killed_at_each_write_of_attach():
    kill_at_every(kill_in_attach, WRITES)


def case_59_tracer_killed_at_each_ptrace_call_of_detach():
    kill_at_every(kill_in_detach, "ptrace")


def case_59_tracer_killed_at_each_write_of_detach():
    kill_at_every(kill_in_detach, WRITES)


def case_59_tracer_killed_while_attached():
    with busy_counter() as target:
        before = Picture(target.pid)
        with Spile(counter_program(), pid=target.pid) as spile:
            check("attached", spile.wait_attached(), spile.report())
            spile.send(signal.SIGKILL)
            spile.process.wait()
        target.send_line()
        target.wait_for_line("done$")
        detach(target.pid)
        check_left_as_before(before, Picture(target.pid))
        target.finish_well()


def case_59_second_tracer_adopts():
    with busy_counter() as target:
        before = Picture(target.pid)
        with Spile(counter_program(), pid=target.pid) as spile:
            check("attached", spile.wait_attached(), spile.report())
            spile.send(signal.SIGKILL)
            spile.process.wait()
        with Spile(counter_program(), pid=target.pid) as second:
            check("attached", second.wait_attached(), f"the next attach is refused\n{second.report()}")
            target.send_line()
            target.wait_for_line("done$")
            second.stop()
            check_left_as_before(before, Picture(target.pid), strict=False)
            target.finish_well()
            check_count("exact", int(second.maps().get("@calls", 0)), target.calls(), second)


# --- 61: a full ring ------------------------------------------------------------------------------------------------------------


def case_61_stopped_reader():
    path = target_path("case_61_events")
    program = f'uprobe:{path}:probe_me {{ @calls = count(); printf("%s %d\\n", str(arg0), arg1); }}'
    with Target(path, wait=True, hold=True) as target:
        with Spile(program, pid=target.pid) as spile:
            check("attached", spile.wait_attached(), spile.report())
            spile.send(signal.SIGSTOP)
            target.send_line()
            took = target.wait_for_line("done$", 10 * SLOWNESS)
            check("never-blocks", took is not None, "the target waits for its reader")
            spile.send(signal.SIGCONT)
            spile.stop()
            target.finish_well()
            events = len(spile.of_type("printf"))
            counted, lost = int(spile.maps().get("@calls", 0)), spile.lost()
            check_count("exact", counted, target.calls(), spile)
            check("lost-counted", events + lost == target.calls() and lost > 0,
                  f"{events} printed + {lost} lost, {target.calls()} calls\n{spile.report()[:2000]}")
            print(f"  {events} printed, {lost} lost")


def case_61_no_loss_while_reading():
    path = target_path("case_61_events")
    program = f'uprobe:{path}:probe_me {{ printf("%s %d\\n", str(arg0), arg1); }}'
    names = ["a", "somewhat longer", "a name of an ordinary file: /etc/passwd"]
    with Target(path, wait=True, hold=True, rounds=2000) as target:
        with Spile(program, pid=target.pid) as spile:
            check("attached", spile.wait_attached(), spile.report())
            target.send_line()
            target.wait_for_line("done$")
            spile.stop()
            target.finish_well()
            harness.check_no_loss(spile)
            want = [f"{names[i % 3]} {i}" for i in range(2000)]
            got = [text.rstrip("\n") for text in spile.of_type("printf")]
            check("same-output", got == want, f"{len(got)} of {len(want)} lines; the first that differs: "
                  f"{next((pair for pair in zip(got, want) if pair[0] != pair[1]), None)}")


# --- 55: containers and other users --------------------------------------------------------------------------------------------


def attach_in_namespace(prefix, name, probe):
    """A target started by `prefix COMMAND`, traced from outside by the pid that it has here."""
    path = target_path(name)
    with Process([*prefix, path, "--wait", "--hold"]) as outer:
        with contextlib.suppress(Failure):
            outer.wait_for_line("ready$", 5)
        if "ready" not in outer.out:
            raise Skip(f"cannot start it here: {' '.join(outer.err[-1:])}")
        pid = innermost(outer.pid, os.path.basename(path))
        before = Picture(pid)
        with Spile(count_program([f"{path}:{probe}"]), pid=pid) as spile:
            check("attached", spile.wait_attached(), spile.report())
            outer.send_line()
            outer.wait_for_line("done$")
            spile.stop()
            check_left_as_before(before, Picture(pid), strict=False)
            outer.send_line()
            status = outer.finish()
            harness.check_exit_success(status, outer)
            check_count("exact", int(spile.maps().get("@calls", 0)), harness.calls_of(outer.out, outer), spile)


def case_55_own_namespaces():
    attach_in_namespace([need_tool("unshare"), "--mount", "--pid", "--fork", "--user", "--map-root-user"], COUNTER, "probe_me")


def case_55_musl_in_own_namespaces():
    attach_in_namespace([need_tool("unshare"), "--mount", "--pid", "--fork", "--user", "--map-root-user"],
                        "variant_musl_static", "probe_me*")


def case_55_chroot():
    """Nothing but the program is visible to it: no /proc, no libraries, no /dev; its path there is not its path here."""
    need_root()
    import shutil
    import tempfile
    root = tempfile.mkdtemp(prefix="spile-chroot-")
    try:
        shutil.copy(target_path("variant_static"), os.path.join(root, "program"))
        with Process([need_tool("chroot"), root, "/program", "--wait", "--hold"]) as target:
            target.wait_for_line("ready$")
            with Spile(count_program(["/program:probe_me"]), pid=target.pid) as spile:
                check("attached", spile.wait_attached(), spile.report())
                target.send_line()
                target.wait_for_line("done$")
                spile.stop()
                target.send_line()
                harness.check_exit_success(target.finish(), target)
                check_count("exact", int(spile.maps().get("@calls", 0)), 5000, spile)
    finally:
        shutil.rmtree(root)


NOBODY = 65534


def as_nobody():
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def case_55_unprivileged():
    """uid 65534 without capabilities traces its own program."""
    need_root()
    with busy_counter(preexec_fn=as_nobody) as target:
        with Spile(counter_program(), pid=target.pid, prefix=["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}",
                                                                 "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]) as spile:
            check("attached", spile.wait_attached(), spile.report())
            target.send_line()
            target.wait_for_line("done$")
            spile.stop()
            target.finish_well()
            check_count("exact", int(spile.maps().get("@calls", 0)), target.calls(), spile)


def case_55_another_users_process():
    need_root()
    with busy_counter() as target:
        with Spile(counter_program(), pid=target.pid, prefix=["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}",
                                                                 "--clear-groups"]) as spile:
            check("refused", not spile.wait_attached(), "attached to another user's process")
            harness.check_refused_in_words(spile, r"(?i)permi|denied|not allowed|cannot be traced")
        target.send_line()
        target.wait_for_line("done$")
        target.finish_well()


def case_55_seccomp_unprivileged():
    """Where the filter cannot be suspended the attach is refused, with the reason, before the target is touched."""
    need_root()
    path = target_path("case_55_confined")
    for mode in ("kill_filter", "errno_filter", "strict"):
        with Target(path, ["--mode", mode], wait=True, preexec_fn=as_nobody) as target:
            with Spile(count_program([f"{path}:probe_me"]), pid=target.pid,
                       prefix=["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]) as spile:
                check("refused", not spile.wait_attached(), f"attached under {mode}\n{spile.report()}")
                harness.check_refused_in_words(spile, r"(?i)seccomp")
            target.send_line()
            target.finish_well()


def under_filter(mode, program):
    """Traces the confined program: what spile said, what it counted; None where it refused."""
    with Target(target_path("case_55_confined"), ["--mode", mode], wait=True, hold=mode != "strict") as target:
        with Spile(program, pid=target.pid) as spile:
            attached = spile.wait_attached()
            target.send_line()
            if attached and mode != "strict":
                target.wait_for_line("done$")
            target.finish_well()  # a call that the filter forbids would have killed it
            if attached:
                spile.stop()
                check_count("exact", int(spile.maps().get("@calls", 0)), target.calls(), spile)
            return "\n".join(spile.err), spile.maps() if attached else None, target.pid


def case_55_seccomp_calls_of_a_hit_are_allowed():
    """Filters that forbid other calls: a hit may ask for pid, comm and uid, and gets the right values."""
    need_root()
    probe = f"uprobe:{target_path('case_55_confined')}:probe_me"
    for mode in ("errno_filter", "kill_filter", "trap_filter"):
        said, maps, pid = under_filter(mode, probe + " { @calls = count(); @pid = pid; @tid = tid; @comm[comm] = count(); @uid = uid; }")
        check("attached", maps is not None, said)
        check("values", maps["@pid"] == pid and maps["@tid"] == pid and maps["@uid"] == 0 and "case_55_confine" in maps["@comm"],
              f"pid {pid}: {maps}")


def case_55_seccomp_calls_of_a_hit_are_forbidden():
    """Each of them would kill the program. What cannot be told is refused by name; what needs no call is counted."""
    need_root()
    probe = f"uprobe:{target_path('case_55_confined')}:probe_me"
    for mode in ("hit_calls_filter", "strict"):
        for wanted, named in (("pid", "getpid"), ("comm", "prctl"), ("uid", "getuid")):
            said, maps, _ = under_filter(mode, f"{probe} {{ @calls = count(); @[{wanted}] = count(); }}")
            check("refused", maps is None and named in said and "seccomp" in said, f"{mode}, {wanted}: {said}")
        said, maps, _ = under_filter(mode, probe + " { @calls = count(); @sum = sum(arg0); }")
        check("attached", maps is not None and "seccomp" not in said, f"{mode}: {said}")
        said, maps, _ = under_filter(mode, probe + " { @calls = count(); @[str(arg0)] = count(); }")
        check("told", maps is not None and "process_vm_readv" in said, f"{mode}: {said}")


def case_55_seccomp_strict_has_no_counter_of_time():
    """Strict mode makes rdtsc a fault: nsecs is refused there, and read where only calls are filtered."""
    need_root()
    program = f"uprobe:{target_path('case_55_confined')}:probe_me {{ @calls = count(); @t = max(nsecs); }}"
    said, maps, _ = under_filter("strict", program)
    check("refused", maps is None and "nsecs" in said and "seccomp" in said, said)
    said, maps, _ = under_filter("hit_calls_filter", program)
    check("values", maps is not None and maps["@t"] > 0, f"{said} {maps}")


# --- helpers of this file ---------------------------------------------------------------------------------------------------------


def wait_until(condition, what, seconds=5):
    end = time.monotonic() + seconds * SLOWNESS
    while not condition():
        if time.monotonic() > end:
            raise Failure(f"in-time: {what}: did not happen in {seconds} s")
        time.sleep(0.005)


def status_field(pid, name):
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        return re.search(rf"^{name}:\s*(\S+)", status.read(), re.M).group(1)


def state_of(pid):
    return status_field(pid, "State")


def waits_in_read(pid):
    """A thread in read(0) says so; where /proc does not tell, that it sleeps must do."""
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/syscall", encoding="utf-8") as call:
            return call.read().split()[0] == "0"
    return state_of(pid) == "S"


def tracer_of(pid):
    return int(status_field(pid, "TracerPid"))


def children_of(pid):
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as children:
            return [int(child) for child in children.read().split()]
    return []


def child_of(pid):
    return next(iter(children_of(pid)), None)


def innermost(pid, name):
    """The process below `pid` whose program is `name`."""
    for candidate in [pid, *children_of(pid), *[g for c in children_of(pid) for g in children_of(c)]]:
        with contextlib.suppress(OSError):
            if os.path.basename(os.readlink(f"/proc/{candidate}/exe")) == name:
                return candidate
    raise Failure(f"no process {name} below {pid}")


def injected(rule, pid):
    """spile under strace, which sends it a signal at one of its system calls."""
    strace = need_tool("strace")
    calls = rule.split(":")[0]
    return Spile(counter_program(), pid=pid,
                 prefix=[strace, "-f", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={rule}"])


def wait_for_stopped_child(spile, seconds):
    """The process under strace once it is stopped as a whole; None if it attached without."""
    end = time.monotonic() + seconds * SLOWNESS
    while time.monotonic() < end and spile.alive() and not spile.of_type("attached_probes"):
        child = child_of(spile.pid)
        # One look may see strace's own short stops; a stop by signal lasts.
        if child is not None and all(stopped(child) for _ in range(4)):
            return child
        time.sleep(0.002)
    return None


def keep_going(pid, spile):
    """SIGCONT until strace and its child have ended: one that comes before the stop is complete would be lost."""
    end = time.monotonic() + 10 * SLOWNESS
    while spile.alive() and time.monotonic() < end:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.02)


def stopped(pid):
    time.sleep(0.005)
    with contextlib.suppress(OSError):
        return state_of(pid) in "Tt"
    return False


def end_of(spile, why):
    """spile must end by itself, in time, with a status that it chose (no signal)."""
    try:
        status = spile.process.wait(15 * SLOWNESS)
    except subprocess.TimeoutExpired:
        raise Failure(f"in-time: {why}, spile goes on\n{spile.report()}") from None
    for reader in spile.readers:
        reader.join(2)
    check("clean-stop", status in (0, 1), f"{why}, spile ended with status {status}\n{spile.report()}")


def symbol_in(name):
    listing = subprocess.run([need_tool("nm"), target_path(COUNTER)], capture_output=True, text=True, check=True, timeout=10)
    return next(int(line.split()[0], 16) for line in listing.stdout.splitlines() if line.split()[-1] == name)


def load_base(pid):
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        return int(maps.readline().split("-")[0], 16)


def original_byte(name):
    with open(target_path(COUNTER), "rb") as file:
        file.seek(symbol_in(name))  # .text lies at its own address in these files
        return file.read(1)


def peek(pid, address, size):
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(size)


def poke(pid, address, data):
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(address)
        memory.write(data)


CASES = {name: function for name, function in globals().items() if name.startswith("case_") and callable(function)}


def run(name):
    need_spile()
    CASES[name]()


if __name__ == "__main__":
    if sys.argv[1] == "--list":
        print("\n".join(CASES))
    else:
        harness.main(lambda: run(sys.argv[1]))
