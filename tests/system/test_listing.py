#!/usr/bin/env python3
"""-l and -lv for every kind of probe, for types and scripts; --info; and --fmt on the command line."""
import os
import re
import shutil
import subprocess

from harness import SPILE, check, need_root, target_path
from tracing import check_prints, check_says, check_status, main, spile, temporary_directory
import tools


def listed(pattern, *options):
    result = spile("-l", *options, pattern)
    check_status(result, 0)
    return result


def probes_of_programs_with_their_arguments():
    path = target_path("case_46_counter")
    check_prints(listed(f"uprobe:{path}:probe_m*", "-v"), rf"(?m)^uprobe:{re.escape(path)}:probe_me\n    uint64 n\n    int8 \* name$")
    check_prints(listed(f"uretprobe:{path}:main", "-v"), r"(?m)^uretprobe:.*:main\n    int32 argc\n    int8 \* \* argv$")
    # A file alone means all of it.
    check("same", listed(f"uprobe:{path}").out == listed(f"uprobe:{path}:*").out, path)
    both = listed(f"u*:{path}:main").out
    check("listed", re.findall(r"^(\w+):", both, re.M) == ["uprobe", "uretprobe"], both)


def probes_of_the_kernel_with_their_arguments():
    need_root()
    check_prints(listed("rawtracepoint:sched_switch", "-v"), r"(?m)^rawtracepoint:sched_switch\n    bool preempt\n    struct task_struct \* prev$")
    check_prints(listed("tracepoint:sched:sched_switch", "-v"), r"(?m)^tracepoint:sched:sched_switch\n    char prev_comm\[16\]$")
    check_prints(listed("fexit:vfs_read", "-v"), r"(?m)^fexit:vfs_read\n    struct file \* file\n(    .*\n)+    ssize_t retval$")
    check_prints(listed("iter:task", "-v"), r"(?m)^iter:task\n(    .*\n)*    struct task_struct \* task$")
    check_prints(listed("kprobe:vfs_rea*"), r"(?m)^kprobe:vfs_read$")
    check("listed", listed("software:faults").out == "software:page-faults:100\n", "by its other name")
    check_prints(listed("hardware:*"), r"(?m)^hardware:cpu-cycles:1000000$")


def names_without_a_kind():
    need_root()
    everything = listed("*vfs_read*").out
    for kind in ("fentry", "kprobe"):
        check("listed", f"\n{kind}:vfs_read\n" in "\n" + everything, everything)
    check("listed", listed("BEGIN").out == "BEGIN\n" and listed("end").out == "END\n", "BEGIN, end")
    check_prints(listed("sched_switch", "-v"), r"(?ms)^tracepoint:sched:sched_switch\n    char .*^rawtracepoint:sched_switch\n    bool preempt$")


def types_of_the_kernel():
    need_root()
    check("declared", listed("struct path", "-v").out.startswith("struct path {\n\tstruct vfsmount *mnt;\n"), "struct path")
    check("named", listed("struct path").out == "struct path\n", "without its members")
    check_says(spile("-lv", "struct no_such_struct"), r"the kernel has no 'struct no_such_struct'")


def what_is_not_there_is_not_listed():
    need_root()
    for pattern in ("kprobe:no_such_function", "no_such_function", "tracepoint:no_such:*", "software:no_such", "*:no_such_thing_at_all"):
        result = spile("-l", pattern)
        check("refusal-in-words", result.status == 1 and not result.out and "no " in result.err, result.report())


def probes_of_a_script():
    need_root()
    path = target_path("case_46_counter")
    script = f"tracepoint:sched:sched_switch {{ @ = count(); }} uprobe:{path}:probe_me {{ @ = count(); }} BEGIN {{ @ = count(); }}"
    names = spile("-l", "-e", script)
    check("listed", names.out == f"tracepoint:sched:sched_switch\nuprobe:{path}:probe_me\nBEGIN\n", names.report())
    check_prints(spile("-lv", "-e", script), rf"(?s)^tracepoint:sched:sched_switch\n    char .*uprobe:{re.escape(path)}:probe_me\n    uint64 n\n.*BEGIN\n$")


def info_is_an_option_too():
    ours, theirs = spile("info"), spile("--info")
    check_status(theirs, 0)
    check("same", re.findall(r"^\w.*$|^  \w+ [\w ,.]{10}", ours.out, re.M) == re.findall(r"^\w.*$|^  \w+ [\w ,.]{10}", theirs.out, re.M), theirs.out)


def scripts_are_formatted():
    with temporary_directory() as directory:
        path = os.path.join(directory, "some.bt")
        with open(path, "w", encoding="utf-8") as file:
            file.write("BEGIN{@x=1;// one\n}")
        os.chmod(path, 0o750)
        wanted = "BEGIN {\n  @x = 1; // one\n}\n"
        check("formatted", spile("--fmt", path).out == wanted, spile("--fmt", path).report())
        check("formatted", spile("--fmt", "-", stdin="BEGIN{@x=1;// one\n}").out == wanted, "standard input")
        check("formatted", spile("--fmt", "-e", "BEGIN{@x=1;}").out == "BEGIN { @x = 1; }\n", "-e")
        differs = spile("--fmt", "--check", path)
        check("checked", differs.status == 1 and differs.out == path + "\n", differs.report())
        check_status(spile("--fmt", "-i", path), 0)
        with open(path, encoding="utf-8") as file:
            check("rewritten", file.read() == wanted, path)
        check("rights-unchanged", os.stat(path).st_mode & 0o777 == 0o750, path)
        check("nothing-left", os.listdir(directory) == ["some.bt"], str(os.listdir(directory)))
        check_status(spile("--fmt", "--check", path), 0)


def the_file_behind_a_link_is_formatted():
    """The link stays a link, and the file its owner's."""
    with temporary_directory() as directory:
        path, link = os.path.join(directory, "real.bt"), os.path.join(directory, "link.bt")
        with open(path, "w", encoding="utf-8") as file:
            file.write("BEGIN{}")
        owner = 65534 if os.geteuid() == 0 else os.geteuid()
        os.chown(path, owner, -1)
        os.chmod(path, 0o640)
        os.symlink("real.bt", link)
        check_status(spile("--fmt", "-i", link), 0)
        check("link-unchanged", os.path.islink(link) and os.readlink(link) == "real.bt", link)
        with open(path, encoding="utf-8") as file:
            check("rewritten", file.read() == "BEGIN {}\n", path)
        now = os.stat(path)
        check("owner-unchanged", now.st_uid == owner and now.st_mode & 0o7777 == 0o640, str(now))
        check("nothing-left", sorted(os.listdir(directory)) == ["link.bt", "real.bt"], str(os.listdir(directory)))


def a_full_disk_is_told():
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run([SPILE, "--fmt", "-e", "BEGIN{}"], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=30)
    check("exit-status", done.returncode == 1 and "cannot write: No space left on device" in done.stderr, str(done))


def what_is_no_script_is_not_changed():
    with temporary_directory() as directory:
        wrong, right = os.path.join(directory, "wrong.bt"), os.path.join(directory, "right.bt")
        for path, text in ((wrong, "BEGIN { @x = ; }"), (right, "BEGIN{}")):
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
        result = spile("--fmt", "-i", wrong, right, os.path.join(directory, "absent.bt"))
        check_status(result, 1)
        check_says(result, r"wrong\.bt:1:14-15: ERROR: (?s:.*)absent\.bt: No such file")
        with open(wrong, encoding="utf-8") as file:
            check("unchanged", file.read() == "BEGIN { @x = ; }", wrong)
        with open(right, encoding="utf-8") as file:
            check("rewritten", file.read() == "BEGIN {}\n", "the others are done all the same")


def a_formatted_script_compiles_to_the_same():
    """The programs of our tools from their text on one line less."""
    need_root()
    with temporary_directory() as directory:
        for name in ("opens", "runqueue", "tcplives", "exits"):
            path = os.path.join(directory, name + ".bt")
            with open(tools.script(name), encoding="utf-8") as file:
                text = file.read()
            squeezed = re.sub(r"\n\s*", "\n", re.sub(r"([;{}(),]) +", r"\1", text))
            with open(path, "w", encoding="utf-8") as file:
                file.write(squeezed)
            shutil.copy(path, path + ".before")
            check_status(spile("--fmt", "-i", path), 0)
            with open(path, encoding="utf-8") as file:
                check("changed", file.read() != squeezed, name)
            programs = [spile("dump", "--stage", "bpf", script).out for script in (path + ".before", path)]
            check("same-programs", programs[0] == programs[1] and "program[" in programs[0], f"{name}\n{programs[0][:500]}")


if __name__ == "__main__":
    main([probes_of_programs_with_their_arguments, probes_of_the_kernel_with_their_arguments, names_without_a_kind, types_of_the_kernel,
          what_is_not_there_is_not_listed, probes_of_a_script, info_is_an_option_too, scripts_are_formatted,
          the_file_behind_a_link_is_formatted, a_full_disk_is_told, what_is_no_script_is_not_changed, a_formatted_script_compiles_to_the_same], 120)
