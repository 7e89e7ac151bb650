"""Test suites that others wrote, run in one process that forks for each test: python3's, perl's and openssl's.

python3's comes from Debian's package libpython3.11-testsuite; those of perl and openssl from their source packages, fetched once,
kept below ~/.cache/spile, never part of this repository. openssl's tests are linked with the system's own libcrypto.
"""
import glob
import hashlib
import os
import re
import shutil
import subprocess

from harness import Process, Skip, check, need_tool
from instructions import disassemble
from tracing import run, temporary_directory, wait_until

CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "spile")
TESTUTIL = "test/testutil/*.c apps/lib/opt.c apps/lib/fmt.c crypto/ctype.c"

# Reads the name of a test (and its arguments), runs it in a child with its output in a file, tells its status.
PERL_DRIVER = r"""
$| = 1;
my ($folder, $out) = @ARGV;
chdir "$folder/t" or die;
print "ready\n";
while (my $test = <STDIN>) {
  chomp $test;
  my $child = fork;
  if (!$child) {
    open STDIN, "<", "/dev/null"; open STDOUT, ">", $out; open STDERR, ">&", STDOUT;
    $0 = $test; @ARGV = ();
    do "./$test"; print "died: $@\n" if $@;
    exit 0;
  }
  waitpid $child, 0;
  print "status $?\n";
}
"""

PYTHON_DRIVER = r"""
import io, os, sys, unittest
out = sys.argv[2]
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        suite = unittest.defaultTestLoader.loadTestsFromName(line.strip())
        found = unittest.TextTestRunner(stream=io.StringIO()).run(suite)
        for _ in range(found.testsRun): print("ok")
        for test, why in found.failures + found.errors: print("not ok", test)
        sys.stdout.flush()
        os._exit(0)
    print("status", os.waitpid(child, 0)[1], flush=True)
"""

# Each test is a shared object with a main of its own.
OPENSSL_DRIVER = r"""
#include <dlfcn.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char** argv) {
  char line[4096];
  printf("ready %d\n", EVP_MD_get_size(EVP_sha256()));
  fflush(stdout);
  while (argc > 2 && fgets(line, sizeof line, stdin)) {
    pid_t child = fork();
    if (child == 0) {
      char* words[16] = {0};
      int count = 0, status;
      for (char* word = strtok(line, " \n"); word && count < 15; word = strtok(0, " \n")) words[count++] = word;
      int out = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC, 0600);
      dup2(out, 1);
      dup2(out, 2);
      void* test = dlopen(words[0], RTLD_NOW);
      if (!test) return printf("%s\n", dlerror()), 1;
      exit(((int (*)(int, char**))dlsym(test, "main"))(count, words));
    }
    int status = -1;
    waitpid(child, &status, 0);
    printf("status %d\n", status);
    fflush(stdout);
  }
}
"""

PYTHON_TESTS = ["test_json", "test_re", "test_zlib", "test_bz2", "test_lzma", "test_hashlib", "test_struct", "test_float", "test_long", "test_dict",
                "test_set", "test_list", "test_generators", "test_exceptions", "test_decimal", "test_math", "test_unicode", "test_format",
                "test_itertools", "test_functools", "test_heapq", "test_bisect", "test_array", "test_ast", "test_complex", "test_descr"]
# Where a test has words of its own: those after the program.
OPENSSL_DATA = {"evp_test": "test/recipes/30-test_evp_data/*.txt", "bntest": "test/recipes/10-test_bn_data/bn*.txt"}


def _apt_sources(directory):
    """The source packages of the mirrors that this machine's apt uses, as options for it."""
    release = dict(line.split("=", 1) for line in open("/etc/os-release", encoding="utf-8").read().splitlines() if "=" in line)
    suite = release.get("VERSION_CODENAME", "").strip('"')
    mirrors = set()
    for name in ["/etc/apt/sources.list", *glob.glob("/etc/apt/sources.list.d/*")]:
        if os.path.exists(name):
            mirrors.update(re.findall(r"^(?:URIs:|deb(?: +\[.*?\])?) *(\S+/debian(?:-security)?)/?(?:\s|$)", open(name, encoding="utf-8").read(), re.M))
    if not mirrors or not suite:
        raise Skip("no mirror with Debian's sources is known to apt here")
    for part in ("lists/partial", "archives/partial"):
        os.makedirs(f"{directory}/{part}")
    with open(f"{directory}/sources.list", "w", encoding="utf-8") as file:
        for mirror in sorted(mirrors):
            file.write(f"deb-src {mirror} {suite}{'-security' if mirror.endswith('-security') else ''} main\n")
    return ["-q", "-o", f"Dir::Etc::sourcelist={directory}/sources.list", "-o", "Dir::Etc::sourceparts=-", "-o", f"Dir::State::lists={directory}/lists",
            "-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=", "-o", "APT::Sandbox::User=root"]


def fetch_source(package):
    """The unpacked sources of a package, as their authors published them."""
    folder = os.path.join(CACHE, f"source-{package}")
    if os.path.isdir(folder):
        return folder
    need_tool("apt-get")
    with temporary_directory() as directory:
        options = _apt_sources(directory)
        run(["apt-get", *options, "update"], seconds=200)
        versions = re.findall(r"^Version: (\S+)", run(["apt-cache", *options, "showsrc", package], seconds=60).out, re.M)
        for version in reversed(versions):
            got = run(["apt-get", *options, "--download-only", "source", f"{package}={version}"], seconds=300, cwd=directory)
            archives = [one for one in glob.glob(f"{directory}/{package}_*.orig.tar.*") if not one.endswith(".asc")]
            if got.status == 0 and archives:
                break
        else:
            raise Skip(f"the sources of {package} cannot be fetched")
        os.makedirs(f"{directory}/unpacked")
        check("tool-works", run(["tar", "-xf", archives[0], "-C", f"{directory}/unpacked", "--strip-components=1"], seconds=200).status == 0, archives)
        os.makedirs(CACHE, exist_ok=True)
        shutil.copytree(f"{directory}/unpacked", folder + ".new", dirs_exist_ok=True, symlinks=True)
    os.rename(folder + ".new", folder)
    return folder


class Suite:
    """A process that runs tests by name, each in a child of its own."""

    def __init__(self, command, directory, tests, env=None):
        self.out, self.tests = f"{directory}/out", tests
        self.process = Process([*command, self.out], env=env)

    def __enter__(self):
        self.process.wait_for_line("ready", 60)
        return self

    def __exit__(self, *details):
        self.process.__exit__(*details)

    @property
    def pid(self):
        return self.process.pid

    def run(self, test, seconds=600):
        """(status, digest of its output without times and addresses, how many checks passed)"""
        have = len(self.process.out)
        self.process.process.stdin.write(test + "\n")
        self.process.process.stdin.flush()
        wait_until(lambda: len(self.process.out) > have or not self.process.alive(), f"the end of {test}", seconds, 0.005)
        check("target-survives", len(self.process.out) > have, f"{test}\n{self.process.report()}")
        with open(self.out, encoding="utf-8", errors="replace") as file:
            text = file.read()
        passed = len(re.findall(r"^\s*ok\b", text, re.M))
        text = re.sub(r"0x[0-9a-f]+|\d+(\.\d+)? ?(s|ms|sec|seconds)\b|\bpid \d+", "N", text)
        return self.process.out[-1], hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(), passed


def python_suite(directory):
    if run(["/usr/bin/python3", "-c", "import test.test_json"]).status != 0:
        raise Skip("needs python3's own tests (Debian: libpython3.11-testsuite)")
    return Suite(["/usr/bin/python3", "-c", PYTHON_DRIVER, directory], directory, [f"test.{name}" for name in PYTHON_TESTS], {"PYTHONHASHSEED": "1"})


def perl_suite(directory):
    """perl's own tests of its operators and regular expressions, as the installed perl passes them."""
    source = fetch_source("perl")
    config = run(["perl", "-MConfig", "-e", "print $INC{'Config.pm'}"]).out
    for name in glob.glob(os.path.join(os.path.dirname(config), "Config*.p[lm]")):
        shutil.copy(name, os.path.join(source, "lib"))
    os.makedirs(f"{directory}/tree")
    shutil.copytree(source, f"{directory}/tree", dirs_exist_ok=True, symlinks=True)
    os.symlink("/usr/bin/perl", f"{directory}/tree/t/perl")
    with open(f"{directory}/driver.pl", "w", encoding="utf-8") as file:
        file.write(PERL_DRIVER)
    tests = sorted(os.path.relpath(one, f"{source}/t") for part in ("op", "re", "base", "cmd") for one in glob.glob(f"{source}/t/{part}/*.t")
                   if not re.search(r"uniprops|_thr\.t|fold_grind|sleep|time_loop", one))  # minutes each
    return Suite(["/usr/bin/perl", f"{directory}/driver.pl", f"{directory}/tree"], directory, tests, {"PERL_HASH_SEED": "0"})


def openssl_suite(directory):
    """Those of openssl's own tests that ask nothing but what the library exports."""
    source = fetch_source("openssl")
    made = os.path.join(source, "spile-made")
    if not os.path.isdir(made):
        _build_openssl_tests(source, made + ".new")
        os.rename(made + ".new", made)
    with open(f"{directory}/driver.c", "w", encoding="utf-8") as file:
        file.write(OPENSSL_DRIVER)
    built = run(["gcc", "-O1", "-w", "-o", f"{directory}/driver", f"{directory}/driver.c", "-lcrypto", "-lssl", "-ldl"])
    if built.status != 0:
        raise Skip("needs gcc and libssl-dev: " + built.err[:200])
    tests = []
    for path in sorted(glob.glob(made + "/*.so")):
        name = os.path.basename(path)[:-3]
        files = sorted(glob.glob(f"{source}/{OPENSSL_DATA[name]}")) if name in OPENSSL_DATA else [""]
        tests += [f"{path} {one}".strip() for one in files]
    return Suite([f"{directory}/driver", source], directory, tests)


def _build_openssl_tests(source, made):
    for tool in ("gcc", "make", "perl", "ar"):
        need_tool(tool)
    run(["./Configure", "linux-x86_64"], seconds=200, cwd=source)
    check("tool-works", run(["make", "-s", "build_generated"], seconds=600, cwd=source).status == 0, "make build_generated of openssl")
    os.makedirs(made, exist_ok=True)
    flags = ["-O1", "-w", "-fPIC", "-I.", "-Iinclude", "-Iapps/include", "-Iproviders/common/include", "-Iproviders/implementations/include"]
    util = [one for part in TESTUTIL.split() for one in glob.glob(part, root_dir=source)]
    objects = []
    for one in util:
        objects.append(f"{made}/{one.replace('/', '_')}.o")
        check("tool-works", run(["gcc", *flags, "-c", one, "-o", objects[-1]], seconds=100, cwd=source).status == 0, one)
    # An archive: a test may define what it has, too.
    check("tool-works", run(["ar", "crs", f"{made}/libtestutil.a", *objects], cwd=source).status == 0, "ar")
    for one in sorted(glob.glob("test/*test.c", root_dir=source)):
        name = os.path.basename(one)[:-2]
        # What needs the library's insides does not link.
        run(["gcc", *flags, "-shared", "-Wl,-Bsymbolic", "-Wl,-z,defs", "-o", f"{made}/{name}.so", one, f"-Wl,--undefined=main", f"{made}/libtestutil.a",
             "-lcrypto", "-lssl"], seconds=100, cwd=source)


def every_address(path):
    """All instructions inside what the file's unwind tables call functions: also of stripped files."""
    table = subprocess.run(["readelf", "-W", "--debug-dump=frames", path], capture_output=True, text=True, check=False).stdout
    ranges = sorted((int(begin, 16), int(end, 16)) for begin, end in re.findall(r"FDE .*pc=([0-9a-f]+)\.\.([0-9a-f]+)", table))
    check("functions", ranges, f"{path} has no unwind tables")
    found, at = [], 0
    for address, one in sorted(disassemble(path).items()):
        while at < len(ranges) and address >= ranges[at][1]:
            at += 1
        if at < len(ranges) and address >= ranges[at][0] and "(bad)" not in one.text:
            found.append(address)
    return found
