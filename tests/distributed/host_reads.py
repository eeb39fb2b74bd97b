"""Where one training step reads what the device computed, by engine file; launched by test_precision.py.

    LAUNCHER tests/distributed/host_reads.py OUT [command line of distill, --deepspeed apart] -- ENGINE...

Rank 0 writes OUT: {engine: {"synchronize": calls, "reads": [files of the project], "dtypes": {...}}}.
"""

from __future__ import annotations

import json
import sys
import traceback
from datetime import timedelta
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from deepspeed.accelerator import get_accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.config.cli import parse, parser
from pipeline.distributed.topology import start
from pipeline.training.build import build_trainer
from pipeline.training.loop import Requests
from pipeline.training.metrics import Metrics
from pipeline.training.preflight import prepare

READS = ("aten._local_scalar_dense.default", "aten.nonzero.default", "aten.is_nonzero.default", "aten.equal.default")


class Reads(TorchDispatchMode):
    """Notes the innermost file of the project's, DeepSpeed's or transformers' of every operation that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.files: set[str] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        by_mask = str(operation) == "aten.index.Tensor" and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        if by_mask or str(operation) in READS:
            frames = [f.filename for f in traceback.extract_stack()]
            ours = [f for f in frames if any(part in f for part in ("/pipeline/", "/deepspeed/", "/transformers/"))]
            self.files.add(ours[-1])
        return operation(*args, **(kwargs or {}))


def main() -> None:
    _, *words = [word for word in sys.argv if not word.startswith("--local_rank")]
    out, words, engines = words[0], words[1 : words.index("--")], words[words.index("--") + 1 :]
    topology = start(timedelta(minutes=5))
    results = {}
    for engine_file in engines:
        recipe, _ = parse(parser(__doc__), words)
        trainer = build_trainer(prepare(recipe, Path(engine_file)), topology)
        names = ["cross_entropy", *(term.name for term, _ in trainer.teachers)]
        metrics = Metrics(Path("/dev/null"), names, first=0, steps=9, device=topology.device)
        for step in range(2):
            micro_batches = trainer.micro_batches(step)
            trainer.train_step(step, micro_batches, trainer.agree(micro_batches, Requests())[0], metrics)
        micro_batches, waits = trainer.micro_batches(2), []
        accelerator = get_accelerator()
        accelerator.synchronize = lambda *_, waits=waits: waits.append(1)
        with Reads() as reads:
            trainer.train_step(2, micro_batches, trainer.agree(micro_batches, Requests())[0], metrics)
        del accelerator.synchronize
        engine = trainer.engine
        results[Path(engine_file).stem] = {
            "synchronize": len(waits),
            "reads": sorted(file for file in reads.files if "/pipeline/" in file),
            "weights": str(next(engine.module.parameters()).dtype),
            "communication": str(engine.communication_data_type),
            "accumulation": str(engine.get_data_types()[1]),
        }
    if topology.rank == 0:
        Path(out).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
