"""What is known of a run before any model is loaded: every check that user input can fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from pipeline.alignment.manifest import require_dataset
from pipeline.config.checks import advice
from pipeline.config.recipe import Recipe, Student, Teacher, compdemo_ratio, without_idle_teachers
from pipeline.core.errors import BadInput
from pipeline.core.log import rank
from pipeline.data.aligned_dataset import AlignedRows
from pipeline.data.batch import row_tokens
from pipeline.data.blocks import EosTail, Unread, build_blocks
from pipeline.data.order import accumulation_steps
from pipeline.distributed.topology import Topology, launcher_topology
from pipeline.models.config_file import require_positions
from pipeline.models.configs import name_special_tokens, read_config
from pipeline.models.expert_parallel import expert_count, resolve_expert_parallel_size
from pipeline.models.export import as_exported
from pipeline.models.export_formats import check_format
from pipeline.models.tokenizer import load_tokenizer
from pipeline.models.weights import weight_files
from pipeline.training.answer_store import check_store
from pipeline.training.engine import read_engine_config, student_dtype, zero_stage
from pipeline.training.terms import teacher_strategy


@dataclass(frozen=True)
class DatasetNumbers:
    """What a run needs to know of its rows before it reads them."""

    shared_vocab: tuple[int, ...]
    """Id prefix that the student shares with each teacher, 0 = none."""
    costs: np.ndarray
    """The most tokens that each training row can take over all inputs, int64 [rows]."""
    files: dict[str, list[str]] = field(default_factory=dict)
    """Shards of each split."""
    key: str = ""
    """Of the manifest."""


@dataclass(frozen=True)
class Plan:
    """A run that has passed every check that needs no model: its recipe fits ranks, models and rows.

    Raises BadInput for a size of expert parallelism that does not divide ranks and experts, a token budget that cannot
    hold the longest row, and an objective that the tokenizers do not allow.
    """

    recipe: Recipe
    engine_config: dict[str, Any]
    """DeepSpeed's settings, as the file has them."""
    topology: Topology
    student: PreTrainedConfig
    """With the ids of special roles, as those of the teachers."""
    teachers: Mapping[str, PreTrainedConfig]
    dataset: DatasetNumbers
    eos_tail: EosTail | None = None
    """What fills the last block of rows, if anything."""
    tokenizer: PreTrainedTokenizerFast | None = None
    """The student's; None where nothing is saved."""
    warnings: Sequence[str] = ()
    """What runs, but maybe not as meant."""

    expert_parallel_size: dict[str, int] = field(init=False)
    """Of each teacher; 1 for a dense one."""
    accumulation: int = field(init=False)
    """Micro-batches per rank and optimizer step."""

    def __post_init__(self) -> None:
        recipe, topology, optim = self.recipe, self.topology, self.recipe.optim
        sizes = {
            teacher.name: resolve_expert_parallel_size(
                teacher.expert_parallel_size,
                experts=1 if teacher.stored else expert_count(self.teachers[teacher.name]),
                world_size=topology.world_size,
                local_world_size=topology.local_world_size,
            )
            for teacher in recipe.teachers
        }
        for teacher, shared in zip(recipe.teachers, self.dataset.shared_vocab, strict=True):
            teacher_strategy(recipe.objective, teacher, shared)
        steps = accumulation_steps(self.dataset.costs, optim.global_batch, topology.world_size, optim.micro_tokens)
        object.__setattr__(self, "expert_parallel_size", sizes)
        object.__setattr__(self, "accumulation", steps)

    def without_teachers(self) -> Plan:
        """The same rows and student alone, to measure it."""
        recipe, dataset = replace(self.recipe, teachers=[]), replace(self.dataset, shared_vocab=())
        return replace(self, recipe=recipe, dataset=dataset)

    def summary(self) -> list[str]:
        """Ranks, expert parallelism and the student's engine, a line each."""
        sizes = ", ".join(f"{name} {size}" for name, size in self.expert_parallel_size.items())
        return [
            f"ranks: {self.topology.world_size} ({self.topology.local_world_size} on this node)",
            f"expert parallelism: {sizes or 'no teacher'}",
            f"student: ZeRO stage {zero_stage(self.engine_config)}, {student_dtype(self.engine_config)}",
        ]


def prepare(recipe: Recipe, engine_config: Path) -> Plan:
    """Checks recipe, engine settings, aligned dataset, models' configs and ranks against one another.

    Raises BadInput with one line for whatever does not fit.
    """
    warnings, recipe = advice(recipe), without_idle_teachers(recipe)
    engine, topology = read_engine_config(engine_config), launcher_topology()
    student = _check_model(recipe.student, "data.student_length", recipe.data.student_length)
    tokenizer = load_tokenizer(recipe.student.tokenizer)
    name_special_tokens(student, recipe.student.path, tokenizer)
    for name in recipe.checkpoint.formats:
        exported = as_exported(student, {"recipe": asdict(recipe)})
        check_format(name, exported, tokenizer, f"checkpoint.formats: {recipe.student.path}")
    eos_tail = read_eos_tail(recipe.student.path, student, tokenizer) if recipe.student.eos_tail else None
    teachers = {teacher.name: _check_teacher(teacher) for teacher in recipe.teachers}
    dataset = _check_dataset(recipe, student, teachers)
    return Plan(recipe, engine, topology, student, teachers, dataset, eos_tail, tokenizer, warnings)


def _check_dataset(
    recipe: Recipe, student: PreTrainedConfig, teachers: Mapping[str, PreTrainedConfig]
) -> DatasetNumbers:
    manifest = require_dataset(recipe, every_byte=rank() == 0)  # once is enough
    folder, files = Path(recipe.data.aligned), {split: manifest.files(split) for split in ("train", "validation")}
    for teacher in recipe.teachers:
        if teacher.stored:
            check_store(recipe, teacher, manifest, every_byte=rank() == 0)
    names = [teacher.name for teacher in recipe.teachers]
    rows, held_out = AlignedRows(folder, files["train"], names), AlignedRows(folder, files["validation"], names)
    if not len(rows):
        raise BadInput(f"{folder} holds no training rows: see the reasons in its manifest.json")
    if rank() == 0:
        for part in (rows, held_out):
            _check_ids(part, [(recipe.student, student), *((t, teachers[t.name]) for t in recipe.teachers)])
    return DatasetNumbers(
        shared_vocab=tuple(manifest.inputs.teachers[t.name].shared_vocab or 0 for t in recipe.teachers),
        costs=row_costs(recipe, rows.student_lengths, rows.teacher_lengths),
        files=files,
        key=manifest.key,
    )


def _check_ids(rows: AlignedRows, models: Sequence[tuple[Student | Teacher, PreTrainedConfig]]) -> None:
    for (model, config), largest in zip(models, rows.largest_ids(), strict=True):
        if largest >= config.vocab_size:
            raise BadInput(
                f"{model.path} has {config.vocab_size} embeddings, and the aligned rows hold token {largest} of "
                f"{model.tokenizer}: resize its embeddings and save it again, or align with its own tokenizer"
            )


def row_costs(recipe: Recipe, student: np.ndarray, teachers: Sequence[np.ndarray]) -> np.ndarray:
    """The most tokens that rows of these lengths can take over all inputs, int64 [rows]."""
    blocks = build_blocks(recipe.student.input, recipe.student.block_size, recipe.student.blocks)
    return row_tokens(
        student,
        teachers,
        student=blocks,
        teachers=[Unread() if t.stored else build_blocks(t.input, recipe.student.block_size) for t in recipe.teachers],
        compdemo=compdemo_ratio(recipe) is not None,
        eos_tail=recipe.student.eos_tail,
    )


def read_eos_tail(path: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> EosTail:
    """What `student.eos_tail` fills blocks with: the end token of the model's config. Raises BadInput without any.

    Of several, the tokenizer's: that is what the published code fills blocks with. Answers end with any of them, or with
    another special token of the tokenizer's: templates may end a turn otherwise than the model ends a text.
    """
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    token = tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[0]
    if token is None:
        raise BadInput(f"student.eos_tail: {path} names no end token: set eos_token_id in its config.json")
    special = (index for index, added in tokenizer.added_tokens_decoder.items() if added.special)
    return EosTail(token, frozenset({*ends, *special}))


def _check_model(model: Student | Teacher, what: str, length: int) -> PreTrainedConfig:
    """The model's config. Weights on the hub are not fetched for this."""
    config = read_config(model.path, causal=model.causal)
    require_positions(what, length, config.max_position_embeddings, model.path)
    if reads_weights(model) and Path(model.path).is_dir():
        weight_files(Path(model.path))
    return config


def _check_teacher(teacher: Teacher) -> PreTrainedConfig:
    """The teacher's config; with the ids of special roles, unless the teacher is autoregressive."""
    config = _check_model(teacher, f"{teacher.role}: length", teacher.length)
    if not teacher.causal:
        name_special_tokens(config, teacher.path, load_tokenizer(teacher.tokenizer, student=False))
    return config


def reads_weights(model: Student | Teacher) -> bool:
    """Whether a run opens the model's weights."""
    return model.weights == "pretrained" and not model.stored
