"""Masks against a table a person can read and the published ones; noise keyed by sample; CompDemo's split."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.rng import generator_for
from pipeline.data.aligned_dataset import AlignedRow
from pipeline.data.noise import draw
from pipeline.method.attention_mask import block_diffusion_mask
from pipeline.method.compdemo import complementary_split
from pipeline.method.masking import complete_chunks, draw_mask, draw_t, predictable
from tests import golden


def test_block_diffusion_mask_by_eye():
    """Length 4, block 2, [xt, x0]. Rows are queries: a noisy token sees its own noisy block and earlier clean blocks."""
    table = """
        xt: 1 1 0 0   0 0 0 0
            1 1 0 0   0 0 0 0
            0 0 1 1   1 1 0 0
            0 0 1 1   1 1 0 0
        x0: 0 0 0 0   1 1 0 0
            0 0 0 0   1 1 0 0
            0 0 0 0   1 1 1 1
            0 0 0 0   1 1 1 1
    """
    rows = [line.replace("xt:", "").replace("x0:", "").split() for line in table.strip().splitlines()]
    assert block_diffusion_mask(4, 2).int().tolist() == [[int(x) for x in row] for row in rows]


@pytest.mark.parametrize("case", golden.load("bd3lm_attention_mask")[0], ids=lambda c: c["key"])
def test_block_diffusion_mask_equals_the_published_one(case):
    _, tensors = golden.load("bd3lm_attention_mask")
    ours = block_diffusion_mask(case["n"], case["block_size"], clean_first=case["concat_order"] == "x0_xt")
    assert torch.equal(ours, tensors[case["key"]])


@pytest.mark.parametrize(("length", "block"), [(0, 4), (4, 0)])
def test_block_diffusion_mask_refuses_nonsense(length, block):
    with pytest.raises(ValueError, match="at least 1"):
        block_diffusion_mask(length, block)


def test_noise_depends_on_its_key_alone():
    a, b = generator_for(0, 1, 2, "mask"), generator_for(0, 1, 2, "mask")
    assert torch.equal(torch.rand(5, generator=a), torch.rand(5, generator=b))
    others = [generator_for(0, 1, 2, "t"), generator_for(1, 1, 2, "mask"), generator_for(0, 2, 1, "mask")]
    assert len({draw_t(g) for g in [generator_for(0, 1, 2, "mask"), *others]}) == 4


def test_t_keeps_to_its_range():
    drawn = [draw_t(generator_for("t", i), 0.2, 0.3) for i in range(200)]
    assert 0.2 <= min(drawn) < 0.21 and 0.29 < max(drawn) < 0.3
    maskable, row = torch.ones(4, dtype=torch.bool), "row"
    whole = draw_t(generator_for(0, row, "t"))
    one_row = AlignedRow(torch.arange(4), maskable, ())
    assert draw(one_row, (0, row)).t == whole
    assert draw(one_row, (0, row), t_range=(0.2, 0.3)).t == pytest.approx(0.2 + 0.1 * (whole - 1e-3) / (1 - 1e-3))


def test_masking_rate_is_t():
    maskable = torch.arange(20_000) % 2 == 0
    masked = draw_mask(0.3, maskable, generator_for("rate"))
    assert not (masked & ~maskable).any()
    assert abs(masked.sum() / maskable.sum() - 0.3) < 0.015
    units = torch.arange(20_000) // 4
    chunks = draw_mask(0.3, torch.ones(20_000, dtype=torch.bool), generator_for("units"), units).view(-1, 4)
    assert torch.equal(chunks.all(1), chunks.any(1))
    assert abs(chunks.float().mean() - 0.3) < 0.02


def test_tokens_outside_chunks_are_units_of_their_own():
    units = torch.tensor([-1, 0, 0, -1, 1])
    drawn = torch.stack([draw_mask(0.5, torch.ones(5, dtype=torch.bool), generator_for(i), units) for i in range(64)])
    assert torch.equal(drawn[:, 1], drawn[:, 2])
    assert len({tuple(row) for row in drawn[:, [0, 1, 3, 4]].tolist()}) == 16


def test_completion_reaches_a_fixed_point_over_two_teachers():
    """Teacher 1 ties 0-1 and 2-3, teacher 2 ties 1-2: masking token 0 masks all four, but never the prompt (4)."""
    first, second = torch.tensor([0, 0, 1, 1, 2]), torch.tensor([0, 1, 1, 2, 2])
    maskable = torch.tensor([True, True, True, True, False])
    masked = complete_chunks(torch.tensor([True, False, False, False, False]), maskable, [first, second])
    assert masked.tolist() == [True, True, True, True, False]
    assert not complete_chunks(torch.zeros(5, dtype=torch.bool), maskable, [first, second]).any()


@given(st.lists(st.booleans(), max_size=40), st.floats(0, 1), st.integers(0, 9))
def test_complementary_split_partitions(masked, ratio, seed):
    masked = torch.tensor(masked, dtype=torch.bool)
    a, b = complementary_split(masked, ratio, torch.Generator().manual_seed(seed))
    assert torch.equal(a | b, masked) and not (a & b).any()
    if ratio in (0, 1):
        assert torch.equal(b if ratio == 0 else a, masked)


def test_a_teacher_is_asked_about_answers_alone():
    """Chunk 0 is the prompt's, chunk 1 begins in it, chunk 2 is the answer's; the last token is in none."""
    maskable = torch.tensor([False, False, True, True])
    asked = predictable(maskable, torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 2, 2, -1]))
    assert asked.tolist() == [False, False, False, True, True, False]
