#!/usr/bin/env python3
"""The oracles themselves: each must fail when what it watches has changed, else a green run means nothing."""
import os
import sys
import tempfile

import harness
from harness import Failure, Picture, Target, check, target_path
from test_lifecycle import load_base, peek, poke, symbol_in


def must_fail(oracle, run):
    try:
        run()
    except Failure as failure:
        check("oracles", str(failure).startswith(oracle), f"{oracle} fails with another message: {failure}")
        return
    raise Failure(f"oracles: {oracle} did not notice")


def harness_notices_changed_code():
    with Target(target_path("case_46_counter"), wait=True) as target:
        before = Picture(target.pid)
        harness.check_left_as_before(before, Picture(target.pid))
        where = load_base(target.pid) + symbol_in("probe_me")
        byte = peek(target.pid, where, 1)
        poke(target.pid, where, bytes([byte[0] ^ 1]))
        must_fail("text-unchanged", lambda: harness.check_text_unchanged(before, Picture(target.pid)))
        poke(target.pid, where, byte)
        harness.check_left_as_before(before, Picture(target.pid))


def harness_notices_mappings_and_descriptors():
    with Target(target_path("case_46_counter"), wait=True) as one:
        with Target(target_path("case_56_text_mappings"), ["--mode", "memfd"], wait=True) as other:
            before, after = Picture(one.pid), Picture(other.pid)
            must_fail("mappings-unchanged", lambda: harness.check_mappings_unchanged(before, after, strict=False))
            must_fail("mappings-unchanged", lambda: harness.check_mappings_unchanged(before, after))
            must_fail("descriptors-unchanged", lambda: harness.check_descriptors_unchanged(before, after))


def harness_notices_failed_targets():
    with Target(target_path("case_46_counter"), ["--unknown"]) as target:
        must_fail("exit-success", target.finish_well)
    with Target(target_path("case_46_counter"), wait=True) as target:
        must_fail("in-time", lambda: [target.process.stdin.flush(), harness.Process.finish(Sleeper(target), 0.2)])
    must_fail("exact-count", lambda: harness.check_count("exact", 9, 10, target))
    must_fail("at-least-count", lambda: harness.check_count("at-least", 9, 10, target))
    must_fail("at-most-count", lambda: harness.check_count("at-most", 11, 10, target))
    must_fail("hits-happened", lambda: harness.check_hits_happened(0, target))


class Sleeper:
    """Looks like `process`, whose stdin stays open, so that it waits for ever."""

    def __init__(self, process):
        self.__dict__.update(process.__dict__)
        self.report = process.report
        self.process = type("Waiting", (), {"stdin": open(os.devnull, "w"), "wait": process.process.wait})()


def harness_notices_refusals_without_a_reason():
    with tempfile.TemporaryDirectory() as directory:
        script = os.path.join(directory, "refuses")
        for status, text, good in ((1, "at 0x1234: ret: too short", True), (1, "no", False), (3, "at 0x1234", False)):
            with open(script, "w", encoding="utf-8") as file:
                file.write(f"#!/bin/sh\necho '{text}' >&2\nexit {status}\n")
            os.chmod(script, 0o755)
            with harness.Process([script]) as run:
                run.finish()
                if good:
                    harness.check_refused_in_words(run)
                else:
                    must_fail("refusal-in-words", lambda: harness.check_refused_in_words(run))


CASES = {name: function for name, function in globals().items() if name.startswith("harness_notices")}

if __name__ == "__main__":
    if sys.argv[1] == "--list":
        print("\n".join(CASES))
    else:
        harness.main(CASES[sys.argv[1]])
