"""Capacity reports as tables, and the one line of a refusal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from pipeline.capacity.capacity_report import GB, CapacityReport, Option


def details(report: CapacityReport) -> Group:
    """One number of GPUs, in full."""
    return Group(_memory(report), _options(report), _compute(report))


def summary(reports: Sequence[CapacityReport]) -> Table:
    """A row for each number of GPUs, as Markdown."""
    columns = ["nodes x GPUs", "EP", "GB per GPU", "of them teachers", "largest micro_tokens", "with checkpointing"]
    columns += ["GB sent per GPU and step", "hours per epoch"]
    table = Table(*(Column(name, justify="right") for name in columns), box=box.MARKDOWN)
    for report in reports:
        plain, checkpointed = (option.micro_tokens for option in report.options if not option.optimizer_offload)
        teachers = sum(size for part, size in report.memory.always.items() if part.startswith("teacher "))
        table.add_row(
            f"{report.machine.nodes} x {report.machine.gpus_per_node}",
            ", ".join(str(size) for size in report.run.plan.expert_parallel_size.values()) or "-",
            f"{report.memory.total / GB:.1f}",
            f"{teachers / GB:.1f}",
            f"{plain:,}",
            f"{checkpointed:,}",
            f"{sum(report.sent.values()) / GB:.1f}",
            _hours(report),
        )
    return table


def refusal(report: CapacityReport) -> str:
    """Why the run cannot be, with the numbers, and what would help."""
    machine = report.machine
    text = (
        f"{machine.nodes} x {machine.gpus_per_node} GPUs: {report.memory.total / GB:.1f} GB per GPU, and "
        f"{machine.limit / GB:.1f} of {machine.gpu_bytes / GB:g} may be used"
    )
    helping = [option for option in report.options if option.micro_tokens]
    if not helping:
        least = min(option.least for option in report.options) / GB
        return f"{text}; one row at a time needs {least:.1f} GB with every saving: take more or larger GPUs"
    best, remedies = 0, []
    for option in helping:  # from no saving to all of them: those that give more than the ones before
        if option.micro_tokens > 1.1 * best:
            best = option.micro_tokens
            remedies.append(_remedy(option, enough=option.total <= machine.limit))
    return f"{text}: set {', or '.join(remedies)}"


def _remedy(option: Option, *, enough: bool) -> str:
    """The settings that help; `enough`: with the recipe's micro_tokens as they are."""
    words = [] if enough else [f"optim.micro_tokens {option.micro_tokens}"]
    words += ["student.activation_checkpointing true"] if option.activation_checkpointing else []
    words += ["--deepspeed ds_configs/zero3_offload.json"] if option.optimizer_offload else []
    return " and ".join(words)


def _memory(report: CapacityReport) -> Table:
    run, machine, memory = report.run, report.machine, report.memory
    recipe = run.plan.recipe
    title = f"{recipe.name} ({recipe.objective.strategy}), {machine.nodes} x {machine.gpus_per_node} GPUs"
    table = _table(title, "GB per GPU")
    for part, size in memory.always.items():
        table.add_row(part, f"{size / GB:.2f}")
    table.add_section()
    largest = max(memory.phases, key=memory.phases.__getitem__)
    for phase, size in memory.phases.items():
        table.add_row(f"{phase}{' (the most: counted)' if phase == largest else ''}", f"{size / GB:.2f}")
        if phase == "student: forward and backward":
            for part, part_size in report.student.items():
                table.add_row(f"    of it {part}", Text(f"{part_size / GB:.2f}", style="dim"))
    table.add_section()
    table.add_row("total", f"{memory.total / GB:.2f}")
    table.add_row(f"usable of {machine.gpu_bytes / GB:g}", f"{machine.limit / GB:.2f}")
    if report.host:
        table.add_row("host memory per node", f"{report.host / GB:.2f}")
    several = "" if run.plan.accumulation == 1 else "es"
    micro_batches = f"{run.plan.accumulation} micro-batch{several} of {run.rows} rows of {run.row_tokens:,} tokens"
    table.caption = f"{run.data.origin}; {micro_batches} per GPU and step"
    return table


def _options(report: CapacityReport) -> Table:
    table = _table("What fits", "GB per GPU", "largest micro_tokens")
    for option in report.options:
        name = "activation checkpointing " + ("on" if option.activation_checkpointing else "off")
        name += ", optimizer on the host" if option.optimizer_offload else ""
        table.add_row(name, f"{option.total / GB:.2f}", f"{option.micro_tokens:,}" if option.micro_tokens else "none")
    return table


def _compute(report: CapacityReport) -> Table:
    table, flops, machine = _table("Compute", ""), report.arithmetic, report.machine
    for name, size in report.sent.items():
        table.add_row(f"sent per GPU and step: {name}", f"{size / GB:,.3f} GB" if size > 1e5 else f"{size:.0f} bytes")
    table.add_section()
    table.add_row("student: forward and backward, per token", f"{flops.student_token / 1e9:,.2f} GFLOP")
    for name, value in flops.teacher_tokens.items():
        table.add_row(f"teacher {name}: forward, per token", f"{value / 1e9:,.2f} GFLOP")
    table.add_row("an average row: all models and heads", f"{flops.row / 1e9:,.2f} GFLOP")
    table.add_section()
    time = report.time
    table.add_row(
        f"arithmetic at {machine.mfu:.0%} of {machine.gpu_flops / 1e12:g} TFLOP/s", _milliseconds(time.compute)
    )
    microseconds = machine.seconds_per_operation * 1e6
    table.add_row(f"launching {report.operations:,} operations at {microseconds:g} us", _milliseconds(time.launch))
    table.add_row("times that the host waits for the GPU", str(time.waits))
    if machine.nodes > 1:
        table.add_row(f"collectives between nodes at {machine.network / GB:g} GB/s", _milliseconds(time.network))
    table.add_row(f"a micro-step, bound by {time.bound_by}", _milliseconds(time.total))
    table.add_row("an epoch", _hours(report) + " hours" * bool(report.epoch))
    return table


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.1f} ms"


def _hours(report: CapacityReport) -> str:
    return f"{report.epoch.hours:,.1f}" if report.epoch else "unknown without --rows"


def _table(title: str, *columns: str) -> Table:
    headers = (Column(name, justify="right") for name in columns)
    return Table("", *headers, title=title, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
