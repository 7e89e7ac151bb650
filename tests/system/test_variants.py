#!/usr/bin/env python3
"""Every kind of binary, and programs in namespaces and of another user, traced the same way: exact counts."""
import os
import re
import shutil
import signal

from harness import (SPILE, Picture, Process, Spile, Target, check, check_exit_success, check_left_as_before,
                     check_no_loss, check_text_unchanged, count_program, calls_of, need_root, need_tool, target_path)
from tracing import NOBODY, check_status, main, public_copy, run, scalar, temporary_directory, wait_until

ROUNDS = 5000  # of variants.c, each calls each function at least once


def traced_while_it_runs(command, probes, pid_of=lambda target: target.pid, same_mappings=True, restarted=0.0):
    """Attach before the work, detach after it, and compare: counts with the target's own, the process with itself."""
    with Target(command[0], command[1:], wait=True, hold=True) as target:
        pid = pid_of(target)
        before = Picture(pid)
        with Spile(count_program([probes]), pid=pid) as spile:
            check("attached", spile.wait_attached(), spile.report())
            target.send_line()
            target.wait_for_line("done$")
            spile.stop()
            # Go leaves old signal frames on its signal stacks: where one held an address in our code, the code has to stay.
            stays = not same_mappings and re.search(rf"stays mapped.*spile detach -p {pid}", "\n".join(spile.err))
            if stays:
                check_text_unchanged(before, Picture(pid))
            else:
                check_left_as_before(before, Picture(pid), strict=same_mappings)
            target.finish_well()
            check_calls(spile, target.calls(), restarted)


def check_calls(spile, calls, restarted=0.0):
    """Exact; less the calls of a function that spile says it left out: a lone `ret` beside the next function (case 4)."""
    counted = int(spile.maps()["@calls"])
    refused = re.findall(r"not probed: .*:(\w+) at 0x[0-9a-f]+: (.*)", "\n".join(spile.err))
    beside = {"probe_me_nothing": "byte", "probe_me_array": "overlaps that of another probe"}
    allowed = len(refused) <= 1 and all(beside.get(name, "never") in reason for name, reason in refused)
    check("refusal-in-words", allowed, str(refused))
    calls -= len(refused) * ROUNDS
    check("exact-count", calls <= counted <= calls * (1 + restarted), f"{counted}, must be {calls}\n{spile.report()}")
    check_no_loss(spile)


def traced_from_its_start(path):
    with Spile(count_program([f"{path}:probe_me*"]), command=path) as spile:
        status = spile.finish()
        check_exit_success(status, spile)
        check_calls(spile, calls_of(spile.out, spile))


def both(name):
    def case():
        path = target_path(name)
        traced_while_it_runs([path], f"{path}:probe_me*")
        traced_from_its_start(path)
    case.__name__ = name
    return case


def go_growing_stacks():
    """Goroutines start with 2 to 8 KiB and have their stacks copied while they recurse through the probe."""
    path = target_path("go_growing_stacks")
    # The runtime starts a function over after it has grown the stack: its first instruction runs, and hits, once more.
    traced_while_it_runs([path], f"{path}:main.probe_me", same_mappings=False, restarted=0.05)


# --- a container of another libc ------------------------------------------------------------------------------


def only_child_of(pid):
    """The program that `unshare --fork` started, by its pid out here."""
    def children():
        with open(f"/proc/{pid}/task/{pid}/children", encoding="utf-8") as file:
            return file.read().split()
    wait_until(children, "a child of unshare")
    return int(children()[0])


def musl_in_namespaces_of_its_own():
    """Its path means something only in its own mount namespace, its pid is 1 there, its root is nobody here."""
    need_root()
    need_tool("unshare")
    source = target_path("variant_musl_static")
    with temporary_directory() as directory:
        root = os.path.join(directory, "root")
        os.makedirs(f"{root}/opt")
        shutil.copy(source, f"{root}/opt/service")
        command = ["unshare", "--mount", "--pid", "--fork", "--user", "--map-root-user", "--root", root, "/opt/service"]
        traced_while_it_runs(command, "/opt/service:probe_me*", lambda target: only_child_of(target.pid))


def dynamic_musl_in_namespaces_of_its_own():
    need_root()
    path = target_path("variant_musl")
    command = [need_tool("unshare"), "--mount", "--pid", "--fork", "--user", "--map-root-user", path]
    traced_while_it_runs(command, f"{path}:probe_me*", lambda target: only_child_of(target.pid))


# --- without any right ----------------------------------------------------------------------------------------


def a_process_of_an_unprivileged_user():
    """Tracer and target are both uid 65534 without a capability."""
    need_root()
    need_tool("setpriv")
    scope = 0
    if os.path.exists("/proc/sys/kernel/yama/ptrace_scope"):
        with open("/proc/sys/kernel/yama/ptrace_scope", encoding="utf-8") as file:
            scope = int(file.read())
    with temporary_directory() as directory:
        path = public_copy(directory, target_path("variant_pie"))
        spile = public_copy(directory, SPILE)
        as_nobody_from_its_start(path, spile)
        if scope == 0:
            as_nobody_while_it_runs(path, spile)


def as_nobody_from_its_start(path, spile):
    result = run([*NOBODY, spile, "-e", f"uprobe:{path}:probe_me* {{ @calls = count(); }}", "-c", path])
    check_status(result, 0)
    calls = int(re.search(r"^calls=(\d+)$", result.out, re.M).group(1))
    check("exact-count", scalar(result.out, "@calls") == calls, result.report())


def as_nobody_while_it_runs(path, spile):
    with Target(NOBODY[0], [*NOBODY[1:], path], wait=True, hold=True) as target:
        before = Picture(target.pid)
        with Process([*NOBODY, spile, "-e", f"uprobe:{path}:probe_me* {{ @calls = count(); }}", "-p",
                      target.pid]) as tracer:
            wait_until(lambda: any("Attached" in line for line in tracer.err) or not tracer.alive(), "the attach")
            check("attached", tracer.alive(), tracer.report())
            target.send_line()
            target.wait_for_line("done$")
            tracer.send(signal.SIGINT)
            check("clean-stop", tracer.finish() == 0, tracer.report())
            check_left_as_before(before, Picture(target.pid))
            target.finish_well()
            check("exact-count", f"@calls: {target.calls()}" in tracer.out, tracer.report())


# --- ASLR -----------------------------------------------------------------------------------------------------


def pie_at_many_addresses():
    """Wherever the kernel puts it: the sites are found and the code region is within reach."""
    path = target_path("variant_pie")
    seen = set()
    for _ in range(5):
        with Target(path, [], wait=True, hold=True, rounds=200) as target:
            seen.add(next(base for base, (name, _) in Picture(target.pid).text.items() if name == path))
            with Spile(count_program([f"{path}:probe_me*"]), pid=target.pid) as spile:
                check("attached", spile.wait_attached(), spile.report())
                target.send_line()
                target.wait_for_line("done$")
                spile.stop()
                target.finish_well()
                check_calls(spile, target.calls())
    check("addresses-differ", len(seen) > 1, f"{seen}: is ASLR off?")


def stripped_names_come_from_dynamic_symbols():
    path = target_path("variant_stripped")
    with open(path, "rb") as file:
        check("is-stripped", b".symtab" not in file.read(), path)
    traced_while_it_runs([path], f"{path}:probe_me*")


if __name__ == "__main__":
    main([both(name) for name in ("variant_pie", "variant_no_pie", "variant_static", "variant_static_pie",
                                  "variant_musl", "variant_musl_static",
                                  "variant_stripped", "variant_O0", "variant_Os")] +
         [stripped_names_come_from_dynamic_symbols, pie_at_many_addresses, go_growing_stacks,
          musl_in_namespaces_of_its_own,
          dynamic_musl_in_namespaces_of_its_own, a_process_of_an_unprivileged_user], 120)
