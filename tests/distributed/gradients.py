"""Gradients, losses and updated weights of the first optimizer steps, written by rank 0: launched by test_training.py.

    LAUNCHER tests/distributed/gradients.py OUT --deepspeed CONFIG --recipe X [--section.field value ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from safetensors.torch import save_file

from pipeline.recipe import parse, parser
from pipeline.training.checkpoint import gather_weights
from pipeline.training.metrics import Metrics
from pipeline.training.plan import prepare
from pipeline.training.run import assemble
from pipeline.training.topology import start

STEPS = 2


def main() -> None:
    out = Path(sys.argv.pop(1))
    p = parser(__doc__)
    p.add_argument("--deepspeed")
    p.add_argument("--local_rank", type=int, default=0)
    recipe, flags = parse(p)
    plan = prepare(recipe, Path(flags.deepspeed))
    trainer = assemble(plan, start(timeout_minutes=5))

    from deepspeed.utils import safe_get_full_grad

    found: dict[str, torch.Tensor] = {}
    engine_step = trainer.engine.step

    def step_and_record() -> None:
        if trainer.engine.is_gradient_accumulation_boundary():
            for name, parameter in trainer.engine.module.model.named_parameters():
                found[f"{step}.gradient.{name}"] = safe_get_full_grad(parameter).clone().contiguous()
        engine_step()

    trainer.engine.step = step_and_record
    names = ["cross_entropy", *(t.name for t in recipe.teachers)]
    metrics = Metrics(out.with_suffix(".jsonl"), names, first=0, steps=STEPS, device=trainer.topology.device)
    for step in range(STEPS):  # noqa: B007
        trainer.train_step(step, trainer.micro_batches(step), metrics, [False, False])
        line = metrics.write(step + 1, weights=trainer.weights.tolist())
        found |= {f"{step}.loss.{name}": torch.tensor(line[name], dtype=torch.float64) for name in names}
    weights = gather_weights(trainer.engine.module.model)
    if trainer.topology.rank == 0:
        tied = {id(p): n for n, p in weights.items()}
        save_file(found | {f"weight.{n}": weights[n] for n in tied.values()}, out)


if __name__ == "__main__":
    main()
