"""Loading of students and teachers, from a folder or the hub; strict, and with every mask explicit."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from pipeline.config.recipe import Weights
from pipeline.core.errors import BadInput, one_line
from pipeline.data.blocks import lay_out_causal
from pipeline.data.packing import pack
from pipeline.models.config_file import require_student
from pipeline.models.configs import read_named_config
from pipeline.models.expert_parallel import expert_count, resolve_expert_parallel_size, split_experts, verify_experts
from pipeline.models.families.llada2_moe import check_mask
from pipeline.models.families.table import FAMILIES, family_of
from pipeline.models.forward import dense_inputs, head_weight, windowed_inputs
from pipeline.models.model_files import CONFIG_FILES, WEIGHT_FILES, fetch
from pipeline.models.weights import TiedHead, check_files, checkpoint_views, fill, init_weights, shapes


def load_student(
    path: str,
    *,
    dtype: torch.dtype,
    weights: Weights = "pretrained",
    config: PreTrainedConfig | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """A trainable model on the CPU: `model(input_ids, attention_mask=bool 4-D, position_ids=...)`.

    `weights="random"` reads config.json only and initialises from `seed`. `config`: its `read_named_config`, where that is read already.
    Raises BadInput naming every tensor that does not fit.
    """
    config = config or read_named_config(path)
    require_student(family_of(config), path)
    folder = _checked_weights(path, weights, config)
    model = build(config, dtype=dtype, device="cpu")
    _write_weights(model, folder, seed)
    return model.train()


def load_teacher(
    path: str,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    expert_parallel_size: int = 1,
    weights: Weights = "pretrained",
    config: PreTrainedConfig | None = None,
    seed: int = 0,
    causal: bool = False,
) -> PreTrainedModel:
    """As `load_student`, frozen, in eval mode and on `device`; experts are spread over ranks.

    With an expert-parallel size above 1, loading and every forward are collective: all ranks of a group call them the
    same number of times, whatever their tokens, and a rank reads only its experts from the files.

    causal: an autoregressive model (`input: causal`), which names no mask token.
    """
    config = config or read_named_config(path, causal=causal)
    folder = _checked_weights(path, weights, config)
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    size = resolve_expert_parallel_size(
        expert_parallel_size, experts=expert_count(config), world_size=ranks, local_world_size=ranks
    )
    model, first_expert = build(config, dtype=dtype, device="meta" if size > 1 else device), 0
    if size > 1:
        first_expert = split_experts(model, size=size, device=device)
    _write_weights(model, folder, seed, first_expert)
    if expert_count(config) > 1:
        verify_experts(model, folder, size=size)
    if causal:
        read_causally(model, path)
    return model.requires_grad_(False).eval()


def build(config: PreTrainedConfig, *, dtype: torch.dtype, device: torch.device | str) -> PreTrainedModel:
    """The model with memory for its weights but no values in it; its buffers have theirs."""
    # Nearly every packed micro-batch has a shape of its own, and cuDNN's attention would plan anew for each.
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        with torch.device(device), no_init_weights():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    except ValueError as error:
        raise BadInput(f"{config.model_type}: {str(error).splitlines()[0].split('. ')[0]}") from None
    if config.model_type in {family.library for family in FAMILIES}:
        fuse_norms(model)
    model.tie_weights()
    model.config.use_cache = False  # training would copy every key and value into a cache
    model.get_input_embeddings().padding_idx = None  # a padding id may be an end token, which must keep its gradient
    # Eager attention would add a boolean mask as +1, and no mask at all would mean a causal one.
    if not isinstance(inner := getattr(model, "model", None), PreTrainedModel):
        raise BadInput(
            f"{type(model).__name__} keeps its layers where nothing here looks for them: it cannot be a teacher"
        )
    inner.register_forward_pre_hook(_require_mask, with_kwargs=True)
    return model


def fuse_norms(model: nn.Module) -> None:
    """On a GPU, transformers' norms as one kernel instead of seven: a sixth of a training step, half of a decoding one."""
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.forward = MethodType(_rms_norm, module)


def _rms_norm(module: Any, hidden: Tensor) -> Tensor:
    if hidden.is_cuda:
        return F.rms_norm(hidden, hidden.shape[-1:], module.weight, module.variance_epsilon)
    return type(module).forward(module, hidden)


def _require_mask(
    module: PreTrainedModel, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Checks the mask, and makes a boolean one additive and of the model's dtype: SDPA would do so in every layer, and keep
    each layer's for the backward pass."""
    mask = args[1] if len(args) > 1 else kwargs.get("attention_mask")
    if isinstance(mask, dict):  # one for each kind of layer
        mask = {kind: _additive(of_kind, module.dtype) for kind, of_kind in mask.items()}
    else:
        mask = _additive(mask, module.dtype)
    if len(args) > 1:
        return (args[0], mask, *args[2:]), kwargs
    return args, {**kwargs, "attention_mask": mask}


def _additive(mask: Tensor | BlockMask | None, dtype: torch.dtype) -> Tensor | BlockMask:
    check_mask(mask)
    if isinstance(mask, Tensor):
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
    return cast(BlockMask, mask)


@torch.no_grad()
def read_causally(model: PreTrainedModel, path: str) -> None:
    """Gives an autoregressive model the masks of its layers (a window, where it has one).

    Raises BadInput where its head is more than a product: logits are made of hidden states and the head's weight here.
    """
    config = model.config
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None) or ()
    if window and (not kinds or "sliding_attention" in kinds):
        model.packed_inputs = partial(windowed_inputs, window, bool(kinds))  # type: ignore[assignment]  # as `use_flex`
    if others := set(kinds) - {"full_attention", "sliding_attention"}:
        raise BadInput(f"{path}: layers of type {', '.join(sorted(others))} are not supported")
    packed, _ = pack([lay_out_causal(torch.arange(3), torch.arange(3) == 2)])
    inputs = getattr(model, "packed_inputs", dense_inputs)(packed.to(head_weight(model).device))
    product = model.model(**inputs).last_hidden_state @ head_weight(model).T
    if not torch.allclose(product, model(**inputs).logits, rtol=1e-3, atol=1e-3):
        raise BadInput(
            f"{path}: its logits are more than hidden states times the head's weight: it cannot be a teacher"
        )


def _checked_weights(path: str, weights: Weights, config: PreTrainedConfig) -> Path | None:
    """The folder of the weights (None for random ones), after every check that is possible before memory is taken."""
    if weights == "random":
        return None
    folder = fetch(path, CONFIG_FILES + WEIGHT_FILES)
    try:
        model = build(config, dtype=torch.float32, device="meta")
    except BadInput:
        raise
    except Exception as error:  # the library raises what it likes for settings that make no model
        raise BadInput(f"{path}: config.json describes no model ({one_line(error)})") from None
    check_files(folder, shapes(checkpoint_views(model)), tied_head=TiedHead.of(model))
    return folder


def _write_weights(model: PreTrainedModel, folder: Path | None, seed: int, first_expert: int = 0) -> None:
    views = checkpoint_views(model, first_expert=first_expert)
    if folder is None:
        init_weights(views, seed=seed, std=model.config.initializer_range)
    else:
        fill(folder, views, tied_head=TiedHead.of(model))
