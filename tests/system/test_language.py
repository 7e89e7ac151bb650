#!/usr/bin/env python3
"""Scripts by others run as they are: bpftrace's tutorial, the tools of Debian's bpftrace package; and what a command line gives a script."""
import glob
import os
import re
import shutil

from harness import SPILE, Skip, check, need_root
from tracing import check_status, compile_program, main, run, spile, temporary_directory
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
              r'kprobe:vfs_open { @[str(((struct path *)arg0)->dentry->d_name.name)] = count(); @by[pcomm, comm] = count(); } '
              "interval:s:3 { exit(); }")
    result = test_vm.in_vm("6.1", test_vm.OPENING + "LOOP=$!; " + test_vm.spile_line(script, "-q") + " 2>&1; kill $LOOP")
    check_status(result, 0)
    check("hits-happened", re.search(r"^@\[passwd\]: [1-9]", result.out, re.M), result.report())
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
    main([the_tutorial_compiles, tools_of_debian_compile, named_parameters_reach_the_script, parameters_are_listed, commands_and_files_are_printed,
          settings_of_the_script_count, a_loop_without_end_is_cut_and_told, errors_say_where, values_are_printed_as_json, structs_of_the_kernel_6_1, tools_attach_6_1], 300)
