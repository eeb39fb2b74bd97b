"""Whether a student and a teacher can work together, found before anything is bought: configs, tokenizers, and a few rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from pipeline.alignment.chat import Messages
from pipeline.alignment.rows import AlignedBatch, align_rows
from pipeline.alignment.sides import Side
from pipeline.alignment.vocabulary import shared_vocab
from pipeline.core.errors import BadInput
from pipeline.core.rng import generator_for
from pipeline.data.batch import CausalLayout, TeacherLayout
from pipeline.data.blocks import build_blocks
from pipeline.data.packing import pack
from pipeline.method.masking import predictable
from pipeline.models.configs import read_config, read_named_config
from pipeline.models.conversion import end_of_turn
from pipeline.models.families.family import Input
from pipeline.models.families.table import family_of, is_shifted
from pipeline.models.forward import score_tokens
from pipeline.models.loading import load_teacher
from pipeline.models.tokenizer import load_tokenizer

SHARES = (0.15, 0.5, 0.9)
"""Of the answers' tokens that are masked to look at the teacher's likelihood"""


@dataclass
class PairReport:
    """What was found, line by line."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """Why the pair cannot work"""


def check_pair(student: str, teacher: str, reads: Input, rows: Sequence[Messages], length: int) -> PairReport:
    """Looks at both sides and at how they meet on the rows.

    reads: the teacher's `input`. Raises BadInput for a side that cannot be used at all.
    """
    report, causal = PairReport(), reads == "causal"
    configs = read_config(student), read_config(teacher, causal=causal)
    tokenizers = load_tokenizer(student), load_tokenizer(teacher, needs_mask=not causal, student=False)
    _families(report, configs, reads)
    for name, config, tokenizer in zip(("student", "teacher"), configs, tokenizers, strict=True):
        _tokens(report, name, config, tokenizer, needs_mask=name == "student" or not causal)
    shared = shared_vocab(*tokenizers)
    report.lines.append(("shared vocabulary", f"{shared:,} ids: KL" if shared else "none: CALM, over chunks"))
    if rows:
        aligned = align_rows(Side(tokenizers[0], length), {"t": Side(tokenizers[1], length)}, rows)
        _chunks(report, aligned)
        if not report.problems:
            _likelihood(report, teacher, tokenizers[1], reads, aligned)
    return report


def _families(report: PairReport, configs: tuple[PreTrainedConfig, PreTrainedConfig], reads: Input) -> None:
    student, teacher = (family_of(config) for config in configs)
    for name, family in (("student", student), ("teacher", teacher)):
        report.lines.append((f"{name}: family", f"{family.name}, trained with {', '.join(family.inputs)}"))
    if not student.student:
        report.problems.append(f"{student.name} can be a teacher, not a student")
    if reads not in teacher.inputs:
        report.warnings.append(f"the teacher was not trained with input {reads}: use {' or '.join(teacher.inputs)}")


def _tokens(
    report: PairReport, name: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast, *, needs_mask: bool
) -> None:
    size, largest = config.vocab_size, max(tokenizer.get_vocab().values())
    if needs_mask:
        report.lines.append((f"{name}: mask token", f"{tokenizer.mask_token} {tokenizer.mask_token_id}"))
        named = getattr(config, "mask_token_id", None)
        if named is not None and named != tokenizer.mask_token_id:
            report.problems.append(
                f"{name}: mask token {named} in config.json, {tokenizer.mask_token_id} in the tokenizer"
            )
    if largest >= size:
        report.problems.append(f"{name}: the tokenizer has ids up to {largest}, the model {size} embeddings")
    end, known = end_of_turn(tokenizer), config.eos_token_id
    ends = known if isinstance(known, list) else [known]
    spelled = "none" if end is None else f"{tokenizer.convert_ids_to_tokens(end)} {end}"
    report.lines.append((f"{name}: an answer ends with", f"{spelled}; config.json's end tokens: {ends}"))
    if end is None:
        report.warnings.append(f"{name}: its template ends no answer with a special token: answers may run on")
    elif known is not None and end not in ends:
        report.warnings.append(
            f"{name}: its template ends answers with {end}, its config.json with {ends}, as a base model's: generation would run"
            " on behind an answer; name both in eos_token_id"
        )


def _chunks(report: PairReport, aligned: AlignedBatch) -> None:
    kept = [index for index, reason in enumerate(aligned.dropped) if reason is None]
    report.lines.append(("rows", f"{len(kept)} of {len(aligned.dropped)} can be used"))
    sums = {name: int(values[kept].sum()) for name, values in aligned.counts.items()}
    if not kept or not sums["t.chunks"]:
        reasons = ", ".join(sorted({reason for reason in aligned.dropped if reason}))
        report.problems.append(f"no row has a chunk that both tokenizers spell alike ({reasons})")
        return
    one_to_one, outside = sums["t.one_to_one"] / sums["t.chunks"], sums["t.maskable_outside_chunks"]
    report.lines.append(("chunks of one token on both sides", f"{one_to_one:.1%}"))
    report.lines.append(("answers' tokens outside of chunks", f"{outside / sums['maskable_tokens']:.1%}"))
    report.lines.append(("tokens", f"{sums['student_tokens']:,} of the student, {sums['t.tokens']:,} of the teacher"))


def _likelihood(
    report: PairReport, path: str, tokenizer: PreTrainedTokenizerFast, reads: Input, aligned: AlignedBatch
) -> None:
    """Mean log-probability of the answers' tokens under the teacher's own ids, some of them masked."""
    if not list(Path(path).glob("*.safetensors")):
        report.lines.append(("teacher's likelihood", "not measured: no weights in a local folder"))
        return
    causal = reads == "causal"
    config = read_named_config(path, tokenizer, causal=causal)
    model = load_teacher(path, dtype=torch.float32, device="cpu", config=config, causal=causal)
    blocks = build_blocks(reads, getattr(model.config, "block_size", None) or 32)
    layout = (
        CausalLayout(0, blocks)
        if causal
        else TeacherLayout(model.config.mask_token_id, blocks, shifted=is_shifted(model.config))
    )
    names = ("t_input_ids", "maskable", "t_student_chunk_ids", "t_chunk_ids")
    split = [torch.from_numpy(x).split(lengths.tolist()) for x, lengths in map(aligned.columns.__getitem__, names)]
    rows = [(ids.long(), predictable(*chunks)) for ids, *chunks in zip(*split, strict=True)]
    for share in SHARES:
        nats, count = 0.0, 0
        for number, (row, answers) in enumerate(rows):
            masked = answers & (torch.rand(len(row), generator=generator_for(0, number, share)) < share)
            masked[:1] = False
            packed, predicting = pack([layout.view(row, masked)])
            with torch.no_grad():
                nats -= float(score_tokens(model, packed, predicting, row[masked]).sum())
            count += int(masked.sum())
        guess = torch.tensor(float(model.config.vocab_size)).log().item()
        report.lines.append(
            (f"teacher: nats per token, {share:.0%} masked", f"{nats / max(1, count):.2f} (guessing: {guess:.2f})")
        )
        if share == SHARES[0] and count and nats / count > guess / 2:
            report.problems.append(
                f"the teacher needs {nats / count:.2f} nats per token of its own ids: check its tokenizer, template and `--input`"
            )


def require_rows(rows: Sequence[object], where: str) -> None:
    """Raises BadInput for a file without a row that can be read."""
    if not rows:
        raise BadInput(f"{where}: no chat row that can be read")
