"""Whole chat rows: what may be masked, chunks under truncation, tokenizers of every kind."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.alignment.rows import align_rows
from pipeline.alignment.sides import Side
from tests.alignment_rows import (
    PUBLISHED,
    VERBATIM,
    align_one,
    chat,
    chunk_texts,
    masked_text,
    published_sides,
    published_teacher_row,
    texts,
)
from tests.alignment_tokenizers import HEADERS, byte_level, llama_bpe, merging_line_breaks, metaspace, words
from tests.test_alignment import spans

BETTER = {  # response tokens and chunks that can learn, where the published implementation loses them or aligns nothing
    "teacher_capped": (156, 84),
    "echo_answer": (1, 1),
    "answer_equals_question": (1, 1),
    "answer_is_role_word": (1, 1),
    "one_letter_answer": (1, 1),
    "leading_newline_answer": (4, 4),
    "nfd_answer": (5, 5),
    "multi_turn": (14, 10),  # all assistant turns, not only the last
}


@pytest.mark.parametrize("row", PUBLISHED, ids=lambda row: row["name"])
def test_published_rows(row):
    student, teacher = published_sides(row)
    got = align_one(student, teacher, row["messages"])
    ids, published = got["input_ids"].tolist(), row["map_fn_input_ids"][: row["max_length"]]
    after_the_end = published[len(ids) :]  # the template's line break, which ours leaves out: see the test below
    assert ids == published[: len(ids)] and after_the_end in ([], [198])
    assert got["t_input_ids"].tolist() == published_teacher_row(row)
    chunks = got["t_student_chunk_ids"]
    learning = got["maskable"] & (chunks >= 0)
    counts = int(learning.sum()), len(set(chunks[learning].tolist()))
    assert counts == BETTER.get(row["name"], (row["response_tokens_in_active_chunks"], row["n_active_chunks"]))
    if row["name"] not in BETTER or row["name"] == "multi_turn":
        assert spans(chunks, got["t_chunk_ids"]) == row["chunks"]
    same = chunk_texts(student, got["input_ids"], chunks), chunk_texts(teacher, got["t_input_ids"], got["t_chunk_ids"])
    assert same[0] == same[1]


# What may be masked


def test_answers_and_their_end_of_turn_are_maskable():
    side = Side(byte_level(), 200)
    got = align_one(side, Side(metaspace(), 200), chat("Hello", "One.", "And?", "Two.", system="Be brief."))
    assert masked_text(side, got) == "One.<|im_end|>Two.<|im_end|>"
    ends = np.isin(got["input_ids"], byte_level().convert_tokens_to_ids(["<|im_end|>"]))
    assert (got["t_student_chunk_ids"][ends] == -1).all()


def test_answers_of_weight_0_are_context():
    messages = chat("Hello", "One.", "And?", "Two.", "And?", "Three.")
    messages[3]["weight"] = 0
    side = Side(byte_level(), 200)
    assert masked_text(side, align_one(side, side, messages)) == "One.<|im_end|>Three.<|im_end|>"


def test_only_the_last_answer_may_be_maskable():
    """As published; the others are context."""
    rows = [chat("Hello", "One.", "And?", "Two."), chat("only a question"), chat("q", "a " * 90, "q", "b")]
    side = Side(byte_level(), 60)
    batch = align_rows(side, {}, rows, "last")
    assert batch.dropped == [None, "no_assistant_content", "prompt_fills_student_length"]
    ids, maskable = batch.columns["input_ids"][0], batch.columns["maskable"][0]
    assert b"".join(texts(side, ids[maskable])) == b"Two.<|im_end|>"


def test_blanks_before_an_end_of_turn_belong_to_it():
    side = Side(byte_level(VERBATIM.replace("'<|im_end|>\n'", "' <|im_end|>\n'")), 200)
    got = align_one(side, Side(metaspace(), 200), chat("Hi", "One."))
    assert masked_text(side, got) == "One. <|im_end|>"


LINE_BREAK = VERBATIM.replace("'<|im_end|>\n'", "'\n<|im_end|>\n'")


@pytest.mark.parametrize(("answer", "across"), [("One.", [b".\n"]), ("One..", [b"..\n"]), ("One", [])])
def test_a_token_across_the_end_of_an_answer_leaves_the_end_of_turn_maskable(answer, across):
    """`.\n` is one token of Qwen3's: the model must write all of it, and the end of turn behind it."""
    side = Side(merging_line_breaks(LINE_BREAK), 200)
    got = align_one(side, Side(metaspace(), 200), chat("Hi", answer))
    assert [text for text in texts(side, got["input_ids"]) if text.endswith(b".\n")] == across
    assert masked_text(side, got) == f"{answer}\n<|im_end|>"
    assert b"".join(chunk_texts(side, got["input_ids"], got["t_student_chunk_ids"])) == b"HiOne"


def test_an_answer_within_a_token_of_the_template_leaves_the_end_of_turn_maskable():
    side = Side(merging_line_breaks(LINE_BREAK.replace("'>'", "'>.'")), 200)
    batch = align_rows(side, {}, [chat("Hi", ".")])
    ids, maskable = batch.columns["input_ids"][0], batch.columns["maskable"][0]
    assert texts(side, ids[-2:]) == [b"..\n", b"<|im_end|>"]
    assert maskable.tolist() == [False] * (len(ids) - 1) + [True]


def test_text_after_an_answer_without_end_of_turn_is_not_maskable():
    side = Side(byte_level("{%- for m in messages %}{{- m.role + ':' + m.content + '#\n' }}{%- endfor %}"), 200)
    got = align_one(side, Side(metaspace(), 200), chat("Hi", "One."))
    assert masked_text(side, got) in ("One.", "One")  # a token may straddle the end


def test_tokens_across_a_boundary_are_in_no_chunk_and_counted():
    side, teacher = Side(byte_level(VERBATIM.replace("'>'", "'> '")), 200), Side(metaspace(), 200)
    got = align_one(side, teacher, chat("the dog", "the dog"))
    assert b" the" in texts(side, got["input_ids"])  # the template's space and the first word
    assert b"".join(chunk_texts(side, got["input_ids"], got["t_student_chunk_ids"])) == b" dog dog"
    assert (got["t.student_straddling"], got["t.teacher_straddling"]) == (2, 0)
    assert masked_text(side, got) == " dog<|im_end|>"


@pytest.mark.parametrize(
    ("messages", "length", "reason"),
    [
        (chat("only a question"), 100, "no_assistant_content"),
        (chat("q", ""), 100, "no_assistant_content"),
        (chat("q " * 60, "answer"), 20, "prompt_fills_student_length"),
    ],
)
def test_rows_with_nothing_to_learn_are_named(messages, length, reason):
    assert align_rows(Side(byte_level(), length), {}, [messages]).dropped == [reason]


@pytest.mark.parametrize("length", range(20, 50, 3))
def test_the_teacher_does_not_read_on_where_the_student_is_cut(length):
    """Else a teacher that sees all of xt has the rest of the answers in clear."""
    messages = chat("the dog", "the quick brown fox jumps", "and?", "the lazy dog sleeps on.")
    teacher = Side(metaspace(), 500)
    whole = align_one(Side(byte_level(), 500), teacher, messages)
    got = align_one(Side(byte_level(), length), teacher, messages)
    ids, expected = got["t_input_ids"].tolist(), whole["t_input_ids"].tolist()
    if len(got["input_ids"]) < len(whole["input_ids"]):
        expected = expected[: len(ids)]
        assert got["t_chunk_ids"][-1] == got["t_student_chunk_ids"].max()
    assert ids == expected
    assert got["t.tokens"] == len(ids)


def test_rows_whose_answer_a_teacher_never_sees_are_named():
    batch = align_rows(Side(byte_level(), 500), {"t": Side(metaspace(), 20)}, [chat("q " * 60, "answer")])
    assert batch.dropped == ["no_aligned_chunk"]


# Vocabularies that do not respell the text


@pytest.mark.parametrize("make", [lambda: metaspace(prefix="first"), lambda: metaspace(prefix="always"), llama_bpe])
def test_added_spaces_do_not_cost_chunks(make):
    """SentencePiece's dummy prefix: `▁the` for `the` after a special token."""
    side, teacher = Side(byte_level(), 200), Side(make(), 200)
    messages = chat("the dog 日本 🤖", "the  fox\nthe dog")
    got = align_one(side, teacher, messages)
    spelled = b"".join(chunk_texts(side, got["input_ids"], got["t_student_chunk_ids"]))
    assert spelled == "".join(message["content"] for message in messages).encode()


def test_text_that_the_student_normalises_keeps_its_other_chunks():
    side, teacher = Side(byte_level(nfc=True), 200), Side(metaspace(), 200)
    got = align_one(side, teacher, chat("Spell it.", "The cafe\u0301 sleeps on."))
    student = chunk_texts(side, got["input_ids"], got["t_student_chunk_ids"])
    assert student == chunk_texts(teacher, got["t_input_ids"], got["t_chunk_ids"])
    spelled = b"".join(student)
    assert spelled.startswith(b"Spell it.The ") and spelled.endswith(b" sleeps on.")
    assert "é".encode() not in spelled and "e\u0301".encode() not in spelled
    assert masked_text(side, got) == "The café sleeps on.<|im_end|>"


def test_unknown_vocabularies_align_by_offsets():
    side, teacher = Side(byte_level(), 200), Side(words(), 200)
    got = align_one(side, teacher, chat("What is 12 plus 34?", "The sum is 46."))
    spelled = chunk_texts(side, got["input_ids"], got["t_student_chunk_ids"])
    assert spelled == [
        b"What",
        b"?",
        b"The",
        b".",
    ]  # WordPiece leaves out the spaces that the student's words begin with
    assert len(spelled) == got["t_chunk_ids"].max() + 1


def test_rows_end_with_the_last_end_of_turn():
    """What follows it in the template, or in a last question, would show in xt how long the answer is."""
    side = Side(byte_level(), 200)
    for extra in ([], ["another question, never answered"]):
        got = align_one(side, side, chat("question", "answer", *extra))
        assert got["maskable"][-1] and got["input_ids"][-1] == got["t_input_ids"][-1]
        assert chunk_texts(side, got["input_ids"], got["t_student_chunk_ids"])[-1].endswith(b"r")


# Any conversation, any length


@cache
def kinds():
    return {
        "byte-level": byte_level(),
        "byte-level, NFC": byte_level(nfc=True),
        "trimmed, byte-level": byte_level(HEADERS.replace("bos_token", "''"), "<|eot_id|>"),
        "metaspace": metaspace(),
        "metaspace with prefix": metaspace(prefix="always"),
        "Llama 2": llama_bpe(),
    }


contents = st.text(st.sampled_from("ab the\n\r 12e\u0301日🙂▁<>"), max_size=30)
conversations = st.lists(contents, min_size=2, max_size=4)
names = st.sampled_from(sorted(kinds()))


@settings(max_examples=150, deadline=None)
@given(st.lists(conversations, min_size=1, max_size=4), names, names, st.integers(4, 60), st.integers(4, 60))
def test_chunks_of_any_rows(rows, student_name, teacher_name, student_length, teacher_length):
    student, teacher = Side(kinds()[student_name], student_length), Side(kinds()[teacher_name], teacher_length)
    messages = [chat(*row) for row in rows]
    batch = align_rows(student, {"t": teacher}, messages)
    columns = {name: np.split(values, np.cumsum(sizes)[:-1]) for name, (values, sizes) in batch.columns.items()}
    for index in range(len(rows)):
        own, chunks = columns["input_ids"][index], columns["t_student_chunk_ids"][index]
        other, other_chunks = columns["t_input_ids"][index], columns["t_chunk_ids"][index]
        assert len(own) == len(chunks) == len(columns["maskable"][index]) <= student_length
        assert len(other) == len(other_chunks) <= teacher_length
        for ids in (chunks, other_chunks):
            present = ids[ids >= 0]
            assert sorted(set(present.tolist())) == list(range(max(chunks, default=-1) + 1))
            assert (np.diff(present) >= 0).all()
        if max(chunks, default=-1) >= 0:
            both = chunk_texts(student, own, chunks), chunk_texts(teacher, other, other_chunks)
            for a, b in zip(*both, strict=True):
                assert a == b or b" " + a == b or a == b" " + b  # a dummy prefix
        alone = align_rows(student, {"t": teacher}, [messages[index]])
        assert alone.dropped == [batch.dropped[index]]
        for name, (values, _) in alone.columns.items():
            np.testing.assert_array_equal(values, columns[name][index])
