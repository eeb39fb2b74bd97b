"""Before the first step: teachers that cannot read their own tokens are refused, by name and number."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.alignment.build import align
from pipeline.alignment.manifest import load_manifest
from pipeline.config.cli import parse, parser
from pipeline.config.recipe import Recipe
from pipeline.core.errors import BadInput
from pipeline.data.aligned_dataset import AlignedRow, AlignedRows, AlignedTeacher
from pipeline.data.batch import BatchBuilder, InputLayout, TeacherLayout
from pipeline.data.blocks import SequenceBlocks, build_blocks
from pipeline.distributed.mpi_ranks import Ranks
from pipeline.distributed.topology import Topology
from pipeline.models.loading import load_teacher
from pipeline.training.held_out import FixedNoiseRows
from pipeline.training.teacher_checks import SHARE, check_teachers, likelihood

SOURCE = "[{path: demo/data/validation.jsonl, name: held_out}]"


@pytest.fixture(scope="module")
def demo(tmp_path_factory, one_rank) -> tuple[Recipe, AlignedRows]:
    """The demo's recipe with the teacher that reads blocks, on its held-out rows, aligned."""
    folder = tmp_path_factory.mktemp("demo")
    words = ["--data.sources", SOURCE, "--data.validation", "null", "--data.aligned", str(folder / "aligned")]
    recipe, _ = parse(parser(""), words)
    recipe = replace(recipe, teachers=[replace(recipe.teachers[0], path="demo/teacher", input="block")])
    align(recipe, Ranks(), 1, 4096)
    return recipe, AlignedRows(folder / "aligned", load_manifest(folder / "aligned").files("train"), ["llada2"])


@pytest.fixture(scope="module")
def teacher():
    return load_teacher("demo/teacher", dtype=torch.float32, device="cpu")


class Changed:
    """Rows whose teacher reads other ids."""

    def __init__(self, rows: AlignedRows, change: Callable[[AlignedTeacher], Tensor]):
        self.rows, self.change = rows, change
        self.student_lengths, self.teacher_lengths = rows.student_lengths, rows.teacher_lengths

    def __len__(self) -> int:
        return len(self.rows)

    def pick(self, places: np.ndarray) -> Changed:
        return Changed(self.rows.pick(places), self.change)

    def __getitem__(self, index: int) -> AlignedRow:
        row = self.rows[index]
        return replace(row, teachers=tuple(replace(t, ids=self.change(t)) for t in row.teachers))


def fixed_noise(recipe: Recipe, rows, model) -> FixedNoiseRows:
    config = model.config
    size = recipe.student.block_size
    teacher = TeacherLayout(config.mask_token_id, build_blocks(recipe.teachers[0].input, size))
    builder = BatchBuilder(InputLayout(325, SequenceBlocks(size)), (teacher,))
    topology = Topology(0, 1, 1, torch.device("cpu"))
    return FixedNoiseRows(rows, builder, topology, recipe.optim.micro_tokens)


def check(recipe: Recipe, rows, model) -> None:
    check_teachers([(recipe.teachers[0], model)], fixed_noise(recipe, rows, model))


def permutation(model) -> Tensor:
    return torch.randperm(model.config.vocab_size, generator=torch.Generator().manual_seed(0))


def test_a_teacher_that_understands_its_tokens_passes(demo, teacher, capsys):
    check(*demo, teacher)
    _, first = capsys.readouterr().out.split(" ", 1)
    nats, guessing = map(float, re.findall(r"\d+\.\d\d", first))
    measured, entropy = likelihood(teacher, 0, fixed_noise(*demo, teacher))
    bound = guessing * SHARE
    assert nats < 1 and bound == pytest.approx(guessing / 2, abs=0.01) and bound < entropy < guessing
    assert nats == pytest.approx(measured, abs=0.005)
    assert "understands its input" in first and "WARNING" not in first
    check(*demo, teacher)
    assert capsys.readouterr().out.endswith(f" {first}")  # the noise is fixed


def test_another_tokenizers_ids_are_refused(demo, teacher):
    recipe, rows = demo
    with pytest.raises(BadInput) as error:
        check(recipe, Changed(rows, lambda t: permutation(teacher)[t.ids]), teacher)
    assert re.match(r"teacher llada2 needs 1\d\.\d\d nats per masked token of its own ids, above 2\.91: check its tokenizer,"
                    r" chat template, weights and `input`$", str(error.value))  # fmt: skip


def test_lost_weights_are_refused_unless_they_are_meant_to_be_random(demo, capsys):
    recipe, rows = demo
    lost = load_teacher("demo/teacher", dtype=torch.float32, device="cpu", weights="random")
    with pytest.raises(BadInput, match="teacher llada2 needs"):
        check(recipe, rows, lost)
    with torch.no_grad():
        lost.model.norm.weight.fill_(torch.nan)
    with pytest.raises(BadInput, match="teacher llada2 needs nan nats"):
        check(recipe, rows, lost)
    capsys.readouterr()
    check(replace(recipe, teachers=[replace(recipe.teachers[0], weights="random")]), rows, lost)
    assert capsys.readouterr().out[9:] == "teacher llada2: random weights, whose likelihood is not checked\n"


def test_another_template_is_warned_of(demo, teacher, capsys):
    recipe, rows = demo
    check(recipe, Changed(rows, lambda t: torch.where(t.chunks < 0, permutation(teacher)[t.ids], t.ids)), teacher)
    assert "WARNING teacher llada2 understands little of its input" in capsys.readouterr().out
