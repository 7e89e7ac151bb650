#!/usr/bin/env python3
"""test_adversarial.py NAME [RUN]: one line of the manifest; --list: their names; --bare: every target without spile."""
import sys

import adversarial
import harness


def all_bare():
    failed = []
    for name in adversarial.load_manifest():
        try:
            adversarial.run(name, "bare")
        except harness.Failure as failure:
            failed.append(str(failure))
        except harness.Skip as reason:
            print(f"  {name}: skipped, {reason}")
    harness.check("exit-success", not failed, "\n".join(failed))


if __name__ == "__main__":
    if sys.argv[1] == "--list":
        print("\n".join(adversarial.load_manifest()))
    elif sys.argv[1] == "--bare":
        harness.main(all_bare)
    else:
        harness.main(lambda: adversarial.run(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
