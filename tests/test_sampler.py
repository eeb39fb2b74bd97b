"""The sampler against golden vectors of the published one, and against a plain decoder without cache or batches."""

from __future__ import annotations

import json
import math
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3Config, Qwen3ForCausalLM

from pipeline.decoding.canvas import GenerateConfig, transfer_counts
from pipeline.decoding.kv_cache import BufferLayer
from pipeline.decoding.repeated_steps import as_it_is
from pipeline.decoding.sampler import decode, generate
from pipeline.models.families.llada2_moe import LLaDA2MoeConfig, LLaDA2MoeModelLM

DATA = Path(__file__).parent / "data" / "sampler"
PAD, MASK, NEVER = 0, 1, 10_000  # NEVER: an end token outside the vocabulary


def golden_model(name: str) -> tuple[Qwen3ForCausalLM, list[dict]]:
    golden = json.loads((DATA / f"{name}.json").read_text())
    config = Qwen3Config(**{k: v for k, v in golden["config"].items() if k != "model_type"}, mask_token_id=MASK)
    model = Qwen3ForCausalLM(config).eval()
    tensors = load_file(DATA / f"{name}.safetensors")
    model.load_state_dict({k[3:]: v for k, v in tensors.items() if k.startswith("sd.")}, strict=True)
    model.config.pad_token_id = PAD
    return model, golden["cases"]


def golden_config(case: dict) -> GenerateConfig:
    settings = case["config"]
    new, size, steps = settings["max_new_tokens"], settings["block_size"], settings["steps"]
    if "steps_per_block" in settings:
        steps = settings["steps_per_block"] * math.ceil(new / size)
    return GenerateConfig(max_new_tokens=new, block_size=size, steps=steps)


def model_that_ends_with(end: int | list[int]) -> Qwen3ForCausalLM:
    model, _ = golden_model("sampler")
    model.config.eos_token_id = end
    return model


def until(tokens: list[int], end: int) -> list[int]:
    return tokens[: tokens.index(end) + 1] if end in tokens else tokens


GOLDEN = [(name, i) for name, n in (("sampler", 10), ("sampler_mask_left", 2)) for i in range(n)]


def count_forwards(model) -> list[int]:
    """A list that has an entry more after every forward."""
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize(("name", "index"), GOLDEN)
def test_equals_the_published_sampler(name: str, index: int) -> None:
    """In as many forwards as it has steps: none of its own fills the cache, where the published one needs one more per block."""
    model, cases = golden_model(name)
    case, config = cases[index], golden_config(cases[index])
    model.config.eos_token_id = case["eos_token_id"]
    area = math.ceil(max(map(len, case["prompts"])) / config.block_size) * config.block_size
    calls = count_forwards(model)
    responses = generate(model, case["prompts"], config)
    if name == "sampler":
        forwards, steps = len(calls), case["n_diffusion_steps"]
        assert forwards <= steps if case["eos_mode"] else forwards == steps
    assert repeated(model, case["prompts"], config) == responses
    assert all(MASK not in response and PAD not in response for response in responses)
    if not case["mask_left_in_output"]:
        assert responses == [until(row[area:], case["eos_token_id"]) for row in case["sequences"]]
    else:  # the published sampler commits masks; everything else must still be decoded
        assert [len(response) for response in responses] == [config.max_new_tokens] * len(responses)


SCHEDULE = [c for c in json.loads((DATA / "transfer_schedule.json").read_text()) if c["scheduler"] == "linear"]


@pytest.mark.parametrize("case", SCHEDULE, ids=lambda c: f"{c['block_len']}-{c['steps']}")
def test_transfer_schedule(case: dict) -> None:
    assert transfer_counts(case["block_len"], case["steps"]) == case["counts"]


def plain_decoder(model, prompt: list[int], config: GenerateConfig) -> list[int]:
    """One prompt, whole sequence at every step, no cache: literally left-padded in reference mode."""
    size, new = config.block_size, config.max_new_tokens
    shift = -len(prompt) % size if config.blocks == "reference" else 0
    ids = torch.tensor([PAD] * shift + prompt + [MASK] * new)
    real = torch.arange(len(ids)) >= shift
    masked = torch.arange(len(ids)) >= shift + len(prompt)
    block = torch.arange(len(ids)) // size
    positions = (real.cumsum(0) - 1).clamp(min=0)
    end = model.config.eos_token_id
    while masked.any():
        now = int(block[masked].min())
        inside = masked & (block == now)
        left = int(inside.sum())
        blocks = math.ceil(new / size)
        steps = math.ceil(config.steps / blocks) if shift or config.blocks == "reference" else config.steps * left / new
        for count in transfer_counts(left, math.ceil(steps)) if config.threshold is None else [1] * left:
            inside = masked & (block == now)
            if not inside.any():
                break
            seen = int((block <= now).sum())
            allow = (block[None, :seen] <= block[:seen, None]) & real[None, :seen] | torch.eye(seen, dtype=torch.bool)
            with torch.no_grad():
                logits = model(
                    input_ids=ids[None, :seen], attention_mask=allow[None, None], position_ids=positions[None, :seen]
                ).logits[0]
            logits = logits[inside[:seen]]
            probability = logits.softmax(-1)
            logits[:, [PAD, MASK]] = -math.inf
            tokens = logits.argmax(-1)
            confidence = probability.gather(1, tokens[:, None])[:, 0]
            chosen = confidence.topk(count).indices
            if config.threshold is not None:
                chosen = torch.cat([chosen, (confidence >= config.threshold).nonzero()[:, 0]]).unique()
            where = inside.nonzero()[:, 0][chosen]
            ids[where], masked[where] = tokens[chosen], False
    return until(ids[shift + len(prompt) :].tolist(), end)


def repeated(model, prompts: list[list[int]], config: GenerateConfig) -> list[list[int]]:
    """As on a GPU, but for the graph."""
    return [response.tokens for response in decode(model, prompts, config, as_it_is)]


class WithoutCache(torch.nn.Module):
    """A model that takes ids, mask and positions and nothing else."""

    def __init__(self, model: Qwen3ForCausalLM) -> None:
        super().__init__()
        self.inner, self.config = model, model.config

    def forward(self, input_ids, attention_mask, position_ids):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)


PROMPTS = [
    [5, 30, 40, 19, 48, 7],
    [27],
    [43, 70, 48, 9, 33, 12, 8, 21, 66, 3],
    [32, 4, 68, MASK, 40, PAD, 35, 40],  # ids of special roles inside a prompt are text
    [66, 58, 25, 61, 47, 43, 78, 50, 61, 11, 23],
]
CONFIGS = [
    GenerateConfig(max_new_tokens=14, block_size=4, steps=14, blocks="training"),
    GenerateConfig(max_new_tokens=14, block_size=4, steps=7, blocks="training"),
    GenerateConfig(max_new_tokens=14, block_size=4, steps=9),
    GenerateConfig(max_new_tokens=13, block_size=32, steps=13, blocks="training"),
    GenerateConfig(max_new_tokens=12, block_size=4, steps=12, threshold=0.3),
    GenerateConfig(max_new_tokens=12, block_size=4, steps=12, threshold=0.3, blocks="training"),
    GenerateConfig(max_new_tokens=5, block_size=1, steps=5),
]


@pytest.mark.parametrize("end", [NEVER, 62])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_batched_and_cached_equals_plain(config: GenerateConfig, end: int) -> None:
    model = model_that_ends_with(end)
    expected = [plain_decoder(model, prompt, config) for prompt in PROMPTS]
    assert generate(model, PROMPTS, config) == expected
    assert [generate(model, [prompt], config)[0] for prompt in PROMPTS] == expected
    assert generate(WithoutCache(model), PROMPTS, config) == expected
    assert repeated(model, PROMPTS, config) == expected
    if end == 62:
        assert len({len(response) for response in expected}) > 1, "the case must let rows leave at different times"


def llada2() -> LLaDA2MoeModelLM:
    torch.manual_seed(3)
    config = LLaDA2MoeConfig(
        vocab_size=80, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_experts=8, num_experts_per_tok=2, n_group=4, topk_group=2,
        moe_intermediate_size=16, pad_token_id=PAD, eos_token_id=62, mask_token_id=MASK, initializer_range=0.3,
    )  # fmt: skip
    return LLaDA2MoeModelLM(config).eval()


def test_llada2_decodes_with_a_cache_too() -> None:
    model = llada2()
    for decoding in CONFIGS:
        expected = [plain_decoder(model, prompt, decoding) for prompt in PROMPTS]
        assert generate(model, PROMPTS, decoding) == expected
        assert repeated(model, PROMPTS, decoding) == expected
    assert len({token for row in expected for token in row}) > 3, "the weights must give the case some variety"


def test_unreachable_threshold_is_one_token_per_forward() -> None:
    model = model_that_ends_with(NEVER)
    for blocks in ("reference", "training"):
        settings = {"max_new_tokens": 12, "block_size": 4, "steps": 12, "blocks": blocks}
        sequential = generate(model, PROMPTS, GenerateConfig(**settings))
        assert generate(model, PROMPTS, GenerateConfig(**settings, threshold=1.5)) == sequential


def test_forwards_leave_waiting_out() -> None:
    """One token per forward: every row takes as many forwards as tokens, though rows wait for others in the batch."""
    model = model_that_ends_with(NEVER)
    config = GenerateConfig(max_new_tokens=14, block_size=4, steps=14, blocks="training")
    assert [response.forwards for response in decode(model, PROMPTS, config)] == [14] * len(PROMPTS)


def test_filling_order() -> None:
    """Every forward fills as many positions as the schedule says, blocks from left to right, the same in any batch."""
    model = model_that_ends_with(NEVER)
    config = GenerateConfig(max_new_tokens=8, block_size=4, steps=4)
    responses = decode(model, PROMPTS, config)
    for response in responses:
        assert sorted(response.filled) == [1, 1, 2, 2, 3, 3, 4, 4]
        assert max(response.filled[:4]) < min(response.filled[4:])
    assert len({tuple(response.filled) for response in responses}) > 1, "confidence, not place, sets the order"
    assert [decode(model, [prompt], config)[0] for prompt in PROMPTS] == responses


def test_repeated_steps_count_like_others() -> None:
    """The same forwards and filling order, though rows leave between blocks only."""
    model = model_that_ends_with(62)
    for config in CONFIGS:
        assert decode(model, PROMPTS, config, as_it_is) == decode(model, PROMPTS, config)


class Waits(TorchDispatchMode):
    """Counts operations for which a host would wait for its GPU."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.name().split("::")[1]
        by_mask = name in ("index", "index_put_") and any(x is not None and x.dtype == torch.bool for x in args[1])
        self.count += by_mask or name in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select")
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["qwen3", "llada2"])
def test_no_wait_inside_a_block(family: str) -> None:
    """More forwards of as many blocks wait no more often; an expert's rows are a CPU's way of grouped products."""
    model = golden_model("sampler")[0] if family == "qwen3" else llada2()
    model.config.eos_token_id = NEVER
    waits = {}
    for steps in (8, 16):
        with Waits() as mode, patch("pipeline.models.families.llada2_moe_layers.grouped_linear", one_product):
            decode(model, PROMPTS, GenerateConfig(max_new_tokens=16, block_size=8, steps=steps), as_it_is)
        waits[steps] = mode.count
    assert waits[16] == waits[8] > 0


def one_product(rows: torch.Tensor, weight: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    return rows @ weight[0].T


def test_the_cache_is_written_in_place(monkeypatch) -> None:
    """One buffer per layer holds all columns; only a row that leaves makes a new one."""
    model, buffers = model_that_ends_with(62), set()
    update = BufferLayer.update

    def watched(layer, keys, values, *_):
        read = update(layer, keys, values)
        buffers.add((id(layer), read[0].data_ptr(), read[0].shape[0]))
        return read

    monkeypatch.setattr(BufferLayer, "update", watched)
    generate(model, PROMPTS, GenerateConfig(max_new_tokens=14, block_size=4, steps=14))
    sizes = {rows for _, _, rows in buffers}
    assert len(sizes) > 1, "the case must let rows leave"
    assert len(buffers) == len(sizes) * model.config.num_hidden_layers


def test_low_threshold_is_one_forward_per_block() -> None:
    model = model_that_ends_with(NEVER)
    calls = count_forwards(model)
    generate(model, PROMPTS, GenerateConfig(max_new_tokens=12, block_size=4, steps=12, threshold=1e-9))
    assert len(calls) == 3


def test_sampling_depends_on_seed_and_prompt_only() -> None:
    model = model_that_ends_with(62)
    for blocks in ("reference", "training"):
        config = GenerateConfig(max_new_tokens=12, block_size=4, steps=12, temperature=1.0, blocks=blocks)
        together = generate(model, PROMPTS, config)
        assert generate(model, PROMPTS[::-1], config) == together[::-1]
        assert [generate(model, [prompt], config)[0] for prompt in PROMPTS] == together
        other = GenerateConfig(max_new_tokens=12, block_size=4, steps=12, temperature=1.0, blocks=blocks, seed=1)
        assert generate(model, PROMPTS, other) != together
        assert not any({MASK, PAD} & set(response) for response in together)


def test_sampling_follows_the_temperature() -> None:
    """One token after a fixed prompt: frequencies over seeds against softmax(logits / 0.7)."""
    model = model_that_ends_with(NEVER)
    draws = 2000
    logits = model(
        input_ids=torch.tensor([[5, MASK]]),
        attention_mask=torch.tensor([[[[True, False], [True, True]]]]),
        position_ids=torch.tensor([[0, 1]]),
    ).logits[0, 1]
    logits[[MASK, PAD]] = -math.inf
    expected = (logits / 0.7).softmax(-1)
    counts = torch.zeros_like(expected)
    for seed in range(draws):
        config = GenerateConfig(max_new_tokens=1, block_size=1, steps=1, temperature=0.7, seed=seed)
        counts[generate(model, [[5]], config)[0][0]] += 1
    assert (counts / draws - expected).abs().max() < 4 * math.sqrt(0.25 / draws)


def test_several_end_tokens_and_an_end_token_that_pads() -> None:
    model, _ = golden_model("sampler")
    config = GenerateConfig(max_new_tokens=16, block_size=4, steps=16)
    model.config.eos_token_id, model.config.pad_token_id = NEVER, None
    free = generate(model, PROMPTS, config)
    model.config.eos_token_id, model.config.pad_token_id = [41, 62], 62
    assert generate(model, PROMPTS, config) == [
        row[: next((i for i, token in enumerate(row) if token in (41, 62)), len(row)) + 1] for row in free
    ]
    model.config.eos_token_id = 41
    assert not any(62 in row for row in generate(model, PROMPTS, config))


@pytest.mark.parametrize(
    "change",
    [{"max_new_tokens": 0}, {"block_size": 0}, {"steps": 0}, {"temperature": -1.0}, {"threshold": 0.0}, {"blocks": ""}],
    ids=lambda change: next(iter(change)),
)
def test_settings_that_cannot_decode(change: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        GenerateConfig(**{"max_new_tokens": 4, "block_size": 4, "steps": 4, **change})


def test_a_model_without_mask_token() -> None:
    model, _ = golden_model("sampler")
    model.config.mask_token_id = None
    with pytest.raises(ValueError, match="mask_token_id"):
        generate(model, [[3]], GenerateConfig(max_new_tokens=4, block_size=4, steps=4))


def test_no_prompts_and_an_empty_prompt() -> None:
    model = model_that_ends_with(NEVER)
    config = GenerateConfig(max_new_tokens=6, block_size=4, steps=6)
    assert generate(model, [], config) == []
    empty, other = generate(model, [[], [5, 9]], config)  # its masks are alike, so their order is a tie: lengths only
    assert (len(empty), other) == (6, generate(model, [[5, 9]], config)[0])
