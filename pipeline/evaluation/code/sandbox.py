"""One program against its tests, in two sandboxes: the program's process and the judge's.

What is guaranteed, given a kernel without holes: a program cannot read files or environment of the user, reach a network,
see or signal another process, start one (or a thread), outlive its verdict, or use more time, memory or disk than its
limits; and it passes only by giving the values that the tests ask for, call by call. What is not: a program may look the
expected values up if it contains them, keeps state between calls, and is killed, not judged, at the time limit.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from pipeline.core.errors import BadInput
from pipeline.evaluation.code.bubblewrap import PATH, walls
from pipeline.evaluation.code.limits import Limits
from pipeline.evaluation.code.system_calls import system_call_filter

INSIDE = (Path(__file__).parent / "guest.py").read_text(encoding="utf-8")
OUTPUT_KEPT = 2_000  # characters of what the program printed, in its verdict
SIGNALS = {number.value: number.name for number in signal.Signals}


@dataclass(frozen=True)
class Tests:
    """Test program of a problem."""

    __test__ = False  # not pytest's

    setup: str
    """Trusted code that the tests need: imports, helpers of the problem."""
    names: list[str]
    """What the tests use of the candidate, and nothing else of it."""
    tests: str
    """Raises (AssertionError) unless the candidate is right."""


@dataclass(frozen=True)
class Verdict:
    passed: bool
    reason: str
    """passed, wrong answer, error, syntax error, timeout, memory, exited, unsupported (by the sandbox)."""
    detail: str
    """The exception, or how the process ended."""
    output: str
    """The start of what the program printed."""


RIGHT = "def f(x):\n    return 2 * x\n", Tests(setup="", names=["f"], tests="assert f(7) == 14\n")


class Sandbox:
    """`with Sandbox.open(limits) as sandbox: sandbox.judge(program, tests)`, from several threads if wanted."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._filter = system_call_filter()

    @classmethod
    @contextmanager
    def open(cls, limits: Limits) -> Iterator[Sandbox]:
        """Raises BadInput where there is no bwrap, the machine does not let it build its walls (there is no second best), or
        the limits leave a right program no room."""
        probe = cls(Limits())
        with tempfile.TemporaryFile() as output, probe._popen(["-c", "print('inside')"], output=output) as process:
            process.wait(60)
            lines = _start(output).splitlines() or [f"exit code {process.returncode}"]
        if lines != ["inside"]:
            raise BadInput(
                f"generated code runs only in a sandbox, and none can be made here: {lines[-1]}; it needs user "
                "namespaces (containers often forbid them): score the saved samples on a machine that has them"
            )
        sandbox = cls(limits)
        if not (verdict := sandbox.judge(*RIGHT)).passed:
            raise BadInput(
                f"a right program does not pass within these limits ({verdict.reason}: {verdict.detail or verdict.output}): "
                "give --memory_mb, --cpu_seconds and --wall_seconds other values"
            )
        yield sandbox

    def judge(self, program: str, tests: Tests) -> Verdict:
        """The program's verdict. Raises nothing for anything that the program does."""
        with ExitStack() as stack:
            files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
            source, test_source, output = files
            source.write(program.encode("utf-8", "replace"))
            test_source.write(json.dumps(asdict(tests)).encode())
            for file in (source, test_source):
                file.seek(0)
            ask_read, ask_write = os.pipe()
            answer_read, answer_write = os.pipe()
            verdict_read, verdict_write = os.pipe()
            verdict_file = stack.enter_context(os.fdopen(verdict_read, "rb"))
            try:
                candidate = self._start("candidate", source, output, ask_read, answer_write)
                stack.callback(_end, candidate)
                judge = self._start("judge", test_source, None, answer_read, ask_write, verdict_write)
                stack.callback(_end, judge)
            finally:
                for pipe in (ask_read, ask_write, answer_read, answer_write, verdict_write):
                    os.close(pipe)
            try:
                judge.wait(self.limits.wall_seconds)
            except subprocess.TimeoutExpired:
                return Verdict(False, "timeout", f"{self.limits.wall_seconds:g} s of wall time", _start(output))
            body = verdict_file.read()
            verdict = _parsed(body) or {"passed": False, "reason": "exited", "detail": ""}
            if verdict["reason"] == "exited":
                verdict |= self._how(candidate if body else judge)
            return Verdict(**verdict, output=_start(output))

    def _start(self, role: str, stdin: IO[bytes], output: IO[bytes] | None, *pipes: int) -> subprocess.Popen[bytes]:
        limits = json.dumps(self.limits.rlimits())
        return self._popen(["-c", INSIDE, role, limits, *map(str, pipes)], stdin, output, *pipes)

    def _popen(
        self, arguments: list[str], stdin: IO[bytes] | None = None, output: IO[bytes] | None = None, *pipes: int
    ) -> subprocess.Popen[bytes]:
        """Python behind the walls."""
        nothing = subprocess.DEVNULL
        with tempfile.TemporaryFile() as filter_file:  # one for each start: bwrap reads on from where it is
            filter_file.write(self._filter)
            filter_file.seek(0)
            return subprocess.Popen(
                [*walls(self.limits, filter_file.fileno()), *arguments],
                stdin=stdin or nothing, stdout=output or nothing, stderr=output or nothing,
                pass_fds=(*pipes, filter_file.fileno()), env={"PATH": PATH}, cwd="/",
            )  # fmt: skip

    def _how(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """Reason and detail of a process that ended without a word."""
        try:
            code = process.wait(1.0)
        except subprocess.TimeoutExpired:
            return {"detail": "closed its pipes"}
        if code == 128 + signal.SIGXCPU:
            return {"reason": "timeout", "detail": f"{self.limits.cpu_seconds} s of processor time"}
        return {"detail": SIGNALS.get(code - 128, f"exit code {code}")}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its namespace goes with it, and everything in there."""
    process.kill()
    process.wait()


def _parsed(body: bytes) -> dict[str, Any] | None:
    """A verdict's JSON; None where the judge was ended before it had said it. Half surrogate pairs, which no file can hold,
    become question marks."""
    try:
        told = json.loads(body)
    except ValueError:
        return None
    return told | {"detail": told["detail"].encode("utf-8", "replace").decode()}


def _start(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(4 * OUTPUT_KEPT).decode("utf-8", "replace")[:OUTPUT_KEPT]
