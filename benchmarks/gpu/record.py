"""A part's record: every case is written down at once, so that a part that is cut short keeps what it has."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "transformers", "tokenizers", "deepspeed", "numpy")


def arguments(description: str) -> argparse.Namespace:
    """The options that all parts have."""
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--out", type=Path, required=True, help="folder of the JSON file")
    p.add_argument("--cpu", action="store_true", help="toy sizes on the CPU: whether it runs; figures mean nothing")
    p.add_argument("--short", action="store_true", help="the most telling cases alone")
    return p.parse_args()


class Record:
    """The JSON file of one part: environment, then a list of cases."""

    def __init__(self, part: str, options: argparse.Namespace):
        self.file, self.started = options.out / f"{part}.json", time.perf_counter()
        options.out.mkdir(parents=True, exist_ok=True)
        self.record: dict[str, Any] = {"part": part, "toy": options.cpu, "environment": environment(), "cases": []}

    def case(self, measure: Callable[..., dict[str, Any]], **settings: Any) -> None:
        """Measures one case and writes it down; one that fails is written down as such, and the next one follows."""
        started, name = time.perf_counter(), getattr(measure, "func", measure).__name__
        try:
            result = measure(**settings)
        except Exception as error:
            result = {"failed": f"{type(error).__name__}: {str(error)[:2000]}", "trace": traceback.format_exc()[-3000:]}
        free_memory()
        line = {**{k: str(v) for k, v in settings.items()}, **result}
        shown = {k: v for k, v in line.items() if k != "trace"}
        print(f"[{time.perf_counter() - self.started:6.1f}s] {name} {json.dumps(shown)}", flush=True)
        line = {"case": name, **line, "took_s": time.perf_counter() - started}
        self.record["cases"].append(line)
        self.file.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")

    def failed(self) -> bool:
        """Whether a case failed, or an equality did not hold."""
        return any("failed" in case or case.get("equal") is False for case in self.record["cases"])


def environment() -> dict[str, Any]:
    """Card, versions and commit."""
    cuda = torch.cuda.is_available()
    git = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT)
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "gpu_memory_gb": torch.cuda.get_device_properties(0).total_memory / 1e9 if cuda else None,
        "cuda": torch.version.cuda,
        "versions": versions,
        "commit": os.environ.get("COMMIT") or git.stdout.strip() or None,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def device() -> str:
    """Where the parts run."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def free_memory() -> None:
    """Gives the memory of what is left behind back to the GPU, and counts the peak from here."""
    import gc

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class Clock:
    """Times of named parts on the GPU's own clock, without a wait between them; on a CPU, the wall clock."""

    def __init__(self) -> None:
        self.marks: list[tuple[str, Any]] = [("", self._now())]

    @staticmethod
    def _now() -> Any:
        if not torch.cuda.is_available():
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def done(self, name: str) -> None:
        """What was issued since the last mark was `name`."""
        self.marks.append((name, self._now()))

    def milliseconds(self) -> dict[str, float]:
        """Waits for the GPU; of each part, and `total`."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            between = lambda a, b: a.elapsed_time(b)
        else:
            between = lambda a, b: 1000 * (b - a)
        pairs = zip(self.marks, self.marks[1:], strict=False)
        parts = {name: between(before, now) for (_, before), (name, now) in pairs}
        return parts | {"total": between(self.marks[0][1], self.marks[-1][1])}


def medians(turns: list[dict[str, float]]) -> dict[str, float]:
    """Of each part, over turns."""
    return {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}


def peak_gb() -> dict[str, float]:
    """Most bytes of tensors since `free_memory`, and most that the allocator held."""
    if not torch.cuda.is_available():
        return {}
    return {"peak_gb": torch.cuda.max_memory_allocated() / 1e9, "reserved_gb": torch.cuda.max_memory_reserved() / 1e9}
