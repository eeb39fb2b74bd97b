"""Objectives against numbers worked by hand, the published implementation, and their own gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from pipeline.method.calm import calm
from pipeline.method.chunked_lm_head import CHUNK_ELEMENTS, chunked_lm_head, chunks_as_on, token_log_prob
from pipeline.method.kl import kl
from pipeline.method.tidal import cross_entropy_weight, midrange_weight, tidal_lambda
from tests import golden

AXES = {"both": "both", "training_only": "training", "timestep_only": "timestep"}
# left out: where the published values are clamped, rounded away or weighted (the chunk test has exact values), and empty
FULL = [
    c for c in golden.load("loss_alm_full")[0]
    if not c.get("any_clamped") and not c.get("any_p_above_0p9999") and "weighted" not in c["key"] and "empty" not in c["key"]
]  # fmt: skip
TIDAL = [c for c in golden.load("loss_alm_taid")[0] if c["regime"] == "inside"]
KL = [c for c in golden.load("loss_taid_kl")[0] if c["key"] not in ("taid.entropy_weighted", "taid.no_masked")]
LOSS, GRADIENT = {"rtol": 2e-6, "atol": 2e-7}, {"rtol": 1e-4, "atol": 1e-7}


def test_calm_by_hand():
    student, teacher = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.8)])
    assert_close(calm(student, teacher, temperature=1.0), torch.tensor([math.log(2)]))
    reverse = -(0.5 * math.log(0.8) + 0.5 * math.log(0.2))
    assert_close(calm(student, teacher, temperature=1.0, direction="reverse"), torch.tensor([reverse]))
    true_kl = calm(student, teacher, temperature=1.0, direction="reverse_kl")
    assert_close(true_kl, torch.tensor([reverse - math.log(2)]))
    # T = 2: p = sqrt(0.25) = 0.5 and q = sqrt(0.64) = 0.8 again, and no T^2
    assert_close(calm(2 * student, 2 * teacher, temperature=2.0), torch.tensor([math.log(2)]))
    # lambda = 0.5: target 0.65; cross-entropy against p = 0.5 is log 2 whatever the target
    mixed = calm(student, teacher, temperature=1.0, direction="reverse", mix=torch.tensor([0.5]))
    assert_close(mixed, torch.tensor([-(0.5 * math.log(0.65) + 0.5 * math.log(0.35))]))


@pytest.mark.parametrize("direction", ["forward", "reverse", "reverse_kl"])
@pytest.mark.parametrize("mix", [None, 0.0, 0.3, 1.0])
def test_calm_is_finite_with_a_gradient_everywhere(direction, mix):
    student = torch.tensor([0.0, -1e-9, -1e-3, -1.0, -50.0, -500.0], requires_grad=True)
    for teacher in (0.0, -1e-9, -1.0, -500.0):
        lam = None if mix is None else torch.full((6,), mix)
        value = calm(student, torch.full((6,), teacher), temperature=1.0, direction=direction, mix=lam)
        (gradient,) = torch.autograd.grad(value.sum(), student)
        assert value.isfinite().all() and gradient.isfinite().all()


def test_forward_calm_learns_from_unlikely_chunks():
    """The published clamp has gradient 0 below p = 1e-7; in log space it is -q."""
    student = torch.tensor([-40.0], requires_grad=True)
    calm(student, torch.tensor([math.log(0.9)]), temperature=1.0).sum().backward()
    assert_close(student.grad, torch.tensor([-0.9]))


def test_teacher_floor_bounds_reverse_calm():
    student = torch.tensor([math.log(0.5)], requires_grad=True)
    for teacher in (-1000.0, 0.0):
        value = calm(student, torch.tensor([teacher]), temperature=1.0, direction="reverse")
        (gradient,) = torch.autograd.grad(value, student)
        assert abs(gradient.item() / 0.5) <= 16.12


@pytest.mark.parametrize("case", golden.load("loss_alm_chunk")[0], ids=lambda c: c["key"])
def test_calm_equals_the_published_chunk_loss(case):
    _, tensors = golden.load("loss_alm_chunk")
    key, regime = case["key"], case["regime"]
    student = tensors[f"{regime}.student_chunk_lp"][0].clone().requires_grad_()
    teacher = tensors[f"{regime}.teacher_chunk_lp"][0]
    direction = "reverse" if case["reverse"] else "forward"
    ours = calm(student, teacher, temperature=case["T"], direction=direction)
    free = ~tensors[f"{key}.clamped"].any(0)
    assert_close(ours[free], tensors[f"{key}.per_chunk_ref"][free], rtol=2e-6, atol=1e-6)

    wide = student.detach().double().requires_grad_()
    exact = calm(wide, teacher.double(), temperature=case["T"], direction=direction, teacher_floor=None)
    reference = tensors[f"{key}.per_chunk_exact_f64"]
    finite = reference.isfinite()
    if not case["reverse"]:
        finite &= wide.detach() / case["T"] < -1e-7  # above, log(1 - p) is continued linearly on purpose
    assert_close(exact[finite], reference[finite], rtol=1e-9, atol=1e-12)
    if f"{key}.grad_exact_f64" in tensors:
        active = tensors[f"{regime}.chunk_mask"][0]
        (gradient,) = torch.autograd.grad((exact * active).sum() / active.sum().clamp(min=1), wide)
        assert_close(gradient[finite], tensors[f"{key}.grad_exact_f64"][0][finite], rtol=1e-9, atol=1e-12)


def chunk_log_probs(logits, ids, alignment):
    """[b, l, V], [b, l], bool [b, l, n] -> [b, n], the plain way."""
    logp = logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return torch.einsum("bl,bln->bn", logp, alignment.to(logp.dtype))


@pytest.mark.parametrize("case", FULL, ids=lambda c: c["key"])
def test_calm_equals_the_published_loss_from_logits(case):
    _, tensors = golden.load("loss_alm_full")
    key, regime = case["key"], case["regime"]
    logits = tensors[f"{regime}.student_logits"].clone().requires_grad_()
    student = chunk_log_probs(logits, tensors[f"{regime}.student_input_ids"], tensors[f"{regime}.alignment_student"])
    teacher = chunk_log_probs(
        tensors[f"{regime}.teacher_logits"],
        tensors[f"{regime}.teacher_input_ids"],
        tensors[f"{regime}.alignment_teacher"],
    )
    active = tensors[f"{regime}.chunk_mask"]
    direction = "reverse" if case["reverse"] else "forward"
    loss = calm(
        student[active], teacher[active], temperature=case["T"], direction=direction
    ).sum() / active.sum().clamp(min=1)
    assert_close(loss, torch.tensor(case["loss_ref"]), **LOSS)
    loss.backward()
    if f"{key}.grad_ref" in tensors:
        assert_close(logits.grad, tensors[f"{key}.grad_ref"], **GRADIENT)


@pytest.mark.parametrize("case", TIDAL, ids=lambda c: c["key"])
def test_calm_tidal_equals_the_published_loss(case):
    _, tensors = golden.load("loss_alm_taid")
    r = case["regime"]
    logits = tensors[f"{r}.student_logits"].clone().requires_grad_()
    student = chunk_log_probs(logits, tensors[f"{r}.student_input_ids"], tensors[f"{r}.alignment_student"])
    teacher = chunk_log_probs(
        tensors[f"{r}.teacher_logits"], tensors[f"{r}.teacher_input_ids"], tensors[f"{r}.alignment_teacher"]
    )
    active, t = tensors[f"{r}.chunk_mask"], tensors[f"{r}.t"][:, None].expand_as(student)
    mix = tidal_lambda(
        case["global_step"] / case["max_steps"], t, init=case["lambda_init"], maximum=case["lambda_max"],
        axes=AXES[case["axis_mode"]], schedule=case["lambda_decay"],
    )  # fmt: skip
    weight = midrange_weight(t) if case["timestep_weight"] == "midrange" else torch.ones_like(t)
    direction = "reverse" if case["reverse"] else "forward"
    each = calm(student, teacher, temperature=case["T"], direction=direction, mix=mix)
    loss = (weight * each)[active].sum() / active.sum()
    assert_close(loss, torch.tensor(case["loss_ref"]), rtol=1e-5, atol=2e-7)
    if case["grad_saved"]:
        loss.backward()
        assert_close(logits.grad, tensors[f"{case['key']}.grad_ref"], **GRADIENT)


@pytest.mark.parametrize("case", KL, ids=lambda c: c["key"])
def test_kl_and_tidal_equal_the_published_losses(case):
    _, tensors = golden.load("loss_taid_kl")
    masked, t = tensors["masked_mask"], tensors["t"]
    student = tensors["student_logits"].clone().requires_grad_()
    shared = case.get("shared_vocab_size") or student.shape[-1]
    rows_t = t[:, None].expand(masked.shape)[masked]
    mix, weight = None, torch.ones_like(rows_t)
    if case["kind"] == "taid":
        mix = tidal_lambda(
            case["global_step"] / case["max_steps"], rows_t, init=case["lambda_init"], maximum=case["lambda_max"],
            axes=AXES[case["axis_mode"]], schedule=case["lambda_decay"],
        )  # fmt: skip
        weight = midrange_weight(rows_t) if case["timestep_weight"] == "midrange" else weight
    each = kl(
        student[masked][:, :shared], tensors["teacher_logits"][masked][:, :shared], temperature=case["temperature"],
        direction="reverse" if case["kind"] == "reverse_kl" else "forward", mix=mix,
    )  # fmt: skip
    loss = (weight * each).sum() / masked.sum().clamp(min=1)
    assert_close(loss, torch.tensor(case["loss_ref"]), rtol=1e-5, atol=1e-6)
    if case["grad_saved"]:
        loss.backward()
        assert_close(student.grad, tensors[f"{case['key']}.grad_ref"], rtol=1e-4, atol=2e-7)


def test_tidal_lambda_by_hand():
    t = torch.tensor([0.0, 0.25, 1.0])
    assert_close(tidal_lambda(0.0, t), torch.tensor([0.1, 0.075, 0.0]))
    assert_close(tidal_lambda(0.5, t), torch.tensor([0.5, 0.375, 0.0]))
    assert_close(tidal_lambda(1.0, t), torch.tensor([0.9, 0.675, 0.0]))
    assert_close(tidal_lambda(0.25, t, axes="training", schedule="linear"), torch.full((3,), 0.3))
    assert_close(tidal_lambda(0.25, t, axes="timestep"), torch.tensor([0.9, 0.675, 0.0]))


def test_cross_entropy_weight_is_the_linear_schedule_s():
    _, tensors = golden.load("schedulers")
    assert_close(cross_entropy_weight(tensors["linear.t"]), tensors["linear.weight"], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunked_head_equals_dense(dtype, monkeypatch):
    """Values and gradients of the chunked head against full logits; three chunks, the last one short."""
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 5 * 50)
    g = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, generator=g).to(dtype) for n in (12, 50))
    targets, teacher = torch.randint(50, (12,), generator=g), torch.randn(12, 50, generator=g)
    upstream = torch.randn(12, 2, generator=g)

    def per_token(logits, tokens):
        divergence = kl(logits, teacher[tokens], temperature=2.0)
        return torch.stack([token_log_prob(logits, targets[tokens]), divergence], 1)

    def run(compute):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        value = compute(h, w)
        value.backward(upstream)
        return value.detach(), h.grad, w.grad

    chunked = run(lambda h, w: chunked_lm_head(per_token, h, w))
    dense = run(lambda h, w: per_token((h @ w.T).float(), slice(None)))
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for ours, theirs in zip(chunked, dense, strict=True):
        assert ours.dtype == theirs.dtype
        assert_close(ours, theirs, **tolerance)


def test_chunks_as_on_another_device(monkeypatch):
    """What a plan for GPUs counts on a CPU: the other device's chunks, inside the block alone."""
    monkeypatch.setitem(CHUNK_ELEMENTS, "cuda", 10 * 50)
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 5 * 50)
    sizes = []

    def per_token(logits, tokens):
        sizes.append(len(logits))
        return logits[:, :1]

    with chunks_as_on("cuda"):
        chunked_lm_head(per_token, torch.zeros(12, 4), torch.zeros(50, 4))
    chunked_lm_head(per_token, torch.zeros(12, 4), torch.zeros(50, 4))
    assert sizes == [10, 2, 5, 5, 2]


def test_head_without_rows_keeps_the_weight_in_the_graph():
    weight = torch.randn(9, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    value = chunked_lm_head(lambda logits, tokens: token_log_prob(logits, none[tokens]), torch.zeros(0, 4), weight)
    assert value.shape == (0,)
    value.sum().backward()
    assert_close(weight.grad, torch.zeros(9, 4))


@given(st.floats(-30, -1e-3), st.floats(-30, -1e-3), st.sampled_from([1.0, 2.0, 5.0]))
def test_reverse_kl_is_a_divergence(a, b, temperature):
    value = calm(
        torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64),
        temperature=temperature, direction="reverse_kl", teacher_floor=None,
    )  # fmt: skip
    assert value.item() >= -1e-12
