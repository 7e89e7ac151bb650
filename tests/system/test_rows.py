#!/usr/bin/env python3
"""Each row of the language (language_rows.txt): what it prints, on both engines; what is refused, with which words."""
import contextlib
import os
import re
import signal
import stat

from harness import SPILE, Failure, Process, Skip, check, need_root
from tracing import check_status, compile_program, main, run, spile, temporary_directory

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
ROWS = os.path.join(HERE, "language_rows.txt")

# `once` is called once, so that what a row prints is known whatever it does.
WORK = r"""
struct pair { int left; long right; };
struct all { struct pair in; int hidden; int whole; unsigned low : 3; unsigned high : 5; };
#define KEPT __attribute__((noinline, used))
KEPT long once(long n, const char *text, struct all *all) { __asm__ volatile("" : : "r"(text), "r"(all) : "memory"); return n * 10; }
KEPT long twice(long n) { __asm__ volatile("" ::: "memory"); return n + 1; }
KEPT long never(long n) { __asm__ volatile("" ::: "memory"); return n + 2; }
int main(void) {
  static struct all all = {{3, 4}, 5, 0x65742061, 5, 22};
  static const char text[] = "a text of more than sixteen";
  // Pages that nobody has touched yet cannot be read by the kernel's programs.
  long touched = *(volatile const char *)text + ((volatile struct all *)&all)->hidden;
  return touched + once(7, text, &all) + twice(1) + twice(2) == 0;
}
"""


def rows():
    """(name, script, expected) of each row."""
    with open(ROWS, encoding="utf-8") as file:
        text = file.read()
    for part in re.split(r"(?m)^=== ", text)[1:]:
        name, _, rest = part.partition("\n")
        script, separator, expected = ("\n" + rest).partition("\n---\n")
        if not separator:
            raise Failure(f"{ROWS}: '{name}' has no ---")
        yield name, script.strip(), expected.strip("\n")


def whole(script, program):
    if "HIT" not in script and "{P}" not in script:
        script = f"HIT {{ {script} }}"
    return script.replace("HIT", f"uprobe:{program}:once").replace("{P}", program)


def traced(engine, script, program):
    return spile("-q", "--engine", engine, "-e", whole(script, program), "-c", program, "42", "second", "--", "--n=20", "--on")


def lines(text):
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def check_elsewhere(name, where):
    """A row that another test shows: that test is there."""
    match = re.fullmatch(r"(\w+\.py)(?:: (\w+))?", where)
    if not match:
        raise Failure(f"elsewhere: {name}: '{where}' is no test")
    path = os.path.join(HERE, match[1])
    check("elsewhere", os.path.exists(path), f"{name}: {path} is not there")
    with open(path, encoding="utf-8") as file:
        check("elsewhere", not match[2] or f"def {match[2]}(" in file.read(), f"{name}: {where}")


class Work:
    """The compiled program, once for all rows."""
    program = None


def check_rows(engine):
    ran = 0
    wrong = []
    for name, script, expected in rows():
        if expected.startswith("elsewhere: "):
            check_elsewhere(name, expected.removeprefix("elsewhere: "))
            continue
        if expected.startswith("refused: "):
            if engine == "kernel":
                continue  # told before an engine is chosen
            result = traced("user", script, Work.program)
            words = expected.removeprefix("refused: ")
            if result.status != 1 or words not in result.err:
                wrong.append(f"{name}: refusal-in-words: '{words}'\n{result.report()}")
        elif engine == "kernel" or not name.endswith("[kernel]"):
            result = traced(engine, script, Work.program)
            if result.status != 0 or lines(result.out) != lines(expected):
                wrong.append(f"{name}: expected:\n{expected}\n{result.report()}")
        ran += 1
    check("same-as-recorded", not wrong, "\n\n".join(wrong))
    check("rows-ran", ran > 50, f"{ran}")


def rows_in_the_user_engine():
    check_rows("user")


def rows_in_the_kernel_engine():
    result = spile("-q", "--engine", "kernel", "-e", f"uprobe:{Work.program}:once {{ @ = count(); }}", "-c", Work.program)
    if result.status != 0:
        raise Skip(f"no kernel engine here: {result.err.strip()}")
    check_rows("kernel")


def write(directory, name, text, mode=0o644):
    path = os.path.join(directory, name)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, mode)
    return path


@contextlib.contextmanager
def own_directory():
    """One that nobody else may write, as that of temporary_directory() may be."""
    with temporary_directory() as shared:
        path = os.path.join(shared, "own")
        os.mkdir(path, 0o755)
        yield path


def files_are_imported():
    """Read once, before what imports them; a folder is all its scripts; what is wrong is told with its own file and line."""
    with own_directory() as directory:
        os.mkdir(os.path.join(directory, "more"))
        write(directory, "base.bt", 'begin { print("base"); }\nmacro twice(x) { (x) * 2 }\n')
        write(directory, "types.h", "struct pair { int left; long right; };\n#define LEFT 1\n")
        write(directory, "more/b.bt", 'import "../base.bt";\nbegin { print("b"); }\n')
        write(directory, "more/a.bt", 'begin { print("a"); }\n')
        script = write(directory, "main.bt", 'import "more";\nimport "base.bt"; import "types.h";\n'
                       'begin { print((twice(4), sizeof(struct pair), LEFT)); }\n')
        result = spile("-q", script)
        check_status(result, 0)
        check("imported", lines(result.out) == ["a", "base", "b", "(8, 16, 1)"], result.report())
        result = run([os.path.abspath(SPILE), "-q", "-e", 'import "base.bt"; begin { print(twice(5)); }'], cwd=directory, seconds=30)
        check("from-the-folder", lines(result.out) == ["base", "10"], result.report())

        wrong = write(directory, "more/b.bt", "// one\nbegin { print(nothing); }\n")
        result = spile("-q", script)
        check_status(result, 1)
        place = os.path.join(directory, "more/b.bt") + ":2:15-22: ERROR: unknown name 'nothing'\nbegin { print(nothing); }\n"
        check("place-of-the-fault", place in result.err, f"{wrong}\n{result.report()}")


def imports_that_are_refused():
    with own_directory() as directory:
        for name, text, words in (
                ("missing.bt", 'import "none.bt"; begin { }', "import none.bt: No such file or directory"),
                ("c.bt", 'import "x.bpf.c"; begin { }', "programs in C are not built yet"),
                ("other.bt", 'import "x.txt"; begin { }', "this is no script"),
                ("open.bt", 'import "everybody.bt"; begin { }', "everybody may write this file or its folder"),
                ("std.bt", 'import "stdlib/none"; begin { }', "there is no module 'stdlib/none'")):
            write(directory, "everybody.bt", "begin { }", 0o666)
            result = spile("-q", write(directory, name, text))
            check_status(result, 1)
            check("refusal-in-words", words in result.err and ":1:1-" in result.err, result.report())
        write(directory, "everybody.bt", "begin { }", 0o644)
        os.chmod(directory, stat.S_IRWXU | stat.S_IRWXO)
        result = spile("-q", os.path.join(directory, "open.bt"))
        check("refusal-in-words", "everybody may write this file or its folder" in result.err, result.report())


TESTS = """
begin { @x = 10; print("begins"); }
test:right { print("unseen"); if (@x++ != 10) { return 1; } for ($i : 0..@x) { if ($i == 20) { return 2; } } }
test:wrong { print("seen"); for ($i : 0..@x) { if ($i == 5) { return $i; } } return 1; }
test:tells { errorf("no good"); }
test:leaves { exit(3); }
test:ends { print("quiet"); exit(0); }
end { print("ends"); }
"""
VERDICTS = ["begins", "PASS right", "seen", "FAIL wrong: it returned 5", "FAIL tells: it told 1 error", "FAIL leaves: it called exit(3)",
            "PASS ends", "2 passed, 3 failed", "ends"]


def tests_are_run():
    for engine in ("user", "kernel"):
        if engine == "kernel" and os.geteuid() != 0:
            continue
        result = spile("-q", "--engine", engine, "--test", "-e", TESTS)
        check_status(result, 1)
        check("verdicts", lines(result.out) == VERDICTS, f"{engine}\n{result.report()}")
        check("told", "stdin:5:14-31: ERROR: no good" in result.err, result.report())
        check_status(spile("-q", "--engine", engine, "--mode", "test", "-e", "test:fine { return 0; }"), 0)
    result = spile("-q", "-f", "json", "--test", "-e", "test:bad { return 1; }")
    check("as-json", '{"type": "test_result", "data": {"name": "bad", "passed": false, "reason": "it returned 1"}}' in result.out,
          result.report())
    result = spile("-q", "--test", "-e", "begin { }")
    check("refusal-in-words", result.status == 1 and "has no test:NAME probe" in result.err, result.report())
    result = spile("-q", "-e", "test:one { }")
    check("refusal-in-words", result.status == 1 and "--test runs tests" in result.err, result.report())


def benchmarks_are_measured():
    need_root()
    script = "bench:count { @b = count(); } bench:a_long_name_it_has { for ($i : 0..100) { @a++; } } test:no { nonsense(); }"
    result = spile("-q", "--bench", "--engine", "kernel", "-e", script)
    check_status(result, 0)
    table = (r"\+-+\+-+\+\n\| BENCHMARK +\| NANOSECONDS +\|\n\+-+\+-+\+\n\| count +\| [1-9]\d* +\|\n\| a_long_name_it_has \| [1-9]\d* +\|\n"
             r"\+-+\+-+\+\n")
    check("table", re.search(table, result.out), result.report())
    check("no-maps", "@b" not in result.out, result.report())
    result = spile("-q", "--bench", "--engine", "user", "-e", script)
    check("refusal-in-words", result.status == 1 and "only the kernel has this" in result.err, result.report())


def a_signal_is_answered():
    """By the script's own probe, each time, and the maps are not printed then; the trace goes on."""
    script = ('begin { @n = 5; print("begins"); } self:signal:SIGUSR1 { @n++; printf("asked %d\\n", @n); if (@n == 7) { exit(); } } '
              "interval:s:1000 { }")
    for engine in ("user", "kernel"):
        if engine == "kernel" and os.geteuid() != 0:
            continue
        with Process([SPILE, "-q", "--engine", engine, "-e", script]) as traced_:
            traced_.wait_for_line("begins")
            os.kill(traced_.pid, signal.SIGUSR1)
            traced_.wait_for_line("asked 6")
            os.kill(traced_.pid, signal.SIGUSR1)
            traced_.wait_for_line("asked 7")
            traced_.wait_for_line("@n: 7")


def all_cases():
    with temporary_directory() as directory:
        Work.program = compile_program(directory, "rows", WORK, flags=("-O1", "-g"))
        main([rows_in_the_user_engine, rows_in_the_kernel_engine, files_are_imported, imports_that_are_refused, tests_are_run,
              benchmarks_are_measured, a_signal_is_answered], 240)


if __name__ == "__main__":
    all_cases()
