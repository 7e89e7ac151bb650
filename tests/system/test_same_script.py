#!/usr/bin/env python3
"""A script that both engines can carry prints the same on both; and neither run makes the other's system calls."""
import functools
import os
import re

from harness import SPILE, Process, Skip, check, need_root, need_tool
from tracing import compile_program, main, run, spile, temporary_directory

# Fixed work, so that every figure is known: names, arguments and counts do not change from run to run.
WORK = r"""
#include <stdio.h>
#include <string.h>
#include <unistd.h>
__attribute__((noinline)) long step_one(long n, const char *name, unsigned char small) {
  __asm__ volatile("" ::: "memory");
  return n * 2 + name[0] + small;
}
__attribute__((noinline)) long step_two(int n, const void *data, long size) {
  __asm__ volatile("" : : "r"(data) : "memory");
  return n ^ size;
}
__attribute__((noinline)) long many(long a, long b, long c, long d, long e, long f) {
  __asm__ volatile("" ::: "memory");
  return a + b + c + d + e + f;
}
struct pair { int left; long right; };
int main(void) {
  static const char *names[] = {"alpha", "beta", "", "a name that is longer than the others by far"};
  long sum = 0;
  // Pages that nobody has touched yet cannot be read by the kernel's programs.
  for (int i = 0; i < 4; i++) sum += *(volatile const char *)names[i] - names[i][0];
  for (long i = 0; i < 40; i++) {
    struct pair pair = {(int)i, i * i};
    sum += step_one(i, names[i % 4], (unsigned char)(i * 7));
    sum += step_two((int)-i, &pair, (long)sizeof pair);
    sum += many(i, 1, 2, 3, 4, i - 20);
  }
  printf("sum=%ld\n", sum);
  return sum == 0;
}
"""

# {P} is the program. Each must print something of its own.
SCRIPTS = {
    "count": "uprobe:{P}:step_one {{ @calls = count(); }}",
    "strings": 'uprobe:{P}:step_one {{ printf("%d %s\\n", arg0, str(arg1)); }}',
    "keyed_by_string": "uprobe:{P}:step_one {{ @[str(arg1)] = count(); @by[str(arg1), arg0 % 3] = sum(arg0); }}",
    "histograms": "uprobe:{P}:step_one {{ @h = hist(arg0); @l = lhist(arg0, 0, 40, 5); @k[arg0 % 2] = hist(arg2); }}",
    "figures": "uprobe:{P}:step_two {{ @s = sum(arg2); @a = avg(arg2); @i = min((int32)arg0); @x = max((int32)arg0); }}",
    "all_arguments": 'uprobe:{P}:many {{ printf("%d %d %d %d %d %d\\n", arg0, arg1, arg2, arg3, arg4, (int64)arg5); }}',
    "predicates": 'uprobe:{P}:step_one /arg0 > 30 && arg0 != 35/ {{ printf("%x %o %c %5d|%-5d|\\n", arg0, arg0, 65 + arg0 % 26, arg0, arg0); }}',
    "branches": 'uprobe:{P}:step_one {{ if (arg0 % 2) {{ @odd = count(); }} else {{ @even = count(); }} @kind[arg0 < 10 ? "few" : "many"] = count(); }}',
    "variables": "uprobe:{P}:step_one {{ $x = arg0 * 3; $x += 1; @last = $x; @seen[$x % 4]++; }} END {{ printf(\"%d\\n\", @last); }}",
    "glob_and_func": "uprobe:{P}:step_* {{ @[func] = count(); @p[probe] = count(); }}",
    "several_probes": 'uprobe:{P}:step_one, uprobe:{P}:step_two {{ @n = count(); }} uprobe:{P}:many {{ @m = count(); }}',
    "return_values": 'uretprobe:{P}:step_one {{ printf("%d\\n", retval); }} uretprobe:{P}:many {{ @m = sum(retval); @[func] = count(); @p[probe] = count(); }}',
    "entries_and_returns": "uprobe:{P}:step_two {{ @in = count(); @n = sum(arg2); }} uretprobe:{P}:step_two {{ @out = count(); @s = min((int32)retval); }}",
    "two_on_one": "uprobe:{P}:many {{ @first = count(); }} uprobe:{P}:many {{ @second = count(); }}",
    "begin_and_end": 'BEGIN {{ printf("begin %s\\n", "here"); @x = 7; }} uprobe:{P}:many {{ @x++; }} END {{ printf("end %d\\n", @x); clear(@x); }}',
    "delete_and_zero": "uprobe:{P}:step_one {{ @d[arg0] = 1; if (arg0 > 3) {{ delete(@d[arg0]); }} @z = count(); }} END {{ zero(@z); print(@d); }}",
    "exit_at_a_hit": 'uprobe:{P}:step_one {{ printf("hit %d\\n", arg0); if (arg0 == 5) {{ exit(); }} }}',
    "failed_read": 'uprobe:{P}:step_one {{ printf("[%s]\\n", str(1)); }}',
    "memory": 'uprobe:{P}:step_two {{ printf("%d %d\\n", *(int32*)arg1, *(int64*)(arg1 + 8)); }}',
    "buffers": 'uprobe:{P}:step_one {{ printf("%r\\n", buf(arg1, 4)); }}',
    "who": "uprobe:{P}:many {{ @[comm, uid, gid, pid == tid] = count(); }}",
    "own_structs": ('struct pair {{ int left; long right; }};\nuprobe:{P}:step_two {{ $p = (struct pair *)arg1; '
                    'printf("%d %d\\n", $p->left, $p->right); @[$p->left % 3] = stats($p->right); @size = sizeof(struct pair); }}'),
    "parameters_by_name": ('uprobe:{P}:step_one {{ printf("%d %s\\n", args.n, str(args.name)); @[args.small] = count(); }} '
                           "uprobe:{P}:step_two {{ @n = min(args.n); @s = sum(((struct pair *)args.data)->right); }}"),
    "texts": ('uprobe:{P}:step_one {{ $s = str(arg1); printf("%d %d %d\\n", strlen($s), strncmp($s, "al", 2), '
              'strcontains($s, "eta")); }}'),
    "conversions": ('uprobe:{P}:step_one {{ printf("%s %s %d %d\\n", ntop((uint32)arg0), macaddr(arg1), bswap((uint16)arg0), '
                    'bswap((uint32)arg0)); @[ntop((uint32)(arg0 % 3))] = count(); @e[strerror(arg0 % 4)] = count(); }}'),
    "records_and_blocks": ("uprobe:{P}:step_one {{ $r = (n=arg0, name=str(arg1)); print($r); @[$r.n % 2] = count(); "
                           '@k = if arg0 > 20 {{ "late" }} else {{ "early" }}; @b = {{ $x = arg0; $x * 2 }}; @r = $r; }}'),
    "macros": ("macro add(a, b) {{ a + b }} macro note(@m, k) {{ @m[k] = count(); }} "
               "uprobe:{P}:step_one {{ note(@n, arg0 % 3); @s = sum(add(arg0, add(1, 2))); }}"),
    "open_ranges": "uprobe:{P}:step_one {{ for ($i : 0..(arg0 % 5)) {{ @s = sum($i); @n++; }} }}",
    "loops": ("uprobe:{P}:step_one {{ $n = 0; for ($i : 0..arg0) {{ for ($j : 0..$i) {{ if ($j == 3) {{ break; }} $n++; }} }} "
              "$k = 0; while ($k * $k < arg0) {{ $k++; }} @[arg0] = $n * 1000 + $k; for ($i : 0..500) {{ if ($i == arg0) {{ @r = $i; return; }} }} }}"),
    "walks": ("uprobe:{P}:step_one {{ @x[arg0 % 4, str(arg1)] = arg0; @c[arg0 % 3] = count(); if (arg0 == 30) {{ for ($kv : @x) {{ "
              "@keys[$kv.0.1] = $kv.1 + $kv.0.0 + arg0; if ($kv.0.0 == 2) {{ delete(@x, $kv.0); }} }} for ($kv : @c) {{ @sum += $kv.1; }} "
              "@len = len(@x); for ($kv : @x) {{ if ($kv.0.0 == 1) {{ @one = $kv.1; break; }} }} }} }} "
              "END {{ for ($kv : @c) {{ @end[$kv.0] = $kv.1 * 2; }} @n = len(@c); }}"),
    "copies": ("struct pair {{ int left; long right; }};\nuprobe:{P}:step_two {{ $p = (struct pair *)arg1; @last = *$p; @[*$p] = count(); "
               "print(*$p); print((1, *$p)); @same = @last == *$p; @left = @last.left; }}"),
    "booleans": ('uprobe:{P}:step_one {{ @[arg0 > 20, arg0 % 2 == 0] = count(); @last = arg0 == 39; print((true, arg0 > 30, !arg0)); '
                 'printf("%d\\n", arg0 > 5); @had[has_key(@d, arg0 % 5)] = count(); @d[arg0 % 5] = true; @gone[delete(@d, 3)] = count(); }}'),
    "finding": ('uprobe:{P}:step_one {{ printf("%d %s\\n", strstr(str(arg1), "a"), ntop(pton("10.1.2.3"))); @m[arg0] = arg0 * 2; let $v; '
                'if (find(@m, arg0 - 1, $v)) {{ @f = sum($v); }} }}'),
    "functions": ("fn twice($n : int64) : int64 {{ $n += $n; return $n; }} fn note($k : int64, $s : string) {{ @by[$k, $s] = count(); }} "
                  "uprobe:{P}:step_one {{ @s = sum(twice(arg0)); note(arg0 % 3, str(arg1)); @last = twice(twice(arg0) + 1); }}"),
    "macros_of_c": "#define DOUBLE(x) ((x) * 2)\nuprobe:{P}:step_one {{ @s = sum(DOUBLE(arg0 + 1)); }}",
    "aggregations_read": ("uprobe:{P}:step_one {{ @c = count(); @s[arg0 % 3] = sum(arg0); @m = min((int32)arg0 - 7); @a = avg(arg0); "
                          'if (@c % 10 == 0) {{ printf("%d %d %d %d\\n", @c, @s[1], @m, @a); }} }}'),
    "fine_histograms": "uprobe:{P}:step_one {{ @h = hist(arg0, 2); @k[arg0 % 2] = hist(arg0 * 100, 5); }}",
    "settings": ("config = {{ max_strlen = 16; print_maps_on_exit = false }} "
                 'uprobe:{P}:step_one {{ printf("%s\\n", str(arg1)); @n = count(); }}'),
    "defines": ("#define LIMIT (5 * 2)\n#if LIMIT > 3\n#define NAME \"few\"\n#endif\n"
                "uprobe:{P}:step_one /arg0 < LIMIT/ {{ @[NAME] = count(); }}"),
    "used_behind_its_block": 'uprobe:{P}:step_one {{ if (arg0 > 20) {{ $x = arg0; }} @x[$x] = count(); }}',
    "maps_in_order": "uprobe:{P}:step_one {{ @[arg0 % 7, str(arg1)] = count(); @v[arg0] = arg0 * arg0; }}",
}


def normalised(text):
    """What may differ between two runs: pids, addresses, times; and how a run ended."""
    text = re.sub(r"0x[0-9a-f]{6,}", "ADDRESS", text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def output_of(engine, script, program, extra=(), prefix=()):
    result = spile("-q", "--engine", engine, *extra, "-e", script, "-c", program, prefix=prefix)
    check("exit-status", result.status == 0, result.report())
    return result


@functools.cache
def kernel_can_carry(program):
    result = spile("-q", "--engine", "kernel", "-e", f"uprobe:{program}:many {{ @ = count(); }}", "-c", program)
    if result.status != 0:
        raise Skip(f"no kernel engine here: {result.err.strip()}")


class Work:
    """The compiled programs, once for all cases."""
    program = None  # ends by itself
    busy = None     # works until it is killed


def same(name, extra=()):
    user = output_of("user", SCRIPTS[name].format(P=Work.program), Work.program, extra)
    kernel = output_of("kernel", SCRIPTS[name].format(P=Work.program), Work.program, extra)
    # Hits between exit() and the detach may still be printed: they are not compared.
    until_exit = lambda text: re.sub(r"(?s)(?<=^hit 5\n).*", "", text, flags=re.M) if name == "exit_at_a_hit" else text
    without_own_line = lambda run_: normalised(until_exit(re.sub(r"^sum=-?\d+\n", "", run_.out, flags=re.M)))
    check("hits-happened", re.search(r"\S", without_own_line(user)), user.report())
    check("same-on-both-engines",
          sorted_if_racing(without_own_line(user)) == sorted_if_racing(without_own_line(kernel)),
          f"user engine:\n{user.report()}\nkernel engine:\n{kernel.report()}")


def sorted_if_racing(text):
    """The target's output and the trace's share a stream: empty lines between them fall where they may."""
    return "\n".join(line for line in text.splitlines() if line)


def case_of(name):
    def case():
        kernel_can_carry(Work.program)
        same(name)
    case.__name__ = name
    return case


def json_lines():
    kernel_can_carry(Work.program)
    for name in ("count", "histograms", "keyed_by_string", "figures", "begin_and_end"):
        same(name, ("-f", "json"))


def every_script_hits_what_it_should():
    """Known figures: two engines that agree on nonsense would not pass."""
    for engine in ("user", "kernel"):
        if engine == "kernel":
            kernel_can_carry(Work.program)
        out = output_of(engine,
                        "uprobe:{P}:step_one {{ @c = count(); @s = sum(arg0); @[str(arg1)] = count(); }}".format(P=Work.program), Work.program)
        for line in ("@c: 40", "@s: 780", "@[alpha]: 10", "@[]: 10",
                     "@[a name that is longer than the others by far]: 10"):
            check("exact-count", line in out.out.splitlines(), f"{line} is missing\n{out.report()}")


def neither_makes_the_others_system_calls():
    need_root()
    need_tool("strace")
    with temporary_directory() as directory:
        calls = {}
        for engine in ("user", "kernel"):
            if engine == "kernel":
                kernel_can_carry(Work.program)
            trace = os.path.join(directory, engine)
            result = traced(engine, trace)
            check("hits-happened", re.search(r"@: [1-9]", result.out), result.report())
            with open(trace, encoding="utf-8", errors="replace") as file:
                calls[engine] = set(re.findall(r"\b(bpf|perf_event_open|ptrace)\(", file.read()))
        check("own-calls-only", calls["user"] == {"ptrace"}, f"the user engine called {calls['user']}")
        check("own-calls-only", "ptrace" not in calls["kernel"] and "bpf" in calls["kernel"],
              f"the kernel engine called {calls['kernel']}")


def traced(engine, trace):
    """A busy process under -p: strace could not follow a child that spile traces."""
    with Process([Work.busy]) as busy:
        return run(["strace", "-f", "-qq", "-o", trace, "-e", "trace=bpf,perf_event_open,ptrace", SPILE, "-q",
                    "--engine", engine, "-e",
                    f"uprobe:{Work.busy}:many {{ @ = count(); }} interval:ms:200 {{ exit(); }}", "-p", busy.pid],
                    seconds=60)


def all_cases():
    with temporary_directory() as directory:
        Work.program = compile_program(directory, "work", WORK, flags=("-O2", "-g"))
        Work.busy = compile_program(directory, "busy",
                                    WORK.replace("for (long i = 0; i < 40; i++)",
                                                 "for (long i = 0; i >= 0; i = (i + 1) % 1000)"))
        main([case_of(name) for name in SCRIPTS] + [json_lines, every_script_hits_what_it_should,
                                                    neither_makes_the_others_system_calls], 120)


if __name__ == "__main__":
    all_cases()
