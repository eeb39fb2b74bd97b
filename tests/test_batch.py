"""Micro-batches: exact savings, isolated documents, the same content for any number of ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers import Qwen3Config, Qwen3ForCausalLM

from pipeline.core.errors import BadInput
from pipeline.data.aligned_dataset import AlignedRow, AlignedTeacher
from pipeline.data.batch import BatchBuilder, InputLayout, Sample, TeacherLayout, build
from pipeline.data.blocks import Blocks, Document, EosTail, OneBlock, ResponseBlocks, SequenceBlocks, lay_out
from pipeline.data.noise import Noise
from pipeline.data.order import GlobalBatches, accumulation_steps, balance
from pipeline.data.packing import pack
from pipeline.method.attention_mask import block_diffusion_mask
from pipeline.models.forward import hidden_states

MASK = 1
STUDENT = InputLayout(MASK, SequenceBlocks(4))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, attn_implementation="sdpa",
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval().double()


def example(length: int, masked: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(2, 60, (length,), generator=torch.Generator().manual_seed(length))
    mask = torch.zeros(length, dtype=torch.bool)
    mask[masked] = True
    return ids, mask


def document(length: int, masked: list[int], blocks: Blocks) -> Document:
    ids, mask = example(length, masked)
    return lay_out(ids, mask, blocks.cut(mask), MASK)


@pytest.mark.parametrize("masked", [[0], [5, 6], [1, 11], [10, 12], list(range(13))])
def test_dropped_blocks_change_nothing(model, masked):
    """The trimmed input gives every masked token the hidden state that the whole [xt, x0] gives it."""
    ids, mask = example(13, masked)
    packed, places = pack([document(13, masked, SequenceBlocks(4))])
    ours = hidden_states(model, packed, places)

    whole = torch.cat([torch.where(mask, MASK, ids), ids])[None]
    positions = torch.arange(13).repeat(2)[None]
    full = model.model(
        input_ids=whole, attention_mask=block_diffusion_mask(13, 4)[None, None], position_ids=positions
    ).last_hidden_state[0, :13]
    assert packed.ids.numel() <= whole.numel()
    assert_close(ours, full[mask], rtol=1e-10, atol=1e-10)


def test_dropping_is_worth_it():
    packed, _ = pack([document(64, [5], SequenceBlocks(8))])
    assert packed.ids.numel() == 8  # one noisy block, and no clean block before it
    packed, _ = pack([document(64, [60], SequenceBlocks(8))])
    assert packed.ids.numel() == 8 + 56


@pytest.mark.parametrize("blocks", [SequenceBlocks(4), OneBlock()], ids=["block", "full"])
def test_documents_are_isolated(model, blocks):
    """Packed together, each document's hidden states are those that it has alone."""
    documents = [document(n, m, blocks) for n, m in [(13, [2, 9]), (6, [5]), (9, []), (7, [0, 6]), (21, [20])]]
    packed, places = pack(documents)
    together = hidden_states(model, packed, places)
    alone = [hidden_states(model, *pack([d])) for d in documents]
    assert_close(together, torch.cat(alone), rtol=1e-10, atol=1e-10)
    assert (packed.document >= 0).sum() / packed.ids.numel() >= 0.95
    first = replace(documents[0], ids=documents[0].ids.flip(0))
    changed = hidden_states(model, *pack([first, *documents[1:]]))
    own = documents[0].predicting.numel()
    assert torch.equal(changed[own:], together[own:]) and not torch.equal(changed[:own], together[:own])


@given(st.lists(st.integers(0, 80), max_size=30))
def test_little_of_what_is_packed_is_padding(lengths):
    packed, places = pack([document(n, list(range(n)), OneBlock()) for n in lengths])
    total = sum(lengths)
    assert (packed.document >= 0).sum() == total and places.unique().numel() == total
    assert total >= 0.95 * packed.ids.numel() or (total == 0 and packed.ids.numel() == 1)


def test_nothing_masked_is_one_row_of_padding(model):
    packed, places = pack([])
    assert packed.ids.shape == (1, 1) and places.numel() == 0
    assert hidden_states(model, packed, torch.tensor([0])).isfinite().all()


def row(seed: int = 0) -> AlignedRow:
    """Student: 3 prompt tokens, chunks {3}, {4, 5}, {6}, end of turn. Teacher: chunks {2, 3}, {4}, {5}."""
    g = torch.Generator().manual_seed(seed)
    teacher = AlignedTeacher(
        torch.randint(2, 60, (7,), generator=g),
        torch.tensor([-1, -1, 0, 0, 1, 2, -1]),
        torch.tensor([-1, -1, -1, 0, 1, 1, 2, -1]),
    )
    return AlignedRow(torch.randint(2, 60, (8,), generator=g), torch.arange(8) >= 3, (teacher,))


def builder(compdemo: float | None = None, shared: int = 0) -> BatchBuilder:
    return BatchBuilder(STUDENT, (TeacherLayout(MASK, OneBlock(), shared),), compdemo_ratio=compdemo)


def test_teacher_hides_exactly_the_masked_chunks():
    batch = builder()([Sample(row(), (0, i)) for i in range(30)])
    teacher = batch.teachers[0]
    assert_close(batch.student.ids.view(-1)[batch.predict], torch.full_like(batch.predict, MASK))
    assert_close(teacher.input.ids.view(-1)[teacher.predict], torch.full_like(teacher.predict, MASK))
    assert (teacher.input.ids == MASK).sum() == teacher.predict.numel()
    chunks = teacher.chunk_t.shape[0]
    sides = [torch.bincount(x, minlength=chunks)[:chunks] for x in (teacher.chunk, teacher.student_chunk)]
    assert set(zip(*(s.tolist() for s in sides), strict=True)) == {(2, 1), (1, 2), (1, 1)}  # teacher, student tokens


def test_compdemo_views_predict_complementary_halves():
    samples = [Sample(row(i), (0, i)) for i in range(30)]
    one, two = builder()(samples), builder(0.5)(samples)
    a, b = one.teachers[0], two.teachers[0]
    assert torch.equal(one.predict, two.predict)  # the student sees the same
    of_a, of_b = (sorted(zip(x.chunk.tolist(), x.targets.tolist(), strict=True)) for x in (a, b))
    assert of_a == of_b
    assert b.input.ids.eq(MASK).sum() == a.input.ids.eq(MASK).sum()  # every chunk is hidden in one of its two views


def test_pairs_are_equal_single_tokens():
    base = row()
    teacher = base.teachers[0]
    ids = teacher.ids.clone()
    ids[5] = base.ids[6]  # chunk 2: one token on both sides, the same id
    same = AlignedRow(base.ids, base.maskable, (AlignedTeacher(ids, teacher.chunks, teacher.student_chunks),))
    batch = builder(shared=60)([Sample(same, (0,))], t=1.0)
    pair = batch.teachers[0].pair
    assert (pair >= 0).tolist() == [False, False, False, True, False]
    assert batch.teachers[0].targets[pair[3]] == base.ids[6]
    assert not (builder(shared=int(base.ids[6]))([Sample(same, (0,))], t=1.0).teachers[0].pair >= 0).any()


def test_eos_tail_fills_the_block():
    make = BatchBuilder(STUDENT, eos_tail=EosTail(9, frozenset({int(row().ids[5])})))
    short = AlignedRow(row().ids[:6], row().maskable[:6], ())
    batch = make([Sample(short, (0,))], t=1.0)
    assert batch.maskable == 5 and batch.targets[-2:].tolist() == [9, 9]


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(1, 8))
def test_balance_is_a_partition_within_its_bound(costs, parts):
    groups = balance(costs, parts)
    assert len(groups) == parts
    assert sorted(i for g in groups for i in g) == list(range(len(costs)))
    bound = sum(costs) / parts + max(costs, default=0)
    assert all(sum(costs[i] for i in g) <= bound for g in groups)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=50), st.integers(1, 12), st.integers(1, 4))
def test_micro_batches_keep_the_budget(costs, batch, ranks):
    costs = np.array(costs)
    each = accumulation_steps(costs, batch, ranks, budget=100)
    batches = GlobalBatches(len(costs), batch, seed=0)
    for step in range(5):
        own = [int(costs[v.row]) for v in batches[step]]
        assert all(sum(own[i] for i in g) <= 100 for g in balance(own, ranks * each))


@pytest.mark.parametrize("blocks", [SequenceBlocks(4), OneBlock()], ids=["block", "full"])
def test_the_content_of_a_global_batch_does_not_depend_on_the_ranks(blocks):
    """However many micro-batches: the same masked tokens, timesteps and chunks, and the same counts."""
    samples = [Sample(row(i), (0, i)) for i in range(9)]
    make = BatchBuilder(InputLayout(MASK, blocks), (TeacherLayout(MASK, OneBlock()),), compdemo_ratio=0.5)

    def content(parts: int):
        batches = [make([samples[i] for i in group]) for group in balance([8] * 9, parts)]
        masked = sorted(pair for b in batches for pair in zip(b.targets.tolist(), b.t.tolist(), strict=True))
        predicted = sorted(x for b in batches for x in b.teachers[0].targets.tolist())
        return masked, predicted, sum(b.maskable for b in batches), sum(len(b.teachers[0].chunk_t) for b in batches)

    assert content(1) == content(2) == content(4) == content(12)


def test_a_budget_below_the_longest_row_is_refused():
    with pytest.raises(BadInput, match="micro_tokens 50 cannot hold the longest row, 60"):
        accumulation_steps(np.array([10, 60]), 2, 1, 50)


def test_every_epoch_visits_every_row_once():
    batches = GlobalBatches(10, 4, seed=3)
    visits = [v for step in range(5) for v in batches[step]]
    assert sorted((v.epoch, v.row) for v in visits) == [(e, r) for e in range(2) for r in range(10)]
    assert [v.row for v in visits[:10]] != [v.row for v in visits[10:]]
    assert batches[2] == GlobalBatches(10, 4, seed=3)[2]


def test_moving_a_batch_keeps_its_structure():
    batch = builder()([Sample(row(), (0,))], t=1.0)
    moved = batch.to("meta")
    assert moved.teachers[0].input.ids.device.type == "meta" and moved.maskable == batch.maskable


def test_blocks_from_the_response_are_those_of_left_padding():
    """One response: every block is what the published sampler makes by padding the prompt on the left."""
    for prompt, length, size in [(5, 13, 4), (4, 9, 4), (0, 6, 4), (3, 5, 8), (11, 12, 4)]:
        maskable = torch.arange(length) >= prompt
        padded = torch.arange(length) + -prompt % size
        assert torch.equal(ResponseBlocks(size).cut(maskable), padded // size - padded[0] // size), (prompt, length)
    two = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 1, 1, 0]).bool()
    assert ResponseBlocks(4).cut(two).tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert (
        ResponseBlocks(4).cut(torch.zeros(6, dtype=torch.bool)).tolist()
        == SequenceBlocks(4).cut(torch.zeros(6)).tolist()
    )


@pytest.mark.parametrize("masked", [[3], [3, 7, 12], list(range(3, 14))])
def test_response_blocks_change_nothing_but_the_cut(model, masked):
    """As above for blocks from the response: equal to the whole [xt, x0] of the left-padded sequence."""
    prompt, length, size = 3, 14, 4
    ids, mask = example(length, masked)
    block = ResponseBlocks(size).cut(torch.arange(length) >= prompt)
    ours = hidden_states(model, *pack([lay_out(ids, mask, block, MASK)]))

    pad = -prompt % size
    padded, noise = (torch.cat([x.new_zeros(pad), x]) for x in (ids, mask))
    whole = torch.cat([torch.where(noise, MASK, padded), padded])[None]
    real = (torch.arange(length + pad) >= pad).repeat(2)
    allowed = block_diffusion_mask(length + pad, size) & real | torch.eye(2 * (length + pad), dtype=torch.bool)
    positions = (torch.arange(length + pad) - pad).clamp(min=0).repeat(2)[None]
    full = model.model(input_ids=whole, attention_mask=allowed[None, None], position_ids=positions).last_hidden_state
    assert_close(ours, full[0, : length + pad][noise], rtol=1e-10, atol=1e-10)


def test_eos_tail_fills_the_last_response_block():
    make = BatchBuilder(InputLayout(MASK, ResponseBlocks(4)), eos_tail=EosTail(9, frozenset({int(row().ids[-1])})))
    batch = make([Sample(AlignedRow(row().ids, row().maskable, ()), (0,))], t=1.0)  # 3 of the prompt, 5 of the response
    assert batch.maskable == 8 and batch.targets[-3:].tolist() == [9, 9, 9]


@pytest.mark.parametrize("blocks", [SequenceBlocks(8), ResponseBlocks(8)], ids=["sequence", "response"])
def test_a_row_that_was_cut_has_no_tail(blocks):
    """Its answer goes on: end tokens behind it would teach the student to stop there."""
    ids, maskable = torch.arange(10, 70), torch.arange(60) >= 5
    tail = EosTail(9, frozenset({9, 69}))
    cut = tail.extend(AlignedRow(ids[:-1], maskable[:-1], ()), blocks)
    assert torch.equal(cut.ids, ids[:-1])
    whole = tail.extend(AlignedRow(ids, maskable, ()), blocks)
    block = blocks.cut(whole.maskable)
    assert whole.ids[60:].unique().tolist() == [9] and int((block == block[-1]).sum()) == 8


@pytest.mark.parametrize("eos_tail", [None, EosTail(9, frozenset(range(60)))], ids=["as it is", "filled"])
@pytest.mark.parametrize("blocks", [SequenceBlocks(4), ResponseBlocks(4), OneBlock()], ids=lambda b: type(b).__name__)
def test_no_row_takes_more_tokens_than_are_counted(blocks, eos_tail):
    teachers = (TeacherLayout(MASK, OneBlock()),)
    for ratio in (None, 0.5):
        make = BatchBuilder(InputLayout(MASK, blocks), teachers, compdemo_ratio=ratio, eos_tail=eos_tail)
        batch = make([Sample(row(), (0,))], t=1.0)
        assert batch.tokens <= make.tokens(8, [7])


def test_noise_of_one_s_own():
    """By hand: the chunk {4, 5} is masked; without CompDemo its teacher token 4 is hidden and predicted."""
    own = row()
    masked = torch.tensor([0, 0, 0, 0, 1, 1, 0, 0]).bool()
    noise = Noise(0.5, masked, ((torch.tensor([0, 1, 0, 0]).bool(),),))
    batch = build([own], [noise], STUDENT, [TeacherLayout(MASK, OneBlock())])
    assert batch.targets.tolist() == own.ids[4:6].tolist() and batch.t.tolist() == [0.5, 0.5]
    teacher = batch.teachers[0]
    assert teacher.predict.tolist() == [4] and teacher.targets.tolist() == [int(own.teachers[0].ids[4])]
    assert (teacher.chunk.tolist(), teacher.student_chunk.tolist(), teacher.chunk_t.tolist()) == ([0], [0, 0], [0.5])
