"""A teacher that knows no number for one row; launched by test_resume.py.

    LAUNCHER tests/distributed/not_finite.py OUT [command line of distill]

Every rank writes OUT.rankN: what the step says, twice, and whether the student is unchanged.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch

from pipeline.config.cli import parse, parser
from pipeline.distributed.topology import start
from pipeline.training.build import build_trainer
from pipeline.training.checkpoint import gather_weights
from pipeline.training.loop import Requests, Trainer
from pipeline.training.metrics import Metrics
from pipeline.training.preflight import prepare


def main() -> None:
    _, *words = [word for word in sys.argv if not word.startswith("--local_rank")]
    p = parser(__doc__)
    p.add_argument("--deepspeed")
    recipe, flags = parse(p, words[1:])
    trainer = build_trainer(prepare(recipe, Path(flags.deepspeed)), start(timedelta(minutes=5)))
    rows = [set(trainer.rows[n].teachers[0].ids.tolist()) for n in range(len(trainer.rows))]
    odd = rows[-1].difference(*rows[:-1])
    trainer.teachers[0][1].get_input_embeddings().weight[list(odd)] = torch.nan
    before = gather_weights(trainer.engine.module.model)
    message, again = (step(trainer) for _ in range(2))
    after = gather_weights(trainer.engine.module.model)
    unchanged = all(torch.equal(before[name], after[name]) for name in before)
    found = {"message": message, "again": again, "unchanged": unchanged}
    Path(f"{words[0]}.rank{trainer.topology.rank}").write_text(json.dumps(found))


def step(trainer: Trainer) -> str:
    metrics = Metrics(Path("/dev/null"), ["", ""], first=0, steps=1, device=trainer.topology.device)
    try:
        micro_batches = trainer.micro_batches(0)
        trainer.train_step(0, micro_batches, trainer.agree(micro_batches, Requests())[0], metrics)
    except FloatingPointError as error:
        return str(error)
    return "a step was taken"


if __name__ == "__main__":
    main()
