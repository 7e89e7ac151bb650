#!/usr/bin/env python3
"""Every builtin variable, function and aggregation of the language: one row each, a script and the lines that it must print, on the engines that carry it.

The program makes ten known calls, so that every figure is known. The user engine refuses in words what only the kernel has. Names of functions may be
addresses in the kernel engine: its process may have ended before anybody saw its files."""
import re

from harness import Skip, check, need_root
from tracing import check_status, compile_program, main, spile, temporary_directory

WORK = r"""
#include <stdio.h>
struct pair { int left; long right; };
unsigned counter_of_calls = 1000;
char long_text[1200] = "begins";
long wide = 0x1122334455667788;
char *words[] = {"one", "two", "three", 0};
unsigned char hardware[6] = {0xde, 0xad, 0xbe, 0xef, 0, 1};
unsigned char internet[4] = {10, 1, 2, 3}, internet6[16] = {0xfe, 0x80, [15] = 1};
__attribute__((noinline)) long step(long n, const char *name, struct pair *pair, char **list, void *memory) {
  __asm__ volatile("" : : "r"(list), "r"(memory) : "memory");
  counter_of_calls++;
  return n * 2 + name[0] + pair->right;
}
__attribute__((noinline)) int twice(int n) { __asm__ volatile("" ::: "memory"); return n * 2; }
int main(void) {
  static const char *names[] = {"alpha", "beta"};
  long sum = 0;
  for (int i = 0; i < 2; i++) sum += *(volatile const char *)names[i] - names[i][0];
  for (int i = 0; words[i]; i++) sum += *(volatile const char *)words[i] - words[i][0];
  sum += *(volatile unsigned char *)hardware + *(volatile unsigned char *)internet + *(volatile unsigned char *)internet6;
  sum += *(volatile long *)&wide;
  for (int i = 6; i < 1100; i++) long_text[i] = '0' + i % 10;
  for (long i = 0; i < 10; i++) {
    struct pair pair = {(int)i, i * i};
    void *memory[] = {hardware, internet, internet6};
    sum += step(i, names[i % 2], &pair, words, memory[i % 3]) + twice((int)i);
  }
  return sum == 0;
}
"""

BOTH, KERNEL = ("user", "kernel"), ("kernel",)

# name: (engines, what follows `uprobe:PROGRAM:step`, patterns of whole lines). {P}: the program.
ROWS = {
    # builtin variables
    "pid tid comm": (BOTH, "{{ @[pid == tid, comm] = count(); }}", [r"@\[true, known_functions?\]: 10"]),
    "pid(init) tid(init)": (BOTH, "{{ @[pid(init) == pid, tid(curr_ns) == tid] = count(); }}", [r"@\[true, true\]: 10"]),
    "nsecs": (BOTH, "{{ @[nsecs(boot) + 1h > nsecs, nsecs + 1h > nsecs(monotonic), nsecs(tai) > nsecs, nsecs(sw_tai) > nsecs] = count(); }}",
              [r"@\[true, true, true, true\]: 10"]),
    "elapsed": (BOTH, "{{ @[elapsed < nsecs] = count(); }}", [r"@\[true\]: 10"]),
    "cpu ncpus": (BOTH, "{{ @[cpu < ncpus] = count(); }}", [r"@\[true\]: 10"]),
    "uid gid username": (BOTH, "{{ @[uid, gid, username] = count(); }}", [r"@\[0, 0, root\]: 10"]),
    "func probe probetype": (BOTH, "{{ @[func, probe, probetype] = count(); }}", [r"@\[step, uprobe:{P}:step, uprobe\]: 10"]),
    "as calls": (BOTH, "{{ @[pid() == pid, probetype(), func()] = count(); }}", [r"@\[true, uprobe, step\]: 10"]),
    "arg0 to arg5": (BOTH, "{{ @[arg0 < 10] = count(); @s = sum(arg0); }}", [r"@\[true\]: 10", "@s: 45"]),
    "args": (BOTH, "{{ @s = sum(args.n); @[str(args.name)] = count(); @r = sum(args.pair->right); }}", [r"@\[alpha\]: 5", "@s: 45", "@r: 285"]),
    "retval": (BOTH, "{{ @c = count(); }} uretprobe:{P}:twice {{ @r = sum(retval); }}", ["@r: 90"]),
    "usermode": (BOTH, "{{ @[usermode] = count(); }}", [r"@\[1\]: 10"]),
    "ustack": (BOTH, "{{ @[ustack(1)] = count(); @p[ustack(perf, 1)] = count(); @r[ustack(raw, 1)] = count(); }}", [r" +(step\+0|0x[0-9a-f]+)", r"\s+[0-9a-f]+ .*", r"\s*[0-9a-f]{{6,}}", r"\]: 10"]),
    "has_cpid": (BOTH, "{{ @[has_cpid] = count(); }}", [r"@\[true\]: 10"]),
    "cpid": (KERNEL, "{{ @[cpid == pid] = count(); }}", [r"@\[true\]: 10"]),
    "curtask ppid pcomm": (KERNEL, "{{ @[curtask != 0, ppid == ppid(curtask), pcomm, pcomm(curtask)] = count(); }}", [r"@\[true, true, spile.*, spile.*\]: 10"]),
    "leader_tid leader_comm": (KERNEL, "{{ @[leader_tid == pid, leader_comm == comm] = count(); }}", [r"@\[true, true\]: 10"]),
    "cgroup rand numaid jiffies": (KERNEL, "{{ @[cgroup > 0, rand >= 0, numaid < 1024, jiffies > 0] = count(); }}", [r"@\[true, true, true, true\]: 10"]),
    "$1 $#": (BOTH, '/arg0 == 0/ {{ printf("%d %s %d\\n", $1, str($2), $#); }}', ["7 seven 2"]),
    # functions
    "printf": (BOTH, '/arg0 == 9/ {{ printf("%d|%5d|%-5d|%05d|%x|%#x|%o|%c|%s|%10s|%-6s|%%|%lld|%u\\n", arg0, arg0, arg0, arg0, 255, 255, 8, 65, '
               '"t", "right", "left", -1, 7); }}', [r"9\|    9\|9    \|00009\|ff\|0xff\|10\|A\|t\|     right\|left  \|%\|-1\|7"]),
    "print": (BOTH, '/arg0 == 3/ {{ print(arg0); print("text"); print((1, "a", (2, true))); print((n=arg0, s="x")); print(*(struct pair *)arg2); @m[1] = 2; print(@m[1]); '
              "print(@m); }}", ["3", "text", r"\(1, a, \(2, true\)\)", r"\{{ .n = 3, .s = x \}}", r"\{{ .left = 3, .right = 9 \}}", "2", r"@m\[1\]: 2"]),
    "print top div": (BOTH, "{{ @m[arg0] = arg0 * 100; }} END {{ print(@m, 2); print(@m, 1, 100); clear(@m); }}", [r"@m\[8\]: 800", r"@m\[9\]: 900", r"@m\[9\]: 9"]),
    "clear zero delete has_key": (BOTH, '{{ @c[arg0] = 1; @z[arg0] = arg0; @d[arg0] = 1; if (arg0 == 9) {{ delete(@d, 3); delete(@d[4]); '
                                  '@h[has_key(@d, 3), has_key(@d, 5), delete(@d, 77)] = count(); }} }} END {{ clear(@c); zero(@z); print(@c); }}',
                                  [r"@h\[false, true, false\]: 1", r"@d\[5\]: 1", r"@z\[9\]: 0", r"-@c\[.*", r"-@d\[[34]\].*"]),
    "delete of a scalar": (BOTH, "{{ @x = arg0; @n = count(); delete(@x); }}", ["@n: 10", "-@x: .*"]),
    "len find": (BOTH, '{{ @m[arg0] = arg0 + 1; let $v; if (arg0 == 9) {{ @l = len(@m); @f[find(@m, 4, $v), $v] = count(); @g[find(@m, 44, $v), $v] = count(); }} }}',
                 ["@l: 10", r"@f\[true, 5\]: 1", r"@g\[false, 5\]: 1"]),
    "str": (BOTH, '{{ @[str(arg1), str(arg1, 3)] = count(); }}', [r"@\[alpha, alp\]: 5", r"@\[beta, bet\]: 5"]),
    "buf": (BOTH, '/arg0 == 0/ {{ printf("%r %rx %rh\\n", buf(arg4, 6), buf(arg4, 2), buf(arg4, 2)); @b = buf(arg1, 3); }}',
            [r"\\xde\\xad\\xbe\\xef\\x00\\x01 \\xde\\xad de ad", "@b: alp"]),
    "join": (BOTH, '/arg0 == 0/ {{ join(arg3); join(arg3, "+"); }}', ["one two three", r"one\+two\+three"]),
    "time strftime": (BOTH, '/arg0 == 0/ {{ time("at %H:%M:%S\\n"); printf("%s\\n", strftime("on %Y %f %k %l", nsecs)); @[strftime("%C", nsecs)] = count(); }}',
                      [r"at \d\d:\d\d:\d\d", r"on 2\d{{3}} \d{{6}} \d{{9}} \d{{3}}", r"@\[20\]: 1"]),
    "ntop pton": (BOTH, '/arg0 < 3/ {{ if (arg0 == 1) {{ @a = ntop(*(uint32 *)arg4); }} @p[ntop(pton("10.1.2.3")), '
                  'ntop(pton("::1"))] = count(); @n[ntop(2, 16777343)] = count(); }}', ["@a: 10.1.2.3", r"@p\[10.1.2.3, ::1\]: 3", r"@n\[127.0.0.1\]: 3"]),
    "bswap": (BOTH, '/arg0 == 0/ {{ printf("%x %x %x %llx\\n", bswap((uint8)1), bswap((uint16)0x102), bswap((uint32)0x1020304), bswap((uint64)1)); }}',
              ["1 201 4030201 100000000000000"]),
    "macaddr": (BOTH, "/arg0 == 0/ {{ @[macaddr(arg4)] = count(); }}", [r"@\[DE:AD:BE:EF:00:01\]: 1"]),
    "kaddr ksym": (BOTH, '/arg0 == 0/ {{ printf("%s %d\\n", ksym(kaddr("vfs_read")), kaddr("vfs_read") > 0); }}', ["vfs_read 1"]),
    "usym reg": (BOTH, '{{ @[usym(reg("ip")), reg("di") == arg0] = count(); }}', [r"@\[(step|0x[0-9a-f]+), true\]: 10"]),
    "uaddr": (BOTH, '{{ @c[*uaddr("counter_of_calls") - arg0] = count(); @w = *uaddr("wide"); @p = str(*uaddr("words")); @t = usym(uaddr("twice")); }}',
              [r"@c\[1000\]: 10", "@w: 1234605616436508552", "@p: one", r"@t: (twice|0x[0-9a-f]+)"]),
    "exit": (BOTH, '{{ printf("hit %d\\n", arg0); if (arg0 == 4) {{ exit(3); }} }} END {{ printf("end\\n"); }}', ["hit 4", "end", "=3"]),
    "cat": (BOTH, '/arg0 == 0/ {{ cat("{P}.text"); cat("{P}.%s", "text"); }}', ["of a file"]),
    "system": (BOTH, '/arg0 == 2/ {{ system("echo %d", arg0); }}', ["2"]),
    "cgroupid cgroup_path": (BOTH, '/arg0 == 0/ {{ printf("[%s] %d\\n", cgroup_path(1, "none"), cgroupid("/sys/fs/cgroup") > 0); @[cgroup_path(1, "unif*")] = count(); }}',
                             [r"\[\] 1", r"@\[unified:/\]: 1"]),
    "strerror signal_name syscall_name": (BOTH, '/arg0 == 0/ {{ print((strerror(2), signal_name(9), syscall_name(257))); @[strerror(1)] = count(); @s[syscall_name(arg0)] = count(); }}',
                                          [r"\(No such file or directory, SIGKILL, openat\)", r"@\[Operation not permitted\]: 1", r"@s\[read\]: 1"]),
    "strlen strcap": (BOTH, '{{ @[strlen(str(arg1)), strlen("four"), strcap(str(arg1, 8)), strlen((int8 *)arg1)] = count(); }}', [r"@\[5, 4, 9, 5\]: 5", r"@\[4, 4, 9, 4\]: 5"]),
    "strstr strcontains": (BOTH, '{{ $s = str(arg1); @[strstr($s, "et"), strcontains($s, "lph")] = count(); }}', [r"@\[1, false\]: 5", r"@\[-1, true\]: 5"]),
    "strncmp memcmp": (BOTH, '{{ $s = str(arg1); @[strncmp($s, "alto", 2), memcmp($s, "alpha", 3) == 0, memcmp($s, "b", 1)] = count(); }}',
                       [r"@\[0, true, -1\]: 5", r"@\[1, false, 0\]: 5"]),
    "memcmp of structs": (BOTH, "{{ $p = (struct pair *)arg2; @[memcmp(*$p, *$p, 16)] = count(); @first = *$p; @d[memcmp(*$p, @first, 4)] = count(); }}", [r"@\[0\]: 10", r"@d\[0\]: 10"]),
    "errorf warnf": (BOTH, '/arg0 == 1/ {{ errorf("bad %d", arg0); warnf("odd %s", "one"); @n = count(); }}', ["@n: 1", r"!.*ERROR: bad 1", r"!.*WARNING: odd one"]),
    "assert": (BOTH, '{{ assert(arg0 < 2, "too much"); @n = count(); }}', ["@n: .*", "!.*ERROR: too much", "=1"]),
    "static_assert fail comptime": (BOTH, '{{ static_assert(sizeof(uint32) == 4, "no"); if comptime (1 == 2) {{ fail("never"); }} @n = count(); }}', ["@n: 10"]),
    "is_*": (BOTH, '/arg0 == 0/ {{ print((is_str("a"), is_str(1), is_ptr((int8 *)1), is_integer(arg0), is_array(pton("1.1.1.1")), is_literal(1), is_unsigned_integer(arg0))); '
             "print((is_err((uint64)-2), is_err(arg1))); }}", [r"\(true, false, true, true, true, true, true\)", r"\(true, false\)"]),
    "getopt": (BOTH, '/arg0 == 0/ {{ printf("%d %s %d\\n", getopt("n", 1), getopt("s", "none"), getopt("b")); }}', ["1 none 0"]),
    "kptr uptr": (BOTH, "{{ @[str(uptr(arg1))] = count(); @k = kptr(arg0) == arg0; }}", [r"@\[beta\]: 5", "@k: true"]),
    "default_str_length": (BOTH, "/arg0 == 0/ {{ print(default_str_length()); }}", ["128"]),
    "kfunc_exist": (BOTH, '/arg0 == 0/ {{ print((kfunc_exist("vfs_read"), kfunc_exist("no_such_function"))); }}', [r"\(true, false\)"]),
    "percpu_kaddr": (KERNEL, '{{ @[((struct rq *)percpu_kaddr("runqueues"))->cpu == cpu, ((struct rq *)percpu_kaddr("runqueues", 0))->cpu, '
                     'percpu_kaddr("runqueues", 100000) == 0] = count(); }}', [r"@\[true, 0, true\]: 10"]),
    "sizeof offsetof": (BOTH, "/arg0 == 0/ {{ print((sizeof(struct pair), offsetof(struct pair, right), sizeof(uint16))); }}", [r"\(16, 8, 2\)"]),
    # maps and aggregations
    "@++ += --": (BOTH, "{{ @a++; ++@b; @c += arg0; @d--; @e[arg0 % 2]++; @f[1] -= 2; @g |= 1 << arg0; }}", ["@a: 10", "@b: 10", "@c: 45", "@d: -10", r"@e\[1\]: 5", r"@f\[1\]: -20", "@g: 1023"]),
    "count sum min max avg": (BOTH, "{{ @c = count(); @s = sum(arg0); @i = min(arg0 + 3); @x = max(arg0); @a = avg(arg0 * 10); @n = sum(-arg0); @k[arg0 % 2] = avg(arg0); }}",
                              ["@c: 10", "@s: 45", "@i: 3", "@x: 9", "@a: 45", "@n: -45", r"@k\[1\]: 5"]),
    "stats": (BOTH, "{{ @s = stats(arg0); @k[arg0 % 2] = stats(arg0); }}", [r"@s: \{{ .count = 10, .average = 4, .total = 45 \}}", r"@k\[1\]: \{{ .count = 5, .average = 5, .total = 25 \}}"]),
    "hist": (BOTH, "{{ @h = hist(arg0); @k[str(arg1)] = hist(arg0); @f = hist(arg0, 2); }}",
             ["@h:", r"@k\[beta\]:", r"\[0\] +1 \|@.*\|", r"\[4, 8\) +4 \|@{{52}}\|", r"\[8, 16\) +2 \|@{{26}} +\|", r"\[8, 10\) +2 .*"]),
    "lhist": (BOTH, "{{ @l = lhist(arg0, 2, 8, 3); @k[arg0 % 2] = lhist(arg0, 0, 10, 5); }}",
              [r"\(..., 2\) +2 .*", r"\[2, 5\) +3 \|@{{52}}\|", r"\[8, ...\) +2 .*", r"@k\[1\]:", r"\[5, 10\) +3 .*"]),
    "tseries": (BOTH, '{{ @t = tseries(arg0, 1000d, 4); @s = tseries(arg0, 1000d, 4, "sum"); @a[arg0 % 2] = tseries(arg0, 1000d, 4, "avg"); '
                '@i = tseries(arg0 + 3, 1000d, 4, "min"); @x = tseries(arg0, 1000d, 4, "max"); @d[arg0] = tseries(1, 1000d, 4); delete(@d, arg0); }}',
                ["@t:", "hh:mm:ss +\\|_+\\|", r"\d\d:\d\d:\d\d \* +\| 9", r"\d\d:\d\d:\d\d \* +\| 45", r"@a\[1\]:", r"\d\d:\d\d:\d\d \* +\| 5", r"\d\d:\d\d:\d\d \* +\| 3", r"-@d.*"]),
    "reading": (BOTH, "{{ @c = count(); @s = sum(arg0); @i = min(arg0 + 3); @x = max(arg0); @a = avg(arg0); @t = stats(arg0 * 2); "
                'if (@c == 10) {{ printf("%d %d %d %d %d %d\\n", @c, @s, @i, @x, @a, @t); @z = (int64)@t; }} }}', ["10 45 3 9 4 9", "@z: 9"]),
    "walks": (BOTH, "{{ @m[arg0] = arg0; @c[arg0 % 2] = count(); if (arg0 == 9) {{ for ($kv : @m) {{ @s += $kv.0 + $kv.1; }} for ($kv : @c) {{ @n += $kv.1; }} }} }}", ["@s: 90", "@n: 10"]),
    "declared maps": (BOTH, "{{ @h[arg0] = 1; @p[arg0 % 2] = count(); }} END {{ print((len(@h), len(@p))); clear(@h); }}", [r"\(4, 2\)", r"@p\[1\]: 5"]),
    "keys of every sort": (BOTH, '{{ @[arg0 % 2, str(arg1), (1, "x"), *(struct pair *)arg2] = count(); @b[buf(arg1, 2)] = count(); @t[true, comm] = count(); @p[(int8 *)1] = count(); }}',
                           [r"@\[1, beta, \(1, x\), \{{ .left = 9, .right = 81 \}}\]: 1", r"@b\[al\]: 5", r"@t\[true, .*\]: 10", r"@p\[0x1\]: 10"]),
}

# What stands before the probe.
BEFORE = {"declared maps": "let @h = hash(4); let @p = percpuhash(8); ", "memcmp of structs": "", "uaddr": ""}
STRUCTS = "struct pair {{ int left; long right; }};\n"

# What no engine carries, or none that runs here: refused in words, by name.
REFUSED = {
    'debugf("x")': "debugf", "dw_ustack()": "dw_ustack", "write_user(arg0, 1)": "write_user", "print(path(arg0))": "path",
    'skboutput("f", arg0, 1, 0)': "skboutput", "print(socket_cookie(arg0))": "socket_cookie", "unwatch(arg0)": "unwatch",
    'print(kfunc_allowed("f"))': "kfunc_allowed", "print(comm(1))": "comm", 'print(globmatch("a", "b"))': "globmatch", "print(len(ustack))": "len",
    'printf("%gr", 1)': "%gr", "print(strcap(1))": "strcap",
}


class Work:
    program = None


def script_of(name):
    _, body, _ = ROWS[name]
    uses_pair = "struct pair" in body
    return ((STRUCTS if uses_pair else "") + BEFORE.get(name, "") + "uprobe:{P}:step " + body).format(P=Work.program)


def run_row(name, engine):
    return spile("-q", "--unsafe", "--engine", engine, "-e", script_of(name), "-c", Work.program, "7", "seven") if name != "getopt" else \
        spile("-q", "--engine", engine, "-e", script_of(name), "-c", Work.program)


def check_row(name, engine):
    engines, _, patterns = ROWS[name]
    result = run_row(name, engine)
    if engine not in engines:
        check("refusal-in-words", result.status == 1 and "only the kernel has this" in result.err, f"{name} ({engine})\n{result.report()}")
        return
    status, lines, errors = 0, [line.rstrip() for line in result.out.splitlines()], result.err.splitlines()
    for pattern in patterns:
        pattern = pattern.format(P=re.escape(Work.program)).rstrip()
        if pattern.startswith("="):
            status = int(pattern[1:])
        elif pattern.startswith("-"):
            check("not-printed", not any(re.fullmatch(pattern[1:], line) for line in lines), f"{name} ({engine}): {pattern}\n{result.report()}")
        else:
            where = errors if pattern.startswith("!") else lines
            check("printed", any(re.fullmatch(pattern.lstrip("!"), line) for line in where), f"{name} ({engine}): {pattern}\n{result.report()}")
    check_status(result, status)


def is_here(name):
    """A kernel may list functions alone among its symbols, and a container have no cgroup2."""
    needs = {"cgroupid cgroup_path": ("/proc/self/mounts", " cgroup2 "), "percpu_kaddr": ("/proc/kallsyms", " runqueues\n")}
    if name not in needs:
        return True
    path, word = needs[name]
    with open(path, encoding="utf-8") as file:
        return word in file.read()


def rows_on(engine):
    failed = []
    for name in filter(is_here, ROWS):
        try:
            check_row(name, engine)
        except Exception as fault:  # pylint: disable=broad-except
            failed.append(f"{name}: {fault}")
    check("every-row", not failed, "\n".join(failed))


def every_row_on_the_user_engine():
    rows_on("user")


def every_row_on_the_kernel_engine():
    need_root()
    works = spile("-q", "--engine", "kernel", "-e", f"uprobe:{Work.program}:step {{ @ = count(); }}", "-c", Work.program)
    if works.status != 0:
        raise Skip(f"no kernel engine here: {works.err.strip()}")
    rows_on("kernel")


def clears_that_find_the_ring_full_are_done():
    """What carries values may be lost; what says "do this to the map" is done, also where the ring has been full for long."""
    script = ('uprobe:{P}:step {{ @c[arg0] = 1; @z = count(); @p = 5; for ($i : 0..3000) {{ printf("%d %s\\n", $i, str(arg1)); }} '
              "if (arg0 == 9) {{ print(@p); clear(@c); zero(@z); }} }}").format(P=Work.program)
    for engine in ("user", "kernel"):
        result = spile("-q", "--engine", engine, "-e", script, "-c", Work.program, env={"BPFTRACE_PERF_RB_PAGES": "1"})
        if engine == "kernel" and result.status != 0:
            raise Skip(f"no kernel engine here: {result.err.strip()}")
        check_status(result, 0)
        lines = result.out.splitlines()
        check("cleared", not any(line.startswith("@c[") for line in lines), result.report()[-2000:])
        check("zeroed", "@z: 0" in lines, result.report()[-2000:])
        check("printed", lines.count("@p: 5") == 2, f"{lines.count('@p: 5')}\n{result.report()[-2000:]}")
        check("the-ring-was-full", re.search(r"[1-9]\d* records lost", result.err), result.err)


def long_strings_and_many_keys():
    """A string of 1,024 bytes goes straight into a record. As a key it has no room on a program's stack, which is said with its place."""
    text = "begins" + "".join(str(i % 10) for i in range(6, 1100))
    keys = 30000
    for engine in ("user", "kernel"):
        traced = lambda script, **env: spile("-q", "--engine", engine, "-e", f"uprobe:{Work.program}:step /arg0 == 0/ {{ {script} }}", "-c", Work.program, env=env)
        result = traced('$p = uaddr("long_text"); printf("%s|%s\\n", str($p), str($p)); print((1, str($p)));', BPFTRACE_MAX_STRLEN="1024")
        if engine == "kernel" and result.status != 0 and "uprobe" in result.err:
            raise Skip(f"no kernel engine here: {result.err.strip()}")
        check_status(result, 0)
        check("printed", f"{text[:1023]}|{text[:1023]}\n(1, {text[:1023]})\n" in result.out, result.report())
        refused = traced('@[str(uaddr("long_text"))] = count();', BPFTRACE_MAX_STRLEN="1024")
        check("refusal-in-words", refused.status == 1 and re.search(r"^stdin:1:1-\d+: ERROR: .* bytes of stack are needed, eBPF has 512", refused.err, re.M), refused.report())
        many = traced(f"for ($i : 0..{keys}) {{ @k[$i, $i % 7] = $i; }} @n = len(@k); clear(@k);", BPFTRACE_MAX_MAP_KEYS=str(keys))
        check_status(many, 0)
        check("exact-count", many.out.split() == ["@n:", str(keys)], many.report())


def what_is_not_built_is_refused_by_name():
    for code, word in REFUSED.items():
        result = spile("-e", f"uprobe:{Work.program}:step {{ {code}; }}", "-c", Work.program)
        check("refusal-in-words", result.status == 1 and word in result.err and "ERROR" in result.err, f"{code}\n{result.report()}")


if __name__ == "__main__":
    with temporary_directory() as directory:
        Work.program = compile_program(directory, "known_function", WORK, flags=("-O1", "-g"))
        with open(Work.program + ".text", "w", encoding="utf-8") as text:
            text.write("of a file\n")
        main([every_row_on_the_user_engine, every_row_on_the_kernel_engine, clears_that_find_the_ring_full_are_done, long_strings_and_many_keys, what_is_not_built_is_refused_by_name], 150)
