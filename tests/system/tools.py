"""What the tests of tools/scripts share: where they are, and their recorded examples."""
import os
import re

from harness import ROOT, check

SCRIPTS = os.path.join(ROOT, "tools/scripts")
EXAMPLES = os.path.join(SCRIPTS, "examples")
LINES_OF_AN_EXAMPLE = 30


def script(name):
    return os.path.join(SCRIPTS, name + ".bt")


def names():
    return sorted(entry[:-3] for entry in os.listdir(SCRIPTS) if entry.endswith(".bt"))


def printed(name, words, text, pattern):
    """The tool printed what it must have. With SPILE_REBASE=1 the beginning of it becomes the tool's example."""
    check("hits-happened", re.search(pattern, text, re.M), f"{name}: must match {pattern!r}\n{text}")
    if not os.environ.get("SPILE_REBASE"):
        return
    text = re.sub(r"^Attached \d+ probes?\n+|^spile: .*\n", "", text, flags=re.M)
    words, text = (re.sub(r"/spile-test-\w+", "/example", part) for part in (words, text))
    lines = text.strip("\n").split("\n")
    # The lines around what the work has made: a busy machine prints much else.
    met = text[:re.search(pattern, text, re.M).end()].count("\n")
    first = max(0, min(met - LINES_OF_AN_EXAMPLE // 2, len(lines) - LINES_OF_AN_EXAMPLE))
    shown = lines[first:first + LINES_OF_AN_EXAMPLE]
    before = lines[:1] + ["..."] if first > 1 else lines[:first]
    after = ["..."] if first + LINES_OF_AN_EXAMPLE < len(lines) else []
    os.makedirs(EXAMPLES, exist_ok=True)
    with open(os.path.join(EXAMPLES, name + ".txt"), "w", encoding="utf-8") as file:
        file.write("\n".join([f"# spile {name}.bt {words}".rstrip(), *before, *shown, *after]) + "\n")
