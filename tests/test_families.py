"""Families of published models against what their own code computes (tests/data/families; shapes and masks: README there)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.errors import BadInput
from pipeline.decoding import GenerateConfig, generate
from pipeline.decoding.rules import BLOCK_DIFFUSION, counts_by_time, even_counts, published, published_blocks
from pipeline.models.configs import library_config, read_config, read_named_config
from pipeline.models.export import as_exported, write_model
from pipeline.models.families.table import FAMILIES, family_of, is_shifted
from pipeline.models.loading import load_student, load_teacher
from pipeline.models.tokenizer import load_tokenizer
from tests import launch
from tests.alignment_tokenizers import byte_level

DATA = Path(__file__).parent / "data" / "families"
MODELS = {
    "llada": "LLaDA",
    "dream": "Dream",
    "sdar": "SDAR",
    "sdar_moe": "SDAR-MoE",
    "lladamoe": "LLaDA-MoE",
    "fast_dllm_v2": "Fast-dLLM v2",
}
"""File of the vectors -> family."""


def golden(name: str) -> tuple[dict, dict[str, Tensor]]:
    return json.loads((DATA / f"{name}_tiny.json").read_text()), load_file(DATA / f"{name}_tiny.safetensors")


def publish(folder: Path, name: str, **changes) -> Path:
    """A golden model as it is published; `changes` go into its config.json."""
    facts, tensors = golden(name)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"mask_token_id": facts["mask_token_id"]} | facts["config"] | changes)
    )
    weights = {n.removeprefix("weights/"): t for n, t in tensors.items() if n.startswith("weights/")}
    save_file(weights, folder / "model.safetensors")
    return folder


def teacher(folder: Path):
    return load_teacher(str(folder), dtype=torch.float32, device="cpu")


def cases(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Inputs, mask and results by case."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        case, _, kind = name.partition("/")
        found.setdefault(case, {})[kind] = tensor
    return {case: kinds for case, kinds in found.items() if {"input_ids", "logits"} <= kinds.keys()}


def visible(case: dict[str, Tensor]) -> Tensor:
    """bool [B, 1, L, L]: the case's mask, or its real keys, or everything."""
    length = case["input_ids"].shape[1]
    real = case.get("attention_mask", torch.ones_like(case["input_ids"])).bool()
    return case.get("mask", real[:, None, None, :].expand(-1, 1, length, length))


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    name = request.param
    return name, teacher(publish(tmp_path_factory.mktemp(name), name)), *golden(name)


def test_hidden_states_and_logits_equal_the_published_code(model):
    name, loaded, facts, tensors = model
    assert family_of(loaded.config).name == MODELS[name]
    for kind, case in cases(tensors).items():
        mask, length = visible(case), case["input_ids"].shape[1]
        positions = case.get("position_ids", torch.arange(length)[None])
        inputs = {"attention_mask": mask | torch.eye(length, dtype=torch.bool), "position_ids": positions}
        hidden = loaded.model(case["input_ids"], **inputs).last_hidden_state
        real = case["hidden"].ne(0).any(-1)
        assert real.any(1).all()
        torch.testing.assert_close(hidden[real], case["hidden"][real], atol=2e-5, rtol=0, msg=kind)
        logits = loaded(case["input_ids"], **inputs).logits
        torch.testing.assert_close(logits[real], case["logits"][real], atol=2e-5, rtol=0, msg=kind)
    if "decode/logits" in tensors:  # the block behind its prefix
        ids = torch.cat([tensors["decode/prefix_ids"], tensors["decode/block_ids"]], 1)
        block = torch.arange(ids.shape[1]) // facts["block_size"]
        logits = loaded(ids, attention_mask=(block[None] <= block[:, None])[None, None]).logits
        expected = tensors["decode/logits"]
        torch.testing.assert_close(logits[:, -expected.shape[1] :], expected, atol=2e-5, rtol=0)


DREAM_ORDER = {"maskgit_plus": "probability", "topk_margin": "margin", "entropy": "entropy"}


def settings_of(name: str, case: dict) -> tuple[GenerateConfig, dict]:
    """A published generation's settings as ours, and what its rules take beside."""
    rule, length = case["settings"], len(case["sequence"]) - len(case["prompt"])
    if name in ("llada", "lladamoe"):
        return GenerateConfig(length, rule["block_length"], rule["steps"]), {"guidance": rule.get("cfg_scale", 0.0)}
    if name == "dream":
        return GenerateConfig(length, 32, rule["steps"]), {"order": DREAM_ORDER[rule["alg"]]}
    if name == "fast_dllm_v2":
        config = GenerateConfig(length, rule["block_size"], length, threshold=rule["threshold"])
        return config, {"window": rule["small_block_size"]}
    size, per_block = rule["block_length"], rule["denoising_steps"]
    steps, threshold = per_block * -(-length // size), rule.get("confidence_threshold")
    config = GenerateConfig(length, size, steps, threshold=threshold)
    return config, {"window": size // per_block} if rule["remasking_strategy"] == "sequential" else {}


def test_generates_as_published(model):
    """Every published generation, token for token. A prompt of just one block is never read by Fast-dLLM v2's code; ours reads it."""
    name, loaded, facts, _ = model
    loaded.config.eos_token_id = 10_000  # outside of the vocabulary: whole sequences are compared
    one_block = facts["block_size"] if name == "fast_dllm_v2" else 0
    cases = [case for case in facts["generation"] if len(case["prompt"]) != one_block]
    assert len(cases) == {"lladamoe": 2, "dream": 3, "fast_dllm_v2": 6}.get(name, 4)
    for case in cases:
        config, options = settings_of(name, case)
        rules, config = published(loaded, **options), published_blocks(loaded, config)
        assert generate(loaded, [case["prompt"]], config, rules) == [case["sequence"][len(case["prompt"]) :]], case
    prompts = [case["prompt"][:2], case["prompt"]]  # unequal lengths in one batch
    assert generate(loaded, prompts, config, rules) == [generate(loaded, [p], config, rules)[0] for p in prompts]


def test_how_many_tokens_published_samplers_decide_at_a_forward():
    assert even_counts(8, GenerateConfig(16, 8, 6)) == [3, 3, 2]
    assert even_counts(2, GenerateConfig(8, 4, 4, blocks="training")) == [2]  # the rest of the block is prompt
    # just below 8 / 4, 7 / 3 and 5 / 2; then the rest
    assert counts_by_time(8, GenerateConfig(8, 8, 4)) == [1, 2, 2, 3]


def test_what_a_family_has_not_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="guidance needs a model that reads everything"):
        published(teacher(publish(tmp_path / "sdar", "sdar")), guidance=1.0)
    qwen = publish(tmp_path / "qwen", "sdar", model_type="qwen3", architectures=["Qwen3ForCausalLM"])
    with pytest.raises(ValueError, match="Qwen3 has no sampler of its own here"):
        published(teacher(qwen))


def test_windows_of_a_block_in_order(model):
    loaded = model[1]
    assert BLOCK_DIFFUSION.windows(slice(8, 16)) == [slice(8, 16)]
    alone = family_of(loaded.config).name == "Fast-dLLM v2"
    expected = [slice(8, 9), slice(9, 12)] if alone else [slice(8, 12)]
    assert published(loaded, window=4).windows(slice(8, 14)) == [*expected, slice(12, 14)]


@pytest.mark.parametrize("name", ["sdar_moe", "lladamoe"])
def test_routers_choose_and_weigh_as_published(name, tmp_path):
    _, tensors = golden(name)
    loaded, seen = teacher(publish(tmp_path / name, name)), {}
    for i, layer in enumerate(loaded.model.layers):
        layer.mlp.gate.register_forward_hook(lambda _m, _i, out, i=i: seen.__setitem__(i, out))
    case = cases(tensors)["full"]
    loaded(case["input_ids"], attention_mask=visible(case))
    for i, (logits, weights, experts) in seen.items():
        order = experts.argsort(1)
        torch.testing.assert_close(logits, tensors[f"router/{i}.logits"], atol=2e-5, rtol=0)
        assert torch.equal(experts.gather(1, order), tensors[f"router/{i}.topk_idx_sorted"])
        torch.testing.assert_close(
            weights.gather(1, order), tensors[f"router/{i}.topk_weight_sorted"], atol=1e-5, rtol=0
        )


def test_every_family_is_found_by_what_config_json_says():
    for file, name in MODELS.items():
        config = golden(file)[0]["config"]
        family = family_of(library_config(config, "here"))
        assert family.name == name
    moe, dense = (golden(name)[0]["config"] for name in ("lladamoe", "llada"))
    for raw, name in ((moe, "LLaDA-MoE"), (dense, "LLaDA")):  # one model_type; without the class a field decides
        assert family_of(library_config({k: v for k, v in raw.items() if k != "architectures"}, "here")).name == name
    assert {family.name for family in FAMILIES} >= set(MODELS.values())


def test_what_hub_folders_leave_out(tmp_path):
    raw = golden("sdar")[0]["config"] | {"vocab_size": 151936}
    config = library_config({k: v for k, v in raw.items() if k not in ("block_size", "mask_token_id")}, "here")
    assert config.block_size == 4
    folder = publish(
        tmp_path / "m", "fast_dllm_v2", vocab_size=151936, mask_token_id=None
    )  # its mask stands in its code alone
    loaded = load_teacher(str(folder), dtype=torch.float32, device="cpu", weights="random")
    assert loaded.config.mask_token_id == 151665 and loaded.config.block_size == 8


REFUSED = [
    ("llada", {"include_bias": True}, "include_bias=True is not supported, only False"),
    ("llada", {"block_type": "sequential"}, "block_type='sequential' is not supported"),
    ("llada", {"clip_qkv": 1.0}, "clip_qkv=1.0 is not supported"),
    ("lladamoe", {"shared_expert_intermediate_size": 32}, "shared_expert_intermediate_size=32 is not supported"),
    ("lladamoe", {"moe_router_enable_expert_bias": True}, "moe_router_enable_expert_bias=True is not supported"),
    ("lladamoe", {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
    ("lladamoe", {"router_num_group": 2}, "router_num_group=2 is not supported"),
    ("dream", {"use_mrope": True}, "use_mrope=True is not supported"),
    ("sdar", {"model_type": "sdar2"}, "model_type 'sdar2' is none of llada2_moe, llada, Dream"),
    ("sdar", {"quantization_config": {"quant_method": "gptq"}}, "is quantized"),
    ("sdar", {"mask_token_id": 288}, "mask token 288 is outside its 288 embeddings"),
]


@pytest.mark.parametrize(("name", "changes", "message"), REFUSED)
def test_what_cannot_be_computed_is_one_line(name, changes, message, tmp_path):
    with pytest.raises(BadInput) as error:
        teacher(publish(tmp_path / "model", name, **changes))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", MODELS)
def test_a_tensor_too_few_or_too_many_is_named_as_in_the_file(name, tmp_path):
    file = publish(tmp_path / "model", name) / "model.safetensors"
    tensors = load_file(file)
    norm = next(n for n in tensors if "ln_f" in n or n == "model.norm.weight")
    for change, message in (({norm: None}, f"{norm} missing"), ({"x.bias": torch.ones(1)}, "x.bias surplus")):
        save_file({n: t for n, t in (tensors | change).items() if t is not None}, file)
        with pytest.raises(BadInput, match=message):
            teacher(file.parent)


def test_switches_of_llada(tmp_path):
    """Biases of q, k and v, fewer heads in k and v, padded embeddings, a tied head: each against the plain arithmetic."""
    facts, tensors = golden("llada")
    folder = publish(
        tmp_path / "m", "llada", include_qkv_bias=True, n_kv_heads=2, weight_tying=True, vocab_size=280, mlp_hidden_size=None,
        mlp_ratio=1.5,
    )  # fmt: skip
    stored = load_file(folder / "model.safetensors")
    del stored["model.transformer.ff_out.weight"]
    for i in range(2):
        at = f"model.transformer.blocks.{i}"
        for kind in "qkv":
            if kind != "q":
                stored[f"{at}.{kind}_proj.weight"] = stored[f"{at}.{kind}_proj.weight"][:32].clone()
            stored[f"{at}.{kind}_proj.bias"] = torch.randn(len(stored[f"{at}.{kind}_proj.weight"]))
    save_file(stored, folder / "model.safetensors")
    loaded = teacher(folder)
    ids = torch.arange(6)[None]
    logits = loaded(ids, attention_mask=torch.ones(1, 1, 6, 6, dtype=torch.bool)).logits
    torch.testing.assert_close(logits, _plain_llada(stored, ids[0])[None], atol=2e-5, rtol=0)


def _plain_llada(w: dict[str, Tensor], ids: Tensor) -> Tensor:
    """LLaDA's forward written out: 4 heads of 16, 2 of them in k and v."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], w[name], 1e-5)

    angle = torch.arange(len(ids))[:, None] / 500000.0 ** (torch.arange(0, 16, 2) / 16)
    cos, sin = torch.cat([angle, angle], 1).cos(), torch.cat([angle, angle], 1).sin()

    def heads(x: Tensor, rotate: bool) -> Tensor:
        x = x.unflatten(1, (-1, 16)).transpose(0, 1)
        if rotate:
            x = x * cos + torch.cat([-x[..., 8:], x[..., :8]], -1) * sin
        return x.repeat_interleave(4 // len(x), 0)

    x = w["model.transformer.wte.weight"][ids]
    for i in range(2):
        at = f"model.transformer.blocks.{i}"
        y = norm(x, f"{at}.attn_norm.weight")
        q, k, v = (
            heads(y @ w[f"{at}.{n}_proj.weight"].T + w[f"{at}.{n}_proj.bias"], n != "v") for n in ("q", "k", "v")
        )
        seen = (q @ k.transpose(1, 2) / 4).softmax(-1) @ v
        x = x + seen.transpose(0, 1).flatten(1) @ w[f"{at}.attn_out.weight"].T
        y = norm(x, f"{at}.ff_norm.weight")
        y = F.silu(y @ w[f"{at}.ff_proj.weight"].T) * (y @ w[f"{at}.up_proj.weight"].T)
        x = x + y @ w[f"{at}.ff_out.weight"].T
    return norm(x, "model.transformer.ln_f.weight") @ w["model.transformer.wte.weight"].T


def test_llada21_counts_no_key_heads_as_all():
    raw = {"model_type": "llada2_moe", "num_attention_heads": 4, "num_key_value_heads": 0}
    assert library_config(raw, "here").num_key_value_heads == 4


def test_what_can_be_a_student(tmp_path):
    folder = publish(tmp_path / "sdar", "sdar")
    assert all(p.requires_grad for p in load_student(str(folder), dtype=torch.float32).parameters())
    with pytest.raises(BadInput, match="SDAR-MoE can be a teacher, not a student"):
        load_student(str(publish(tmp_path / "moe", "sdar_moe")), dtype=torch.float32)


def test_a_mixture_of_qwen3_learns_and_comes_back(tmp_path):
    """Shifted, as its config.json says: router and experts get gradients, and the export is the same model."""
    own = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "shifted": True}
    model = load_student(str(publish(tmp_path / "moe", "sdar_moe", **own)), dtype=torch.float32)
    inputs = {"input_ids": torch.arange(24).view(2, 12), "attention_mask": torch.ones(2, 1, 12, 12, dtype=torch.bool)}
    model(**inputs).logits.logsumexp(-1).sum().backward()
    learnt = {name for name, parameter in model.named_parameters() if parameter.grad.any()}
    assert {name for name, _ in model.named_parameters() if ".mlp." in name} <= learnt
    write_model(model, model.state_dict(), as_exported(model.config, {}), tmp_path / "export")
    back = teacher(tmp_path / "export")
    assert is_shifted(back.config)
    assert torch.equal(back(**inputs).logits, model.eval()(**inputs).logits)


def test_a_tokenizer_of_another_family_is_refused(tmp_path):
    folder, tokenizer = publish(tmp_path / "m", "dream"), byte_level()
    with pytest.raises(BadInput, match=r"mask token 281, but \d+ in its tokenizer"):
        read_named_config(str(folder), tokenizer)
    tokenizer.add_tokens("<tool_response>")
    tokenizer.save_pretrained(folder)
    for file in folder.glob("tokenizer*.json"):  # no token of its own is a mask
        file.write_text(file.read_text().replace("<|mask|>", "<|other|>").replace('"mask_token"', '"pad_token"'))
    taken = tokenizer.convert_tokens_to_ids("<tool_response>")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"mask_token_id": taken}))
    with pytest.raises(BadInput, match=f"mask token {taken} is <tool_response> in this tokenizer"):
        load_tokenizer(str(folder))
    assert read_config(str(folder)).mask_token_id == taken


@pytest.mark.launch
def test_experts_of_two_ranks_give_what_one_gives(tmp_path):
    moe = publish(tmp_path / "qwen3_moe", "sdar_moe", model_type="qwen3_moe", architectures=["Qwen3MoeForCausalLM"])
    names = [f"{publish(tmp_path / name, name)}:full" for name in ("sdar_moe", "lladamoe")] + [f"{moe}:causal"]
    done = launch.ranks(2, "tests/distributed/families_expert_parallel.py", *names)
    assert done.stdout.count("equal") == 6
