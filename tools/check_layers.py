#!/usr/bin/env python3
"""Checks that every #include under src/ and include/ obeys the DEPS in the module's CMakeLists.txt.

The one source of truth is spile_module(NAME path DEPS a b c) in src/<path>/CMakeLists.txt.
Rules:  1. a file of module M may include only M and the modules M lists (no transitive leave);
        2. the graph has no cycle;
        3. public headers include only the standard library and <spile/...>, but for those of kernel sources (spile/kernel);
        4. FREESTANDING modules include only what the compiler itself ships;
        5. every module has a README.md whose first line is "# name: input -> output".
Exit 0 when clean; otherwise one line per fault, as file:line: message.
"""
import pathlib, re, sys

ROOT = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".")
FREESTANDING_OK = {"stddef.h", "stdint.h", "stdarg.h", "cpuid.h", "immintrin.h", "atomic", "cstddef", "cstdint"}
PUBLIC_C_HEADERS = {"stddef.h", "stdint.h", "stdio.h", "stdlib.h", "string.h", "sys/types.h"}
TEST_ONLY = {"testing"}
CALL = re.compile(r"spile_module\(([^)]*)\)")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)')

modules = {}  # path -> (deps, freestanding)
for cml in sorted((ROOT / "src").rglob("CMakeLists.txt")):
    for args in CALL.findall(cml.read_text()):
        words = args.split()
        if "LIBS" in words:
            words = words[:words.index("LIBS")]
        deps = words[words.index("DEPS") + 1:] if "DEPS" in words else []
        modules[words[0]] = ({d for d in deps if d != "FREESTANDING"}, "FREESTANDING" in words)

faults = []


def owner(path):
    """The longest module name that is a prefix of path."""
    hits = [m for m in modules if path == m or path.startswith(m + "/")]
    return max(hits, key=len, default=None)


for m, (deps, _) in modules.items():
    for d in deps - modules.keys():
        faults.append(f"src/{m}/CMakeLists.txt:1: unknown module {d}")
    readme = ROOT / "src" / m / "README.md"
    if not readme.exists() or not re.match(r"# \S+: .+ -> .+", readme.read_text().split("\n")[0]):
        faults.append(f"src/{m}/README.md:1: first line must be '# {m}: input -> output'")

state = {}


def visit(m, trail):
    if state.get(m) == "done" or m not in modules:
        return
    if m in trail:
        faults.append(f"src/{m}/CMakeLists.txt:1: cycle {' -> '.join(trail[trail.index(m):] + [m])}")
        return
    for d in sorted(modules[m][0]):
        visit(d, trail + [m])
    state[m] = "done"


for m in modules:
    visit(m, [])

for file in sorted([*(ROOT / "src").rglob("*.h"), *(ROOT / "src").rglob("*.cc"), *(ROOT / "include").rglob("*.h*")]):
    rel = file.relative_to(ROOT).as_posix()
    public = rel.startswith("include/")
    for_kernel_sources = rel.startswith("include/spile/kernel/")
    me = None if public else owner(rel.removeprefix("src/"))
    is_test = rel.endswith(("_test.cc", "_fuzz.cc", "_bench.cc"))
    if not public and me is None:
        faults.append(f"{rel}:1: belongs to no module")
        continue
    for n, line in enumerate(file.read_text().split("\n"), 1):
        hit = INCLUDE.match(line)
        if not hit:
            continue
        quote, name = hit.groups()
        if public:
            standard = re.fullmatch(r"[a-z_]+", name) or name in PUBLIC_C_HEADERS
            if quote == '"' or not (standard or for_kernel_sources or name.startswith("spile/")):
                faults.append(f"{rel}:{n}: a public header may not include {name}")
            continue
        if quote == "<":
            if modules[me][1] and not is_test and name not in FREESTANDING_OK:
                faults.append(f"{rel}:{n}: {me} is freestanding and may not include <{name}>")
            continue
        to = owner(name)
        if to is None:
            faults.append(f"{rel}:{n}: {name} is in no module")
        elif to != me and to not in modules[me][0] and not (is_test and to in TEST_ONLY):
            faults.append(f"{rel}:{n}: {me} may not include {to} ({name}); DEPS are: {' '.join(sorted(modules[me][0])) or 'none'}")

print("\n".join(faults) or f"{len(modules)} modules, {sum(len(d) for d, _ in modules.values())} edges, no fault")
sys.exit(bool(faults))
