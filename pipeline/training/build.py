"""Models, terms and data of a run put together, as its plan says."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipeline.config.recipe import Recipe, Student, Teacher, compdemo_ratio
from pipeline.data.aligned_dataset import AlignedRows
from pipeline.data.batch import BatchBuilder, CausalLayout, InputLayout, StoredLayout, TeacherLayout
from pipeline.data.blocks import OneBlock, Unread, build_blocks
from pipeline.data.order import GlobalBatches
from pipeline.distributed.topology import Topology
from pipeline.method.certainty import certainty
from pipeline.method.tidal import cross_entropy_weight
from pipeline.models.families.llada2_moe import LLaDA2MoeModelLM
from pipeline.models.families.table import is_shifted
from pipeline.models.flex_attention import TILE, use_flex
from pipeline.models.forward import head_of
from pipeline.models.loading import load_student, load_teacher
from pipeline.models.model_files import CONFIG_FILES, TOKENIZER_FILES, WEIGHT_FILES, fetch
from pipeline.training.answer_store import no_answers, read_answers
from pipeline.training.engine import build_engine, student_dtype
from pipeline.training.held_out import FixedNoiseRows
from pipeline.training.loop import Trainer
from pipeline.training.preflight import Plan, reads_weights
from pipeline.training.step import StudentWithLoss
from pipeline.training.terms import build_term, tidal_mix

_CROSS_ENTROPY: dict[str, Callable[[Tensor], Tensor]] = {"schedule": cross_entropy_weight, "uniform": torch.ones_like}


def fetch_models(recipe: Recipe) -> None:
    """Brings the hub's files to this node; of a node's ranks the first does it, before the others look for them."""
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        models: list[Student | Teacher] = [recipe.student, *recipe.teachers]
        for model in models:
            fetch(model.path, CONFIG_FILES + (WEIGHT_FILES if reads_weights(model) else []))
            fetch(model.tokenizer, CONFIG_FILES + TOKENIZER_FILES)


def build_trainer(plan: Plan, topology: Topology) -> Trainer:
    """Loads student and teachers, binds the recipe's terms, and wraps the student in its engine. Collective."""
    recipe = plan.recipe
    model = load_student(
        recipe.student.path,
        dtype=student_dtype(plan.engine_config),
        weights=recipe.student.weights,
        config=plan.student,
        seed=recipe.data.seed,
    )
    teachers = [frozen_teacher(plan, teacher, topology) for teacher in recipe.teachers]
    if reads_with_flex(recipe, topology.device):
        for loaded in filter(None, (model, *teachers)):
            use_flex(loaded)
    rows = aligned_rows(plan, "train")
    batches = GlobalBatches(len(rows), recipe.optim.global_batch, recipe.data.seed)
    builder = batch_builder(plan, compdemo_ratio(recipe), topology.device)
    module = student_with_loss(plan, model, teachers)
    return Trainer(
        recipe,
        topology,
        engine=build_engine(module, plan.engine_config, recipe.optim, plan.accumulation),
        teachers=list(zip(module.terms, teachers, strict=True)),
        rows=rows,
        batches=batches,
        builder=builder,
        weights=torch.tensor(
            [
                recipe.objective.cross_entropy_weight,
                *(t.weight for t in recipe.teachers),
                *[recipe.objective.certainty.weight] * len(module.own_losses),
            ]
        ),
        steps=recipe.optim.steps or batches.steps(recipe.optim.epochs),  # type: ignore[arg-type]  # one is set
        accumulation=plan.accumulation,
        after_step=_router_balance(model, recipe),
    )


def student_with_loss(
    plan: Plan, model: PreTrainedModel, teachers: Sequence[PreTrainedModel | None]
) -> StudentWithLoss:
    """The student and its loss: the recipe's terms, one per teacher, bound to their heads (None: its answers are stored)."""
    recipe = plan.recipe
    if recipe.student.activation_checkpointing:
        # no dropout anywhere: there is no random state to put back
        model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    terms = [
        build_term(recipe.objective, teacher, shared, head_of(loaded))
        for teacher, shared, loaded in zip(recipe.teachers, plan.dataset.shared_vocab, teachers, strict=True)
    ]
    mix = tidal_mix(recipe.objective.tidal) if recipe.objective.tidal.cross_entropy else None
    forcing = recipe.objective.certainty
    own_losses = [partial(certainty, temperature=forcing.temperature)] if forcing.weight else []
    return StudentWithLoss(model, terms, _CROSS_ENTROPY[recipe.objective.cross_entropy], mix, own_losses)


def frozen_teacher(plan: Plan, teacher: Teacher, topology: Topology) -> PreTrainedModel | None:
    """A teacher as the plan places it: on this rank's device, with its share of the experts; None where its answers are stored."""
    if teacher.stored:
        return None
    return load_teacher(
        teacher.path,
        dtype=getattr(torch, teacher.dtype),
        device=topology.device,
        expert_parallel_size=plan.expert_parallel_size[teacher.name],
        weights=teacher.weights,
        config=plan.teachers[teacher.name],
        seed=plan.recipe.data.seed,
        causal=teacher.causal,
    )


def _router_balance(model: nn.Module, recipe: Recipe) -> Callable[[], None]:
    """What follows every optimizer step: a trained MoE's experts are balanced, other students need nothing."""
    if isinstance(model, LLaDA2MoeModelLM):
        return partial(model.update_selection_bias, recipe.optim.selection_bias_rate)
    return lambda: None


def aligned_rows(plan: Plan, split: str) -> AlignedRows:
    """The rows of a split."""
    recipe, files = plan.recipe, plan.dataset.files[split]
    answers = {
        teacher.name: read_answers(recipe, teacher, shared, files)
        for teacher, shared in zip(recipe.teachers, plan.dataset.shared_vocab, strict=True)
        if teacher.stored
    }
    return AlignedRows(Path(recipe.data.aligned), files, [t.name for t in recipe.teachers], answers)


def fixed_noise_rows(
    plan: Plan, split: str, topology: Topology, *, compdemo_ratio: float | None = None
) -> FixedNoiseRows:
    """The rows of a split to measure models on: the student, and the teachers."""
    builder = batch_builder(plan, compdemo_ratio, topology.device)
    return FixedNoiseRows(aligned_rows(plan, split), builder, topology, plan.recipe.optim.micro_tokens)


def _teacher_layout(plan: Plan, teacher: Teacher, shared_vocab: int) -> TeacherLayout:
    """A teacher reads blocks of the size that it was trained with, where that is known."""
    if teacher.stored:
        return StoredLayout(0, Unread(), shared_vocab, no_answers(plan.recipe, teacher, shared_vocab))
    if teacher.causal:
        return CausalLayout(0, OneBlock(), shared_vocab)
    config = plan.teachers[teacher.name]
    size = teacher.block_size or getattr(config, "block_size", None) or plan.recipe.student.block_size
    return TeacherLayout(
        config.mask_token_id, build_blocks(teacher.input, size), shared_vocab, shifted=is_shifted(config)
    )


def reads_with_flex(recipe: Recipe, device: torch.device) -> bool:
    """Whether models read packed rows with FlexAttention; with SDPA and a dense mask otherwise."""
    return recipe.attention == "flex" or (recipe.attention == "auto" and device.type == "cuda")


def batch_builder(plan: Plan, compdemo_ratio: float | None, device: torch.device) -> BatchBuilder:
    """How the student is fed, and the teachers."""
    recipe, student = plan.recipe, plan.recipe.student
    blocks = build_blocks(student.input, student.block_size, student.blocks)
    return BatchBuilder(
        InputLayout(plan.student.mask_token_id, blocks, shifted=is_shifted(plan.student)),
        tuple(_teacher_layout(plan, *pair) for pair in zip(recipe.teachers, plan.dataset.shared_vocab, strict=True)),
        compdemo_ratio=compdemo_ratio,
        by_chunk=recipe.objective.mask_unit == "chunk",
        t_range=recipe.objective.t_range,
        eos_tail=plan.eos_tail,
        row_multiple=TILE if device.type == "cuda" else 1,
    )
