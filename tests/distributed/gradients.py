"""Losses, gradients and updated weights of the first optimizer steps of several recipes; launched by test_training.py.

    LAUNCHER tests/distributed/gradients.py FOLDER CASES     CASES: JSON, {name: [command-line words of distill]}

Rank 0 writes FOLDER/NAME.safetensors.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from deepspeed.utils import safe_get_full_grad
from safetensors.torch import save_file

from pipeline.config.cli import parse, parser
from pipeline.distributed.topology import start
from pipeline.training.build import build_trainer, fixed_noise_rows
from pipeline.training.checkpoint import gather_weights
from pipeline.training.held_out import kl_terms, teacher_kl
from pipeline.training.loop import Requests, Trainer
from pipeline.training.metrics import Metrics
from pipeline.training.preflight import prepare

STEPS = 2


def main() -> None:
    *_, folder, cases = sys.argv  # the launcher puts --local_rank before them
    topology = start(timedelta(minutes=5))
    for name, argv in json.loads(cases).items():
        p = parser(__doc__)
        p.add_argument("--deepspeed")
        recipe, flags = parse(p, argv)
        plan = prepare(recipe, Path(flags.deepspeed))
        trainer = build_trainer(plan, topology)
        student = trainer.engine
        student.eval()
        models = [model for _, model in trainer.teachers]
        terms = kl_terms(plan.recipe.teachers, plan.dataset.shared_vocab, models)
        rows = fixed_noise_rows(plan, "validation", topology)
        kl = teacher_kl(student, list(zip(terms, models, strict=True)), rows) if models and len(rows) else {}
        student.train()
        found = {f"kl.{teacher}": torch.tensor(list(by_t.values())) for teacher, by_t in kl.items()}
        found |= plain_gradients(trainer) if topology.world_size == 1 else {}
        found["accumulation"] = torch.tensor(trainer.accumulation)
        found |= run(trainer, Path(folder) / f"{name}.jsonl")
        if topology.rank == 0:
            save_file(found, Path(folder) / f"{name}.safetensors")


def run(trainer: Trainer, log: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    parameters = dict(trainer.engine.module.model.named_parameters())
    engine_step = trainer.engine.step

    def step_and_record() -> None:
        if trainer.engine.is_gradient_accumulation_boundary():
            found.update({f"gradient.{step}.{n}": safe_get_full_grad(p).clone() for n, p in parameters.items()})
        engine_step()

    trainer.engine.step = step_and_record
    names = ["cross_entropy", *(term.name for term, _ in trainer.teachers)]
    metrics = Metrics(log, names, first=0, steps=STEPS, device=trainer.topology.device)
    for step in range(STEPS):
        micro_batches = trainer.micro_batches(step)
        trainer.train_step(step, micro_batches, trainer.agree(micro_batches, Requests())[0], metrics)
        line = metrics.write(step + 1, weights=trainer.weights.tolist())
        found |= {f"loss.{step}.{n}": torch.tensor(line[n], dtype=torch.float64) for n in names}
    return found | {f"weight.{n}": w.clone() for n, w in gather_weights(trainer.engine.module.model).items()}


def plain_gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The first step's gradients by autograd alone: one micro-batch of the whole global batch, no engine.

    Empty under ZeRO-3, where the module's parameters are not whole.
    """
    if trainer.engine.zero_optimization_stage() == 3:
        return {}
    module, whole = trainer.engine.module, trainer.accumulation
    trainer.accumulation = 1
    (staged,) = trainer.micro_batches(0)
    batch = staged.host
    trainer.accumulation = whole
    counts = [batch.maskable, *(t.count(b) for (t, _), b in zip(trainer.teachers, batch.teachers, strict=True))]
    outputs = [t.teacher_forward(m, b) for (t, m), b in zip(trainer.teachers, batch.teachers, strict=True)]
    means = module(batch, outputs, 0.0) / torch.tensor(counts).clamp(min=1)
    parameters = dict(module.model.named_parameters())
    gradients = torch.autograd.grad((means * trainer.weights).sum(), list(parameters.values()))
    return {f"plain.{n}": g for n, g in zip(parameters, gradients, strict=True)}


if __name__ == "__main__":
    main()
