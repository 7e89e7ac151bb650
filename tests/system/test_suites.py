#!/usr/bin/env python3
"""A probe on every instruction of libraries and programs while others' own test suites run through them: gzip always, the rest with SPILE_SOAK=1.

Each suite's process forks for each test; what its children run is counted, too. Tests whose output differs between two bare runs
are left out.
"""
import contextlib
import os
import random
import re
import subprocess
import time

from harness import SPILE, Picture, Skip, Spile, check, check_hits_happened, check_no_loss, need_tool
from suites import every_address, openssl_suite, perl_suite, python_suite
from torture import WORKS, Worker
from tracing import SOAK, check_as_before_soon, main, temporary_directory

LEAST_SHARE = 0.99  # of all instructions: probed


def file_of(pid, pattern):
    names = sorted({name for name, _ in Picture(pid).text.values() if re.search(pattern, name)})
    if not names:
        raise Skip(f"{pattern} is not mapped")
    return names[0]


def every_instruction_programs(paths, parts=1):
    """Scripts, as short as they can be: one count of all. And how many probes each has. Parts: all places in random order, a share
    each; the code of half a million probes is as much as there is address space near a library."""
    places = [f"u:{path}:{at:#x}" for path in paths for at in every_address(path)]
    if parts > 1:
        random.Random(1).shuffle(places)
    for part in range(parts):
        share = places[part::parts]
        yield ",".join(share) + " { @ = count(); }", len(share)


@contextlib.contextmanager
def short_names(paths):
    """Other names of files: a script has its limits."""
    names = [f"/tmp/{chr(ord('A') + number)}{os.getpid() % 1000}" for number in range(len(paths))]
    try:
        for name, path in zip(names, paths):
            os.symlink(path, name)
        yield names
    finally:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)


def probed(pid, paths, parts, asks):
    """What `asks()` returned with a probe on every instruction of each part, and how many hits there were in all."""
    found, hits = [], 0
    with short_names(paths) as names:
        for program, wanted in every_instruction_programs(names, parts):
            begin = time.monotonic()
            with Spile(program, pid=pid) as trace:
                check("attached", trace.wait_attached(600), trace.report()[-3000:])
                seconds = time.monotonic() - begin
                probes = trace.of_type("attached_probes")[0]["probes"]
                check("attached", probes >= LEAST_SHARE * wanted, f"{probes} of {wanted}\n{trace.report()[-3000:]}")
                found.append(asks())
                trace.stop(600)
                check_no_loss(trace)
                here = int(trace.maps().get("@", 0))
            print(f"  {probes} of {wanted} probes in {seconds:.1f} s, {here} hits", flush=True)
            hits += here
    return found, hits


def suite(make, patterns, least_tests, least_hits, parts=1):
    if not SOAK:
        raise Skip("only with SPILE_SOAK=1")
    with temporary_directory() as directory, make(directory) as work:
        bare = {test: (work.run(test), work.run(test)) for test in work.tests}
        stable = [test for test, (one, other) in bare.items() if one == other and one[2] > 0]
        check("suite-runs", len(stable) >= least_tests, f"{len(stable)} of {len(work.tests)} tests run here\n{work.process.report()[-2000:]}")
        before = Picture(work.pid)
        paths = [file_of(work.pid, pattern) for pattern in patterns]
        found, hits = probed(work.pid, paths, parts, lambda: {test: work.run(test) for test in stable})
        odd = [f"    {test}: {bare[test][0]} bare, {with_probes[test]} probed"
               for with_probes in found for test in stable if with_probes[test] != bare[test][0]]
        check("results-unchanged", not odd, "\n" + "\n".join(odd))
        check("hits", hits >= least_hits, f"{hits} hits")
        check_as_before_soon(before, work.pid)
        print(f"  {len(stable)} of {len(work.tests)} tests, {sum(bare[test][0][2] for test in stable)} checks, the same with probes", flush=True)


def suite_of_python3():
    suite(python_suite, [r"/python3[.\d]*$"], 15, 10**7, 4)


def suite_of_python3_in_libc():
    suite(python_suite, [r"/libc[.-]"], 15, 10**6)


def suite_of_perl():
    suite(perl_suite, [r"/perl$"], 100, 10**7)


def suite_of_perl_in_libc():
    suite(perl_suite, [r"/libc[.-]"], 100, 10**6)


def suite_of_openssl():
    suite(openssl_suite, [r"/libcrypto\.so"], 30, 10**7)


def gzip():
    """gzip itself from its first instruction to its last, output compared."""
    need_tool("gzip")
    with temporary_directory() as directory:
        data = f"{directory}/data"
        with open(data, "wb") as file:
            file.write(b"".join(b"%d the quick brown fox %x\n" % (n * 7919, n * n) for n in range(20000)))
        (program, wanted), = every_instruction_programs([os.path.realpath("/usr/bin/gzip")])
        script = f"{directory}/script.bt"
        with open(script, "w", encoding="utf-8") as file:
            file.write(program)
        with open(f"{data}.gz", "wb") as file:
            subprocess.run(["gzip", "-1nc", data], stdout=file, check=True)
        total = 0
        for command in (["gzip", "-9nc", data], ["gzip", "-dc", f"{data}.gz"]):
            bare = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
            got = subprocess.run([SPILE, "-q", "-o", f"{directory}/maps", script, "-c", " ".join(command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                 check=False, timeout=300)
            check("attaches", got.returncode == 0, got.stderr[-3000:])
            check("results-unchanged", got.stdout == bare, f"{len(got.stdout)} bytes, {len(bare)} without probes")
            with open(f"{directory}/maps", encoding="utf-8") as maps:
                total += int((re.findall(r"^@: (\d+)$", maps.read(), re.M) or ["0"])[0])
        check("hits", total > 10**6, f"{total} hits")
        print(f"  gzip: {wanted} instructions, {total} hits", flush=True)


def all_together():
    """Instructions of libz, libcrypto, libsqlite3, liblzma, libbz2, libc and libm at once, all works running: a quarter of all at a time."""
    if not SOAK:
        raise Skip("only with SPILE_SOAK=1")
    with Worker(WORKS["together"]) as worker:
        patterns = [r"/libz\.so", r"/libcrypto\.so", r"/libsqlite3\.so", r"/liblzma\.so", r"/libbz2\.so", r"/libc[.-]", r"/libm[.-]"]
        paths = [file_of(worker.pid, pattern) for pattern in patterns]
        truth = [worker.ask(), worker.ask("parallel", 3)]
        before, before_kib = Picture(worker.pid), worker.resident_kib()
        found, hits = probed(worker.pid, paths, 4, lambda: [worker.ask(), worker.ask("parallel", 3), worker.resident_kib()])
        check("results-unchanged", all(one[:2] == truth for one in found), f"{found}, must be {truth}")
        check_hits_happened(hits, worker.process)
        check_as_before_soon(before, worker.pid)
        print(f"  together: memory {before_kib} KiB, with probes {max(one[2] for one in found)}, after {worker.resident_kib()}")


CASES = [gzip, all_together, suite_of_python3, suite_of_python3_in_libc, suite_of_perl, suite_of_perl_in_libc, suite_of_openssl]

if __name__ == "__main__":
    main(CASES, 60)
