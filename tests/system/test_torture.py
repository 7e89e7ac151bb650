#!/usr/bin/env python3
"""A probe on every function of a library while real work runs through it, and probes that come and go under 8 threads.

One small library always; SPILE_SOAK=1: all of them, and the suites of python3 and sqlite3.
"""
import random
import re
import time

from harness import Picture, Skip, Spile, check, check_hits_happened, check_no_loss
from instructions import Heads
from torture import WORKS, Worker
from tracing import SOAK, check_as_before_soon, main, spile

TOGGLES = 10000 if SOAK else 100


def counted(trace):
    """Function -> hits, from a map that is keyed by function."""
    return {name: int(count) for name, count in trace.maps().get("@", {}).items()}


def every_function(name):
    """Same answers before, with and after; known calls counted exactly; nothing stays behind."""
    work = WORKS[name]
    with Worker(work) as worker:
        path = worker.library()
        truth = worker.ask()
        before, before_kib = Picture(worker.pid), worker.resident_kib()
        with Spile(f"uprobe:{path}:* {{ @[func] = count(); }}", pid=worker.pid) as trace:
            check("attached", trace.wait_attached(60), trace.report())
            probes = trace.of_type("attached_probes")[0]["probes"]
            asked = [worker.ask() for _ in range(3)]
            during_kib = worker.resident_kib()
            trace.stop(60)
            hits = counted(trace)
            check("results-unchanged", set(asked) == {truth}, f"{asked}, must be {truth}\n{trace.report()}")
            check_no_loss(trace)
        check_hits_happened(sum(hits.values()), worker.process)
        for function, calls in work.exact.items():
            check("exact-count", hits.get(function) == 3 * work.rounds * calls,
                  f"{function}: {hits.get(function)}, must be {3 * work.rounds * calls}")
        check("results-unchanged", worker.ask() == truth, worker.process.report())
        check_as_before_soon(before, worker.pid)
        print(f"  {name}: {probes} probes, {sum(hits.values())} hits in {len(hits)} functions, memory {before_kib} KiB, "
              f"with probes {during_kib}, after {worker.resident_kib()}")


def every_return(name):
    """A probe on each function's entry and on its return: where both are taken, each entry has its return, or is counted as one
    of a call that left through a pointer."""
    work = WORKS[name]
    with Worker(work) as worker:
        path = worker.library()
        truth, parallel = worker.ask(), worker.ask("parallel", 3)
        before = Picture(worker.pid)
        with Spile(f"uprobe:{path}:* {{ @in[func] = count(); }} uretprobe:{path}:* {{ @out[func] = count(); }}", pid=worker.pid,
                   extra=["-v"]) as trace:
            attached = trace.wait_attached(120)
            if not attached and "uretprobe is not built" in "\n".join(trace.err):
                raise Skip("uretprobe is not built yet")
            check("attached", attached, trace.report()[-4000:])
            probes = trace.of_type("attached_probes")[0]["probes"]
            asked = [worker.ask(), worker.ask("parallel", 3)]
            trace.stop(120)
            entered, returned = ({one: int(hits) for one, hits in trace.maps().get(key, {}).items()} for key in ("@in", "@out"))
            check("results-unchanged", asked == [truth, parallel], f"{asked}, must be {[truth, parallel]}\n{trace.report()[-4000:]}")
            check_no_loss(trace)
        both = {one for one in returned if one in entered}
        check_hits_happened(sum(returned.values()), worker.process)
        said = "\n".join(trace.err)
        leaving = set(entered) & set(re.findall(r":(\S+) at 0x[0-9a-f]+: \[returns of noted calls\] .*through a pointer", said))
        # The thread waits for the next request in the middle of a few calls, before and after.
        odd = [f"    {one}: {entered[one]} entries, {returned[one]} returns" for one in sorted(both - work.shared_frames - leaving)
               if abs(entered[one] - returned[one]) > 2]
        check("exact-count", not odd, "\n" + "\n".join(odd))
        unseen = sum(map(int, re.findall(r"(\d+) returns not seen", said)))
        without = {one: entered[one] - returned.get(one, 0) for one in leaving}
        check("exact-or-counted", abs(sum(without.values()) - unseen) <= 2 * len(leaving), f"{unseen} said, {without}")
        check("results-unchanged", worker.ask() == truth, worker.process.report())
        check_as_before_soon(before, worker.pid)
        print(f"  {name}: {probes} probes, {sum(entered.values())} entries, {sum(returned.values())} returns of {len(both)} functions; "
              f"{len(entered) - len(both)} functions without returns")


def every_instruction(name, share=1.0):
    """The same with a probe on each instruction (or on a share of them), in random order."""
    work, dice = WORKS[name], random.Random(name)
    with Worker(work) as worker:
        heads = Heads(worker.library())
        places = heads.probes()
        places = dice.sample(places, int(len(places) * share))
        truth = worker.ask()
        before, before_kib = Picture(worker.pid), worker.resident_kib()
        begin = time.monotonic()
        with Spile(", ".join(f"uprobe:{place}" for place in places) + " { @ = count(); }", pid=worker.pid) as trace:
            check("attached", trace.wait_attached(300), trace.report()[-4000:])
            seconds = time.monotonic() - begin
            probes = trace.of_type("attached_probes")[0]["probes"]
            asked = [worker.ask(), worker.ask("parallel", 3)]
            during_kib = worker.resident_kib()
            trace.stop(120)
            hits = int(trace.maps().get("@", 0))
            check("results-unchanged", asked[0] == truth, f"{asked}, must be {truth}")
            check_no_loss(trace)
        check_hits_happened(hits, worker.process)
        check("results-unchanged", [worker.ask(), worker.ask("parallel", 3)] == asked, worker.process.report())
        check_as_before_soon(before, worker.pid)
        print(f"  {name}: {probes} of {len(places)} probes attached in {seconds:.1f} s, {hits} hits, "
              f"memory {before_kib} KiB, with probes {during_kib}, after {worker.resident_kib()}")


def same_counts_on_both_engines(name, places_wanted):
    """The kernel's uprobes and ours count the same, on random instructions of the functions that the work runs through."""
    work, dice = WORKS[name], random.Random(name)
    with Worker(work) as worker:
        path = worker.library()

        def counts(program, engine):
            with Spile(program, pid=worker.pid, extra=["--engine", engine]) as trace:
                if not trace.wait_attached(60):
                    raise Skip(f"the {engine} engine cannot attach here: " + " ".join(trace.err[-1:]))
                worker.ask(rounds=1)
                trace.stop(120)
                check_no_loss(trace)
                return counted(trace)

        # Rare ones: a hit of the kernel costs microseconds.
        run = sorted(one for one, hits in counts(f"uprobe:{path}:* {{ @[func] = count(); }}", "user").items() if hits <= 3000)
        heads = [f"uprobe:{place}" for place in Heads(path, run).probes()]
        chosen = dice.sample(heads, min(places_wanted, len(heads)))
        program = ", ".join(chosen) + " { @[probe] = count(); }"
        ours, theirs = counts(program, "user"), counts(program, "kernel")
        check("same-on-both-engines", ours == theirs, "\n".join(
            f"    {place}: user {ours.get(place)}, kernel {theirs.get(place)}" for place in sorted({*ours, *theirs})
            if ours.get(place) != theirs.get(place)))
        check_hits_happened(sum(ours.values()), worker.process)
        print(f"  {name}: {len(chosen)} instructions of {len(run)} functions, {sum(ours.values())} hits on each engine")


def toggled_under_8_threads(name, cycles, kinds=("uprobe",)):
    """Probes on every function (and its return) come and go while 8 threads run through the library without python's lock."""
    work = WORKS[name]
    hits = done = 0
    with Worker(work) as worker:
        path = worker.library()
        places = ", ".join(f"{kind}:{path}:*" for kind in kinds)
        begin = time.monotonic()
        worker.ask("parallel", 20)
        rounds = int(20 * max(1, 0.5 / (time.monotonic() - begin)))  # half a second of work, longer than an attach
        truth = worker.ask("parallel", rounds)
        before = Picture(worker.pid)
        begin = time.monotonic()
        worker.begin("parallel", rounds)
        while done < cycles:
            if not worker.working():
                check("results-unchanged", worker.end() == truth, f"after {done} cycles\n{worker.process.report()}")
                worker.begin("parallel", rounds)
            result = spile("-q", "-e", f"{places} {{ @ = count(); }} interval:ms:{1 + done % 7} {{ exit(); }}", "-p",
                           worker.pid, seconds=60)
            if "uretprobe is not built" in result.err:
                raise Skip("uretprobe is not built yet")
            check("attaches", result.status == 0, f"cycle {done}\n{result.report()}")
            hits += sum(int(count) for count in re.findall(r"^@: (\d+)$", result.out, re.M))
            done += 1
        seconds = time.monotonic() - begin
        check("results-unchanged", worker.end() == truth, worker.process.report())
        check_hits_happened(hits, worker.process)
        check_as_before_soon(before, worker.pid)
        print(f"  {name}: {done} cycles in {seconds:.1f} s, {hits} hits")


def soak_only(case):
    if not SOAK:
        raise Skip("only with SPILE_SOAK=1")
    case()


def every_function_of_libz():
    every_function("libz")


def every_instruction_of_libz():
    every_instruction("libz", 1.0 if SOAK else 0.1)


def every_return_of_libz():
    every_return("libz")


def both_engines_count_libz():
    same_counts_on_both_engines("libz", 60 if SOAK else 20)


def libz_toggled_under_8_threads():
    toggled_under_8_threads("libz", TOGGLES)


def soak_every_function_of_libcrypto():
    soak_only(lambda: every_function("libcrypto"))


def soak_every_function_of_libsqlite3():
    soak_only(lambda: every_function("libsqlite3"))


def soak_every_function_of_liblzma():
    soak_only(lambda: every_function("liblzma"))


def soak_every_function_of_libbz2():
    soak_only(lambda: every_function("libbz2"))


def soak_every_function_of_libc():
    soak_only(lambda: every_function("libc"))


def soak_every_function_of_libm():
    soak_only(lambda: every_function("libm"))


def soak_every_function_of_ld_so():
    soak_only(lambda: every_function("ld.so"))


def soak_every_function_of_python3():
    soak_only(lambda: every_function("python3"))


def soak_instructions_of_libcrypto():
    soak_only(lambda: every_instruction("libcrypto"))


def soak_instructions_of_libsqlite3():
    soak_only(lambda: every_instruction("libsqlite3"))


def soak_instructions_of_liblzma():
    soak_only(lambda: every_instruction("liblzma"))


def soak_instructions_of_libc():
    soak_only(lambda: every_instruction("libc"))


def soak_instructions_of_libm():
    soak_only(lambda: every_instruction("libm"))


def soak_instructions_of_ld_so():
    soak_only(lambda: every_instruction("ld.so"))


def soak_instructions_of_python3():
    soak_only(lambda: every_instruction("python3"))


def returns_of_libz_toggled_under_8_threads():
    toggled_under_8_threads("libz", TOGGLES // 4, ("uprobe", "uretprobe"))


def soak_returns_of_libcrypto():
    soak_only(lambda: every_return("libcrypto"))


def soak_returns_of_libsqlite3():
    soak_only(lambda: every_return("libsqlite3"))


def soak_returns_of_liblzma():
    soak_only(lambda: every_return("liblzma"))


def soak_returns_of_libbz2():
    soak_only(lambda: every_return("libbz2"))


def soak_returns_of_libc():
    soak_only(lambda: every_return("libc"))


def soak_returns_of_libm():
    soak_only(lambda: every_return("libm"))


def soak_returns_of_ld_so():
    soak_only(lambda: every_return("ld.so"))


def soak_returns_of_python3():
    soak_only(lambda: every_return("python3"))


def soak_both_engines_count_libcrypto():
    soak_only(lambda: same_counts_on_both_engines("libcrypto", 60))


def soak_both_engines_count_libsqlite3():
    soak_only(lambda: same_counts_on_both_engines("libsqlite3", 60))


def soak_both_engines_count_python3():
    soak_only(lambda: same_counts_on_both_engines("python3", 60))


def soak_libcrypto_toggled_under_8_threads():
    soak_only(lambda: toggled_under_8_threads("libcrypto", 1000))


CASES = [every_function_of_libz, every_instruction_of_libz, every_return_of_libz, both_engines_count_libz,
         libz_toggled_under_8_threads, returns_of_libz_toggled_under_8_threads,
         *[case for name, case in sorted(globals().items()) if name.startswith("soak_") and name != "soak_only"]]

if __name__ == "__main__":
    main(CASES, 120)
