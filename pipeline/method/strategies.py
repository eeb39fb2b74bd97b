"""The paper's names -> the objective, and whether CompDemo is on.

TIDE-Cross and TIDE-Shared take the objective that the tokenizers allow: KL with a shared one, CALM without.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Strategy:
    """One objective of a teacher's term."""

    family: Literal["native", "calm", "kl"]
    """`calm`: probabilities of chunks. `kl`: distributions over a shared vocabulary. `native`: what the tokenizers allow."""
    direction: Literal["forward", "reverse", "reverse_kl"] = "forward"
    tidal: bool = False
    compdemo: bool = False


STRATEGIES = {
    "tide_cross": Strategy("native", "reverse"),
    "tide_shared": Strategy("native", tidal=True, compdemo=True),
    "calm": Strategy("calm"),
    "reverse_calm": Strategy("calm", "reverse"),
    "reverse_kl_calm": Strategy("calm", "reverse_kl"),
    "calm_tidal": Strategy("calm", tidal=True),
    "reverse_calm_tidal": Strategy("calm", "reverse", tidal=True),
    "kl": Strategy("kl"),
    "reverse_kl": Strategy("kl", "reverse"),
    "tidal": Strategy("kl", tidal=True),
    "reverse_tidal": Strategy("kl", "reverse", tidal=True),
}


def resolve(name: str, *, shared_tokenizer: bool) -> Strategy:
    """The strategy of this name, its family `calm` or `kl`.

    Raises ValueError for distributions over a vocabulary that the tokenizers do not share.
    """
    strategy = STRATEGIES[name]
    if strategy.family == "native":
        return replace(strategy, family="kl" if shared_tokenizer else "calm")
    if strategy.family == "kl" and not shared_tokenizer:
        raise ValueError(f"{name} needs a shared tokenizer")
    return strategy
