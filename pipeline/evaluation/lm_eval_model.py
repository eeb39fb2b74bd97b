"""Block-diffusion models in lm-evaluation-harness, as the model `block_diffusion`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from typing import Any, Self, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.utils import simple_parse_args_string
from rich.progress import track

from pipeline.core.errors import BadInput
from pipeline.decoding.canvas import GenerateConfig
from pipeline.decoding.likelihood import Continuation, log_likelihoods
from pipeline.decoding.sampler import decode
from pipeline.evaluation.answer_cache import AnswerCache, request_key
from pipeline.evaluation.answers import Answer, GeneratedAnswer, LikelihoodAnswer
from pipeline.evaluation.checkpoint_under_test import CheckpointUnderTest
from pipeline.evaluation.presets import named_block_size, preset

AnswerT = TypeVar("AnswerT", GeneratedAnswer, LikelihoodAnswer)


class Unanswered(Exception):
    """This shard is done, and other shards are not: `missing` requests have no answer yet."""

    def __init__(self, missing: int) -> None:
        super().__init__(f"{missing} answers are missing")
        self.missing = missing


@register_model("block_diffusion")
class BlockDiffusionLM(LM):
    """A checkpoint with decoding settings. Of a task's generation settings only the stop strings are read.

    `generate_until` decodes block by block, `loglikelihood` estimates the block-diffusion bound (see likelihood.py). An
    answer depends on its request and the settings, never on its batch, its shard or what was answered before. Every
    answer goes through the cache; `answers` holds those of the requests, by (document, request of the document).

    Contents are text, never control tokens: these are the chat template's alone. With `chat=False` there is no template,
    and prompts have none.
    """

    def __init__(
        self,
        checkpoint: CheckpointUnderTest,
        config: GenerateConfig,
        *,
        batch_size: int = 16,
        likelihood_samples: int = 32,
        cache: AnswerCache | None = None,
        chat: bool = True,
    ) -> None:
        super().__init__()
        self.checkpoint, self.config, self.batch_size, self.chat = checkpoint, config, batch_size, chat
        self.likelihood_samples, self.cache = likelihood_samples, cache or AnswerCache()
        self.answers: dict[tuple[int, int], list[Answer]] = {}

    @classmethod
    def create_from_arg_obj(cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None) -> Self:
        """What `lm_eval --model block_diffusion` calls; --model_args: pretrained (folder or hub name), preset (default
        paper), dtype, likelihood_samples, and any field of GenerateConfig."""
        given = arg_dict | {k: v for k, v in (additional_config or {}).items() if k == "batch_size" and v is not None}
        checkpoint = CheckpointUnderTest.of(given.pop("pretrained"), given.pop("dtype", "auto"))
        options: dict[str, Any] = {k: int(given.pop(k)) for k in ("batch_size", "likelihood_samples") if k in given}
        name = given.pop("preset", "paper")
        size, blocks = checkpoint.blocks(given.get("block_size") or named_block_size(name))
        config = preset(name, size, blocks=blocks)
        return cls(checkpoint, replace(config, **given), **options)

    @classmethod
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> Self:
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        self._check_lengths([len(self.encode(r.args[0])) + self.config.max_new_tokens for r in requests])
        return [a.response for a in self._answer(GeneratedAnswer, requests, self._generate, asdict(self.config))]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        self._check_lengths([sum(map(len, self.encode_pair(*r.args))) for r in requests])
        answers = self._answer(LikelihoodAnswer, requests, self._likelihoods, self._estimator())
        return [(answer.log_likelihood, answer.greedy) for answer in answers]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        answers = self._answer(LikelihoodAnswer, requests, self._rolling, self._estimator())
        return [answer.log_likelihood for answer in answers]

    def _check_lengths(self, lengths: list[int]) -> None:
        """Raises BadInput where prompts and answers are longer than what the model reads."""
        positions = self.checkpoint.config.max_position_embeddings
        if beyond := sum(length > positions for length in lengths):
            raise BadInput(
                f"{beyond} of {len(lengths)} prompts with their answers are beyond the {positions} positions of "
                f"{self.checkpoint.path}, the longest {max(lengths)} tokens: lower --evaluation.fewshot, or take a preset "
                "with fewer new tokens"
            )

    def answers_of(self, kind: type[AnswerT]) -> dict[tuple[int, int], list[AnswerT]]:
        """Those of one kind."""
        return {key: [a for a in answers if isinstance(a, kind)] for key, answers in self.answers.items()}

    def _estimator(self) -> dict[str, Any]:
        """What an estimate depends on beside its request and the model."""
        names = ("block_size", "blocks", "seed")
        return {name: getattr(self.config, name) for name in names} | {"samples": self.likelihood_samples}

    def _answer(
        self,
        kind: type[AnswerT],
        requests: list[Instance],
        compute: Callable[[list[Instance], int], Iterator[AnswerT]],
        settings: dict[str, Any],
    ) -> list[AnswerT]:
        """The answers to all requests, in order; those that are missing are computed, batches of like length.

        Raises Unanswered when some belong to another shard and are not there.
        """
        model = [self.checkpoint.checksum, str(self.checkpoint.dtype)]
        seen: Counter[tuple[int, int]] = Counter()
        keys, repeats = [], []
        for request in requests:
            repeats.append(seen[request.doc_id, request.idx] if self.config.temperature > 0 else 0)
            seen[request.doc_id, request.idx] += 1
            keys.append(request_key(request.request_type, request.args, repeats[-1], settings, model))
        shard = self.cache.shard
        mine = {key: i for i, key in enumerate(keys) if i % shard.of == shard.index and key not in self.cache}
        # the longest first: too little memory shows at once
        order = sorted(mine.values(), key=lambda i: (repeats[i], -sum(map(len, texts(requests[i])))))
        groups = [list(group) for _, group in groupby(order, key=repeats.__getitem__)]
        size, device = self.batch_size, self.checkpoint.hardware()["device"]
        batches = [group[i : i + size] for group in groups for i in range(0, len(group), size)]
        for batch in track(batches, description="answering", disable=not batches):
            for i, answer in zip(batch, compute([requests[i] for i in batch], repeats[batch[0]]), strict=True):
                self.cache.add(keys[i], asdict(replace(answer, device=device)))
        if shard.of > 1:
            self.cache.refresh()
        if missing := sum(key not in self.cache for key in keys):
            raise Unanswered(missing)
        answers = [kind(**self.cache[key]) for key in keys]
        for request, answer in zip(requests, answers, strict=True):
            self.answers.setdefault((request.doc_id, request.idx), []).append(answer)
        return answers

    def _generate(self, requests: list[Instance], repeat: int) -> Iterator[GeneratedAnswer]:
        for request, answer in zip(requests, self.respond([r.args[0] for r in requests], repeat), strict=True):
            response = until(answer.response, request.args[1].get("until") or [])
            yield replace(answer, response=response, ended=answer.ended or response != answer.response)

    def respond(self, prompts: list[str], repeat: int = 0) -> list[GeneratedAnswer]:
        """Decodes one batch; a repetition draws other tokens."""
        special, spelled = self.checkpoint.special, self.checkpoint.spelled
        config = replace(self.config, seed=self.config.seed + repeat)
        started = time.perf_counter()
        responses = decode(self.checkpoint.model, [self.encode(prompt) for prompt in prompts], config)
        seconds = time.perf_counter() - started
        answers = []
        for response in responses:
            ended = response.tokens[-1] in special.ends
            body = response.tokens[:-1] if ended else response.tokens
            answers.append(
                GeneratedAnswer(
                    response=str(self.checkpoint.tokenizer.decode(body, skip_special_tokens=True)),
                    pieces=[spelled[token].decode("utf-8", "backslashreplace") for token in body],
                    filled=response.filled[: len(body)],
                    tokens=len(body),
                    forwards=response.forwards,
                    ended=ended,
                    masks=body.count(special.mask),
                    seconds=seconds / len(prompts),
                    latency=seconds,
                )
            )
        return answers

    def _likelihoods(self, requests: list[Instance], _repeat: int) -> Iterator[LikelihoodAnswer]:
        continuations = [self._continuation(*self.encode_pair(*request.args)) for request in requests]
        yield from self._estimates(continuations)

    def _rolling(self, requests: list[Instance], _repeat: int) -> Iterator[LikelihoodAnswer]:
        """Windows as long as the model reads; each after the first scores its second half, given the first half."""
        for request in requests:
            tokens = self.encode(self.checkpoint.control_tokens.hide(request.args[0]))
            windows = rolling_windows(tokens, self.checkpoint.config.max_position_embeddings)
            parts = list(self._estimates([self._continuation(*window) for window in windows]))
            totals = {name: sum(getattr(p, name) for p in parts) for name in ("log_likelihood", "variance", "seconds")}
            yield LikelihoodAnswer(greedy=False, **totals)

    def _continuation(self, context: Sequence[int], tokens: Sequence[int]) -> Continuation:
        c = self.config
        return Continuation.of(
            context, tokens, size=c.block_size, blocks=c.blocks, samples=self.likelihood_samples, seed=c.seed
        )

    def _estimates(self, continuations: list[Continuation]) -> Iterator[LikelihoodAnswer]:
        started = time.perf_counter()
        estimates = log_likelihoods(self.checkpoint.model, continuations, self.batch_size)
        seconds = (time.perf_counter() - started) / max(1, len(continuations))
        for e in estimates:
            yield LikelihoodAnswer(e.value, e.variance, e.greedy, seconds)

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt. Raises BadInput for those that the model has no embedding of."""
        return self.checkpoint.encode(text if self.chat else self.checkpoint.control_tokens.hide(text))

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both as one text, split where they stop being the context's own; at least one is the continuation's."""
        hidden = self.checkpoint.control_tokens.hide(continuation)
        alone, whole = self.encode(context), self.encode(context + hidden)
        differ = [i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b]
        length = min([*differ[:1], len(alone), len(whole) - 1])
        return whole[:length], whole[length:]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """See `CheckpointUnderTest.render_chat`."""
        return self.checkpoint.render_chat(chat_history, complete=not add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        return self.checkpoint.tokenizer.name_or_path

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.checkpoint.tokenizer.chat_template if chat_template else None


def texts(request: Instance) -> list[str]:
    """What a request gives the model to read."""
    return [x for x in request.args if isinstance(x, str)]


def rolling_windows(tokens: list[int], longest: int) -> list[tuple[list[int], list[int]]]:
    """(context, tokens to score) that a model of `longest` positions can read; every token is scored once.

    After the first window, each scores half a window more, given the half before.
    """
    half = longest // 2
    windows: list[tuple[list[int], list[int]]] = [([], tokens[:longest])] if tokens else []
    windows += [(tokens[s - half : s], tokens[s : s + half]) for s in range(longest, len(tokens), half)]
    return windows


def until(text: str, stops: Sequence[str] | str) -> str:
    """The text before the first stop string in it."""
    stops = [stops] if isinstance(stops, str) else stops
    return text[: min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=len(text))]
