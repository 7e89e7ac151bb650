#!/usr/bin/env python3
"""redis-server and python3 under work, traced by -p again and again; a program that counts its own calls is the truth.

SPILE_SOAK=1: 1000 attaches of each, and nginx, perl and sqlite3 too. SPILE_CYCLES=N: so many attaches.
"""
import os
import re
import socket
import subprocess
import threading
import time

from harness import (SPILE, Failure, Picture, Process, Skip, Spile, Target, check, check_count, check_hits_happened,
                     check_no_loss, need_tool,
                     target_path)
from tracing import (NOBODY, SOAK, check_as_before_soon, check_prints, check_status, free_port, histogram_total, keyed,
                     main, public_copy,
                     run, spile, temporary_directory, wait_until)

CYCLES = int(os.environ.get("SPILE_CYCLES", 1000 if SOAK else 100))
PYTHON = os.path.realpath("/usr/bin/python3")


def ended_after(milliseconds):
    return f" interval:ms:{milliseconds} {{ exit(); }}"


def attach_again_and_again(pid, scripts, cycles, between=None):
    """Short traces of a process at work, the scripts in turn. Gives what each script printed, all runs together."""
    printed = ["" for _ in scripts]
    slowest = 0.0
    for cycle in range(cycles):
        script = scripts[cycle % len(scripts)]
        result = spile("-q", "-e", script + ended_after(1 + cycle % 5), "-p", pid)
        check("attaches", result.status == 0, f"cycle {cycle}\n{result.report()}")
        check("no-loss", not re.search(r"[1-9]\d* (records lost|updates of full|missed)", result.err), result.report())
        printed[cycle % len(scripts)] += result.out
        slowest = max(slowest, result.seconds)
        if between:
            between(cycle)
    return printed, slowest


# --- the first trace of a new user ----------------------------------------------------------------------------


def fopen_prints_real_file_names():
    """As root and as uid 65534, by soname and by both paths of a merged /usr."""
    getent = need_tool("getent")
    with temporary_directory() as directory:
        copy = public_copy(directory, SPILE)
        libc = next(name for name, _ in Picture(os.getpid()).text.values() if re.search(r"/libc[.-]", name))
        other = libc[4:] if libc.startswith("/usr/") else "/usr" + libc
        for prefix in [(), NOBODY] if os.geteuid() == 0 else [()]:
            for library in ("libc", libc, other):
                result = run([*prefix, copy, "-e", f'uprobe:{library}:fopen {{ printf("fopen: %s\\n", str(arg0)); }}',
                              "-c", f"{getent} services http"])
                check_status(result, 0)
                check_prints(result, r"(?m)^http +80/tcp")
                check_prints(result, r"(?m)^fopen: /etc/services$")


# --- redis ----------------------------------------------------------------------------------------------------


class RedisClient:
    """Speaks just enough of redis's protocol to check every answer."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.stream = self.socket.makefile("rb")

    def close(self):
        self.stream.close()
        self.socket.close()

    def ask(self, *words):
        parts = [b"*%d\r\n" % len(words)]
        for word in words:
            data = str(word).encode()
            parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
        self.socket.sendall(b"".join(parts))
        line = self.stream.readline().rstrip()
        if line[:1] == b"$" and line != b"$-1":
            return self.stream.read(int(line[1:]) + 2)[:-2].decode()
        return line.decode()


class Redis:
    """A server of its own on a port of its own, with nothing on disk."""

    def __init__(self, directory):
        self.path = need_tool("redis-server")  # by this name: redis-check-rdb is the same file
        self.port = free_port()
        self.server = Process([self.path, "--port", self.port, "--bind", "127.0.0.1", "--save", "", "--appendonly",
                               "no",
                               "--dir", directory, "--io-threads", "1"])

    def __enter__(self):
        wait_until(self._answers, "an answer of redis-server", every=0.05)
        return self

    def __exit__(self, *details):
        self.server.__exit__(*details)

    @property
    def pid(self):
        return self.server.pid

    def picture(self):
        """Taken once it has noticed that no client is left: its listening socket is the only one."""
        wait_until(lambda: sum(name.startswith("socket:") for name in Picture(self.pid).descriptors.values()) == 1,
                   "the last client's end")
        return Picture(self.pid)

    def _answers(self):
        try:
            client = RedisClient(self.port)
        except OSError:
            return False
        try:
            return client.ask("PING") == "+PONG"
        finally:
            client.close()


class Load(threading.Thread):
    """Commands with checked answers until stopped."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.client = RedisClient(port)
        self.wanted = True
        self.commands = 0
        self.wrong = None
        self.start()

    def run(self):
        try:
            while self.wanted:
                self._round(self.commands)
        except OSError as error:
            self.wrong = f"the connection broke: {error}"

    def _round(self, n):
        value = f"value-{n}-" + "x" * (n % 200)
        for words, answer in ((("SET", f"key-{n % 50}", value), "+OK"), (("GET", f"key-{n % 50}"), value),
                              (("INCR", "counter"), f":{n // 3 + 1}")):
            got = self.client.ask(*words)
            self.commands += 1
            if got != answer:
                self.wrong = self.wrong or f"{words}: {got!r}, must be {answer!r}"
                self.wanted = False

    def stop(self):
        self.wanted = False
        self.join(15)
        self.client.close()
        check("results-unchanged", self.wrong is None and not self.is_alive(), self.wrong or "the load hangs")


def redis_scripts(path):
    return [
        f"uprobe:{path}:processCommand {{ @calls = count(); }}",
        "uprobe:libc:write { @bytes = hist(arg2); }",
        f"uprobe:{path}:dictSdsHash {{ @[str(arg0)] = count(); }}",
        f'uprobe:libc:epoll_wait {{ printf("wait %s %d\\n", comm, arg2); }} uprobe:{path}:lookupKey* {{ @[func] = count(); }}',
    ]


def redis_attached_again_and_again():
    with temporary_directory() as directory, Redis(directory) as redis:
        before = redis.picture()
        load = Load(redis.port)
        benchmark = subprocess.Popen([need_tool("redis-benchmark"), "-p", str(redis.port), "-t", "set,get,lpush", "-n",
                                      "20000", "-c", "4", "-q"],
                                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begin = time.monotonic()
        try:
            printed, slowest = attach_again_and_again(redis.pid, redis_scripts(redis.path), CYCLES)
        finally:
            seconds = time.monotonic() - begin
            load.stop()
            benchmark.kill()
            benchmark.wait()
        print(f"  redis: {CYCLES} attaches in {seconds:.1f} s, slowest {slowest * 1000:.0f} ms, {load.commands} checked commands")
        hits = [sum(int(n) for n in re.findall(r"^@calls: (\d+)", printed[0], re.M)),
                histogram_total(printed[1], "@bytes"),
                sum(keyed(printed[2], "@").values()), len(re.findall(r"^wait redis-server \d+$", printed[3], re.M))]
        check("hits-happened", all(hits), f"hits by script: {hits}\n{printed}")
        check("strings-read", any(key.startswith(("key-", "key:", "counter")) for key in keyed(printed[2], "@")),
              printed[2][-2000:])
        check_as_before_soon(before, redis.pid)
        check("target-survives", redis.server.alive(), redis.server.report())


def redis_commands_are_counted_exactly():
    with temporary_directory() as directory, Redis(directory) as redis:
        before = redis.picture()
        client = RedisClient(redis.port)
        with Spile(f"uprobe:{redis.path}:processCommand {{ @calls = count(); }} "
                   f"uprobe:{redis.path}:dictSdsHash {{ @keys[str(arg0)] = count(); }}",
                   pid=redis.pid) as trace:
            check("attached", trace.wait_attached(), trace.report())
            for n in range(1000):
                check("results-unchanged", client.ask("SET", f"name-{n % 10}", n) == "+OK", f"SET {n}")
            client.close()
            trace.stop()
            check_count("exact", int(trace.maps()["@calls"]), 1000, trace)
            keys = trace.maps()["@keys"]
            check("keys-by-name", all(int(keys.get(f"name-{n}", 0)) >= 100 for n in range(10)), str(keys))
            check_no_loss(trace)
        check_as_before_soon(before, redis.pid)


# --- python ---------------------------------------------------------------------------------------------------

PYTHON_WORK = r"""
import hashlib, json, os, sys, threading
null = os.open("/dev/null", os.O_WRONLY)
def work(rounds):
    digest = hashlib.sha256()
    for n in range(rounds):
        table = {str(i): [i, n] * 3 for i in range(40)}
        digest.update(json.dumps(table).encode())
        with open("/dev/null") as file:
            file.read()
        with open("/proc/self/comm") as file:
            digest.update(file.read().encode())
        os.write(null, b"x" * (n % 100))
    return digest.hexdigest()
def again_and_again():
    global rounds
    while wanted:
        results.add(work(100))
        rounds += 1
work(100)
print("ready", flush=True)
for line in sys.stdin:
    if line == "begin\n":
        wanted, results, rounds = True, set(), 0
        worker = threading.Thread(target=again_and_again)
        worker.start()
    elif line == "end\n":
        wanted = False
        worker.join()
        print("results", rounds, *sorted(results), flush=True)
    else:
        print("result", work(int(line)), flush=True)
"""


class Python:
    """python3 that works on demand and prints checksums of its work."""

    def __init__(self):
        self.process = Process([PYTHON, "-c", PYTHON_WORK])

    def __enter__(self):
        self.process.wait_for_line("ready")
        return self

    def __exit__(self, *details):
        self.process.__exit__(*details)

    @property
    def pid(self):
        return self.process.pid

    def tell(self, line):
        self.process.process.stdin.write(f"{line}\n")
        self.process.process.stdin.flush()

    def ask(self, line, seconds=60):
        """The words of its answer."""
        number = len(self.process.out)
        self.tell(line)
        wait_until(lambda: len(self.process.out) > number or not self.process.alive(), "an answer of python3", seconds,
                   0.01)
        check("target-survives", self.process.alive(), self.process.report())
        return self.process.out[number].split()


def python_scripts():
    return [
        f"uprobe:{PYTHON}:PyObject_Malloc {{ @calls = count(); }}",
        "uprobe:libc:write { @bytes = hist(arg2); }",
        "uprobe:libc:open64 { @[str(arg0)] = count(); }",
        f'uprobe:libc:close {{ printf("close %s %d\\n", comm, arg0); }} uprobe:{PYTHON}:PyDict_SetItem* {{ @[func] = count(); }}',
    ]


def python_attached_again_and_again():
    with Python() as python:
        truth = python.ask("100")[1]
        python.tell("begin")
        python.ask("end")  # a thread's first start maps what stays
        before = Picture(python.pid)
        python.tell("begin")
        begin = time.monotonic()
        printed, slowest = attach_again_and_again(python.pid, python_scripts(), CYCLES)
        seconds = time.monotonic() - begin
        _, count, *results = python.ask("end")
        print(f"  python3: {CYCLES} attaches in {seconds:.1f} s, slowest {slowest * 1000:.0f} ms, {count} checked results")
        check("results-unchanged", results == [truth], f"{results}, must be {truth}")
        hits = [sum(int(n) for n in re.findall(r"^@calls: (\d+)", printed[0], re.M)),
                histogram_total(printed[1], "@bytes"),
                sum(keyed(printed[2], "@").values()), len(re.findall(r"^close python3[.\d]* \d+$", printed[3], re.M))]
        check("hits-happened", all(hits), f"hits by script: {hits}\n{printed}")
        opened = set(keyed(printed[2], "@"))
        check("strings-read", opened and opened <= {"/dev/null", "/proc/self/comm"}, str(opened))
        check_as_before_soon(before, python.pid)


def python_calls_are_counted_exactly():
    with Python() as python:
        before = Picture(python.pid)
        with Spile("uprobe:libc:open64 { @[str(arg0)] = count(); } "
                   "uprobe:libc:write /arg2 < 100/ { @bytes = hist(arg2); @sum = sum(arg2); }",
                   pid=python.pid) as trace:
            check("attached", trace.wait_attached(), trace.report())
            answer = " ".join(python.ask("200"))
            trace.stop()
            opened = {key: int(value) for key, value in trace.maps().get("@", {}).items()}
            check("exact-count", opened == {"/dev/null": 200, "/proc/self/comm": 200}, f"{opened}\n{trace.report()}")
            # What it writes to /dev/null, and its answer.
            check("exact-sum", int(trace.maps()["@sum"]) == 2 * 4950 + len(answer) + 1, f"{trace.maps()} {answer}")
            check_no_loss(trace)
        check_as_before_soon(before, python.pid)


# --- the truth of a program that counts -----------------------------------------------------------------------


def counts_are_exact_with(threads):
    path = target_path("case_42_spinning_threads")
    program = f"uprobe:{path}:probe_me {{ @calls = count(); @by_tid[tid] = count(); @h = lhist(1, 0, 10, 1); @s = sum(2); }}"
    with Target(path, ["--mode", str(threads)], wait=True, hold=True) as target:
        before = Picture(target.pid)
        with Spile(program, pid=target.pid) as trace:
            check("attached", trace.wait_attached(), trace.report())
            target.send_line()
            target.wait_for_line("done$")
            trace.stop()
            maps = trace.maps()
            check_as_before_soon(before, target.pid)
            target.finish_well()
            calls = target.calls()
            check_hits_happened(calls, target)
            check_count("exact", int(maps["@calls"]), calls, trace)
            check_count("exact", int(maps["@s"]), 2 * calls, trace)
            check_count("exact", sum(int(n) for n in maps["@by_tid"].values()), calls, trace)
            histogram = trace.of_type("hist") + trace.of_type("lhist")
            total = sum(bucket["count"] for data in histogram for buckets in data.values() for bucket in buckets)
            check_count("exact", total, calls, trace)
            check("threads-seen", len(maps["@by_tid"]) == threads, f"{maps['@by_tid']}")
            check_no_loss(trace)


def counts_are_exact_with_1_thread():
    counts_are_exact_with(1)


def counts_are_exact_with_2_threads():
    counts_are_exact_with(2)


def counts_are_exact_with_8_threads():
    counts_are_exact_with(8)


# --- soak: more programs --------------------------------------------------------------------------------------


def need_soak():
    if not SOAK:
        raise Skip("only with SPILE_SOAK=1")


def soak_a_filter(command, work, scripts):
    """A program that answers each line of input with one line: its answers must stay the same."""
    with Process(command) as process:
        def ask():
            number = len(process.out)
            process.process.stdin.write(work + "\n")
            process.process.stdin.flush()
            wait_until(lambda: len(process.out) > number or not process.alive(), f"an answer of {command[0]}", 60)
            check("target-survives", process.alive(), process.report())
            return process.out[number]

        truth = ask()
        before = Picture(process.pid)
        stop = threading.Event()
        wrong = []

        def keep_asking():
            while not stop.is_set():
                try:
                    answer = ask()
                except Failure as failure:
                    wrong.append(str(failure))
                    return
                if answer != truth:
                    wrong.append(answer)

        worker = threading.Thread(target=keep_asking, daemon=True)
        worker.start()
        try:
            printed, _ = attach_again_and_again(process.pid, scripts, CYCLES)
        finally:
            stop.set()
            worker.join(60)
        check("results-unchanged", not wrong, f"{wrong[:3]}, must be {truth!r}\n{process.report()}")
        check("hits-happened", all(re.search(r"[1-9]", text) for text in printed), str(printed)[:2000])
        check_as_before_soon(before, process.pid)


def soak_perl():
    need_soak()
    perl = os.path.realpath(need_tool("perl"))
    code = '$| = 1; while (<>) { my $t = 0; for my $i (1..20000) { my %h = (a => $i, b => "x$i"); $t += length($h{b}) } print "$t\\n" }'
    soak_a_filter([perl, "-e", code], "go", ["uprobe:libc:malloc { @ = hist(arg0); }",
                                             "uprobe:libc:free { @ = count(); }",
                                            f"uprobe:{perl}:Perl_newSV* {{ @[func] = count(); }}"])


def soak_sqlite3():
    need_soak()
    query = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c WHERE n < 20000) SELECT sum(length(hex(n))) FROM c;"
    soak_a_filter([need_tool("sqlite3"), "-batch", ":memory:"], query,
                  ["uprobe:libsqlite3:sqlite3_step { @ = count(); }", "uprobe:libc:malloc { @ = hist(arg0); }",
                   "uprobe:libsqlite3:sqlite3_* { @[func] = count(); }"])


def soak_nginx():
    need_soak()
    nginx = os.path.realpath(need_tool("nginx"))
    port = free_port()
    with temporary_directory() as directory:
        with open(f"{directory}/index.html", "w", encoding="utf-8") as page:
            page.write("hello " * 500)
        with open(f"{directory}/conf", "w", encoding="utf-8") as conf:
            conf.write(f"daemon off; master_process off; pid {directory}/pid; error_log {directory}/log; events {{}}\n"
                       f"http {{ access_log off; server {{ listen 127.0.0.1:{port}; root {directory}; }} }}\n")
        with Process([nginx, "-p", directory, "-c", f"{directory}/conf", "-e", f"{directory}/log"]) as server:
            def get():
                with socket.create_connection(("127.0.0.1", port), timeout=10) as link:
                    link.sendall(b"GET / HTTP/1.0\r\n\r\n")
                    data = b""
                    while more := link.recv(65536):
                        data += more
                    return data.split(b"\r\n\r\n", 1)[1]

            def answers():
                try:
                    return bool(get())
                except OSError:
                    return False

            wait_until(answers, "an answer of nginx", every=0.05)
            truth, wrong, stop = get(), [], threading.Event()
            before = Picture(server.pid)

            def keep_getting():
                while not stop.is_set():
                    try:
                        if get() != truth:
                            wrong.append("another page")
                    except OSError as error:
                        wrong.append(str(error))

            worker = threading.Thread(target=keep_getting, daemon=True)
            worker.start()
            try:
                printed, _ = attach_again_and_again(server.pid,
                                                    ["uprobe:libc:writev { @ = count(); }",
                                                     "uprobe:libc:open64 { @[str(arg0)] = count(); }",
                                                                 "uprobe:libc:recv { @ = hist(arg2); }"], CYCLES)
            finally:
                stop.set()
                worker.join(30)
            check("results-unchanged", not wrong, str(wrong[:3]))
            check("hits-happened", all(re.search(r"[1-9]", text) for text in printed), str(printed)[:2000])
            check_as_before_soon(before, server.pid)


if __name__ == "__main__":
    main([fopen_prints_real_file_names, redis_attached_again_and_again, redis_commands_are_counted_exactly,
          python_attached_again_and_again, python_calls_are_counted_exactly,
          counts_are_exact_with_1_thread, counts_are_exact_with_2_threads, counts_are_exact_with_8_threads, soak_perl,
          soak_sqlite3, soak_nginx], 200)
