"""Options of the two commands that talk, `chat` and `evaluate --prompt`. Nothing here brings torch."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from pipeline.core.errors import BadInput

if TYPE_CHECKING:
    from pipeline.decoding.canvas import GenerateConfig


@dataclass(frozen=True)
class Sampling:
    """Decoding settings of the command line, fields of GenerateConfig; None where it has none."""

    max_new_tokens: int | None = None
    threshold: float | None = None
    temperature: float | None = None
    seed: int | None = None
    block_size: int | None = None

    @classmethod
    def of(cls, options: Namespace) -> Self:
        """Those that `add_sampling` has added."""
        return cls(**{name: getattr(options, name) for name in cls.__dataclass_fields__})

    @property
    def given(self) -> dict[str, Any]:
        """Those that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def over(self, config: GenerateConfig) -> GenerateConfig:
        """The settings with these in place of its own; another length keeps the tokens per forward.

        Raises BadInput for settings that cannot decode.
        """
        length = self.max_new_tokens or config.max_new_tokens
        steps = max(1, config.steps * length // config.max_new_tokens)
        try:
            return replace(config, steps=steps, **self.given)
        except ValueError as error:
            raise BadInput(str(error)) from None


def add_sampling(p: ArgumentParser, *, length: str, threshold: str, block_size: str) -> None:
    """The options that `Sampling` reads.

    Args:
        length, threshold, block_size: what holds without the option, for --help.
    """
    p.add_argument("--max-new-tokens", type=int, help=f"longest answer (default: {length})")
    p.add_argument(
        "--threshold",
        type=float,
        help=f"decide every token that is this probable (default: {threshold}), and one per forward in any case; above 1: no"
        " other",
    )
    p.add_argument("--temperature", type=float, help="0 (default) takes the likeliest token")
    p.add_argument("--seed", type=int, help="of sampling (default: 0)")
    p.add_argument("--block-size", type=int, help=f"default: {block_size}")


def check_prompt(option: str, prompt: str) -> None:
    """Raises BadInput for what no tokenizer reads."""
    if not prompt.strip():
        raise BadInput(f"{option} is empty: give it a text to answer")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise BadInput(f"{option} is not UTF-8") from None
