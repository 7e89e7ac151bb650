#!/usr/bin/env python3
"""The figures of README.md, measured in one run on one machine: ./dev bench [--quick]

Each hit cost is the median time of a call with the probe less the median without it, both from the same process; the
counts of the counting scripts are checked against the calls the program made. Ratios within a run carry over to other
machines, absolute values do not.
"""
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SPILE = os.environ.get("SPILE_BINARY", str(ROOT / "build/release/spile"))
QUICK = "--quick" in sys.argv
# tmpfs: kernel uprobes on some file systems are slow or noisy.
WORK = pathlib.Path(tempfile.mkdtemp(prefix="spile-bench-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))


def build(name, source, *flags):
    out = WORK / name
    subprocess.run(["cc", "-O2", "-g0", *flags, "-o", str(out), str(source)], check=True)
    return out


class Target:
    """A process that runs functions when told."""

    def __init__(self, path):
        self.process = subprocess.Popen([str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "ready\n"
        self.pid = self.process.pid

    def run(self, function, paced=False):
        """Paced: few calls a chunk, with pauses in which records are read, so that no ring is full."""
        self.process.stdin.write(f"{'pace' if paced else 'run'} {function}\n")
        self.process.stdin.flush()
        median, least, calls = self.process.stdout.readline().split()
        return float(median), float(least), int(calls)

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=10)


class Spile:
    """A spile attached to a process; the script's maps once it is stopped."""

    def __init__(self, pid, script, engine, extra=(), env=None):
        self.process = subprocess.Popen(
            [SPILE, "-q", *extra, "-f", "json", "--engine", engine, "-p", str(pid), "-o", str(WORK / "out.json"), "-e", script],
            env={**os.environ, **(env or {})}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        # A file, not a pipe: nobody has to read while the target runs.
        while '"attached_probes"' not in self.read():
            if self.process.poll() is not None:
                raise RuntimeError(self.process.stderr.read().strip())
            time.sleep(0.002)

    @staticmethod
    def read():
        try:
            return (WORK / "out.json").read_text()
        except FileNotFoundError:
            return ""

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        _, err = self.process.communicate(timeout=120)
        out = self.read()
        (WORK / "out.json").unlink()
        if self.process.returncode != 0:
            raise RuntimeError(err)
        maps = {}
        for line in out.splitlines():
            record = json.loads(line)
            if record["type"] in ("map", "hist"):
                maps.update(record["data"])
            elif record["type"] == "printf":
                maps["printed"] = maps.get("printed", 0) + 1
        return maps


def row(*cells):
    print("| " + " | ".join(str(c) for c in cells) + " |", flush=True)


def hit_costs(path):
    p = str(path)
    scripts = [
        ("counter `@ = count()`", "uprobe:%(path)s:%(function)s { @ = count(); }"),
        ("sum `@ = sum(arg1)`", "uprobe:%(path)s:%(function)s { @ = sum(arg1); }"),
        ("hist `@ = hist(arg1)`", "uprobe:%(path)s:%(function)s { @ = hist(arg1); }"),
        ("hash `@[arg1 & 63] = count()`", "uprobe:%(path)s:%(function)s { @[arg1 & 63] = count(); }"),
        ("string key `@[str(arg0)] = count()`", "uprobe:%(path)s:%(function)s { @[str(arg0)] = count(); }"),
        ("event `printf(\"%d %d\", arg1, arg2)`", "uprobe:%(path)s:%(function)s { printf(\"%%d %%d\\n\", arg1, arg2); }"),
        ("counter at the second instruction", "uprobe:%(path)s:%(function)s+3 { @ = count(); }"),
        ("return counter", "uretprobe:%(path)s:%(function)s { @ = count(); }"),
        ("latency histogram, start by thread", "uprobe:%(path)s:%(function)s { @s[tid] = nsecs; } "
         "uretprobe:%(path)s:%(function)s { @ = hist(nsecs - @s[tid]); }"),
        ("latency histogram, `duration`", "uretprobe:%(path)s:%(function)s { @ = hist(duration); }"),
        ("latency by argument, `@[arg1 & 63] = hist(duration)`",
         "uretprobe:%(path)s:%(function)s { @[arg1 & 63] = hist(duration); }"),
        ("stack `@[ustack(3)] = count()`", "uprobe:%(path)s:%(function)s { @[ustack(3)] = count(); }"),
    ]
    print("\n## Cost of a hit\n")
    print("ns over the bare call, median of 51 chunks. Kernel uprobes of the same script on the same function; the column "
          "names the probed instruction.\n")
    row("script", "bare call", "user engine", "kernel: mov (single-stepped)", "kernel: push (emulated)", "kernel: nop5", "count")
    row(*["---"] * 7)
    for title, script in scripts:
        cells = [title]
        target = Target(path)
        paced = "printf" in script
        bare, _, _ = target.run("hot", paced)
        cells.append(f"{bare:.1f}")
        try:
            spile = Spile(target.pid, script % {"path": p, "function": "hot"}, "user")
            median, _, calls = target.run("hot", paced)
            maps = spile.stop()
            cells.append(f"+{median - bare:.1f}")
            verdict = "-"
            if script.endswith("@ = count(); }"):
                verdict = "exact" if maps.get("@") == calls else f"{maps.get('@')} of {calls}"
            elif paced:
                verdict = "all printed" if maps.get("printed") == calls else f"{maps.get('printed')} of {calls} printed"
        except RuntimeError as error:
            cells.append(f"failed: {error}")
            verdict = ""
        for function in ("hot", "push", "nop5"):
            inside = "+3" in script and function != "hot"  # there +3 is no instruction
            if os.geteuid() != 0 or inside or (QUICK and function != "nop5"):
                cells.append("-")
                continue
            try:
                base, _, _ = target.run(function, paced)
                spile = Spile(target.pid, script % {"path": p, "function": function}, "kernel")
                median, _, _ = target.run(function, paced)
                spile.stop()
                cells.append(f"+{median - base:.0f}")
            except RuntimeError as error:
                cells.append("n/a")
        row(*cells, verdict)
        target.close()


def trap_costs(path):
    """An int3 with a slot against an int3 of the program itself, whose handler does nothing."""
    print("\n## Cost of a hit with --allow-trap\n")
    own, probed = Target(path), Target(path)
    bare, _, _ = probed.run("hot")
    spile = Spile(probed.pid, f"uprobe:{path}:hot {{ @ = count(); }}", "user", ["--allow-trap"], {"SPILE_ONLY_TRAPS": "1"})
    ours, theirs, calls = [], [], 0
    for _ in range(3 if QUICK else 7):  # in turn: the machine's speed changes
        theirs.append(own.run("int3")[0] - bare)
        median, _, some = probed.run("hot")
        ours.append(median - bare)
        calls += some
    maps = spile.stop()
    own.close(), probed.close()
    theirs, ours = statistics.median(theirs), statistics.median(ours)
    row("the program's int3, its own handler", "int3 with slot, counter", "ratio", "count")
    row(*["---"] * 4)
    row(f"+{theirs:.0f} ns", f"+{ours:.0f} ns", f"{ours / theirs:.2f}", "exact" if maps.get("@") == calls else f"{maps.get('@')} of {calls}")


class ManyFunctions:
    """A program of n functions, to be attached to as a whole."""

    def __init__(self, n):
        source = WORK / f"many{n}.c"
        source.write_text(subprocess.run([sys.executable, str(ROOT / "tools/bench/many.py"), str(n)], check=True, capture_output=True, text=True).stdout)
        self.path = build(f"many{n}", source, "-O1")

    def cycle(self, *options):
        """Attach and detach once: ms of both, bytes of ours and of copied pages in the target, what was said at the end."""
        target = subprocess.Popen([str(self.path)], stdout=subprocess.PIPE, text=True)
        target.stdout.readline()
        try:
            start = time.monotonic()
            process = subprocess.Popen([SPILE, *options, "-f", "json", "--engine", "user", "-p", str(target.pid), "-e",
                                        f"uprobe:{self.path}:fn_* {{ @ = count(); }}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            line = process.stdout.readline()
            attach = (time.monotonic() - start) * 1e3
            if '"attached_probes"' not in line:
                raise RuntimeError(process.communicate()[1][-300:])
            time.sleep(0.05)
            memory = self.memory(target.pid)
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
            return attach, (time.monotonic() - start) * 1e3, memory, err
        finally:
            target.kill()
            target.wait()

    def memory(self, pid):
        """Bytes that are there because of us: our mappings, and the pages of code that a jump has made private."""
        ours = copied = 0
        with open(f"/proc/{pid}/smaps") as smaps:
            for line in smaps:
                word = line.split()
                if "-" in word[0]:
                    is_ours = "spile-" in line
                    is_code = str(self.path) in line and word[1][2] == "x"
                elif word[0] == "Rss:" and is_ours:
                    ours += int(word[1]) * 1024
                elif word[0] == "Anonymous:" and is_code:
                    copied += int(word[1]) * 1024
        return ours, copied


def attach_costs():
    """Without -v, which describes each site at great length; how long the target stood still is asked for in a run of its own."""
    print("\n## Attach and detach\n")
    print("The whole command, start-up included. Per function: over what one function takes.\n")
    row("functions", "attach ms", "target stopped ms", "detach and exit ms", "attach us a function", "detach us a function",
        "our bytes a function in the target", "code pages copied, bytes a function")
    row(*["---"] * 8)
    first = None
    for n in (1, 1000) if QUICK else (1, 1000, 10000, 100000):
        program = ManyFunctions(n)
        attach, stop, detach, memory = [], [], [], []
        for _ in range(3 if QUICK or n > 10000 else 7):
            took, back, bytes_used, _ = program.cycle()
            attach.append(took), detach.append(back), memory.append(bytes_used)
            found = re.search(r"stopped for ([0-9.]+) ms", program.cycle("-v")[3])
            if found:
                stop.append(float(found.group(1)))
        here = [statistics.median(attach), statistics.median(detach), *memory[-1]]
        first = first or here
        each = [(a - b) / (n - 1) if n > 1 else 0 for a, b in zip(here, first)]
        cells = ["-"] * 4 if n == 1 else [f"{each[0] * 1e3:.1f}", f"{each[1] * 1e3:.1f}", f"{each[2]:.0f}", f"{each[3]:.0f}"]
        row(n, f"{here[0]:.1f}", f"{statistics.median(stop):.1f}" if stop else "?", f"{here[1]:.1f}", *cells)


def switching(path):
    """A hit on a probe that is off, and how long switching all probes of many functions takes, from the signal to the answer."""
    print("\n## Switching\n")
    target = Target(path)
    bare, _, _ = target.run("push")
    script = f"uprobe:{path}:push {{ @ = count(); }}"
    spile = Spile(target.pid, script, "user")
    on, _, calls = target.run("push")
    spile.process.send_signal(signal.SIGUSR2)
    time.sleep(0.2)
    off, _, _ = target.run("push")
    counted = int(spile.stop()["@"])
    target.close()
    row("probe", "ns a hit")
    row("---", "---")
    row("on", f"+{on - bare:.1f}" + ("" if counted == calls else f" ({counted} of {calls} counted)"))
    row("switched off", f"+{off - bare:.2f}")
    functions = 1000 if QUICK else 10000
    many = ManyFunctions(functions).path
    target = subprocess.Popen([str(many)], stdout=subprocess.PIPE, text=True)
    target.stdout.readline()
    process = subprocess.Popen([SPILE, "--engine", "user", "-p", str(target.pid), "-e", f"uprobe:{many}:fn_* {{ @ = count(); }}"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        while "Attached" not in process.stderr.readline():
            pass
        times = []
        for word in ("paused", "resumed") * 11:
            start = time.monotonic()
            process.send_signal(signal.SIGUSR2)
            while word not in process.stderr.readline():
                pass
            times.append((time.monotonic() - start) * 1e9 / functions)
        row(f"switching one of {functions}, the signal included", f"{statistics.median(times[2:]):.0f}")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    finally:
        target.kill()
        target.wait()


def start_up():
    print("\n## Start-up of `BEGIN { exit(); }`\n")
    row("tool", "ms (median)", "peak memory MB")
    row(*["---"] * 3)
    peak = build("peak", ROOT / "tools/bench/peak.c")
    tools = [("spile, user engine", [SPILE, "-q", "--engine", "user", "-e", "BEGIN { exit(); }"])]
    if os.geteuid() == 0:
        tools.append(("spile, kernel engine", [SPILE, "-q", "--engine", "kernel", "-e", "BEGIN { exit(); }"]))
        if shutil.which("bpftrace"):
            tools.append(("bpftrace", ["bpftrace", "-e", "BEGIN { exit(); }"]))
    for name, command in tools:
        times, memory = [], 0
        for _ in range(5 if QUICK else 21):
            start = time.monotonic()
            run = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            times.append((time.monotonic() - start) * 1e3)
            if run.returncode != 0:
                times = None
                print(name, "failed:", run.stderr.strip())
                break
        measured = subprocess.run([str(peak), *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        found = re.search(r"peak-kib (\d+)", measured.stderr)
        memory = int(found.group(1)) / 1024 if found else 0
        if times:
            row(name, f"{statistics.median(times):.1f}", f"{memory:.1f}")


def library():
    """Costs inside the own program: printed by tests/library/figures.cc."""
    print("\n## The library, added to the bare call\n")
    program = pathlib.Path(SPILE).parent / "tests/library/spile_library_figures"
    if not program.exists():
        print(f"not measured: {program} is not built (ninja spile_library_figures)")
        return
    row("what", "cost")
    row("---", "---")
    for line in subprocess.run([str(program)], capture_output=True, text=True).stdout.splitlines():
        found = re.match(r"(.*\S)\s{2,}(\S+ \S+)$", line)
        row(*(found.groups() if found else (line, "")))


def sizes():
    print("\n## Sizes\n")
    binary = os.path.getsize(SPILE)
    libraries = 0
    for line in subprocess.run(["ldd", SPILE], capture_output=True, text=True).stdout.splitlines():
        found = re.search(r"=> (/\S+)", line)
        if found and not re.search(r"/(libc|libm|ld-linux[^/]*|libpthread|libdl)\.", found.group(1)):
            libraries += os.path.getsize(os.path.realpath(found.group(1)))
    row("what", "bytes")
    row("---", "---")
    row("spile", binary)
    row("its libraries without glibc", libraries)
    blob = list((pathlib.Path(SPILE).parent).rglob("blob.bin"))
    if blob:
        row("blob in the target", blob[0].stat().st_size)


def go_costs():
    if shutil.which("go") is None:
        return
    path = WORK / "hotgo"
    env = {**os.environ, "GO111MODULE": "off", "CGO_ENABLED": "0", "GOCACHE": str(WORK / "go-cache")}
    subprocess.run(["go", "build", "-o", str(path), str(ROOT / "tools/bench/hot.go")], check=True, env=env)
    print("\n## Cost of a hit in Go\n")
    print("A counter at the entry of a function: the hit runs on a private stack. A function that checks its stack is entered again "
          "where the check fails, as it does on purpose when a goroutine is to be preempted.\n")
    row("function", "bare call, ns", "user engine", "count")
    row(*["---"] * 4)
    for function in ("nosplit", "checked"):
        target = Target(path)
        bare, _, _ = target.run(function)
        spile = Spile(target.pid, f"uprobe:{path}:main.{function} {{ @ = count(); }}", "user")
        median, _, calls = target.run(function)
        counted = spile.stop().get("@")
        row(function, f"{bare:.1f}", f"+{median - bare:.1f}", "exact" if counted == calls else f"{counted} of {calls}")
        target.close()


def main():
    print("# spile, measured", time.strftime("%Y-%m-%d"))
    print("\nmachine:", os.uname().release, "|", next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "?"),
          "|", os.cpu_count(), "CPUs")
    try:
        hot = build("hot", ROOT / "tools/bench/hot.c")
        hit_costs(hot)
        switching(hot)
        trap_costs(hot)
        go_costs()
        attach_costs()
        start_up()
        library()
        sizes()
    finally:
        shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    main()
