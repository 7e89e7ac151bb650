"""Runs one line of tests/targets/manifest.json in the ways it names: bare, under -c, by -p before the work, and in a loop."""
import json
import os
import random
import re
import shutil
import time

from harness import (ROOT, RUN_SECONDS, SLOWNESS, TARGETS, Failure, Picture, Skip, Spile, Target, check,
                     check_count, check_exit_success, check_hits_happened, check_left_as_before, check_no_loss,
                     check_refused_in_words, check_same_output, count_program, calls_of, need_root, need_spile, run_bare,
                     target_path)
from instructions import Heads

LOOP_SECONDS = 1.0
LOOP_CYCLES = 6


def load_manifest():
    with open(os.path.join(ROOT, "tests/targets/manifest.json"), encoding="utf-8") as file:
        entries = json.load(file)["targets"]
    return {entry["name"]: entry for one in entries for entry in [one, *variants(one)]}


def variants(entry):
    """A line with a field `with_trap` or `only_traps` is run with --allow-trap too: where no jump fits, and everywhere."""
    runs = [run for run in entry["runs"] if run != "bare"]
    if entry.get("with_trap"):
        yield {**entry, "name": entry["name"] + "_with_trap", "runs": runs, "extra": ["--allow-trap"], "refusal": "no"}
    if entry.get("only_traps"):
        yield {**entry, "name": entry["name"] + "_only_traps", "runs": runs, "extra": ["--allow-trap"], "all_traps": True,
               "refusal": "no"}


class Case:
    def __init__(self, entry):
        self.entry = entry
        self.path = target_path(entry["path"])
        self.args = entry["args"]
        self.timeout = entry.get("timeout", RUN_SECONDS)
        self.message = entry.get("message", r"0x[0-9a-f]+")
        self.extra = entry.get("extra", [])

    def probes(self, work_path=None):
        path = self.entry.get("probe_path")
        path = work_path if path == "@work" else os.path.join(TARGETS, path) if path else self.path
        return [probe if ":" in probe else f"{path}:{probe}" for probe in self.entry["probes"]]

    def program(self, work_path=None):
        kind = {True: "uretprobe", "session": "session"}.get(self.entry.get("returns"), "uprobe")
        return count_program(self.probes(work_path), kind)

    def refusal_passes(self, spile):
        """Called when spile ended without attaching: passes only where the catalogue allows it."""
        refusal = self.entry["refusal"]
        check("no-refusal", refusal != "no", f"this site must be probed, spile refused\n{spile.report()}")
        check_refused_in_words(spile, self.message)

    def must_not_attach(self, spile):
        check("refused", self.entry["refusal"] != "required", f"this site must be refused, spile took it\n{spile.report()}")

    def count(self, spile, calls, process):
        # Sites refused one by one (named on stderr) may be missing from the count, where a refusal is allowed at all.
        partly = self.entry["refusal"] == "allowed" and re.search(self.message, "\n".join(spile.err)) and spile.err
        check_count("at-most" if partly else self.entry["expect"], int(spile.maps().get("@calls", 0)), calls, process)
        check_no_loss(spile)

    def bare(self):
        run_bare(self.path, self.args, self.timeout)

    def command(self):
        bare_output, _ = run_bare(self.path, self.args, self.timeout)
        with Spile(self.program(), command=" ".join([self.path, *self.args]), extra=self.extra) as spile:
            status = spile.finish(self.timeout)
            if not any("EXIT-" in line for line in spile.out):
                return self.refusal_passes(spile)
            check_exit_success(status, spile)
            self.must_not_attach(spile)
            self.count(spile, calls_of(spile.out, spile), spile)
            check_same_output(kept(bare_output), kept(spile.out), spile)

    def attach(self):
        hold = self.entry.get("hold", True)
        with Target(self.path, self.args, wait=True, hold=hold) as target:
            work = next((line[5:] for line in target.out if line.startswith("work=")), None)
            before = Picture(target.pid)
            with Spile(self.program(work), pid=target.pid, extra=self.extra) as spile:
                attached = spile.wait_attached(self.timeout)
                if not attached:
                    self.refusal_passes(spile)
                    check_left_as_before(before, Picture(target.pid))
                else:
                    self.must_not_attach(spile)
                target.send_line()
                if hold and attached:
                    self._detach_while_held(target, spile, before)
                target.finish_well(self.timeout)
                if attached and not hold:
                    spile.stop()
                if attached:
                    self.count(spile, target.calls(), target)

    def _detach_while_held(self, target, spile, before):
        try:
            target.wait_for_line("done$", self.timeout)
        except Failure:
            # The target is gone, or stuck: its own verdict says more.
            if not target.alive():
                check_exit_success(target.finish(1), target)
            raise
        spile.stop()
        if not self.entry.get("execs"):
            check_left_as_before(before, Picture(target.pid), strict=False)

    def loop(self):
        """Attaches and detaches again and again while the target works; the text must be restored each time."""
        seconds = self.entry.get("loop_seconds", LOOP_SECONDS) * SLOWNESS
        hits = cycles = 0
        with Target(self.path, self.args, wait=True, hold=True, loop=seconds) as target:
            before = Picture(target.pid)
            target.send_line()
            end = time.monotonic() + seconds * 0.8
            while time.monotonic() < end and cycles < self.entry.get("cycles", LOOP_CYCLES) and target.alive():
                with Spile(self.program(), pid=target.pid, extra=self.extra) as spile:
                    if not spile.wait_attached():
                        if not target.alive() or "done" in target.out:
                            break
                        return self.refusal_passes(spile)
                    time.sleep(0.004 * (cycles % 7))
                    spile.stop()
                    hits += int(spile.maps().get("@calls", 0))
                    cycles += 1
                if target.alive():
                    try:
                        check_left_as_before(before, Picture(target.pid), strict=False)
                    except Failure as failure:
                        raise Failure(f"{failure}\n{spile.report()}") from None
            target.wait_for_line("(done|EXIT-)", seconds + self.timeout)
            if target.alive():
                check_left_as_before(before, Picture(target.pid), strict=False)
            target.finish_well(self.timeout)
            print(f"  {cycles} attach and detach cycles, {hits} hits of {target.calls()} calls")
            check("attached", cycles >= 1, f"no attach within {seconds} s\n{target.report()}")
            if self.entry["expect"] == "exact":
                check_count("at-most", hits, target.calls(), target)
            if cycles > 2:
                check_hits_happened(hits, target)

    def heads(self):
        """Every instruction of the probed functions."""
        path = self.entry.get("probe_path")
        if path == "@libc":
            path = next(name for name, _ in Picture(os.getpid()).text.values() if re.search(r"/libc[.-]", name))
        return Heads(os.path.join(TARGETS, path) if path else self.path,
                     [probe for probe in self.entry["probes"] if ":" not in probe])

    def instructions(self):
        """A probe on each instruction at once, in random order, from the start of the program."""
        heads = self.heads()
        bare_output, _ = run_bare(self.path, self.args, self.timeout)
        with Spile(heads.program(random.Random(1)), command=" ".join([self.path, *self.args]), extra=["-v", *self.extra]) as spile:
            status = spile.finish(self.timeout)
            if not any("EXIT-" in line for line in spile.out):
                return check_refused_in_words(spile, self.message)
            check_exit_success(status, spile)
            check_same_output(kept(bare_output), kept(spile.out), spile)
            check_no_loss(spile)
            refused = heads.refused(spile.err)
            hits = heads.counts(spile.maps())
            check_hits_happened(sum(hits.values()), spile)
            if self.entry.get("straight", True):
                heads.check_straight_lines(hits, refused, spile.report())
            some = any(head.endswith("+0") for head in refused)
            check_count("at-most" if some else self.entry["expect"], heads.entered(hits), calls_of(spile.out, spile), spile)
            print(f"  {len(heads.heads)} instructions, {len(refused)} refused, {sum(hits.values())} hits")

    def instructions_loop(self):
        """Probes on some of the instructions, other ones each time, come and go while the target works."""
        seconds = self.entry.get("loop_seconds", LOOP_SECONDS) * SLOWNESS
        dice, heads, hits, cycles = random.Random(2), self.heads(), 0, 0
        places = heads.probes()
        with Target(self.path, self.args, wait=True, hold=True, loop=seconds) as target:
            before = Picture(target.pid)
            target.send_line()
            end = time.monotonic() + seconds * 0.8
            while time.monotonic() < end and target.alive() and "done" not in target.out:
                chosen = dice.sample(places, dice.randint(1, len(places)))
                with Spile(", ".join(f"uprobe:{place}" for place in chosen) + " { @calls = count(); }", pid=target.pid,
                           extra=self.extra) as spile:
                    if spile.wait_attached():
                        time.sleep(0.004 * (cycles % 7))
                        spile.stop()
                        hits += int(spile.maps().get("@calls", 0))
                        cycles += 1
                    elif target.alive() and "done" not in target.out:
                        check_refused_in_words(spile, self.message)
                if target.alive():
                    check_left_as_before(before, Picture(target.pid), strict=False)
            target.wait_for_line("(done|EXIT-)", seconds + self.timeout)
            target.finish_well(self.timeout)
            print(f"  {cycles} attach and detach cycles, {hits} hits")
            if cycles > 2:
                check_hits_happened(hits, target)


def kept(lines):
    return [line for line in lines if re.match(r"checksum=|EXIT-", line)]


CAPABILITIES = {"sys_resource": 24}


def has_capability(name):
    with open("/proc/self/status", encoding="utf-8") as status:
        return int(re.search(r"CapEff:\s*(\w+)", status.read()).group(1), 16) >> CAPABILITIES[name] & 1 == 1


def check_needs(entry):
    for need in entry.get("needs", []):
        kind, _, name = need.partition(":")
        if kind == "root":
            need_root()
        elif kind == "capability" and not has_capability(name):
            raise Skip(f"needs CAP_{name.upper()}")
        elif kind == "no-capability" and has_capability(name):
            raise Skip(f"says what happens without CAP_{name.upper()}")
        elif kind == "tool" and shutil.which(name) is None:
            raise Skip(f"needs {name}")
        elif kind == "cpu":
            with open("/proc/cpuinfo", encoding="utf-8") as info:
                if not re.search(rf"\b{name}\b", info.read()):
                    raise Skip(f"needs a CPU with {name}")


def run(name, only=None):
    """All runs of one manifest line, or just one of them."""
    entry = load_manifest()[name]
    check_needs(entry)
    case = Case(entry)
    os.environ.pop("SPILE_ONLY_TRAPS", None)
    if entry.get("all_traps"):
        os.environ["SPILE_ONLY_TRAPS"] = "1"
    for kind in entry["runs"]:
        if only is not None and kind != only:
            continue
        if kind != "bare":
            need_spile()
        try:
            getattr(case, kind)()
        except Failure as failure:
            raise Failure(f"{name}, {kind} run: {failure}") from None
        print(f"  {kind}: ok")
