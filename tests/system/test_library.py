#!/usr/bin/env python3
"""The library as its users have it: installed, found by CMake and pkg-config; its tracepoints seen from outside."""
import os
import re
import shutil
import time

from harness import SPILE, Process, Skip, check, need_root, need_tool
from tracing import (check_prints, check_says, check_status, compile_program, keyed, main, run, scalar, spile, temporary_directory)

SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.dirname(os.path.abspath(SPILE))
CASES = []


class Work:
    directory = prefix = examples = None


def case(function):
    CASES.append(function)
    return function


def installed():
    """The prefix that the library is installed into; once."""
    if Work.prefix is None:
        need_tool("cmake")
        if not os.path.exists(os.path.join(BUILD, "libspile.a")):
            raise Skip("the library is not built")
        Work.prefix = os.path.join(Work.directory, "prefix")
        check_status(run(["cmake", "--install", BUILD, "--prefix", Work.prefix, "--component", "library"], seconds=60), 0)
    return Work.prefix


def library_path():
    prefix = installed()
    for folder, _, files in os.walk(prefix):
        if "libspile.so" in files:
            return folder
    raise Skip("no libspile.so in the prefix")


def environment():
    return {"LD_LIBRARY_PATH": library_path()}


def examples():
    """The examples, built outside of the tree against the installed package; once."""
    if Work.examples is None:
        prefix = installed()
        build = os.path.join(Work.directory, "examples")
        check_status(run(["cmake", "-S", os.path.join(SOURCE, "examples"), "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}"],
                         seconds=120), 0)
        check_status(run(["cmake", "--build", build], seconds=300), 0)
        Work.examples = build
    return Work.examples


@case
def examples_build_outside_the_tree_and_run():
    folder = examples()
    for name, says in (("probe_a_function", r"sum 160, seen 3 calls"), ("hook_in_a_test", r"with the hook: refused\nafter: saved"),
                       ("latencies", r"work_long: 50 calls, work_short: 50 calls"), ("server", r"21 .*|3 errors"),
                       ("server_static", r"3 errors"), ("script_inside", r"2048 to 4095 bytes: 2\n(?s:.*)5 calls, 5 lines, 5 timed, 0 lost")):
        result = run([os.path.join(folder, name)], env=environment())
        check_status(result, 0)
        check_prints(result, says)
    for symbol, calls in (("encode", 3), ("decode", 3)):
        module = run([os.path.join(folder, "kernel_module")], env={**environment(), "SPILE_PARAM_symbol": symbol, "SPILE_PARAM_limit": "1"})
        check_status(module, 0)
        check_says(module, rf"^module: Planted kprobe at {symbol}\+0x0/0x[0-9a-f]+\nmodule: <{symbol}> pre_handler: \d+\nmodule: {calls} calls\n$")
    wrong = run([os.path.join(folder, "kernel_module")], env={**environment(), "SPILE_PARAM_symbol": "nothing"})
    check_status(wrong, 0)  # the program goes on, and exit does not run
    check_says(wrong, r"^module: register_kprobe failed, returned -2: [^\n]*nothing[^\n]*\n$")
    needed = run(["ldd", os.path.join(folder, "server_static")]).out
    check("static", "libspile" not in needed, needed)


@case
def programs_of_the_guide_are_the_examples():
    with open(os.path.join(SOURCE, "docs", "library.md"), encoding="utf-8") as file:
        guide = file.read()
    folder = os.path.join(SOURCE, "examples")
    texts = {}
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            texts[name] = file.read()
    programs = [block for block in re.findall(r"```cpp\n(.*?)```", guide, re.S) if "int main" in block]
    check("hits-happened", programs, "the guide has no complete program")
    for block in programs:
        check("same-program", any(block in text for text in texts.values()), block)
    linked = set(re.findall(r"\(\.\./examples/([a-z_]+\.cc?)\)", guide))
    check("all-linked", linked == {name for name in texts if name.endswith((".cc", ".c"))}, f"{linked} {sorted(texts)}")


C_PROGRAM = r"""
#include <spile/probes.h>
#include <stdio.h>
__attribute__((noinline)) long f(long n) { __asm__ volatile(""); return n + 1; }
static long hits;
static int before(struct spile_kprobe *p, struct spile_regs *regs) { hits += regs->di == 4; return 0; }
int main(void) {
  struct spile_kprobe kp = {.symbol_name = "f", .pre_handler = before};
  int error = spile_register_kprobe(&kp);
  if (error) { printf("%s\n", spile_error_text()); return 1; }
  long r = f(4);
  error = spile_unregister_kprobe(&kp);
  f(4);
  printf("r=%ld hits=%ld\n", r, hits);
  return error;
}
"""


@case
def a_c_program_finds_it_with_pkg_config():
    need_tool("pkg-config")
    path = os.path.join(library_path(), "pkgconfig")
    flags = run(["pkg-config", "--define-variable=prefix=" + installed(), "--cflags", "--libs", "spile"], env={"PKG_CONFIG_PATH": path})
    check_status(flags, 0)
    source = os.path.join(Work.directory, "c_program.c")
    with open(source, "w", encoding="utf-8") as file:
        file.write(C_PROGRAM)
    program = os.path.join(Work.directory, "c_program")
    check_status(run(["gcc", "-std=c11", "-O2", source, "-o", program, *flags.out.split()], seconds=60), 0)
    result = run([program], env=environment())
    check_status(result, 0)
    check_prints(result, "r=5 hits=1")


def kernel_engine_works(program):
    result = spile("-q", "--engine", "kernel", "-e", f"usdt:{program}:server:request {{ @ = count(); }} BEGIN {{ exit(); }}")
    return result.status == 0


@case
def tracepoints_are_static_tracepoints_for_both_engines():
    program = os.path.join(examples(), "server")
    listed = spile("-l", f"usdt:{program}:*").out
    check("listed", "server:request" in listed and "server:reply" in listed, listed)
    fields = spile("-lv", f"usdt:{program}:server:reply").out
    check("fields", "\n    int id\n    unsigned status\n    long bytes\n    at 0x" in fields, fields)
    wrong = spile("-e", f"usdt:{program}:server:reply {{ print(args.byte); }}")
    check_status(wrong, 1)
    check_says(wrong, "(?s)server:reply has no argument 'byte'.*did you mean 'bytes'")
    stripped = os.path.join(Work.directory, "server_stripped")
    check_status(run(["strip", "-o", stripped, program]), 0)
    check("names-survive-strip", "long bytes" in spile("-lv", f"usdt:{stripped}:*").out, "")
    # Kernel uprobes do not work on every file system.
    program = shutil.copy(program, f"/dev/shm/spile-test-server-{os.getpid()}")
    try:
        check_both_engines(program)
    finally:
        os.unlink(program)


def check_both_engines(program):
    script = (f"usdt:{program}:server:request {{ @paths[str(arg1)] = count(); @ids = sum(arg0); }} "
              f"usdt:{program}:server:reply {{ @status[arg1] = count(); @bytes = sum(arg2); }}")
    engines = ["user"] + (["kernel"] if os.geteuid() == 0 and kernel_engine_works(program) else [])
    print(f"    engines: {', '.join(engines)}")
    for engine in engines:
        result = spile("-q", "--engine", engine, "-e", script, "-c", f"{program} 30", env=environment())
        check_status(result, 0)
        paths, status = keyed(result.out, "@paths"), keyed(result.out, "@status")
        check("exact-count", paths == {"/index": 10, "/data": 20} and status == {"200": 26, "404": 4}, result.report())
        check("values", scalar(result.out, "@ids") == 465 and scalar(result.out, "@bytes") == 3465, result.report())
        check("callbacks-too", "4 errors" in result.out, result.report())
    named = (f"usdt:{program}:server:request {{ @paths[str(args.path)] = count(); @ids = sum(args.id); }} "
             f"usdt:{program}:server:reply {{ @status[args.status] = count(); @bytes = sum(args.bytes); }} "
             f"usdt:{program}:server:re* {{ @all = sum(args.id); }}")
    for engine in engines:
        result = spile("-q", "--engine", engine, "-e", named, "-c", f"{program} 30", env=environment())
        check_status(result, 0)
        paths, status = keyed(result.out, "@paths"), keyed(result.out, "@status")
        check("exact-count", paths == {"/index": 10, "/data": 20} and status == {"200": 26, "404": 4}, result.report())
        check("values", [scalar(result.out, "@" + name) for name in ("ids", "bytes", "all")] == [465, 3465, 930], result.report())


@case
def a_running_program_is_attached_to_and_its_own_callbacks_go_on():
    program = os.path.join(examples(), "server")
    result = run(["sh", "-c", f"{program} 200 15 & sleep 0.1; {SPILE} -q --engine user -e "
                  f"'usdt:{program}:server:request {{ @ = count(); @n++; if (@n > 5) {{ exit(); }} }}' -p $!; wait"], env=environment())
    check_status(result, 0)
    check("hits-happened", (scalar(result.out, "@") or 0) > 5, result.report())
    check("all-callbacks", "28 errors" in result.out, result.report())


@case
def bpftrace_and_gdb_see_them():
    program = os.path.join(examples(), "server")
    need_tool("gdb")
    result = run(["gdb", "-batch", "-ex", "info probes stap", "-ex", "break -probe-stap server:reply", "-ex", "run", "-ex",
                  "print $_probe_arg1", program], env=environment(), seconds=60)
    check_prints(result, r"stap\s+server\s+request")
    check_prints(result, r"\$1 = 200")
    need_root()
    need_tool("bpftrace")
    copy = shutil.copy(program, "/dev/shm/spile-test-server")
    try:
        traced = run(["bpftrace", "-e", f"usdt:{copy}:server:request {{ @[str(arg1)] = count(); }}", "-c", f"{copy} 30"],
                     env=environment(), seconds=60)
        if "Attaching" not in traced.out + traced.err:
            raise Skip("bpftrace does not work here: " + traced.err.strip()[:200])
        check("exact-count", keyed(traced.out, "@") == {"/index": 10, "/data": 20}, traced.report())
    finally:
        os.unlink(copy)


@case
def the_child_in_our_memory_needs_no_symbol_of_anybody():
    """It runs while any thread may hold any lock of the C library (src/api/short_stop.h)."""
    need_tool("nm")
    name = "src/api/CMakeFiles/spile_api.dir/short_stop_child.cc.o"
    listed = run(["nm", os.path.join(BUILD, name)])
    check_status(listed, 0)
    check("has-code", "run_short_stop" in listed.out, listed.report())
    undefined = run(["nm", "-u", os.path.join(BUILD, name)])
    check_status(undefined, 0)
    check("no-symbol-needed", undefined.out.strip() == "", undefined.report())


STATIC_PROGRAM = r"""
#include <spile/tracer.hpp>
#include <cstdio>
int main() {
  auto tracer = spile::Tracer::start("BEGIN { exit(); }");
  std::puts(tracer ? "started" : tracer.error_text().c_str());
}
"""


@case
def a_program_with_the_library_inside_runs_nothing_beside_the_name_it_is_called_by():
    """argv[0] is its caller's to choose: that of a setuid program, too."""
    source, program = os.path.join(Work.directory, "static.cc"), os.path.join(Work.directory, "static")
    with open(source, "w", encoding="utf-8") as file:
        file.write(STATIC_PROGRAM)
    libraries = ["-lfmt", "-lZydis", "-lZycore", "-llzma", "-lpthread"]
    check_status(run(["g++", "-std=c++17", "-O1", "-I" + os.path.join(installed(), "include"), source, "-o", program,
                      os.path.join(library_path(), "libspile.a"), *libraries], seconds=120), 0)
    theirs, sign = os.path.join(Work.directory, "theirs"), os.path.join(Work.directory, "was-run")
    os.mkdir(theirs)
    with open(os.path.join(theirs, "spile"), "w", encoding="utf-8") as file:
        file.write(f"#!/bin/sh\n: > {sign}\n")
    os.chmod(os.path.join(theirs, "spile"), 0o755)
    check("would-be-found", run(["/bin/bash", "-c", f"PATH={theirs} exec {program}"]).status == 0 and os.path.exists(sign), "")
    os.unlink(sign)
    called = run(["/bin/bash", "-c", f"PATH=/nowhere exec -a {theirs}/name {program}"])
    check_prints(called, r"neither beside the library nor in \$PATH")
    check("nothing-was-run", not os.path.exists(sign), called.report())


@case
def the_tracing_process_is_not_run_by_hand():
    by_hand = run([SPILE, "library-tracer"])
    check_status(by_hand, 1)
    check_says(by_hand, "the program has ended")
    nonsense = run(["bash", "-c", f"{SPILE} library-tracer 3<<<'nonsense'"])
    check_status(nonsense, 1)
    foreign = run(["python3", "-c", """
import socket, struct, subprocess, sys
ours, theirs = socket.socketpair()
ours.sendall(struct.pack("<IBI", 5, 1, 99))
import os
os.dup2(theirs.fileno(), 3)
done = subprocess.run([sys.argv[1], "library-tracer"], pass_fds=[3], capture_output=True, text=True, timeout=20)
print(done.returncode, done.stderr)
""", SPILE])
    check_prints(foreign, r"1 spile: the library is of another version than the program spile \(protocol 99, not 1\)")


@case
def without_optimisation_and_with_clang_they_work_too():
    flags = ["-std=c++17", "-I" + os.path.join(installed(), "include"), os.path.join(SOURCE, "examples", "server.cc"),
             "-L" + library_path(), "-lspile"]
    for compiler, level in (("g++", "-O0"), ("clang++-19", "-O2"), ("clang++-19", "-O0"), ("g++", "-Os")):
        if shutil.which(compiler) is None:
            continue
        program = os.path.join(Work.directory, f"server_{compiler}{level}")
        check_status(run([compiler, level, "-Wall", "-Wextra", "-Wpedantic", "-Werror", *flags, "-o", program], seconds=120), 0)
        result = spile("-q", "--engine", "user", "-e", f"usdt:{program}:server:reply {{ @[arg1] = count(); }}", "-c", f"{program} 14",
                       env=environment())
        check_status(result, 0)
        check("exact-count", keyed(result.out, "@") == {"200": 12, "404": 2} and "2 errors" in result.out, result.report())
        check("fields", "    const char* path\n" in spile("-lv", f"usdt:{program}:server:request").out, f"{compiler} {level}")


def cases():
    with temporary_directory() as directory:
        Work.directory = directory
        need_tool("g++")
        yield from CASES


if __name__ == "__main__":
    main(cases(), seconds=400)
