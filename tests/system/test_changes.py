#!/usr/bin/env python3
"""Processes whose parts go and come: a leader that has exited, files that are removed under the code."""
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import harness
from harness import (SPILE, SLOWNESS, Picture, Process, Spile, Target, check, check_count, check_hits_happened,
                     check_left_as_before, check_no_loss, count_program, need_root, need_spile, need_tool, target_path)

NOBODY = 65534
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]


def as_nobody():
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def spile(*words, prefix=(), seconds=20):
    """One spile command that ends by itself: its output and its errors."""
    with Process([*prefix, SPILE, *map(str, words)]) as process:
        status = process.finish(seconds * SLOWNESS)
        check("status", status == 0, f"status {status}\n{process.report()}")
        return "\n".join(process.out), "\n".join(process.err)


def kill(tracer):
    tracer.send(signal.SIGKILL)
    tracer.finish()


def our_mappings(pid):
    with open(f"/proc/{harness.task_with_memory(pid)}/maps", encoding="utf-8") as maps:
        return [line for line in maps if "/memfd:spile-" in line]


# --- 53: the leader is a zombie --------------------------------------------------------------------------------------------


def leaderless(**options):
    return Target(target_path("case_53_leader_gone"), wait=True, hold=True, **options)


def check_leader_is_gone(target):
    with open(f"/proc/{target.pid}/stat", encoding="utf-8") as stat:
        check("leader-gone", stat.read().rsplit(")", 1)[1].split()[0] == "Z", "its leader still runs")


def case_53_leader_gone_names():
    """Names, lists, files and stacks are found through a thread that is alive, by both engines."""
    path = target_path("case_53_leader_gone")
    with leaderless() as target:
        check_leader_is_gone(target)
        out, _ = spile("-l", "uprobe:*:probe_me", "-p", target.pid)
        check("listed", out.strip() == f"uprobe:{path}:probe_me", out)
        out, _ = spile("sites", "-p", target.pid, "-e", "uprobe:libc:usleep { @ = count(); }")
        check("sites", "libc" in out and "REFUSED" not in out, out)
        program = "uprobe:case_53*:probe_me { @calls = count(); @who[usym(reg(\"ip\"))] = count(); @from[ustack(2)] = count(); }"
        with Spile(program, pid=target.pid) as tracer:
            check("attached", tracer.wait_attached(), tracer.report())
            target.send_line()
            target.wait_for_line("done$")
            tracer.stop()
            maps = tracer.maps()
            check("names", "probe_me" in str(maps.get("@who")), f"{maps}\n{tracer.report()}")
            check("stacks", "work" in str(maps.get("@from")), f"{maps}\n{tracer.report()}")
        target.finish_well()
        check_count("exact", int(maps["@calls"]), target.calls(), tracer)


def case_53_leader_gone_killed_tracer():
    """What a killed tracer leaves is found and taken out though the leader's maps are empty."""
    for tidy in ("detach", "attach"):
        with leaderless() as target:
            before = Picture(target.pid)
            program = count_program([f"{target_path('case_53_leader_gone')}:probe_me"])
            with Spile(program, pid=target.pid) as tracer:
                check("attached", tracer.wait_attached(), tracer.report())
                with Spile(program, pid=target.pid) as second:
                    check("owner-named", not second.wait_attached() and str(tracer.pid) in "\n".join(second.err), second.report())
                kill(tracer)
            check("left-behind", our_mappings(target.pid), "nothing is left: the test says nothing")
            if tidy == "detach":
                out, _ = spile("detach", "-p", target.pid)
                check("restored", "1 sites restored" in out, out)
            else:
                with Spile(program, pid=target.pid) as next_one:
                    check("attached", next_one.wait_attached(), next_one.report())
                    next_one.stop()
            check_left_as_before(before, Picture(target.pid))
            target.send_line()
            target.wait_for_line("done$")
            target.finish_well()


def case_53_leader_gone_killed_at_each_step():
    """The tracer dies before its N-th operation on the process: the threads work on, what is left is taken out."""
    program = count_program([f"{target_path('case_53_leader_gone')}:probe_me"]) + " interval:ms:1 { exit(); }"
    killed = 0
    with leaderless(loop=4 * SLOWNESS) as target:
        before = Picture(target.pid)
        target.send_line()
        for step in range(1, 140, 3):
            with Process([SPILE, "-q", "-e", program, "-p", str(target.pid)],
                         env=dict(os.environ, SPILE_KILL_AT_STEP=str(step))) as tracer:
                killed += tracer.finish(20 * SLOWNESS) == -signal.SIGKILL
            spile("detach", "-p", target.pid)
            check("target-survives", target.alive(), f"step {step}\n{target.report()}")
            check_left_as_before(before, Picture(target.pid), strict=False)
            if "done" in target.out:
                break
        target.wait_for_line("done$")
        target.finish_well()
    check("hits-happened", killed >= 1, f"only {killed} kills")
    print(f"  {killed} kills")


# --- 54: a thread that cannot be stopped ---------------------------------------------------------------------------------------


def case_54_vfork_parent_is_named():
    """While its child runs a vfork parent cannot be stopped: the attach gives up in time, says which thread, and changes nothing."""
    path = target_path("case_54_vfork_parent")
    with Target(path, ["--mode", "long"], wait=True) as target:
        before = Picture(target.pid)
        with Spile(count_program([f"{path}:probe_me"]), pid=target.pid) as tracer:
            check("refused", not tracer.wait_attached(), tracer.report())
            harness.check_refused_in_words(tracer, r"thread \d+ .*does not stop")
        check("target-survives", target.alive(), target.report())
        check_left_as_before(before, Picture(target.pid))
        check("no-mapping-left", not our_mappings(target.pid), tracer.report())


# --- 56: the file behind the code is gone ------------------------------------------------------------------------------------


def library_user(mode, **options):
    return Target(target_path("case_56_text_mappings"), ["--mode", mode], wait=True, hold=True, **options)


def work_of(target):
    return next(line[5:] for line in target.out if line.startswith("work="))


def check_traced(target, program, **options):
    """Attaches, lets it work, detaches: every call is counted, the code is as before. What spile said."""
    before = Picture(target.pid)
    with Spile(program, pid=target.pid, **options) as tracer:
        check("attached", tracer.wait_attached(), tracer.report())
        target.send_line()
        target.wait_for_line("done$")
        tracer.stop()
        check_left_as_before(before, Picture(target.pid), strict=False)
        target.finish_well()
        check_count("exact", int(tracer.maps().get("@calls", 0)), target.calls(), tracer)
        check_hits_happened(target.calls(), tracer)
        check_no_loss(tracer)
        return "\n".join(tracer.err)


def case_56_removed_by_any_name():
    """The path that it had, a pattern, the library's short name: each means the file that the process runs."""
    for name in ("{work}", "/proc/self/root{work}", "{base}", "spile-case-56-*", "*"):
        for mode in ("deleted", "replaced"):
            with library_user(mode) as target:
                work = work_of(target)
                check_traced(target, count_program([f"{name.format(work=work, base=os.path.basename(work))}:probe_me"]))
    for name, folder in (("./{base}", "/tmp"), ("../tmp/{base}", "/usr"), ("tmp/./{base}", "/")):
        with library_user("deleted") as target:
            check_traced(target, count_program([f"{name.format(base=os.path.basename(work_of(target)))}:probe_me"]), cwd=folder)


def case_56_removed_unprivileged():
    """Without the right to open the file, names and code come from the process's memory, and -v says so."""
    need_root()
    need_tool("setpriv")
    for mode in ("deleted", "replaced"):
        with library_user(mode, preexec_fn=as_nobody) as target:
            said = check_traced(target, count_program([f"{work_of(target)}:probe_me"]), prefix=AS_NOBODY, extra=["-v"])
            check("told", "its file is gone and out of reach" in said, said)


def case_56_removed_restartable_sequence():
    """No section names the restartable sequences of a file that is gone: their descriptors are known by what they hold."""
    need_root()
    need_tool("setpriv")
    for user, prefix in ((None, []), (as_nobody, AS_NOBODY)):
        with library_user("deleted", preexec_fn=user) as target:
            program = count_program([f"{work_of(target)}:probe_me", f"{work_of(target)}:in_restartable_sequence"])
            said = check_traced(target, program, prefix=prefix)
            check("refused", "in_restartable_sequence" in said and "inside a restartable sequence" in said, said)


def case_56_removed_killed_tracer():
    """The journal is borne out by the file or, without the right to open it, by the sealed code region."""
    need_root()
    need_tool("setpriv")
    for user, prefix in ((None, []), (as_nobody, AS_NOBODY)):
        with library_user("deleted", preexec_fn=user) as target:
            before = Picture(target.pid)
            with Spile(count_program([f"{work_of(target)}:probe_me"]), pid=target.pid, prefix=prefix) as tracer:
                check("attached", tracer.wait_attached(), tracer.report())
                kill(tracer)
            check("left-behind", our_mappings(target.pid), "nothing is left: the test says nothing")
            out, _ = spile("detach", "-p", target.pid, prefix=prefix)
            # The other is in the dynamic loader: the library may go and come back.
            check("restored", "2 sites restored" in out, out)
            check_left_as_before(before, Picture(target.pid))
            target.send_line()
            target.wait_for_line("done$")
            target.finish_well()


def case_56_removed_program():
    """The program itself is replaced by its next version, as an upgrade does."""
    need_root()
    need_tool("setpriv")
    for user, prefix in ((None, []), (as_nobody, AS_NOBODY)):
        with tempfile.TemporaryDirectory() as folder:
            os.chmod(folder, 0o755)
            path = os.path.join(folder, "program")
            shutil.copy(target_path("case_46_counter"), path)
            with Target(path, ["--mode", "slow"], wait=True, hold=True, preexec_fn=user) as target:
                os.rename(shutil.copy(target_path("case_53_leader_gone"), path + ".new"), path)
                check_traced(target, count_program([f"{path}:probe_me"]), prefix=prefix)


def case_56_removed_kernel_engine():
    """The kernel's uprobes take the file by the mapping's own name."""
    need_root()
    with library_user("replaced") as target:
        program = count_program([f"{work_of(target)}:probe_me"])
        with Spile(program, pid=target.pid, extra=["--engine", "kernel"]) as tracer:
            if not tracer.wait_attached():
                raise harness.Skip("the kernel engine cannot attach here: " + " ".join(tracer.err[-1:]))
            target.send_line()
            target.wait_for_line("done$")
            tracer.stop()
            target.finish_well()
            check_count("exact", int(tracer.maps().get("@calls", 0)), target.calls(), tracer)


def case_56_new_file_of_the_same_name():
    """The file that has the path now is another one, and has other functions: it is not taken for the mapped one."""
    with library_user("replaced") as target:
        work = work_of(target)
        shutil.copy(target_path("case_46_counter"), work)
        out, _ = spile("-l", f"uprobe:{work}:*probe_me*", "-p", target.pid)
        check("listed", "probe_me_too" not in out and "probe_me" in out, out)
        check_traced(target, count_program([f"{work}:probe_me"]))


# --- 56: libraries that come and go ---------------------------------------------------------------------------------------------


LIBRARY = "libcase_56.so"


def library_is_patched(pid, path=None):
    """Whether the library's code in memory is not that of its file. None: it is not loaded."""
    path = path or target_path(LIBRARY)
    for fields in Picture(pid).maps:
        if len(fields) > 5 and fields[5] == path and "x" in fields[1]:
            begin, end = (int(part, 16) for part in fields[0].split("-"))
            with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory, open(path, "rb") as file:
                memory.seek(begin)
                file.seek(int(fields[2], 16))
                return memory.read(end - begin) != file.read(end - begin).ljust(end - begin, b"\0")
    return None


def wait_until(condition, what, seconds=5):
    end = time.monotonic() + seconds * SLOWNESS
    while not condition():
        check("in-time", time.monotonic() < end, f"{what}: did not happen in {seconds} s")
        time.sleep(0.005)


def step(target, name):
    """The target's next halt; it has printed how many calls it has made."""
    halts = lambda: [line for line in target.out if " calls=" in line]
    seen = getattr(target, "halts_seen", 0)
    wait_until(lambda: len(halts()) > seen or not target.alive(), f"the target's halt '{name}'", 20)
    check("halt", len(halts()) > seen and halts()[seen].startswith(name), f"{name} is not the halt\n{target.report()}")
    target.halts_seen = seen + 1
    return int(halts()[seen].rsplit("=", 1)[1])


def late_program():
    path = target_path(LIBRARY)
    return f"uprobe:{path}:probe_me {{ @calls = count(); @sum = sum(arg0); }} uretprobe:{path}:probe_me {{ @returns = count(); }}"


def case_56_loaded_when_it_comes():
    """Loaded after the attach, unloaded, loaded again to the same place, then to another while something else is in the old one:
    each time every call is counted from the moment the jump is there, in the same maps; what took the old place is not touched."""
    with library_user("steps") as target:
        before = Picture(target.pid)
        with Spile(late_program(), pid=target.pid, extra=["-v"]) as tracer:
            check("attached", tracer.wait_attached(), tracer.report())
            target.send_line()
            for _ in range(4):
                step(target, "loaded")
                wait_until(lambda: library_is_patched(target.pid), "the library's probes")
                target.send_line()
                step(target, "worked")
                target.send_line()
                step(target, "unloaded")
                target.send_line()
            target.wait_for_line("done$")
            tracer.stop()
            said = "\n".join(tracer.err)
            check("told", f"does not have {target_path(LIBRARY)} loaded" in said, said)
            # Who loads it waits for the probes, so nothing is missed; if it did not wait long enough both are told.
            check("missed-calls-told", "in no figure" not in said or "did not wait longer" in said, said)
            check("nothing-foreign", "changed by somebody else" not in "\n".join(tracer.err), tracer.report())
            check_left_as_before(before, Picture(target.pid), strict=False)
            check("no-mapping-left", not our_mappings(target.pid), tracer.report())
            target.finish_well()
            check_count("exact", int(tracer.maps().get("@calls", 0)), target.calls(), tracer)
            check_count("exact", int(tracer.maps().get("@returns", 0)), target.calls(), tracer)
            check("values", tracer.maps()["@sum"] == 4 * sum(range(100)), str(tracer.maps()))


AT_ONCE = "libcase_56_at_once.so"
CALLS_OF_A_LOAD = 1000 + 10  # the constructor's are before dlopen returns


def at_once_program():
    path = target_path(AT_ONCE)
    return (f"uprobe:{path}:probe_me {{ @calls[arg0] = count(); }} "
            f"uretprobe:{path}:probe_me {{ @returns[(retval - 5) / 11] = count(); }}")


def check_loads(tracer, loads):
    """Each load's calls are counted whole, or spile has said that its thread did not wait for the probes."""
    said, maps = "\n".join(tracer.err), tracer.maps()
    told = sum(map(int, re.findall(r"(\d+) times a thread that had loaded", said))) + said.count("until the next look")
    for name in ("@calls", "@returns"):
        counts = {load: int(count) for load, count in maps.get(name, {}).items()}
        whole = sum(counts.get(str(load), 0) == CALLS_OF_A_LOAD for load in range(loads))
        check("exact-or-told", whole > 0 and whole + told >= loads, f"{name}: {whole} of {loads} loads whole, {told} told\n{maps}\n{said}")
        check("exact-count", max(counts.values()) <= CALLS_OF_A_LOAD, f"{name}: {maps}")
    check_no_loss(tracer)
    print(f"  {whole} of {loads} loads counted whole, {told} told of")


def case_56_calls_at_once():
    """A thread that loads a library waits until its probes are set: every call is counted, those of constructors too. The library
    comes back to its place and to others; beside it threads fork and send signals, and children load it themselves."""
    path = target_path("case_56_text_mappings")
    for mode, loads in (("at_once", 40), ("at_once_beside", 15)):
        with Target(path, ["--mode", mode], rounds=loads, wait=True, hold=True) as target:
            before = Picture(target.pid)
            with Spile(at_once_program(), pid=target.pid) as tracer:
                check("attached", tracer.wait_attached(), tracer.report())
                wait_until(lambda: "it waits until the probes are set" in "\n".join(tracer.err), "what it says of a file that is not loaded")
                target.send_line()
                target.wait_for_line("done$")
                tracer.stop()
                check_left_as_before(before, Picture(target.pid), strict=False)
                check("no-mapping-left", not our_mappings(target.pid), tracer.report())
                target.finish_well()
                check_count("exact", CALLS_OF_A_LOAD * loads, target.calls(), tracer)
                check_loads(tracer, loads)
    with Spile(at_once_program(), command=f"{path} --mode at_once --rounds 10") as tracer:
        tracer.finish()
        check("exit-success", "EXIT-SUCCESS" in tracer.out, tracer.report())
        check_loads(tracer, 10)


def case_56_tracer_stopped_while_it_waits():
    """Nobody answers: the load goes on after a while, and so do the next ones without waiting. A tracer that comes back says so,
    and sets its probes; of one that is dead nothing holds the program up."""
    for end in (signal.SIGCONT, signal.SIGKILL):
        with library_user("steps") as target:
            before = Picture(target.pid)
            with Spile(late_program(), pid=target.pid) as tracer:
                check("attached", tracer.wait_attached(), tracer.report())
                tracer.send(signal.SIGSTOP)
                target.send_line()
                step(target, "loaded")
                tracer.send(end)
                if end == signal.SIGCONT:
                    wait_until(lambda: library_is_patched(target.pid), "the library's probes")
                    wait_until(lambda: "did not wait longer for its probes" in "\n".join(tracer.err), "what it says of that")
                else:
                    kill(tracer)
                    check("text-unchanged", not library_is_patched(target.pid), "nobody should have set probes")
                for name in (["loaded", "worked", "unloaded"] * 4)[1:]:
                    target.send_line()
                    step(target, name)
                target.send_line()
                target.wait_for_line("done$")
                if end == signal.SIGCONT:
                    tracer.stop()
                    check_hits_happened(int(tracer.maps()["@calls"]), tracer)
            if end == signal.SIGKILL:
                spile("detach", "-p", target.pid)
            check_left_as_before(before, Picture(target.pid), strict=False)
            check("no-mapping-left", not our_mappings(target.pid), tracer.report())
            target.finish_well()


def case_56_unloaded_before_detach():
    """Probes set while it was loaded; at the end of the trace something else has its place, and keeps every byte."""
    with library_user("steps") as target:
        target.send_line()
        for _ in range(1):
            for name in ("loaded", "worked", "unloaded"):
                step(target, name)
                target.send_line()
        step(target, "loaded")
        with Spile(late_program(), pid=target.pid) as tracer:
            check("attached", tracer.wait_attached(), tracer.report())
            check("patched", library_is_patched(target.pid), tracer.report())
            target.send_line()
            calls = step(target, "worked")
            target.send_line()
            step(target, "unloaded")
            tracer.send(signal.SIGSTOP)  # it does not see what comes now before it detaches
            target.send_line()
            step(target, "loaded")
            tracer.send(signal.SIGINT)
            tracer.send(signal.SIGCONT)
            check("clean-stop", tracer.finish() == 0, tracer.report())
            check("nothing-foreign", "changed by somebody else" not in "\n".join(tracer.err), tracer.report())
            check_count("exact", int(tracer.maps().get("@calls", 0)), calls - 100, tracer)
        for name in ("worked", "unloaded", "loaded", "worked", "unloaded"):
            target.send_line()
            step(target, name)
        target.send_line()
        target.wait_for_line("done$")
        check("no-mapping-left", not our_mappings(target.pid), tracer.report())
        target.finish_well()


def case_56_loaded_late_killed_tracer():
    """The journal knows the later sites too: `spile detach` takes them out, and what was unloaded is no news."""
    for unload_first in (False, True):
        with library_user("steps") as target:
            with Spile(late_program(), pid=target.pid) as tracer:
                check("attached", tracer.wait_attached(), tracer.report())
                target.send_line()
                step(target, "loaded")
                wait_until(lambda: library_is_patched(target.pid), "the library's probes")
                kill(tracer)
            target.send_line()
            step(target, "worked")
            if unload_first:
                target.send_line()
                step(target, "unloaded")
            check("left-behind", any("/memfd:spile-late" in line for line in our_mappings(target.pid)), "nothing is left")
            out, err = spile("detach", "-p", target.pid)
            # One is in the dynamic loader.
            check("restored", ("1 sites" in out) == unload_first and "does not hold up" not in err, out + err)
            check("restored", not library_is_patched(target.pid) and not our_mappings(target.pid), out)
            for name in (["loaded", "worked", "unloaded"] * 4)[3 if unload_first else 2:]:
                target.send_line()
                step(target, name)
            target.send_line()
            target.wait_for_line("done$")
            target.finish_well()


def case_56_loaded_late_killed_at_each_step():
    """The tracer dies while it sets the probes of a library that has just come."""
    killed = 0
    for number in range(24, 110, 4):
        with library_user("steps") as target:
            environment = dict(os.environ, SPILE_KILL_AT_STEP=str(number))
            with Spile(late_program(), pid=target.pid, env=environment) as tracer:
                if tracer.wait_attached():
                    target.send_line()
                    step(target, "loaded")
                    wait_until(lambda: library_is_patched(target.pid) or not tracer.alive(), "probes, or the end of the tracer")
                    killed += not tracer.alive()
                    kill(tracer)
                else:
                    target.send_line()
                    step(target, "loaded")
            spile("detach", "-p", target.pid)
            check("target-survives", target.alive(), f"step {number}\n{target.report()}")
            check("text-unchanged", library_is_patched(target.pid) is False, f"step {number}")
            check("no-mapping-left", not our_mappings(target.pid), f"step {number}")
            for name in (["loaded", "worked", "unloaded"] * 4)[1:]:
                target.send_line()
                step(target, name)
            target.send_line()
            target.wait_for_line("done$")
            target.finish_well()
    check("hits-happened", killed >= 1, f"only {killed} kills while probes were set in the library")
    print(f"  {killed} kills")


def children_of(target):
    line = next(line for line in target.out if line.startswith("children="))
    return list(map(int, line[len("children="):].split()))


def let_end(target, names):
    for name in names:
        target.send_line()
        step(target, name)
    target.send_line()
    target.wait_for_line("done$")
    target.finish_well()


def trace_forks(target, tracer, until):
    """Lets the parent load, work and fork, unload and load again, as far as `until`."""
    check("attached", tracer.wait_attached(), tracer.report())
    target.send_line()
    step(target, "loaded")
    wait_until(lambda: library_is_patched(target.pid), "the library's probes")
    target.send_line()
    step(target, "worked")
    first, second = children_of(target)
    check("inherited", library_is_patched(second) and our_mappings(second) and our_mappings(first),
          "the children have nothing of ours: the test says nothing")
    if until == "worked":
        return first, second, 100
    target.send_line()
    step(target, "reloaded")
    wait_until(lambda: library_is_patched(target.pid), "the library's probes, again")
    target.send_line()
    return first, second, step(target, "ended")


def case_56_loaded_late_forked_children():
    """A child from before the library has none of the later mappings, and memory of its own there; one from after has all of
    them, and keeps the library when the parent unloads it and loads it anew. Both are cleaned with the parent."""
    for until, rest in (("worked", ["reloaded", "ended"]), ("ended", [])):
        with library_user("forks") as target:
            with Spile(late_program(), pid=target.pid) as tracer:
                first, second, calls = trace_forks(target, tracer, until)
                tracer.stop()
                check_count("exact", int(tracer.maps().get("@calls", 0)), calls, tracer)
            check("nothing-foreign", "changed by somebody else" not in "\n".join(tracer.err), tracer.report())
            for child in (first, second):
                check("no-mapping-left", not our_mappings(child), f"child {child}, {until}\n{tracer.report()}")
            check("text-unchanged", library_is_patched(second) is False, "the second child's library")
            let_end(target, rest)


def case_56_loaded_late_forked_children_killed_tracer():
    """The journal of the parent is used for a child only where it explains all of our jumps there; its own pid does it."""
    for until, rest in (("worked", ["reloaded", "ended"]), ("ended", [])):
        with library_user("forks") as target:
            with Spile(late_program(), pid=target.pid) as tracer:
                first, second, _ = trace_forks(target, tracer, until)
                kill(tracer)
            out, err = spile("detach", "-p", target.pid)
            check("no-mapping-left", not our_mappings(target.pid), out + err)
            kept = bool(our_mappings(second))
            check("all-or-nothing", kept == library_is_patched(second), f"the second child, {until}\n{out}{err}")
            check("told", not kept or str(second) in err, err)
            for child in (first, second):
                spile("detach", "-p", child)
                check("no-mapping-left", not our_mappings(child), f"child {child}, {until}")
            check("text-unchanged", library_is_patched(second) is False, "the second child's library")
            let_end(target, rest)


TRACEPOINT_LIBRARY = r"""
#define _SDT_HAS_SEMAPHORES 1
#include <sys/sdt.h>
__attribute__((section(".probes"), used)) unsigned short late_hit_semaphore;
int up(void) { return late_hit_semaphore; }
void work(int n) {
  for (int i = 0; i < n; i++)
    if (__builtin_expect(late_hit_semaphore, 0)) STAP_PROBE1(late, hit, i);
}
"""
TRACEPOINT_USER = """
import _ctypes, ctypes, sys
library = None
for line in sys.stdin:
    word, value = line.split()
    if word == "load":
        library = ctypes.CDLL(value)
    elif word == "unload":
        _ctypes.dlclose(library._handle)
    elif word == "work":
        library.work(int(value))
    print(word, library.up() if word in ("up", "work") else "", flush=True)
"""


def case_56_tracepoints_loaded_late():
    """The counter of a static tracepoint goes up when its library comes, each time anew, and down at the end."""
    compiler = need_tool("cc")
    with tempfile.TemporaryDirectory() as folder:
        library = os.path.join(folder, "liblate.so")
        source = os.path.join(folder, "late.c")
        with open(source, "w", encoding="utf-8") as file:
            file.write(TRACEPOINT_LIBRARY)
        if subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source], check=False, capture_output=True).returncode != 0:
            raise harness.Skip("needs <sys/sdt.h>")
        with Process([sys.executable, "-c", TRACEPOINT_USER]) as user:
            def ask(words):
                answers = len(user.out)
                user.process.stdin.write(words + "\n")
                user.process.stdin.flush()
                wait_until(lambda: len(user.out) > answers or not user.alive(), words)
                check("target-survives", user.alive(), user.report())
                return user.out[-1].split()[-1]
            with Spile(f"usdt:{library}:late:hit {{ @calls = count(); @sum = sum(arg0); }}", pid=user.pid) as tracer:
                check("attached", tracer.wait_attached(), tracer.report())
                for _ in range(3):
                    ask(f"load {library}")
                    wait_until(lambda: ask("up 0") == "1", "the counter")
                    ask("work 100")
                    ask("unload 0")
                ask(f"load {library}")
                wait_until(lambda: ask("up 0") == "1", "the counter")
                tracer.stop()
                check("lowered", ask("up 0") == "0", user.report())
                check("counted", tracer.maps() == {"@calls": 300, "@sum": 3 * sum(range(100))}, f"{tracer.maps()}\n{tracer.report()}")
            check("no-mapping-left", not our_mappings(user.pid), user.report())


READER_LIBRARY = 'const char text[] = "a word of the library";\n'
READER = r"""
#include <dlfcn.h>
#include <stdio.h>
__attribute__((noinline)) int probe_me(const char* text) { __asm__ volatile("" : : "r"(text) : "memory"); return 1; }
int main(int argc, char** argv) {
  void* library = dlopen(argv[1], RTLD_NOW);
  const char* text = dlsym(library, "text");
  printf("ready\n");
  fflush(stdout);
  getchar();
  for (int i = 0; i < 5; i++) probe_me(text);
  dlclose(library);
  for (int i = 0; i < 7; i++) probe_me(text);
  printf("EXIT-SUCCESS\n");
  return argc == 0;
}
"""


def case_56_reads_of_what_was_unloaded():
    """A probe reads constant data of a library through a pointer that the program keeps longer than the library."""
    compiler = need_tool("cc")
    with tempfile.TemporaryDirectory() as folder:
        library, program = os.path.join(folder, "libtext.so"), os.path.join(folder, "reader")
        for text, output, flags in ((READER_LIBRARY, library, ["-shared", "-fPIC"]), (READER, program, ["-ldl"])):
            built = subprocess.run([compiler, "-O1", "-x", "c", "-", "-o", output, *flags], input=text, text=True, check=False, capture_output=True)
            check("built", built.returncode == 0, built.stderr)
        with Process([program, library]) as reader:
            wait_until(lambda: reader.out, "ready")
            with Spile(f"uprobe:{program}:probe_me {{ @[str(arg0)] = count(); }}", pid=reader.pid) as tracer:
                check("attached", tracer.wait_attached(), tracer.report())
                reader.process.stdin.write("\n")
                reader.process.stdin.flush()
                check("target-survives", reader.finish(20) == 0 and "EXIT-SUCCESS" in reader.out, reader.report())
                tracer.finish()
                counted = tracer.maps()["@"]
                check("counted", counted.get("a word of the library") == 5 and sum(counted.values()) == 12, f"{counted}\n{tracer.report()}")


MANY = 600  # functions: as many jumps, and the site table has an entry for each
LIBRARY_USER = """
import _ctypes, ctypes, os, sys
library, ends = None, []
for line in sys.stdin:
    word, value = line.split()
    if word == "load":
        library = ctypes.CDLL(value)
    elif word == "unload":
        _ctypes.dlclose(library._handle)
    elif word == "leave":  # and something else takes its place: it comes back to another
        places = [l.split()[0].split("-") for l in open("/proc/self/maps") if "/libmany.so" in l]
        first, last = int(places[0][0], 16), int(places[-1][1], 16)
        _ctypes.dlclose(library._handle)
        mmap = ctypes.CDLL(None).mmap
        mmap.restype, mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        assert mmap(first, last - first, 0, 0x100022, -1, 0) == first  # private, anonymous, there or not at all
    elif word == "work":
        library.work()
    elif word == "fork":
        out, end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(end)
            os.read(out, 1)
            library.work()
            os._exit(0)
        ends.append(end)
    elif word == "end":
        os.close(ends.pop())
        assert os.waitpid(child, 0)[1] == 0
    print(word, child if word == "fork" else "", flush=True)
"""


class LibraryUser(Process):
    """A process that loads a library of MANY functions, calls each of them, unloads it, and forks, as it is told to."""

    def __init__(self, folder):
        self.path = os.path.join(folder, "libmany.so")
        self.build(self.path)
        super().__init__([sys.executable, "-c", LIBRARY_USER])
        self.ask(f"load {self.path}")

    @staticmethod
    def build(path, first=""):
        """`first`: an instruction that each function begins with."""
        with open(path + ".c", "w", encoding="utf-8") as file:
            for i in range(MANY):
                file.write(f"__attribute__((noinline)) long many_{i}(long x) {{ __asm__ volatile(\"{first}\"); return x * {i + 3} + {i}; }}\n")
            file.write("void work(void) {\n" + "".join(f"  if (many_{i}(1) != {2 * i + 3}) __builtin_trap();\n" for i in range(MANY)) + "}\n")
        subprocess.run([need_tool("cc"), "-O1", "-fno-ipa-pure-const", "-fno-ipa-cp", "-fno-ipa-ra", "-shared", "-fPIC", "-o", path, path + ".c"],
                       check=True)

    def ask(self, words):
        answers = len(self.out)
        self.process.stdin.write(words + "\n")
        self.process.stdin.flush()
        wait_until(lambda: len(self.out) > answers or not self.alive(), words, 20)
        check("target-survives", self.alive(), self.report())
        return self.out[-1].split()[-1]

    def wait_until_patched(self):
        wait_until(lambda: library_is_patched(self.pid, self.path), "the library's probes", 20)


def case_56_reloaded_with_many_probes():
    """The site table's entries of a library that has gone are used again: it comes back as often as it likes."""
    with tempfile.TemporaryDirectory() as folder, LibraryUser(folder) as user:
        with Spile(f"uprobe:{user.path}:many_* {{ @calls = count(); }}", pid=user.pid) as tracer:
            check("attached", tracer.wait_attached(), tracer.report())
            rounds = 14
            for number in range(rounds):
                user.wait_until_patched()
                user.ask("work 0")
                user.ask("leave 0" if number % 7 else "unload 0")
                if number < rounds - 1:
                    user.ask(f"load {user.path}")
            tracer.stop()
            check_count("exact", int(tracer.maps().get("@calls", 0)), rounds * MANY, tracer)
            check("nothing-foreign", "changed by somebody else" not in "\n".join(tracer.err), tracer.report())
        check("no-mapping-left", not our_mappings(user.pid), tracer.report())


def case_56_rewritten_in_its_place():
    """The same file with another content: what was planned for the first says nothing about the second."""
    with tempfile.TemporaryDirectory() as folder, LibraryUser(folder) as user:
        user.build(os.path.join(folder, "other.so"), "nop")
        with Spile(f"uprobe:{user.path}:many_* {{ @calls = count(); }}", pid=user.pid) as tracer:
            check("attached", tracer.wait_attached(), tracer.report())
            user.ask("work 0")
            user.ask("unload 0")
            shutil.copyfile(os.path.join(folder, "other.so"), user.path)
            user.ask(f"load {user.path}")
            user.wait_until_patched()
            user.ask("work 0")
            tracer.stop()
            check_count("exact", int(tracer.maps().get("@calls", 0)), 2 * MANY, tracer)
        check("no-mapping-left", not our_mappings(user.pid), tracer.report())
        check("text-unchanged", library_is_patched(user.pid, user.path) is False, tracer.report())


TRADING_LIBRARY = r"""
__attribute__((noinline)) long lf(long n) { if (n <= 0) return 0; long r = lf(n - 1); __asm__ volatile(""); return r + 1; }
__attribute__((constructor)) static void begin(void) { lf(2); }
__attribute__((destructor)) static void end(void) { lf(1); }
"""
TRADING_PROGRAM = r"""
#include <dlfcn.h>
static long use(const char* name) {
  void* library = dlopen(name, RTLD_NOW);
  long (*lf)(long) = (long (*)(long))dlsym(library, "lf");
  long r = lf(3);
  dlclose(library);
  return r;
}
int main(int argc, char** argv) {
  for (int i = 0; i < 10; i++) {
    void* held = dlopen(argv[1 + i % 2], RTLD_NOW);
    if (!held || use(argv[2 - i % 2]) != 3) return 1;
    dlclose(held);
  }
  return argc == 3 ? 0 : 1;
}
"""


def case_56_libraries_trade_places():
    """Two libraries come to each other's places: sites that make room for others are where they were when they are written again."""
    compiler = need_tool("cc")
    with tempfile.TemporaryDirectory() as folder:
        names = [os.path.join(folder, name) for name in ("libone.so", "libtwo.so", "trade")]
        for name, text, flags in ((names[0], TRADING_LIBRARY, ["-shared", "-fPIC"]), (names[2], TRADING_PROGRAM, [])):
            with open(name + ".c", "w", encoding="utf-8") as file:
                file.write(text)
            subprocess.run([compiler, "-O1", "-foptimize-sibling-calls", *flags, "-o", name, name + ".c", "-ldl"], check=True)
        shutil.copyfile(names[0], names[1])
        command = " ".join([names[2], names[0], names[1]])
        with Spile(f"uretprobe:{folder}/lib*.so:lf {{ @returns = count(); }}", command=command) as tracer:
            status = tracer.finish()
            check("target-survives", status == 0, tracer.report())
            in_vain = "did not wait" in "\n".join(tracer.err)
            returns = int(tracer.maps().get("@returns", 0))
            check("exact-or-told", returns == 140 or (in_vain and 0 < returns < 140), f"{returns}\n{tracer.report()}")


def case_56_reloaded_while_a_child_has_it():
    """A child has the library, and its jumps, that its parent has unloaded: the entries stay until it is cleaned."""
    with tempfile.TemporaryDirectory() as folder, LibraryUser(folder) as user:
        with Spile(f"uprobe:{user.path}:many_* {{ @calls = count(); }}", pid=user.pid) as tracer:
            check("attached", tracer.wait_attached(), tracer.report())
            child = int(user.ask("fork 0"))
            check("inherited", library_is_patched(child, user.path), "the child has no jumps: the test says nothing")
            full = lambda: "may still have libraries" in "\n".join(tracer.err)
            for _ in range(14):
                user.ask("leave 0")
                user.ask(f"load {user.path}")
                wait_until(lambda: full() or library_is_patched(user.pid, user.path), "the library's probes", 20)
            check("told", full(), tracer.report())
            tracer.stop()
        check("text-unchanged", library_is_patched(child, user.path) is False, f"the child's library\n{tracer.report()}")
        for pid in (child, user.pid):
            check("no-mapping-left", not our_mappings(pid), tracer.report())
        user.ask("end 0")


UNBOUND_LIBRARY = r"""
#define _GNU_SOURCE
#include <stdlib.h>
#define APART __attribute__((noinline, noclone))
APART long ends_elsewhere(long n) { __asm__ volatile(""); return labs(n - 5); }
static long one(long n) { __asm__ volatile(""); return n + 1; }
static long (*choose(void))(long) { return one; }
long chosen(long n) __attribute__((ifunc("choose")));
long work(long n) {
  long sum = 0;
  for (long i = 0; i < n; i++) sum += ends_elsewhere(i) + chosen(i);
  return sum;
}
"""


def case_56_not_bound_when_it_comes():
    """The loader tells before it has filled in a library's words: tail jumps to other libraries are followed by name, lazily bound or
    not, and each return is told from the first on; what an IFUNC stands for is known a look later."""
    compiler = need_tool("cc")
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "unbound.c")
        with open(source, "w", encoding="utf-8") as file:
            file.write(UNBOUND_LIBRARY)
        for name, flags in (("lazy", ["-Wl,-z,lazy"]), ("now", ["-Wl,-z,now"]), ("noplt", ["-fno-plt"])):
            library = os.path.join(folder, f"lib{name}.so")
            subprocess.run([compiler, "-O2", "-fno-builtin", "-shared", "-fPIC", *flags, "-o", library, source], check=True)
            with Process([sys.executable, "-c", TRACEPOINT_USER.replace("library.up()", "0")]) as user:
                def ask(words):
                    answers = len(user.out)
                    user.process.stdin.write(words + "\n")
                    user.process.stdin.flush()
                    wait_until(lambda: len(user.out) > answers or not user.alive(), words)
                    check("target-survives", user.alive(), user.report())
                program = (f"uretprobe:{library}:ends_elsewhere {{ @returns = count(); }} uprobe:{library}:chosen {{ @chosen = count(); }} "
                           "interval:ms:5 { print(@chosen); }")
                with Spile(program, pid=user.pid) as tracer:
                    check("attached", tracer.wait_attached(), tracer.report())
                    ask(f"load {library}")
                    ask("work 500")
                    calls, end = 500, time.monotonic() + 20 * SLOWNESS
                    while int(tracer.maps().get("@chosen", 0)) == 0:
                        check("in-time", time.monotonic() < end, f"{name}: the IFUNC is never probed\n{tracer.report()}")
                        ask("work 1")
                        calls += 1
                        time.sleep(0.01)
                    ask("work 500")
                    calls += 500
                    tracer.stop()
                    told = int(tracer.maps().get("@returns", 0))
                    waited = "did not wait longer" in "\n".join(tracer.err)
                    check("exact-or-told", told == calls or (waited and 500 < told), f"{name}: {told} of {calls} returns\n{tracer.report()}")
                    check("exact-count", int(tracer.maps()["@chosen"]) >= 500, f"{tracer.maps()}")
                    check("no-refusal", "not probed" not in "\n".join(tracer.err), tracer.report())


REWRITTEN_LIBRARY = r"""
#define APART __attribute__((noinline, noclone))
APART long ONE(long n) { __asm__ volatile(""); return n + 1; }
APART long OTHER(long n) { __asm__ volatile(""); return n + 1; }
void work(void) {
  for (long i = 0; i < 100; i++) probed(i);
  for (long i = 0; i < 250; i++) unprobed(i);
}
"""


def code_places(pid, path):
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        return [line.split()[0] for line in maps if path in line]


def case_56_rewritten_in_place():
    """Another build comes back in the same file at the same place, with the same bytes where the probe was: now they are of another
    function. The probe goes where its function is."""
    compiler = need_tool("cc")
    with tempfile.TemporaryDirectory() as folder:
        library, source, builds = os.path.join(folder, "libmany.so"), os.path.join(folder, "rewritten.c"), []
        with open(source, "w", encoding="utf-8") as file:
            file.write("long probed(long), unprobed(long);\n" + REWRITTEN_LIBRARY)
        for one, other in (("probed", "unprobed"), ("unprobed", "probed")):
            subprocess.run([compiler, "-O2", "-fno-toplevel-reorder", "-fno-ipa-icf", "-shared", "-fPIC", "-Wl,--build-id", f"-DONE={one}",
                            f"-DOTHER={other}", "-o", library, source], check=True)
            with open(library, "rb") as file:
                builds.append(file.read())
        check("as-meant", len(builds[0]) == len(builds[1]) and builds[0] != builds[1], "the builds differ in size")

        def write(build):
            with open(library, "r+b") as file:  # the same inode
                file.write(build)

        write(builds[0])
        with Process([sys.executable, "-c", LIBRARY_USER]) as user:
            def ask(words):
                answers = len(user.out)
                user.process.stdin.write(words + "\n")
                user.process.stdin.flush()
                wait_until(lambda: len(user.out) > answers or not user.alive(), words, 20)
                check("target-survives", user.alive(), user.report())
            ask(f"load {library}")
            places = code_places(user.pid, library)
            with Spile(f"uprobe:{library}:probed {{ @calls = count(); }}", pid=user.pid) as tracer:
                check("attached", tracer.wait_attached(), tracer.report())
                rounds = 4
                for number in range(1, rounds + 1):
                    ask("work 0")
                    ask("unload 0")
                    write(builds[number % 2])
                    ask(f"load {library}")
                    check("same-place", code_places(user.pid, library) == places, "it came to another place: the test says nothing")
                    wait_until(lambda: library_is_patched(user.pid, library), "the library's probe", 20)
                ask("work 0")
                tracer.stop()
                check_count("exact", int(tracer.maps().get("@calls", 0)), (rounds + 1) * 100, tracer)
            check("no-mapping-left", not our_mappings(user.pid), tracer.report())


NO_ROOM_LIBRARY = r"""
#define _GNU_SOURCE
#include <sys/resource.h>
static long one(long n) { __asm__ volatile(""); return n + 1; }
static long (*choose(void))(long) { return one; }
long chosen(long n) __attribute__((ifunc("choose")));
long work(long n) { return chosen(n); }
__attribute__((constructor)) static void no_more_memory(void) {
  struct rlimit limit;
  getrlimit(RLIMIT_AS, &limit);
  limit.rlim_cur = 0;  // what is mapped stays
  setrlimit(RLIMIT_AS, &limit);
}
"""
NO_ROOM_USER = r"""
#include <dlfcn.h>
#include <stdio.h>
int main(int argc, char **argv) {
  char line[64];
  puts("ready");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    if (line[0] == 'l' && !dlopen(argv[1], RTLD_NOW)) return 1;
    if (argc == 2) puts("done");
    fflush(stdout);
  }
  return 0;
}
"""


def case_56_no_room_when_tried_again():
    """A probe that had to wait until the loader had filled in its library's words, and then cannot be set: the user is told why."""
    compiler = need_tool("cc")
    with tempfile.TemporaryDirectory() as folder:
        library, program = os.path.join(folder, "libnoroom.so"), os.path.join(folder, "user")
        for text, output, flags in ((NO_ROOM_LIBRARY, library, ["-shared", "-fPIC"]), (NO_ROOM_USER, program, [])):
            with open(output + ".c", "w", encoding="utf-8") as file:
                file.write(text)
            subprocess.run([compiler, "-O2", *flags, "-o", output, output + ".c", "-ldl"], check=True)
        with Process([program, library]) as user:
            wait_until(lambda: "ready" in user.out, "the program")
            with Spile(f"uprobe:{library}:chosen {{ @calls = count(); }}", pid=user.pid) as tracer:
                check("attached", tracer.wait_attached(), tracer.report())
                user.process.stdin.write("load\n")
                user.process.stdin.flush()
                wait_until(lambda: "done" in user.out or not user.alive(), "the library", 20)
                check("target-survives", user.alive(), user.report())
                wait_until(lambda: "RLIMIT_AS" in "\n".join(tracer.err), f"a word on the probe\n{tracer.report()}", 20)
                told = [line for line in tracer.err if "RLIMIT_AS" in line]
                check("told-once", len(told) == 1 and "libnoroom.so" in told[0], tracer.report())
                tracer.stop()
            check("target-survives", user.alive(), user.report())
            check("no-mapping-left", not our_mappings(user.pid), tracer.report())


def case_56_never_loaded():
    """A dynamic program is told so and traced on; a static one is refused: it will never load the file."""
    program = count_program([f"{target_path(LIBRARY)}:probe_me"])
    with Target(target_path("case_46_counter"), ["--mode", "slow"], wait=True, hold=True) as target:
        with Spile(program, pid=target.pid) as tracer:
            check("attached", tracer.wait_attached(), tracer.report())
            target.send_line()
            target.wait_for_line("done$")
            tracer.stop()
            check("told", "does not have" in "\n".join(tracer.err), tracer.report())
        check("no-mapping-left", not our_mappings(target.pid), tracer.report())
        target.finish_well()
    with Target(target_path("variant_static"), wait=True) as target:
        with Spile(program, pid=target.pid) as tracer:
            check("refused", not tracer.wait_attached(), tracer.report())
            harness.check_refused_in_words(tracer, "static program")
        target.send_line()
        target.finish_well()


CASES = {name: function for name, function in globals().items() if name.startswith("case_") and callable(function)}


def run(name):
    need_spile()
    CASES[name]()


if __name__ == "__main__":
    if sys.argv[1] == "--list":
        print("\n".join(CASES))
    else:
        harness.main(lambda: run(sys.argv[1]))
