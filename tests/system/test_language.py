#!/usr/bin/env python3
"""Scripts by others run as they are: bpftrace's tutorial, the tools of Debian's bpftrace package; and what a command line gives a script."""
import contextlib
import glob
import os
import re
import shutil
import signal
import sys

from harness import RUN_SECONDS, SLOWNESS, SPILE, Failure, Process, Skip, check, need_root
from tracing import check_status, compile_program, main, run, spile, temporary_directory, wait_until
import test_vm

TOOLS = "/usr/sbin/*.bt"

# What this machine lacks, and no fault of the script: another kernel, another libc.
NOT_HERE = re.compile(r"no kernel function (is called|matches)|no function (is called|matches)|no tracepoint matches|/proc/kallsyms has no|"
                      r"no library|struct cfs_rq has no field 'nr_running'")

# The one-liner tutorial, with `profile` left out.
TUTORIAL = [
    r'BEGIN { printf("hello world\n"); }',
    r'tracepoint:syscalls:sys_enter_openat { printf("%s %s\n", comm, str(args.filename)); }',
    r"tracepoint:raw_syscalls:sys_enter { @[comm] = count(); }",
    r"tracepoint:syscalls:sys_exit_read /pid == 18644/ { @bytes = hist(args.ret); }",
    r"kretprobe:vfs_read { @bytes = lhist(retval, 0, 2000, 200); }",
    r"kprobe:vfs_read { @start[tid] = nsecs; } kretprobe:vfs_read /@start[tid]/ { @ns[comm] = hist(nsecs - @start[tid]); delete(@start, tid); }",
    r"tracepoint:sched:sched* { @[probe] = count(); } interval:s:5 { exit(); }",
    r"tracepoint:sched:sched_switch { @[kstack] = count(); }",
    r"tracepoint:block:block_rq_issue { @ = hist(args.bytes); }",
    "#ifndef BPFTRACE_HAVE_BTF\n#include <linux/path.h>\n#include <linux/dcache.h>\n#endif\n"
    r'kprobe:vfs_open { printf("open path: %s\n", str(((struct path *)arg0)->dentry->d_name.name)); }',
    # Of the reference guide and the subject documents.
    r'#include <linux/path.h>' "\n" r'#include <linux/dcache.h>' "\n"
    r'kprobe:vfs_open { printf("open path: %s\n", str(((struct path *)arg0)->dentry->d_name.name)); }',
    "struct arg_s { int a; char b; long c; };\n"
    r'uprobe:/bin/sh:main { $p = (struct arg_s *)arg0; printf("%d %d %d\n", $p->a, $p->b, $p->c); }',
    r"kprobe:vfs_read /arg2 < 16/ { @small[comm] = count(); }",
    r'kretprobe:vfs_read /retval < 0/ { @[strerror(-retval)] = count(); }',
    r'interval:s:1 { time("%H:%M:%S  "); printf("%s\n", strftime("%H:%M:%S", nsecs)); }',
    r"tracepoint:syscalls:sys_enter_execve { join(args.argv); }",
    r'tracepoint:syscalls:sys_enter_exit_group { printf("%s by %s (%d)\n", comm, curtask->real_parent->comm, ppid); }',
    r"tracepoint:sched:sched_switch /cgroup == 1/ { @[args.next_comm] = count(); }",
    r"kprobe:tcp_connect { $sk = (struct sock *)arg0; @[ntop($sk->__sk_common.skc_daddr), bswap($sk->__sk_common.skc_dport)] = count(); }",
    r"BEGIN { @a = 1; @b[1, 2] = 2; } END { clear(@a); zero(@b); delete(@b, (1, 2)); }",
]


def refusals(*arguments):
    """The errors of a script that does not compile; none: it does."""
    result = run([SPILE, "dump", "--stage", "bpf", *arguments], seconds=30)
    errors = re.findall(r"^.*ERROR: (.*)$", result.err + result.out, re.M)
    check("exit-status", (result.status == 0) == (not errors), result.report())
    if not errors:
        check("compiles", re.search(r"^program\[0\]", result.out, re.M), result.report())
    return errors


def the_tutorial_compiles():
    need_root()
    compiled = 0
    for script in TUTORIAL:
        errors = refusals("-e", script)
        check("runs-as-it-is", all(NOT_HERE.search(error) for error in errors), f"{script}\n{errors}")
        compiled += not errors
    check("most-compile", compiled >= len(TUTORIAL) - 5, f"{compiled} of {len(TUTORIAL)}")


def tools_of_debian_compile():
    need_root()
    tools = sorted(glob.glob(TOOLS))
    if not tools:
        raise Skip("needs Debian's package bpftrace")
    compiled = []
    for tool in tools:
        errors = refusals(tool)
        # A map that only a missing probe fills is reported with it.
        check("runs-as-it-is", all(NOT_HERE.search(error) for error in errors), f"{tool}\n{errors}")
        compiled += [] if errors else [tool]
    print(f"{len(compiled)} of {len(tools)} tools compile here")
    check("most-compile", len(compiled) >= 25, str(compiled))


# Those that a kernel without kprobes can carry: what they print of the work below, {pid} being its process.
RUN_TOOLS = {
    "cpuwalk": r"@cpu:",
    "execsnoop": r"^\d+ +\d+ +cat /etc/hostname$",
    "gethostlatency": r" getent +\d+ localhost$",
    "killsnoop": r"^\S+ +{pid} +\S+ +0 +{pid} +0$",
    "opensnoop": r"^\d+ +cat +\d+ +0 /etc/hostname$",
    "pidpersec": r"PIDs/sec: @: [1-9]",
    "runqlat": r"@usecs:",
    "setuids": r"^\S+ +{pid} +\S+ +0 +setuid +uid=0 \(0\)$",
    "statsnoop": r" ls +0 /etc/hostname$",
    "syncsnoop": r"^\S+ +\d+ +sync +tracepoint:syscalls:sys_enter_sync$",
    "syscount": r"@process\[.*\]: [1-9]",
}
# Begins when it is told to.
TOOLS_WORK = r"""
import os, subprocess, sys
for line in sys.stdin:
    os.setuid(0)
    os.kill(os.getpid(), 0)
    for words in (["cat", "/etc/hostname"], ["ls", "-l", "/etc/hostname"], ["sync"], ["getent", "ahosts", "localhost"]):
        subprocess.run(words, stdout=subprocess.DEVNULL, check=False)
"""


def tools_of_debian_run_here():
    """All at once; each is stopped when it has told of the work, which is done again and again."""
    need_root()
    if not glob.glob(TOOLS):
        raise Skip("needs Debian's package bpftrace")
    works = spile("-q", "-e", "tracepoint:sched:sched_switch { exit(); }")
    if works.status != 0:
        raise Skip(f"no kernel engine here: {works.err.strip()}")
    with contextlib.ExitStack() as running:
        work = running.enter_context(Process([sys.executable, "-c", TOOLS_WORK]))
        tools = {name: running.enter_context(Process([SPILE, f"/usr/sbin/{name}.bt"])) for name in RUN_TOOLS}
        for tool in tools.values():
            wait_until(lambda tool=tool: any("Attached" in line for line in tool.err) or not tool.alive(), f"attached: {tool.command}")
        told = lambda name: any(re.search(RUN_TOOLS[name].format(pid=work.pid), line) for line in tools[name].out)
        at_its_end = {"cpuwalk", "runqlat", "syscount"}

        def all_have_told():
            work.send_line()
            return all(told(name) for name in RUN_TOOLS if name not in at_its_end)
        try:
            wait_until(all_have_told, "every tool tells of the work", seconds=RUN_SECONDS, every=0.1)
        except Failure as late:
            raise Failure("\n".join([str(late)] + [tools[name].report() for name in tools if name not in at_its_end and not told(name)])) from None
        for name, tool in tools.items():
            tool.send(signal.SIGINT)
            check("exit-status", tool.finish() == 0, tool.report())
            check("hits-happened", told(name), tool.report())


# Those whose probes fire by themselves in a machine that does little, and what they must have printed.
ATTACHED_TOOLS = {
    "opensnoop": r"cat .*/etc/passwd",
    "execsnoop": r"cat /etc/passwd",
    "vfsstat": r"\d\d:\d\d:\d\d",
    "syscount": r"Counting syscalls",
}


def tools_attach_on(kernel):
    need_root()
    tools = [tool for tool in sorted(glob.glob(TOOLS)) if os.path.basename(tool)[:-3] in ATTACHED_TOOLS]
    if not tools:
        raise Skip("needs Debian's package bpftrace")
    with temporary_directory() as root:
        os.makedirs(f"{root}/tools")
        for tool in tools:
            shutil.copy(tool, f"{root}/tools/")
        names = [os.path.basename(tool)[:-3] for tool in tools]
        script = test_vm.OPENING + "LOOP=$!; (while true; do sleep 0.2; done) & " + "".join(
            f"echo; echo '== {name}'; timeout -s INT 12 spile /tools/{name}.bt 2>&1 | head -c 3000; " for name in names)
        result = test_vm.in_vm(kernel, script + "kill $LOOP; echo; echo '== end'", root=root)
        check_status(result, 0)
        found = test_vm.sections(result.out)
        for name in names:
            check("attached", re.search(r"Attached \d+ probe", found.get(name, "")), f"{name}\n{found.get(name)}\n{result.err}")
            check("hits-happened", re.search(ATTACHED_TOOLS[name], found[name]), f"{name}\n{found[name]}")


def tools_attach_6_1():
    tools_attach_on("6.1")


def structs_of_the_kernel_6_1():
    """The subject documents' own: a path by #include, the parent by curtask; with the machine's own programs as witnesses."""
    script = ("#include <linux/path.h>\n#include <linux/dcache.h>\n"
              r'kprobe:vfs_open { @[str(((struct path *)arg0)->dentry->d_name.name)] = count(); @by[pcomm, comm] = count(); '
              r'@own[((struct rq *)percpu_kaddr("runqueues"))->cpu == cpu, ((struct rq *)percpu_kaddr("runqueues", 0))->cpu, percpu_kaddr("runqueues", 100000) == 0] = count(); } '
              "interval:s:3 { exit(); }")
    result = test_vm.in_vm("6.1", test_vm.OPENING + "LOOP=$!; " + test_vm.spile_line(script, "-q") + " 2>&1; kill $LOOP")
    check_status(result, 0)
    check("hits-happened", re.search(r"^@\[passwd\]: [1-9]", result.out, re.M), result.report())
    check("each-cpu-has-its-own", re.search(r"^@own\[true, 0, true\]: [1-9]", result.out, re.M), result.report())
    check("parent-known", re.search(r"^@by\[sh, cat\]: [1-9]", result.out, re.M), result.report())


def named_parameters_reach_the_script():
    script = r'BEGIN { printf("%d %s %d %s\n", getopt("n", 1), getopt("s", "none"), getopt("on"), str($1)); }'
    result = spile("-q", "-e", script, "first", "--", "--n=42", "--s=text", "--on")
    check_status(result, 0)
    check("prints", result.out.startswith("42 text 1 first\n"), result.report())
    check("prints", spile("-q", "-e", script).out.startswith("1 none 0 \n"), "without parameters")


def parameters_are_listed():
    with temporary_directory() as directory:
        program = compile_program(directory, "listed", "long f(int n, const char *name, double d) { return n + name[0] + (long)d; }\n"
                                  "int main(void) { return 0; }\n", flags=("-O1", "-g"))
        result = spile("-l", "-v", f"uprobe:{program}:f")
        check_status(result, 0)
        for line in ("    int32 n", "    int8 * name", "    uint64 d (a floating-point parameter is not built yet)"):
            check("listed", line in result.out.splitlines(), f"{line}\n{result.report()}")


def commands_and_files_are_printed():
    with temporary_directory() as directory:
        path = os.path.join(directory, "file")
        with open(path, "w", encoding="utf-8") as file:
            file.write("held by a file\n")
        script = f'BEGIN {{ printf("first\\n"); system("echo %d of %s", 5, "six"); cat("{directory}/%s", "file"); printf("last\\n"); }}'
        result = spile("-q", "--unsafe", "-e", script)
        check_status(result, 0)
        check("in-order", result.out.startswith("first\n5 of six\nheld by a file\nlast\n"), result.report())
        refused = spile("-q", "-e", script)
        check("refusal-in-words", refused.status == 1 and "--unsafe allows it" in refused.err, refused.report())


def settings_of_the_script_count():
    script = r'config = { max_map_keys = 2; print_maps_on_exit = false } BEGIN { @[1] = 1; @[2] = 2; @[3] = 3; print(@); }'
    result = spile("-e", script)
    check_status(result, 0)
    check("exact-count", len(re.findall(r"^@\[", result.out, re.M)) == 2, result.report())
    check("told", "1 updates of full maps" in result.err, result.report())


def settings_of_the_environment_count():
    """And go before those of the script."""
    script = 'config = { print_maps_on_exit = true; max_cat_bytes = 100; missing_probes = error } BEGIN { @[1] = 1; @[2] = 2; cat("/proc/self/comm"); print(len(@)); } uprobe:/bin/sh:no_such_function { }'
    refused = spile("-e", script)
    check("refusal-in-words", refused.status == 1 and "no_such_function" in refused.err, refused.report())
    for first, second in (("BPFTRACE_", "SPILE_"), ("SPILE_", "BPFTRACE_")):
        result = spile("-q", "-e", script, env={first + "PRINT_MAPS_ON_EXIT": "false", second + "MISSING_PROBES": "ignore", first + "MAX_CAT_BYTES": "2", second + "MAX_MAP_KEYS": "1"})
        check_status(result, 0)
        check("exact-count", result.out.strip().splitlines() == ["sp1"], result.report())
    for mode, pattern in (("perf", r"^\s+[0-9a-f]{6,} \S+ \(/\S+\)$"), ("raw", r"^[0-9a-f]{6,}$")):
        result = spile("-q", "--engine", "user", "-e", "uprobe:libc:malloc { print(ustack(1)); exit(); }", "-c", "/bin/echo x", env={"BPFTRACE_STACK_MODE": mode})
        check("printed", re.search(pattern, result.out, re.M), result.report())


def it_stays_small():
    """The most memory that a script without C definitions takes: 20 MB."""
    if SLOWNESS != 1:
        raise Skip("not with sanitizers")
    for words in (["-e", "BEGIN { @ = 1; } interval:s:1 { @++; }"], ["--engine", "user", "-e", "uprobe:libc:malloc { @[comm] = count(); }", "-c", "sleep 100"]):
        with Process([SPILE, *words]) as running:
            wait_until(lambda process=running: any("Attached" in line for line in process.err), f"attached: {words}")
            with open(f"/proc/{running.pid}/status", encoding="utf-8") as status:
                most = int(re.search(r"^VmHWM:\s+(\d+) kB", status.read(), re.M).group(1))
        check("small", 0 < most <= 20 * 1024, f"{words}: {most} KiB")


def a_loop_without_end_is_cut_and_told():
    result = spile("-e", r'BEGIN { $n = nsecs; for ($i : 0..$n) { @n = count(); } }')
    check_status(result, 0)
    check("exact-count", "@n: 65536" in result.out, result.report())
    check("told", "1 loops ended before their bound" in result.err, result.report())


def errors_say_where():
    script = 'BEGIN { errorf("bad %d", 5); warnf("odd %s", "one"); assert(1 == 2, "no"); printf("never"); }'
    result = spile("-q", "-e", script)
    check_status(result, 1)
    for line in ("stdin:1:9-28: ERROR: bad 5", "stdin:1:30-52: WARNING: odd one", "stdin:1:54-74: ERROR: no"):
        check("told", line in result.err.splitlines(), result.report())
    check("told-apart", "bad" not in result.out and "never" not in result.out, result.report())
    result = spile("-q", "-f", "json", "-e", script)
    check("as-json", '{"type": "errorf", "msg": "bad 5", "filename": "stdin", "line": 1, "col": 9}' in result.out.splitlines(), result.report())


def values_are_printed_as_json():
    script = ('struct p { char name[4]; int list[2]; short a : 4; }; BEGIN { @b[true] = false; print((1 == 1, "x")); @t = (1, pid > 0); '
              '$a = pton("1.2.3.4"); print($a); }')
    result = spile("-q", "-f", "json", "-e", script)
    check_status(result, 0)
    for line in ('{"type": "map", "data": {"@b": {"true": false}}}', '{"type": "value", "data": [true,"x"]}',
                 '{"type": "map", "data": {"@t": [1,true]}}', '{"type": "value", "data": [1,2,3,4]}'):
        check("printed", line in result.out.splitlines(), f"{line}\n{result.report()}")


if __name__ == "__main__":
    main([the_tutorial_compiles, tools_of_debian_compile, tools_of_debian_run_here, named_parameters_reach_the_script, parameters_are_listed, commands_and_files_are_printed,
          settings_of_the_script_count, settings_of_the_environment_count, it_stays_small, a_loop_without_end_is_cut_and_told, errors_say_where, values_are_printed_as_json, structs_of_the_kernel_6_1, tools_attach_6_1], 300)
