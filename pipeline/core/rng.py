"""Randomness keyed by what it is for: the same on every machine, world size and resumed run."""

from __future__ import annotations

import hashlib

import torch


def generator_for(*key: int | float | str) -> torch.Generator:
    """A CPU generator for this key alone, the same on every machine."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
