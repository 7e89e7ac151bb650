"""Runs one line of tests/targets/manifest.json in the ways it names: bare, under -c, by -p before the work, and in a loop."""
import json
import os
import re
import shutil
import time

from harness import (ROOT, RUN_SECONDS, SLOWNESS, TARGETS, Failure, Picture, Skip, Spile, Target, check,
                     check_count, check_exit_success, check_hits_happened, check_left_as_before, check_no_loss,
                     check_refused_in_words, check_same_output, count_program, calls_of, need_root, need_spile, run_bare,
                     target_path)

LOOP_SECONDS = 1.0
LOOP_CYCLES = 6


def load_manifest():
    with open(os.path.join(ROOT, "tests/targets/manifest.json"), encoding="utf-8") as file:
        return {entry["name"]: entry for entry in json.load(file)["targets"]}


class Case:
    def __init__(self, entry):
        self.entry = entry
        self.path = target_path(entry["path"])
        self.args = entry["args"]
        self.timeout = entry.get("timeout", RUN_SECONDS)
        self.message = entry.get("message", r"0x[0-9a-f]+")

    def probes(self, work_path=None):
        path = self.entry.get("probe_path")
        path = work_path if path == "@work" else os.path.join(TARGETS, path) if path else self.path
        return [probe if ":" in probe else f"{path}:{probe}" for probe in self.entry["probes"]]

    def program(self, work_path=None):
        return count_program(self.probes(work_path), "uretprobe" if self.entry.get("returns") else "uprobe")

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
        with Spile(self.program(), command=" ".join([self.path, *self.args])) as spile:
            status = spile.finish(self.timeout)
            if not any("EXIT-" in line for line in spile.out):
                return self.refusal_passes(spile)
            check_exit_success(status, spile)
            self.must_not_attach(spile)
            self.count(spile, calls_of(spile.out, spile), spile)
            keep = lambda lines: [line for line in lines if re.match(r"checksum=|EXIT-", line)]
            check_same_output(keep(bare_output), keep(spile.out), spile)

    def attach(self):
        hold = self.entry.get("hold", True)
        with Target(self.path, self.args, wait=True, hold=hold) as target:
            work = next((line[5:] for line in target.out if line.startswith("work=")), None)
            before = Picture(target.pid)
            with Spile(self.program(work), pid=target.pid) as spile:
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
                with Spile(self.program(), pid=target.pid) as spile:
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


def check_needs(entry):
    for need in entry.get("needs", []):
        kind, _, name = need.partition(":")
        if kind == "root":
            need_root()
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
