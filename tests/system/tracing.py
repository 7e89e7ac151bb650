"""What the tests of real programs, faults and bad input share: spile run to its end, and what it leaves of a process."""
import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

import harness
from harness import ATTACH_SECONDS, RUN_SECONDS, SLOWNESS, SPILE, Failure, Picture, Skip, check, hex_diff

SOAK = bool(os.environ.get("SPILE_SOAK"))
KILLED = -signal.SIGKILL
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--bounding-set", "-all", "--inh-caps",
          "-all")


def main(cases, seconds):
    """Runs every case (a function) as one ctest program, all of them even where one fails; bounded by `seconds` in all.

    Arguments on the command line choose cases by name."""
    def out_of_time(*_):
        raise Failure(f"in-time: the whole test takes longer than {seconds * SLOWNESS:.0f} s")

    def all_cases():
        harness.need_spile()
        failed, skipped, ran = [], [], 0
        signal.signal(signal.SIGALRM, out_of_time)
        signal.alarm(0 if SOAK else int(seconds * SLOWNESS))
        for case in cases:
            if sys.argv[1:] and case.__name__ not in sys.argv[1:]:
                continue
            begin = time.monotonic()
            try:
                case()
                verdict, ran = "ok", ran + 1
            except Skip as reason:
                skipped.append(f"{case.__name__}: {reason}")
                verdict = f"SKIPPED: {reason}"
            except Failure as failure:
                failed.append(case.__name__)
                verdict = f"FAILED: {failure}"
            except Exception:  # pylint: disable=broad-except
                failed.append(case.__name__)
                verdict = "FAILED: " + traceback.format_exc()
            print(f"  {case.__name__} ({time.monotonic() - begin:.1f} s): {verdict}", flush=True)
        check("all-cases", not failed, ", ".join(failed))
        if not ran:
            raise Skip("; ".join(skipped) or "no such case")
        for line in skipped:
            print(f"SKIPPED: {line}")

    harness.main(all_cases)


class Run:
    """One finished run of a command."""

    def __init__(self, words, status, out, err, seconds):
        self.words, self.status, self.out, self.err, self.seconds = words, status, out, err, seconds

    def report(self):
        return (f"  command: {' '.join(self.words)}\n  status {self.status} after {self.seconds:.2f} s\n"
                f"  stdout:\n{self.out}\n  stderr:\n{self.err}")


def run(words, seconds=RUN_SECONDS, env=None, stdin="", **options):
    words = [str(word) for word in words]
    begin = time.monotonic()
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, errors="replace", timeout=seconds,
                              check=False,
                              env={**os.environ, **(env or {})}, **options)
    except subprocess.TimeoutExpired as late:
        text = lambda data: (data or b"").decode(errors="replace")
        raise Failure(f"in-time: {' '.join(words)} does not end within {seconds:.0f} s\n{text(late.stdout)}\n{text(late.stderr)}") from None
    return Run(words, done.returncode, done.stdout, done.stderr, time.monotonic() - begin)


def spile(*words, prefix=(), **options):
    return run([*prefix, SPILE, *words], **options)


def check_status(run_, status):
    check("exit-status", run_.status == status, f"must be {status}\n{run_.report()}")


def check_says(run_, pattern):
    check("says-why", re.search(pattern, run_.err), f"stderr must match {pattern!r}\n{run_.report()}")


def check_prints(run_, pattern):
    check("prints", re.search(pattern, run_.out), f"stdout must match {pattern!r}\n{run_.report()}")


def scalar(text, name):
    """The value of a scalar map in text output; None where it was not printed."""
    found = re.search(rf"^{re.escape(name)}: (-?\d+)$", text, re.M)
    return int(found.group(1)) if found else None


def histogram_total(text, name):
    """The sum over the buckets of one histogram in text output."""
    block = re.search(rf"^{re.escape(name)}:\n((?:[\[(].*\|\n?)+)", text, re.M)
    return sum(int(count) for count in re.findall(r"[\])]\s+(\d+) \|", block.group(1))) if block else 0


def keyed(text, name):
    """Keys and values of a keyed map in text output."""
    return {key: int(value) for key, value in re.findall(rf"^{re.escape(name)}\[(.*)\]: (-?\d+)$", text, re.M)}


@contextlib.contextmanager
def temporary_directory():
    path = tempfile.mkdtemp(prefix="spile-test-")
    os.chmod(path, 0o777)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def public_copy(directory, path):
    """Where uid 65534 can read and run it, whatever the permissions of the build tree."""
    copy = os.path.join(directory, os.path.basename(path))
    shutil.copy(os.path.realpath(path), copy)
    os.chmod(copy, 0o755)
    return copy


def compile_program(directory, name, source, flags=("-O2",), compiler="gcc"):
    if shutil.which(compiler) is None:
        raise Skip(f"needs {compiler}")
    path = os.path.join(directory, name)
    with open(path + ".c", "w", encoding="utf-8") as file:
        file.write(source)
    built = run([compiler, *flags, "-pthread", path + ".c", "-o", path], seconds=60)
    check("compiles", built.status == 0, built.report())
    return path


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def alive(pid):
    """False once the process has ended, a zombie included."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def traced_by(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as status:
        return int(re.search(r"^TracerPid:\s+(\d+)", status.read(), re.M).group(1))


def has_our_mappings(pid):
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
        return "memfd:spile" in maps.read()


def wait_until(holds, what, seconds=ATTACH_SECONDS, every=0.005):
    end = time.monotonic() + seconds
    while not holds():
        check("in-time", time.monotonic() < end, f"{what} did not happen within {seconds:.0f} s")
        time.sleep(every)


# --- a process at work, before and after ----------------------------------------------------------------------


def _lasting(picture):
    """Mappings that a program at work does not move about: files and whatever can be executed."""
    return sorted(" ".join(fields[:4] + fields[5:]) for fields in picture.maps
                  if "x" in fields[1] or (len(fields) > 5 and (fields[5].startswith("/") or "memfd:" in fields[5])))


def check_code_as_before(before, after):
    """Code bytes and all mappings of files and of code: heap and stacks are the program's own affair."""
    changed = []
    for base, (name, data) in before.text.items():
        now = after.text.get(base)
        if now is None:
            changed.append(f"    {base:#x} {name} is gone")
        elif now[1] != data:
            changed.append(hex_diff(name, base, data,
                                    now[1]) or f"    {base:#x} {name}: {len(data)} bytes, now {len(now[1])}")
    check("text-unchanged", not changed, "code bytes differ after detach\n" + "\n".join(changed))
    old, new = _lasting(before), _lasting(after)
    rows = [f"    - {line}" for line in old if line not in new] + [f"    + {line}" for line in new if line not in old]
    check("mappings-unchanged", not rows, "\n" + "\n".join(rows))


def check_process_as_before(before, after):
    check_code_as_before(before, after)
    same = sorted(before.descriptors.items()) == sorted(after.descriptors.items())
    check("descriptors-unchanged", same, f"\n    - {before.descriptors}\n    + {after.descriptors}")


def check_as_before_soon(before, pid, seconds=5):
    """For a server: clients that have gone are noticed a moment later."""
    end = time.monotonic() + seconds
    while True:
        try:
            return check_process_as_before(before, Picture(pid))
        except Failure:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
