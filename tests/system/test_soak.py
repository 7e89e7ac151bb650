#!/usr/bin/env python3
"""Servers and interpreters at work while traces of every kind come and go: an hour with SPILE_SOAK=1, seconds otherwise.

redis under redis-benchmark, nginx under wrk, python3 and node computing: each checks its own results all the time. Random
sets of functions, kinds of probes and ways to end (exit, Ctrl-C, a kill and `spile detach`) follow each other, with a
second process traced by one long trace meanwhile. At the end nothing differs, nothing has grown, nothing was lost uncounted.

SPILE_SOAK_SECONDS sets the time, SPILE_SOAK_SEED the choices.
"""
import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time

from harness import SLOWNESS, SPILE, Picture, Process, Skip, Spile, check, need_tool
from test_real_programs import PYTHON, PYTHON_WORK, Load, Redis
from tracing import SOAK, check_as_before_soon, check_code_as_before, free_port, has_our_mappings, main, run, spile, temporary_directory, wait_until

SECONDS = float(os.environ.get("SPILE_SOAK_SECONDS", 3600 if SOAK else 10))
SEED = int(os.environ.get("SPILE_SOAK_SEED", time.time_ns() % 10**9))

NODE_WORK = r"""
const crypto = require('crypto');
let point = class { constructor(x) { this.x = x; } twice() { return this.x * 2; } };
function round(n) {
  let rows = [];
  for (let i = 0; i < 300; i++) rows.push({name: 'row' + i, value: new point(i * n).twice(), at: [i, n, i ^ n]});
  rows.sort((a, b) => a.name < b.name ? -1 : 1);
  let text = JSON.stringify(JSON.parse(JSON.stringify(rows)));
  try { null.x } catch (e) { text += e.name; }
  return crypto.createHash('sha256').update(text).digest('hex');
}
function work() { let all = ''; for (let n = 0; n < 40; n++) all = round(n) + all.slice(0, 64); return all; }
let truth = work(), rounds = 0, wrong = 0;
console.log('ready');
setInterval(() => { rounds++; if (work() != truth) wrong++; }, 1);
process.stdin.on('data', () => console.log('result', rounds, wrong));
process.stdin.on('end', () => process.exit(0));
"""


class Patient:
    """A process at work that knows whether its results are right. `modules`: what its probes are chosen from."""
    name = ""
    modules = ()
    hot = ()  # functions that certainly run
    may_grow = 1.3  # times its memory after the first rounds, and 16 MB: allocators and garbage collectors breathe

    def __init__(self):
        self.functions = {}
        self.early = self.script = None
        self.rounds = self.hits = self.refused = 0
        self.loads = contextlib.ExitStack()

    def check_results(self):
        raise NotImplementedError

    def choose(self, chance):
        """Some functions of one of its modules, as probes."""
        module = chance.choice(self.modules)
        if module not in self.functions:
            listed = run([SPILE, "-l", f"uprobe:{module}:*"])
            self.functions[module] = sorted(set(re.findall(r"^uprobe:[^:]+:([\w.@]+)$", listed.out, re.M)))
            check("functions", len(self.functions[module]) > 50, f"{module}\n{listed.report()}")
        names = self.functions[module]
        chosen = {f"{module}:{name}" for name in chance.sample(names, min(len(names), chance.choice([3, 20, 200, 1000])))}
        return sorted(chosen | set(chance.choice([self.hot, ()])))

    def memory(self):
        with open(f"/proc/{self.pid}/status", encoding="utf-8") as status:
            return int(re.search(r"^VmRSS:\s+(\d+)", status.read(), re.M).group(1)) * 1024

    def note_memory(self):
        if self.rounds == 10:
            self.early = self.memory()

    def check_growth(self):
        if self.early is not None and self.rounds > 20:
            now = self.memory()
            check("no-growth", now < self.early * self.may_grow + (16 << 20),
                  f"{self.name}: {self.early >> 20} MB after 10 rounds, {now >> 20} MB after {self.rounds}")


class RedisPatient(Patient):
    name = "redis"

    def __init__(self, stack):
        super().__init__()
        self.redis = stack.enter_context(Redis(stack.enter_context(temporary_directory())))
        self.modules = (self.redis.path, "libc")
        self.hot = (f"{self.redis.path}:processCommand", "libc:write")
        self.pid = self.redis.pid
        self.before = self.redis.picture()
        self.load = Load(self.redis.port)
        self.loads.enter_context(again_and_again([need_tool("redis-benchmark"), "-p", str(self.redis.port), "-t", "set,get,lpush,lpop,hset",
                                                  "-n", "100000", "-r", "1000", "-c", "4", "-q"]))

    def check_results(self):
        check("results-unchanged", self.load.wrong is None and self.redis.server.alive(), f"{self.load.wrong}\n{self.redis.server.report()}")

    def end(self):
        self.loads.close()
        self.load.stop()


class NginxPatient(Patient):
    name = "nginx"

    def __init__(self, stack):
        super().__init__()
        nginx, wrk = os.path.realpath(need_tool("nginx")), need_tool("wrk")
        self.modules = (nginx, "libc", "libpcre2-8")
        self.hot = ("libc:recv", "libc:writev", "libc:epoll_wait")
        self.port = free_port()
        directory = stack.enter_context(temporary_directory())
        with open(f"{directory}/index.html", "w", encoding="utf-8") as page:
            page.write("hello " * 500)
        with open(f"{directory}/conf", "w", encoding="utf-8") as conf:
            conf.write(f"daemon off; master_process off; pid {directory}/pid; error_log {directory}/log; events {{}}\n"
                       f"http {{ access_log off; server {{ listen 127.0.0.1:{self.port}; root {directory}; "
                       "location ~ ^/x(.*)$ { return 200 $1; } gzip on; } }\n")
        self.server = stack.enter_context(Process([nginx, "-p", directory, "-c", f"{directory}/conf", "-e", f"{directory}/log"]))
        self.pid = self.server.pid
        wait_until(self._answers, "an answer of nginx", every=0.05)
        self.truth = self._get("/")
        self.before = Picture(self.pid)
        self.wrong, self.pages, self.wanted = [], 0, True
        self.getter = threading.Thread(target=self._keep_getting, daemon=True)
        self.getter.start()
        self.loads.enter_context(again_and_again([wrk, "-t1", "-c4", "-d20s", f"http://127.0.0.1:{self.port}/"]))

    def _get(self, path):
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as link:
            link.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            data = b""
            while more := link.recv(65536):
                data += more
            return data.split(b"\r\n\r\n", 1)[1]

    def _answers(self):
        try:
            return bool(self._get("/"))
        except (OSError, IndexError):
            return False

    def _keep_getting(self):
        while self.wanted:
            try:
                self.pages += 1
                if self._get("/") != self.truth or self._get(f"/x{self.pages}") != str(self.pages).encode():
                    self.wrong.append(f"page {self.pages} differs")
            except (OSError, IndexError) as error:
                self.wrong.append(str(error))
            time.sleep(0.002)

    def check_results(self):
        check("results-unchanged", not self.wrong and self.server.alive(), f"{self.wrong[:3]}\n{self.server.report()}")

    def end(self):
        self.loads.close()
        self.wanted = False
        self.getter.join(60)
        check("results-unchanged", self.pages > 10, f"only {self.pages} pages")


class PythonPatient(Patient):
    name = "python3"

    def __init__(self, stack):
        super().__init__()
        self.modules = (PYTHON, "libc", "libcrypto")
        self.hot = (f"{PYTHON}:PyObject_Malloc", "libc:open64", "libc:write")
        self.process = stack.enter_context(Process([PYTHON, "-c", PYTHON_WORK]))
        self.pid = self.process.pid
        self.process.wait_for_line("ready")
        self._tell("begin")
        self._tell("end")  # a thread's first start maps what stays
        self.process.wait_for_line("results")
        self.before = Picture(self.pid)
        self._tell("begin")

    def _tell(self, line):
        self.process.process.stdin.write(f"{line}\n")
        self.process.process.stdin.flush()

    def check_results(self):
        check("target-survives", self.process.alive(), self.process.report())

    def end(self):
        self._tell("end")
        wait_until(lambda: len(self.process.out) > 2 or not self.process.alive(), "the results of python3", 120)
        words = self.process.out[-1].split()
        check("results-unchanged", words[0] == "results" and int(words[1]) > 0 and len(words) == 3, self.process.report())


class NodePatient(Patient):
    name = "node"
    may_grow = 2.0

    def __init__(self, stack):
        super().__init__()
        node = os.path.realpath(need_tool("node"))
        self.modules = ("libc", "libz", "libnode") if "libnode" in run(["ldd", node]).out else (node, "libc", "libz")
        self.hot = ("libc:malloc", "libc:free", "libc:epoll_wait", "libc:epoll_pwait")
        self.process = stack.enter_context(Process([node, "-e", NODE_WORK]))
        self.pid = self.process.pid
        self.process.wait_for_line("ready", 120)
        self.before = Picture(self.pid)

    def check_results(self):
        number = len(self.process.out)
        self.process.send_line()
        wait_until(lambda: len(self.process.out) > number or not self.process.alive(), "an answer of node", 120)
        words = self.process.out[-1].split()
        check("results-unchanged", self.process.alive() and words[0] == "result" and words[2] == "0", self.process.report())

    def end(self):
        check("results-unchanged", int(self.process.out[-1].split()[1]) > 0, self.process.report())


@contextlib.contextmanager
def again_and_again(command):
    """A load generator that is started again whenever it ends."""
    state = {"wanted": True, "process": None}

    def keep_running():
        while state["wanted"]:
            state["process"] = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            state["process"].wait()
            time.sleep(0.05)

    runner = threading.Thread(target=keep_running, daemon=True)
    runner.start()
    try:
        yield
    finally:
        state["wanted"] = False
        while runner.is_alive():
            if state["process"]:
                state["process"].kill()
            runner.join(0.05)


# What a round traces: name -> (kind of probe, action). "event" counts what it prints.
KINDS = {
    "count": ("uprobe", "@n = count(); @[func] = count();"),
    "hist": ("uprobe", "@n = count(); @h = hist(arg1);"),
    "string": ("uprobe", "@n = count(); @[str(arg0, 16)] = count();"),
    "event": ("uprobe", r'@n = count(); printf("event %d\n", arg0 & 1);'),
    "stack": ("uprobe", "@n = count(); @[ustack(3)] = count();"),
    "return": ("uretprobe", "@n = count(); @h = hist(retval);"),
    "duration": ("uretprobe", "@n = count(); @h[func] = hist(duration);"),
    "session": ("uprobe", "@s[tid] = nsecs; @n = count(); @m = max(nsecs);"),
}
ENDS = ("exit", "exit", "interrupt", "terminate", "kill", "switched")


def one_round(patient, chance):
    """One trace from its start to its end. Gives its hits."""
    kind, action = chance.choice(list(KINDS.items()))[1]
    end, seconds = chance.choice(ENDS), chance.uniform(0, 0.4)
    probes = ", ".join(f"{kind}:{function}" for function in patient.choose(chance))
    script = f"{probes} {{ {action} }}"
    if end == "exit":
        script += f" interval:ms:{int(seconds * 1000) + 1} {{ exit(); }}"
    patient.script = f"{end}: {script}"
    with Spile(script, pid=patient.pid, extra=("-v",)) as trace:
        wait_until(lambda: not trace.alive() or any("Attached" in line for line in list(trace.err)), "the attach", 120 * SLOWNESS)
        if not trace.alive() and not trace.of_type("attached_probes"):
            # All of a few functions can be refused (a lone `ret`, a jump table's words): told, and nothing is left.
            check("refused-in-words", trace.process.returncode == 1 and "refused" in "\n".join(trace.err), trace.report())
            patient.refused += 1
            return 0
        if end == "kill":
            time.sleep(seconds)
            trace.send(signal.SIGKILL)
            trace.process.wait()
            undone = spile("detach", "-p", patient.pid)
            check("detaches", undone.status == 0, undone.report())
            return 0
        if end == "switched":
            for _ in range(4):
                trace.send(signal.SIGUSR2)
                time.sleep(seconds / 4)
        if end != "exit":
            time.sleep(seconds)
            trace.send(signal.SIGTERM if end == "terminate" else signal.SIGINT)
        status = trace.finish(120 * SLOWNESS)
        check("clean-stop", status == 0, trace.report())
        hits = int(trace.maps().get("@n", 0))
        if "event" in action:
            with open(trace.output, encoding="utf-8", errors="replace") as records:
                events = sum('"type": "printf"' in line for line in records)
            dropped = re.search(r"(\d+) records after exit\(\)", trace.err[-1])
            told = events + trace.lost() + int(dropped.group(1) if dropped else 0)
            # The interval's exit() is a record too, and again until the probes are out: lost where the ring is full.
            check("no-loss-uncounted", hits <= told <= hits + (1000 if end == "exit" else 0),
                  f"{hits} hits, {events} events, {trace.lost()} lost\n{trace.report()}")
        return hits


class Counted(Process):
    """Lines that begin so are counted, not kept."""

    def __init__(self, beginning, command):
        self.beginning, self.counted = beginning, 0
        super().__init__(command)

    def _read(self, stream, lines):
        for line in stream:
            if line.startswith(self.beginning):
                self.counted += 1
            else:
                with self.changed:
                    lines.append(line.rstrip("\n"))
                    self.changed.notify_all()


class LongTrace:
    """One trace of a process of its own from the first to the last minute: its memory, and all of its events."""

    def __init__(self, stack):
        self.python = stack.enter_context(Process([PYTHON, "-c", PYTHON_WORK]))
        self.python.wait_for_line("ready")
        self.python.process.stdin.write("begin\n")
        self.python.process.stdin.flush()
        self.trace = stack.enter_context(Counted("open ", [
            SPILE, "-q", "-e", f'uprobe:{PYTHON}:PyObject_Malloc {{ @calls = count(); }} uretprobe:libc:open64 {{ @n = count(); '
            r'printf("open %d\n", retval); } uprobe:libc:write /arg2 < 100/ { @[arg2] = count(); }', "-p", str(self.python.pid)]))
        wait_until(lambda: self.trace.counted > 100 or not self.trace.alive(), "a hit of the long trace", 60)
        self.early = self.memory()

    def memory(self):
        with open(f"/proc/{self.trace.pid}/status", encoding="utf-8") as status:
            return int(re.search(r"^VmRSS:\s+(\d+)", status.read(), re.M).group(1)) * 1024

    def end(self):
        now = self.memory()
        self.trace.send(signal.SIGINT)
        status = self.trace.finish()
        check("clean-stop", status == 0, self.trace.report())
        text = "\n".join(self.trace.out)
        events = self.trace.counted
        lost = sum(int(n) for n in re.findall(r"(\d+) records? lost", "\n".join(self.trace.err)))
        calls = int(re.search(r"^@n: (\d+)$", text, re.M).group(1))
        check("no-loss-uncounted", calls == events + lost and calls > 0, f"{calls} calls, {events} events, {lost} lost\n{self.trace.report()}")
        check("no-growth", now < self.early + (8 << 20), f"spile had {self.early >> 10} KB after a second, {now >> 10} KB at the end")
        self.python.process.stdin.write("end\n")
        self.python.process.stdin.flush()
        words = self.python.wait_for_line("results (.*)", 120).group(1).split()
        check("results-unchanged", int(words[0]) > 0 and len(words) == 2, self.python.report())
        print(f"  long trace: {calls} events, {lost} lost and counted, {now >> 10} KB")


def traces_come_and_go():
    print(f"  seed {SEED}, {SECONDS:.0f} s")
    chance = random.Random(SEED)
    with contextlib.ExitStack() as stack:
        patients = []
        for kind in (RedisPatient, NginxPatient, PythonPatient, NodePatient):
            try:
                patients.append(kind(stack))
            except Skip as reason:
                print(f"  without {kind.name}: {reason}")
        check("patients", len(patients) >= 2, "too few programs to trace")
        long_trace = LongTrace(stack)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            patient = chance.choice(patients)
            try:
                patient.hits += one_round(patient, chance)
                patient.rounds += 1
                patient.check_results()
                check("nothing-left", not has_our_mappings(patient.pid), f"spile's mappings are left in {patient.name}")
                patient.note_memory()
                if patient.rounds % 25 == 0:
                    check_code_as_before(patient.before, Picture(patient.pid))
                    patient.check_growth()
            except Exception:
                print(f"  in round {patient.rounds} of {patient.name}: {patient.script[:2000]}")
                raise
        long_trace.end()
        for patient in patients:
            patient.end()
            print(f"  {patient.name}: {patient.rounds} traces ({patient.refused} refused), {patient.hits} hits, "
                  f"{patient.memory() >> 20} MB")
        check("hits-happened", all(patient.hits > 0 or patient.rounds < 10 for patient in patients), "a program without a hit")
        check("hits-happened", sum(patient.rounds for patient in patients) > 3, "hardly a trace")
        for patient in patients:
            patient.check_growth()
            check_as_before_soon(patient.before, patient.pid, 30)


if __name__ == "__main__":
    main([traces_come_and_go], SECONDS + 240 * SLOWNESS)
