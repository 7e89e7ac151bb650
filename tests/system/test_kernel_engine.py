#!/usr/bin/env python3
"""The kernel engine on this machine: counters, clocks, watchpoints, BTF probes, every way to attach, stat, list, info.

What the kernel itself shows of the links is read by bpf_links.c, not taken from spile's own words."""
import contextlib
import glob
import json
import os
import re
import shutil
import signal
import subprocess

from harness import SPILE, Process, Skip, check, need_tool
from tracing import (NOBODY, check_prints, check_says, check_status, compile_program, keyed, main, run, scalar, spile,
                     temporary_directory, wait_until)

HERE = os.path.dirname(os.path.abspath(__file__))
UPROBE_EVENTS = "/sys/kernel/tracing/uprobe_events"

WORK = r"""
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#define NOINLINE __attribute__((noinline))
volatile long watched __attribute__((aligned(8)));
NOINLINE long probe_me(long n) { __asm__ volatile("" : "+r"(n)); return n + 1; }
static int go;
static void touch(long pages) {
  char *p = mmap(0, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  madvise(p, pages * 4096, MADV_NOHUGEPAGE);
  for (long i = 0; i < pages; i++) p[i * 4096] = 1;
}
static void *later(void *n) { touch((long)n); return 0; }
static void *early(void *n) {
  while (!__atomic_load_n(&go, __ATOMIC_ACQUIRE)) usleep(1000);
  touch((long)n);
  return 0;
}
int main(int argc, char **argv) {
  const char *mode = argv[1];
  long n = atol(argv[2]);
  pthread_t a, b;
  if (!strcmp(mode, "threads")) pthread_create(&a, 0, early, (void *)n);
  if (argc > 3) { printf("%p\n", (void *)&watched); fflush(stdout); getchar(); }
  if (!strcmp(mode, "threads")) {
    __atomic_store_n(&go, 1, __ATOMIC_RELEASE);
    pthread_create(&b, 0, later, (void *)n);
    pthread_join(a, 0);
    pthread_join(b, 0);
  }
  for (long i = 0; i < n; i++) {
    if (!strcmp(mode, "calls")) probe_me(i);
    if (!strcmp(mode, "slow")) { probe_me(i); usleep(10000); }
    if (!strcmp(mode, "writes")) watched = i;
    if (!strcmp(mode, "syscalls")) syscall(SYS_getpgid, 0);
  }
  if (!strcmp(mode, "burn")) for (long t = clock(); clock() - t < n * 1000;) {}
  return argc > 4 ? 7 : 0;
}
"""


class Work:
    """The program and the observer, compiled once."""
    programs = {}

    @classmethod
    def get(cls, name):
        if name not in cls.programs:
            directory = Work.directory.name
            if name == "bpf_links":
                with open(os.path.join(HERE, "bpf_links.c"), encoding="utf-8") as file:
                    cls.programs[name] = compile_program(directory, name, file.read(), ("-O2", "-static"))
            else:
                cls.programs[name] = compile_program(directory, name, WORK, ("-O1", "-fno-inline"))
        return cls.programs[name]


class Directory:
    def __init__(self):
        self.holder = temporary_directory()
        self.name = self.holder.__enter__()


def need_root():
    if os.geteuid() != 0:
        raise Skip("needs root")


def work(*words):
    return " ".join([Work.get("work"), *map(str, words)])


def traced(script, command, *options):
    result = spile("-q", "--engine", "kernel", *options, "-e", script, "-c", command)
    check_status(result, 0)
    return result


class Waiting:
    """The program, waiting for a line before it works; then it must end by itself."""

    def __init__(self, mode, count):
        self.process = subprocess.Popen([Work.get("work"), mode, str(count), "wait"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        self.address = self.process.stdout.readline().strip()
        self.pid = self.process.pid

    def finish(self):
        self.process.communicate("\n", timeout=60)
        check("exit-status", self.process.returncode == 0, f"the program: {self.process.returncode}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Running:
    """A spile that traces until told."""

    def __init__(self, *words):
        self.process = subprocess.Popen([SPILE, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.err = ""
        for line in self.process.stderr:
            self.err += line
            if line.startswith("Attached"):
                return
        check("attaches", False, self.err + self.process.stdout.read())

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=60)
        check("exit-status", self.process.returncode == 0, out + self.err + err)
        return out

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def link_ids(pid):
    """Of the links that this process holds: others may trace on the same machine."""
    ids = []
    for path in glob.glob(f"/proc/{pid}/fdinfo/*"):
        with contextlib.suppress(OSError):
            with open(path, encoding="utf-8") as file:
                ids += re.findall(r"^link_id:\s*(\d+)$", file.read(), re.M)
    return ids


def shown_links(ids):
    return run([Work.get("bpf_links"), "--only", *ids]).out


def links(trace):
    return shown_links(link_ids(trace.process.pid))


def events_of(*traces):
    """The definitions that these have made, by the name of their group."""
    groups = tuple(f":spile_{trace.process.pid}_" for trace in traces)
    with open(UPROBE_EVENTS, encoding="utf-8") as file:
        return [line for line in file if any(group in line for group in groups)]


# ---- probe types -----------------------------------------------------------------------------------------------------


def page_faults_of_one_process_and_its_new_threads():
    need_root()
    with Waiting("threads", 300) as target:
        with Running("--engine", "kernel", "-p", target.pid, "-e", "interval:s:100 { exit(); } software:page-faults:1 { @[probe] = count(); }") as trace:
            target.finish()
            out = trace.stop()
    # A thread that came later inherits its event: it must name the second probe all the same.
    check("named", list(keyed(out, "@")) == ["software:page-faults:1"], out)
    hits = keyed(out, "@").get("software:page-faults:1", 0)
    check("hits-happened", 600 <= hits < 800, f"600 pages were touched for the first time:\n{out}")


def a_software_event_is_sampled():
    need_root()
    result = traced("software:page-faults:100 { @ = count(); }", work("threads", 1000))
    check("at-least", 19 <= scalar(result.out, "@") <= 24, f"2000 pages, every 100th:\n{result.out}")


def a_profile_counts_the_process_alone():
    need_root()
    result = traced("profile:hz:200 { @[comm] = count(); @s[ustack(1)] = count(); }", work("burn", 500))
    hits = keyed(result.out, "@")
    # A sample may fall between the fork of the command and its exec.
    before_exec = hits.pop("spile", 0)
    check("hits-happened", set(hits) == {"work"} and 0 < hits["work"] <= 150 and before_exec <= 3, result.out)
    check("names", re.search(r"clock|main|vdso|times", result.out), result.out)


def a_watchpoint_counts_every_write():
    need_root()
    with Waiting("writes", 1000) as target:
        with Running("--engine", "kernel", "-p", target.pid, "-e",
                     f"watchpoint:{target.address}:8:w {{ @[probe] = count(); }}") as trace:
            target.finish()
            out = trace.stop()
    check("exact-count", list(keyed(out, "@").values()) == [1000], out)


def a_raw_tracepoint_has_typed_arguments():
    need_root()
    result = traced("rawtracepoint:sys_enter /args.id == 121/ { @[probe] = count(); }",
                    work("syscalls", 500))
    check("exact-count", keyed(result.out, "@") == {"rawtracepoint:sys_enter": 500}, result.out)
    result = traced("rawtracepoint:sys_enter { @[arg1] = count(); }", work("syscalls", 500))
    check("exact-count", keyed(result.out, "@").get("121") == 500, result.out)


def one_program_serves_no_two_raw_tracepoints():
    """Of kernels before 6.10 none has a cookie for these: the probe's name is in the code of each."""
    need_root()
    result = traced("rawtracepoint:sys_enter, rawtracepoint:sys_exit { @[probe] = count(); }", work("syscalls", 500))
    hits = keyed(result.out, "@")
    check("hits-happened", hits.get("rawtracepoint:sys_enter", 0) >= 500 and hits.get("rawtracepoint:sys_exit", 0) >= 500,
          result.out)


def an_iterator_runs_once_for_each_task():
    need_root()
    # Five threads of a name of their own: what else comes and goes meanwhile says nothing, nor this test run twice.
    own = f"iter{os.getpid()}"
    name = os.path.join(Work.directory.name, own)
    shutil.copy(need_tool("sleep"), name)
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(Process([name, "1000"]))
        wait_until(lambda: sum(comm == own + "\n" for comm in comms()) == 5, "five threads called so")
        result = spile("-q", "-e", "iter:task { @ = count(); @t[ctx->task] = count(); @by[((struct task_struct *)ctx->task)->comm] = count(); }")
    check_status(result, 0)
    check("exact-count", keyed(result.out, "@by").get(own) == 5, result.out)
    check("one-each", set(keyed(result.out, "@t").values()) == {1} and len(keyed(result.out, "@t")) == scalar(result.out, "@"), result.out)
    # The kernel calls once more at the end, without a task.
    check("no-end", "0x0" not in keyed(result.out, "@t"), result.out)


def comms():
    for path in glob.glob("/proc/[0-9]*/comm"):
        with contextlib.suppress(OSError):
            with open(path, encoding="utf-8", errors="replace") as file:
                yield file.read()


def hardware_says_why_not():
    need_root()
    result = spile("-q", "-e", "hardware:cycles:1000000 { @ = count(); } interval:ms:200 { exit(); }")
    if result.status == 0:
        check("hits-happened", scalar(result.out, "@") > 0, result.report())
        return
    check_status(result, 1)
    check_says(result, r"no performance counter.*software:cpu-clock")


def what_this_kernel_lacks_is_said_in_words():
    need_root()
    if not os.path.exists("/sys/bus/event_source/devices/kprobe"):
        result = spile("-e", "kprobe:vfs_read { @ = count(); }")
        check_status(result, 1)
        check_says(result, r"kprobe:vfs_read: this kernel has no kprobes \(CONFIG_KPROBES")
        result = spile("-e", "kprobe:vfs_read { @ = count(); } kretprobe:vfs_read { @ = count(); }", "--attach", "session")
        check_status(result, 1)
        check_says(result, "no kprobe.session")
    result = spile("-e", "fentry:vfs_raed { @ = count(); }")
    check_status(result, 1)
    check_says(result, "no function 'vfs_raed'")
    result = spile("-e", f"uprobe:{Work.get('work')}:probe_me {{ @ = count(); }}", "--attach", "magic")
    check_status(result, 2)


def without_privilege_it_says_what_is_needed():
    need_root()
    for script in ("profile:hz:99 { @ = count(); }", "software:page-faults:1 { @ = count(); }",
                   "rawtracepoint:sys_enter { @ = count(); }"):
        result = spile("-e", script, prefix=NOBODY)
        check_status(result, 1)
        check_says(result, r"root|CAP_BPF")


# ---- ways to attach --------------------------------------------------------------------------------------------------


def uprobes_by(path, link, in_tracefs):
    need_root()
    probe = f"uprobe:{Work.get('work')}:probe_me"
    options = ("--engine", "kernel", "--attach", path)
    script = f"{probe} {{ @[probe] = count(); }} uretprobe:{Work.get('work')}:probe_me {{ @r[retval] = count(); }}"
    with Waiting("calls", 1000) as target:
        with Running(*options, "-v", "-p", target.pid, "-e", script) as trace:
            shown = links(trace)
            check("link-type", bool(re.search(link, shown)) if link else not re.search("uprobe|perf_event", shown),
                  f"{path}: the kernel shows\n{shown}")
            if os.path.exists(UPROBE_EVENTS):
                check("tracefs-event", len(events_of(trace)) == (2 if in_tracefs else 0), str(events_of(trace)))
            target.finish()
            out = trace.stop()
    check("exact-count", keyed(out, "@") == {probe: 1000}, out)
    check("exact-count", len(keyed(out, "@r")) == 1000 and keyed(out, "@r").get("1000") == 1, out[-2000:])
    if os.path.exists(UPROBE_EVENTS):
        wait_until(lambda: not events_of(trace), "the end of spile's events")


def uprobe_by_multi():
    if "yes uprobe.multi of one process" not in spile("info").out:
        raise Skip("this kernel has no uprobe.multi")
    uprobes_by("multi", r"(?s)(?=.*uprobe_multi uprobe_0).*uprobe_multi uretprobe_1", False)


def uprobe_by_link():
    uprobes_by("link", r"perf_event uprobe_0", False)


def uprobe_by_ioctl():
    uprobes_by("ioctl", "", False)


def uprobe_by_tracefs():
    uprobes_by("tracefs", "", True)


def a_killed_spile_leaves_no_probe_and_the_next_one_clears_its_event():
    need_root()
    if not os.path.exists(UPROBE_EVENTS):
        raise Skip("no tracefs")
    script = f"uprobe:{Work.get('work')}:probe_me {{ @ = count(); }}"
    with Running("--attach", "tracefs", "-e", script) as trace, Running("--attach", "tracefs", "-e", script) as other:
        check("two-at-once", len(events_of(trace, other)) == 2, str(events_of(trace, other)))
        trace.process.send_signal(signal.SIGKILL)
        trace.process.wait()
        check("event-stays", len(events_of(trace)) == 1, "the definition outlives its maker")
        result = run([Work.get("work"), "calls", 100])
        check_status(result, 0)
        # The next one: takes the dead one's away, leaves the living one's.
        with Running("--engine", "kernel", "-e", script) as third:
            wait_until(lambda: not events_of(trace), "the end of the dead one's event")
            check("event-stays", len(events_of(other)) == 1, str(events_of(other)))
            check_status(run([Work.get("work"), "calls", 100]), 0)
            check("exact-count", scalar(third.stop(), "@") == 100, "")
        check("exact-count", scalar(other.stop(), "@") == 200, "")
    wait_until(lambda: not events_of(trace, other), "the end of spile's events")


def a_killed_spile_leaves_no_link():
    need_root()
    script = f"uprobe:{Work.get('work')}:probe_me {{ @ = count(); }} profile:hz:10 {{ @p = count(); }}"
    with Running("--engine", "kernel", "-e", script) as trace:
        ids = link_ids(trace.process.pid)
        check("link-type", shown_links(ids), "the kernel shows no link")
        trace.process.send_signal(signal.SIGKILL)
        trace.process.wait()
        wait_until(lambda: not shown_links(ids), "the end of the links")


def uprobe_session_is_one_link_at_both_ends():
    need_root()
    if "yes uprobe.session" not in spile("info").out:
        raise Skip("this kernel has no uprobe.session")
    function = f"{Work.get('work')}:probe_me"
    script = (f"uretprobe:{function} {{ @back[probe] = count(); @sum = sum(retval); }} "
              f"uprobe:{function} {{ @[probe] = count(); @args = sum(arg0); }}")
    for options in ((), ("--attach", "session"), ("--attach", "multi")):
        with Waiting("calls", 1000) as target:
            with Running("--engine", "kernel", "-v", *options, "-p", target.pid, "-e", script) as trace:
                shown = [line for line in links(trace).splitlines() if "uprobe" in line or "uretprobe" in line]
                check("link-type", len(shown) == (2 if "multi" in options else 1), f"{options}: the kernel shows\n{shown}")
                target.finish()
                out = trace.stop()
        check("exact-count", keyed(out, "@") == {f"uprobe:{function}": 1000}, out)
        check("exact-count", keyed(out, "@back") == {f"uretprobe:{function}": 1000}, out)
        check("same-calls", (scalar(out, "@args"), scalar(out, "@sum")) == (499500, 500500), out)
    result = spile("--attach", "session", "-e", f"uprobe:{function} {{ @ = count(); }}")
    check_status(result, 1)
    check_says(result, "--attach session: .*not a uprobe and a uretprobe")


def records_come_by_perf_buffers_too():
    """Forced: the same lines as by the ring, in order, since one CPU makes them; with strings, exit() and BEGIN."""
    need_root()
    probe = f"uprobe:{Work.get('work')}:probe_me"
    script = (f'BEGIN {{ printf("begin\\n"); }} {probe} {{ printf("%d %s\\n", arg0, arg0 % 2 ? "odd" : "a longer word"); @[probe] = count(); '
              f'if (arg0 == 99) {{ print(@); exit(3); }} }} END {{ printf("end\\n"); }}')
    outs = []
    for records in ("ring", "perf"):
        for path in ("auto", "ioctl"):
            result = spile("-q", "--engine", "kernel", "--records", records, "--attach", path, "-e", script, "-c",
                           "taskset -c 0 " + work("calls", 100) if path == "auto" else work("calls", 100))
            check_status(result, 3)
            outs.append(sorted(result.out.splitlines()))
    check("hits-happened", "98 a longer word" in outs[0] and "99 odd" in outs[0] and "begin" in outs[0] and "end" in outs[0], "\n".join(outs[0]))
    check("same-output", all(out == outs[0] for out in outs), "\n".join(map(str, outs)))
    if "yes uprobe.multi of one process" not in spile("info").out:
        return
    # By programs that may be preempted, too; and what prints nothing needs no buffer.
    result = traced(f'{probe} {{ printf("%d\\n", arg0); }}', work("calls", 100), "--records", "perf", "--attach", "multi")
    check("hits-happened", sorted(map(int, result.out.split())) == list(range(100)), result.report())
    result = traced(f"{probe} {{ @ = count(); }}", work("calls", 10), "--records", "perf", "--attach", "multi")
    check("exact-count", scalar(result.out, "@") == 10, result.report())


def a_session_that_cannot_be_leaves_two_links():
    """Programs with loops share nothing with another; and without type information nobody knows the kernel's function for it."""
    need_root()
    if "yes uprobe.session" not in spile("info").out:
        raise Skip("this kernel has no uprobe.session")
    function = f"{Work.get('work')}:probe_me"
    loops = (f"uprobe:{function} {{ for ($i : 0..50) {{ @n = count(); }} @[probe] = count(); }} "
             f"uretprobe:{function} {{ $i = 0; while ($i < arg0 + 40) {{ $i++; }} @back[$i] = count(); }}")
    with Waiting("calls", 100) as target:
        with Running("--engine", "kernel", "-p", target.pid, "-e", loops) as trace:
            shown = [line for line in links(trace).splitlines() if "probe" in line]
            check("link-type", len(shown) >= 2, f"the kernel shows\n{shown}")
            target.finish()
            out = trace.stop()
    check("exact-count", (scalar(out, "@n"), keyed(out, "@")) == (5000, {f"uprobe:{function}": 100}), out)
    check("exact-count", keyed(out, "@back") == {str(n + 40): 1 for n in range(100)}, out)
    result = spile("--attach", "session", "-e", loops, "-c", work("calls", 1), "--engine", "kernel")
    check_status(result, 1)
    check_says(result, "--attach session: a clause with a loop of more than 32 rounds shares no program")
    pair = f"uprobe:{function} {{ @ = count(); }} uretprobe:{function} {{ @back = count(); }}"
    hidden = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /sys/kernel/btf && exec "$@"', "sh"]
    result = spile("-q", "--engine", "kernel", "-e", pair, "-c", work("calls", 100), prefix=hidden)
    check_status(result, 0)
    check("exact-count", (scalar(result.out, "@"), scalar(result.out, "@back")) == (100, 100), result.report())
    result = spile("--engine", "kernel", "--attach", "session", "-e", pair, "-c", work("calls", 100), prefix=hidden)
    check_status(result, 1)
    check_says(result, "--attach session: .*no type information")


def a_program_inside_a_record_overwrites_nothing():
    """str() of an address that is not there faults in the midst of the record, and a program hangs on the fault."""
    need_root()
    if not spile("-l", "rawtracepoint:page_fault_kernel").out.strip():
        raise Skip("this kernel has no rawtracepoint:page_fault_kernel")
    calls = 1000
    script = (rf'uprobe:{Work.get("work")}:probe_me {{ printf("outer %d %s|\n", arg0, str(8)); }} '
              r'rawtracepoint:page_fault_kernel /args.address == 8/ { @inner = count(); printf("inner %x\n", 0x7777777777777777); }')
    result = spile("--engine", "kernel", "--records", "perf", "-e", script, "-c", work("calls", calls))
    check_status(result, 0)
    lines = result.out.splitlines()
    outer = [line for line in lines if line.startswith("outer")]
    inner = [line for line in lines if line.startswith("inner")]
    faults = scalar(result.out, "@inner")
    lost = int(re.search(r"(\d+) records lost", result.err).group(1))
    check("hits-happened", faults >= calls, result.report()[-2000:])
    check("not-overwritten", outer == [f"outer {n} |" for n in range(calls)], str(outer[:5]) + result.err)
    check("not-overwritten", all(line == "inner 7777777777777777" for line in inner), str(inner[:5]))
    check("exact-or-counted", len(inner) + lost == faults, f"{len(inner)} lines, {lost} lost of {faults}")


def what_other_cpus_wrote_before_exit_is_printed():
    """Each line of the first clause is sent before its call of the second is: on whatever CPU, it comes first, and none is missing."""
    need_root()
    path = compile_program(Work.directory.name, "passing", r"""
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
static sem_t turn[2];
__attribute__((noinline)) void step(int n) { __asm__ volatile("" :: "r"(n)); }
__attribute__((noinline)) void last(int n) { __asm__ volatile("" :: "r"(n)); }
static void *run(void *mine) {
  cpu_set_t one; CPU_ZERO(&one); CPU_SET((long)mine, &one); sched_setaffinity(0, sizeof one, &one);
  for (int n = (long)mine; n < 60; n += 2) { sem_wait(&turn[n % 2]); step(n); sem_post(&turn[(n + 1) % 2]); }
  return 0;
}
int main(void) {
  pthread_t a, b;
  sem_init(&turn[0], 0, 1); sem_init(&turn[1], 0, 0);
  pthread_create(&a, 0, run, (void *)0); pthread_create(&b, 0, run, (void *)1);
  pthread_join(a, 0); pthread_join(b, 0); last(1); for (int n = 0; n < 50; n++) step(-1);
}
""", ("-O1", "-pthread"))
    if os.cpu_count() < 2:
        raise Skip("one CPU has one order")
    script = rf'uprobe:{path}:step {{ printf("%d\n", arg0); }} uprobe:{path}:last {{ printf("last\n"); exit(5); }}'
    for records in ("perf", "ring"):
        result = spile("-q", "--engine", "kernel", "--records", records, "-e", script, "-c", path)
        check_status(result, 5)
        check("time-order", result.out.split() == [*map(str, range(60)), "last"], f"{records}\n{result.out[-3000:]}")


def a_storm_loses_nothing_in_silence(hits=1_000_000, records="ring"):
    """Every hit is counted, one in ten is a line or is counted as lost; every key (a time of its own) is kept, or counted as not kept."""
    need_root()
    script = ('tracepoint:syscalls:sys_enter_getpgid { @hits = count(); @[nsecs] = count(); '
              'if (nsecs % 10 == 0) { @tenth = count(); printf("hit %d\\n", pid); } }')
    result = spile("-v", "--records", records, "-e", script, "-c", work("syscalls", hits), seconds=240, env={"SPILE_PERF_RB_PAGES": "16"})
    check_status(result, 0)
    end = re.search(r"(\d+) records lost, (\d+) updates of full maps", result.err)
    lines, lost, full = result.out.count("hit "), int(end.group(1)), int(end.group(2))
    tenth = scalar(result.out, "@tenth")
    check("hits-happened", lines > 100 and full > 0 and tenth > hits // 20, result.err)
    check("exact-count", scalar(result.out, "@hits") == hits, result.err)
    check("exact-or-counted", lines + lost == tenth, f"{lines} lines, {lost} lost of {tenth}\n{result.err}")
    check("exact-or-counted", len(keyed(result.out, "@")) + full == hits, f"{len(keyed(result.out, '@'))} keys, {full} not kept\n{result.err}")


def a_storm_in_perf_buffers_loses_nothing_in_silence():
    a_storm_loses_nothing_in_silence(100_000, "perf")


# ---- stat, list, info ------------------------------------------------------------------------------------------------


def stat(*words, **options):
    return spile("stat", *words, **options)


def stat_counts_a_command_exactly():
    need_root()
    probe = f"uprobe:{Work.get('work')}:probe_me"
    for engine in ("kernel", "user"):
        result = stat("--engine", engine, "-e", probe, "--", Work.get("work"), "calls", 1234, "x", "y", stdin="\n")
        check_status(result, 7)
        row = re.search(r"^ +(\d+)      (\S+) +#", result.err, re.M)
        check("exact-count", row and row.group(1) == "1234" and row.group(2) == probe, result.report())
        check("layout", re.search(r"\n Performance counter stats for '.*work calls 1234 x y':\n\n", result.err), result.report())
        check("layout", re.search(r"\n\n +\d+\.\d{9} seconds time elapsed\n", result.err), result.report())


def stat_counts_tracepoints_counters_and_patterns():
    need_root()
    events = "syscalls:sys_enter_getpgi*,page-faults,task-clock,rawtracepoint:sys_enter"
    result = stat("-f", "json", "-e", events, "--", Work.get("work"), "syscalls", 500)
    check_status(result, 0)
    rows = {row["event"]: row for row in map(json.loads, result.err.splitlines())}
    check("exact-count", rows["tracepoint:syscalls:sys_enter_getpgid"]["counter-value"] == "500.000000", result.report())
    check("hits-happened", float(rows["page-faults"]["counter-value"]) > 20, result.report())
    check("hits-happened", float(rows["task-clock"]["counter-value"]) > 0, result.report())
    check("hits-happened", float(rows["rawtracepoint:sys_enter"]["counter-value"]) > 500, result.report())


def stat_counts_an_event_that_is_given_twice():
    need_root()
    probe = f"uprobe:{Work.get('work')}:probe_me"
    events = f"{probe},{probe},{Work.get('work').join(('uprobe:', ':probe_m*'))},{Work.get('work').join(('uprobe:', ':probe_m*'))},cs,cs"
    for words in ((), ("-I", 100)):
        result = stat(*words, "-f", "json", "--engine", "kernel", "-e", events, "--", Work.get("work"), "slow", 50)
        check_status(result, 0)
        rows = [json.loads(line) for line in result.err.splitlines()]
        counts = [int(float(row["counter-value"])) for row in rows if row["event"] == probe]
        rounds = len(rows) // 6
        check("a-row-each", len(rows) == 6 * rounds and len(counts) == 4 * rounds, result.report())
        for n in range(4):
            check("exact-count", sum(counts[n::4]) == 50 and min(counts) >= 0, f"{counts}\n{result.report()}")


def stat_prints_intervals_that_add_up():
    need_root()
    result = stat("-I", 100, "-e", "syscalls:sys_enter_getpgid", "--", "sh", "-c",
                  f"exec {Work.get('work')} slow 50")
    check_status(result, 0)
    result = stat("-I", 100, "-e", f"uprobe:{Work.get('work')}:probe_me", "--engine", "kernel", "--", Work.get("work"), "slow", 50)
    check_status(result, 0)
    rows = re.findall(r"^ +(\d+\.\d{9}) +(\d+)      uprobe", result.err, re.M)
    check("layout", result.err.startswith("#           time             counts unit events\n"), result.report())
    check("exact-count", sum(int(count) for _, count in rows) == 50, result.report())
    times = [float(at) for at, _ in rows]
    check("intervals", len(rows) >= 4 and times == sorted(times), result.report())


def stat_of_all_cpus_adds_up():
    need_root()
    path = os.path.join(Work.directory.name, "stat.json")
    result = stat("-a", "-A", "-f", "json", "-o", path, "-e", "syscalls:sys_enter_getpgid,context-switches", "--",
                  Work.get("work"), "syscalls", 777)
    check_status(result, 0)
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    syscalls = [row for row in rows if row["event"].endswith("getpgid")]
    check("a-row-a-cpu", len(syscalls) == os.cpu_count() and {row["cpu"] for row in syscalls} ==
          {str(n) for n in range(os.cpu_count())}, str(rows))
    check("at-least", sum(float(row["counter-value"]) for row in syscalls) >= 777, str(rows))


def stat_tells_how_long_calls_took():
    """Of both engines, with patterns, intervals and CPUs. Calls that sleep for 10 ms take at least that."""
    need_root()
    path = compile_program(Work.directory.name, "sleeper", r"""
#include <unistd.h>
__attribute__((noinline)) int quick_call(int n) { __asm__ volatile("" : "+r"(n)); return n; }
__attribute__((noinline)) int slow_call(int n) { usleep(10000); return n; }
int main(void) { int sum = 0; for (int i = 0; i < 900; i++) sum += quick_call(1); for (int i = 0; i < 20; i++) sum += slow_call(1); return sum != 920; }
""", ("-O1",))
    for engine in ("kernel", "user"):
        result = stat("--engine", engine, "-L", "-f", "json", "-e", f"uretprobe:{path}:*_call,uretprobe:{path}:slow_call,uprobe:{path}:main",
                      "--", path)
        check_status(result, 0)
        rows = [json.loads(line) for line in result.err.splitlines()]
        found = {row["event"].split(":")[-1]: row for row in rows}
        check("exact-count", {name: int(float(row["counter-value"])) for name, row in found.items()} ==
              {"quick_call": 900, "slow_call": 20, "main": 1}, result.report())
        check("exact-count", {name: row["latency-ns"]["count"] for name, row in found.items() if name != "main"} ==
              {"quick_call": 900, "slow_call": 20} and "latency-ns" not in found["main"], result.report())
        slow, quick = found["slow_call"]["latency-ns"], found["quick_call"]["latency-ns"]
        check("latency", 10_000_000 * 0.97 <= slow["p50"] <= slow["p90"] <= slow["p99"] <= slow["p99.9"] <= slow["max"], result.report())
        check("latency", quick["p50"] < 10_000_000 and quick["p50"] <= quick["p99"] <= quick["max"], result.report())
        result = stat("--engine", engine, "-L", "-I", 50, "-e", f"uretprobe:{path}:slow_call", "--", path)
        check_status(result, 0)
        counts = [int(count) for count in re.findall(r"^ +\d+\.\d{9} +(\d+)      uretprobe", result.err, re.M)]
        lines = re.findall(r"^ +# (no call|[\d.]+ p50, [\d.]+ p90, [\d.]+ p99, [\d.]+ p99\.9 usec)$", result.err, re.M)
        check("exact-count", sum(counts) == 20 and len(lines) == len(counts), result.report())
        check("intervals", [line == "no call" for line in lines] == [count == 0 for count in counts], result.report())
    result = stat("-L", "-A", "-f", "json", "-e", f"uretprobe:{path}:slow_call", "--engine", "kernel", "--", path)
    rows = [json.loads(line) for line in result.err.splitlines()]
    check("a-row-a-cpu", len(rows) >= os.cpu_count() and sum(row["latency-ns"]["count"] for row in rows) == 20, result.report())
    result = stat("-L", "-e", "page-faults", "--", path)
    check_status(result, 2)
    check_says(result, "--latency: no event is the return of a function")


def stat_says_what_it_cannot():
    for words, pattern in ((("-e", "nonsense", "-a"), "is no event"), (("-e", "cs"), "whose events"),
                           (("-e", "cs", "-a", "-p", "1"), "-a is of all")):
        result = stat(*words)
        check_status(result, 2)
        check_says(result, pattern)


def list_is_as_perf_prints_it():
    need_root()
    result = spile("list", "alarmtimer:*")
    check_status(result, 0)
    check_prints(result, r"(?m)^  alarmtimer:alarmtimer_cancel {23}\[Tracepoint event\]$")
    result = spile("list", "*faults")
    check_prints(result, r"(?m)^  page-faults OR faults +\[Software event\]$")
    check_status(spile("list", "no-such-event"), 1)


def probes_of_the_kernel_are_listed_with_their_arguments():
    need_root()
    result = spile("-lv", "rawtracepoint:sched_switch")
    check_status(result, 0)
    check_prints(result, r"^rawtracepoint:sched_switch\n    bool preempt\n    struct task_struct \* ?prev\n")
    result = spile("-lv", "fexit:vfs_read")
    check_status(result, 0)
    check_prints(result, r"^fexit:vfs_read\n    struct file \* ?file\n    char \* ?buf\n    size_t count\n    loff_t \* ?pos\n    ssize_t retval\n$")
    check_prints(spile("-l", "software:*faults"), r"^software:alignment-faults:1\n")
    check_prints(spile("-lv", "iter:task"), r"^iter:task\n    struct bpf_iter_meta \* ?meta\n    struct task_struct \* ?task\n$")


def info_says_what_works():
    result = spile("info", "-f", "json")
    check_status(result, 0)
    facts = {fact["name"]: fact for fact in map(json.loads, result.out.splitlines())}
    check("kernel", facts["kernel"]["detail"] == os.uname().release, result.out)
    check("asked", {"capabilities", "processes (user engine)", "lockdown", "kernel memory", "kernel types"} <= set(facts), result.out)
    check("reasons", all(fact["works"] or fact["detail"] for fact in facts.values()), result.out)
    if os.geteuid() == 0:
        has_kprobes = os.path.exists("/sys/bus/event_source/devices/kprobe")
        check("kprobes", facts["kprobe, kretprobe"]["works"] == has_kprobes, result.out)
        as_nobody = spile("info", prefix=NOBODY)
        check_status(as_nobody, 0)
        check_prints(as_nobody, r"no  load programs +bpf\(2\) refuses")


if __name__ == "__main__":
    Work.directory = Directory()
    try:
        main([page_faults_of_one_process_and_its_new_threads, a_software_event_is_sampled, a_profile_counts_the_process_alone,
              a_watchpoint_counts_every_write, a_raw_tracepoint_has_typed_arguments, one_program_serves_no_two_raw_tracepoints,
              an_iterator_runs_once_for_each_task, hardware_says_why_not, what_this_kernel_lacks_is_said_in_words,
              without_privilege_it_says_what_is_needed, uprobe_by_multi, uprobe_by_link, uprobe_by_ioctl, uprobe_by_tracefs,
              a_killed_spile_leaves_no_probe_and_the_next_one_clears_its_event, a_killed_spile_leaves_no_link,
              uprobe_session_is_one_link_at_both_ends, a_session_that_cannot_be_leaves_two_links, records_come_by_perf_buffers_too,
              a_program_inside_a_record_overwrites_nothing, what_other_cpus_wrote_before_exit_is_printed,
              a_storm_loses_nothing_in_silence, a_storm_in_perf_buffers_loses_nothing_in_silence,
              stat_counts_a_command_exactly, stat_counts_an_event_that_is_given_twice, stat_counts_tracepoints_counters_and_patterns, stat_prints_intervals_that_add_up,
              stat_of_all_cpus_adds_up, stat_tells_how_long_calls_took, stat_says_what_it_cannot, list_is_as_perf_prints_it,
              probes_of_the_kernel_are_listed_with_their_arguments, info_says_what_works], 300)
    finally:
        Work.directory.holder.__exit__(None, None, None)
