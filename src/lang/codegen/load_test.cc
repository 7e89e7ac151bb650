// Every construct of the language goes through our checker and, where permitted, the kernel's
// verifier.
#include <gtest/gtest.h>

#include "bpf/checker.h"
#include "bpf/disasm.h"
#include "lang/codegen/test_compile.h"
#include "lang/codegen/test_kernel.h"
#include "lang/codegen/test_machine.h"

namespace spile::lang {
namespace {

const char* const kScripts[] = {
    "uretprobe:libc:fopen /arg1 != 0/ { @[arg0, arg5, func] = hist(duration); printf(\"%s %d\\n\", "
    "str(arg0), duration / 1000); }",
    "uprobe:libc:fopen, uretprobe:libc:fopen { @[arg0] = count(); }",
    // Probes and contexts.
    "BEGIN { exit(); }",
    "BEGIN { }",
    "END { printf(\"done\\n\"); }",
    "interval:ms:100 { @ = count(); }",
    "uprobe:libc:fopen { @ = count(); }",
    "uprobe:libc:f* { @[func] = count(); }",
    "kprobe:vfs_read { @[probe] = count(); }",
    "kretprobe:vfs_read { @[retval < 0] = count(); }",
    "uretprobe:libc:fopen { @[retval == 0] = count(); @f[func, probe] = count(); }",
    "tracepoint:sched:sched_switch { @[args.prev_comm, args.next_pid] = count(); }",
    "tracepoint:sched:sched_process_exec { printf(\"%s %d\\n\", args.filename, args->pid); }",
    "tracepoint:sched:sched_process_exec { @[args.filename] = count(); }",
    "tracepoint:syscalls:sys_enter_openat { printf(\"%s %s\\n\", comm, str(args.filename)); }",
    "tracepoint:syscalls:sys_enter_* { @[probe] = count(); }",
    "tracepoint:odd:packed { @ = sum(args.unaligned); @s = args.small; @f[args.flag] = count(); }",
    "BEGIN, END, interval:s:1 { printf(\"%s\\n\", probe); }",
    "kprobe:vfs_read, kretprobe:vfs_read, tracepoint:sched:sched_switch { @[probe, pid] = count(); "
    "}",
    "kretprobe:vfs_read /arg2 > 0/ { @[arg2, retval, func] = hist(duration); }",
    "profile:hz:99 { @[pid, comm, probe] = count(); @s[kstack, ustack] = count(); @i = "
    "reg(\"ip\"); }",
    "software:page-faults:1 { @[comm] = count(); } hardware:cycles { @h = count(); }",
    "watchpoint:0x1000:8:w { @[reg(\"ax\")] = count(); }",
    "rawtracepoint:sched_switch { @[args.preempt, (uint64)args.prev & 0xfff, arg1 * 3] = count(); "
    "}",
    "fentry:vfs_open { printf(\"%d %s %s\\n\", args.fd, str(args.name), func); @[arg1] = count(); "
    "}",
    "fexit:vfs_open { @[args.fd, retval < 0, probe] = count(); }",
    "iter:task { @[ctx.task] = count(); }",
    "usdt:redis-server:query_start { printf(\"%d %d %s\\n\", arg0, arg1, probe); }",
    "usdt:redis-server:query_done { @[arg0] = sum(arg1); }",
    // The examples that everybody starts with.
    "uprobe:libc:fopen { printf(\"fopen: %s\\n\", str(arg0)); }",
    "kprobe:do_sys_openat2 { printf(\"hit %s %s\\n\", comm, str(arg1)); }",
    "kprobe:vfs_read { @start[tid] = nsecs; } kretprobe:vfs_read /@start[tid]/ { @ns[comm] = "
    "hist(nsecs - @start[tid]); delete(@start[tid]); }",
    "kprobe:vfs_read /comm == \"python3\" && arg2 > 100/ { @ = lhist(arg2, 0, 10000, 100); }",
    "uprobe:libc:malloc { @ = hist(arg0); @m = max(arg0); @n = min(arg0); @a = avg(arg0); @s = "
    "sum(arg0); @c = count(); }",
    "uprobe:libc:malloc { @h[comm] = hist(arg0); @m[comm] = max(arg0); @n[comm] = min(arg0); "
    "@a[comm] = avg(arg0); @s[comm] = sum(arg0); @c[comm] = count(); @l[comm] = lhist(arg0, 0, "
    "100, 10); }",
    // Statements.
    "BEGIN { if (pid > 3) { @a = 1; } else if (tid < 4) { @a = 2; } else { @a = 3; } }",
    "BEGIN { if (pid == 1) { exit(3); } printf(\"no\\n\"); }",
    "BEGIN { exit(); printf(\"never\\n\"); }",
    "BEGIN { if (pid) { exit(); } else { return; } printf(\"never\\n\"); }",
    "BEGIN { return 1; }",
    "BEGIN { unroll(20) { printf(\"%d\\n\", pid); } }",
    "BEGIN { for ($i : 0..100) { @[$i] = count(); if ($i == 50) { break; } if ($i == 7) { "
    "continue; } @b = $i; } }",
    "BEGIN { for ($i : -3..3) { for ($j : 0..3) { @[$i, $j] = count(); } } }",
    "BEGIN { for ($i : 5..5) { @ = count(); } @x = 1; }",
    "BEGIN { $i = 0; while ($i < 10) { $i++; @ = count(); } }",
    "BEGIN { $i = 0; while (1) { $i++; if ($i > 10) { break; } } }",
    "BEGIN { while (1) { while (1) { return; } } while (true) { exit(); } }",
    "BEGIN { let $x; let $y : int8 = 300; if (pid) { $x = 1; } @ = $x + $y; }",
    "BEGIN { { $x = 1; @a = $x; } { $x = \"s\"; @b = $x; } }",
    "BEGIN { pid == 1 ? printf(\"one\") : exit(); @ = 1; }",
    "BEGIN { if (0) { printf(\"x\"); } if (1) { printf(\"y\"); } }",
    // Operators.
    "kprobe:vfs_read { $a = arg0; $b = (int64)arg1; @[0] = $a + $b; @[1] = $a - $b; @[2] = $a * "
    "$b; @[3] = $a / arg2; @[4] = $a % arg2; @[5] = $b / (int64)arg2; @[6] = $b % (int64)arg2; }",
    "kprobe:vfs_read { $a = arg0; $b = (int64)arg1; @[0] = $a << arg2; @[1] = $a >> arg2; @[2] = "
    "$b >> arg2; @[3] = $a & $b | $a ^ $b; @[4] = ~$a; @[5] = -$b; @[6] = !$b; }",
    "kprobe:vfs_read { @ = (uint8)arg0 + (int8)arg0 + (uint16)arg1 + (int16)arg1 + (uint32)arg2 + "
    "(int32)arg2 + (bool)arg3; }",
    "kprobe:vfs_read { @ = arg0 && arg1 || !(arg2 && arg3) ? arg4 ?: 7 : arg5; }",
    "kprobe:vfs_read { @ = (arg0 + 1) * (arg1 + 2) - (arg2 + 3) * ((arg3 + 4) / ((arg4 + 5) * (pid "
    "+ tid))); }",
    "BEGIN { @ = 0x123456789abcdef; @b = nsecs > 0x123456789abcdef; @c = nsecs & "
    "0xffffffff00000000; }",
    "BEGIN { $x = 1; $x += 2; $x -= 3; $x *= 4; $x /= 5; $x %= 6; $x <<= 1; $x >>= 1; $x &= 7; $x "
    "|= 8; $x ^= 9; @ = $x++ + ++$x - $x-- - --$x; }",
    "BEGIN { @a += 2; @a -= 3; @a *= 4; @a /= 5; @a %= 6; @a <<= 1; @a >>= 1; @a &= 7; @a |= 8; @a "
    "^= 9; @b = @a++ + ++@a - @a-- - --@a; }",
    "BEGIN { @a[1] += 2; @a[2] *= 4; @b = @a[1]++ + ++@a[2]; @a[3]++; }",
    // Strings.
    "BEGIN { $s = comm; $t = $s; @ = $t; @k[$s, $t] = 1; }",
    "BEGIN { @ = comm == \"bash\"; @b = comm != \"\"; @c = \"a rather long literal\" == comm; }",
    "BEGIN { $s = comm; @ = $s == comm; @m = comm; @e = @m == $s; @f = @m == \"x\"; }",
    "uprobe:libc:fopen /str(arg0) == \"/etc/services\"/ { @ = count(); }",
    "uprobe:libc:fopen { @ = str(arg0) == str(arg1); @b[str(arg0, 16), str(arg1, 8)] = str(arg2, "
    "32); }",
    "uprobe:libc:fopen { printf(\"%s %s\\n\", str(arg0, arg1), arg2 ? str(arg3) : \"none\"); }",
    "uprobe:libc:fopen { $s = arg2 ? str(arg0, 40) : comm; printf(\"%s\", $s); @[$s] = count(); }",
    "uprobe:libc:fopen { $s = str(arg0, arg1); @ = $s; }",
    "kprobe:vfs_read { printf(\"%r %rx\\n\", buf(arg1, 16), buf(arg1, arg2)); @[buf(arg1, 8)] = "
    "count(); @b = buf(arg1, arg2); }",
    "BEGIN { printf(\"%s %s %d %s\\n\", \"literal\", comm, pid, str($1)); }",
    // Tuples.
    "BEGIN { $t = (1, comm, (2, \"x\")); @ = $t; @a = $t.0; @b = $t.1; @c = $t.2.1; @k[$t.2] = 1; "
    "print($t); }",
    "BEGIN { @t = (pid, \"a\"); @t = (1, comm); print(@t.1); $u = @t; $u = ($u.0 + 1, $u.1); "
    "print($u); }",
    "BEGIN { @[1, \"a\"] = 1; @[(pid, comm)] = 2; print(@[1, \"a\"]); }",
    // Maps.
    "BEGIN { @x = 1; @y[1] = 2; delete(@x); delete(@y[1]); delete(@y, 1); clear(@y); zero(@x); "
    "print(@x); print(@y, 3, 10); print(@y[1]); }",
    "BEGIN { @c = count(); @h = hist(1); delete(@c); delete(@h); clear(@h); print(@h); }",
    "BEGIN { @h[pid] = hist(1); @l[comm] = lhist(1, 0, 1000, 1); delete(@h[pid]); "
    "delete(@l[comm]); }",
    "BEGIN { @x[1] = 1; @c[comm] = count(); if (has_key(@x, 1) && !has_key(@c, \"sh\")) { exit(); "
    "} @h = has_key(@x, 2); }",
    "BEGIN { @a = @b; @b = @a + 1; @c[@a] = @b; }",
    "BEGIN { @x[probe] = count(); @y = probe; }",
    "uprobe:libc:fopen { @x[func, probe] = count(); @y = func; printf(\"%s %s\\n\", func, probe); "
    "}",
    // Addresses.
    "uprobe:libc:fopen { @ = *(uint32 *)arg0; @b = *(int8 *)(arg0 + 8); @c = ((int16 *)arg0)[2]; "
    "@d = **(uint64 **)arg0; }",
    "kprobe:vfs_read { @ = *(uint64 *)(arg0 + arg1); $p = (uint8 *)arg0; @b = *($p + 3); @p = $p; "
    "printf(\"%p\", $p); }",
    // Structs, arrays, the current task.
    "kprobe:vfs_read { $t = (struct task_struct *)arg0; @[$t->pid, $t->comm] = count(); @l = "
    "$t->level + $t->flag; @w = $t->words[arg1] + $t->words[2]; @b = $t->as_byte; "
    "printf(\"%s %d\", $t->real_parent->comm, $t->real_parent->se.runs); }",
    "uprobe:libc:fopen { @[ppid, pcomm, leader_tid] = count(); $s = curtask->se; @l = $s.load; }",
    "struct own { char name[20]; int list[4]; struct { short a : 4, b : 9; } in; };\n"
    "uprobe:libc:fopen { $p = (struct own *)arg0; printf(\"%s %d %d %d\", $p->name, "
    "$p->list[arg1 % 4], $p->in.b, $p[2].list[1]); @[$p->name] = count(); @b = buf($p->list); }",
    "BEGIN { @ = *kaddr(\"vfs_read\"); @k = kptr(3) + uptr(4); }",
    // Conversions.
    "kprobe:vfs_read { $t = (struct task_struct *)arg0; @[ntop($t->words)] = count(); @i = "
    "ntop(arg1); @f = ntop(arg2, arg1); @m = macaddr(arg0); printf(\"%s %s\", ntop(2, arg1), "
    "macaddr(arg0)); }",
    "kprobe:vfs_read { @ = bswap((uint16)arg0) + bswap((uint32)arg1) + bswap(arg2) + "
    "bswap((uint8)arg0); $p = (uint16)arg0; $p = bswap($p); @p = $p; }",
    "BEGIN { printf(\"%s %s %s %s\", strftime(\"%H:%M:%S\", nsecs), strerror(2), signal_name(9), "
    "username); @[strftime(\"%S\", nsecs)] = count(); @u = username; }",
    "uprobe:libc:fopen { @ = strlen(str(arg0)) + strlen(comm); if (strncmp(str(arg0), \"/etc\", 4) "
    "== 0 && strncmp(comm, str(arg1, 20), 30) != 0) { @n = count(); } if (strcontains(str(arg0), "
    "\".so\") || strcontains(comm, \"1234567890123\")) { @c = count(); } }",
    "BEGIN { @ = rand + numaid + ncpus + cgroup + jiffies; @t = probetype; @g = cgroupid(\"/sys/fs/"
    "cgroup/user.slice\"); } kprobe:vfs_read { @u = usermode; }",
    "BEGIN { cat(\"/proc/%d/stat\", pid); @s = stats(5); @k[1] = stats(-5); @h = hist(pid, 3); "
    "@hk[comm] = hist(pid, 5); delete(@hk[comm]); }",
    "uprobe:libc:malloc { @c = count(); @s[comm] = sum((int32)arg0); @m[pid] = min((int64)arg0); "
    "@x = "
    "max(arg0); @a[1, comm] = avg((int64)arg0); if (@c > 100 && @s[comm] < -3) { exit(); } "
    "printf(\"%d %d %d\", @m[pid], @x, @a[1, comm]); @copy = @c; }",
    "uprobe:libc:malloc { @c = count(); print((@c, 1)); print(@c); @k[@c] = @c; exit(@c); }",
    "uprobe:libc:fopen { @ = memcmp(str(arg0), \"/etc/passwd\", 5) + strlen((int8 *)arg1) + "
    "strcap(comm); "
    "@s = stats(arg0); if (@s > 3 && is_err(arg1)) { @w = *uaddr(\"state\"); } "
    "@c[cgroup_path(arg2), "
    "syscall_name(arg3)] = count(); @t = nsecs(tai) - nsecs(sw_tai); @h = has_cpid; }",
    "kprobe:vfs_read { @ = *percpu_kaddr(\"runqueues\"); @z = percpu_kaddr(\"runqueues\", arg0); "
    "@e = "
    "kfunc_exist(\"vfs_read\"); }",
    "uprobe:libc:fopen { @l = tseries(arg0, 100ms, 20); @k[comm] = tseries((int32)arg0, 1s, 5, "
    "\"min\"); "
    "@x[arg1, 2] = tseries(arg0, 1us, 1000, \"max\"); @a = tseries(arg0, 7ns, 1, \"avg\"); @u[1] = "
    "tseries(arg0, 1h, 3, \"sum\"); delete(@k[comm]); print(@l); clear(@k); zero(@a); }",
    // Records, blocks, macros, loops.
    "BEGIN { $r = (a=pid, b=comm, c=(1, 2)); print($r); @[$r] = $r.c.1; @m = $r; print(@m.b); }",
    "BEGIN { @ = { $x = pid; $x + 1 }; printf(\"%s %d\", if pid > 1 { comm } else { \"one\" }, { "
    "$y = 3; $y * pid }); if ({ $z = pid; $z > 3 }) { @z = 1; } }",
    "macro add(a, b) { a + b } macro note(@m, k) { @m[k] = count(); } macro up($x) { $x++; } BEGIN "
    "{ $v = 1; up($v); note(@n, comm); print(add($v, add(pid, 2))); }",
    "BEGIN { for ($i : 0..pid) { @[$i] = count(); if ($i > 100) { break; } } }",
    "uprobe:libc:fopen { $a = arg0; for ($i : $a..(arg1 + 5)) { if ($i % 2 == 0) { continue; } @s "
    "= "
    "sum($i); } for ($k : 0..arg2) { @t = sum($k); } @e = count(); }",
    "uprobe:libc:fopen { for ($i : arg0..arg1) { @s = sum($i); @n[comm]++; printf(\"%d\", $i); } }",
    // Loops over maps, and loops in each other.
    "uprobe:libc:fopen { @x[arg0, str(arg1)] = arg2; @c[comm] = count(); @a[arg0] = avg(arg1); "
    "@m[arg0] = min((int32)arg1); for ($kv : @x) { @sum = $kv.1 + $kv.0.0 + arg3; @last = $kv.0.1; "
    "if ($kv.1 > 9) { delete(@x, $kv.0); continue; } if ($kv.1 == arg4) { break; } } for ($kv : "
    "@c) { print($kv); @t = sum($kv.1); } for ($kv : @a) { @x[$kv.0, \"a\"] = $kv.1; } for ($kv : "
    "@m) { printf(\"%d %d %s\", $kv.0, $kv.1, func); } }",
    "BEGIN { @x[1] = \"a\"; @y[\"b\"] = (1, comm); for ($a : @x) { for ($b : @y) { if ($b.1.0 == "
    "$a.0) { exit(3); } if ($a.1 == $b.0) { return; } print(($a.1, $b.1)); } } print(len(@x)); "
    "printf(\"%d %d\", len(@x) + len(@y), @n++); }",
    "interval:s:1 { $n = 0; $i = 0; while ($i < nsecs) { $i += 1000000; $n++; for ($j : 0..$n) { "
    "if "
    "($j == 5) { break; } @h = hist($j); } for ($k : 0..40) { @k[$k] = count(); } } @n = $n; }",
    "tracepoint:sched:sched_switch { @x[args.prev_comm] = args.next_pid; for ($kv : @x) { if "
    "($kv.0 == args.prev_comm) { @y[args.next_pid] = $kv.1; } @s[kstack] = count(); } }",
    "kretprobe:vfs_read { @x[arg1] = duration; for ($kv : @x) { @y = $kv.1 + retval + arg1; } }",
    "BEGIN { $s = comm; $i = 0; while (1) { $i++; $s = \"b\"; if ($i > 10) { break; } @[$s] = $i; "
    "} "
    "@e = $s; }",
    "let @x = lruhash(10); let @y = percpulruhash(10); let @z = percpuhash(5); kprobe:vfs_read { "
    "@x[tid] = 1; @y[tid] = count(); @z[tid] = sum(arg0); for ($kv : @x) { @n++; } }",
    // Structs, arrays, tuples as values; booleans.
    "tracepoint:odd:packed { @[args.list] = count(); print(args.list); @n = "
    "ntop((uint8[4])(uint32)args.flag); }",
    "struct in { short a : 4, b : 9; }; struct own { char name[5]; char c; int list[3]; struct in "
    "i; "
    "void *p; };\nuprobe:libc:fopen { $p = (struct own *)arg0; @x = *$p; @k[$p->list, $p->name] = "
    "$p->i; print(*$p); print(($p->i, $p->list)); $y = @x; @z = $y.list[1] + $y.i.b + @x.c; @s = "
    "@x.name; if (@x == *$p && $y.list != $p->list) { @n++; } for ($kv : @k) { @l = $kv.0.0[2] + "
    "$kv.1.a; } $q = &$p->i; @b = $q->b; @pp = @x.p; }",
    "kprobe:vfs_read { $t = (struct task_struct *)arg0; print($t->se); @[$t->words] = count(); }",
    "BEGIN { $b = pid > 3; @a[$b] = !$b; @t = ($b, true, 1 == 1 && $b); print(comm == \"x\"); "
    "@s = (bool)comm; @u = (int64)$b + 1; @v = (1, comm) == (pid, \"tester\"); $d = "
    "delete(@a, false); if (delete(@a, true)) { @n++; } printf(\"%d\", $b); }",
    "uprobe:libc:fopen { @ = strstr(str(arg0), \"etc\"); @p = ntop(pton(\"10.0.0.1\")); @q = "
    "ntop(pton(\"::1\")); @k[pton(\"1.2.3.4\")] = count(); @e = pton(\"1.1.1.1\") == "
    "pton(\"1.1.1.2\"); }",
    "uprobe:libc:fopen { @m[arg0] = comm; let $v; if (find(@m, arg1, $v)) { @f = $v; } errorf(\"no "
    "%s\", str(arg0)); warnf(\"w\"); assert(arg0 > 3, \"small\"); static_assert(1 == 1, "
    "\"never\"); "
    "@i = is_str(comm); if comptime (1 == 1) { @c = comptime (2 * 3); } else { fail(\"never\"); } "
    "}",
    "tracepoint:sched:sched_switch { print(args); } fn f($a : uint8, $s : string) : int64 { if ($a "
    "> 3) { @big[$s] = count(); } return $a * 2; } kprobe:vfs_read { @ = f(arg0, comm) + f(arg1, "
    "\"x\"); }",
    "#define ADD(a, b) ((a) + (b))\n#define TWICE(x) ADD(x, x)\nBEGIN { @ = TWICE(pid) * "
    "ADD(1, 2); }",
    // Output.
    "BEGIN { printf(\"plain\\n\"); printf(\"%d %s %x %c %p\\n\", 1, \"two\", 3, 52, 5); }",
    "BEGIN { printf(\"%d %d %d %d\\n\", @x++, ++@x, $1, 4); }",
    "BEGIN { print(1); print(comm); print((1, \"a\")); print(pid + 1); time(); time(\"%H\\n\"); }",
    "tracepoint:syscalls:sys_enter_openat { join(args.filename); join(args.flags, \",\"); }",
    "BEGIN { @x = comm; printf(\"%s %s\\n\", @x, @x == \"a\" ? \"yes\" : \"no\"); }",
    "BEGIN { printf(\"%d %d %d %d %d %d %d %d\\n\", pid, tid, uid, gid, cpu, nsecs, nsecs(boot), "
    "elapsed); }",
    "BEGIN { printf(\"%d %s %d %s\\n\", pid > 1 && tid > 1, comm == \"a\" ? comm : \"b\", pid ?: "
    "3, comm); }",
    "kprobe:vfs_read { @[cpu, pid, tid, uid, gid, comm, arg0, arg5] = count(); }",
    "kprobe:vfs_read { printf(\"%d %d\", arg0 / (arg1 + 1) * (arg2 - arg3), (arg0 + arg1) * (arg2 "
    "+ (arg3 - (arg4 + (arg5 - (pid + (tid * cpu))))))); }",
    // Stacks, symbols, registers.
    "uprobe:libc:fopen { @[ustack] = count(); @[ustack] = count(); @s[ustack(perf, 5), comm] = "
    "count(); @last = ustack(raw); printf(\"%s %s\", ustack, ustack(3)); print(ustack()); }",
    "kprobe:vfs_read { @[kstack, ustack] = count(); @k[kstack(5)] = count(); @p = kstack(perf); "
    "printf(\"%s %s\", kstack(raw, 2), ustack); }",
    "kretprobe:vfs_read { @[kstack] = count(); } tracepoint:sched:sched_switch { @t[kstack(3), "
    "args.prev_comm] = count(); print(ustack); }",
    "uprobe:libc:fopen { $s = ustack; @[$s, 1] = count(); print($s); @h[ustack] = hist(arg0); }",
    "uprobe:libc:fopen { @[usym(reg(\"ip\"))] = count(); printf(\"%s %s %x\", usym(arg0), "
    "ksym(kaddr(\"vfs_read\")), reg(\"flags\")); @k[ksym(arg1), usym(arg1)] = count(); }",
    "BEGIN { printf(\"%s\", usym(1)); @ = ksym(2); }",
    "kprobe:vfs_read { printf(\"%s%s%s%s%s%s%s%s\", str(arg0), str(arg1), str(arg2), str(arg3), "
    "comm, str(arg0), str(arg1), str(arg2)); }",
};

std::string listing(const bundle::Bundle& bundle) {
  std::string text;
  for (const bundle::Program& program : bundle.programs)
    text += program.name + ":\n" + bpf::disassemble(program.code);
  return text;
}

class Loads : public testing::TestWithParam<const char*> {};

TEST_P(Loads, InOurChecker) {
  Machine machine(must_compile(GetParam()));
  for (const bundle::Program& program : machine.bundle().programs) {
    auto checked = bpf::check(program.code, machine.check_env(program));
    EXPECT_TRUE(checked.has_value()) << GetParam() << "\n"
                                     << checked.error().message << "\n"
                                     << listing(machine.bundle());
  }
}

TEST_P(Loads, InTheKernel) {
  if (!why_no_kernel().empty()) GTEST_SKIP() << why_no_kernel();
  CompileOptions options;
  options.calls_loops = true;
  bundle::Bundle bundle = must_compile(GetParam(), options);
  auto loaded = KernelBundle::load(bundle);
  EXPECT_TRUE(loaded.has_value()) << GetParam() << "\n" << loaded.error().message;
}

/// Both verifiers again with a pid filter before each program of the kernel's probes.
TEST_P(Loads, WithAPidFilter) {
  CompileOptions options;
  options.pid_filter = {1, 2, 3000000};
  Machine machine(must_compile(GetParam(), options));
  for (const bundle::Program& program : machine.bundle().programs) {
    auto checked = bpf::check(program.code, machine.check_env(program));
    EXPECT_TRUE(checked.has_value()) << GetParam() << "\n" << checked.error().message;
  }
}

TEST(LoadsUnsafe, OverrideInOurChecker) {
  CompileOptions options;
  options.allow_unsafe = true;
  for (const char* script : {"uprobe:libc:fopen { override(0); }",
                             "kprobe:vfs_read /arg0 > 5/ { override(-arg0); @ = count(); }"}) {
    Machine machine(must_compile(script, options));
    for (const bundle::Program& program : machine.bundle().programs) {
      auto checked = bpf::check(program.code, machine.check_env(program));
      EXPECT_TRUE(checked.has_value()) << script << "\n" << checked.error().message;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Scripts, Loads, testing::ValuesIn(kScripts));

}  // namespace
}  // namespace spile::lang
