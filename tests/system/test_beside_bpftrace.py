#!/usr/bin/env python3
"""The same scripts by bpftrace 0.17 and by spile, on the same work: what they print must be equal but for the differences listed here.

Scripts without probes show the formats; those with probes run on a program with known calls, spile by its kernel engine."""
import concurrent.futures
import difflib
import json
import os
import re
import shutil
import subprocess

from harness import SLOWNESS, SPILE, Skip, check, need_root, need_tool
from tracing import compile_program, main, run, temporary_directory

VERSION = "bpftrace v0.17"

# What is written differently, on purpose: (pattern, what it becomes) for text, in both outputs alike.
TEXT_DIFFERENCES = [
    # 0.17 ends the line above a histogram with a blank; newer ones do not.
    (r"(?m)^(@.*): $", r"\1:"),
    # 0.17 prints %% as it stands.
    (r"%%", "%"),
    # stats() has had names since 0.21.
    (r"(?m)^(@.*): count (-?\d+), average (-?\d+), total (-?\d+)$", r"\1: { .count = \2, .average = \3, .total = \4 }"),
    # 0.17 takes constants beyond 2^63 for negative ones.
    (r"(?m)^@large: -1$", "@large: 18446744073709551615"),
    # A function of a process that has ended is an address to bpftrace; spile has seen its files.
    (r"(?m)^@\[0x[0-9a-f]{9,}\]:", "@[step]:"),
    # Empty lines between the script's output and the maps.
    (r"\n{2,}", "\n"),
    (r"^\n+", ""),
]


def json_difference(record):
    """A record as both should have written it; None where only one of them writes it."""
    kind, data = record.get("type"), record.get("data")
    if kind == "attached_probes":
        record.pop("count", None)  # newer bpftrace has the number twice
    if kind in ("map", "hist", "stats") and list(data.values())[0] in ({}, [], None):
        return None  # an empty map: bpftrace is silent
    if kind == "map" and data.get("@large") == -1:
        data["@large"] = "18446744073709551615"  # as in text
    if kind == "printf":
        record["data"] = data.replace("%%", "%")
    return record


# Printed by BEGIN alone.
FORMATS = {
    "numbers": r'''printf("%d %u %x %X %o %c|%5d|%-5d|%05d\n", 42, 42, 255, 255, 8, 65, 7, 7, 7);
        printf("%d %d %lld %llu %llx\n", -1, -2, -3, 18446744073709551615, 1 << 40);
        printf("%s|%10s|%-10s|%%\n", "text", "right", "left"); printf("%d %d %d\n", 7 / 2, 7 % 3, 1 ? 2 : 3);
        printf("%d %d %d %d\n", 1 << 4, 256 >> 2, 6 & 3, 6 ^ 3); printf("%d %d\n", 5 > 3 && 2 < 1, !0);''',
    "maps": r'''@plain = 5; @text = "a text"; @keyed[1] = 10; @keyed[2] = 5; @pair[1, "one"] = 1; @pair[2, "two"] = 2;
        @deep[1, 2, 3] = 4; @negative[-1] = -5; @tuple = (1, "two", 3); @nested = (1, (2, "three"));
        @large = 18446744073709551615; @key_text["a"] = 1; @key_text["b"] = 2;''',
    "aggregations": r'''@count = count(); @sum = sum(5); @min = min(3); @max = max(9); @avg = avg(4);
        @by[1] = count(); @by[2] = count(); @by[2] = count(); @of[1] = sum(7); @of[2] = sum(3); @least["a"] = min(2); @most["a"] = max(4);''',
    "histograms": r'''@h = hist(5); @l = lhist(15, 0, 100, 10); @k[1] = hist(1000); @edges = hist(0); @low = lhist(0, 10, 20, 5);
        @high = lhist(99, 10, 20, 5); @thousands = hist(5000000);
        @negative = hist(-3);''',
    "many_buckets": r'''@h = hist(1); @h = hist(2); @h = hist(2); @h = hist(40); @h = hist(70000);
        @l = lhist(1, 0, 50, 10); @l = lhist(11, 0, 50, 10); @l = lhist(12, 0, 50, 10); @l = lhist(45, 0, 50, 10);''',
    "statistics": r'''@s = stats(10); @s = stats(20); @k["a"] = stats(3); @k["a"] = stats(5);''',
    "printing": r'''@a[1] = 1; @a[2] = 2; @a[3] = 3; print(@a, 2); print(@a, 2, 1); @h[1] = hist(3); @h[2] = hist(300); print(@h, 1);
        @x = 7; print(@x); clear(@a); @n[1] = count(); zero(@n); print(5); print("text"); print((1, 2)); delete(@x); ''',
    "strings": r'''$s = "abc"; printf("%s %d\n", $s, $s == "abc"); @[str($1), $2] = 1; printf("%d %s\n", $#, str($1));
        if ($s != "x") { printf("other\n"); } printf("%s\n", "with \"quotes\" and \\ and \t a tab");''',
    "loops": r'''$i = 0; while ($i < 3) { printf("%d\n", $i); $i++; } unroll(2) { printf("again\n"); } @i++; @i++; @d--;
        $y = 5; $y += 2; $y *= 3; printf("%d\n", $y); @m[1] += 4; @m[1] -= 1;''',
    "casts": r'''printf("%d %d %d\n", (int8)255, (uint8)257, (int16)65535); printf("%d\n", (int32)4294967295);
        @c = (uint8)300; printf("%d %d\n", sizeof(uint32), sizeof(int64));''',
    "addresses": r'''printf("%s %s %s\n", ntop(2, 16777343), ntop(16777343), ntop(10, 1)); printf("%s %d\n", strftime("%C", nsecs), strncmp("abc", "abd", 2));
        printf("%p %p\n", (uint64*)16, (uint64*)0); @n[ntop(2, 16777343)] = count(); @k[ksym(kaddr("vfs_write"))] = count(); printf("%s\n", ksym(kaddr("vfs_read")));''',
    "tuples": r'''print((1, "a", (2, (3, "b")))); @[1, "a"] = (1, (2, "x")); @x = (5, 6); print(@x.1); $t = (7, "seven"); print($t.1); print($t);''',
    "keyed_histograms": r'''@h["a", 1] = hist(3); @h["b", 2] = hist(4000); @h["b", 2] = hist(5000); @l[1] = lhist(3, 0, 10, 2); @l[2] = lhist(-3, 0, 10, 2);
        print(@h, 1); print(@l, 1, 1); clear(@l); @s["a", 1] = stats(3); @s["a", 1] = stats(9); @a[1, 2] = avg(-10); @a[1, 2] = avg(-20); print(@a);''',
    "nothing_in_it": r'''@e = ""; @k[""] = 1; printf("[%s]\n", ""); print("");''',
    "signs": r'''@a = (int8)200; @b = (uint8)200; @c = -1; @d = (int64)-1; @e[(int8)-1] = 1; printf("%d %u %x\n", -1, -1, -1); printf("%ld %lu\n", -1, 5);''',
    "choices": r'''@n = 0; unroll(3) { @n += 2; @h = lhist(@n, 0, 10, 1); } if (@n == 6) { printf("six\n"); } else { printf("other\n"); }
        $a = 3; printf("%s %d\n", $a > 2 ? "big" : "small", $a > 5 ? 1 : 0); @t = $a == 3 ? 10 : 20;''',
}

# Of these JSON has forms of its own.
IN_JSON = ["maps", "aggregations", "histograms", "statistics", "printing", "addresses", "tuples", "keyed_histograms", "nothing_in_it", "signs", "strings"]

PROGRAM = r"""
#include <stdio.h>
struct pair { int left; long right; };
__attribute__((noinline)) long step(int n, const char *name, struct pair *pair) { asm volatile("" ::: "memory"); return n + name[0] + pair->right; }
__attribute__((noinline)) int leave(int n) { asm volatile("" ::: "memory"); return n * 2; }
int main(void) {
  static const char *names[] = {"alpha", "beta", "gamma"};
  volatile char first = names[0][0];  /* the kernel reads only what has been touched */
  long sum = first;
  for (int i = 0; i < 30; i++) {
    struct pair pair = {i, i * 10L};
    sum += step(i, names[i % 7 % 3], &pair) + leave(i);
  }
  return sum == 0;
}
"""

# {P} is the program.
PROBED = {
    "counts": "uprobe:{P}:step {{ @ = count(); @by[str(arg1)] = count(); @h = hist(arg0); @l = lhist(arg0, 0, 30, 10); @s = sum(arg0); }}",
    "lines": 'uprobe:{P}:step {{ printf("%d %s\\n", arg0, str(arg1)); }}',
    "returns": 'uretprobe:{P}:leave {{ printf("%d\\n", retval); @r = stats(retval); }}',
    "predicates": 'uprobe:{P}:step /arg0 > 20 && str(arg1) == "beta"/ {{ printf("%d %s %s\\n", arg0, comm, probe); @[func] = count(); }}',
    "structs": ("struct pair {{ int left; long right; }}\n"
                'uprobe:{P}:step {{ $p = (struct pair *)arg2; printf("%d %d\\n", $p->left, $p->right); @[$p->left % 3] = max($p->right); }}'),
}


def need_bpftrace():
    need_root()
    path = need_tool("bpftrace")
    version = run([path, "--version"]).out.strip()
    if not version.startswith(VERSION):
        raise Skip(f"needs {VERSION}, this is {version}")
    works = run([path, "-q", "-e", 'BEGIN { printf("works\\n"); exit(); }'])
    if "works" not in works.out:
        raise Skip(f"bpftrace does not run here: {works.err.strip()}")
    return path


def alike(text, form):
    """The output without the listed differences, as lines."""
    if form == "text":
        for pattern, replacement in TEXT_DIFFERENCES:
            text = re.sub(pattern, replacement, text)
        return text.rstrip("\n").split("\n")
    records = [json_difference(json.loads(line)) for line in text.splitlines() if line.strip()]
    return [json.dumps(record) for record in records if record is not None]


def outputs(commands):
    """What each of two programs prints; they run at the same time."""
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace") for words in commands]
    texts = []
    for process in running:
        try:
            out, err = process.communicate(timeout=60 * SLOWNESS)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        check("exit-status", process.returncode == 0, f"{' '.join(process.args)}\n{out}\n{err}")
        texts.append(out)
    return texts


def compare(name, form, words):
    how = ["-f", "json"] if form == "json" else ["-q"]
    theirs, ours = outputs([["bpftrace", *how, *words], [SPILE, *how, "--engine", "kernel", *words]])
    check("hits-happened", len(alike(theirs, form)) > 1, f"{name}\n{theirs}")
    difference = "\n".join(difflib.unified_diff(alike(theirs, form), alike(ours, form), "bpftrace", "spile", lineterm="", n=1))
    check("same-output", not difference, f"{name} ({form})\n{difference}")


def formats():
    need_bpftrace()
    work = [(name, "text") for name in FORMATS] + [(name, "json") for name in IN_JSON]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(compare, name, form, ["-e", f"BEGIN {{ {FORMATS[name]} exit(); }}", "first", "2"]) for name, form in work]:
            done.result()


def probes():
    """Each traces its own run of the program; what that prints itself is nothing."""
    need_bpftrace()
    with temporary_directory() as directory:
        # Where kernel uprobes work: not on every file system of a container.
        place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else directory
        program = compile_program(directory, "known_calls", PROGRAM, flags=("-O1", "-g"))
        copy = os.path.join(place, f"known_calls_{os.getpid()}")
        shutil.copy(program, copy)
        try:
            for name, body in PROBED.items():
                one_after_the_other(name, ["-e", body.format(P=copy), "-c", copy])
        finally:
            os.unlink(copy)


def one_after_the_other(name, words):
    """System-wide probes would see the other's run."""
    theirs, ours = outputs([["bpftrace", "-q", *words]])[0], outputs([[SPILE, "-q", "--engine", "kernel", *words]])[0]
    check("hits-happened", len(alike(theirs, "text")) > 1, f"{name}\n{theirs}")
    difference = "\n".join(difflib.unified_diff(alike(theirs, "text"), alike(ours, "text"), "bpftrace", "spile", lineterm="", n=1))
    check("same-output", not difference, f"{name}\n{difference}")


def types():
    """-lv of the kernel's types; spile leaves padding out."""
    need_bpftrace()
    compared = 0
    for name in ("struct path", "struct task_struct", "struct bpf_prog", "enum pid_type"):
        theirs, ours = outputs([["bpftrace", "-lv", name], [SPILE, "-lv", name]])
        lines = [line for line in theirs.splitlines() if line and not re.fullmatch(r"\t+\w+: \d+;", line)]
        compared += bool(lines)  # 0.17 does not find all
        check("same-output", not lines or lines == [line for line in ours.splitlines() if line], f"{name}\n{theirs}\n{ours}")
    check("hits-happened", compared >= 3, str(compared))


def other_differences_are_seen():
    """What the list must not hide."""
    text = "@h[a]: \n[4, 8)                 1 |@@|\n\n@s: count 2, average 15, total 30\n@x: 5\n"
    for old, new in (("[4, 8)", "[4, 9)"), ("1 |@@|", "2 |@@|"), ("average 15", "average 16"), ("@x: 5", "@x: -5"), ("@x: 5\n", ""),
                     ("@h[a]", "@h[b]"), ("                 1", "                1"), ("|@@|", "|@ |")):
        check("seen", alike(text, "text") != alike(text.replace(old, new), "text"), f"{old} -> {new}")
    record = '{"type": "map", "data": {"@": {"a,1": 5}}}'
    for old, new in (('"map"', '"hist"'), ("a,1", "a, 1"), ("5", '"5"'), ('"@"', '"@x"'), (record, "")):
        check("seen", alike(record, "json") != alike(record.replace(old, new), "json"), f"{old} -> {new}")


if __name__ == "__main__":
    main([formats, probes, types, other_differences_are_seen], 200)
