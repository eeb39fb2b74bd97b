"""LLaDA2-MoE against the published implementation's numbers and against a plain dense mixture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from pipeline.models.families.llada2_moe import LLaDA2MoeConfig, LLaDA2MoeModelLM
from pipeline.models.families.llada2_moe_layers import MoE
from pipeline.models.loading import load_student, load_teacher

DATA = Path(__file__).parent / "data" / "models"
SPECIAL = {"mask_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def golden(name: str) -> tuple[dict, dict[str, Tensor]]:
    return json.loads((DATA / f"{name}.json").read_text()), load_file(DATA / f"{name}.safetensors")


def write_checkpoint(folder: Path, name: str, **changes) -> Path:
    """A golden model as a checkpoint folder; `changes` go into its config."""
    facts, tensors = golden(name)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SPECIAL | facts["config"] | changes))
    weights = {name.removeprefix("sd."): tensor for name, tensor in tensors.items() if name.startswith("sd.")}
    save_file(weights, folder / "model.safetensors")
    return folder


def pair_mask(real: Tensor) -> Tensor:
    """Real tokens attend to real tokens: [B, L] -> bool [B, 1, L, L]."""
    real = real.bool()
    return (real[:, :, None] & real[:, None, :])[:, None]


@pytest.fixture(params=["llada2_tiny", "llada2_realhp"])
def case(request, tmp_path) -> tuple[LLaDA2MoeModelLM, dict, dict[str, Tensor]]:
    folder = write_checkpoint(tmp_path, request.param)
    return load_teacher(str(folder), dtype=torch.float32, device="cpu"), *golden(request.param)


def test_everything_equals_the_published_model(case):
    model, facts, tensors = case
    seen = {}
    model.model.word_embeddings.register_forward_hook(lambda _m, _i, out: seen.__setitem__("hidden.0", out))
    for i, layer in enumerate(model.model.layers):
        layer.register_forward_hook(lambda _m, _i, out, i=i: seen.__setitem__(f"hidden.{i + 1}", out))
    model.model.norm.register_forward_hook(
        lambda _m, _i, out: seen.__setitem__(f"hidden.{len(model.model.layers)}", out)
    )
    for i in facts["moe_layers"]:
        model.model.layers[i].mlp.gate.register_forward_hook(
            lambda gate, inputs, out, i=i: seen.__setitem__(f"router.{i}", (F.linear(inputs[0], gate.weight), *out))
        )
    real = tensors["attention_mask_2d"].bool()
    output = model(input_ids=tensors["input_ids"], attention_mask=pair_mask(real))

    torch.testing.assert_close(output.logits[real], tensors["logits"][real], atol=2e-5, rtol=0)
    for i in range(len(model.model.layers) + 1):
        torch.testing.assert_close(seen[f"hidden.{i}"][real], tensors[f"hidden.{i}"][real], atol=2e-5, rtol=1e-5)
    for i in facts["moe_layers"]:
        logits, weights, experts, counts = seen[f"router.{i}"]
        ascending = experts.argsort(1)
        chosen = tensors[f"router.{i}.topk_idx_sorted"][real]
        torch.testing.assert_close(logits[real.flatten()], tensors[f"router.{i}.logits"][real], atol=2e-5, rtol=1e-5)
        assert torch.equal(experts.gather(1, ascending)[real.flatten()], chosen)
        torch.testing.assert_close(
            weights.gather(1, ascending)[real.flatten()], tensors[f"router.{i}.topk_weight_sorted"][real]
        )
        assert torch.equal(counts.long(), experts.flatten().bincount(minlength=facts["config"]["num_experts"]))


def test_what_a_pad_holds_changes_nothing(case):
    model, _, tensors = case
    real, ids = tensors["attention_mask_2d"].bool(), tensors["input_ids"]
    other = torch.where(real, ids, ids.flip(1) + 3)
    first, second = (model(x, attention_mask=pair_mask(real)).logits[real] for x in (ids, other))
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def test_rotary_positions_are_used(case):
    """Equal ids at shifted positions: rotary attention sees differences only; at stretched ones, the logits change."""
    model, _, tensors = case
    ids, mask = tensors["input_ids"][:1], pair_mask(torch.ones(1, tensors["input_ids"].shape[1]))
    at = torch.arange(ids.shape[1])[None]
    plain, shifted, stretched = (model(ids, mask, p).logits for p in (at, at + 7, at * 3))
    torch.testing.assert_close(plain, shifted, atol=2e-4, rtol=0)
    assert (plain - stretched).abs().max() > 0.01


def test_a_cache_gives_the_same_logits(case):
    model, _, tensors = case
    ids, cut = tensors["input_ids"][:1], 9
    block_causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool)
    block_causal[:cut, cut:] = False
    block_causal = block_causal[None, None]
    whole = model(ids, attention_mask=block_causal).logits
    cache = DynamicCache()
    model(ids[:, :cut], attention_mask=block_causal[..., :cut, :cut], past_key_values=cache)
    rest = model(ids[:, cut:], attention_mask=block_causal[..., cut:, :], past_key_values=cache).logits
    torch.testing.assert_close(rest, whole[:, cut:], atol=2e-5, rtol=0)


def test_bf16_is_close_to_float32(tmp_path):
    folder = str(write_checkpoint(tmp_path, "llada2_tiny"))
    tensors = golden("llada2_tiny")[1]
    real = tensors["attention_mask_2d"].bool()
    model = load_teacher(folder, dtype=torch.bfloat16, device="cpu")
    gate = model.model.layers[1].mlp.gate
    assert gate.weight.dtype == torch.bfloat16 and gate.e_score_correction_bias.dtype == torch.float32
    logits = model(tensors["input_ids"], attention_mask=pair_mask(real)).logits
    assert logits.dtype == torch.bfloat16
    error = (logits.float() - tensors["logits"])[real].norm(dim=1) / tensors["logits"][real].norm(dim=1)
    assert error.median() < 0.05  # not the mean: a few tokens take another expert


def small(**changes) -> LLaDA2MoeConfig:
    sizes = {"vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "moe_intermediate_size": 12}
    experts = {"num_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2}
    return LLaDA2MoeConfig(**sizes | heads | experts | changes)


def dense_mixture(moe: MoE, tokens: Tensor, groups: int, top_groups: int, k: int, scale: float) -> Tensor:
    """Every expert on every token, weighed by a dense [T, E] table that follows the definition token by token."""
    scores = torch.sigmoid(tokens @ moe.gate.weight.T)
    table = torch.zeros_like(scores)
    per_group = scores.shape[1] // groups
    for token, row in enumerate(scores):
        biased = (row.detach() + moe.gate.e_score_correction_bias).tolist()
        value = {g: sum(sorted(biased[g * per_group : (g + 1) * per_group])[-2:]) for g in range(groups)}
        open_groups = sorted(value, key=value.get)[-top_groups:]
        allowed = [e for e in range(len(biased)) if e // per_group in open_groups]
        chosen = sorted(allowed, key=lambda e: biased[e])[-k:]
        table = table.index_put((torch.tensor(token), torch.tensor(chosen)), row[chosen] / row[chosen].sum() * scale)
    out = moe.shared_experts(tokens)
    for e in range(scores.shape[1]):
        gate, up = moe.experts.gate_up_proj[e].chunk(2)
        out = out + table[:, e, None] * ((F.silu(tokens @ gate.T) * (tokens @ up.T)) @ moe.experts.down_proj[e].T)
    return out


def test_outputs_and_gradients_equal_a_dense_mixture():
    torch.manual_seed(0)
    config = small(initializer_range=0.3)
    moe = MoE(config)
    moe.gate.e_score_correction_bias.copy_(torch.randn(8))
    moe.gate.e_score_correction_bias[:2] = -9.0  # an expert group that no token reaches
    hidden = torch.randn(2, 15, 24, requires_grad=True)
    wanted = torch.randn(2, 15, 24)
    leaves = [hidden, *moe.parameters()]

    output = moe(hidden)
    given = torch.autograd.grad((output * wanted).sum(), leaves)
    dense = dense_mixture(moe, hidden.flatten(0, 1), 4, 2, 3, config.routed_scaling_factor).view_as(hidden)
    expected = torch.autograd.grad((dense * wanted).sum(), leaves)

    torch.testing.assert_close(output, dense, atol=1e-5, rtol=1e-5)
    for a, b in zip(given, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    stacked = dict(zip(["hidden", *(n for n, _ in moe.named_parameters())], given, strict=True))
    assert stacked["experts.gate_up_proj"][:2].eq(0).all()  # unused experts have a gradient, and it is 0


def test_gradient_checkpointing_changes_nothing(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(small(**SPECIAL).to_dict()))
    model = load_student(str(tmp_path), dtype=torch.float32, weights="random")
    ids, mask = torch.arange(12).view(2, 6), torch.ones(2, 1, 6, 6, dtype=torch.bool)

    def gradients() -> list[Tensor]:
        return torch.autograd.grad(model(ids, attention_mask=mask).logits.square().sum(), list(model.parameters()))

    plain = gradients()
    model.activation_checkpointing_enable()
    for a, b in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(a, b)


def test_selection_bias_moves_towards_balance():
    torch.manual_seed(1)
    model = LLaDA2MoeModelLM(small(initializer_range=0.3)).train()
    gate = model.model.layers[1].mlp.gate
    ids, mask = torch.randint(0, 50, (4, 32)), torch.ones(4, 1, 32, 32, dtype=torch.bool)

    model(ids, attention_mask=mask)
    counts = gate.tokens_per_expert.clone()
    assert counts.sum() == ids.numel() * 3 and counts.max() > counts.min()
    model.update_selection_bias(0.01)
    assert torch.equal(gate.e_score_correction_bias, 0.01 * (48.0 - counts).sign())
    assert gate.tokens_per_expert.eq(0).all()

    spread = []
    for _ in range(30):
        model(ids, attention_mask=mask)
        spread.append(gate.tokens_per_expert.float().std().item())
        model.update_selection_bias(0.02)
    assert spread[-1] < spread[0] / 3

    model.eval()(ids, attention_mask=mask)
    assert gate.tokens_per_expert.eq(0).all()  # only training counts
    assert not any("tokens_per_expert" in name for name in model.state_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_bias": True}, "use_bias=True is not supported"),
        ({"score_function": "softmax"}, "score_function='softmax'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"n_group": 3}, "8 experts do not form 3 groups"),
        ({"topk_group": 1}, "1 groups hold fewer than 3 experts"),
    ],
)
def test_config_refuses_what_the_model_does_not_compute(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)
