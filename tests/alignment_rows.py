"""Chat rows and their aligned columns, for tests; rows that the published implementation has aligned."""

from __future__ import annotations

import json
from functools import cache

import numpy as np

from pipeline.alignment.rows import align_rows
from pipeline.alignment.sides import Side
from tests.alignment_tokenizers import CHATML, DATA, HEADERS, excerpt

VERBATIM = "{%- for m in messages %}{{- '<' + m.role + '>' + m.content + '<|im_end|>\n' }}{%- endfor %}"


def chat(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    turns = [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]
    return ([] if system is None else [{"role": "system", "content": system}]) + turns


def align_one(student: Side, teacher: Side, messages: list[dict[str, str]]) -> dict[str, np.ndarray]:
    """The columns of one row, which must not be dropped."""
    batch = align_rows(student, {"t": teacher}, [messages])
    assert batch.dropped == [None]
    return {name: values for name, (values, _) in batch.columns.items()} | {
        name: int(values.sum()) for name, values in batch.counts.items()
    }


def texts(side: Side, ids: np.ndarray) -> list[bytes]:
    return [side.spelled[index] for index in ids]


def masked_text(side: Side, row: dict[str, np.ndarray]) -> str:
    return b"".join(texts(side, row["input_ids"][row["maskable"]])).decode()


def chunk_texts(side: Side, ids: np.ndarray, chunks: np.ndarray) -> list[bytes]:
    spelled = texts(side, ids)
    found = [b"".join(t for t, c in zip(spelled, chunks, strict=True) if c == n) for n in range(max(chunks) + 1)]
    assert all(found), "a chunk without tokens"
    return found


@cache
def published_tokenizers():
    return excerpt("qwen3", CHATML, "<|im_end|>"), excerpt(
        "llama3", HEADERS, "<|eot_id|>", bos_token="<|begin_of_text|>"
    )


def published_sides(row: dict) -> tuple[Side, Side]:
    """Student and teacher, of the row's lengths."""
    student, teacher = map(Side, published_tokenizers(), (row["max_length"], row["max_teacher_length"]))
    return student, teacher


PUBLISHED = json.loads((DATA / "chat_qwen3_llama3.json").read_text())
WHOLE = {  # published: ends after its last chunk, which is no more than that; ours: ends with the answer's end of turn
    "humaneval_30", "humaneval_31", "multi_turn", "chinese",
}  # fmt: skip
CUT_IN_THE_PROMPT = {  # published: an answer that is not found, or found in the prompt, ends the row there
    "echo_answer", "answer_equals_question", "answer_is_role_word", "one_letter_answer",
    "leading_newline_answer", "nfd_answer",
}  # fmt: skip


def published_teacher_row(row: dict) -> list[int]:
    """What the published trainer feeds its teacher; of the rows named above, with what it loses put back."""
    fed, whole = row["batch_teacher_input_ids"], row["map_fn_teacher_input_ids"]
    if row["name"] in WHOLE:
        assert whole == [*fed, LLAMA3_END_OF_TURN]
    elif row["name"] not in CUT_IN_THE_PROMPT:
        return fed
    return whole


LLAMA3_END_OF_TURN = 128009
