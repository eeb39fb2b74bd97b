"""For people: scores as a table, and responses in the colours of the order in which they were filled."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.colors import to_hex
from rich import box
from rich.table import Column, Table
from rich.text import Text

from pipeline.core.terminal import Console
from pipeline.evaluation.results import Score, TaskSample
from pipeline.evaluation.sweep import SweepPoint


def colour(forward: int, last: int) -> str:
    """From violet (the first forward) to orange (the last); readable on light and on dark."""
    return to_hex(colormaps["plasma"](0.35 + 0.5 * (forward - 1) / max(1, last - 1)))


def ordered(pieces: Sequence[str], filled: Sequence[int]) -> Text:
    """The response, each token in the colour of its forward."""
    last = max(filled, default=1)
    return Text.assemble(*((p, f"bold {colour(f, last)}") for p, f in zip(pieces, filled, strict=True)))


def print_response(console: Console, prompt: str, pieces: Sequence[str], filled: Sequence[int]) -> None:
    """A prompt, its response in colour, and the forward that decided each token, in order of position."""
    console.print(Text(prompt, style="dim"))
    console.print(ordered(pieces, filled))
    legend = Text("forward of each token: ", style="dim")
    console.print(legend + Text(" ").join(Text(str(f), colour(f, max(filled))) for f in filled))
    console.print()


def print_samples(console: Console, samples: Sequence[TaskSample]) -> None:
    """Prompts, answers and verdicts; likelihood tasks show their choices."""
    for sample in samples:
        verdict = {True: "right", False: "wrong", None: ""}[sample.correct]
        console.rule(f"problem {sample.id} {verdict}", align="left")
        if sample.filling:
            print_response(console, sample.prompt, sample.filling.pieces, sample.filling.filled)
        else:
            console.print(Text(sample.prompt, style="dim"))
            for c in sorted(sample.choices, key=lambda c: -c.log_likelihood):
                console.print(f"{c.log_likelihood:9.3f} ± {c.stderr:.3f} {c.text!r}")


def narrow_table(title: str, *columns: Column | str) -> Table:
    """As narrow as it can be: a terminal has 80 columns."""
    return Table(*columns, title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)


def print_scores(console: Console, scores: Sequence[Score], title: str) -> None:
    """The scores, and every alarm with five raw outputs."""
    numbers = ("value", "95% interval", "n", "cut\noff", "tokens\n/s", "forwards\n/token")
    columns = (Column(name, justify="right", overflow="fold") for name in numbers)
    table = narrow_table(title, Column("task", overflow="fold"), Column("metric", overflow="fold"), *columns)
    for s in scores:
        value = "not scored yet" if s.value is None else f"{s.value:.3f}"
        g = s.generation
        speed = [f"{g.truncated:.0%}", f"{g.tokens_per_second:.0f}"] if g else ["", ""]
        cost = f"{g.forwards_per_token:.2f}" if g and g.forwards_per_token is not None else ""
        table.add_row(s.task, s.metric, value, s.bounds, str(s.n), *speed, cost)
    console.print(table)
    for s in scores:
        for alarm in s.alarms:
            console.print(f"{s.task}: {alarm}", style="bold red")
        for output in s.raw_outputs:
            console.print(f"  {output['response']!r}")


SWEEP_HEADINGS = ("decoding", "tokens per forward", "95% interval", "score", "95% interval", "tokens/s", "n")


def sweep_rows(points: Sequence[SweepPoint]) -> list[list[str]]:
    """Cells under SWEEP_HEADINGS."""
    return [
        [
            p.setting,
            f"{p.tokens_per_forward:.2f}",
            p.bounds,
            f"{p.score.value:.3f}",
            p.score.bounds,
            f"{p.score.generation.tokens_per_second:.0f}" if p.score.generation else "",
            str(p.score.n),
        ]
        for p in points
    ]


def print_sweep(console: Console, points: Sequence[SweepPoint], title: str) -> None:
    """Cost and score of one model on one task, a line per setting."""
    columns = (Column(heading.replace(" per ", "\nper "), overflow="fold") for heading in SWEEP_HEADINGS)
    table = narrow_table(title, *columns)
    for row in sweep_rows(points):
        table.add_row(*row)
    console.print(table)
