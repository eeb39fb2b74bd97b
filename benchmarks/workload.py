"""What the benchmarks run on: models with random weights, rows of a given shape, and mixed chats."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, Qwen3Config

from pipeline.core.errors import BadInput
from pipeline.core.files import read_json_lines, write_json_lines
from pipeline.data.aligned_dataset import AlignedRow, AlignedTeacher
from pipeline.models.families.llada2_moe import LLaDA2MoeConfig
from pipeline.models.loading import build
from pipeline.models.weights import checkpoint_views, init_weights


@dataclass(frozen=True)
class Shape:
    """A training step's sizes. Prompts fill what responses leave of the lengths."""

    student: PreTrainedConfig
    teacher: PreTrainedConfig
    rows: int = 4
    student_length: int = 512
    teacher_length: int = 564
    response: int = 334
    """student tokens of the response; a block boundary lies where it falls"""
    block_size: int = 32
    shared_tokenizer: bool = False
    """every token a chunk, the same on both sides; otherwise about one chunk in five holds several tokens"""

    @property
    def shared_vocabulary(self) -> int:
        """Ids that both sides share, 0 = none."""
        return self.student.vocab_size if self.shared_tokenizer else 0

    def but(self, **changes: Any) -> Shape:
        """Another shape."""
        return replace(self, **changes)


def qwen3(vocabulary: int = 151936, hidden: int = 128, layers: int = 4, **changes: Any) -> Qwen3Config:
    """A student of Qwen3's architecture and special ids, embeddings tied."""
    heads = max(4, hidden // 64)
    sizes = {"intermediate_size": 3 * hidden, "num_attention_heads": heads, "head_dim": hidden // heads}
    sizes["num_key_value_heads"] = heads // 2
    special = {"mask_token_id": vocabulary - 267, "eos_token_id": vocabulary - 291, "pad_token_id": vocabulary - 293}
    shape = {"vocab_size": vocabulary, "hidden_size": hidden, "num_hidden_layers": layers, "tie_word_embeddings": True}
    rope = {"rope_theta": 1e6, "max_position_embeddings": 1 << 21}
    return Qwen3Config(**{**shape, **rope, **sizes, **special, **changes})


def llada2(vocabulary: int = 157184, hidden: int = 256, layers: int = 4, experts: int = 16, **changes: Any):
    """A teacher of LLaDA2's architecture and special ids: the published model's proportions."""
    sizes = {
        "intermediate_size": 5 * hidden // 2, "moe_intermediate_size": hidden // 4, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": hidden // 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 4,
    }  # fmt: skip
    special = {"mask_token_id": vocabulary - 289, "eos_token_id": vocabulary - 292, "pad_token_id": vocabulary - 292}
    return LLaDA2MoeConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_experts=experts,
        **{**sizes, **special, **changes},
    )


# The published models' own sizes, with random weights.
REAL = {
    "student": qwen3(
        hidden=1024, layers=28, intermediate_size=3072, num_attention_heads=16, num_key_value_heads=8, head_dim=128
    ),
    "llada2": LLaDA2MoeConfig(mask_token_id=156895, eos_token_id=156892, pad_token_id=156892),
    "wedlm": qwen3(
        hidden=4096, layers=36, intermediate_size=12288, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        tie_word_embeddings=False, mask_token_id=151665,
    ),
}  # fmt: skip


def model(config: PreTrainedConfig, *, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0):
    """The model with random weights, as a loader of the pipeline leaves it."""
    made = build(config, dtype=dtype, device=device)
    if device == "cpu":
        init_weights(checkpoint_views(made), seed=seed, std=config.initializer_range)
        return made
    for parameter in made.parameters():  # large ones are drawn where they live
        nn.init.ones_(parameter) if parameter.ndim == 1 else nn.init.normal_(parameter, std=config.initializer_range)
    return made


def teacher(config: PreTrainedConfig, **options: Any):
    """A frozen model in eval mode."""
    return model(config, seed=1, **options).requires_grad_(False).eval()


def rows(shape: Shape, seed: int = 0) -> list[AlignedRow]:
    """Rows of that shape: a prompt without chunks, a response whose chunks cover it but for the end-of-turn token."""
    generator = torch.Generator().manual_seed(seed)
    return [_row(shape, generator) for _ in range(shape.rows)]


def _row(shape: Shape, generator: torch.Generator) -> AlignedRow:
    chunks = list(_chunk_sizes(shape, generator))
    chunk_ids = torch.repeat_interleave(torch.tensor([a for a, _ in chunks]))
    other = torch.repeat_interleave(torch.tensor([b for _, b in chunks]))
    student_chunks, maskable = _after_prompt(chunk_ids, shape.student_length)
    teacher_chunks, _ = _after_prompt(other, shape.teacher_length)
    ids = _ids(shape.student_length, shape.student.vocab_size, generator)
    teacher_ids = _ids(shape.teacher_length, shape.teacher.vocab_size, generator)
    if shape.shared_tokenizer:
        teacher_ids[teacher_chunks >= 0] = ids[student_chunks >= 0]
    return AlignedRow(ids, maskable, (AlignedTeacher(teacher_ids, teacher_chunks, student_chunks),))


def _chunk_sizes(shape: Shape, generator: torch.Generator) -> Iterator[tuple[int, int]]:
    """Student and teacher tokens of each chunk; together `response` - 1 student tokens."""
    kinds = [(1, 1)] if shape.shared_tokenizer else [(1, 1)] * 16 + [(1, 2)] * 2 + [(2, 1), (2, 2)]
    left = shape.response - 1
    while left:
        student, other = kinds[int(torch.randint(len(kinds), (), generator=generator))]
        yield min(student, left), other
        left -= min(student, left)


def _after_prompt(chunks: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Chunk ids and maskable tokens of a side: the prompt, the chunks, an end-of-turn token."""
    ids = torch.full((length,), -1)
    ids[length - 1 - len(chunks) : -1] = chunks
    return ids, torch.arange(length) >= length - 1 - len(chunks)


def _ids(length: int, vocabulary: int, generator: torch.Generator) -> Tensor:
    return torch.randint(vocabulary - 400, (length,), generator=generator)


def tokenizers_and_text(quick: bool) -> tuple[tuple[str, str], Path]:
    """The student's and the teacher's tokenizer and a JSONL file of single-turn rows: real ones, or the demo's."""
    if quick:
        return ("demo/student", "demo/teacher"), Path("demo/data/student_train.jsonl")
    return ("data/tokenizers/qwen3", "data/tokenizers/llama3_1"), Path("data/code/train.jsonl")


def write_chats(file: Path, source: Path, count: int) -> None:
    """Writes `mixed_chats` as the align stage reads them."""
    chats = mixed_chats(source, count)
    write_json_lines(file, ({"messages": chat} for chat in chats))


def mixed_chats(source: Path, count: int, seed: int = 0) -> list[list[dict[str, str]]]:
    """Conversations of one to many turns, made of the single-turn rows of a JSONL file; half of them have one turn.

    Raises BadInput without the file.
    """
    if not source.is_file():
        raise BadInput(f"no {source}: `make code-data` fetches the tokenizers and makes it")
    single = [row["messages"] for row in read_json_lines(source)]
    generator = random.Random(seed)
    chats = []
    for _ in range(count):
        turns = 1
        while generator.random() < 0.5:
            turns += 1
        chats.append([message for _ in range(turns) for message in generator.choice(single)])
    return chats
