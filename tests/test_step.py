"""The whole training step around fixed logits: the published implementation's losses and gradients."""

from __future__ import annotations

import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from pipeline.config.recipe import CompDemo, Objective, Recipe, Student, Teacher, Tidal
from pipeline.core.errors import BadInput
from pipeline.data.aligned_dataset import AlignedRow, AlignedTeacher
from pipeline.data.batch import BatchBuilder, InputLayout, Sample, TeacherLayout, build
from pipeline.data.blocks import Blocks, OneBlock, SequenceBlocks
from pipeline.data.noise import Noise
from pipeline.distributed.topology import Topology
from pipeline.method.certainty import certainty
from pipeline.method.masking import TIME_EPSILON, complete_chunks, touched_chunks
from pipeline.method.tidal import cross_entropy_weight
from pipeline.models.tokenizer import load_tokenizer
from pipeline.training.build import batch_builder
from pipeline.training.engine import parameter_groups
from pipeline.training.held_out import FixedNoiseRows, kl_terms, teacher_kl
from pipeline.training.preflight import DatasetNumbers, Plan, read_eos_tail
from pipeline.training.step import StudentWithLoss, counts, learning_rate
from pipeline.training.terms import ChunkTerm, TokenTerm, build_term, tidal_mix
from tests import golden

PUBLISHED_NAMES = {
    "alm": "calm", "reverse_alm": "reverse_calm", "alm_taid": "calm_tidal", "reverse_alm_taid": "reverse_calm_tidal",
    "kl_aligned": "kl", "reverse_kl_aligned": "reverse_kl", "taid_aligned": "tidal",
}  # fmt: skip


class FixedLogits(nn.Module):
    """A model whose "hidden states" are given logits and whose head is the identity.

    `logits` [documents, L, V]: a token at position i of document d has logits[d, i]. `document` [R, C] as in Packed.
    """

    def __init__(self, logits: torch.Tensor, document: torch.Tensor):
        super().__init__()
        self.logits, self.document = logits, document
        self.head = nn.Linear(logits.shape[-1], logits.shape[-1], bias=False)
        self.head.weight = nn.Parameter(torch.eye(logits.shape[-1]))

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def model(self, input_ids, attention_mask, position_ids):
        return SimpleNamespace(last_hidden_state=self.logits[self.document, position_ids])


def chunk_ids(alignment: torch.Tensor) -> torch.Tensor:
    """bool [L, n] -> int [L], -1 = in no chunk."""
    return torch.where(alignment.any(1), alignment.int().argmax(1), -1)


def published_noise(row: AlignedRow, u_t: torch.Tensor, u: torch.Tensor, u_split: torch.Tensor | None = None) -> Noise:
    """The noise that the published trainer makes of these uniforms: [], [L], [chunks + 1] (None = one view)."""
    t = TIME_EPSILON + (1 - TIME_EPSILON) * float(u_t)
    chunkings = [teacher.student_chunks for teacher in row.teachers]
    masked = complete_chunks((u < t) & row.maskable, row.maskable, chunkings)
    hidden = [touched_chunks(masked, chunks) for chunks in chunkings]
    if u_split is None:
        return Noise(t, masked, tuple((chunks,) for chunks in hidden))
    return Noise(t, masked, tuple((chunks & (u_split >= 0.5), chunks & (u_split < 0.5)) for chunks in hidden))


def run(case, rows, draws, student_logits, teacher_views, *, teacher_blocks: Blocks, shared, weight):
    """Each sample as a micro-batch of its own: denominators are the batch's, so sums and gradients must not notice."""
    compdemo = case["use_complementary_demo"]
    # the vectors pair tokens up to the whole vocabulary (25) and compare their distributions below `shared`
    objective = Objective(
        strategy=PUBLISHED_NAMES[case["distill_mode"]], temperature=case.get("alm_temperature", case.get("kl_temperature")),
        compdemo=CompDemo(enabled=compdemo), tidal=Tidal(axes=case["taid_axis_mode"], midrange=case["taid_timestep_weight"] == "midrange"),
    )  # fmt: skip
    assert case["demo_ratio"] == 0.5
    student_layout = InputLayout(case["student_mask_id"], SequenceBlocks(case["block_size"]))
    teacher_layout = TeacherLayout(case["teacher_mask_id"], teacher_blocks, shared_vocab=25 if shared else 0)
    batches = []
    for row, (u_t, u, split) in zip(rows, draws, strict=True):
        noise = published_noise(row, u_t, u, split if compdemo else None)
        batches.append(build([row], [noise], student_layout, [teacher_layout]))
    head = torch.eye(teacher_views[0].shape[-1])
    term = build_term(objective, Teacher("teacher", ""), shared, head)
    totals = sum(counts(b, [term]) for b in batches)
    logits = student_logits.clone().requires_grad_()
    ce, distillation = 0.0, 0.0
    for i, batch in enumerate(batches):
        student = StudentWithLoss(FixedLogits(logits[i : i + 1], batch.student.document), [term], cross_entropy_weight)
        views = torch.stack([view[i] for view in teacher_views])
        teacher = FixedLogits(views, batch.teachers[0].input.document)
        outputs = [term.teacher_forward(teacher, batch.teachers[0])]
        sums = student(batch, outputs, case["global_step"] / case["max_steps"])
        ce, distillation = ce + sums[0] / totals[0].item(), distillation + sums[1] / max(1, totals[1].item())
    loss = ce + weight * distillation
    (gradient,) = torch.autograd.grad(loss, logits)
    return loss, ce, distillation, gradient, batches


ALM, ALM_TENSORS = golden.load("alm_step")


@pytest.mark.parametrize("case", ALM, ids=lambda c: c["key"])
def test_cross_tokenizer_step_equals_the_published_one(case):
    x = ALM_TENSORS
    real = x["teacher_attention_mask"].bool()
    rows = [
        AlignedRow(
            x["input_ids"][i],
            x["labels"][i] != -100,
            (
                AlignedTeacher(
                    x["teacher_input_ids"][i][real[i]],
                    chunk_ids(x["alignment_teacher"][i][real[i]]),
                    chunk_ids(x["alignment_student"][i]),
                ),
            ),
        )
        for i in range(2)
    ]
    # the published code draws the split for every chunk column, ours for the chunks that exist (+ one for "none")
    sizes = [int(chunk_ids(x["alignment_student"][i]).max()) + 1 for i in range(2)]
    splits = [torch.cat([x["u_split"][i, : sizes[i]], torch.ones(1)]) for i in range(2)]
    draws = [(x["u_t"][i], x["u"][i], splits[i]) for i in range(2)]
    views = [x["teacher_logits_pass1"], x["teacher_logits_pass2"]]  # pass 1 hides B, pass 2 hides A
    told = {"teacher_blocks": OneBlock(), "shared": 0, "weight": case["alm_weight"]}
    loss, ce, distillation, gradient, batches = run(case, rows, draws, x["student_logits"], views, **told)
    for i, batch in enumerate(batches):
        masked = torch.zeros_like(rows[i].maskable)
        masked[batch.student.positions.view(-1)[batch.predict]] = True
        assert torch.equal(masked, x["masked_mask"][i])
    assert_close(loss.detach(), torch.tensor(case["loss_ref"]), rtol=2e-6, atol=2e-7)
    assert_close(ce.detach(), torch.tensor(case["log"]["ce_loss"]), rtol=2e-6, atol=2e-7)
    assert_close(gradient, x[f"{case['key']}.grad_ref"], rtol=1e-4, atol=1e-7)


ALIGNED, ALIGNED_TENSORS = golden.load("aligned_step")
ALIGNED = [c for c in ALIGNED if c["distill_mode"] in PUBLISHED_NAMES]  # the order of the two halves only permutes them


@pytest.mark.parametrize("case", ALIGNED, ids=lambda c: c["key"])
def test_shared_tokenizer_step_equals_the_published_one(case):
    x = ALIGNED_TENSORS
    rows, draws = [], []
    for i in range(2):
        pairs = x["n_aligned"][i]
        at_student, at_teacher = x["align_student"][i][:pairs], x["align_teacher"][i][:pairs]
        real = x["teacher_attention_mask"][i].bool()
        student_chunks, teacher_chunks = torch.full((12,), -1), torch.full((20,), -1)
        student_chunks[at_student] = teacher_chunks[at_teacher] = torch.arange(int(pairs))
        ids = x["teacher_input_ids"][i].clone()
        ids[at_teacher] = x["input_ids"][i][at_student]  # drawn at random there; ours pairs equal tokens only
        teacher = AlignedTeacher(ids[real], teacher_chunks[real], student_chunks)
        rows.append(AlignedRow(x["input_ids"][i], x["labels"][i] != -100, (teacher,)))
        draws.append((x["u_t"][i], x["u"][i], torch.cat([x["u_split"][i][at_student], torch.ones(1)])))
    weight = case["taid_weight"] if case["distill_mode"].startswith("taid") else case["kl_weight"]
    views = [x["teacher_logits_pass1"], x["teacher_logits_pass2"]]
    told = {"teacher_blocks": SequenceBlocks(case["block_size"]), "shared": case["shared_vocab_size"], "weight": weight}
    loss, ce, _, gradient, _ = run(case, rows, draws, x["student_logits"], views, **told)
    assert_close(ce.detach(), torch.tensor(case["log"]["ce_loss"]), rtol=2e-6, atol=2e-7)
    assert_close(loss.detach(), torch.tensor(case["loss_ref"]), rtol=1e-5, atol=1e-6)
    if case["grad_saved"]:
        assert_close(gradient, x[f"{case['key']}.grad_ref"], rtol=1e-4, atol=1e-6)


VOCABULARY = 20


class HeldOut(list):
    """Rows as `AlignedRows` gives them: one teacher, with the student's tokens; two tokens per chunk, or `each`."""

    def __init__(self, each: int):
        generator = torch.Generator().manual_seed(0)
        for length in (12, 16):
            ids = torch.randint(2, VOCABULARY, (length,), generator=generator)
            chunks = torch.arange(length) // each
            self.append(AlignedRow(ids, torch.arange(length) >= 4, (AlignedTeacher(ids, chunks, chunks),)))
        self.student_lengths = np.array([len(row.ids) for row in self])
        self.teacher_lengths = [self.student_lengths]


@pytest.mark.parametrize("shared", [0, VOCABULARY], ids=["chunks", "tokens"])
def test_distance_is_the_dense_kl_and_nothing_between_equals(shared, monkeypatch):
    monkeypatch.setattr("pipeline.training.held_out.dist.all_reduce", lambda x: None)
    rows = HeldOut(1 if shared else 2)
    builder = BatchBuilder(InputLayout(1, OneBlock()), (TeacherLayout(1, OneBlock(), shared),))
    generator = torch.Generator().manual_seed(1)
    ours, theirs = (torch.randn(2, 16, VOCABULARY, generator=generator) for _ in range(2))

    class Looked(FixedLogits):  # one row per micro-batch: which row it is, its length tells
        def model(self, input_ids, attention_mask, position_ids):
            row = int(input_ids.shape[1] > 12)
            return SimpleNamespace(last_hidden_state=self.logits[row, position_ids])

    def distance(student: torch.Tensor, teacher: torch.Tensor) -> dict[str, float]:
        model = Looked(teacher, None)
        terms = kl_terms([Teacher("a", "")], [shared], [model])
        module = StudentWithLoss(Looked(student, None), terms, torch.ones_like)
        topology = SimpleNamespace(world_size=1, rank=0, device=torch.device("cpu"))
        return teacher_kl(module, [(terms[0], model)], FixedNoiseRows(rows, builder, topology, micro_tokens=1))["a"]

    assert_close(list(distance(theirs, theirs).values()), [0.0] * 5, rtol=0, atol=1e-6)
    found = distance(ours, theirs)
    for t, value in found.items():
        divergences = []
        for i, row in enumerate(rows):
            batch = builder([Sample(row, ("validation", float(t), i))], float(t))
            at = batch.student.positions.view(-1)[batch.predict]
            p, q = (x[i, at].log_softmax(-1) for x in (theirs, ours))
            if shared:
                divergences.append((p.exp() * (p - q)).sum(-1))
            elif len(at):
                log_p, log_q = (x.gather(1, row.ids[at, None])[:, 0].view(-1, 2).sum(1) for x in (p, q))
                not_p, not_q = (torch.log1p(-x.exp()) for x in (log_p, log_q))
                divergences.append(log_p.exp() * (log_p - log_q) + not_p.exp() * (not_p - not_q))
        assert value == pytest.approx(float(torch.cat(divergences).mean()), rel=1e-4)


def test_tidal_on_the_cross_entropy_scales_each_token_by_its_lambda():
    rows, weight = HeldOut(1), cross_entropy_weight
    builder = BatchBuilder(InputLayout(1, OneBlock()), (TeacherLayout(1, OneBlock()),))
    batch = builder([Sample(rows[0], (0,))], 0.6)
    logits = torch.randn(1, 12, VOCABULARY, generator=torch.Generator().manual_seed(2))
    model = FixedLogits(logits, batch.student.document)
    term = build_term(Objective("reverse_calm"), Teacher("a", ""), 0, torch.eye(VOCABULARY))
    outputs = [term.teacher_forward(FixedLogits(logits, batch.teachers[0].input.document), batch.teachers[0])]
    plain = StudentWithLoss(model, [term], weight)(batch, outputs, 0.25)
    tidal = Tidal(init=0.2, maximum=0.8)
    mixed = StudentWithLoss(model, [term], weight, tidal_mix(tidal))(batch, outputs, 0.25)
    progress = 0.2 + (0.8 - 0.2) / 2 * (1 - math.cos(math.pi * 0.25))
    assert_close(mixed[0], plain[0] * progress * (1 - 0.6), rtol=1e-5, atol=0)
    assert torch.equal(mixed[1], plain[1])


def test_certainty_is_the_entropy_of_what_is_right():
    """By hand: at T = 0.5 the logits double; two tokens of three are right, one is wrong, and it is trained on alone."""
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]], requires_grad=True)
    found = certainty(logits, torch.tensor([0, 1, 1]), temperature=0.5)
    for value, gap in zip(found[:2].tolist(), (2.0, 4.0), strict=True):
        p = 1 / (1 + math.exp(-gap))
        assert value == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p), rel=1e-5)
    assert found[2] == 0
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert gradient[0, 0] < 0 < gradient[0, 1] and not gradient[2].any()  # the likeliest becomes likelier


def test_own_losses_stand_beside_the_others_and_are_not_measured():
    builder = BatchBuilder(InputLayout(1, OneBlock()), ())
    batch = builder([Sample(HeldOut(1)[0], (0,))], 0.6)
    logits = torch.randn(1, 12, VOCABULARY, generator=torch.Generator().manual_seed(2))
    forced = partial(certainty, temperature=0.5)
    student = StudentWithLoss(FixedLogits(logits, batch.student.document), [], torch.ones_like, own_losses=[forced])
    sums, at = student(batch, [], 0.0), batch.student.positions.view(-1)[batch.predict]
    assert_close(sums[1], forced(logits[0, at], batch.targets).sum())
    assert counts(batch, [], 1).tolist() == [batch.maskable, len(batch.targets)]
    assert torch.equal(student.eval()(batch, [], 0.0), sums[:1])


def test_strategies_follow_the_tokenizers():
    head = torch.eye(3)
    teacher = Teacher("t", "")
    across = build_term(Objective("tide_cross"), teacher, 0, head)
    assert isinstance(across, ChunkTerm) and across.objective.keywords["direction"] == "reverse" and across.mix is None
    assert isinstance(build_term(Objective("tide_cross"), teacher, 3, head), TokenTerm)
    shared = build_term(Objective("tide_shared"), teacher, 0, head)
    assert isinstance(shared, ChunkTerm) and shared.mix is not None
    with pytest.raises(BadInput, match="kl needs a shared tokenizer, and teacher t"):
        build_term(Objective("kl"), teacher, 0, head)


def test_learning_rate_by_hand():
    rate = [learning_rate(s, 10, peak=1.0, warmup=0.2, final=0.1) for s in range(10)]
    assert rate[:2] == [0.5, 1.0] and rate[2] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 8)) / 2)
    assert rate[5] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rate == sorted(rate[:2]) + sorted(rate[2:], reverse=True) and rate[9] == 0.1
    rising = [learning_rate(s, n, peak=1.0, warmup=1.0, final=0.1) for s, n in ((0, 1), (0, 2), (1, 2))]
    assert rising == [1.0, 0.5, 1.0]


def test_weight_decay_leaves_norms_and_biases_alone():
    module = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Embedding(4, 3))
    matrices, vectors = parameter_groups(list(module.parameters()), 0.1)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert matrices["params"] == [module[0].weight, module[2].weight]
    assert vectors["params"] == [module[0].bias, module[1].weight, module[1].bias]


@pytest.mark.parametrize(
    ("field", "named", "size"),
    [(4, 16, 4), (None, 16, 16), (None, None, 8)],
    ids=["of the recipe", "of its config", "of the student"],
)
def test_a_teacher_reads_blocks_of_its_own_size(field, named, size):
    recipe = Recipe("r", Student("", block_size=8), teachers=[Teacher("t", "", input="block", block_size=field)])
    topology = Topology(0, 1, 1, torch.device("cpu"))
    student, teacher = SimpleNamespace(mask_token_id=1), SimpleNamespace(mask_token_id=1, block_size=named)
    dataset = DatasetNumbers((0,), np.array([1]))
    plan = Plan(recipe, {}, topology, student, {"t": teacher}, dataset)
    builder = batch_builder(plan, None, topology.device)
    assert builder.student.blocks == SequenceBlocks(8) and builder.teachers[0].blocks == SequenceBlocks(size)


@pytest.mark.parametrize(
    ("named", "token"), [(7, 7), ([5, 326, 7], 326), ([5, 7], 5)], ids=["one", "several", "others"]
)
def test_eos_tail_takes_one_of_the_end_tokens(named, token):
    """Llama-3.x names several: the tokenizer's is what the published code fills blocks with."""
    tail = read_eos_tail("here", SimpleNamespace(eos_token_id=named), load_tokenizer("demo/student"))
    assert tail.token == token and {token, 326} <= tail.ends
    filled = tail.extend(AlignedRow(torch.tensor([9, 326]), torch.tensor([False, True]), ()), SequenceBlocks(4))
    assert filled.ids.tolist() == [9, 326, token, token]
