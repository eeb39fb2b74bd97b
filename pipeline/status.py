"""Where a run stands, on one screen: `python pipeline/status.py [RUN_DIR | --recipe X] [--json]`.

Reads files only, at any time and from any machine that sees the run directory: `watch -n 5 python pipeline/status.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the root, not pipeline/, belongs on the path (evaluate.py would hide `evaluate`)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import fcntl
import json
import time
from datetime import timedelta
from functools import partial
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline.config.cli import parse, parser
from pipeline.core.errors import BadInput, exit_code
from pipeline.core.files import read_json
from pipeline.core.run_directory import best_file, complete_checkpoints, status_file
from pipeline.evaluation.results import Score
from pipeline.reporting.run_record import Run, read_run

RECENT = 20
"""Logging lines that the rate is taken from."""


def main() -> None:
    """Reads the run directory and prints what it says."""
    p = parser(__doc__)
    p.add_argument("run", nargs="?", type=str, default="", help="run directory (default: the recipe's)")
    p.add_argument("--json", action="store_true", help="print it for scripts")
    recipe, flags = parse(p)
    folder = Path(flags.run or recipe.run_dir)
    if not folder.is_dir():
        raise BadInput(f"no run directory {folder}: start `deepspeed pipeline/distill.py`, or name another one")
    found = position(read_run(folder), time.time())
    if flags.json:
        print(json.dumps(found, indent=1))
    else:
        show(found)


def position(run: Run, now: float) -> dict[str, Any]:
    """Everything that the screen shows; what is not known yet is None. Times are in seconds."""
    files = sorted((run.folder / "status").glob("*.json"), key=lambda path: path.stat().st_mtime)
    stages = {path.stem: read_json(path) for path in files}
    last, steps = (run.training or [{}])[-1], run.steps
    seconds, rate = _rate(run.training)
    state, step = _state(run.folder), last.get("step", 0)
    terms = [name for name in ("cross_entropy", *run.teachers) if name in last]
    done = complete_checkpoints(run.folder)
    scores = {task: score.to_json() for task, score in run.evaluations.get(run.last_step, {}).items()}
    return {
        "run": str(run.folder),
        "strategy": run.strategy,
        "state": state,
        "stages": {stage: {k: s.get(k) for k in ("state", "exit_code", "message")} for stage, s in stages.items()},
        "step": step,
        "steps": steps,
        "ranks": run.world_size,
        "last_line_age": _age(run.folder / "metrics.jsonl", now),
        "seconds_per_step": seconds,
        "tokens_per_second": rate,
        "seconds_left": seconds * (steps - step) if seconds and steps else None,
        "loss": last.get("loss"),
        "terms": {name: last[name] for name in terms},
        "grad_norm": last.get("grad_norm"),
        "lr": last.get("lr"),
        "validation": {k: getattr(run.validation[-1], k) for k in ("step", "loss")} if run.validation else None,
        "checkpoint": _checkpoint(done[-1], now) if done else None,
        "checkpoints": len(done),
        "evaluation": {"folder": run.last_step, "scores": scores} if scores else None,
        "best": read_json(best_file(run.folder)),
    }


def _checkpoint(place: Path, now: float) -> dict[str, Any]:
    """Its name, its age, and how long it took to save."""
    complete = place / "COMPLETE"
    return {"folder": place.name, "age": _age(complete, now), "seconds": (read_json(complete) or {}).get("seconds")}


def _rate(lines: list[dict[str, Any]]) -> tuple[float | None, float | None]:
    """Seconds a step and tokens a second of the last lines, validation and checkpoints between them included."""
    recent = lines[-RECENT - 1 :]
    if len(recent) < 2:
        return None, recent[0]["tokens_per_second"] if recent else None
    seconds = sum(line["seconds"] for line in recent[1:])
    return seconds / (recent[-1]["step"] - recent[0]["step"]), sum(line["tokens"] for line in recent[1:]) / seconds


def _state(folder: Path) -> str:
    """Of the distillation: `running` while a process holds the run, else as it ended; `killed` where it could not say."""
    if _held(folder / ".lock"):
        return "running"
    unsaid = "killed" if (folder / "metrics.jsonl").is_file() else "not started"
    return (read_json(status_file(folder, "distill")) or {}).get("state", unsaid)


def _held(lock: Path) -> bool:
    try:
        with lock.open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _age(path: Path, now: float) -> float | None:
    return max(0.0, now - path.stat().st_mtime) if path.exists() else None


def show(found: dict[str, Any]) -> None:
    """Prints one screen; a line that has nothing to say is left out."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    for name, text in _lines(found):
        table.add_row(name, text)
    Console(highlight=False).print(table)


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    last = f", last line {_span(found['last_line_age'])} ago" if found["last_line_age"] is not None else ""
    ranks = f" on {found['ranks']} ranks" if found["ranks"] else ""
    lines = [("run", f"{found['run']}  {found['strategy']}"), ("state", f"{found['state']}{ranks}{last}")]
    share = f" ({found['step'] / found['steps']:.0%})" if found["steps"] else ""
    lines.append(("step", f"{found['step']} of {found['steps'] or '?'}{share}"))
    if found["seconds_per_step"]:
        left = f", {_span(found['seconds_left'])} left" if found["seconds_left"] else ""
        lines.append(
            ("rate", f"{found['seconds_per_step']:.3g} s/step, {found['tokens_per_second']:,.0f} tokens/s{left}")
        )
    if found["loss"] is not None:
        terms = " + ".join(f"{name} {value:.4f}" for name, value in found["terms"].items())
        facts = f"gradient norm {found['grad_norm']:.3g}, learning rate {found['lr']:.3g}"
        lines.append(("loss", f"{found['loss']:.4f} ({terms}); {facts}"))
    if found["validation"]:
        lines.append(("validation", f"{found['validation']['loss']:.4f} at step {found['validation']['step']}"))
    if place := found["checkpoint"]:
        took = f", saved in {place['seconds']:.3g} s" if place["seconds"] else ""
        lines.append(
            ("checkpoint", f"{place['folder']}{took}, {_span(place['age'])} ago; {found['checkpoints']} complete")
        )
    else:
        lines.append(("checkpoint", "none yet"))
    if evaluation := found["evaluation"]:
        scores = [
            f"{task} {s['value']:.3f} ({Score.from_json(s).bounds or s['n']})"
            for task, s in evaluation["scores"].items()
        ]
        lines.append(("evaluation", f"{evaluation['folder']}: {', '.join(scores)}"))
    if best := found["best"]:
        lines.append(("best", f"step {best['step']}: {best['task']} {best['value']:.3f}"))
    for stage, status in found["stages"].items():
        lines.append((stage, f"{status['state']}, exit code {status['exit_code']}. {status['message']}".rstrip(". ")))
    return lines


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


command = partial(exit_code, "status", main)
"""The console command `tide-status`; returns the exit code."""

if __name__ == "__main__":
    sys.exit(command())
