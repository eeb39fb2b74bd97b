"""Parity beyond the other tests' vectors: BD3LM's cross-entropy, exact log-space losses, and what docs/fidelity.md says."""

from __future__ import annotations

import re

import pytest
import torch
from torch.testing import assert_close

from pipeline.data.aligned_dataset import AlignedRow, AlignedTeacher
from pipeline.data.batch import InputLayout, TeacherLayout, build
from pipeline.data.blocks import EosTail, OneBlock, SequenceBlocks
from pipeline.data.noise import Noise
from pipeline.method.calm import calm
from pipeline.method.masking import touched_chunks
from pipeline.method.tidal import cross_entropy_weight
from pipeline.training.step import StudentWithLoss
from tests import golden, launch
from tests.alignment_rows import PUBLISHED, align_one, published_sides, published_teacher_row
from tests.test_objectives import chunk_log_probs
from tests.test_step import FixedLogits, published_noise

CE, CE_TENSORS = golden.load("bd3lm_ce")
OURS = [c for c in CE if c["scheduler"] == "linear" and c["loss_norm_type"] == "token"]


@pytest.mark.parametrize("case", OURS, ids=lambda c: c["key"])
def test_cross_entropy_of_bd3lm_equals_the_published_one(case):
    """Noise, [xt, x0] with dropped blocks, weights and denominator: the loss without a teacher, and its gradient."""
    x = CE_TENSORS
    layout = InputLayout(case["mask_token_id"], SequenceBlocks(4))
    logits, total, maskable = x["logits"].clone().requires_grad_(), 0.0, 0
    weight = {"scheduler": cross_entropy_weight, "uniform": torch.ones_like}[case["loss_weight_type"]]
    for i in range(3):
        row = AlignedRow(x["input_ids"][i], x["labels"][i] != -100, ())
        batch = build([row], [published_noise(row, x["u_t"][i], x["u"][i])], layout)
        masked = torch.zeros(12, dtype=torch.bool)
        masked[batch.student.positions.view(-1)[batch.predict]] = True
        assert torch.equal(masked, x["linear.masked_mask"][i])
        model = FixedLogits(logits[i : i + 1], batch.student.document)
        total, maskable = total + StudentWithLoss(model, [], weight)(batch, [], 0.0)[0], maskable + batch.maskable
    loss = total / maskable
    assert_close(loss, torch.tensor(case["loss_ref"]), rtol=2e-6, atol=2e-7)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert_close(gradient, x[f"{case['key']}.grad_ref"], rtol=1e-4, atol=1e-7)


# left out: an argument that the published trainer never passes, and forward CALM beyond log p = -1e-7, where ours goes on linearly
EXACT = [
    c for c in golden.load("loss_alm_full")[0]
    if c.get("loss_exact_f64") is not None and "weighted" not in c["key"] and not c["key"].startswith("peaked.fwd")
]  # fmt: skip


@pytest.mark.parametrize("case", EXACT, ids=lambda c: c["key"])
def test_calm_from_logits_is_exact_without_the_floor(case):
    """Where the published loss is clamped (long chunks, certain tokens), ours is the exact value all the same."""
    _, tensors = golden.load("loss_alm_full")
    x = {name.removeprefix(case["regime"] + "."): t for name, t in tensors.items() if name.startswith(case["regime"])}
    active = x["chunk_mask"]
    student, teacher = (x[f"{side}_chunk_lp_f64"][active] for side in ("student", "teacher"))
    for side, exact in (("student", student), ("teacher", teacher)):
        # log-softmax rounds at 1, of whose last digits log(1 - p) is made where p is close to 1: its result depends on the CPU
        ours = chunk_log_probs(x[f"{side}_logits"].double(), x[f"{side}_input_ids"], x[f"alignment_{side}"])[active]
        assert_close(ours, exact, rtol=1e-14, atol=1e-14)
    direction = "reverse" if case["reverse"] else "forward"
    each = calm(student, teacher, temperature=case["T"], direction=direction, teacher_floor=None)
    assert_close(each.mean().item(), case["loss_exact_f64"], rtol=1e-9, atol=1e-12)


QWEN3_END_OF_TURN = 151645


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row["name"])
def test_batches_hold_what_the_published_trainer_feeds_its_models(row):
    """Chat to model inputs, with everything maskable masked: ids around the masks, and the tokens to predict."""
    got = {k: torch.as_tensor(v) for k, v in align_one(*published_sides(row), row["messages"]).items()}
    columns = (got[f"t_{name}"].long() for name in ("input_ids", "chunk_ids", "student_chunk_ids"))
    aligned = AlignedRow(got["input_ids"].long(), got["maskable"], (AlignedTeacher(*columns),))
    tail = EosTail(QWEN3_END_OF_TURN, frozenset({QWEN3_END_OF_TURN}))
    filled = tail.extend(aligned, SequenceBlocks(32))
    teacher = filled.teachers[0]

    # published: filled with end tokens to whole blocks of 32, after the template's line break, which ours leaves out
    student_fed = row["map_fn_input_ids"]
    if len(student_fed) > len(aligned.ids):
        student_fed = student_fed[:-1]
    student_fed = torch.tensor(student_fed + [QWEN3_END_OF_TURN] * (-len(student_fed) % 32))
    teacher_fed = torch.tensor(published_teacher_row(row))

    hidden = touched_chunks(filled.maskable, teacher.student_chunks)
    noise = Noise(1.0, filled.maskable, ((hidden,),))
    mask = -1
    layouts = InputLayout(mask, OneBlock()), [TeacherLayout(mask, OneBlock())]
    batch = build([filled], [noise], *layouts)
    xt, teacher_xt = batch.student.ids[0], batch.teachers[0].input.ids[0]
    assert torch.equal(torch.where(xt == mask, student_fed, xt), student_fed)
    assert torch.equal(batch.targets, student_fed[filled.maskable]) and torch.equal(xt == mask, filled.maskable)
    assert torch.equal(torch.where(teacher_xt == mask, teacher_fed, teacher_xt), teacher_fed)
    assert torch.equal(teacher_xt == mask, hidden[teacher.chunks])
    assert torch.equal(batch.teachers[0].targets, teacher_fed[batch.teachers[0].predict])


def test_every_claim_of_the_fidelity_page_names_a_test_that_exists():
    page = (launch.ROOT / "docs" / "fidelity.md").read_text()
    named = set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page))
    assert len(named) > 20
    for file, test in named:
        assert f"def {test}(" in (launch.ROOT / file).read_text() if test else (launch.ROOT / file).is_file(), (
            file,
            test,
        )
