"""Measuring: contestants in processes of their own that take turns, medians, peak memory, a table and a JSON file.

Absolute times depend on the machine and on who else uses it; ratios of contestants that took turns do so much less.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pipeline.core.machine import cpu_name
from pipeline.distributed.launcher_env import free_port

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Turn:
    """One measured call."""

    seconds: float
    cpu_seconds: float
    """of all threads and of processes that it waited for"""
    peak_bytes: int
    """most memory of the process (on a GPU: of the device's tensors), models and libraries included"""
    result: Any


class Turns(list[Turn]):
    """A contestant's turns."""

    seconds = property(lambda self: statistics.median(turn.seconds for turn in self))
    cpu_seconds = property(lambda self: statistics.median(turn.cpu_seconds for turn in self))
    peak_gb = property(lambda self: max(turn.peak_bytes for turn in self) / 1e9)
    results = property(lambda self: [turn.result for turn in self])


Run = Callable[[int], Any]
"""What is measured: the turn's number in."""
Make = Callable[[], Run]
"""Prepares a contestant, in the process in which it runs; can be pickled."""


def take_turns(contestants: dict[str, Make], options: argparse.Namespace, *, more: int = 1) -> dict[str, Turns]:
    """Every contestant's turns (`more` times as many as asked for), in rounds: a slow minute of the machine hits all.

    A first turn of each does not count. With --quick there are no processes of their own.
    """
    start = _in_process if options.quick else _in_worker
    with ExitStack() as stack:
        workers = {name: stack.enter_context(start(make, options.threads)) for name, make in contestants.items()}
        rounds = [{name: ask(turn) for name, ask in workers.items()} for turn in range(1 + more * options.turns)]
    return {name: Turns(turns[name] for turns in rounds[1:]) for name in contestants}


@contextmanager
def _in_process(make: Make, threads: int) -> Iterator[Callable[[int], Turn]]:
    _prepare(threads)
    yield partial(measure, make())


@contextmanager
def _in_worker(make: Make, threads: int) -> Iterator[Callable[[int], Turn]]:
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, make, threads))
    process.start()
    theirs.close()

    def ask(turn: int) -> Turn:
        try:
            pipe.send(turn)
            return pipe.recv()
        except (BrokenPipeError, EOFError):
            raise SystemExit("a contestant failed: its traceback is above") from None

    try:
        yield ask
    finally:
        pipe.close()  # ends it
        process.join()


def _work(pipe: Any, make: Make, threads: int) -> None:
    _prepare(threads)
    run = make()
    with suppress(EOFError):
        while True:
            pipe.send(measure(run, pipe.recv()))


def _prepare(threads: int) -> None:
    torch.set_num_threads(threads)
    os.environ["MASTER_PORT"] = str(free_port())  # for a process group of one rank


def measure(run: Run, turn: int) -> Turn:
    """One call's time and peak memory."""
    _forget_peak()
    cpu, started = _cpu_seconds(), time.perf_counter()
    result = run(turn)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Turn(time.perf_counter() - started, _cpu_seconds() - cpu, _peak_bytes(), result)


class Parts:
    """Seconds of the parts of one turn: `done(name)` ends a part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def done(self, name: str) -> None:
        """What ran since the last part, or the start, was `name`."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name], self._since = now - self._since, now


def _cpu_seconds() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of the resident set starts anew


def _peak_bytes() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def arguments(description: str, turns: int = 3, threads: int = os.cpu_count() or 1) -> argparse.ArgumentParser:
    """The options that all benchmarks have, with their defaults."""
    p = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--quick", action="store_true", help="toy sizes, one turn: whether it runs; figures mean nothing")
    p.add_argument("--turns", type=int, default=turns, help="measured turns of every contestant")
    p.add_argument("--threads", type=int, default=threads, help="threads of every contestant")
    p.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    return p


def at_most(name: str, value: float, limit: float, unit: str = "") -> dict[str, Any]:
    """A target: a value that must not be above its limit."""
    return {"target": name, "value": value, "limit": f"at most {limit:g}{unit}", "met": value <= limit}


def at_least(name: str, value: float, limit: float, unit: str = "") -> dict[str, Any]:
    """A target: a value that must not be below its limit."""
    return {"target": name, "value": value, "limit": f"at least {limit:g}{unit}", "met": value >= limit}


def report(
    name: str,
    options: argparse.Namespace,
    tables: dict[str, Sequence[dict[str, Any]]],
    targets: Sequence[dict[str, Any]] = (),
    settings: dict[str, Any] | None = None,
) -> None:
    """Prints the tables and writes NAME.json, with what is needed to judge the figures."""
    console = Console(width=max(Console().width, 140))
    for title, content in {**tables, "targets": targets}.items():
        if content:
            console.print(tabulate(title, content))
    record = {
        "benchmark": name,
        "quick": options.quick,
        "settings": {**(settings or {}), "turns": options.turns, "threads": options.threads},
        "environment": environment(),
        "tables": tables,
        "targets": list(targets),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{name}.json"
    file.write_text(json.dumps(record, indent=1) + "\n")
    print(f"{file}: load {' '.join(f'{x:.1f}' for x in os.getloadavg())} on {os.cpu_count()} cores")


def tabulate(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Rows of equal keys as a table."""
    table = Table(title=title)
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*map(text, row.values()))
    return table


def text(value: Any) -> str:
    """A cell: three or four digits for numbers, yes and no for truth values."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def environment() -> dict[str, Any]:
    """Versions, machine and load."""
    packages = ("torch", "transformers", "tokenizers", "deepspeed", "numpy")
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    return {
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "commit": commit.stdout.strip() or None,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
