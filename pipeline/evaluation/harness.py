"""Block-diffusion models in lm-evaluation-harness, as the model `block_diffusion`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from rich.progress import track
from torch import nn
from transformers import PreTrainedTokenizerBase

from pipeline.diffusion.sampler import GenerateConfig, SpecialTokens, decode

NO_LIKELIHOOD = "block_diffusion has no log-likelihoods yet: choose a task with output_type generate_until"


@dataclass(frozen=True)
class Generation:
    """One response, before the task looks at it."""

    doc_id: int
    prompt: str
    response: str
    """Cut at the task's first stop string."""
    tokens: int
    """Generated before the end token."""
    forwards: int
    ended: bool
    """By an end token or a stop string, not by the length limit."""
    masks: int
    """Mask tokens left in the response: the sampler promises none."""


@register_model("block_diffusion")
class BlockDiffusionLM(LM):
    """A model, its tokenizer and decoding settings. Of a task's generation settings only the stop strings are read.

    Every response is kept in `generations`; `seconds` is the time they took.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, config: GenerateConfig, batch_size: int = 16
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.config, self.batch_size = model, tokenizer, config, batch_size
        self.special = SpecialTokens.of(model)
        self.generations: list[Generation] = []
        self.seconds = 0.0

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Responses in the order of the requests, decoded in batches of similar length."""
        prompts = [self.tokenizer.encode(request.args[0], add_special_tokens=False) for request in requests]
        order = sorted(range(len(requests)), key=lambda i: -len(prompts[i]))  # too little memory shows at once
        batches = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        responses = [""] * len(requests)
        for batch in track(batches, description="generating"):
            started = time.perf_counter()
            decoded = decode(self.model, [prompts[i] for i in batch], self.config)
            self.seconds += time.perf_counter() - started
            for i, tokens, forwards in zip(batch, *decoded, strict=True):
                self.generations.append(self._generation(requests[i], tokens, forwards))
                responses[i] = self.generations[-1].response
        return responses

    def _generation(self, request: Instance, tokens: list[int], forwards: int) -> Generation:
        ended = tokens[-1] in self.special.ends
        body = tokens[:-1] if ended else tokens
        text = self.tokenizer.decode(body, skip_special_tokens=True)
        response = _until(text, request.args[1].get("until") or [])
        return Generation(
            doc_id=request.doc_id,
            prompt=request.args[0],
            response=response,
            tokens=len(body),
            forwards=forwards,
            ended=ended or response != text,
            masks=body.count(self.special.mask),
        )

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The prompt as the tokenizer's chat template writes it, thinking off (as in training)."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
            enable_thinking=False,
        )

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.tokenizer.chat_template if chat_template else None

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError(NO_LIKELIHOOD)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError(NO_LIKELIHOOD)


def _until(text: str, stops: Sequence[str] | str) -> str:
    """The text before the first stop string in it."""
    stops = [stops] if isinstance(stops, str) else stops
    return text[: min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=len(text))]
