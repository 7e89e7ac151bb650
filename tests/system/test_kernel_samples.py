#!/usr/bin/env python3
"""The kernel's own sample modules for kprobe, kretprobe and fprobe, compiled as they are for functions of a program.

They come from Debian's linux-source package: fetched once, kept below ~/.cache/spile, never part of this repository.
SPILE_SOAK=1 takes those of 6.12, too; they are also taken where they are there already."""
import glob
import os
import re
import shutil

from harness import SPILE, Skip, check, need_tool
from tracing import SOAK, check_status, main, run, temporary_directory

SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.dirname(os.path.abspath(SPILE))
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "spile")

# What has to be changed in a sample before it compiles: (file, sed script). Each is printed by the test.
EDITS = []

# What a sample finds in a kernel's build: the processor, and which kernel's handlers it has.
RELEASES = {"6.1": "0x060100", "6.12": "0x060c00"}

PROGRAM = r"""
#include <stdio.h>
__attribute__((noinline, noclone)) long work(long n) { volatile long v = n * 3; return v + 1; }
__attribute__((noinline, noclone)) long work_more(long n) { volatile long v = work(n) * 5; return v + 2; }
__attribute__((noinline, noclone)) long idle(long n) { volatile long v = n; return v; }
int main(void) {
  long a = work(5), b = work_more(4), c = idle(3);
  printf("main: %ld %ld %ld\n", a, b, c);
  return !(a == 16 && b == 67 && c == 3);
}
"""


class Work:
    directory = None


def fetch(release):
    """samples/ of the kernel's source package."""
    folder = os.path.join(CACHE, f"samples-{release}")
    if os.path.isdir(folder):
        return folder
    if release != "6.1" and not SOAK:
        raise Skip(f"the samples of {release} are fetched with SPILE_SOAK=1 only")
    for tool in ("apt-get", "dpkg-deb", "tar", "xz"):
        need_tool(tool)
    package = f"linux-source-{release}"
    got = run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package], seconds=200, cwd=Work.directory)
    found = glob.glob(os.path.join(Work.directory, package + "_*.deb"))
    if got.status != 0 or not found:
        raise Skip(f"{package} cannot be fetched: " + (got.err.strip().splitlines() or ["no file came"])[-1][:200])
    made = os.path.join(Work.directory, "unpacked")
    os.makedirs(made)
    command = (f"dpkg-deb --fsys-tarfile '{found[0]}' | tar -xO ./usr/src/{package}.tar.xz | "
               f"tar -xJf - -C '{made}' --strip-components=1 --wildcards '*/samples/kprobes/*' '*/samples/fprobe/*'")
    unpacked = run(["bash", "-c", "set -o pipefail; " + command], seconds=200)
    check_status(unpacked, 0)
    os.unlink(found[0])
    os.makedirs(CACHE, exist_ok=True)
    shutil.copytree(os.path.join(made, "samples"), folder + ".new", dirs_exist_ok=True)
    os.rename(folder + ".new", folder)
    return folder


def header_flags():
    include = os.path.join(SOURCE, "include")
    return ["-I" + os.path.join(include, "spile", "kernel"), "-I" + include]


def build(release, sample, level):
    source = os.path.join(Work.directory, f"{release}-{os.path.basename(sample)}.c")
    shutil.copy(os.path.join(fetch(release), sample + ".c"), source)
    for name, script in EDITS:
        if name == sample:
            print(f"    edit of {sample}: sed '{script}'")
            check_status(run(["sed", "-i", script, source]), 0)
    program = os.path.join(Work.directory, "program.c")
    with open(program, "w", encoding="utf-8") as file:
        file.write(PROGRAM)
    binary = source[:-2] + level
    built = run(["gcc", "-std=gnu11", level, "-Wall", "-Werror", "-DCONFIG_X86", f"-DSPILE_KERNEL_VERSION={RELEASES[release]}",
                 *header_flags(), source, program, "-o", binary, "-rdynamic", "-L" + BUILD, "-lspile", "-Wl,-rpath," + BUILD], seconds=60)
    check_status(built, 0)
    return binary


def run_sample(binary, **parameters):
    result = run([binary], env={"SPILE_PARAM_" + name: value for name, value in parameters.items()})
    check_status(result, 0)
    check("same-output", result.out == "main: 16 67 3\n", result.report())
    return result


def lines(result, pattern, count):
    found = re.findall("^" + pattern + "$", result.err, re.M)
    check("exact-count", len(found) == count, f"{len(found)} lines match {pattern!r}, not {count}\n{result.report()}")
    return found


def kprobe(release):
    for level in ("-O2", "-O0"):
        result = run_sample(build(release, "kprobes/kprobe_example", level), symbol="work")
        planted = lines(result, r"kprobe_init: Planted kprobe at ([0-9a-f]{16})", 1)[0]
        for address, ip in lines(result, r"handler_pre: <work> p->addr = 0x([0-9a-f]{16}), ip = ([0-9a-f]+), flags = 0x[0-9a-f]+", 2):
            check("address", address == planted and int(ip, 16) == int(planted, 16) + 1, result.report())
        lines(result, rf"handler_post: <work> p->addr = 0x{planted}, flags = 0x[0-9a-f]+", 2)
        lines(result, rf"kprobe_exit: kprobe at {planted} unregistered", 1)
    result = run_sample(build(release, "kprobes/kprobe_example", "-O2"), symbol="nothing_here")
    check("refusal", result.err == "kprobe_init: register_kprobe failed, returned -2\n", result.report())


def kretprobe(release):
    result = run_sample(build(release, "kprobes/kretprobe_example", "-O2"), func="work")
    values = lines(result, r"work returned (\d+) and took (\d+) ns to execute", 2)
    check("values", [int(v) for v, _ in values] == [16, 13], result.report())
    check("times", all(int(ns) > 0 for _, ns in values), result.report())
    lines(result, r"Planted return probe at work: [0-9a-f]{16}", 1)
    lines(result, r"Missed probing 0 instances of work", 1)


def fprobe(release):
    for level in ("-O2", "-O0"):
        binary = build(release, "fprobe/fprobe_example", level)
        result = run_sample(binary, symbol="work,work_more", stackdump="n")
        lines(result, r"fprobe_init: 2 symbols found", 1)
        lines(result, r"sample_entry_handler: Enter <work\+0x0/0x[0-9a-f]+> ip = 0x[0-9a-f]{16}", 2)
        lines(result, r"sample_entry_handler: Enter <work_more\+0x0/0x[0-9a-f]+> ip = 0x[0-9a-f]{16}", 1)
        lines(result, r"sample_exit_handler: Return from <work\+0x0/0x[0-9a-f]+> ip = .* to rip = 0x[0-9a-f]{16} \(main\+.*\)", 1)
        lines(result, r"sample_exit_handler: Return from <work\+0x0/0x[0-9a-f]+> ip = .* to rip = 0x[0-9a-f]{16} \(work_more\+.*\)", 1)
        lines(result, r"fprobe_exit: fprobe at work,work_more unregistered. 6 times hit, 0 times missed", 1)
        # By patterns, one of which leaves out.
        result = run_sample(binary, symbol="*work*", nosymbol="*more", stackdump="0")
        lines(result, r"fprobe_exit: fprobe at \*work\* unregistered. 4 times hit, 0 times missed", 1)
        check("left-out", "Enter <work_more" not in result.err, result.report())
        # The stack goes on from the handler through the probed function to its callers.
        result = run_sample(binary, symbol="work")
        stacks = re.findall(r"^sample_entry_handler: .*\n((?: +.*\n)+)", result.err, re.M)
        names = [re.findall(r"(\w+)\+0x", stack) for stack in stacks]
        check("stacks", len(names) == 2 and names[0][:2] == ["work", "main"] and names[1][:3] == ["work", "work_more", "main"], result.report())
        stacks = re.findall(r"^sample_exit_handler: .*\n((?: +.*\n)+)", result.err, re.M)
        names = [re.findall(r"(\w+)\+0x", stack) for stack in stacks]
        check("stacks", len(names) == 2 and names[0][:2] == ["work", "main"] and names[1][:3] == ["work", "work_more", "main"], result.report())
    result = run_sample(binary, symbol="work", stackdump="perhaps", use_trace="maybe")
    lines(result, r".*: `perhaps' invalid for parameter `stackdump'", 1)


def samples_of_6_1():
    for test in (kprobe, kretprobe, fprobe):
        test("6.1")
    print(f"    edits of the samples: {len(EDITS)}; compiled with -DCONFIG_X86 -DSPILE_KERNEL_VERSION={RELEASES['6.1']}")


def samples_of_6_12():
    for test in (kprobe, kretprobe, fprobe):
        test("6.12")
    print(f"    edits of the samples: {len(EDITS)}; compiled with -DCONFIG_X86 -DSPILE_KERNEL_VERSION={RELEASES['6.12']}")


def cases():
    with temporary_directory() as directory:
        Work.directory = directory
        need_tool("gcc")
        if not os.path.exists(os.path.join(BUILD, "libspile.so")):
            raise Skip("the library is not built")
        yield samples_of_6_1
        yield samples_of_6_12


if __name__ == "__main__":
    main(cases(), seconds=400)
