"""Chunks and byte tables: against a brute-force oracle, published vectors, and tiny real tokenizers."""

from __future__ import annotations

import json
import unicodedata
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from pipeline.alignment.chunks import align_chunks
from pipeline.alignment.vocabulary import shared_vocab, token_bytes
from tests.alignment_tokenizers import DATA, byte_level, llama_bpe, metaspace, sentencepiece_model, words

TEXTS = [
    "plain text, and more",
    "日本語 and 한국어 and नमस्ते",
    "🙂👩‍🚀🤖 flags 🇯🇵",
    unicodedata.normalize("NFC", "café résumé 한글"),
    unicodedata.normalize("NFD", "café résumé 한글"),
    "line\r\nline\r\n\r\n\ttab",
    "  spaces   in    runs     ",
    "\n\n\n",
    "▁ literal ▁▁",
    "a\u3000b\u00a0c\u200bd",
    "",
]
mixed = st.text(st.sampled_from("ab dog.\n\r\t12ée\u0301日本🙂▁\u200d한"), max_size=40)


@st.composite
def segmentations(draw) -> tuple[list[bytes], list[bytes]]:
    """Two ways to cut the same bytes, empty tokens among them."""
    text = draw(st.binary(max_size=24))

    def cut() -> list[bytes]:
        places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=16)))
        return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]

    return cut(), cut()


def ends(tokens: list[bytes]) -> list[int]:
    return np.cumsum([len(token) for token in tokens]).tolist()


def oracle(tokens: list[bytes], other: list[bytes]) -> list[int]:
    """By definition: a chunk ends where both sides have a boundary; an empty token belongs to what ends before it."""
    common = sorted(set(ends(tokens)) & set(ends(other)) - {0})
    if not common:
        return [-1] * len(tokens)
    return [next(n for n, stop in enumerate(common) if end <= stop) for end in ends(tokens)]


@given(segmentations())
def test_chunks_are_the_finest_common_segmentation(pair):
    student, teacher = pair
    student_ids, teacher_ids = align_chunks(student, teacher)
    assert student_ids.tolist() == oracle(student, teacher)
    assert teacher_ids.tolist() == oracle(teacher, student)
    assert student_ids.dtype == teacher_ids.dtype == np.int32


@given(segmentations())
def test_both_sides_of_a_chunk_spell_the_same_bytes(pair):
    ids = align_chunks(*pair)
    spelled = []
    for tokens, chunks in zip(pair, ids, strict=True):
        assert (np.diff(chunks) >= 0).all()
        spelled.append(
            [b"".join(t for t, c in zip(tokens, chunks, strict=True) if c == n) for n in range(max(chunks) + 1)]
        )
    assert spelled[0] == spelled[1]
    assert b"".join(spelled[0]) == b"".join(pair[0])
    assert all(spelled[0])


def test_unequal_byte_totals_are_refused():
    with pytest.raises(ValueError, match="3 bytes, the teacher 2"):
        align_chunks([b"ab", b"c"], [b"ab"])


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ([], [], ([], [])),
        ([b""], [], ([-1], [])),
        ([b"ab", b"c"], [b"a", b"bc"], ([0, 0], [0, 0])),
        ([b"ab", b"c"], [b"a", b"b", b"c"], ([0, 1], [0, 0, 1])),
        ([b"", b"a", b"", b"b"], [b"a", b"b", b""], ([0, 0, 0, 1], [0, 1, 1])),
    ],
)
def test_cases_worked_by_hand(student, teacher, expected):
    assert tuple(ids.tolist() for ids in align_chunks(student, teacher)) == expected


def test_a_million_tokens():
    student_ids, teacher_ids = align_chunks([b"a"] * 1_000_000, [b"aaaa"] * 250_000)
    np.testing.assert_array_equal(student_ids, np.arange(1_000_000) // 4)
    np.testing.assert_array_equal(teacher_ids, np.arange(250_000))


PUBLISHED = json.loads((DATA / "finest_qwen3_llama3.json").read_text())


@pytest.mark.parametrize("row", PUBLISHED["rows"], ids=lambda row: row["name"])
def test_published_chunks_of_qwen3_and_llama3(row):
    student, teacher = (
        [bytes.fromhex(PUBLISHED[f"{side}_bytes"][str(index)]) for index in row[side]]
        for side in ("student", "teacher")
    )
    assert spans(*align_chunks(student, teacher)) == row["finest"]


def spans(student_ids: np.ndarray, teacher_ids: np.ndarray) -> list[list[int]]:
    """[teacher start, teacher end, student start, student end] of every chunk."""
    chunks = range(max(student_ids, default=-1) + 1)
    sides = ([np.flatnonzero(ids == n) for n in chunks] for ids in (teacher_ids, student_ids))
    return [[int(t[0]), int(t[-1]) + 1, int(s[0]), int(s[-1]) + 1] for t, s in zip(*sides, strict=True)]


KEEPING = {"byte-level": byte_level, "metaspace": metaspace}


@pytest.mark.parametrize("make", KEEPING.values(), ids=KEEPING)
@pytest.mark.parametrize("text", [t for t in TEXTS if "▁" not in t])
def test_token_bytes_respell_the_text(make, text):
    tokenizer = make()
    table = token_bytes(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(table[index] for index in ids) == text.encode()


@settings(max_examples=60)
@given(mixed)
def test_real_tokenizers_align(text):
    text = text.replace("▁", "")
    student, teacher = ([table[i] for i in t.encode(text, add_special_tokens=False)] for t, table in pair())
    student_ids, teacher_ids = align_chunks(student, teacher)
    assert student_ids.tolist() == oracle(student, teacher)
    assert teacher_ids.tolist() == oracle(teacher, student)


@cache
def pair():
    return [(tokenizer, token_bytes(tokenizer)) for tokenizer in (byte_level(), metaspace())]


def test_token_bytes_of_special_ids_and_holes():
    tokenizer = byte_level()
    tokenizer.add_tokens(["<role>", "Ġ"])
    table = token_bytes(tokenizer)
    assert len(table) == max(tokenizer.get_vocab().values()) + 1
    assert table[tokenizer.convert_tokens_to_ids("<|im_end|>")] == b"<|im_end|>"
    assert table[tokenizer.convert_tokens_to_ids("<role>")] == b"<role>"
    published = byte_level()
    published.backend_tokenizer.model = type(published.backend_tokenizer.model)({"a": 0, "Ġb": 5, "<｜x｜>": 7}, [])
    assert token_bytes(published)[:8] == [b"a", b"", b"", b"", b"", b" b", b"", "<｜x｜>".encode()]


def test_token_bytes_of_sentencepiece_pieces(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model("bpe"))
    slow = SentencePieceBackend(vocab_file=str(tmp_path / "tokenizer.model"), unk_token="<unk>")
    for tokenizer in (metaspace(), llama_bpe(), slow):
        table, ids = token_bytes(tokenizer), tokenizer.get_vocab()
        assert table[ids["<0x0A>"]] == b"\n" and table[ids["<0xE6>"]] == b"\xe6"
        assert table[ids["▁"]] == b" "
        assert table[ids["<unk>"]] == b"<unk>"


def test_token_bytes_without_a_decoder():
    for tokenizer in (byte_level(), metaspace()):
        expected = token_bytes(tokenizer)
        tokenizer.backend_tokenizer.decoder = None
        assert token_bytes(tokenizer) == expected


def test_unknown_vocabularies_are_refused():
    with pytest.raises(ValueError, match="neither a byte-level nor a SentencePiece"):
        token_bytes(words())


def test_shared_vocab():
    one, other = byte_level(), byte_level()
    assert shared_vocab(one, other) == len(one)
    one.add_special_tokens({"additional_special_tokens": ["<a>", "<same>"]})
    other.add_special_tokens({"additional_special_tokens": ["<b>", "<same>"]})
    assert shared_vocab(one, other) == len(one) - 2  # up to the first added token that differs
    assert shared_vocab(one, metaspace()) == 0
    assert shared_vocab(one, words()) == 0
