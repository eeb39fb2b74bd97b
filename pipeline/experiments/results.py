"""A study's results as one file, and as a table for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.core.files import read_json, write_text
from pipeline.experiments.grid import START, Study
from pipeline.experiments.table import Line, lines
from pipeline.training.held_out import TIMESTEPS

_SAME = ("versions", "device", "commit", "world_size", "zero_stage")


def collect(study: Study) -> dict[str, Any]:
    """Everything that the study's finished runs left, also written to STUDY/results.json.

    `runs` in the order of the variants, the start first; `probe`: what each teacher knows of held-out rows.
    """
    seeds = study.seed_numbers()
    places = [study.start_dir(seed) for seed in seeds] if study.start is not None else []
    places += [study.run_dir(name, seed) for name in study.variants for seed in seeds]
    done = [result for place in places if (result := read_json(place / "result.json"))]
    environments: list[dict[str, Any]] = []
    for result in done:
        own = {name: result["environment"][name] for name in _SAME}
        environments += [own] * (own not in environments)
    probes = sorted(study.folder.glob("*/*/teacher_probe.json"))
    probe: dict[str, Any] = {}
    for path in probes:  # a teacher's probe does not depend on variant or seed
        known = read_json(path)
        probe |= {name: {"t": known["t"], **facts} for name, facts in known["teachers"].items() if name not in probe}
    results = {
        "study": asdict(study),
        "environments": environments,
        "teachers": read_json(study.folder / "teachers.json") or {},
        "probe": probe,
        "runs": [{name: value for name, value in result.items() if name != "environment"} for result in done],
    }
    write_text(study.folder / "results.json", _text(results))
    return results


def _text(results: dict[str, Any]) -> str:
    """JSON with a line a run: differences between two studies can be read."""
    rest = json.dumps({name: value for name, value in results.items() if name != "runs"}, indent=1)
    runs = ",\n".join(json.dumps(run) for run in results["runs"])
    return f'{rest[:-2]},\n "runs": [\n{runs}\n]}}\n'


def show(study: Study, results: dict[str, Any]) -> None:
    """Prints the table, and writes it to STUDY/table.md."""
    compared = lines([r for r in results["runs"] if r["variant"] != START], study.baseline)
    if not compared:
        return
    tables = [cells(compared, study.baseline), by_t(compared)]
    write_text(study.folder / "table.md", "\n\n".join(markdown(*each) for each in tables) + "\n")
    header, rows = tables[0]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, title=f"{study.name}: {study.folder}")
    for i, column in enumerate(header):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    Console(width=console.width if console.is_terminal else 160).print(table)


def cells(compared: Sequence[Line], baseline: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table, as text."""
    teachers = list(dict.fromkeys(name for line in compared for name in line.kl))
    header = ["variant", "seeds", "score", "95% interval", f"minus {baseline}", "95% interval", "p", "p (Holm)"]
    header += [*(f"KL {name}" for name in teachers), "s", "tokens"]
    rows = [
        [
            line.variant,
            str(len(line.scores)),
            f"{line.mean:.3f}",
            f"{line.low:.3f} to {line.high:.3f}",
            _signed(line.difference),
            "" if line.difference is None else f"{line.difference_low:+.3f} to {line.difference_high:+.3f}",
            _number(line.p),
            _number(line.p_holm),
            *(f"{sum(line.kl[t]) / len(line.kl[t]):.3f}" for t in teachers),
            f"{line.seconds:.0f}",
            f"{line.tokens:,.0f}",
        ]
        for line in compared
    ]
    return header, rows


def by_t(compared: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a second table: KL from each teacher to the student at each t."""
    teachers = list(dict.fromkeys(name for line in compared for name in line.kl))
    header = ["variant", *(f"KL {teacher}, t = {t}" for teacher in teachers for t in TIMESTEPS)]
    return header, [[line.variant, *(f"{x:.3f}" for t in teachers for x in line.kl[t])] for line in compared]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    ruled = "|".join(["---", *["---:"] * (len(header) - 1)])
    return "\n".join(["| " + " | ".join(header) + " |", f"|{ruled}|", *("| " + " | ".join(row) + " |" for row in rows)])


def _signed(x: float | None) -> str:
    return "" if x is None else f"{x:+.3f}"


def _number(p: float | None) -> str:
    return "" if p is None else f"{p:.4f}"
