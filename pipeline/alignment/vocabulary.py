"""What every token id spells, in bytes.

Two families of vocabulary are known: byte-level BPE (GPT-2's printable alphabet for bytes: Qwen3, Llama 3, LLaDA2) and
SentencePiece (spaces written as U+2581, bytes without a piece as `<0xNN>`: Llama 2, Gemma).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's map of printable characters to bytes: bytes that are printable in Latin-1 stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in printable)
    return alphabet | {chr(256 + n): byte for n, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _spell_byte_level(token: str) -> bytes:
    try:
        return bytes(_ALPHABET[character] for character in token)
    except KeyError:  # some vocabularies list special tokens as ordinary ones
        return token.encode()


def _spell_sentencepiece(token: str) -> bytes:
    byte = _BYTE.match(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(_SPACE, " ").encode()


def _steps(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Types of the steps that cut text and that put it together again."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer that runs SentencePiece itself
        return {"ByteFallback"} if hasattr(tokenizer, "sp_model") else set()
    parts = [json.loads(part.__getstate__()) for part in (backend.decoder, backend.pre_tokenizer) if part]
    return {step["type"] for part in parts for step in part.get("decoders", part.get("pretokenizers", [part]))}


def _speller(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], bytes]:
    """What spells an ordinary token; raises ValueError for a vocabulary of neither family."""
    steps = _steps(tokenizer)
    if "ByteLevel" in steps:
        return _spell_byte_level
    if steps & {"ByteFallback", "Metaspace"}:
        return _spell_sentencepiece
    raise ValueError(f"{tokenizer.name_or_path}: neither a byte-level nor a SentencePiece vocabulary")


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """The bytes of every id, up to the largest: b"" without a token, the literal text of added and special tokens.

    Raises ValueError for a vocabulary that is neither byte-level nor SentencePiece.
    """
    spell = _speller(tokenizer)
    spelled = {index: spell(token) for token, index in tokenizer.get_vocab().items()}
    spelled |= {index: token.content.encode() for index, token in tokenizer.added_tokens_decoder.items()}
    return [spelled.get(index, b"") for index in range(max(spelled) + 1)]


def shared_vocab(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> int:
    """Ids below this number spell the same bytes on both sides; 0 unless that covers both ordinary vocabularies.

    With a shared vocabulary (WeDLM and Qwen3) logits can be compared id by id; added tokens behind it may differ.
    """
    try:
        if _ordinary_tokens_differ(student, teacher):
            return 0
        pairs = zip_longest(token_bytes(student), token_bytes(teacher))
    except ValueError:
        return 0
    same = next((index for index, (a, b) in enumerate(pairs) if a != b), None)
    if same is None:
        return max(student.get_vocab().values()) + 1
    return same if same >= max(_ordinary(student), _ordinary(teacher)) else 0


def _ordinary_tokens_differ(*sides: PreTrainedTokenizerBase) -> bool:
    """Whether an id is an ordinary token on both sides and spells different bytes: most pairs show it soon."""
    added = set().union(*(tokenizer.added_tokens_decoder for tokenizer in sides))
    common = range(min(tokenizer.vocab_size for tokenizer in sides))
    first, second = map(_speller, sides)
    for start in common[::1000]:  # to look up all of two large vocabularies takes a fifth of a second
        some = [*common[start : start + 1000]]
        for index, a, b in zip(some, *(tokenizer.convert_ids_to_tokens(some) for tokenizer in sides), strict=True):
            if (a != b or first is not second) and first(a or "") != second(b or "") and index not in added:
                return True
    return False


def _ordinary(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id that is no added token."""
    added = tokenizer.added_tokens_decoder
    return max(index for index in tokenizer.get_vocab().values() if index not in added) + 1
