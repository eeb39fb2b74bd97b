"""Where a run stands: what `status` shows on one screen."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from pipeline.core.checkpoint_files import complete_checkpoints
from pipeline.core.files import read_json
from pipeline.core.run_directory import best_file
from pipeline.core.stage_status import read_history, status_file
from pipeline.core.terminal import number_of, span
from pipeline.evaluation.results import Score
from pipeline.reporting.run_record import RunRecord, ValidationLine

RECENT = 20
"""Logging lines that the rate is taken from."""


@dataclass(frozen=True)
class StageStatus:
    """How a stage ended, as in status/STAGE.json."""

    state: str
    exit_code: int
    message: str
    starts: int = 0
    """So far, as status/history.jsonl has them; 0 in a run of an older program."""
    seconds: float = 0.0
    """That all of them took; one that was killed could not say so."""

    @classmethod
    def of(cls, ended: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> StageStatus:
        """From the status file and the stage's lines of the history: a start without an end was killed, or runs."""
        ends = [line for line in history if line["event"] != "started"]
        unended = sum(a["event"] == b["event"] == "started" for a, b in pairwise(history))
        seconds = sum(line.get("seconds", 0.0) for line in ends)
        state, code, message = ended.get("state", ""), ended.get("exit_code", 0), ended.get("message", "")
        return cls(state, code, message, len(ends) + unended, seconds)

    @property
    def line(self) -> str:
        """How it ended, how often it was started, and what it said."""
        starts = f" ({number_of(self.starts, 'start')}, {span(self.seconds)} in all)" if self.starts else ""
        return f"{self.state}, exit code {self.exit_code}{starts}. {self.message}".rstrip(". ")


@dataclass(frozen=True)
class SavedCheckpoint:
    """A complete checkpoint; times in seconds."""

    folder: str
    age: float
    seconds: float | None
    """That saving it took."""


@dataclass(frozen=True)
class RunStatus:
    """What is not known yet is None. Times are in seconds."""

    run: str
    strategy: str
    state: str
    """Of the distillation: `running`, how it ended, `killed` or `not started`."""
    stages: Mapping[str, StageStatus]
    history: Sequence[Mapping[str, Any]]
    """Every start and end of a stage, in order."""
    step: int
    steps: int | None
    ranks: int | None
    last_line_age: float | None
    seconds_per_step: float | None
    tokens_per_second: float | None
    loss: float | None
    terms: Mapping[str, float]
    grad_norm: float | None
    lr: float | None
    validation: ValidationLine | None
    checkpoint: SavedCheckpoint | None
    """The newest."""
    checkpoints: int
    """Complete ones."""
    evaluated: str
    """The newest evaluated step's name; "" without one."""
    scores: Mapping[str, Score]
    """Of that step, by task."""
    best: Mapping[str, Any] | None
    """evaluation/best.json."""

    @property
    def seconds_left(self) -> float | None:
        """Until the last step, at the present rate."""
        return self.seconds_per_step * (self.steps - self.step) if self.seconds_per_step and self.steps else None

    def to_json(self) -> dict[str, Any]:
        """As `status --json` prints it."""
        values = asdict(self) | {"seconds_left": self.seconds_left}
        values["validation"] = self.validation and {"step": self.validation.step, "loss": self.validation.loss}
        scores = {task: score.to_json() for task, score in self.scores.items()}
        values["evaluation"] = {"folder": values.pop("evaluated"), "scores": scores} if values.pop("scores") else None
        return values

    def table(self) -> Table:
        """One screen; a line that has nothing to say is left out."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        for name, text in self._lines():
            table.add_row(name, text)
        return table

    def _lines(self) -> Iterator[tuple[str, str]]:
        yield "run", f"{self.run}  {self.strategy}"
        ranks = f" on {number_of(self.ranks, 'rank')}" if self.ranks else ""
        last = f", last line {span(self.last_line_age)} ago" if self.last_line_age is not None else ""
        yield "state", f"{self.state}{ranks}{last}"
        share = f" ({self.step / self.steps:.0%})" if self.steps else ""
        yield "step", f"{self.step} of {self.steps or '?'}{share}"
        if self.seconds_per_step:
            left = f", {span(self.seconds_left)} left" if self.seconds_left else ""
            yield "rate", f"{self.seconds_per_step:.3g} s/step, {self.tokens_per_second:,.0f} tokens/s{left}"
        if self.loss is not None:
            terms = " + ".join(f"{name} {value:.4f}" for name, value in self.terms.items())
            yield (
                "loss",
                f"{self.loss:.4f} ({terms}); gradient norm {self.grad_norm:.3g}, learning rate {self.lr:.3g}",
            )
        if self.validation:
            yield "validation", f"{self.validation.loss:.4f} at step {self.validation.step}"
        if newest := self.checkpoint:
            took = f", saved in {newest.seconds:.3g} s" if newest.seconds else ""
            yield "checkpoint", f"{newest.folder}{took}, {span(newest.age)} ago; {self.checkpoints} complete"
        else:
            yield "checkpoint", "none yet"
        if self.scores:
            scores = [f"{task} {_value(score)} ({score.bounds or score.n})" for task, score in self.scores.items()]
            yield "evaluation", f"{self.evaluated}: {', '.join(scores)}"
        if self.best:
            yield "best", f"step {self.best['step']}: {self.best['task']} {self.best['value']:.3f}"
        for stage, ended in self.stages.items():
            yield stage, ended.line


def runs_table(runs: Sequence[RunStatus]) -> Table:
    """A line per run."""
    table = Table("run", "state", "step", "left", box=box.SIMPLE_HEAD, pad_edge=False, caption="status RUN says more")
    for run in runs:
        left = span(run.seconds_left) if run.state == "running" and run.seconds_left else ""
        table.add_row(run.run, run.state, f"{run.step} of {run.steps or '?'}", left)
    return table


def run_status(run: RunRecord, now: float) -> RunStatus:
    """Reads what the run's record does not hold: the lock, checkpoints, the stages' status files, ages."""
    files = sorted((run.folder / "status").glob("*.json"), key=lambda path: path.stat().st_mtime)
    stages = {path.stem: read_json(path) for path in files}
    history = read_history(run.folder)
    last = (run.training or [{}])[-1]
    seconds, rate = _rate(run.training)
    checkpoints = complete_checkpoints(run.folder)
    return RunStatus(
        run=str(run.folder),
        strategy=run.strategy,
        state=run_state(run.folder),
        stages={name: StageStatus.of(s, [x for x in history if x["stage"] == name]) for name, s in stages.items()},
        history=history,
        step=int(last.get("step", 0)),
        steps=run.steps,
        ranks=run.world_size,
        last_line_age=_age(run.folder / "metrics.jsonl", now),
        seconds_per_step=seconds,
        tokens_per_second=rate,
        loss=last.get("loss"),
        terms={name: last[name] for name in ("cross_entropy", *run.teachers, "certainty") if name in last},
        grad_norm=last.get("grad_norm"),
        lr=last.get("lr"),
        validation=run.validation[-1] if run.validation else None,
        checkpoint=_saved(checkpoints[-1], now) if checkpoints else None,
        checkpoints=len(checkpoints),
        evaluated=run.last_step,
        scores=run.evaluations.get(run.last_step, {}),
        best=read_json(best_file(run.folder)),
    )


def _saved(folder: Path, now: float) -> SavedCheckpoint:
    complete = folder / "COMPLETE"
    return SavedCheckpoint(folder.name, now - complete.stat().st_mtime, (read_json(complete) or {}).get("seconds"))


def _rate(lines: Sequence[Mapping[str, float]]) -> tuple[float | None, float | None]:
    """Seconds per step and tokens per second of the last lines, validation and checkpoints between them included."""
    recent = lines[-RECENT - 1 :]
    if len(recent) < 2:
        return None, recent[0]["tokens_per_second"] if recent else None
    seconds = sum(line["seconds"] for line in recent[1:])
    return seconds / (recent[-1]["step"] - recent[0]["step"]), sum(line["tokens"] for line in recent[1:]) / seconds


def run_state(folder: Path) -> str:
    """`running` while a process holds the run directory, else how distill ended, `killed` or `not started`."""
    if _is_locked(folder / ".lock"):
        return "running"
    unsaid = "killed" if (folder / "metrics.jsonl").is_file() else "not started"
    return (read_json(status_file(folder, "distill")) or {}).get("state", unsaid)


def _is_locked(lock: Path) -> bool:
    try:
        with lock.open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no file, or a file system without locks
        return False
    return False


def _age(path: Path, now: float) -> float | None:
    return max(0.0, now - path.stat().st_mtime) if path.exists() else None


def _value(score: Score) -> str:
    return "-" if score.value is None else f"{score.value:.3f}"  # programs that were not run yet
