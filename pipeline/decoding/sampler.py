"""Block-diffusion decoding: blocks from left to right, the masks inside a block resolved by confidence (shapes: canvas.py).

The first forward of a block also reads the columns decided since the
last block began (the prompt, later the block before), so the key-value cache grows without forwards of its own, and
in place. On a GPU the other forwards of a block are repeated without the host (pipeline/decoding/repeated_steps.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

import torch
from torch import Tensor, nn

from pipeline.core.rng import generator_for
from pipeline.decoding.cached_model import CachedModel, choose, takes_cache
from pipeline.decoding.canvas import BlockState, Canvas, GenerateConfig, Response
from pipeline.decoding.kv_cache import buffers
from pipeline.decoding.repeated_steps import CudaGraph, Repeat, fill_repeating
from pipeline.decoding.rules import BLOCK_DIFFUSION, Rules
from pipeline.models.families.table import is_shifted

Watch = Callable[[Canvas], None]


def generate(
    model: nn.Module, prompts: list[list[int]], config: GenerateConfig, rules: Rules = BLOCK_DIFFUSION
) -> list[list[int]]:
    """The response to each prompt: new tokens only, up to and including the first end token.

    `model(input_ids=, attention_mask=bool [R, 1, Q, K], position_ids=).logits`, in eval mode; a model that also takes
    `past_key_values` decodes with a cache, any other reads the whole sequence at every step. Mask, end and padding ids
    come from `model.config` (`eos_token_id` may be a list). A response holds no mask id, and no padding id unless
    that is an end token too.

    Prompts of any lengths share a batch: padding is told by place, not by id (the published sampler hides every padding
    id, inside prompts too). A row leaves the batch once its response is decided.

    rules: as another sampler decides blocks (`rules.published`). Raises ValueError when model.config names no mask or end token.
    """
    return [response.tokens for response in decode(model, prompts, config, rules=rules)]


def decode(
    model: nn.Module,
    prompts: list[list[int]],
    config: GenerateConfig,
    repeat: Repeat | None = None,
    watch: Watch | None = None,
    rules: Rules = BLOCK_DIFFUSION,
) -> list[Response]:
    """`generate`'s responses, with the order in which their positions were filled.

    repeat: how the forwards of a block after its first are run, a model with a cache and no sampling given: by default
    as CUDA graphs on a GPU, and on a CPU one by one, without work for positions and rows that need none.
    watch: sees the canvas after every forward; these are then run one by one, as they are under other rules than block diffusion.
    """
    if not prompts:
        return []
    special, device = SpecialTokens.of(model), next(model.parameters()).device
    if watch is not None or rules != BLOCK_DIFFUSION:
        repeat = None
    elif repeat is None and device.type == "cuda":
        repeat = CudaGraph
    with torch.inference_mode():
        canvas = Canvas.lay_out(prompts, config, special.mask, device)
        ends, suppressed_ids = (
            torch.tensor(ids, dtype=torch.long, device=device) for ids in (special.ends, special.suppressed_ids)
        )
        if repeat and config.temperature == 0 and takes_cache(model) and not is_shifted(model.config):
            fill_repeating(model, canvas, config, ends, suppressed_ids, repeat)
        else:
            generators = [generator_for(config.seed, *prompt) for prompt in prompts]
            cached_model = rules.read(model, partial(buffers, canvas.ids.shape[1]))
            _fill(cached_model, canvas, config, rules, ends, suppressed_ids, generators, watch)
    return [canvas.read(row, special.ends) for row in range(len(prompts))]


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of special roles."""

    mask: int
    ends: list[int]
    suppressed_ids: list[int]
    """Ids that are never committed."""

    @classmethod
    def of(cls, model: nn.Module) -> SpecialTokens:
        mask, ends, padding = (getattr(model.config, f"{role}_token_id", None) for role in ("mask", "eos", "pad"))
        if mask is None or ends is None:
            raise ValueError("model.config must name mask_token_id and eos_token_id")
        ends = [ends] if isinstance(ends, int) else list(ends)
        # Models pad with an end token (Qwen3 has two, LLaDA2 one): that must stay possible.
        return cls(mask, ends, [i for i in (mask, padding) if i is not None and i not in ends])


def _fill(
    cached_model: CachedModel,
    canvas: Canvas,
    config: GenerateConfig,
    rules: Rules,
    ends: Tensor,
    suppressed_ids: Tensor,
    generators: list[torch.Generator],
    watch: Watch | None,
) -> None:
    """Decides the canvas in place, except columns behind a row's first end token; the host looks at every forward."""
    device = canvas.ids.device
    rows = torch.arange(len(generators), device=device)
    turns = ((block, window) for block in canvas.generated_blocks(config.block_size) for window in rules.windows(block))
    for block, window in turns:
        schedules = [rules.counts(n, config) for n in canvas.masked[:, window].sum(1).tolist()]
        for counts in zip_longest(*schedules, fillvalue=0):
            state = BlockState.of(canvas, rows, window)
            masked = state.masked.sum(1).tolist()
            if not any(masked):
                break
            state.count_forward(ends)
            index = state.masked_first()[:, : max(masked)]
            logits = cached_model.open_block(canvas, rows, block, index + (window.start - block.start))
            noise = None
            if config.temperature > 0:
                noise = config.temperature * _gumbel(masked, logits.shape[2], [generators[i] for i in rows.tolist()])
                noise = noise.to(device)
            tokens, confidence = choose(logits, suppressed_ids, noise, rules.confidence)
            count = torch.tensor(counts, device=device)[rows]
            state.commit(index, tokens, confidence, count, config.least_probability)
            state.store(canvas, rows, window)
            if watch:
                watch(canvas)

            going = ~(state.ended(ends) | ~canvas.masked[rows].any(1))
            if not going.all():
                rows = rows[going]
                if not rows.numel():
                    return
                cached_model.keep(going)


def _gumbel(masked: Sequence[int], vocabulary: int, generators: list[torch.Generator]) -> Tensor:
    """Standard Gumbel noise [R, P, V] for so many positions of each row, the first ones, from its own generator."""
    noise = torch.zeros(len(masked), max(masked), vocabulary)
    for row, count, generator in zip(noise, masked, generators, strict=True):
        row[:count] = -torch.empty(count, vocabulary).exponential_(generator=generator).log()
    return noise
