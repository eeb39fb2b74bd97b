"""Decoding: tokens/s and forwards/s of the student and both teachers at batch 1, 8 and 64, one token per forward."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch

from benchmarks.gpu import models
from benchmarks.gpu.record import Record, arguments, free_memory, peak_gb
from pipeline.decoding.canvas import GenerateConfig
from pipeline.decoding.repeated_steps import as_it_is
from pipeline.decoding.sampler import decode


def decoding(name: str, batch: int, tokens: int, toy: bool, graphs: bool = True) -> dict[str, Any]:
    """The paper's schedule, blocks of 32, prompts of 100 to 128 tokens, no end token; after a block that does not count."""
    model = models.model(name, toy)
    model.config.eos_token_id = -1  # random weights would end anywhere
    draw = torch.Generator().manual_seed(0)
    limit = model.config.vocab_size - 400 if not toy else 300
    lengths = torch.linspace(100, 128, batch).long().tolist()
    prompts = [torch.randint(limit, (length,), generator=draw).tolist() for length in lengths]
    size, repeat = 8 if toy else 32, None if graphs else as_it_is  # by default graphs on a GPU
    decode(model, prompts, GenerateConfig(size, size, size), repeat)
    free_memory()
    started = time.perf_counter()
    responses = decode(model, prompts, GenerateConfig(tokens, size, tokens), repeat)
    seconds = time.perf_counter() - started
    forwards = max(response.forwards for response in responses)
    return {
        "seconds": seconds,
        "tokens_per_s": batch * tokens / seconds,
        "forwards_per_s": forwards / seconds,
        "forwards": forwards,
        "first_tokens": responses[0].tokens[:8],
        **peak_gb(),
    }


def main() -> None:
    """All cases, the student first."""
    options = arguments(__doc__)
    record = Record("decode", options)
    toy, tokens = options.cpu, 16 if options.cpu else 64 if options.short else 256
    for batch in (1, 2) if toy else (1, 8, 64):
        record.case(decoding, name="student", batch=batch, tokens=tokens, toy=toy)
        record.case(decoding, name="student", batch=batch, tokens=tokens // 2, toy=toy, graphs=False)
    for name in ("llada2",) if toy or options.short else ("llada2", "wedlm"):
        models.model.cache_clear()
        free_memory()
        for batch in (1,) if toy else (1, 8) if options.short else (1, 8, 64):
            record.case(decoding, name=name, batch=batch, tokens=tokens, toy=toy)
    sys.exit(record.failed())


if __name__ == "__main__":
    main()
