#!/usr/bin/env python3
"""The scripts of tools/scripts, each run for real: on programs of its own by the user engine, on this kernel by the kernel engine.

Those that need kprobes run in test_vm_kernel.py. SPILE_REBASE=1 rewrites the examples beside the scripts from these runs."""
import os
import pty
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

from harness import ROOT, SPILE, Process, Skip, check, need_root, need_tool
import tools
from tracing import (NOBODY, SOAK, check_status, compile_program, free_port, main, public_copy, run, spile, temporary_directory, wait_until)
import test_vm_kernel

PYTHON = os.path.realpath("/usr/bin/python3")
POSTGRES = "/usr/lib/postgresql/15/bin/postgres"
SQL = "create table t(a); insert into t values(1); select * from t;"

THREADS = "import threading\nfor i in range(3):\n    t = threading.Thread(target=print)\n    t.start()\n    t.join()\n"
GARBAGE = "import gc\nfor i in range(3):\n    gc.collect()\n"

# name -> the script's own words, what is traced, what must have been printed.
ON_PROGRAMS = {
    "fnslow": ("libc getenv 0", ["sort", "/dev/null"], r"^sort +\d+ +\d+  0x[0-9a-f]+ .* -> 0x0$"),
    "fnhist": ("libc getenv", ["sort", "/dev/null"], r"^@ns\[getenv\]:\n\["),
    "fncount": ("libsqlite3.so.0 'sqlite3_c*'", ["sqlite3", ":memory:", SQL], r"^@calls\[sqlite3_close\]: 1$"),
    "fncallers": ("libsqlite3.so.0 sqlite3_finalize", ["sqlite3", ":memory:", SQL], r"^    sqlite3_finalize\+0\n    \S"),
    "heapsizes": ("", ["getent", "services", "http"], r"^@bytes\[malloc\]: [1-9]"),
    "heapleak": ("", ["getent", "services", "http"], r"^@live_bytes\[\n    .*\n[^@]*\]: [1-9]"),
    "lockwait": ("-- --us=0", [PYTHON, "-c", THREADS], r"^@wait_us\[pthread_mutex_lock\]:\n\["),
    "threadstarts": ("", [PYTHON, "-c", THREADS], r"^@started: 3$"),
    "envreads": ("", ["sort", "/dev/null"], r"^@asked\[POSIXLY_CORRECT, not set\]: 1$"),
    "libloads": ("", [PYTHON, "-c", "import _ssl, ctypes"], r"^python3\S* +\d+ +\d+  \S*/_ctypes\..*\.so$"),
    "dnslookups": ("", [PYTHON, "-c", "import socket\nsocket.getaddrinfo('localhost', 80)\nsocket.getaddrinfo('127.0.0.1', 80)"],
                   r"^python3\S* +\d+ +\d+ +0  127\.0\.0\.1$"),
    "sqlite": ("", ["sqlite3", ":memory:", SQL], r"^sqlite3 +\d+ +insert into t values\(1\); select"),
    "pycalls": ("", [PYTHON, "-c", "import json"], r"^@calls\[.*, <genexpr>, \d+\]: [1-9]"),
    "pygc": ("", [PYTHON, "-c", GARBAGE], r"^@pause_us\[2\]:\n\["),
    "pyimports": ("", [PYTHON, "-c", "import json"], r"^ +\d+ us  json\.decoder$"),
    "pyaudit": ("", [PYTHON, "-c", "import subprocess; subprocess.run(['true'])"], r"^@events\[subprocess\.Popen\]: 1$"),
}


def trace_a_command(name, words, command, pattern, **options):
    command = " ".join(shlex.quote(word) for word in command)
    arguments = shlex.split(words)
    # Named parameters stay behind the options.
    at = arguments.index("--") if "--" in arguments else len(arguments)
    result = spile(tools.script(name), *arguments[:at], "-c", command, *arguments[at:], **options)
    check_status(result, 0)
    check("no-loss", not re.search(r"[1-9]\d* (records lost|updates of full maps)", result.err), result.report())
    shown = command if len(command) < 90 and "\n" not in command else "PROGRAM"
    tools.printed(name, f"{words} -c {shlex.quote(shown)}".strip(), result.out, pattern)


def on_programs():
    ran, has_tracepoints = 0, "python:gc__start" in spile("-l", f"usdt:{PYTHON}:*").out
    for name, (words, command, pattern) in ON_PROGRAMS.items():
        if shutil.which(command[0]) is None or (name.startswith("py") and not has_tracepoints):
            print(f"{name} is not run: needs {command[0]}{' with static tracepoints' if name.startswith('py') else ''}")
            continue
        trace_a_command(name, words, command, pattern)
        ran += 1
    check("most-run", ran >= len(ON_PROGRAMS) // 2, str(ran))


def event_loops():
    node = need_tool("node")
    busy = "const until = Date.now() + 80; while (Date.now() < until); setTimeout(() => 0, 20);"
    trace_a_command("eventloops", "", [node, "-e", f"setTimeout(() => {{ {busy} }}, 20)"],
                    r"^\d\d:\d\d:\d\d  node: thread \d+ was busy for \d{2,} ms$")


TLS = """
import socket, ssl, sys, threading
server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server.load_cert_chain(sys.argv[1])
client = ssl._create_unverified_context()
listening = socket.create_server(("127.0.0.1", 0))
def serve():
    with server.wrap_socket(listening.accept()[0], server_side=True) as accepted:
        accepted.sendall(b"answer to " + accepted.recv(100))
thread = threading.Thread(target=serve)
thread.start()
with client.wrap_socket(socket.create_connection(listening.getsockname())) as connected:
    connected.sendall(b"the question")
    connected.recv(100)
thread.join()
"""


def tls():
    openssl = need_tool("openssl")
    with temporary_directory() as directory:
        made = run([openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=here",
                    "-keyout", f"{directory}/pem", "-out", f"{directory}/cert"])
        check_status(made, 0)
        with open(f"{directory}/pem", "a", encoding="utf-8") as pem, open(f"{directory}/cert", encoding="utf-8") as cert:
            pem.write(cert.read())
        program = os.path.join(directory, "tls.py")
        with open(program, "w", encoding="utf-8") as file:
            file.write(TLS)
        command = [PYTHON, program, f"{directory}/pem"]
        # Python loads libssl while it runs: a first call may come before the probes. Preloaded it is there from the start.
        environment = {"LD_PRELOAD": "libssl.so.3"}
        for name, pattern in (("tlstext", r"^<-- .*: 22 bytes\nanswer to the question$"),
                              ("tlshandshakes", r"(?s)^@begun: 2$.*^@first_data_us:\n")):
            trace_a_command(name, "", command, pattern, env=environment)


class Tracing:
    """A tool that runs until it is told to end; its output is read from files, which do not block it."""

    def __init__(self, directory, name, *words):
        self.name, self.words = name, [str(word) for word in words]
        self.path = os.path.join(directory, name)
        with open(self.path, "w", encoding="utf-8") as out, open(self.path + ".err", "w", encoding="utf-8") as err:
            self.process = subprocess.Popen([SPILE, "-o", self.path + ".out", tools.script(name), *self.words], stdout=out, stderr=err)

    def text(self, suffix=".out"):
        if not os.path.exists(self.path + suffix):
            return ""
        with open(self.path + suffix, encoding="utf-8", errors="replace") as file:
            return file.read()

    def wait_attached(self):
        def attached():
            check("attaches", self.process.poll() is None, f"{self.name}\n{self.text('.err')}")
            return "Attached" in self.text(".err")
        wait_until(attached, f"attaching {self.name}")

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            status = self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            status = "killed"
        check("clean-stop", status == 0, f"{self.name}: status {status}\n{self.text('.err')}")
        return self.text()

    def __enter__(self):
        self.wait_attached()
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def redis():
    server, client = need_tool("redis-server"), need_tool("redis-cli")
    port = free_port()
    with temporary_directory() as directory:
        words = [server, "--port", port, "--save", "", "--dir", directory, "--bind", "127.0.0.1"]
        with Process(words) as process:
            ask = lambda *question: run([client, "-p", port, *question])
            wait_until(lambda: ask("ping").out == "PONG\n", "redis-server answers")
            with Tracing(directory, "rediscommands", "-p", process.pid) as tool:
                check("answers", ask("set", "a", "1").out == "OK\n" and ask("get", "a").out == "1\n", "redis-cli")
                tools.printed("rediscommands", "-p PID", tool.end(), r"(?s)^@commands\[setCommand\]: 1$.*^@us:\n")


def shell():
    """A terminal for bash: readline() is for those alone."""
    need_tool("bash")
    ours, theirs = pty.openpty()
    with temporary_directory() as directory, \
            subprocess.Popen(["/bin/bash", "--norc", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as bash:
        os.close(theirs)
        try:
            check("prompts", b"$" in os.read(ours, 200) + b"$", "bash")
            with Tracing(directory, "shelllines", "-p", bash.pid) as tool:
                # The first line may be read by a call that began before the trace.
                os.write(ours, b"echo first\necho second\necho third\n")
                wait_until(lambda: "echo third" in tool.text(), "the third line")
                tools.printed("shelllines", "-p PID", tool.end(), r"^\d\d:\d\d:\d\d  \d+ +echo second$")
        finally:
            bash.kill()
            os.close(ours)


def postgres():
    """With SPILE_SOAK=1: making a database takes seconds."""
    if not SOAK or not os.access(POSTGRES, os.X_OK) or os.geteuid() != 0:
        raise Skip("needs SPILE_SOAK=1, PostgreSQL 15 and root")
    with temporary_directory() as directory:
        bin_ = os.path.dirname(POSTGRES)
        as_user = ["runuser", "-u", "postgres", "--"]
        check_status(run([*as_user, f"{bin_}/initdb", "--no-sync", "-D", f"{directory}/db"], seconds=120), 0)
        words = [*as_user, POSTGRES, "-D", f"{directory}/db", "-k", directory, "-c", "listen_addresses="]
        with Process(words), subprocess.Popen([*as_user, "cat"], stdin=subprocess.DEVNULL):
            psql = [*as_user, f"{bin_}/psql", "-h", directory, "-U", "postgres", "-c", "select pg_sleep(0.01)"]
            wait_until(lambda: run(psql).status == 0, "postgres answers", seconds=30)
            with Tracing(directory, "pgqueries", POSTGRES, "--engine", "kernel") as tool:
                check_status(run(psql), 0)
                tools.printed("pgqueries", f"{POSTGRES} --engine kernel", tool.end(), r"^\d+ +\d+ us  select pg_sleep\(0\.01\)$")


# What makes this kernel do everything that the tools look at; prints when a segment has been sent twice as often as it may.
KERNEL_WORK = r"""
import os, signal, socket, subprocess, sys, time
directory = sys.argv[1]
print("ready", flush=True)
sys.stdin.readline()
path = os.path.join(directory, "victim")
with open(path, "w") as file:
    file.write("x" * 100000)
    os.fsync(file.fileno())
with open(path) as file:
    file.read()
os.unlink(path)
open("/etc/passwd").close()
try:
    open("/no-such-file-here")
except FileNotFoundError:
    pass
subprocess.run(["/bin/cat", "/etc/passwd", "/no-such-file-here"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
sleeper = subprocess.Popen(["/bin/sleep", "77"])
time.sleep(0.01)
sleeper.send_signal(signal.SIGUSR2)
sleeper.wait()
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
accepted = server.accept()[0]
client.close()
accepted.close()
# A full backlog drops what asks for a connection, and so it asks again, a second later.
full = socket.socket()
full.bind(("127.0.0.1", 0))
full.listen(0)
waiting = []
for _ in range(4):
    one = socket.socket()
    one.setblocking(False)
    one.connect_ex(full.getsockname())
    waiting.append(one)
until = time.process_time() + 0.3
while time.process_time() < until:
    pass
print("done", flush=True)
sys.stdin.read()
"""

# Of the work's process alone (-p): on a busy machine the others would fill the ring.
OF_ONE_PROCESS = {"opens", "deletes", "syscalls", "syserrors", "readwrite"}
ON_THIS_KERNEL = {
    "opens": r"(?s)^\d+ +python3\S* +\d+  /etc/passwd$.*^\d+ +python3\S* +-  /no-such-file-here: No such file or directory$",
    "deletes": r"^\d+ +python3\S* +Success +/.*/victim$",
    "execs": r"^\d+ +\d+ +python3\S* +/bin/cat /etc/passwd /no-such-file-here$",
    "exits": r"^\d+ +\d+ +sleep +\d+  SIGUSR2$",
    "signals": r"^\d+ +python3\S* +SIGUSR2 +\d+ +sleep$",
    "syscalls": r"^@calls\[257\]: [1-9]",
    "syserrors": r"^@errors\[python3\S*, 257, No such file or directory\]: [1-9]",
    "readwrite": r"(?s)^@read_bytes\[python3\S*\]: [1-9].*^@written_bytes\[python3\S*\]: [1-9]",
    "runqueue": r"^@wait_us:\n[\[(]",
    "offcpu": r"^@waited_us\[.*, ?\n(    .*\n)+\]: [1-9]",
    "oncpu": r"^@samples\[.*\]: [1-9]",
    "pagefaults": r"^@faults\[.*\]: [1-9]",
    "softirqs": r"^@total_us\[\d\]: ",
    "tcplives": r"^\d+ +python3\S* +127\.0\.0\.1:\d+ +127\.0\.0\.1:\d+ +\d+$",
    "tcpresends": r"^\d\d:\d\d:\d\d  127\.0\.0\.1:\d+ -> 127\.0\.0\.1:\d+$",
    "blockio": r"^@us\[.*\]:\n\[",
}


def is_on_a_disk(path):
    device = os.stat(path).st_dev
    return os.path.exists(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")


def on_this_kernel():
    """All at once: each sees the same work."""
    need_root()
    if run([SPILE, "dump", "--stage", "bpf", tools.script("opens")]).status != 0:
        raise Skip("this kernel has no tracepoints of system calls")
    with temporary_directory() as directory:
        program = os.path.join(directory, "work.py")
        with open(program, "w", encoding="utf-8") as file:
            file.write(KERNEL_WORK)
        with Process([PYTHON, program, directory]) as work:
            work.wait_for_line("ready$")
            words = lambda name: ["-p", work.pid] if name in OF_ONE_PROCESS else []
            running = [Tracing(directory, name, *words(name)) for name in ON_THIS_KERNEL]
            try:
                watch(work, running)
                for tool in running:
                    seen(tool, directory)
            finally:
                for tool in running:
                    tool.__exit__()


def watch(work, running):
    for tool in running:
        tool.wait_attached()
    work.send_line()
    wait_until(lambda: "done" in work.out, "the work")
    resends = next(tool for tool in running if tool.name == "tcpresends")
    wait_until(lambda: " -> " in resends.text(), "a segment that is sent again", every=0.05)


def seen(tool, directory):
    text, words = tool.end(), "-p PID" if tool.words else ""
    if tool.name == "blockio" and not is_on_a_disk(directory):
        print(f"blockio is only attached: {directory} is on no disk of its own")
        tools.printed("blockio", "", text, r"^TIME +COMM")
    else:
        tools.printed(tool.name, words, text, ON_THIS_KERNEL[tool.name])


def installed():
    """With the program, and found by its name in the first line."""
    build = os.path.dirname(SPILE)
    cmake = need_tool("cmake")
    if not os.path.exists(os.path.join(build, "CMakeCache.txt")):
        raise Skip(f"{build} is no build directory")
    with temporary_directory() as prefix:
        check_status(run([cmake, "--install", build, "--component", "program", "--prefix", prefix]), 0)
        there = os.listdir(os.path.join(prefix, "share/spile/tools"))
        check("installed", {name + ".bt" for name in tools.names()} < set(there), str(there))
        environment = {"PATH": f"{prefix}/bin:{os.environ['PATH']}"}
        result = run([f"{prefix}/share/spile/tools/envreads.bt", "-c", "sort /dev/null"], env=environment)
        check("hits-happened", "@asked[POSIXLY_CORRECT, not set]: 1" in result.out, result.report())


def without_root():
    """What a header says: the user engine needs none for one's own programs."""
    need_root()  # to become another user
    with temporary_directory() as directory:
        copy = public_copy(directory, SPILE)
        for name, words, pattern in (("envreads", [], r"^@asked\[POSIXLY_CORRECT, not set\]: 1$"), ("fnhist", ["libc", "getenv"], r"^@ns\[getenv\]:\n\[")):
            result = run([*NOBODY, copy, public_copy(directory, tools.script(name)), *words, "-c", "sort /dev/null"])
            check_status(result, 0)
            check("hits-happened", re.search(pattern, result.out, re.M), result.report())


def the_same_by_the_kernel_engine():
    """Those of any function also trace every process: here one, whose file the kernel can probe. It may have ended when names are
    looked for: then a stack is addresses."""
    need_root()
    place = f"/dev/shm/spile-tools-{os.getpid()}"
    with temporary_directory() as directory:
        program = compile_program(directory, "called", "int twice(int n) { return 2 * n; }\nint main(void) { int sum = 0;\n"
                                  "  for (volatile int i = 0; i < 10; i++) sum += twice(i);\n  return sum == 0; }\n", flags=("-O0",))
        shutil.copy(program, place)
        try:
            for name, words, pattern in (("fnslow", ["0"], r"(^spile-tools\S* +\d+ +\d+  0x[0-9a-f]+ .* -> 0x[0-9a-f]+\n){10}"), ("fnhist", [], r"^@ns\[twice\]:\n"),
                                         ("fncount", [], r"^@calls\[twice\]: 10$"), ("fncallers", [], r"^@\[\n(    \S+\n)+\]: 10$")):
                result = spile("--engine", "kernel", tools.script(name), place, "twice", *words, "-c", place)
                check_status(result, 0)
                check("hits-happened", re.search(pattern, result.out, re.M), result.report())
        finally:
            os.unlink(place)


ELSEWHERE = {"rediscommands", "shelllines", "pgqueries", "tlstext", "tlshandshakes", "eventloops"}


def each_has_a_header_an_example_and_a_test():
    names = tools.names()
    texts = []
    for path in ("README.md", "tools/scripts/README.md"):
        with open(os.path.join(ROOT, path), encoding="utf-8") as file:
            texts.append(file.read())
    check("at-least", len(names) >= 25, str(names))
    tested = set(ON_PROGRAMS) | set(ON_THIS_KERNEL) | set(test_vm_kernel.TOOLS) | ELSEWHERE
    check("tested", set(names) == tested, f"{set(names) ^ tested}")
    for name in names:
        with open(tools.script(name), encoding="utf-8") as file:
            text = file.read()
        check("header", re.match(rf"#!/usr/bin/env spile\n// {name}: .*(\n// .*)?\n//\n// Usage:    spile {name}\.bt.*\n(//.*\n)*// Engine:   "
                                 r"(user|kernel).*\n(//.*\n)*// Caveats:  \S", text), f"{name}\n{text[:600]}")
        check("named", f"`{name}`" in texts[0] and f"[{name}]({name}.bt)" in texts[1], f"{name} in README.md and tools/scripts/README.md")
        check("executable", os.access(tools.script(name), os.X_OK), name)
        example = os.path.join(tools.EXAMPLES, name + ".txt")
        check("example", os.path.exists(example) and os.path.getsize(example) > 60, f"{example}: SPILE_REBASE=1 makes it")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    main([on_programs, event_loops, tls, redis, shell, postgres, on_this_kernel, without_root, the_same_by_the_kernel_engine, installed,
          each_has_a_header_an_example_and_a_test], 240)
