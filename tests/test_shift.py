"""Which row predicts which token: golden tables of shifted families, through the one layout that all losses go through."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data.blocks import OneBlock, SequenceBlocks, lay_out, lay_out_causal
from pipeline.data.packing import pack
from pipeline.decoding import GenerateConfig, generate
from pipeline.models.forward import head_weight, hidden_states, score_tokens
from tests.test_families import golden, publish, teacher


@pytest.fixture(scope="module", params=["dream", "fast_dllm_v2"])
def shifted(request, tmp_path_factory):
    name = request.param
    return name, teacher(publish(tmp_path_factory.mktemp(name), name)), *golden(name)


def predictions(model, ids: Tensor, masked: Tensor, block: Tensor, shift: bool = True) -> Tensor:
    """Logits for the masked tokens: [M, V]."""
    packed, rows = pack([lay_out(ids, masked, block, model.config.mask_token_id, shift)])
    return hidden_states(model, packed, rows) @ head_weight(model).T


def test_the_golden_table(shifted):
    name, model, facts, tensors = shifted
    case = "full" if name == "dream" else "prefix_blocks"
    (table,) = (value for key, value in facts["shift"].items() if key != "rule")
    for row, ids in enumerate(tensors[f"{case}/input_ids"]):
        masked = ids == model.config.mask_token_id
        block = torch.zeros_like(ids) if name == "dream" else torch.arange(len(ids)) // facts["block_size"]
        known = {entry["masked_position"]: entry for entry in table if entry["row"] == row}
        # as decoded: every block before is what it is, so that the blocks with a mask are looked at one by one
        for one in block[masked].unique():
            kept = block <= one
            own = (masked & (block == one))[kept]
            ours, unshifted = (predictions(model, ids[kept], own, block[kept], s).argmax(1) for s in (True, False))
            for place, token, wrong in zip(own.nonzero()[:, 0].tolist(), ours, unshifted, strict=True):
                if known[place]["predicted_token"] is not None:
                    assert token == known[place]["predicted_token"] and wrong == known[place]["wrong_if_unshifted"]


def test_the_published_training_loss(tmp_path):
    """Fast-dLLM v2: a row and its complement, [noisy | clean] each; a block's first token is predicted by the noisy block before."""
    facts, tensors = golden("fast_dllm_v2")
    model, ids = teacher(publish(tmp_path / "m", "fast_dllm_v2")), tensors["train/clean_ids"][0]
    block, losses = torch.arange(len(ids)) // facts["block_size"], []
    for labels in tensors["train/model_labels"]:
        masked = labels >= 0
        masked_ids = torch.where(masked, model.config.mask_token_id, ids)
        assert any(torch.equal(masked_ids, row[: len(ids)]) for row in tensors["train/model_input_ids"])
        losses.append(F.cross_entropy(predictions(model, ids, masked, block), ids[masked], reduction="none"))
    assert torch.cat(losses).mean() == pytest.approx(facts["facts"]["training_loss_official"], abs=1e-4)


def test_rows_that_predict():
    ids, block = torch.arange(10, 22), torch.arange(12) // 4
    masked = torch.zeros(12, dtype=torch.bool).index_fill(0, torch.tensor([4, 6, 11]), True)
    document = lay_out(ids, masked, block, 99, shifted=True)
    # xt blocks 1 and 2, then x0 blocks 0 and 1: 4 is predicted by 3 of x0, as block 0 of xt holds no mask and is left out
    assert document.positions[document.predicting].tolist() == [3, 5, 10]
    assert document.noisy[document.predicting].tolist() == [False, True, True]
    assert lay_out(ids, masked, block, 99).predicting.tolist() == [0, 2, 7]
    first = lay_out(ids, torch.arange(12) == 0, block, 99, shifted=True)
    assert first.predicting.tolist() == [0]  # nothing is left of it


def test_causal_rows_see_what_is_left_of_them():
    document = lay_out_causal(torch.arange(10, 16), torch.tensor([False, False, True, False, True, False]))
    assert document.ids.tolist() == [10, 11, 12, 13] and document.predicting.tolist() == [1, 3]
    assert not document.noisy.any() and document.block.tolist() == [0, 1, 2, 3]


def test_an_unshifted_reading_shows_in_the_likelihood(shifted):
    """What the check of teachers before training measures: the truth is what the model itself would say."""
    name, model, facts, _ = shifted
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 250, (24,), generator=generator)
    masked = torch.arange(24) % 6 == 5
    block = (OneBlock() if name == "dream" else SequenceBlocks(facts["block_size"])).cut(masked)
    for _ in range(3):  # to a text that the model is sure of
        ids[masked] = predictions(model, ids, masked, block).argmax(1)
    nats = {}
    for shift in (True, False):
        packed, rows = pack([lay_out(ids, masked, block, model.config.mask_token_id, shift)])
        nats[shift] = -score_tokens(model, packed, rows, ids[masked]).mean()
    assert nats[False] > nats[True] + 1


def test_the_sampler_reads_shifted_rows_with_a_cache_and_without(shifted):
    """Against the plain way: the whole sequence at every step, rows moved by one. Prompts of unequal lengths share a batch."""
    name, model, facts, _ = shifted
    prompts = [[64, 74, 253, 237, 151], [9] * 8, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]
    config = GenerateConfig(max_new_tokens=10, block_size=4, steps=10, blocks="training")
    expected = [plain(model, prompt, config) for prompt in prompts]
    found = generate(model, prompts, config)
    ends = {model.config.eos_token_id}
    cut = [tokens[: next((i + 1 for i, t in enumerate(tokens) if t in ends), len(tokens))] for tokens in expected]
    assert found == cut


def plain(model, prompt: list[int], config: GenerateConfig) -> list[int]:
    """One row, one token per forward: the most confident of the block."""
    mask, never = model.config.mask_token_id, [model.config.mask_token_id]
    ids = torch.tensor(prompt + [mask] * config.max_new_tokens)
    decided = torch.arange(len(ids)) < len(prompt)
    block = torch.arange(len(ids)) // config.block_size
    while not decided.all():
        at = int((~decided).nonzero()[0])
        seen = block <= block[at]
        logits = model(ids[None, seen], attention_mask=(block[None, seen] <= block[seen, None])[None, None]).logits[0]
        moved = torch.cat([logits[:1], logits[:-1]])
        probability = moved.softmax(1)
        moved[:, never] = -torch.inf
        token = moved.argmax(1)
        confidence = probability.gather(1, token[:, None])[:, 0].masked_fill(
            decided[seen] | (block[seen] != block[at]), -1
        )
        ids[confidence.argmax()], decided[confidence.argmax()] = token[confidence.argmax()], True
    return ids[len(prompt) :].tolist()
