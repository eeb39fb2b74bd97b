"""Autoregressive teachers: what they are read for, and that stored answers are those of a live one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.config.checks import check
from pipeline.config.recipe import CompDemo, Objective, Optim, Recipe, Student, Teacher
from pipeline.core.errors import BadInput
from pipeline.data.aligned_dataset import AlignedRow, AlignedTeacher
from pipeline.data.batch import Batch, CausalLayout, InputLayout, StoredLayout, build
from pipeline.data.blocks import OneBlock, SequenceBlocks, Unread, lay_out_causal
from pipeline.data.noise import draw
from pipeline.data.packing import pack
from pipeline.data.teacher_answers import TeacherAnswers
from pipeline.method.kl import kl
from pipeline.models.forward import head_weight, score_tokens
from pipeline.models.loading import load_teacher
from pipeline.training.precompute import answer, answered_tokens
from pipeline.training.step import StudentWithLoss
from pipeline.training.terms import build_term, stored_temperatures

VOCABULARY, T = 40, 2.0
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.5}
KINDS = {
    "qwen3": {},
    "gemma3_text": {
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 8,
    },
    "mistral": {"sliding_window": 4},
}


def write(folder: Path, kind: str, **changes) -> Path:
    """A random autoregressive model as it is published."""
    config = AutoConfig.for_model(kind, **SIZES | KINDS.get(kind, {}) | changes)
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config)
    weights = model.state_dict()
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight")
    folder.mkdir()
    save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / "model.safetensors")
    model.config.save_pretrained(folder)
    return folder


def load(folder: Path):
    return load_teacher(str(folder), dtype=torch.float32, device="cpu", causal=True)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_side_by_side_equal_transformers_own_causal_forward(kind, tmp_path):
    """Windows of the layers included: rows are longer than they are."""
    model = load(write(tmp_path / kind, kind))
    own = AutoModelForCausalLM.from_pretrained(tmp_path / kind, attn_implementation="eager")
    rows = [torch.randint(0, VOCABULARY, (n,), generator=torch.Generator().manual_seed(n)) for n in (12, 9)]
    everything = [torch.arange(len(row)) > 0 for row in rows]
    packed, predicting = pack([lay_out_causal(row, masked) for row, masked in zip(rows, everything, strict=True)])
    given = score_tokens(model, packed, predicting, torch.cat([row[1:] for row in rows]))
    expected = [own(row[None]).logits[0, :-1].log_softmax(1).gather(1, row[1:, None])[:, 0] for row in rows]
    torch.testing.assert_close(given, torch.cat(expected), atol=1e-4, rtol=1e-4)


REFUSED = [
    ("granite", {"logits_scaling": 5.0}, "its logits are more than hidden states times the head's weight"),
    ("gemma2", {}, "Gemma2ForCausalLM does not support .*scaled_dot_product_attention"),
    ("qwen3", {"is_causal": False}, "is a diffusion model here"),
    ("gpt_bigcode", {}, "keeps its layers where nothing here looks"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), REFUSED)
def test_models_that_cannot_teach_are_one_line(kind, changes, message, tmp_path):
    sizes = {"n_embd": 16, "n_head": 2, "n_layer": 1} if kind == "gpt_bigcode" else {}
    with pytest.raises(BadInput, match=message):
        load(write(tmp_path / kind, kind, **changes, **sizes))


def test_a_kind_that_transformers_does_not_have(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(BadInput, match="no causal language model of model_type 't5'"):
        load(tmp_path)


def recipe(**teacher) -> Recipe:
    return Recipe("r", Student("s"), teachers=[Teacher("ar", "t", input="causal", **teacher)], optim=Optim(steps=1))


def test_compdemo_of_a_causal_teacher_is_refused_with_the_reason():
    both = recipe()
    check(both)
    both.objective.compdemo = CompDemo(enabled=True)
    with pytest.raises(BadInput, match="teacher ar reads from left to right .* so it has one view"):
        check(both)
    diffusion = recipe(answers="stored")
    diffusion.teachers[0].input = "full"
    with pytest.raises(BadInput, match="answers stored needs input causal"):
        check(diffusion)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pair")
    teacher = load(write(folder / "teacher", "qwen3"))
    student = load(write(folder / "student", "qwen3", hidden_size=8)).requires_grad_(True)
    return student, teacher


def rows(across: bool) -> list[AlignedRow]:
    """A prompt of 4 tokens; across tokenizers two student tokens are three of the teacher's."""
    found = []
    for length in (16, 10):
        ids = torch.randint(0, VOCABULARY, (length,), generator=torch.Generator().manual_seed(length))
        chunks = torch.where(torch.arange(length) >= 4, torch.arange(length) - 4, -1)
        teacher = AlignedTeacher(ids, chunks, chunks)
        if across:
            teacher_chunks = torch.cat([torch.full((3,), -1), torch.arange((length - 4) // 2).repeat_interleave(3)])
            teacher = AlignedTeacher(
                torch.arange(len(teacher_chunks)), teacher_chunks, torch.where(chunks < 0, -1, chunks // 2)
            )
        found.append(AlignedRow(ids, torch.arange(length) >= 4, (teacher,)))
    return found


def store(model, row: AlignedRow, shared: int, top_k: int) -> AlignedRow:
    """The row with its answers, as precompute keeps them."""
    (side,), wanted = row.teachers, answered_tokens(row)
    (own,) = answer(model, [(side.ids, wanted)], shared, top_k, stored_temperatures(T, shared))
    whole = TeacherAnswers(
        *(x.new_zeros(len(wanted), *x.shape[1:]).index_copy(0, wanted.nonzero()[:, 0], x) for x in vars(own).values())
    )
    return AlignedRow(row.ids, row.maskable, (AlignedTeacher(side.ids, side.chunks, side.student_chunks, whole),))


def micro_batch(samples: list[AlignedRow], layout) -> Batch:
    noises = [draw(row, (0, n), t=0.6) for n, row in enumerate(samples)]
    return build(samples, noises, InputLayout(1, SequenceBlocks(4)), [layout])


def step(models, samples, layout, strategy: str, shared: int, live: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of the losses, and the student's gradient."""
    student, teacher = models
    term = build_term(
        Objective(strategy, temperature=T), Teacher("ar", "t"), shared, head_weight(teacher) if live else None
    )
    module, batch = StudentWithLoss(student, [term], torch.ones_like), micro_batch(samples, layout)
    student.zero_grad()
    sums = module(batch, [term.teacher_forward(teacher if live else None, batch.teachers[0])], 0.5)
    assert batch.teachers[0].chunk_t.numel() and sums[1] != 0
    sums.sum().backward()
    return sums.detach(), torch.cat([p.grad.flatten() for p in student.parameters()])


@pytest.mark.parametrize("strategy", ["calm", "reverse_calm", "calm_tidal", "kl", "reverse_kl", "tidal"])
def test_stored_answers_give_the_live_teacher_s_loss_and_gradient(strategy, models):
    """Chunks across tokenizers; full distributions with k = vocabulary. A stored teacher's input has no token."""
    across = "calm" in strategy
    shared = 0 if across else VOCABULARY
    samples = rows(across)
    live = step(models, samples, CausalLayout(0, OneBlock(), shared), strategy, shared, live=True)
    kept = [store(models[1], row, shared, shared) for row in samples]
    layout = StoredLayout(0, Unread(), shared, TeacherAnswers.empty(shared, 2 if shared else 0))
    stored = step(models, kept, layout, strategy, shared, live=False)
    for ours, theirs in zip(stored, live, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert not (micro_batch(kept, layout).teachers[0].input.document >= 0).any()
    empty = micro_batch([], layout)
    term = build_term(Objective(strategy, temperature=T), Teacher("ar", "t"), shared, None)
    assert StudentWithLoss(models[0], [term], torch.ones_like)(
        empty, [term.teacher_forward(None, empty.teachers[0])], 0.5
    ).tolist() == [0, 0]


def test_fewer_tokens_lose_what_is_said(models):
    """KL loses r KL(rest || rest) of a token, exactly; no gradient of a logit is off by more than 2 r T."""
    samples, k, shared = rows(across=False), 8, VOCABULARY
    term = build_term(Objective("kl", temperature=T), Teacher("ar", "t"), shared, None)
    batch = micro_batch(
        [store(models[1], row, shared, k) for row in samples],
        StoredLayout(0, Unread(), shared, TeacherAnswers.empty(k, 2)),
    ).teachers[0]
    live = micro_batch(samples, CausalLayout(0, OneBlock(), shared)).teachers[0]
    live_term = build_term(Objective("kl", temperature=T), Teacher("ar", "t"), shared, head_weight(models[1]))
    teacher = live_term.teacher_forward(models[1], live) @ head_weight(models[1]).T
    student = torch.randn(teacher.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    signal = term.signal(batch, term.teacher_forward(None, batch), 0.0)
    assert (batch.pair >= 0).all()  # every masked token has its partner here
    few = signal.per_token(student, torch.zeros(len(student)), slice(None))
    whole = kl(student, teacher, temperature=T)

    q, p = (logits.div(T).softmax(1) for logits in (teacher, student))
    outside = torch.ones_like(q, dtype=torch.bool).scatter(1, q.topk(k, 1).indices, False)
    r, s = (q * outside).sum(1), (p * outside).sum(1)
    lost = torch.where(outside, q * ((q / r[:, None]) / (p / s[:, None])).log(), 0).sum(1) * T**2
    assert r.max() > 0.05 and lost.min() >= 0
    torch.testing.assert_close(whole - few, lost, atol=1e-4, rtol=1e-4)
    (few_gradient,), (gradient,) = (
        torch.autograd.grad(loss.sum(), student, retain_graph=True) for loss in (few, whole)
    )
    assert ((few_gradient - gradient).abs().sum(1) <= 2 * r * T + 1e-5).all()
