"""Real work through real libraries, on demand: one process answers each request with a checksum of what it did.

The work is done by Debian's python3, whose modules are thin covers of the libraries that are probed: the calls that reach the
library are known from the request. Each answer of a traced process must be that of the same process before.
"""
import os
import re

from harness import Picture, Process, Skip, check
from tracing import wait_until

PYTHON = "/usr/bin/python3"  # Debian's: its modules are linked against Debian's libraries

DRIVER = r"""
import hashlib, os, sys, threading
digest = None
def feed(value):
    digest.update(value if isinstance(value, bytes) else repr(value).encode())
def answer(rounds):
    global digest
    digest = hashlib.md5(usedforsecurity=False)
    for number in range(rounds):
        work(number)
    return digest.hexdigest()
@WORK@
def parallel(rounds):
    found = [None] * 8
    def one(index):
        found[index] = [native(index * 100 + n) for n in range(rounds)]
    threads = [threading.Thread(target=one, args=(index,)) for index in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return hashlib.md5(repr(found).encode(), usedforsecurity=False).hexdigest()
answer(1)
print("ready", flush=True)
for line in sys.stdin:
    words = line.split()
    print((parallel if words[0] == "parallel" else answer)(int(words[1])), flush=True)
"""

ZLIB = r"""
import zlib
TEXT = b"".join(b"%d the quick brown fox %x\n" % (n * 7919, n * n) for n in range(400))
def work(number):
    for level in (1, 6, 9):
        packed = zlib.compress(TEXT[number % 50:], level)
        feed(packed)
        feed(zlib.decompress(packed) == TEXT[number % 50:])
    feed(zlib.crc32(TEXT))
    feed(zlib.adler32(TEXT))
def native(number):
    packed = zlib.compress(TEXT * 3 + b"%d" % number, 1 + number % 9)
    return zlib.crc32(packed), len(zlib.decompress(packed))
"""

CRYPTO = r"""
NAMES = ["sha1", "sha224", "sha256", "sha384", "sha512", "sha3_224", "sha3_256", "sha3_512", "blake2b512", "blake2s256",
         "sm3", "ripemd160", "shake_128"]
NAMES = [name for name in NAMES if name in hashlib.algorithms_available]
import hmac, ssl
DATA = bytes(range(256)) * 37
def one(name, data):
    made = hashlib.new(name, data)
    return made.digest(20) if name.startswith("shake") else made.digest()
def work(number):
    for name in NAMES:
        feed(one(name, DATA[number % 70:]))
    feed(hashlib.pbkdf2_hmac("sha256", DATA[:20], b"salt%d" % number, 50))
    feed(hashlib.scrypt(b"word", salt=b"salt%d" % number, n=16, r=8, p=1, dklen=32))
    feed(hmac.digest(b"key", DATA, "sha512"))
    feed(len(ssl.create_default_context().get_ciphers()) > 3)
def native(number):
    return one(NAMES[number % len(NAMES)], DATA * 3 + b"%d" % number)
"""

SQLITE = r"""
import sqlite3
def work(number):
    base = sqlite3.connect(":memory:")
    base.execute("create table t(a integer primary key, b text, c real)")
    base.executemany("insert into t values(?,?,?)",
                     [(n, "row%d" % (n * 7919 % 1009), n * 0.5 + number) for n in range(600)])
    base.execute("create index tb on t(b)")
    for query in ("select count(*), sum(a), round(sum(c), 2) from t where b like 'row1%'",
                  "select b, count(*) from t group by b order by 2 desc, 1 limit 5",
                  "select group_concat(b) from (select b from t order by b desc limit 10)",
                  "with recursive n(i) as (select 1 union all select i + 1 from n where i < 200) select sum(i * i) from n",
                  "select json_extract('{\"a\": [1, 2, {\"b\": 3}]}', '$.a[2].b'), printf('%08.3f|%s', 3.14159, 'x')",
                  "select upper(b), a % 7, c / 3 from t where a between 10 and 20 order by c desc"):
        feed(base.execute(query).fetchall())
    base.execute("update t set c = c * 2 where a % 3 = 0")
    base.execute("delete from t where a % 7 = 0")
    feed(base.execute("select count(*), round(sum(c), 2), max(b), min(b) from t").fetchall())
    feed("\n".join(base.iterdump()))
    base.close()
def native(number):
    base = sqlite3.connect(":memory:")
    row = base.execute("with recursive n(i) as (select 1 union all select i + 1 from n where i < 300)"
                       " select sum(i * i) + ? from n", (number,)).fetchone()
    base.close()
    return row
"""

LZMA = r"""
import lzma, bz2
TEXT = b"".join(b"%d the quick brown fox %x\n" % (n * 7919, n * n) for n in range(300))
def work(number):
    for module in (lzma, bz2):
        packed = module.compress(TEXT[number % 50:])
        feed(packed)
        feed(module.decompress(packed) == TEXT[number % 50:])
def native(number):
    packed = bz2.compress(TEXT + b"%d" % number)
    return len(packed), bz2.decompress(packed)[-9:]
"""

INTERPRETER = r"""
import ast, collections, decimal, fractions, itertools, json, math, random, re, string, struct, textwrap
class Node:
    def __init__(self, depth):
        self.left = Node(depth - 1) if depth else None
        self.right = Node(depth - 1) if depth else None
    def size(self):
        return 1 + (self.left.size() + self.right.size() if self.left else 0)
def numbers(n):
    while n != 1:
        yield n
        n = n // 2 if n % 2 == 0 else 3 * n + 1
def caught(n):
    try:
        return caught(n - 1) if n else {}["missing"]
    except KeyError as error:
        raise ValueError(n) from error
    finally:
        feed(n)
def work(number):
    dice = random.Random(number)
    feed(Node(7).size())
    feed(sum(numbers(27 + number)))
    table = {"k%d" % i: [dice.random(), dice.randrange(1 << 70), str(i) * 3] for i in range(60)}
    feed(json.loads(json.dumps(table)) == table)
    feed(sorted(table, key=lambda key: table[key][0]))
    feed(re.sub(r"(\w)(\d+)", r"<\2\1>", " ".join(table)))
    feed(struct.pack("<id8sQ", number, math.pi, b"abc", 1 << 63))
    feed(decimal.Decimal(number + 2).sqrt() + sum(fractions.Fraction(1, n) for n in range(1, 30)).numerator)
    feed(math.factorial(80) % (10 ** 9 + 7) + pow(3, 1 << 64, (1 << 127) - 1))
    feed(ast.dump(ast.parse("def f(a, *b, c=1, **d): return [x for x in a if x] or {**d}")))
    feed(collections.Counter(itertools.permutations("abcd")).most_common(3))
    feed(textwrap.fill(string.printable * 5, 40).encode("utf-16").decode("utf-16").upper())
    try:
        caught(12)
    except ValueError as error:
        feed(error)
def native(number):
    return math.factorial(100 + number % 10) % 1000003
"""


NUMBERS = r"""
import cmath, math, struct, time
def work(number):
    for n in range(200):
        x = (n + 1) * 0.37 + number
        feed(struct.pack("<12d", math.sin(x), math.cos(x), math.tan(x), math.exp(x / 50), math.log(x), math.pow(x, 1.5), math.atan2(x, 3),
                         math.sinh(x / 90), math.gamma(x / 20 + 1), math.erf(x / 9), math.fmod(x, 0.7), math.hypot(x, 2)))
        feed(struct.pack("<4d", *[part for z in (cmath.exp(complex(x / 90, n)), cmath.sqrt(complex(-x, n))) for part in (z.real, z.imag)]))
def native(number):
    return math.sin(number)
"""

LOADER = r"""
import ctypes, threading
def work(number):
    for n in range(20):
        made = []
        thread = threading.Thread(target=lambda: made.append(n))
        thread.start()
        thread.join()
        feed(made)
    for name in ("libm.so.6", "libresolv.so.2", "libutil.so.1", "libanl.so.1"):
        feed(ctypes.CDLL(name)._handle != 0)
def native(number):
    return number
"""

# All of them in one process.
TOGETHER = "SPACES = []\n" + "".join(
    f"SPACES.append(dict(globals()))\nexec({body!r}, SPACES[-1])\n" for body in (ZLIB, CRYPTO, SQLITE, LZMA, INTERPRETER, NUMBERS)) + r"""
def work(number):
    for space in SPACES:
        space["work"](number)
def native(number):
    return [space["native"](number) for space in SPACES]
"""


class Work:
    """`library` is a pattern of a mapped file's path; `exact` says how often one round calls a function of it.

    `shared_frames`: functions that jump to another that jumps back to them. That is one call with one return, entered twice."""

    def __init__(self, name, library, body, exact=None, shared_frames=(), rounds=3):
        self.name, self.library, self.exact, self.rounds = name, library, exact or {}, rounds
        self.shared_frames = set(shared_frames)
        self.driver = DRIVER.replace("@WORK@", body)


WORKS = {work.name: work for work in (
    # Three levels a round, each packed and unpacked once: CPython's module calls these once for each.
    Work("libz", r"/libz\.so", ZLIB, {"deflateInit2_": 3, "deflateEnd": 3, "inflateInit2_": 3, "inflateEnd": 3}),
    # hashlib.scrypt asks twice: the first call only checks the parameters.
    Work("libcrypto", r"/libcrypto\.so", CRYPTO, {"PKCS5_PBKDF2_HMAC": 1, "EVP_PBE_scrypt": 2}),
    Work("libsqlite3", r"/libsqlite3\.so", SQLITE, {"sqlite3_open_v2": 1, "sqlite3_close_v2": 1},
         ["sqlite3BtreeNext", "sqlite3BtreePrevious", "sqlite3PcacheFetchFinish", "sqlite3VdbeAddOp3", "sqlite3WhereSplit"]),
    Work("liblzma", r"/liblzma\.so", LZMA),
    Work("libbz2", r"/libbz2\.so", LZMA, {"BZ2_bzCompressInit": 1, "BZ2_bzDecompressInit": 1}),
    Work("libc", r"/libc[.-]", INTERPRETER),
    Work("libm", r"/libm[.-]", NUMBERS, {"sinh": 200}),
    Work("ld.so", r"/ld-linux", LOADER),
    Work("python3", r"/python3[.\d]*$", INTERPRETER),
    Work("together", r"/libc[.-]", TOGETHER),
)}


class Worker:
    """A process that does one Work on request."""

    def __init__(self, work):
        if not os.access(PYTHON, os.X_OK):
            raise Skip(f"needs {PYTHON}")
        self.work = work
        # A fixed hash seed: dictionaries of strings are walked in the same order in every process.
        self.process = Process([PYTHON, "-I", "-c", work.driver], env={"PYTHONHASHSEED": "1"})

    def __enter__(self):
        self.process.wait_for_line("ready", 60)
        return self

    def __exit__(self, *details):
        self.process.__exit__(*details)

    @property
    def pid(self):
        return self.process.pid

    def begin(self, kind="work", rounds=None):
        """Asks without waiting; `end` waits for the answer."""
        self.answers = len(self.process.out)
        self.process.process.stdin.write(f"{kind} {rounds or self.work.rounds}\n")
        self.process.process.stdin.flush()

    def working(self):
        return len(self.process.out) == self.answers and self.process.alive()

    def end(self, seconds=120):
        wait_until(lambda: not self.working(), "an answer", seconds, 0.005)
        check("target-survives", len(self.process.out) > self.answers, self.process.report())
        return self.process.out[self.answers]

    def ask(self, kind="work", rounds=None):
        self.begin(kind, rounds)
        return self.end()

    def library(self):
        """The path of the probed file, as it is mapped."""
        for name, _ in Picture(self.pid).text.values():
            if re.search(self.work.library, name):
                return name
        raise Skip(f"{PYTHON} has no {self.work.library} mapped")

    def resident_kib(self):
        with open(f"/proc/{self.pid}/status", encoding="utf-8") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1))
