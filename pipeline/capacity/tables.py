"""The answer of `plan` as tables, and the one line of a refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

Record = Mapping[str, Any]


def details(answer: Record) -> Group:
    """One number of GPUs, in full."""
    return Group(_memory(answer), _options(answer), _work(answer))


def summary(answers: Sequence[Record]) -> Table:
    """A row for each number of GPUs, as Markdown."""
    table = Table(box=box.MARKDOWN)
    columns = ["nodes x GPUs", "EP", "GB a GPU", "of them teachers", "largest micro_tokens", "with checkpointing"]
    for column in [*columns, "GB sent a GPU and step", "hours an epoch"]:
        table.add_column(column, justify="right")
    for answer in answers:
        plain, checkpointed = (o["micro_tokens"] for o in answer["options"] if not o["optimizer_offload"])
        table.add_row(
            f"{answer['nodes']} x {answer['gpus_per_node']}",
            ", ".join(str(size) for size in answer["expert_parallel_size"].values()) or "-",
            f"{answer['total_gb']:.1f}",
            f"{sum(size for part, size in answer['memory_gb'].items() if part.startswith('teacher')):.1f}",
            f"{plain:,}",
            f"{checkpointed:,}",
            f"{sum(answer['sent_gb_a_step'].values()):.1f}",
            _hours(answer),
        )
    return table


def refusal(answer: Record) -> str:
    """Why the run cannot be, with the numbers, and what would help."""
    size = f"{answer['nodes']} x {answer['gpus_per_node']} GPUs"
    text = f"{size}: {answer['total_gb']:.1f} GB a GPU, and {answer['limit_gb']:.1f} of {answer['gpu_memory_gb']:g} may be used"
    helping = [option for option in answer["options"] if option["micro_tokens"]]
    if not helping:
        least = min(option["least_gb"] for option in answer["options"])
        return f"{text}; one row at a time needs {least:.1f} GB with every saving: take more or larger GPUs"
    best, remedies = 0, []
    for option in helping:  # from no saving to all of them: those that give more than the ones before
        if option["micro_tokens"] > 1.1 * best:
            best = option["micro_tokens"]
            remedies.append(_remedy(option, enough=option["total_gb"] <= answer["limit_gb"]))
    return f"{text}: set {', or '.join(remedies)}"


def _remedy(option: Record, *, enough: bool) -> str:
    """The settings that help; `enough`: with the recipe's micro_tokens as they are."""
    words = [] if enough else [f"optim.micro_tokens {option['micro_tokens']}"]
    words += ["student.activation_checkpointing true"] if option["activation_checkpointing"] else []
    words += ["--deepspeed ds_configs/zero3_offload.json"] if option["optimizer_offload"] else []
    return " and ".join(words)


def _memory(answer: Record) -> Table:
    table = _table(
        f"{answer['recipe']} ({answer['strategy']}), {answer['nodes']} x {answer['gpus_per_node']} GPUs", "GB a GPU"
    )
    for part, size in answer["memory_gb"].items():
        table.add_row(part, f"{size:.2f}")
    table.add_section()
    longest = max(answer["phases_gb"], key=answer["phases_gb"].get)
    for phase, size in answer["phases_gb"].items():
        table.add_row(f"{phase}{' (the most: counted)' if phase == longest else ''}", f"{size:.2f}")
        if phase == "student: forward and backward":
            for part, own in answer["student_gb"].items():
                table.add_row(f"    of it {part}", f"[dim]{own:.2f}[/dim]")
    table.add_section()
    table.add_row("total", f"{answer['total_gb']:.2f}")
    table.add_row(f"usable of {answer['gpu_memory_gb']:g}", f"{answer['limit_gb']:.2f}")
    if answer["host_gb_a_node"]:
        table.add_row("host memory a node", f"{answer['host_gb_a_node']:.2f}")
    rows = f"{answer['accumulation']} micro-batches of {answer['rows_at_once']} rows of {answer['row_tokens']:,} tokens"
    table.caption = f"{answer['data']}; {rows} a GPU and step"
    return table


def _options(answer: Record) -> Table:
    table = _table("What fits", "GB a GPU", "largest micro_tokens")
    for option in answer["options"]:
        name = "activation checkpointing " + ("on" if option["activation_checkpointing"] else "off")
        name += ", optimizer on the host" if option["optimizer_offload"] else ""
        table.add_row(
            name, f"{option['total_gb']:.2f}", f"{option['micro_tokens']:,}" if option["micro_tokens"] else "none"
        )
    return table


def _work(answer: Record) -> Table:
    table = _table("Work", "")
    for name, size in answer["sent_gb_a_step"].items():
        table.add_row(f"sent a GPU and step: {name}", f"{size:,.3f} GB" if size > 1e-4 else f"{size * 1e9:.0f} bytes")
    table.add_section()
    for name, value in answer["tflop"].items():
        table.add_row(name, f"{1000 * value:,.2f} GFLOP")
    table.add_section()
    table.add_row(
        f"an epoch at {answer['mfu']:.0%} of {answer['gpu_tflops']:g} TFLOP/s",
        _hours(answer) + " hours" * bool(answer["rows"]),
    )
    return table


def _hours(answer: Record) -> str:
    return "unknown without --rows" if answer["hours_an_epoch"] is None else f"{answer['hours_an_epoch']:,.1f}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table
