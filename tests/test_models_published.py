"""Models as they are published: their config.json (sizes apart), their names, several shards with an index, no remote code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3ForCausalLM

from pipeline.core.errors import BadInput
from pipeline.models.configs import read_config
from pipeline.models.families.llada2_moe import LLaDA2MoeModelLM
from pipeline.models.loading import build, load_student, load_teacher
from pipeline.models.tokenizer import load_tokenizer
from tests import launch
from tests.test_models_loading import STUDENT


def config_of(name: str, **beside) -> dict:
    """A published configuration that `plan` has, and what its file says beside.

    Of the mask ids, WeDLM's is its engine's default, and BD3LM's belongs to the token that it added to Qwen3's.
    """
    folder = launch.ROOT / "pipeline/capacity/published" / name
    return json.loads((folder / "config.json").read_text()) | beside


QWEN3_FILE = {  # what the files of Qwen3 and of its kin say and what changes nothing here
    "bos_token_id": 151643, "max_window_layers": 28, "rope_scaling": None, "sliding_window": None, "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False,
}  # fmt: skip
QWEN3_06B = config_of("Qwen/Qwen3-0.6B", architectures=["Qwen3ForCausalLM"], **QWEN3_FILE)
BD3LM = config_of(
    "dllm-hub/Qwen3-0.6B-diffusion-bd3lm-v0.1",
    architectures=["A2DQwen3LMHeadModel"],
    auto_map={"AutoConfig": "modeling_qwen3.A2DQwen3Config", "AutoModel": "modeling_qwen3.A2DQwen3LMHeadModel"},
    dtype="bfloat16",
    **QWEN3_FILE,
)
WEDLM_8B = config_of(
    "tencent/WeDLM-8B-Instruct",
    architectures=["WeDLMForCausalLM"],
    auto_map={"AutoConfig": "configuration_wedlm.WeDLMConfig", "AutoModelForCausalLM": "modeling_wedlm.WeDLM"},
    **QWEN3_FILE,
)
LLADA2_MINI = config_of("inclusionAI/LLaDA2.0-mini", model_type="llada2_moe")
LLADA2_FLASH = config_of("inclusionAI/LLaDA2.0-flash", model_type="llada2_moe")
SMALL = {"hidden_size": 16, "head_dim": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24}
SMALL |= {"num_hidden_layers": 3, "moe_intermediate_size": 8, "vocab_size": 400}
# the mask: only the tokenizer knows
SPECIAL = {"eos_token_id": 326, "pad_token_id": 324, "bos_token_id": None, "mask_token_id": None}


def dense_names(c: dict) -> dict[str, tuple[int, ...]]:
    """Tensors of Qwen3, WeDLM and BD3LM; the published files of tied models hold the head as well."""
    h, d, f = c["hidden_size"], c["head_dim"], c["intermediate_size"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    names = {"model.embed_tokens.weight": (c["vocab_size"], h), "model.norm.weight": (h,)}
    names["lm_head.weight"] = (c["vocab_size"], h)
    for i in range(c["num_hidden_layers"]):
        layer = {"q_proj": (q, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, q)}
        layer |= {"q_norm": (d,), "k_norm": (d,)}
        names |= {f"model.layers.{i}.self_attn.{n}.weight": shape for n, shape in layer.items()}
        mlp = {"gate_proj": (f, h), "up_proj": (f, h), "down_proj": (h, f)}
        names |= {f"model.layers.{i}.mlp.{n}.weight": shape for n, shape in mlp.items()}
        names |= {f"model.layers.{i}.{n}_layernorm.weight": (h,) for n in ("input", "post_attention")}
    return names


def llada2_names(c: dict) -> dict[str, tuple[int, ...]]:
    h, d, e, w = c["hidden_size"], c["head_dim"], c["num_experts"], c["moe_intermediate_size"]
    fused = (c["num_attention_heads"] + 2 * c["num_key_value_heads"]) * d
    names = {"model.word_embeddings.weight": (c["vocab_size"], h), "model.norm.weight": (h,)}
    names["lm_head.weight"] = (c["vocab_size"], h)
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}"
        names |= {f"{at}.{n}_layernorm.weight": (h,) for n in ("input", "post_attention")}
        names |= {f"{at}.attention.{n}_layernorm.weight": (d,) for n in ("query", "key")}
        names |= {f"{at}.attention.query_key_value.weight": (fused, h)}
        names |= {f"{at}.attention.dense.weight": (h, c["num_attention_heads"] * d)}
        mlps = {f"{at}.mlp": c["intermediate_size"]}
        if i >= c["first_k_dense_replace"]:
            names |= {f"{at}.mlp.gate.weight": (e, h), f"{at}.mlp.gate.expert_bias": (e,)}
            mlps = {f"{at}.mlp.experts.{j}": w for j in range(e)} | {f"{at}.mlp.shared_experts": w}
        for mlp, width in mlps.items():
            names |= {f"{mlp}.gate_proj.weight": (width, h), f"{mlp}.up_proj.weight": (width, h)}
            names |= {f"{mlp}.down_proj.weight": (h, width)}
    return names


def publish(folder: Path, config: dict, shards: int = 3) -> Path:
    """A small model in the published layout: bf16 shards, an index, config.json; the demo student's tokenizer."""
    config = config | SMALL | SPECIAL
    names = llada2_names(config) if "num_experts" in config else dense_names(config)
    generator = torch.Generator().manual_seed(0)
    tensors = {n: torch.randn(shape, generator=generator).mul(0.1).bfloat16() for n, shape in names.items()}
    tensors |= {n: t.float() * 9 for n, t in tensors.items() if n.endswith("expert_bias")}
    if config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    folder.mkdir()
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    weight_map = {name: files[i * shards // len(tensors)] for i, name in enumerate(tensors)}
    for file in files:
        save_file({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file)
    total = {"total_size": sum(t.nbytes for t in tensors.values())}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": total, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))
    for file in STUDENT.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.copy(file, folder)
    return folder


PUBLISHED = {
    "llada2-mini": (LLADA2_MINI, LLaDA2MoeModelLM, (16.2e9, 16.3e9)),
    "llada2-mini-veomni": (LLADA2_MINI | {"model_type": "llada2_moe_veomni"}, LLaDA2MoeModelLM, (16.2e9, 16.3e9)),
    "llada2-flash": (LLADA2_FLASH, LLaDA2MoeModelLM, (100e9, 105e9)),
    "wedlm-8b": (WEDLM_8B, Qwen3ForCausalLM, (8.1e9, 8.3e9)),
    "qwen3-0.6b": (QWEN3_06B, Qwen3ForCausalLM, (0.59e9, 0.61e9)),
    "bd3lm": (BD3LM, Qwen3ForCausalLM, (0.59e9, 0.61e9)),
}


@pytest.mark.parametrize(("config", "architecture", "parameters"), PUBLISHED.values(), ids=PUBLISHED)
def test_a_published_model_loads(config, architecture, parameters, tmp_path):
    folder = publish(tmp_path / "model", config)
    stored = {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}
    model = load_teacher(str(folder), dtype=torch.float32, device="cpu")
    assert type(model) is architecture and model.config.mask_token_id == 325
    assert torch.equal(model.get_output_embeddings().weight, stored["lm_head.weight"].float())
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is config["tie_word_embeddings"]
    if architecture is LLaDA2MoeModelLM:
        bias = model.model.layers[2].mlp.gate.e_score_correction_bias
        assert torch.equal(bias, stored["model.layers.2.mlp.gate.expert_bias"]) and bias.abs().max() > 1
    else:
        assert model.model.rotary_emb.inv_freq[-1].item() == pytest.approx(1e6 ** (2 / SMALL["head_dim"] - 1))
    ids, mask = torch.arange(10)[None], torch.ones(1, 1, 10, 10, dtype=torch.bool)
    assert model(ids, attention_mask=mask).logits.isfinite().all()
    assert load_student(str(folder), dtype=torch.bfloat16).dtype == torch.bfloat16

    (tmp_path / "config.json").write_text(json.dumps(config))  # at its real size: nothing is stored
    whole = build(read_config(str(tmp_path)), dtype=torch.bfloat16, device="meta")
    assert parameters[0] < sum(p.numel() for p in whole.parameters()) < parameters[1]


def rewrite(folder: Path, edit, file: int = 0) -> str:
    """Edits the tensors of one shard; the index stays. Returns the shard's name."""
    shard = sorted(folder.glob("*.safetensors"))[file]
    tensors = load_file(shard)
    edit(tensors)
    save_file(tensors, shard)
    return shard.name


def edit_index(folder: Path, edit) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index)
    path.write_text(json.dumps(index))


NORM = "model.norm.weight"  # in the first shard


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: rewrite(f, lambda t: t.pop(NORM)), f"{NORM} not where model.safetensors.index.json says"),
        (lambda f: rewrite(f, lambda t: t.update({NORM: t[NORM].to(torch.int8)})), f"{NORM} of type I8; give weights"),
        (lambda f: rewrite(f, lambda t: t.update({NORM: t[NORM].to(torch.float8_e4m3fn)})), f"{NORM} of type F8_E4M3"),
        (lambda f: rewrite(f, lambda t: t.update({NORM: torch.ones(16)}), 1), f"{NORM} in model-00001-of-00003"),
        (lambda f: edit_index(f, lambda i: i["weight_map"].pop(NORM)), f"{NORM} not where model.safetensors.index"),
        (lambda f: edit_index(f, lambda i: i["weight_map"].update(x="../x")), "names files outside of the folder"),
        (lambda f: edit_index(f, lambda i: i.pop("weight_map")), "index.json: not an index of safetensors files"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{"), "index.json: not an index of safetensors"),
        (lambda f: (f / "model.safetensors.index.json").unlink(), "no model.safetensors; weights must be safetensors"),
    ],
)
def test_files_that_do_not_fit_are_one_line(damage, message, tmp_path):
    folder = publish(tmp_path / "model", QWEN3_06B)
    damage(folder)
    with pytest.raises(BadInput) as error:
        load_student(str(folder), dtype=torch.float32)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_name_of_the_hub_is_found_in_its_cache(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--someone--student" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    folder = publish(snapshot, QWEN3_06B)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    found = load_student("someone/student", dtype=torch.float32)
    local = load_student(str(folder), dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), local.parameters(), strict=True))


def test_a_mask_token_that_only_the_config_knows(tmp_path):
    """WeDLM's tokenizer ends before its mask token; its code names the id."""
    folder = publish(tmp_path / "model", WEDLM_8B)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    kept = [token for token in tokenizer["added_tokens"] if token["content"] != "<|mask|>"]
    size = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"] = [token | {"id": size + i} for i, token in enumerate(kept)]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["mask_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())

    with pytest.raises(BadInput, match="no mask token"):  # WeDLM's own is 151665, far beyond this tokenizer
        load_tokenizer(str(folder))
    for mask in (size + len(kept), 5):  # right behind the last token; one that is there
        (folder / "config.json").write_text(json.dumps(config | {"mask_token_id": mask}))
        assert load_tokenizer(str(folder)).mask_token_id == mask
        assert load_student(str(folder), dtype=torch.float32).config.mask_token_id == mask
