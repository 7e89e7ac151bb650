#!/usr/bin/env python3
"""Go programs: every function probed, goroutines at the end of their stacks, hits on private stacks that come and go."""
import os
import re
import signal
import time

from harness import Process, Spile, Target, check, check_exit_success, need_tool, target_path, wait_for_work
from tracing import (check_says, check_status, compile_program, histogram_total, keyed, main, run, scalar, spile,
                     temporary_directory, wait_until)

CASES = []
PROGRAM = "go_nosplit_stacks"
POOL_BYTES = 8 << 20
# Instructions that are traps, and the trampoline that unwinders know by its bytes.
NEVER = {"runtime.abort.abi0", "runtime.abort", "runtime.sigreturn.abi0", "runtime.sigreturn"}


def case(function):
    def with_go():
        need_tool("go")
        function()
    with_go.__name__ = function.__name__
    CASES.append(with_go)
    return with_go


def refused(text):
    return set(re.findall(r"^spile: not probed: [^:\s]+:(\S+) at ", text, re.M))


def attached(text):
    return int(re.search(r"Attached (\d+) probe", text).group(1))


def build(directory, name, source, cgo=False):
    path = f"{directory}/{name}"
    with open(f"{path}.go", "w", encoding="utf-8") as file:
        file.write(source)
    env = {"HOME": directory, "GOCACHE": f"{directory}/cache", "GO111MODULE": "off", "CGO_ENABLED": "1" if cgo else "0"}
    check_status(run(["go", "build", "-o", path, f"{path}.go"], seconds=180, env=env), 0)
    return path


def private_pools(pid):
    """Mappings of the pool's size that are nobody's file."""
    found = []
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        for line in maps:
            fields = line.split(None, 5)
            begin, end = (int(part, 16) for part in fields[0].split("-"))
            if end - begin == POOL_BYTES and fields[1] == "rw-p" and len(fields) == 5:
                found.append(begin)
    return found


@case
def nearly_every_function_takes_a_probe():
    path = target_path(PROGRAM)
    result = spile("-v", "-e", f"uprobe:{path}:* {{ @ = count(); }}", "-c", f"{path} --rounds 1")
    check_status(result, 0)
    check("exit-success", "EXIT-SUCCESS" in result.out, result.report()[-2000:])
    left = refused(result.err)
    check("no-refusal", left <= NEVER, f"also refused: {left - NEVER}")
    check("hits-happened", scalar(result.out, "@") > 100000, result.out[-300:])
    names = len(set(spile("-l", f"uprobe:{path}:*").out.splitlines()))
    check("no-refusal", attached(result.err) >= names - 2, f"{attached(result.err)} of {names}")


BIG = """{ @n = count(); @h = hist(reg("ax")); @s[str(reg("bx"), 16)] = count(); @d = hist(nsecs & 0xff); }
  uprobe:PATH:main.dereference { printf("at %s %s\\n", func, str(reg("ax"), 32)); }"""


@case
def everything_is_probed_while_the_collector_runs_all_the_time():
    path = target_path(PROGRAM)
    for env in ({"GOGC": "1", "GODEBUG": "asyncpreemptoff=0"}, {"GOGC": "1", "GOMAXPROCS": "8"}):
        bare = run([path, "--rounds", "1"], env=env)
        script = (f"uprobe:{path}:* " + BIG.replace("PATH", path))
        result = spile("-e", script, "-c", f"{path} --rounds 1", env=env, seconds=100)
        check_status(result, 0)
        check("same-output", bare.out.strip() in result.out, f"{env}\n{result.report()[-3000:]}")
        hits = scalar(result.out, "@n")
        check("hits-happened", hits > 100000, f"{hits}")
        # At its end the program's other threads are killed, also in the middle of a hit: at most one each.
        for name in ("@h", "@d"):
            total = histogram_total(result.out, name)
            check("exact-count", hits - 16 <= total <= hits, f"{hits} hits, {total} in {name}")
        check("hits-happened", result.out.count("at main.dereference") > 100, result.report()[-1000:])


@case
def returns_of_everything_agree_with_the_program():
    path = target_path(PROGRAM)
    script = (f"uretprobe:{path}:main.* {{ @[func] = count(); }} uretprobe:{path}:runtime.mem* {{ @m = count(); }}"
              f"uprobe:{path}:main.probe_me_leaf {{ @entries = count(); }}")
    result = spile("-e", script, "-c", f"{path} --rounds 4", env={"GOGC": "1"}, seconds=100)
    check_status(result, 0)
    calls = int(re.search(r"^calls=(\d+)$", result.out, re.M).group(1))
    counted = keyed(result.out, "@")
    leaves, entries = counted.get("main.probe_me_leaf", 0), scalar(result.out, "@entries")
    check("exact-count", leaves == entries, f"{leaves} returns, {entries} entries\n{result.report()[-2000:]}")
    check("exact-count", leaves == counted.get("main.fills_the_rest") == counted.get("main.checks_itself"), f"{counted}")
    # Half of the dereferences panic: those functions are left by a panic, not by their ret.
    dereferences = calls - leaves
    check("exact-count", counted.get("main.probe_me_nil") * 2 == dereferences, f"{counted}, {dereferences} dereferences")


@case
def programs_see_the_goroutines_stack():
    path = target_path(PROGRAM)
    script = (f"uprobe:{path}:main.probe_me_leaf {{ @n = count(); @[ustack(2)] = count();"
              "  if (*(uint64 *)reg(\"sp\") > 0x400000) { @returns = count(); } }")
    result = spile("-v", "-e", script, "-c", f"{path} --rounds 2")
    check_status(result, 0)
    check("exact-count", scalar(result.out, "@returns") == scalar(result.out, "@n") > 10000, result.report()[-1500:])
    check("no-loss", " 0 failed reads" in result.err, result.err[-500:])
    stack = re.search(r"@\[\n\s+main\.probe_me_leaf\+\d+\n\s+main\.fills_the_rest\+\d+\n\]: (\d+)", result.out)
    check("exact-count", stack and int(stack.group(1)) == scalar(result.out, "@n"), result.report()[-1500:])


@case
def a_killed_tracer_leaves_nothing_behind():
    path = target_path(PROGRAM)
    with Target(path, wait=True, loop=60) as target:
        before = private_pools(target.pid)
        target.send_line()
        with Spile(f"uprobe:{path}:main.* {{ @ = count(); }} uprobe:{path}:runtime.* {{ @r = count(); }}",
                   pid=target.pid) as tracer:
            check("in-time", tracer.wait_attached(), tracer.report())
            check("mappings", len(private_pools(target.pid)) == len(before) + 1, "there is no pool of private stacks")
            time.sleep(0.2)
            tracer.send(signal.SIGKILL)
            tracer.finish()
        check_status(spile("detach", "-p", target.pid), 0)
        check("mappings-unchanged", private_pools(target.pid) == before, "the pool is still there")
        check("alive", target.alive(), target.report()[-2000:])


@case
def probes_come_and_go_under_a_busy_program():
    """Threads are stopped on private stacks and in signal handlers above them."""
    path = target_path(PROGRAM)
    with Target(path, wait=True, loop=12, env={"GOGC": "5"}) as target:
        before = private_pools(target.pid)
        target.send_line()
        hits, cycles, end = 0, 0, time.monotonic() + 8
        while time.monotonic() < end:
            with Spile(f"uprobe:{path}:* {{ @ = count(); }}", pid=target.pid) as tracer:
                if not tracer.wait_attached():
                    # On a slow machine it may end first.
                    wait_until(lambda: not target.alive(), "the end of the target, or an attach")
                    break
                wait_for_work(target.pid, 0.02)
                tracer.stop()
                hits += int(tracer.maps().get("@", 0))
            cycles += 1
            check("mappings-unchanged", private_pools(target.pid) == before, "the pool is still there")
        check_exit_success(target.finish(60), target)
        print(f"    {cycles} cycles, {hits} hits")
        check("hits-happened", cycles > 0 and hits > 0, f"{cycles} cycles, {hits} hits")


CGO = r"""
package main
/*
static int cadd(int a, int b) { return a + b; }
extern int goback(int);
static int through(int a) { return goback(a) + 1; }
*/
import "C"
import ("fmt"; "os"; "sync")
//export goback
func goback(a C.int) C.int { return a * 2 }
//go:noinline
func work(i int) bool { return C.cadd(C.int(i), 3) == C.int(i+3) && (i%8 != 0 || C.through(C.int(i)) == C.int(2*i+1)) }
func main() {
	var w sync.WaitGroup
	for g := 0; g < 8; g++ {
		w.Add(1)
		go func() {
			defer w.Done()
			for i := 0; i < 2000; i++ {
				if !work(i) { os.Exit(4) }
			}
		}()
	}
	w.Wait()
	fmt.Println("fine")
}
"""


@case
def c_code_in_a_go_program_is_probed_on_its_own_stack():
    need_tool("gcc")
    with temporary_directory() as directory:
        path = build(directory, "cgo", CGO, cgo=True)
        result = spile("-e", f"uprobe:{path}:* {{ @ = count(); }} uprobe:{path}:main.work {{ @w = count(); }}", "-c", path)
        check_status(result, 0)
        check("same-output", "fine" in result.out, result.report()[-2000:])
        check("at-least", scalar(result.out, "@w") >= 16000, result.report()[-1000:])
        check("hits-happened", scalar(result.out, "@") > 100000, result.report()[-1000:])


LARGE = " ".join(f'$s{i} = str(reg("ax") + {i}, 64); @s{i}[$s{i}] = count();' for i in range(3))


@case
def programs_too_large_for_a_goroutine_run_elsewhere():
    path = target_path(PROGRAM)
    script = f"uprobe:{path}:main.probe_me_leaf, uprobe:{path}:main.fills_the_rest {{ @n = count(); {LARGE} }}"
    result = spile("-e", script, "-c", f"{path} --rounds 2")
    check_status(result, 0)
    check("exit-success", "EXIT-SUCCESS" in result.out, result.report()[-2000:])
    check("hits-happened", scalar(result.out, "@n") > 10000, result.report()[-500:])


@case
def what_go_handles_by_address_says_so():
    """Behind the first instruction, with a frame."""
    path = target_path("go_growing_stacks")
    with temporary_directory() as directory:
        source = """
package main
import "fmt"
type pair struct { a, b int }
//go:noinline
func other(n int) int { return n + 1 }
//go:noinline
func sum(p *pair, n int) int { n = other(n); return p.a + p.b + other(n) }
func main() { fmt.Println(sum(&pair{1, 2}, 3)) }
"""
        path = build(directory, "sum", source)
        code = run(["objdump", "-d", "--no-show-raw-insn", "--disassemble=main.sum", path]).out
        start = int(re.search(r"^([0-9a-f]+) <main.sum>:", code, re.M).group(1), 16)
        load = re.search(r"^\s+([0-9a-f]+):\s+(?:mov|add)\s+0x8\(%r[a-d]x\)", code, re.M)
        check("setup", load is not None, code)
        offset = int(load.group(1), 16) - start
        result = spile("-e", f"uprobe:{path}:main.sum+{offset} {{ @ = count(); }}", "-c", path)
        check_status(result, 1)
        check_says(result, "Go makes a panic of a nil pointer's fault by the address of the instruction")


if __name__ == "__main__":
    main(CASES, 420)
