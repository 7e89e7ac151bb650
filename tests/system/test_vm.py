#!/usr/bin/env python3
"""The kernel engine on real kernels of two ages, booted under emulation: kprobes, kretprobes, tracepoints, uprobes."""
import os
import re
import shlex
import shutil

from harness import ROOT, SLOWNESS, Skip, check, target_path
import test_usdt
from tracing import check_status, keyed, main, run, scalar, temporary_directory

BOOT_SECONDS = 120 * SLOWNESS
VM = os.path.join(ROOT, "tools/vm/vm.sh")

# Something that opens files while the trace runs.
OPENING = "(while true; do ls / >/dev/null; cat /etc/passwd >/dev/null; done) & "


def in_vm(kernel, script, environment=None, root=None, seconds=BOOT_SECONDS, modules=()):
    # The emulated machine itself may die (status 124, its console on stderr): that says nothing of spile, so it boots again.
    for attempt in range(3):
        result = run([VM, kernel, *(("--root", root) if root else ()), *(("--modules", ",".join(modules)) if modules else ()), "--timeout", int(seconds), "sh", "-c", script], seconds=seconds + 60,
                     env=environment)
        if result.status != 124:
            break
        print(f"the machine of kernel {kernel} did not end by itself (boot {attempt + 1} of 3)")
    if result.status == 77:
        raise Skip(result.err.strip())
    # The serial line ends its lines with a carriage return.
    result.out = result.out.replace("\r", "")
    return result


def spile_line(script, *options):
    return " ".join(["spile", *options, "-e", shlex.quote(script)])


def sections(text):
    """What came after each line `== name`."""
    parts = re.split(r"^== (\w+)$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2]))


TRACES = {
    # The issue's own line, with an end.
    "kprobe": (r'kprobe:do_sys_openat2 { printf("hit %s %s\n", comm, str(arg1)); } kretprobe:do_sys_openat2 { @[retval < 0] = count(); } '
               "interval:s:2 { exit(); }"),
    "tracepoint": r'tracepoint:syscalls:sys_enter_openat { @[str(args.filename)] = count(); @by[comm] = count(); } interval:s:2 { exit(); }',
    "fields": (r'tracepoint:sched:sched_process_exec { printf("exec %s\n", comm); } '
               "tracepoint:syscalls:sys_exit_openat { @fd = hist(args->ret); } interval:s:2 { exit(); }"),
    "uprobe": (r'uprobe:/bin/spile:main { @ = count(); } uretprobe:/bin/spile:main { @back[retval] = count(); '
               r'@given[arg0, duration > 1000] = count(); } interval:s:2 { exit(); }'),
    "begin": r'BEGIN { printf("pid %d\n", pid); @x[1, "two"] = 3; } END { printf("end\n"); } interval:ms:100 { exit(); }',
    "predicate": r'kprobe:do_sys_openat2 /comm == "cat"/ { @[comm] = count(); } interval:s:2 { exit(); }',
}


def hits_on(kernel):
    script = OPENING + "LOOP=$!; " + "".join(
        f"echo '== {name}'; {spile_line(text, '-q') if name != 'kprobe' else spile_line(text)} 2>&1; echo status=$?; "
        for name, text in TRACES.items() if name != "uprobe")
    script += "kill $LOOP; "
    # A program of the machine, run while the trace waits for it.
    script += (f"(sleep 1; spile --version; spile --version) >/dev/null 2>&1 & echo '== uprobe'; "
               f"{spile_line(TRACES['uprobe'], '-q', '--engine', 'kernel')} 2>&1; echo status=$?; echo '== end'; uname -r")
    result = in_vm(kernel, script)
    check_status(result, 0)
    found = sections(result.out)
    check("all-ran", set(found) == set(TRACES) | {"end"}, result.report())
    check("kernel-version", found["end"].strip().startswith(kernel), found["end"])
    for name in TRACES:
        check("exit-status", "status=0" in found[name], f"{name} on {kernel}\n{found[name]}\n{result.err}")
    check("hits-happened", re.search(r"^hit cat /etc/passwd$", found["kprobe"], re.M), found["kprobe"])
    returned = keyed(found["kprobe"], "@")
    check("hits-happened", returned.get("0", returned.get("false", 0)) > 0, found["kprobe"])
    check("hits-happened", keyed(found["tracepoint"], "@").get("/etc/passwd", 0) > 0, found["tracepoint"])
    check("hits-happened", keyed(found["tracepoint"], "@by").get("cat", 0) > 0, found["tracepoint"])
    check("hits-happened", re.search(r"^exec \w+$", found["fields"], re.M) and re.search(r"^\[.*\|$", found["fields"],
                                                                                         re.M), found["fields"])
    check("exact-count", scalar(found["uprobe"], "@") == 2, found["uprobe"])
    check("exact-count", keyed(found["uprobe"], "@back") == {"0": 2}, found["uprobe"])
    check("entry-data", keyed(found["uprobe"], "@given") in ({"2, 1": 2}, {"2, true": 2}), found["uprobe"])
    check("prints", re.search(r"^pid \d+$", found["begin"],
                              re.M) and "end\n" in found["begin"] and "@x[1, two]: 3" in found["begin"], found["begin"])
    check("predicate", set(keyed(found["predicate"], "@")) == {"cat"}, found["predicate"])
    for name in TRACES:
        check("no-loss", not re.search(r"[1-9]\d* (records lost|updates of full maps)", found[name]),
              f"{name}\n{found[name]}")


def kernel_6_1():
    hits_on("6.1")


def kernel_6_12():
    hits_on("6.12")


def commands_and_refusals():
    """-c from its start to its end, with its status; a kernel function that is not there."""
    opens = spile_line(r'tracepoint:syscalls:sys_enter_openat { printf("%s\n", str(args.filename)); }', "-q", "-c", "'cat /etc/protocols'")
    fails = spile_line("kprobe:do_sys_openat2 { @ = count(); }", "-q", "-c", "'sh -c \"exit 5\"'")
    unknown = spile_line("kprobe:do_sys_openat22 { @ = count(); }")
    result = in_vm("6.1", "; echo status=$?; ".join([opens, fails, unknown]) + " 2>&1; echo status=$?")
    check_status(result, 0)
    check("hits-happened", re.search(r"^/etc/protocols$", result.out, re.M), result.report())
    check("exit-status", re.findall(r"^status=(\d+)$", result.out, re.M) == ["0", "5", "1"], result.report())
    check("nearest-names", "do_sys_openat2" in re.sub("do_sys_openat22", "", result.out.split("status=5")[1]), result.report())


def static_tracepoints_by_perf_events():
    """6.1 has no uprobe.multi: the counter's place goes through the perf event."""
    with temporary_directory() as root:
        test_usdt.Work.directory = root
        program = test_usdt.Work.program("demo", ("-O2", "-static"))
        trace = spile_line("usdt:/demo:demo:gated { @g = sum(arg0); } usdt:/demo:demo:twice { @n[str(arg2)] = count(); }", "-q",
                           "--engine", "kernel", "-c", "'/demo 4'")
        result = in_vm("6.1", f"{trace} 2>&1; echo status=$?", root=os.path.dirname(program))
    check_status(result, 0)
    check("exact-count", scalar(result.out, "@g") == 10 and
          keyed(result.out, "@n") == {"first": 4, "second": 12, "third": 4}, result.report())
    check("raised", "gated=4 semaphore=1" in result.out and "status=0" in result.out, result.report())


def a_hard_limit_of_descriptors_is_raised_and_put_back():
    """Root of the machine has CAP_SYS_RESOURCE, which root of a container often lacks (case 55)."""
    with temporary_directory() as root:
        shutil.copy(target_path("case_55_confined"), os.path.join(root, "target"))
        # Ctrl-C is nothing to a shell's background job: the trace ends by itself.
        program = spile_line("uprobe:/target:probe_me { @calls = count(); } interval:s:5 { exit(); }", "-p", "$PID")
        limits = "grep 'open files' /proc/$PID/limits; "
        script = ("mkfifo /in; sleep 100 > /in & /target --mode no_files_hard --wait --hold < /in > /out 2>&1 & PID=$!; "
                  f"while ! grep -q ready /out; do sleep 0.1; done; {limits}"
                  f"{program} > /traced 2>&1 & SPILE=$!; while ! grep -q Attached /traced; do sleep 0.1; kill -0 $SPILE || break; done; "
                  f"{limits} echo > /in; wait $SPILE; {limits} cat /traced; echo > /in; wait $PID; cat /out")
        result = in_vm("6.1", script, root=root)
    limits = re.findall(r"^Max open files\s+(\d+)\s+(\d+)", result.out, re.M)
    check("limit-unchanged", limits == [("64", "64")] * 3, result.report())
    check("exit-success", "EXIT-SUCCESS" in result.out, result.report())
    check("exact-count", scalar(result.out, "@calls") == 100000 and "calls=100000" in result.out, result.report())


if __name__ == "__main__":
    main([kernel_6_1, kernel_6_12, commands_and_refusals, static_tracepoints_by_perf_events,
          a_hard_limit_of_descriptors_is_raised_and_put_back], 1100)
