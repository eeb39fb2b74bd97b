"""The log-likelihood estimator against the block-diffusion bound, summed up set by set by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from pipeline.decoding.likelihood import Continuation, Draws, log_likelihoods

MASK, SIZE = 1, 4


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, mask_token_id=MASK, initializer_range=0.5, attn_implementation="sdpa",
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def bound(model, context: list[int], continuation: list[int], blocks: str) -> float:
    """-E_t[1/t CE] of each block, the integral over t as a sum over masked sets S of B(|S|, L - |S| + 1) CE_S.

    The whole sequence up to a block's end goes through the model, with noise in that block alone: no [xt, x0], no packing.
    """
    shift = -len(context) % SIZE if blocks == "reference" else 0
    ids = torch.tensor([*context, *continuation])
    block = (torch.arange(len(ids)) + shift) // SIZE
    total = 0.0
    for b in sorted(set(block[len(context) :].tolist())):
        places = [i for i in range(len(context), len(ids)) if block[i] == b]
        seen = int((block <= b).sum())
        allowed = (block[None, :seen] <= block[:seen, None])[None, None]
        for size in range(1, len(places) + 1):
            weight = math.gamma(size) * math.gamma(len(places) - size + 1) / math.gamma(len(places) + 1)
            for chosen in itertools.combinations(places, size):
                noisy = ids[:seen].clone()
                noisy[list(chosen)] = MASK
                with torch.no_grad():
                    logits = model(noisy[None], attention_mask=allowed, position_ids=torch.arange(seen)[None]).logits[0]
                logp = logits.log_softmax(-1)
                total += weight * sum(float(logp[i, ids[i]]) for i in chosen)
    return total


CASES = [
    ([3, 4, 5, 6, 7], [8]),
    ([3, 4, 5, 6, 7], [8, 9, 10, 2, 11, 12, 13]),
    ([], [8, 9, 10, 2, 11]),
    ([3, 4, 5, 6], [8, 9, 10, 2]),
]


def estimates(model, context, continuation, blocks, samples, seeds, batch_size=16):
    made = [
        Continuation.of(context, continuation, size=SIZE, blocks=blocks, samples=samples, seed=seed) for seed in seeds
    ]
    return log_likelihoods(model, made, batch_size)


@pytest.mark.parametrize("blocks", ["training", "reference"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{len(case[0])}+{len(case[1])}")
def test_few_sets_are_summed_up_exactly(model, case, blocks) -> None:
    (estimate,) = estimates(model, *case, blocks, samples=16, seeds=[0])  # a block of 4 has 15 sets
    assert estimate.value == pytest.approx(bound(model, *case, blocks), abs=1e-4)
    assert estimate.variance == 0


@pytest.mark.parametrize("blocks", ["training", "reference"])
def test_mean_and_variance_of_the_estimator(model, blocks) -> None:
    """Over 400 seeds: the mean is the bound within 4 standard errors, and the variance said is not below the true one."""
    context, continuation = CASES[1]
    made = estimates(model, context, continuation, blocks, samples=4, seeds=range(400), batch_size=200)
    values = torch.tensor([e.value for e in made], dtype=torch.float64)
    true = float(values.var())
    assert true > 1e-3, "the case must have something to estimate"
    error = abs(float(values.mean()) - bound(model, context, continuation, blocks))
    assert error < 4 * math.sqrt(true / len(values))
    said = sum(e.variance for e in made) / len(made)
    assert 0.8 * true < said < 4 * true


def test_sets_are_uniform_in_size_and_place() -> None:
    masks = torch.cat([Draws.of(7, 8, torch.Generator().manual_seed(s)).masks[1:] for s in range(2000)])
    sizes = torch.bincount(masks.sum(1), minlength=8)[1:] / len(masks)
    assert sizes == pytest.approx([1 / 7] * 7, abs=0.01)
    assert masks.float().mean(0).numpy() == pytest.approx([4 / 7] * 7, abs=0.01)
    pairs = masks.view(-1, 2, 7)
    assert (pairs.sum((1, 2)) == 8).all() and pairs.any(1).all(), "antithetic: together everything, one token twice"


def test_depends_on_seed_and_request_alone(model) -> None:
    alone = [estimates(model, *case, "training", 8, [3], batch_size=1)[0].value for case in CASES]
    made = [Continuation.of(*case, size=SIZE, blocks="training", samples=8, seed=3) for case in CASES]
    together = [e.value for e in log_likelihoods(model, made, 64)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert estimates(model, *CASES[1], "training", 8, [4])[0].value != pytest.approx(alone[1], abs=1e-5)


def test_greedy_is_one_forward_a_block(model) -> None:
    context = CASES[0][0]
    block, generated = torch.arange(9) // SIZE, list(context)
    for end in (8, 9):  # the context's tail and three tokens, then one
        new = end - len(generated)
        ids = torch.tensor([*generated, *[MASK] * new])
        allowed = (block[None, :end] <= block[:end, None])[None, None]
        logits = model(ids[None], attention_mask=allowed, position_ids=torch.arange(end)[None]).logits[0]
        generated += logits[-new:].argmax(-1).tolist()
    right = generated[len(context) :]
    wrong = [*right[:-1], (right[-1] + 1) % 20]
    greedy = [estimates(model, context, tokens, "training", 4, [0])[0].greedy for tokens in (right, wrong)]
    assert greedy == [True, False]


def test_samples_are_a_multiple_of_four() -> None:
    for samples in (0, 2, 6):
        with pytest.raises(ValueError, match="multiple of 4"):
            Draws.of(7, samples, torch.Generator())
