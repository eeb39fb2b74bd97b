"""Who may attend to whom, for the student and for every teacher: one predicate over (document, block, is_noisy)."""

from __future__ import annotations

import torch
from torch import Tensor


def may_attend(
    q_document: Tensor, q_block: Tensor, q_noisy: Tensor, k_document: Tensor, k_block: Tensor, k_noisy: Tensor
) -> Tensor:
    """The block-diffusion predicate, elementwise on broadcastable tensors (or FlexAttention's scalars).

    A noisy query sees its own noisy block and all earlier clean blocks; a clean query sees its own and earlier clean
    blocks; nobody sees another document. Noisy tokens of a single block are plain bidirectional attention.
    """
    noisy_to_noisy = q_noisy & k_noisy & (q_block == k_block)
    to_clean = ~k_noisy & (k_block < q_block + ~q_noisy)
    return (q_document == k_document) & (noisy_to_noisy | to_clean)


def attention_mask(document: Tensor, block: Tensor, noisy: Tensor) -> Tensor:
    """[R, C] each -> bool [R, 1, C, C], True = may attend; the form that SDPA and our models take.

    Padding must be a document of its own, so that no query is left without a key (softmax of nothing is NaN).
    """
    q = (x.unsqueeze(-1) for x in (document, block, noisy))
    k = (x.unsqueeze(-2) for x in (document, block, noisy))
    return may_attend(*q, *k).unsqueeze(1)


def block_diffusion_mask(length: int, block_size: int, *, clean_first: bool = False) -> Tensor:
    """The mask of one sequence's training input [xt, x0] (or [x0, xt]): bool [2L, 2L], row = query.

    Raises ValueError for a length or block size below 1.
    """
    if length < 1 or block_size < 1:
        raise ValueError(f"length {length} and block_size {block_size} must be at least 1")
    block = (torch.arange(length) // block_size).repeat(2)
    noisy = torch.arange(2 * length) < length
    if clean_first:
        noisy = ~noisy
    return attention_mask(torch.zeros_like(block)[None], block[None], noisy[None])[0, 0]
