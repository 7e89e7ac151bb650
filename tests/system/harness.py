"""What every system test is made of: target programs, spile runs, and oracles that say by name what must hold.

A test is a function that takes no argument and raises Failure or Skip. Nothing here waits without a limit, and only
processes started here are ever signalled.
"""
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SPILE = os.path.abspath(os.environ.get("SPILE_BINARY", os.path.join(ROOT, "build/release/spile")))
TARGETS = os.path.realpath(os.environ.get("SPILE_TARGETS", os.path.join(ROOT, "build/release/tests/targets")))
SLOWNESS = float(os.environ.get("SPILE_TEST_SLOWNESS", "1"))  # multiplies every time limit
ATTACH_SECONDS = 15 * SLOWNESS
RUN_SECONDS = 20 * SLOWNESS


class Failure(Exception):
    """An oracle did not hold. The message starts with the oracle's name."""


class Skip(Exception):
    """This machine lacks what the test needs."""


def main(test):
    """Runs `test` as a program for ctest: 0 passed, 1 failed, 77 skipped."""
    # A shell's background job ignores Ctrl-C, and so would every spile that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        test()
    except Skip as reason:
        print(f"SKIP: {reason}")
        sys.exit(77)
    except Failure as failure:
        print(f"FAIL: {failure}")
        sys.exit(1)
    print("PASS")


def need_spile():
    if not os.access(SPILE, os.X_OK):
        raise Skip(f"no spile binary at {SPILE} (set SPILE_BINARY)")


def need_root():
    if os.geteuid() != 0:
        raise Skip("needs root")


def need_tool(name):
    path = shutil.which(name)
    if path is None:
        raise Skip(f"needs {name}")
    return path


def target_path(name):
    path = os.path.join(TARGETS, name)
    if not os.path.exists(path):
        raise Skip(f"{name} is not built in {TARGETS}")
    return path


def check(oracle, holds, message):
    if not holds:
        raise Failure(f"{oracle}: {message}")


# --- processes -------------------------------------------------------------------------------------------------------


class Process:
    """A child with its output collected line by line; killed when the `with` block ends."""

    def __init__(self, command, env=None, **options):
        self.command = [str(word) for word in command]
        self.out, self.err = [], []
        if os.path.isdir(TARGETS):
            options.setdefault("cwd", TARGETS)  # profiled programs leave files where they run
        self.changed = threading.Condition()
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        text=True, errors="replace", start_new_session=True,
                                        env={**os.environ, **(env or {})}, **options)
        self.readers = [threading.Thread(target=self._read, args=pair, daemon=True)
                        for pair in ((self.process.stdout, self.out), (self.process.stderr, self.err))]
        for reader in self.readers:
            reader.start()

    @property
    def pid(self):
        return self.process.pid

    def _read(self, stream, lines):
        for line in stream:
            with self.changed:
                lines.append(line.rstrip("\n"))
                self.changed.notify_all()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # The whole session, so that nothing a target started outlives the test. It is ours: start_new_session above.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError):
                stream.close()

    def alive(self):
        return self.process.poll() is None

    def wait_for_line(self, pattern, seconds=RUN_SECONDS):
        """The first match of `pattern` at the start of a line of stdout."""
        end = time.monotonic() + seconds
        with self.changed:
            while True:
                for line in self.out:
                    found = re.match(pattern, line)
                    if found:
                        return found
                left = end - time.monotonic()
                dead = self.process.poll() is not None and not any(r.is_alive() for r in self.readers)
                if left <= 0 or dead:
                    raise Failure(f"line {pattern!r} did not come in {seconds:.0f} s\n{self.report()}")
                self.changed.wait(min(left, 0.1))

    def send_line(self):
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("\n")
            self.process.stdin.flush()

    def finish(self, seconds=RUN_SECONDS, what="ends"):
        """Closes stdin and waits; the exit status, negative for a signal."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failure(f"in-time: does not end within {seconds:.0f} s\n{self.report()}") from None
        for reader in self.readers:
            reader.join(2)
        return status

    def send(self, number):
        if self.alive():
            os.kill(self.pid, number)

    def report(self):
        state = "running" if self.alive() else f"status {self.process.returncode}"
        tail = lambda lines: "\n".join("    " + line for line in lines[-25:])
        return (f"  command: {' '.join(self.command)}  ({state})\n  stdout:\n{tail(self.out)}\n  stderr:\n{tail(self.err)}")


class Target(Process):
    def __init__(self, path, args=(), wait=False, hold=False, loop=None, rounds=None, **options):
        command = [path, *args]
        command += ["--wait"] if wait else []
        command += ["--hold"] if hold else []
        command += ["--loop", str(loop)] if loop is not None else []
        command += ["--rounds", str(rounds)] if rounds is not None else []
        super().__init__(command, **options)
        if wait:
            try:
                self.wait_for_line("ready$")
            except Failure:
                # No `with` block has begun yet: what it would have ended is ended here.
                self.__exit__()
                skip = next((line for line in self.out if line.startswith("SKIP: ")), None)
                if skip is not None:
                    raise Skip(skip[6:]) from None
                raise

    def calls(self):
        return calls_of(self.out, self)

    def finish_well(self, seconds=RUN_SECONDS):
        status = self.finish(seconds)
        check_exit_success(status, self)
        return status


def cpu_seconds(pid):
    """What the threads that it has now have had of the CPUs."""
    total = 0
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat", encoding="utf-8") as times:
                total += int(times.read().split()[0])
    return total / 1e9


def wait_for_work(pid, seconds=0.05):
    """Until the process has run for so long: on a busy machine no time on the clock says that it has run at all."""
    begin, end = cpu_seconds(pid), time.monotonic() + 60 * SLOWNESS
    while cpu_seconds(pid) - begin < seconds:
        check("in-time", time.monotonic() < end, f"process {pid} does not get {seconds} s of a CPU")
        time.sleep(0.005)


def wait_until_caught(process, number):
    """Until the process has a handler for the signal, or has ended."""
    end = time.monotonic() + ATTACH_SECONDS
    while process.alive():
        with contextlib.suppress(OSError, AttributeError):
            with open(f"/proc/{process.pid}/status", encoding="utf-8") as status:
                if int(re.search(r"^SigCgt:\s+(\w+)", status.read(), re.M).group(1), 16) >> (number - 1) & 1:
                    return
        check("in-time", time.monotonic() < end, f"signal {number} gets no handler\n{process.report()}")
        time.sleep(0.005)


def calls_of(lines, process):
    for line in reversed(lines):
        found = re.match(r"calls=(\d+)$", line)
        if found:
            return int(found.group(1))
    raise Failure(f"exit-success: the target printed no calls=N\n{process.report()}")


class Spile(Process):
    """One run of spile, its records in JSON lines read from a file of its own."""

    def __init__(self, program, pid=None, command=None, extra=(), prefix=(), **options):
        self.directory = tempfile.mkdtemp(prefix="spile-test-")
        os.chmod(self.directory, 0o777)
        self.output = os.path.join(self.directory, "records.json")
        words = [*prefix, SPILE, "-f", "json", "-o", self.output, *extra]
        if len(program) < 100000:
            words += ["-e", program]
        else:  # longer than the kernel lets an argument be
            script = os.path.join(self.directory, "script.bt")
            with open(script, "w", encoding="utf-8") as file:
                file.write(program)
            words += [script]
        words += ["-p", str(pid)] if pid is not None else []
        words += ["-c", command] if command is not None else []
        try:
            super().__init__(words, **options)
        except OSError:
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def __exit__(self, *details):
        super().__exit__(*details)
        shutil.rmtree(self.directory, ignore_errors=True)

    def records(self):
        records = []
        with contextlib.suppress(FileNotFoundError):
            with open(self.output, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    with contextlib.suppress(json.JSONDecodeError):
                        records.append(json.loads(line))
        return records

    def of_type(self, kind):
        return [record.get("data") for record in self.records() if record.get("type") == kind]

    def maps(self):
        """The last value printed of each map."""
        maps = {}
        for data in self.of_type("map"):
            maps.update(data)
        return maps

    def lost(self):
        lost = 0
        for data in self.of_type("lost_events"):
            lost += int(data.get("events", 0)) if isinstance(data, dict) else int(data)
        return lost

    def wait_attached(self, seconds=ATTACH_SECONDS):
        """True once the probes are set, False if spile ended before (it refused)."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.of_type("attached_probes"):
                return True
            if not self.alive():
                for reader in self.readers:
                    reader.join(2)
                return bool(self.of_type("attached_probes"))
            time.sleep(0.005)
        raise Failure(f"in-time: spile did not attach within {seconds:.0f} s\n{self.report()}")

    def stop(self, seconds=RUN_SECONDS):
        """Ctrl-C: spile detaches, prints its maps and ends with status 0."""
        self.send(signal.SIGINT)
        status = self.finish(seconds)
        check("clean-stop", status == 0, f"spile ended with status {status} after SIGINT\n{self.report()}")
        return status


def count_program(probes, kind="uprobe"):
    """kind "session": returns whose entries were noted."""
    wanted = " /duration + 1 > 0/" if kind == "session" else ""
    kind = "uretprobe" if kind == "session" else kind
    return ", ".join(f"{kind}:{probe}" for probe in probes) + wanted + " { @calls = count(); }"


# --- what a process looks like from outside -----------------------------------------------------------------------------


def task_with_memory(pid):
    """`pid`, or a thread of it where the leader has exited and its own files in /proc are empty."""
    for task in [pid, *sorted(map(int, os.listdir(f"/proc/{pid}/task")))]:
        with contextlib.suppress(OSError):
            with open(f"/proc/{task}/maps", encoding="utf-8", errors="replace") as maps:
                if maps.read(1):
                    return task
    return pid


class Picture:
    """Code bytes, mappings and descriptors of a process at one moment."""

    def __init__(self, pid):
        self.pid = pid = task_with_memory(pid)
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
            self.maps = [line.split(None, 5) for line in maps.read().splitlines()]
        self.text = self._read_text()
        self.descriptors = {}
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                self.descriptors[fd] = os.readlink(f"/proc/{pid}/fd/{fd}")

    def _read_text(self):
        text = {}
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            for fields in self.maps:
                if "x" not in fields[1] or len(fields) < 6 or not fields[5].startswith("/") or "memfd:" in fields[5]:
                    continue
                begin, end = (int(part, 16) for part in fields[0].split("-"))
                memory.seek(begin)
                data = b""
                with contextlib.suppress(OSError):
                    while len(data) < end - begin:
                        more = memory.read(end - begin - len(data))
                        if not more:
                            break
                        data += more
                text[begin] = (fields[5], data)
        return text

    def mapping_names(self, strict):
        """Comparable lines. While a program works its heap and stacks move, so only what we could have left counts then."""
        if strict:
            return [" ".join(fields[:4] + fields[5:]) for fields in self.maps if fields[-1] not in ("[heap]", "[stack]")]
        return sorted({" ".join([fields[1], fields[5]]) for fields in self.maps if len(fields) > 5 and "memfd:" in fields[5]})


def hex_diff(name, base, before, after, limit=8):
    rows = []
    for offset in range(0, max(len(before), len(after)), 16):
        old, new = before[offset:offset + 16], after[offset:offset + 16]
        if old != new:
            rows.append(f"    {base + offset:#x} {name}\n      - {old.hex(' ')}\n      + {new.hex(' ')}")
            if len(rows) == limit:
                rows.append("    ...")
                break
    return "\n".join(rows)


def check_text_unchanged(before, after):
    changed = []
    for base, (name, data) in before.text.items():
        now = after.text.get(base)
        if now is not None and now[0] == name and now[1] != data:
            changed.append(hex_diff(name, base, data, now[1]))
    check("text-unchanged", not changed, "code bytes differ after detach\n" + "\n".join(changed))


def check_mappings_unchanged(before, after, strict=True):
    old, new = before.mapping_names(strict), after.mapping_names(strict)
    gone, added = [m for m in old if m not in new], [m for m in new if m not in old]
    check("mappings-unchanged", not gone and not added,
          "\n".join([f"    - {line}" for line in gone] + [f"    + {line}" for line in added]))


def check_descriptors_unchanged(before, after):
    same = before.descriptors == after.descriptors
    check("descriptors-unchanged", same, f"\n    - {before.descriptors}\n    + {after.descriptors}")


def check_left_as_before(before, after, strict=True):
    check_text_unchanged(before, after)
    check_mappings_unchanged(before, after, strict)
    if strict:
        check_descriptors_unchanged(before, after)


# --- oracles over runs ---------------------------------------------------------------------------------------------------


def check_exit_success(status, process):
    if status == 77 and any(line.startswith("SKIP: ") for line in process.out):
        raise Skip(next(line for line in process.out if line.startswith("SKIP: "))[6:])
    done = status == 0 and process.out and "EXIT-SUCCESS" in process.out
    check("exit-success", done, f"the target failed\n{process.report()}")


def check_same_output(bare, probed, process):
    check("same-output", bare == probed, f"bare {bare!r}, probed {probed!r}\n{process.report()}")


def check_count(expect, counted, calls, process):
    holds = {"exact": counted == calls, "at-least": counted >= calls, "at-most": 0 <= counted <= calls}[expect]
    check(f"{expect}-count", holds, f"spile counted {counted}, the target {calls}\n{process.report()}")


def check_no_loss(spile):
    lost = spile.lost()
    check("no-loss", lost == 0, f"{lost} events lost\n{spile.report()}")


def check_hits_happened(counted, process):
    check("hits-happened", counted > 0, f"not one hit\n{process.report()}")


def check_refused_in_words(spile, pattern=r"0x[0-9a-f]+"):
    """A refusal is status 1 and a message that names the address, the instruction and the reason."""
    status = spile.process.returncode
    text = "\n".join(spile.err)
    check("refusal-in-words", status == 1, f"spile ended with status {status}\n{spile.report()}")
    check("refusal-in-words", text.strip() != "" and re.search(pattern, text), f"no reason is given\n{spile.report()}")


def run_bare(path, args=(), seconds=RUN_SECONDS, **options):
    with Target(path, args, **options) as target:
        target.finish_well(seconds)
        return list(target.out), target.calls()
