"""Control tokens (`<|im_end|>`, the mask): a chat template writes them, and a content that spells one is text like any other.

Tokenizers cannot tell the two in a rendered text. So the template's own control tokens are written as stand-ins of as
many private characters, and a copy of the tokenizer reads these as the tokens, and everything else as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Reasoning and tool calls are written into contents; templates branch on these.
MARKUP = re.compile(r"(</?(?:think|tool_call|tool_response)>)")
_BRACKETED = re.compile(r"[<\[].+[>\]]", re.DOTALL)
_PRIVATE = 0xF0000


class ControlTokens:
    """A tokenizer's control tokens: special ones, and bracketed ones that its chat template names; never MARKUP."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        template = str(tokenizer.chat_template or "")
        named = {*tokenizer.all_special_ids}
        self._tokens = {
            index: token
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.content
            and not MARKUP.fullmatch(token.content)
            and (token.special or index in named or (_BRACKETED.fullmatch(token.content) and token.content in template))
        }
        self.ids = frozenset(self._tokens)
        self._stand_ins = {
            token.content: chr(_PRIVATE + number) * len(token.content)
            for number, token in enumerate(self._tokens.values())
        }
        self._tokens_of = {stand_in: content for content, stand_in in self._stand_ins.items()}
        self._spelled = _any_of(self._stand_ins)
        self._hidden = _any_of(self._tokens_of)

    def spelled_in(self, text: str) -> bool:
        """Whether the text holds the letters of a control token."""
        return bool(self._spelled.search(text))

    def hide(self, content: str) -> str:
        """The content with stand-ins, which a template copies as they are; `encode` takes them for text."""
        return self._spelled.sub(lambda match: self._stand_ins[match[0]], content)

    def show(self, text: str) -> str:
        """The text with the letters that stand-ins stand for."""
        return self._hidden.sub(lambda match: self._tokens_of[match[0]], text)

    def encode(self, text: str) -> list[int]:
        """Ids of a text rendered from hidden contents: control tokens are the template's alone."""
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """As `encode`, with the characters of every token."""
        if not self._hidden.search(text):
            plain = self._backend.encode(text, add_special_tokens=False)
            return plain.ids, plain.offsets
        pieces = re.split(f"({self._hidden.pattern})", text)
        pieces[::2] = map(self.hide, pieces[::2])  # the template's
        pieces[1::2] = map(self.show, pieces[1::2])  # the contents'
        encoding = self._literal.encode("".join(pieces), add_special_tokens=False)
        return [self._originals.get(index, index) for index in encoding.ids], encoding.offsets

    @cached_property
    def _literal(self) -> Tokenizer:
        """Reads control tokens as text, and stand-ins as control tokens."""
        copy = Tokenizer.from_str(self._backend.to_str())
        copy.add_special_tokens([_like(token, token.content, special=True) for token in self._tokens.values()])
        copy.add_tokens(
            [_like(token, self._stand_ins[token.content], special=False) for token in self._tokens.values()]
        )
        copy.encode_special_tokens = True
        return copy

    @cached_property
    def _originals(self) -> dict[int, int]:
        ids = ((self._literal.token_to_id(self._stand_ins[token.content]), n) for n, token in self._tokens.items())
        return {stand_in: original for stand_in, original in ids if stand_in is not None}


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Finds the longest of the words at the first place where one stands."""
    return re.compile(_tree([*words]) or "(?!)")


def _tree(words: Sequence[str]) -> str:
    """The words as one expression, their common beginnings written once: at most places one look is enough."""
    tails: dict[str, list[str]] = {}
    for word in words:
        if word:
            tails.setdefault(word[0], []).append(word[1:])
    branches = "|".join(re.escape(head) + _tree(rest) for head, rest in tails.items())
    if not branches:
        return ""
    return f"(?:{branches})" + ("?" if "" in words else "")


def _like(token: AddedToken, content: str, *, special: bool) -> AddedToken:
    return AddedToken(
        content,
        single_word=token.single_word,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        normalized=token.normalized,
        special=special,
    )
