#!/usr/bin/env python3
"""Every kind of kernel probe and every way to attach, on kernels of two ages: 6.1 has no fprobe, 6.12 has kprobe.multi and sessions.

One boot a kernel runs everything and prints what the kernel itself shows (bpf_links.c, kprobes/list, enabled_functions,
kprobe_events); the checks come afterwards."""
import os
import re
import shutil
import sys

from harness import check
import tools
from test_vm import BOOT_SECONDS, in_vm, sections
from tracing import check_status, compile_program, keyed, main, scalar, temporary_directory

HERE = os.path.dirname(os.path.abspath(__file__))

# Opens, unlinks and maps memory all the time, and says how it is called.
LOOP = "(while true; do cat /etc/passwd >/dev/null; touch /tmp/victim; rm /tmp/victim; sleep 0.05; done) & LOOP=$!"

# Opens a file 20 times by itself, whatever else goes on: what is counted of it is exact.
OPENER = r"""
printf '#!/bin/sh\nfor i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do : </etc/passwd; done\n' >/bin/opener
chmod +x /bin/opener
"""

# What is shown while a trace is attached; its own output follows. TERM, since a shell's background jobs ignore INT.
SHOW = r"""
show() { # name, spile's words
  echo "== $1"; shift
  spile "$@" >/tmp/out 2>&1 & TRACE=$!
  for i in $(seq 1200); do grep -q ^Attached /tmp/out && break; kill -0 $TRACE 2>/dev/null || break; sleep 0.1; done
  bpf_links | sed 's/^/LINK /' | sort | uniq -c
  sed 's/^/LIST /' /sys/kernel/debug/kprobes/list | head -8
  echo "ENABLED $(wc -l </sys/kernel/tracing/enabled_functions) $(head -1 /sys/kernel/tracing/enabled_functions)"
  sed 's/^/EVENT /' /sys/kernel/tracing/kprobe_events
  [ -n "$SITES" ] && spile sites | sed 's/^/SITE /'
  opener
  sleep 0.5; kill $TRACE; wait $TRACE; echo "STATUS $?"
  grep -v ' \.\.\. ' /tmp/out
}
begin() { spile "$@" >/tmp/out 2>&1 & TRACE=$!; for i in $(seq 2400); do grep -q ^Attached /tmp/out && break; kill -0 $TRACE 2>/dev/null || break; sleep 0.05; done; }
end() { kill $TRACE; wait $TRACE; echo "STATUS $?"; grep -v ' \.\.\. ' /tmp/out; }
said() { for i in $(seq 2400); do grep -q "$1" /tmp/out && break; sleep 0.05; done; }
gone() { echo "== $1"; cat /sys/kernel/debug/kprobes/list /sys/kernel/tracing/enabled_functions; bpf_links; sed 's/^/EVENT /' /sys/kernel/tracing/kprobe_events; }
plain() { echo "== $1"; shift; "$@" 2>&1 | grep -v ' \.\.\. '; }
"""

OPENAT = "kprobe:do_sys_openat2"
COUNT = OPENAT + " { @[probe] = count(); }"
PAIR = COUNT + " kretprobe:do_sys_openat2 { @[probe] = count(); }"

# name -> spile's words, shown while attached.
SHOWN = {
    "single": ["-v", "-e", COUNT],
    "link": ["-v", "--attach", "link", "-e", COUNT],
    "ioctl": ["-v", "--attach", "ioctl", "-e", COUNT],
    "tracefs": ["-v", "--attach", "tracefs", "-e", PAIR],
    "pair": ["-v", "-e", PAIR],
    "return_first": ["-e", "kretprobe:do_sys_openat2 /comm == \"opener\"/ { @back = count(); } " + OPENAT +
                     " /comm == \"opener\"/ { @calls = count(); }"],
    "registers": ["-v", "-e", OPENAT + r' { @[reg("r12") != 0] = count(); }'],
    "vfs": ["-e", "kprobe:vfs_* { @[func] = count(); }"],
    "tcp": ["-e", "kprobe:tcp_* { @[func] = count(); }"],
    "by_module": ["-e", "kprobe:vmlinux:vfs_read { @[probe] = count(); }"],
    "fentry": ["-e", r"fentry:vfs_read { @[probe, func, args.count > 0] = count(); } "
               r"fexit:vfs_read { @r[probe, retval >= 0] = count(); @c[arg2 > 0] = count(); }"],
    "rawtracepoint": ["-e", "rawtracepoint:sched_switch, rawtracepoint:sched_wakeup { @[probe] = count(); }"],
    "profile": ["-e", "profile:hz:99 { @[comm] = count(); } software:page-faults:1 { @f[comm] = count(); }"],
    # Bodies of loops are functions of the program, in all of its kinds; a pair with loops is no session.
    "loops": ["-e", OPENAT + " { @x[comm] = count(); $n = 0; while ($n < 50 + pid % 7) { $n++; } @n = $n; for ($kv : @x) { @seen[$kv.0] = $kv.1; } } "
              "kretprobe:do_sys_openat2 { for ($kv : @x) { @back[retval < 0] = $kv.1; } } "
              "fentry:vfs_read { for ($i : 0..args.count % 9) { @f[$i] = count(); } } "
              "tracepoint:sched:sched_switch { for ($i : 0..100) { @t[args.prev_pid > 0] = count(); } } "
              "profile:hz:99 { @len = len(@x); for ($a : @seen) { for ($b : @x) { if ($a.0 == $b.0) { @both[$a.0] = $a.1 <= $b.1; } } } }"],
    # The subject documents' own.
    "hit": ["-e", OPENAT + r' { print("hit kprobe:do_sys_openat2") }'],
    "brk": ["-e", "kprobe:__x64_sys_brk { @start[tid] = nsecs; @brk = count(); } kretprobe:__x64_sys_brk /@start[tid]/ "
            "{ @ns = hist(nsecs - @start[tid]); delete(@start[tid]); @back = count(); }"],
    "openat": ["-e", r'tracepoint:syscalls:sys_enter_openat { printf("%s %s\n", comm, str(args->filename)); }'],
    "unlinkat": ["-e", r'kprobe:do_unlinkat { printf("KPROBE ENTRY pid = %d, filename = %s\n", pid, str(*(uint64 *)arg1)); } '
                 r'kretprobe:do_unlinkat { printf("KPROBE EXIT: ret = %d\n", retval); }'],
    "filp": ["-e", r'kprobe:do_filp_open { printf("dfd=%d pathname=\"%s\"\n", (int32)arg0, str(*(uint64 *)arg1)); }'],
    # The arguments at the return are those of the same call: nothing returns more than was asked for.
    "returned": ["-v", "-e", r'kretprobe:vfs_read { @calls = count(); } kretprobe:vfs_read /retval > (int64)arg2/ { @wrong = count(); } '
                 r'kretprobe:vfs_read /retval == arg2/ { @full = count(); } kretprobe:do_filp_open { @name[str(*(uint64 *)arg1)] = count(); } '
                 r'kretprobe:do_sys_openat2 { @ns = hist(duration); @long = max(duration); }'],
    "nanosleep": ["-e", "kprobe:do_nanosleep { @[probe] = count(); }"],
    "three": ["-v", "-e", "kprobe:do_sys_openat2, kprobe:vfs_read, kprobe:do_filp_open { @[probe] = count(); }"],
    "path": ["-e", "#include <linux/path.h>\n#include <linux/dcache.h>\n"
             r'kprobe:vfs_open { printf("open path: %s\n", str(((struct path *)arg0)->dentry->d_name.name)); }'],
    "ustack": ["-e", "uprobe:/bin/spile:main { @[ustack] = count(); }"],
}
# The function's second argument holds the address of the path.
SWITCHED = ('kprobe:do_filp_open /str(*(uint64 *)arg1) == "/tmp/on"/ { @[probe] = count(); } '
            'kretprobe:do_filp_open /str(*(uint64 *)arg1) == "/tmp/on"/ { @[probe] = count(); }')
MISSED = "kprobe:__htab_map_lookup_elem { @[pid] = count(); } kprobe:vfs_read { @v[comm] = count(); }"
FOPEN = r'uprobe:/lib/x86_64-linux-gnu/libc.so.6:fopen { printf("fopen: %s\n", str(arg0)); }'


ARG_S = ('struct arg_s { char padding[8]; char *name; }; '
         r'uprobe:/bin/spile:main { printf("named %s\n", str(((struct arg_s *)arg1)->name)); }')
OPENS = 'kprobe:do_sys_openat2 /comm == "opener"/ { @ = count(); }'
# Each hit is a line, or counted as lost; each key (a time of its own) is kept, or counted as not kept.
STORM_HITS = 30_000
STORM = r'kprobe:vfs_read /comm == "dd"/ { @hits = count(); @[nsecs] = count(); printf("hit\n"); }'

# Scripts of tools/scripts that need kprobes or what may not be done to this machine; what each must have printed.
TOOLS = {
    "tcpconnects": r"^\d+ +nc +127\.0\.0\.1 +4711$",
    "slowfiles": r"^cat +\d+ +vfs_read +\d+ us +5 bytes +slow$",
    "kfncount": r"^@calls\[vfs_read\]: [1-9]",
    "oomkills": r"needed memory; killed: sleep \(\d+\), \d+ MiB of its own",
}
TOOLS_KERNEL = "6.1"
TOOLS_WORDS = {"slowfiles": "-- --us=100000", "kfncount": "'vfs_*'"}
# A pipe with a name that is written late; a connection; and the kernel is told that memory is out, with one process to choose.
TOOLS_WORK = r"""
mkfifo /tmp/slow; (sleep 2; echo late) >/tmp/slow & cat /tmp/slow >/dev/null
nc -l -p 4711 >/dev/null & sleep 0.5; echo hello | nc -w 1 127.0.0.1 4711
for process in /proc/[0-9]*; do echo -1000 >$process/oom_score_adj; done 2>/dev/null
(echo 1000 >/proc/self/oom_score_adj; exec sleep 77) & VICTIM=$!; sleep 0.5
echo f >/proc/sysrq-trigger; wait $VICTIM; echo "VICTIM $?"
"""


def tools_at_once():
    started = " ".join(f"spile -o /tmp/{name}.out /{name}.bt {TOOLS_WORDS.get(name, '')} >/tmp/{name}.err 2>&1 & TRACES=\"$TRACES $!\";"
                       for name in TOOLS)
    attached = " ".join(f"for i in $(seq 1200); do grep -q ^Attached /tmp/{name}.err && break; sleep 0.1; done;" for name in TOOLS)
    shown = "".join(f"\necho '== tool_{name}'; cat /tmp/{name}.out /tmp/{name}.err" for name in TOOLS)
    return f"{started} {attached}\n{TOOLS_WORK}\nkill $TRACES; wait $TRACES; {shown}"


def quoted(words):
    return " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)


def script(version):
    lines = [OPENER, SHOW, LOOP, "(while true; do spile --version; sleep 0.05; done) >/dev/null 2>&1 & VERSIONS=$!"]
    for name, words in SHOWN.items():
        if name == "by_module":
            lines.append("kill $VERSIONS")
        if name == "ustack":
            lines.append(f"echo '== ustack'; begin {quoted(words)}; bpf_links | sed 's/^/LINK /'; spile --version; spile --version; end")
        else:
            lines.append(f"show {name} {quoted(words)}")
    lines += [
        f"echo '== arg_s'; begin {quoted(['-e', ARG_S])}; spile --version; said '^named '; end",
        # The first sees two runs of the program, the second one.
        f"echo '== two'; spile -e {quoted([OPENS])} >/tmp/first 2>&1 & FIRST=$!; for i in $(seq 1200); do grep -q ^Attached /tmp/first && break; sleep 0.1; done; "
        f"begin -e {quoted([OPENS])}; opener; end; opener; kill $FIRST; wait $FIRST; echo \"STATUS $?\"; sed 's/^@/@first/' /tmp/first",
        f"plain storm env SPILE_PERF_RB_PAGES=4 spile -v -e {quoted([STORM])} -c 'dd if=/dev/zero of=/dev/null bs=1 count={STORM_HITS}'",
        "echo nobody:x:65534:65534::/:/bin/sh >>/etc/passwd",
        "plain denied su nobody -c " + quoted(["spile -e " + quoted([COUNT])]),
        "gone after_all",
        # Off: no call is counted. On: each.
        "echo '== paused'", f"begin --paused -e {quoted([SWITCHED])}",
        "cat /tmp/on /tmp/on; kill -USR2 $TRACE; said resumed; cat /tmp/on /tmp/on; end",
        # A module goes away under its probes: kprobes see no more, what BTF describes holds it.
        "insmod /modules/dummy.ko; ifconfig dummy0 10.9.9.1 up; echo '== module'",
        # Perf events: a link over many functions would hold the module.
        f"begin --attach link -e {quoted(['kprobe:dummy:dummy_xmit { @[probe] = count(); } kprobe:dummy_xmit { @plain = count(); }'])}",
        "ping -c1 -W1 10.9.9.2 >/dev/null; spile sites | sed 's/^/SITE /'; rmmod dummy && echo UNLOADED; said 'has been unloaded'",
        "spile sites | sed 's/^/AFTER /'; end",
        "insmod /modules/dummy.ko; ifconfig dummy0 10.9.9.1 up; echo '== module_held'",
        f"begin -e {quoted(['fentry:dummy:dummy_xmit { @[probe, args.skb != 0] = count(); }'])}",
        "ping -c1 -W1 10.9.9.2 >/dev/null; rmmod dummy && echo UNLOADED; end; rmmod dummy && echo UNLOADED_LATER",
        "echo '== perf_records'; begin --records perf -e " + quoted([OPENAT + ' { printf("opens %s\\n", str(arg1)); }']) +
        "; said 'opens /etc/passwd'; end",
        f"plain latency spile stat -a -L -e kretprobe:vfs_read,kprobe:vfs_read -- sleep 1",
        # No type information: what needs it says so, the rest works without.
        "mount -t tmpfs none /sys/kernel/btf",
        f"plain no_btf spile -e {quoted(['rawtracepoint:sched_switch { @ = count(); }'])}",
        f"show no_btf_pair {quoted(['-v', '-e', PAIR])}",
        "umount /sys/kernel/btf",
        # Inside the function, at the first offsets where an instruction begins: an int3, or a jump where there is room.
        "for n in $(seq 100 125); do SITES=1 show inside_$n -v -e \"kprobe:do_unlinkat+$n { @[probe] = count(); }\"; "
        "grep -q ^Attached /tmp/out && break; done",
        "ADDRESS=0x$(grep -m1 ' do_filp_open$' /proc/kallsyms | cut -d' ' -f1); echo \"== where\"; echo $ADDRESS",
        "show address -e \"kprobe:$ADDRESS { @[probe] = count(); }\"",
        # Killed with a definition in place: no probe, and the next spile takes the definition away.
        f"spile --attach tracefs -e {quoted([COUNT])} >/tmp/out 2>&1 & VICTIM=$!",
        "for i in $(seq 1200); do grep -q ^Attached /tmp/out && break; sleep 0.1; done; kill -9 $VICTIM; wait $VICTIM; sleep 0.5",
        "gone killed; spile sites | sed 's/^/SITE /'",
        f"show next {quoted(['-e', 'kprobe:vfs_read { @[probe] = count(); }'])}",
        f"spile -e {quoted(['kprobe:vfs_* { @ = count(); }'])} >/tmp/out 2>&1 & VICTIM=$!",
        "for i in $(seq 1200); do grep -q ^Attached /tmp/out && break; sleep 0.1; done; kill -9 $VICTIM; wait $VICTIM; sleep 1",
        "gone killed_many",
        # Refusals.
        "plain blacklist spile -e 'kprobe:asm_exc_int3 { @ = count(); }'",
        "plain blacklist_file head -1 /sys/kernel/debug/kprobes/blacklist",
        "plain boundary spile -e 'kprobe:do_filp_open+1 { @ = count(); }'",
        "plain hardware spile -e 'hardware:cycles:1000 { @ = count(); }'",
        "plain no_session spile --attach session -e 'kprobe:vfs_read+4 { @ = count(); }'",
        # stat, list, info.
        "plain stat spile stat -a -e syscalls:sys_enter_openat,kprobe:do_filp_open,kretprobe:do_filp_open,page-faults -- "
        "sleep $(case $(uname -r) in 6.1.*) echo 10;; *) echo 2;; esac)",
        "plain stat_command spile stat -e kprobe:do_filp_open,kretprobe:do_filp_open -- opener",
        "plain stat_all spile stat -a -I 500 -e kprobe:__x64_sys_brk,kretprobe:__x64_sys_brk -- sleep 1",
        "plain lv spile -lv tracepoint:raw_syscalls:sys_exit",
        "plain list spile list 'alarmtimer:*'",
        "plain found sh -c 'find /sys/kernel/tracing/events -mindepth 2 -type d | wc -l; spile -l \"tracepoint:*\" | wc -l'",
        "plain info spile info",
        # A probe on what the programs themselves call: hits inside a hit run nothing, and are counted (the kernel tells since 6.7).
        f"case $(uname -r) in 6.1.*) ;; *) show missed {quoted(['-v', '-e', MISSED])};; esac",
        f"echo '== fopen'; begin -e {quoted([FOPEN])}; spile info >/dev/null; said '^fopen: /'; end",
        tools_at_once() if version == TOOLS_KERNEL else "",
        "kill $LOOP",
        # The last, since it cannot be taken back.
        "mount -t securityfs securityfs /sys/kernel/security; echo confidentiality >/sys/kernel/security/lockdown",
        f"plain locked spile -e {quoted(['kprobe:do_filp_open { @[str(*(uint64 *)arg1)] = count(); }'])}", "plain locked_info spile info",
        f"echo '== locked_count'; begin -e {quoted([COUNT])}; cat /etc/passwd >/dev/null; end 2>&1",
        "echo '== end'; uname -r"]
    return "\n".join(lines)


# Functions that the documents name and a kernel calls otherwise (7.2), with the same parameters.
RENAMED = {"newest": {"do_filp_open": "do_file_open", "do_unlinkat": "filename_unlinkat"}}


def in_its_words(version, text):
    for documents, kernels in RENAMED.get(version, {}).items():
        text = text.replace(documents, kernels)
    return text


def in_the_documents_words(version, text):
    for documents, kernels in RENAMED.get(version, {}).items():
        text = text.replace(kernels, documents)
    return text


class Kernel:
    """One boot of a kernel, and what it printed."""
    found = {}

    @classmethod
    def get(cls, version):
        if version not in cls.found:
            with temporary_directory() as root:
                os.makedirs(os.path.join(root, "image/bin"))
                with open(os.path.join(HERE, "bpf_links.c"), encoding="utf-8") as file:
                    built = compile_program(root, "bpf_links", file.read(), ("-O2", "-static"))
                shutil.copy(built, os.path.join(root, "image/bin/bpf_links"))
                for name in TOOLS:
                    shutil.copy(tools.script(name), os.path.join(root, "image"))
                with open(os.path.join(root, "image/checks.sh"), "w", encoding="utf-8") as file:
                    file.write(in_its_words(version, script(version)))
                result = in_vm(version, ". /checks.sh", root=os.path.join(root, "image"), seconds=BOOT_SECONDS * 4,
                               modules=("dummy",))
            check_status(result, 0)
            cls.found[version] = sections(in_the_documents_words(version, result.out))
            ran = cls.found[version].get("end", "").strip()
            check("all-ran", ran and (version == "newest" or ran.startswith(version)), result.report())
        return cls.found[version]


def shown(found, name):
    text = found[name]
    check("exit-status", "STATUS 0" in text, f"{name}\n{text}")
    return text


def attached(text):
    match = re.search(r"^Attached (\d+) probe", text, re.M)
    return int(match.group(1)) if match else 0


def check_common(found):
    """What both kernels must do alike."""
    hits = lambda name, map_="@": keyed(shown(found, name), map_)
    for name in ("link", "ioctl", "single"):
        check("hits-happened", hits(name).get(OPENAT, 0) > 0, found[name])
    check("hits-happened", hits("by_module").get("kprobe:vmlinux:vfs_read", 0) > 0, found["by_module"])
    for name in ("tracefs", "pair"):
        both = hits(name)
        check("hits-happened", set(both) == {OPENAT, "kretprobe:do_sys_openat2"} and min(both.values()) > 0, found[name])
    # In whatever order the script has them, a return counts once.
    loops = shown(found, "loops")
    check("hits-happened", scalar(loops, "@n") >= 50 and scalar(loops, "@len") >= 1, loops)
    for row in (r"^@seen\[cat\]: [1-9]", r"^@back\[false\]: [1-9]", r"^@f\[0\]: [1-9]", r"^@t\[true\]: [1-9]\d*00$", r"^@both\[cat\]: true$"):
        check("loops-ran", re.search(row, loops, re.M), f"{row}\n{loops}")
    calls, back = (scalar(shown(found, "return_first"), name) for name in ("@calls", "@back"))
    check("exact-count", calls == back >= 20, found["return_first"])
    check("link-type", re.search(r"1 LINK perf_event kprobe_0", found["link"]) and "kprobe (perf event, link)] [FTRACE]" in found["link"],
          found["link"])
    check("kprobes/list", re.search(r"LIST \S+ +k +do_sys_openat2\+0x0 +\[FTRACE\]", found["link"]), found["link"])
    check("link-type", "LINK" not in found["ioctl"] and re.search(r"LIST .* k +do_sys_openat2\+0x0", found["ioctl"]), found["ioctl"])
    check("tracefs-event", re.search(r"EVENT p:spile_\d+_\d+/e0 do_sys_openat2", found["tracefs"]) and
          re.search(r"EVENT r\d*:spile_\d+_\d+/e1 do_sys_openat2", found["tracefs"]), found["tracefs"])
    # What fprobe does not keep is read by a kprobe.
    check("link-type", "LINK perf_event kprobe_0" in shown(found, "registers"), found["registers"])
    check("hits-happened", sum(hits("registers").values()) > 0, found["registers"])
    for name, least in (("vfs", 40), ("tcp", 150)):
        count = attached(shown(found, name))
        enabled = int(re.search(r"^ENABLED (\d+)", found[name], re.M).group(1))
        check("enabled-functions", count >= least and abs(enabled - count) <= 3, f"{count} attached\n{found[name][:3000]}")
    check("hits-happened", hits("vfs").get("vfs_read", 0) > 0 and len(hits("vfs")) >= 5, found["vfs"][:3000])
    check("link-type", "LINK tracing fentry_0" in found["fentry"] and "LINK tracing fexit_1" in found["fentry"], found["fentry"])
    check("hits-happened", hits("fentry").get("fentry:vfs_read, vfs_read, true", 0) > 0, found["fentry"])
    check("hits-happened", hits("fentry", "@r").get("fexit:vfs_read, true", 0) > 0 and hits("fentry", "@c").get("true", 0) > 0, found["fentry"])
    check("link-type", len(re.findall(r"LINK raw_tracepoint", found["rawtracepoint"])) >= 1, found["rawtracepoint"])
    check("hits-happened", set(hits("rawtracepoint")) == {"rawtracepoint:sched_switch", "rawtracepoint:sched_wakeup"},
          found["rawtracepoint"])
    check("hits-happened", sum(hits("profile").values()) > 10 and sum(hits("profile", "@f").values()) > 10, found["profile"])
    documents(found)
    changes(found)
    leftovers(found)
    storm(found)
    refusals(found)
    counting(found)


def documents(found):
    """The lines of the subject documents."""
    check("hits-happened", re.search(r"^hit kprobe:do_sys_openat2$", shown(found, "hit"), re.M), found["hit"])
    brk = shown(found, "brk")
    # Each return counted belongs to a call counted. Calls are more: the two probes are set and taken out one after the other.
    calls, back = scalar(brk, "@brk"), scalar(brk, "@back")
    check("hits-happened", 0 < back <= calls, brk)
    check("same-calls", sum(map(int, re.findall(r"^\[.*?\) +(\d+) \|", brk, re.M))) == back, brk)
    check("latency", re.search(r"^@ns:\n\[", brk, re.M), brk)
    check("hits-happened", re.search(r"^cat /etc/passwd$", shown(found, "openat"), re.M), found["openat"][:2000])
    check("hits-happened", re.search(r"^KPROBE ENTRY pid = \d+, filename = /tmp/victim$", shown(found, "unlinkat"), re.M) and
          re.search(r"^KPROBE EXIT: ret = 0$", found["unlinkat"], re.M), found["unlinkat"][:2000])
    check("hits-happened", re.search(r'^dfd=-100 pathname="/etc/passwd"$', shown(found, "filp"), re.M), found["filp"][:2000])
    returned = shown(found, "returned")
    check("hits-happened", scalar(returned, "@calls") > 0 and keyed(returned, "@name").get("/etc/passwd", 0) > 0, returned)
    check("same-call", scalar(returned, "@wrong") == 0, returned)
    check("latency", re.search(r"^@ns:\n\[", returned, re.M) and 100 < scalar(returned, "@long") < 10**10, returned)
    # The processes have ended when their stacks are printed: addresses have no names any more.
    check("hits-happened", re.search(r"^@\[\n +(0x[0-9a-f]+|main\+0)\n(.*\n)*\]: [1-9]", shown(found, "ustack"), re.M), found["ustack"])
    inside = [name for name in found if name.startswith("inside_") and attached(found[name]) == 1]
    check("inside-a-function", len(inside) == 1, "no offset of do_unlinkat took a probe")
    text, offset = found[inside[0]], int(inside[0].split("_")[1])
    check("hits-happened", keyed(text, "@").get(f"kprobe:do_unlinkat+{offset}", 0) > 0, text)
    check("kprobes/list", re.search(rf"LIST \S+ +k +do_unlinkat\+{offset:#x}", text), text)
    check("boundary", all("no instruction begins" in found[name] for name in found
                          if name.startswith("inside_") and name != inside[0]), str(sorted(found)))
    # The kernel's own bytes there: the breakpoint, or the jump of an optimised one.
    live = re.search(rf"SITE do_unlinkat\+{offset:#x} at .*\n(?:SITE +.*?\b(cc|e9)\b.*)?", text)
    check("sites", live, text)
    if "SITE     " in text:
        check("live-code", live.group(1), text)
    address = found["where"].strip()
    check("hits-happened", keyed(shown(found, "address"), "@").get(f"kprobe:{address}", 0) > 0, found["address"])
    check("fopen", re.search(r"^fopen: /\S+", found["fopen"], re.M), found["fopen"])
    check("hits-happened", keyed(shown(found, "nanosleep"), "@").get("kprobe:do_nanosleep", 0) > 0, found["nanosleep"])
    three = keyed(shown(found, "three"), "@")
    check("hits-happened", len(three) == 3 and min(three.values()) > 0, found["three"])
    check("hits-happened", re.search(r"^open path: passwd$", shown(found, "path"), re.M), found["path"][:2000])
    check("hits-happened", re.search(r"^named --version$", shown(found, "arg_s"), re.M), found["arg_s"])


def changes(found):
    """Switched off and on; a module that goes; no type information; a kernel that locks its memory up."""
    paused = shown(found, "paused")
    check("exact-count", keyed(paused, "@") == {"kprobe:do_filp_open": 2, "kretprobe:do_filp_open": 2}, paused)
    module = shown(found, "module")
    check("hits-happened", keyed(module, "@").get("kprobe:dummy:dummy_xmit", 0) > 0 and scalar(module, "@plain") > 0, module)
    check("unloaded", "UNLOADED" in module and re.search(r"the module dummy has been unloaded: kprobe:dummy:dummy_xmit and 1 more of its probes see", module), module)
    check("sites", re.search(r"SITE dummy:dummy_xmit\+0x\d.*\[kprobe \[FTRACE\]\]", module) and re.search(r"AFTER .*\[kprobe .*\[GONE\]", module), module)
    held = shown(found, "module_held")
    check("hits-happened", sum(keyed(held, "@").values()) > 0, held)
    check("held", "UNLOADED\n" not in held and "UNLOADED_LATER" in held, held)
    records = shown(found, "perf_records")
    check("hits-happened", re.search(r"^opens /etc/passwd$", records, re.M), records)
    check("latency", re.search(r"kretprobe:vfs_read .*\n +# [\d.]+ p50, [\d.]+ p90, [\d.]+ p99, [\d.]+ p99.9, [\d.]+ max usec\n +\d+ +kprobe:vfs_read",
                               found["latency"]), found["latency"])
    check("no-btf", "no type information" in found["no_btf"], found["no_btf"])
    check("hits-happened", min(keyed(shown(found, "no_btf_pair"), "@").values()) > 0, found["no_btf_pair"])
    check("lockdown", re.search(r"no  lockdown +confidentiality", found["locked_info"]), found["locked_info"])
    check("lockdown", "lets no program read its memory" in found["locked"] and "verifier" not in found["locked"], found["locked"])
    # By fprobe it counts; perf events take no kprobe then.
    counts = sum(keyed(found["locked_count"], "@").values())
    check("lockdown", counts > 0 or re.search(r"do_sys_openat2.*locked down \(/sys/kernel/security/lockdown", found["locked_count"]),
          found["locked_count"])


def leftovers(found):
    check("nothing-left", not found["after_all"].strip(), found["after_all"])
    # The definition stays, without effect: the kprobe is not armed.
    check("tracefs-event", len(re.findall(r"EVENT p:spile_", found["killed"])) == 1, found["killed"])
    check("nothing-armed", all("[DISABLED]" in line for line in found["killed"].splitlines() if " k " in line) and
          "LINK" not in found["killed"] and "do_sys_openat2 (" not in found["killed"], found["killed"])
    check("sites", re.search(r"SITE do_sys_openat2\+0x0.*\[DISABLED\]", found["killed"]), found["killed"])
    check("stale-event-removed", "EVENT" not in shown(found, "next") and keyed(found["next"], "@"), found["next"])
    check("nothing-left", not found["killed_many"].strip(), found["killed_many"])
    two = found["two"]
    check("two-at-once", two.count("STATUS 0") == 2 and scalar(two, "@first") == 2 * scalar(two, "@") >= 40, two)


def storm(found):
    text = found["storm"]
    end = re.search(r"(\d+) records lost, (\d+) updates of full maps", text)
    check("storm", end, text[-3000:])
    hits, lines = scalar(text, "@hits"), len(re.findall(r"^hit$", text, re.M))
    # Of two calls in one clock tick one finds the other's key.
    keys = sum(keyed(text, "@").values())
    check("hits-happened", hits >= STORM_HITS, text[-3000:])
    check("exact-or-counted", lines + int(end.group(1)) == hits, f"{lines} lines of {hits}\n{text[-500:]}")
    check("exact-or-counted", keys + int(end.group(2)) == hits, f"{keys} kept of {hits}\n{text[-500:]}")


def refusals(found):
    check("blacklist", re.search(r"asm_exc_int3 is in the kernel's blacklist \(kprobes/blacklist, 0xf", found["blacklist"]),
          found["blacklist"])
    check("blacklist", found["blacklist_file"].strip().startswith("0x"), found["blacklist_file"])
    check("boundary", "no instruction begins 1 bytes into do_filp_open" in found["boundary"], found["boundary"])
    check("hardware", "no performance counter" in found["hardware"], found["hardware"])
    check("denied", re.search(r"root|CAP_BPF", found["denied"]), found["denied"])
    check("no-session", "--attach session" in found["no_session"], found["no_session"])


def counting(found):
    text = found["stat"]
    rows = {name: int(count) for count, name in re.findall(r"^ +(\d+)      (\S+)", text, re.M)}
    check("layout", "\n Performance counter stats for 'system wide':\n\n" in text and
          re.search(r"\n\n +(10|2)\.\d{9} seconds time elapsed", text), text)
    check("hits-happened", min(rows.get(name, 0) for name in ("syscalls:sys_enter_openat", "kprobe:do_filp_open",
                                                              "kretprobe:do_filp_open", "page-faults")) > 0, text)
    # Of all processes the two counters begin and end one after the other; of a command each sees all that it does.
    text = found["stat_command"]
    own = {name: int(count) for count, name in re.findall(r"^ +(\d+)      (\S+)", text, re.M)}
    check("exact-count", own.get("kprobe:do_filp_open", 0) == own.get("kretprobe:do_filp_open") and own["kprobe:do_filp_open"] >= 20, text)
    check("intervals", len(re.findall(r"kprobe:__x64_sys_brk", found["stat_all"])) >= 2, found["stat_all"])
    check("lv", found["lv"].strip().splitlines() == ["tracepoint:raw_syscalls:sys_exit", "    long id", "    long ret"], found["lv"])
    check("list", re.search(r"^  alarmtimer:alarmtimer_cancel {23}\[Tracepoint event\]$", found["list"], re.M), found["list"])
    folders, listed = map(int, found["found"].split())
    check("list", folders == listed > 500, found["found"])


def tools_printed(found):
    for name, pattern in TOOLS.items():
        tools.printed(name, TOOLS_WORDS.get(name, ""), found[f"tool_{name}"], pattern)


def kernel_6_1():
    found = Kernel.get("6.1")
    check_common(found)
    tools_printed(found)
    # No fprobe here: each function by its own perf event, on ftrace.
    check("link-type", "1 LINK perf_event kprobe_0" in found["single"], found["single"])
    check("link-type", "3 LINK perf_event kprobe_0" in found["three"], found["three"])
    check("link-type", re.search(r"LINK perf_event kprobe_0", found["pair"]) and "LINK perf_event kretprobe_1" in found["pair"], found["pair"])
    links = int(re.search(r"(\d+) LINK perf_event kprobe_0", found["vfs"]).group(1))
    check("link-type", links == attached(found["vfs"]), found["vfs"][:3000])
    check("info", re.search(r"no  kprobe.multi", found["info"]) and re.search(r"no  uprobe.multi ", found["info"]), found["info"])


def kernel_with_fprobe(version):
    found = Kernel.get(version)
    check_common(found)
    check("link-type", "1 LINK kprobe_multi kprobe_0 1" in found["single"], found["single"])
    # As enabled_functions tells it: fprobe's own operations, or since 6.14 those of the function graph.
    check("fprobe", re.search(r"^ENABLED \d+ .*(fprobe_handler|fprobe|fgraph|function_graph|ftrace_graph)", found["single"], re.M) and
          "LIST" not in found["single"], found["single"])
    check("link-type", "1 LINK kprobe_multi kprobe_0 3" in found["three"], found["three"])
    # A session is one link at both ends.
    check("link-type", "1 LINK kprobe_multi kprobe_0 1" in found["pair"] and "kretprobe_1" not in found["pair"], found["pair"])
    check("session", "[kretprobe (kprobe.session)]" in found["pair"], found["pair"])
    for name in ("vfs", "tcp"):
        check("link-type", re.search(rf"1 LINK kprobe_multi kprobe_0 {attached(found[name])}$", found[name], re.M), found[name][:3000])
    check("link-type", "LINK uprobe_multi uprobe_0" in found["ustack"], found["ustack"])
    check("missed", re.search(r"[1-9]\d* missed hits", shown(found, "missed")), found["missed"])
    check("info", re.search(r"yes kprobe.session", found["info"]) and re.search(r"yes uprobe.multi ", found["info"]), found["info"])


def kernel_6_12():
    kernel_with_fprobe("6.12")


def newest_kernel():
    """By hand: `test_vm_kernel.py newest_kernel`. Debian's newest, whatever it is."""
    kernel_with_fprobe("newest")


if __name__ == "__main__":
    main([kernel_6_1, kernel_6_12] + ([newest_kernel] if "newest_kernel" in sys.argv else []), 1500)
