"""The instructions of a file as objdump sees them, and what the counts of probes on each of them must satisfy.

In a straight line (no branch leaves, none comes in) each instruction runs as often as the one before: this needs no knowledge
of what the code does.
"""
import collections
import fnmatch
import re
import subprocess

from harness import Failure, check

LINE = re.compile(r"^\s*([0-9a-f]+):\t(?:[0-9a-f]{2} )+\s*(?:\t(.*))?$")
LEAVES = re.compile(r"^((bnd|notrack|repz?|repnz|rep|cs|ds|es|ss|fs|gs|data16|addr32|rex\S*|lock|,p[nt]) )*(j|call|ret|loop|iret|lret|syscall|int3?|ud2|hlt|sys|x(begin|end|abort))")
TARGET = re.compile(r"\b([0-9a-f]+) <")

Instruction = collections.namedtuple("Instruction", "address text")
Function = collections.namedtuple("Function", "name address size")


def symbols(path):
    """All functions under all their names."""
    for flag in ("-s", "--dyn-syms"):
        text = subprocess.run(["readelf", "-W", flag, path], capture_output=True, text=True, check=True).stdout
        for line in text.splitlines():
            words = line.split()
            if len(words) >= 8 and words[3] in ("FUNC", "IFUNC") and words[6] != "UND" and int(words[2], 0) > 0:
                yield Function(words[7].split("@")[0], int(words[1], 16), int(words[2], 0))


def all_names(path):
    return {one.name: one.address for one in symbols(path)}


def functions(path, patterns=("*",)):
    """The functions whose names match, one name an address, in order."""
    table = {}
    for one in symbols(path):
        if any(fnmatch.fnmatchcase(one.name, pattern) for pattern in patterns):
            table.setdefault(one.address, one)
    if not table:
        raise Failure(f"no function of {path} matches {patterns}")
    return [table[address] for address in sorted(table)]


def disassemble(path):
    """All instructions of a file, by address."""
    text = subprocess.run(["objdump", "-d", "-w", path], capture_output=True, text=True, check=True).stdout
    found = (LINE.match(line) for line in text.splitlines())
    return {int(one.group(1), 16): Instruction(int(one.group(1), 16), one.group(2) or "") for one in found if one}


class Heads:
    """The instruction heads of some functions of a file: each is a place for a probe."""

    def __init__(self, path, patterns=("*",)):
        self.path = path
        self.code = disassemble(path)
        self.functions = functions(path, patterns)
        self.targets = {int(found, 16) for one in self.code.values() for found in TARGET.findall(one.text)}
        self.names = all_names(path)
        self.targets |= set(self.names.values())
        self.heads = {}  # "name+offset" -> address
        self.lines = []  # the same, function by function
        for one in self.functions:
            inside = [address for address in range(one.address, one.address + one.size) if address in self.code]
            line = {f"{one.name}+{address - one.address}": address for address in inside
                    if "(bad)" not in self.code[address].text}
            self.lines.append(line)
            self.heads.update(line)

    def probes(self):
        return [f"{self.path}:{head}" for head in self.heads]

    def program(self, random):
        """One probe on each head, in random order: they overlap each other's windows."""
        places = self.probes()
        random.shuffle(places)
        return ", ".join(f"uprobe:{place}" for place in places) + " { @[probe] = count(); }"

    def counts(self, maps):
        """"name+offset" -> hits, for what was hit at all; 0 for the rest."""
        hits = {head: 0 for head in self.heads}
        for probe, count in maps.get("@", {}).items():
            head = probe.rsplit(":", 1)[1]
            hits[head if "+" in head else head + "+0"] = int(count)
        return hits

    def entered(self, hits):
        return sum(hits[f"{one.name}+0"] for one in self.functions if f"{one.name}+0" in hits)

    def refused(self, lines):
        """The heads that spile said it did not probe, by whatever name of the address."""
        found = (re.search(r"not probed: [^ :]*:(\S+?)(?:\+(\w+))? at 0x", line) for line in lines)
        addresses = {self.names[one.group(1)] + int(one.group(2) or "0", 0) for one in found if one and one.group(1) in self.names}
        return {head for head, address in self.heads.items() if address in addresses}

    def check_straight_lines(self, hits, refused, report):
        for line in self.lines:
            places = list(line.items())
            for (head, before), (next_head, address) in zip(places, places[1:]):
                if LEAVES.match(self.code[before].text) or address in self.targets or {head, next_head} & refused:
                    continue
                check("straight-line", hits[head] == hits[next_head],
                      f"{head} ({self.code[before].text}) {hits[head]} times, then {next_head} "
                      f"({self.code[address].text}) {hits[next_head]} times\n{report}")
