"""Where the host waits for the GPU: in a training step of each engine, and in the sampler."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import models
from benchmarks.gpu.record import Clock, Record, arguments, peak_gb
from pipeline.decoding.sampler import GenerateConfig, decode


@contextmanager
def waits() -> Iterator[Counter]:
    """Counts operations that make the host wait, by file and line; on a CPU there are none."""
    places: Counter = Counter()
    if not torch.cuda.is_available():
        yield places
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for warning in caught:
        if "synchroniz" in str(warning.message):
            name = "/".join(Path(warning.filename).parts[-3:])
            places[f"{name}:{warning.lineno}"] += 1


def training_step(engine: str, compdemo: bool, flex: bool, toy: bool) -> dict[str, Any]:
    """Waits of the third step."""
    distillation = models.Distillation.of(
        "llada2_ep8", models.shape("llada2_ep8", 4, toy), engine=engine, compdemo=compdemo, strategy="reverse_calm",
        flex=flex, toy=toy,
    )  # fmt: skip
    batch, denominators = distillation.on_device()
    for _ in range(2):
        distillation.step(batch, denominators, Clock())
    counted = {}
    with waits() as teacher:
        outputs = [distillation.term.teacher_forward(distillation.teacher, batch.teachers[0])]
    with waits() as forward:
        loss = (distillation.engine(batch, outputs, 0.5) / denominators).sum()
    with waits() as backward:
        distillation.engine.backward(loss)
    with waits() as step:
        distillation.engine.step()
    for part, places in {"teacher": teacher, "forward": forward, "backward": backward, "optimizer": step}.items():
        counted[part] = {"waits": sum(places.values()), "where": dict(places)}
    distillation.close()
    return counted | peak_gb()


def sampler(batch: int, toy: bool) -> dict[str, Any]:
    """Waits of decoding, per forward."""
    model = models.model("student", toy)
    prompts = [list(range(2 + n, 60 + 3 * n)) for n in range(batch)]
    with waits() as places:
        forwards = max(r.forwards for r in decode(model, prompts, GenerateConfig(64, 32, 64)))
    return {"forwards": forwards, "waits_per_forward": sum(places.values()) / forwards, "where": dict(places)}


def main() -> None:
    """All cases."""
    options = arguments(__doc__)
    record = Record("waits", options)
    toy = options.cpu
    record.case(sampler, batch=4, toy=toy)
    record.case(training_step, engine="zero1_bf16", compdemo=True, flex=False, toy=toy)
    if not options.short:
        record.case(training_step, engine="zero3_bf16", compdemo=False, flex=False, toy=toy)
    sys.exit(record.failed())


if __name__ == "__main__":
    main()
