"""FlexAttention for packed rows (recipe: `attention: flex`): tiles of the mask that hide everything are skipped.

The rows lie behind one another as one row of L tokens, a multiple of the tile. So lengths alone vary, and a model is compiled
once for training and once for inference. Compiled on a GPU; elsewhere it is the plain computation, for comparisons.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from pipeline.data.packing import Packed
from pipeline.method.attention_mask import may_attend

NAME = "mask_in_blocks"
TILE = 128


def use_flex(model: PreTrainedModel) -> None:
    """From here on the model reads packed rows with FlexAttention; dense masks still work. One with a window keeps its own."""
    if hasattr(model, "packed_inputs"):
        return
    model.set_attn_implementation(NAME)
    model.packed_inputs = flex_inputs  # type: ignore[assignment]  # no submodule: what `hidden_states` asks for


def flex_inputs(packed: Packed) -> dict[str, Any]:
    """The model's arguments for packed rows [R, C]: one row of R * C tokens and padding up to whole tiles, two at least
    (a single one would be compiled for anew)."""
    tokens = packed.ids.numel()
    padded = TILE * max(2, -(-tokens // TILE))

    def flat(x: Tensor, padding: int) -> Tensor:
        return F.pad(x.flatten(), (0, padded - tokens), value=padding)

    # Every run of a document's tokens is one of its own: rising along the row, and padding apart from other padding.
    document = flat(packed.document, -2)
    run = (document.diff(prepend=document[:1]) != 0).cumsum(0)
    mask = block_mask(run, flat(packed.block, 0), flat(packed.noisy, True))
    return {
        "input_ids": flat(packed.ids, 0)[None],
        "position_ids": flat(packed.positions, 0)[None],
        "attention_mask": mask,
    }


def block_mask(document: Tensor, block: Tensor, noisy: Tensor) -> BlockMask:
    """`may_attend` for FlexAttention: [L] each, L whole tiles, documents rising -> [1, 1, L, L]."""

    def visible(_row: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return may_attend(document[q], block[q], noisy[q], document[k], block[k], noisy[k])

    some, every = visible_tiles(document, block, noisy)
    return BlockMask.from_kv_blocks(
        *_ordered(some & ~every), *_ordered(every), BLOCK_SIZE=TILE, mask_mod=visible, seq_lengths=(len(document),) * 2
    )


def visible_tiles(document: Tensor, block: Tensor, noisy: Tensor) -> tuple[Tensor, Tensor]:
    """Tiles in which some, and in which every, query sees its key: bool [L / TILE, L / TILE] each, row = query.

    From the range of documents and blocks in each tile, never from pairs of tokens: where a tile holds several documents
    the first may name one too many, and the second one too few, which costs a look at the tile's mask.
    """
    lowest, highest = -1, torch.iinfo(block.dtype).max

    def ranges(x: Tensor, of: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Lowest and highest of each tile, as columns (queries) and as rows (keys); an empty range where there is none."""
        low = x.where(of, highest).view(-1, TILE).amin(1)
        high = x.where(of, lowest).view(-1, TILE).amax(1)
        return (low[:, None], high[:, None]), (low, high)

    (q_first, q_last), (k_first, k_last) = ranges(document, torch.ones_like(noisy))
    (q_noisy, q_noisy_end), (k_noisy, k_noisy_end) = ranges(block, noisy)
    (q_clean, q_clean_end), (k_clean, k_clean_end) = ranges(block, ~noisy)

    some = (q_first <= k_last) & (k_first <= q_last)
    some &= ((q_noisy <= k_noisy_end) & (k_noisy <= q_noisy_end)) | (k_clean < q_noisy_end) | (k_clean <= q_clean_end)
    one_block = (q_clean_end == lowest) & (q_noisy == k_noisy_end) & (k_noisy == q_noisy_end)
    every = (q_first == k_last) & (k_first == q_last)  # both tiles hold one and the same document
    every &= (k_clean_end < q_noisy) & (k_clean_end <= q_clean) & ((k_noisy_end == lowest) | one_block)
    return some, every


def _ordered(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """How many tiles each row of them has, and which come first: int32 [1, 1, T], [1, 1, T, T]."""
    order = tiles.int().argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1, dtype=torch.int32)[None, None], order.int()[None, None]


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: BlockMask | Tensor,
    scaling: float | None = None,
    **_options: object,
) -> tuple[Tensor, None]:
    """transformers' attention: [B, heads, L, D] (fewer heads in key and value) -> [B, L, heads, D], no weights."""
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, is_causal=False)
    run = _compiled() if query.is_cuda else cast(Callable[..., Any], flex_attention)
    attended = run(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True)
    return attended.transpose(1, 2).contiguous(), None


@cache
def _compiled() -> Callable[..., Any]:
    # fullgraph: at the limit of recompilations dynamo would go on uncompiled, in silence; so it is an error
    return torch.compile(flex_attention, dynamic=True, fullgraph=True)


AttentionInterface.register(NAME, attend)
