"""Writes benchmarks/RESULTS.md from the JSON files that the benchmarks leave: `python benchmarks/render.py [FOLDER]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.measure import RESULTS, ROOT, text

ORDER = ("step", "align", "packing", "sample", "scaling", "deploy", "expert_parallel")
HEADER = """# What was measured, and where

Written by `benchmarks/render.py` from the JSON files of the benchmarks (`make bench` runs all), of which each names its
commit; its own text (`python benchmarks/NAME.py --help`) says what it runs. `naive` is a plain implementation of the same work inside this repository
(`benchmarks/naive/`), as the published code does it; it gives the same losses, chunks and tokens, and contestants take
turns, so the ratios hold where the absolute times would not. `published` was measured with the published trainer itself
on another machine with two cores.

Figures of a GPU, which `benchmarks/gpu.sh` leaves in `benchmarks/results/gpu/`, are in the last section.
"""

# What the tables of a GPU show of each case.
GPU_COLUMNS = {
    "equality": ("case", "family", "strategy", "dtype", "flex", "error", "losses_error", "gradient_error", "same_tokens"),
    "waits": ("case", "engine", "compdemo", "waits_per_forward", "teacher", "forward", "backward", "optimizer"),
    "step": ("case", "teacher", "rows", "engine", "strategy", "compdemo", "flex", "elements", "parts_ms", "tokens_per_s",
             "mfu", "peak_gb", "tflops", "copy_gb_per_s", "failed"),
    "decode": ("name", "batch", "tokens", "graphs", "tokens_per_s", "forwards_per_s", "peak_gb"),
}  # fmt: skip


def render(folder: Path) -> str:
    """The whole page."""
    records = [json.loads(file.read_text()) for name in ORDER if (file := folder / f"{name}.json").is_file()]
    if any(record["quick"] for record in records):
        raise SystemExit(f"{folder} holds figures of --quick runs, which mean nothing")
    targets = [{"benchmark": record["benchmark"], **target} for record in records for target in record["targets"]]
    parts = [HEADER, "## Targets\n", table(targets)] if targets else [HEADER]
    for record in records:
        parts += [f"## {record['benchmark']}\n", settings_line(record)]
        parts += [table(rows) for rows in record["tables"].values()]
    return "\n".join([*parts, *gpu(folder / "gpu")])


def gpu(folder: Path) -> Iterator[str]:
    """The section of a GPU's figures, where there are any: a table for each part."""
    for part, columns in GPU_COLUMNS.items():
        if not (file := folder / f"{part}.json").is_file():
            yield f"## gpu: {part}\n\nNot measured.\n"
            continue
        record = json.loads(file.read_text())
        where, cases = record["environment"], [case for case in record["cases"] if case["case"] != "kernels"]
        if record["toy"]:
            raise SystemExit(f"{file} holds figures of toy sizes, which mean nothing")
        versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
        yield f"## gpu: {part}\n\n{where['device']}, CUDA {where['cuda']}, {where['time']}, {where['commit']}; {versions}.\n"
        shown = [column for column in columns if any(column in case for case in cases)]
        yield table([{column: cell(case.get(column, "")) for column in shown} for case in cases])


def cell(value: Any) -> Any:
    """What a table shows of a nested value: the milliseconds of a step's parts, the waits of each."""
    if isinstance(value, dict):
        return value["waits"] if "waits" in value else ", ".join(f"{name} {ms:.0f}" for name, ms in value.items())
    if isinstance(value, str):
        return value.removeprefix("torch.").split(":")[0]
    return value


def settings_line(record: dict[str, Any]) -> str:
    """Machine, versions and settings of a record, in a few lines."""
    where = record["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    settings = ", ".join(f"{name.replace('_', ' ')} {text(value)}" for name, value in record["settings"].items())
    load = " ".join(f"{x:.1f}" for x in where["load"])
    return f"{where['device']}, {where['cores']} cores, load {load}, {where['time']}, {where['commit']}; {versions}; {settings}.\n"


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys in Markdown."""
    columns = list(rows[0])
    align = ["---" if isinstance(rows[0][column], str) else "---:" for column in columns]
    lines = [columns, align, *([text(row[column]) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    (ROOT / "benchmarks" / "RESULTS.md").write_text(render(folder))
