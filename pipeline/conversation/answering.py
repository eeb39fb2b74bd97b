"""A model that answers chats, and tells after every forward what it has decided."""

from __future__ import annotations

import time
from codecs import getincrementaldecoder
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.core.errors import BadInput
from pipeline.decoding.canvas import Canvas, GenerateConfig
from pipeline.decoding.rules import BLOCK_DIFFUSION, Rules
from pipeline.decoding.sampler import decode
from pipeline.evaluation.checkpoint_under_test import CheckpointUnderTest

Chat = Sequence[dict[str, str]]
"""Messages of {"role", "content"}."""


@dataclass(frozen=True)
class Forward:
    """What one forward has decided."""

    number: int
    """Counted from 1."""
    opened: int
    """Positions of the response up to the end of the block in work."""
    decided: list[tuple[int, bytes]]
    """(position in the response, what its token spells)"""


@dataclass(frozen=True)
class ChatAnswer:
    """An answer and what it took."""

    text: str
    pieces: list[str]
    """Each token as text; a character of several tokens stands at the last of them."""
    filled: list[int]
    """The forward that decided each token, counted from 1."""
    forwards: int
    seconds: float

    @property
    def cost(self) -> str:
        """For people. End tokens do not count."""
        tokens = len(self.pieces)
        per_token = f" ({self.forwards / tokens:.2f} per token)" if tokens else ""
        return f"{tokens} tokens, {self.forwards} forwards{per_token}, {tokens / self.seconds:.0f} tokens/s"


@dataclass(frozen=True)
class Answerer:
    """A model with decoding settings."""

    checkpoint: CheckpointUnderTest
    config: GenerateConfig
    rules: Rules = BLOCK_DIFFUSION
    chat: bool = True
    """False: no template; messages are the parts of one text, which the model goes on with."""

    def answer(self, chat: Chat, watch: Callable[[Forward], None] | None = None) -> ChatAnswer:
        """The answer to a chat's last message.

        Raises BadInput for a chat that the template refuses, or that is longer than the model reads.
        """
        prompt, spelled = self.encode(chat), self.checkpoint.spelled

        def seen(canvas: Canvas) -> None:
            response = canvas.response[0]
            filled, ids, blocks = canvas.filled[0, response], canvas.ids[0, response], canvas.blocks[0, response]
            now = (filled == canvas.forwards[0]).nonzero()[:, 0]
            decided = [(i, spelled[token]) for i, token in zip(now.tolist(), ids[now].tolist(), strict=True)]
            opened = int((blocks <= blocks[now].max()).sum())
            if watch:
                watch(Forward(int(canvas.forwards[0]), opened, decided))

        started = time.perf_counter()
        (response,) = decode(
            self.checkpoint.model, [prompt], self.config, watch=seen if watch else None, rules=self.rules
        )
        seconds = time.perf_counter() - started
        body = response.tokens[:-1] if response.tokens[-1] in self.checkpoint.special.ends else response.tokens
        text = str(self.checkpoint.tokenizer.decode(body, skip_special_tokens=True))
        return ChatAnswer(text, pieces(spelled, body), response.filled[: len(body)], response.forwards, seconds)

    def render(self, chat: Chat) -> str:
        """The chat as the tokenizer's template writes it, with stand-ins for control tokens that a message spells."""
        if self.chat:
            return self.checkpoint.render_chat(chat)
        return self.checkpoint.control_tokens.hide("".join(message["content"] for message in chat))

    def encode(self, chat: Chat) -> list[int]:
        """Ids of the rendered chat; control tokens that a message spells stay text."""
        longest = self.checkpoint.config.max_position_embeddings
        text = self.render(chat)
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadInput("the chat is not UTF-8") from None
        prompt = self.checkpoint.encode(text)
        if len(prompt) + self.config.max_new_tokens > longest:
            raise BadInput(
                f"the chat has {len(prompt)} tokens, with --max-new-tokens {self.config.max_new_tokens} more than the"
                f" {longest} that the model reads: start a new one, or lower it"
            )
        return prompt


def pieces(spelled: Sequence[bytes], tokens: Sequence[int]) -> list[str]:
    """Each token's text; where a character has several tokens, it is the last one's."""
    decoder = getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(spelled[token], final=i == len(tokens)) for i, token in enumerate(tokens, start=1)]
