"""What became of the real pair's students: `python -m demo.real.measure` writes demo/real/results.json and prints tables.

For the student before training, trained without a teacher, and beside Gemma: held-out loss by t, KL from the teacher by t
(of chunks, T = 1), and what they write for three held-out requests.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch

from pipeline.config.cli import parse, parser
from pipeline.core.checkpoint_files import complete_checkpoints
from pipeline.core.errors import exit_code, leave
from pipeline.core.files import read_json, write_json
from pipeline.core.machine import cpu_name
from pipeline.core.run_directory import read_metrics
from pipeline.decoding import GenerateConfig, generate
from pipeline.distributed.topology import Topology, start
from pipeline.evaluation.checkpoint_under_test import CheckpointUnderTest
from pipeline.training.build import fixed_noise_rows
from pipeline.training.held_out import ByTime, kl_terms, teacher_kl, validation_loss
from pipeline.training.preflight import Plan, prepare
from pipeline.training.step import StudentWithLoss

RECIPE = "demo/real/recipe.yaml"
RUNS = {"undistilled": Path("runs/real-undistilled"), "TIDE-Cross": Path("runs/real")}
RESULTS = Path("demo/real/results.json")
SAMPLES = 3
NEW_TOKENS = 64


@dataclass(frozen=True)
class Measured:
    """One student."""

    loss: ByTime
    """Nats of a masked token."""
    kl: ByTime
    """Nats of a chunk."""
    samples: list[str]
    train_seconds: float


def measure(plan: Plan, topology: Topology, folder: str, seconds: float) -> Measured:
    """The student in a folder, on the recipe's held-out rows."""
    checkpoint = CheckpointUnderTest.of(folder, "float32")
    student = StudentWithLoss(checkpoint.model, (), torch.ones_like).eval()
    without, beside = (fixed_noise_rows(p, "validation", topology) for p in (plan.without_teachers(), plan))
    (term,) = kl_terms(plan.recipe.teachers, plan.dataset.shared_vocab, [None])
    return Measured(
        validation_loss(student, torch.ones_like, without),
        teacher_kl(student, [(term, None)], beside)[term.name],
        [write(checkpoint, plan, request) for request in requests(plan)[:SAMPLES]],
        seconds,
    )


def requests(plan: Plan) -> list[str]:
    """What the held-out rows ask for."""
    lines = Path(plan.recipe.data.validation.path).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"][0]["content"] for line in lines]


def write(checkpoint: CheckpointUnderTest, plan: Plan, request: str) -> str:
    """The student's answer, a token per forward."""
    prompt = checkpoint.control_tokens.encode(checkpoint.render_chat([{"role": "user", "content": request}]))
    size = plan.recipe.student.block_size
    settings = GenerateConfig(max_new_tokens=NEW_TOKENS, block_size=size, steps=NEW_TOKENS, blocks="training")
    (answer,) = generate(checkpoint.model, [prompt], settings)
    return checkpoint.tokenizer.decode(answer, skip_special_tokens=True)


def main() -> None:
    """Measures the three students."""
    recipe = parse(parser(""), ["--recipe", RECIPE])[0]
    plan, topology = prepare(recipe, Path("ds_configs/zero3.json")), start(timedelta(minutes=30))
    by_model = {"start": measure(plan, topology, recipe.student.path, 0.0)}
    for name, run in RUNS.items():
        folder = complete_checkpoints(run)[-1] / "export"
        seconds = sum(line["seconds"] for line in read_metrics(run) if line["kind"] == "train")
        by_model[name] = measure(plan, topology, str(folder), round(seconds, 1))
    environment = read_json(RUNS["TIDE-Cross"] / "environment.json") | {"machine": cpu_name()}
    models = {name: asdict(measured) for name, measured in by_model.items()}
    write_json(RESULTS, {"requests": requests(plan)[:SAMPLES], "models": models, "environment": environment})
    for title in ("loss", "kl"):
        print(f"| {title} at t | {' | '.join(by_model['start'].loss)} |")
        for name, measured in by_model.items():
            print(f"| {name} | {' | '.join(f'{nats:.3f}' for nats in getattr(measured, title).values())} |")


if __name__ == "__main__":
    leave(exit_code("measure", main))
