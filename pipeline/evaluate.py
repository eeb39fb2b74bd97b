"""Scores a checkpoint: `python pipeline/evaluate.py [--recipe X] [--step latest | --model FOLDER --label NAME]`.

Tasks, decoding preset and number of problems are the recipe's `evaluation`. Nothing is fetched for the tasks of this
project; scores and samples go to RUN_DIR/evaluation/STEP or LABEL.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a script: the root, not pipeline/, belongs on the path (this file would hide `evaluate`)
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from pipeline.recipe import BadInput, Recipe, parse, parser
from pipeline.run_directory import (
    complete_checkpoints,
    exit_code,
    record_status,
    step_name,
    write_json,
    write_text,
)


def main() -> None:
    """Checks the command line and what it names, then loads the model and runs the tasks."""
    p = parser(__doc__)
    p.add_argument("--step", default="latest", help="checkpoint of the run: `latest` or a step number")
    p.add_argument("--model", default="", help="score the model in this folder instead of a checkpoint")
    p.add_argument("--label", default="", help="name of the scores of --model (default: the folder's name)")
    recipe, flags = parse(p)
    with record_status(Path(recipe.run_dir), "evaluate") as status:
        if flags.model:
            folder, label = flags.model, flags.label or Path(flags.model).resolve().name
        else:
            folder, label = checkpoint(recipe, flags.step)
            status["step"] = int(label.removeprefix("step-"))
        status["message"] = label
        evaluate(recipe, folder, label)


def checkpoint(recipe: Recipe, step: str) -> tuple[str, str]:
    """The exported model of a step and the step's name. Raises BadInput where there is no complete checkpoint."""
    found = {place.name: str(place / "export") for place in complete_checkpoints(Path(recipe.run_dir))}
    if not found:
        raise BadInput(
            f"no complete checkpoint in {recipe.run_dir}/checkpoints: run `deepspeed pipeline/distill.py` with the same "
            "recipe first"
        )
    name = max(found) if step == "latest" else step_name(int(step)) if step.isdigit() else step
    if name not in found:
        raise BadInput(f"no complete checkpoint {name} in {recipe.run_dir}/checkpoints: there are {', '.join(found)}")
    return found[name], name


def evaluate(recipe: Recipe, folder: str, label: str) -> None:
    """Runs the recipe's tasks on the model in a folder; a task's files are written as soon as it is done."""
    import torch  # seconds, as the harness below: after what can be checked without them

    from pipeline.evaluation.presets import preset, preset_hash
    from pipeline.models import load_teacher, load_tokenizer, read_config

    wanted = recipe.evaluation
    if not wanted.tasks:
        raise BadInput("evaluation.tasks is empty: name a task, as demo_arithmetic")
    if wanted.batch_size < 1 or (wanted.limit is not None and wanted.limit < 1):
        raise BadInput("evaluation.batch_size and evaluation.limit must be at least 1")
    config = preset(wanted.preset, getattr(read_config(folder), "block_size", recipe.student.block_size))

    from pipeline.evaluation.harness import BlockDiffusionLM
    from pipeline.evaluation.run import load_tasks, run_task

    tasks = load_tasks(wanted.tasks)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = load_teacher(folder, dtype=dtype, device=device)  # frozen, of any architecture
    tokenizer = load_tokenizer(folder)
    facts = {
        "model": folder,
        "label": label,
        "preset": wanted.preset,
        "preset_hash": preset_hash(config),
        "settings": {
            **asdict(config),
            "batch_size": wanted.batch_size,
            "limit": wanted.limit,
            "dtype": str(dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or device,
        },
        "versions": {name: version(name) for name in ("torch", "transformers", "lm_eval", "datasets")},
    }
    into, scores = Path(recipe.run_dir) / "evaluation" / label, []
    for name, task in tasks.items():
        lm = BlockDiffusionLM(model, tokenizer, config, wanted.batch_size)
        score, samples = run_task(name, task, lm, wanted.limit)
        scores.append(score)
        write_text(into / f"{name}.samples.jsonl", "".join(json.dumps(s, ensure_ascii=False) + "\n" for s in samples))
        write_json(into / f"{name}.json", score | facts)
    show(scores, f"preset {wanted.preset} ({facts['preset_hash']})", into)


def show(scores: list[dict[str, Any]], title: str, into: Path) -> None:
    """Prints the scores, and every alarm with five raw outputs."""
    console = Console()
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("task", "metric", "value", "95% interval", "n", "cut\noff", "tokens\n/s", "forwards\n/token"):
        table.add_column(column, justify="left" if column in ("task", "metric") else "right")
    for s in scores:
        bounds = "" if s["low"] is None else f"{s['low']:.3f} to {s['high']:.3f}"
        cost = "" if s["forwards_per_token"] is None else f"{s['forwards_per_token']:.2f}"
        facts = (str(s["n"]), f"{s['truncated']:.0%}", f"{s['tokens_per_second']:.0f}", cost)
        table.add_row(s["task"], s["metric"], f"{s['value']:.3f}", bounds, *facts)
    console.print(table)
    for s in scores:
        for alarm in s["alarms"]:
            console.print(f"{s['task']}: {alarm}", style="bold red", markup=False)
        for output in s.get("raw_outputs", []):
            console.print(f"  {output['response']!r}", markup=False)
    console.print(f"written to {into}", markup=False)


if __name__ == "__main__":
    sys.exit(exit_code("evaluate", main))
