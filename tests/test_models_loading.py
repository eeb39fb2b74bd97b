"""Loading: names, shapes and masks are strict; every refusal is one line that names the thing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2ForCausalLM, Qwen3ForCausalLM

from pipeline.core.errors import BadInput
from pipeline.models.configs import read_config, read_named_config
from pipeline.models.expert_parallel import resolve_expert_parallel_size
from pipeline.models.loading import build, load_student, load_teacher
from pipeline.models.tokenizer import load_tokenizer
from pipeline.models.weights import checkpoint_views, shapes
from tests import launch
from tests.test_models_llada2 import SPECIAL, golden, write_checkpoint

STUDENT = Path(__file__).parents[1] / "demo" / "student"  # Qwen3
CONFIG = json.loads((STUDENT / "config.json").read_text())
IDS = CONFIG["mask_token_id"], CONFIG["eos_token_id"]


def teacher(folder: Path, **options):
    return load_teacher(str(folder), dtype=torch.float32, device="cpu", **options)


@pytest.mark.parametrize(
    ("name", "architecture"), [("wedlm_qwen3style", Qwen3ForCausalLM), ("wedlm_qwen2style", Qwen2ForCausalLM)]
)
def test_wedlm_equals_the_published_model(name, architecture, tmp_path):
    facts, tensors = golden(name)
    model = teacher(write_checkpoint(tmp_path, name))
    assert type(model) is architecture
    xt, x0, real = tensors["xt"], tensors["x0"], tensors["attention_mask_2d"].bool()
    length, noisy_first = xt.shape[1], facts["concat_order"] == "xt_x0"
    block = torch.arange(length).repeat(2) // facts["block_size"]
    noisy = (torch.arange(2 * length) < length) == noisy_first
    query, key = (block[:, None], noisy[:, None]), (block[None], noisy[None])
    same, earlier = key[0] == query[0], key[0] < query[0]
    allowed = torch.where(key[1], query[1] & same, earlier | (~query[1] & same))
    both = real.repeat(1, 2)
    mask = (allowed & both[:, None, :] & both[:, :, None])[:, None]
    logits = model(
        input_ids=torch.cat([xt, x0] if noisy_first else [x0, xt], dim=1),
        attention_mask=mask,
        position_ids=torch.arange(length).repeat(2)[None],
    ).logits[:, noisy]
    torch.testing.assert_close(logits[real], tensors["logits_xt"][real], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["wedlm_qwen3style", "llada2_tiny"])
def test_a_mask_is_required_and_must_be_boolean(name, tmp_path):
    model = teacher(write_checkpoint(tmp_path, name))
    ids, allowed = torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, 4, dtype=torch.bool)
    for call in (model, model.model):
        for mask in (None, torch.ones(1, 4, dtype=torch.long), torch.zeros(1, 1, 4, 4), allowed):
            with pytest.raises(ValueError, match="attention_mask must be bool"):
                call(input_ids=ids, attention_mask=mask)


def test_a_student_trains_and_a_teacher_does_not(tmp_path):
    folder = write_checkpoint(tmp_path, "wedlm_qwen3style")
    student = load_student(str(folder), dtype=torch.bfloat16)
    assert student.training and all(p.requires_grad and p.dtype == torch.bfloat16 for p in student.parameters())
    assert student.model.rotary_emb.inv_freq.dtype == torch.float32
    frozen = teacher(folder)
    assert not frozen.training and not any(p.requires_grad for p in frozen.parameters())


MOE_BIAS = "model.layers.2.mlp.gate.expert_bias"
MOE_EXPERT = "model.layers.1.mlp.experts.7.up_proj.weight"


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("llada2_tiny", lambda t: t.pop(MOE_EXPERT), f"{MOE_EXPERT} missing"),
        ("llada2_tiny", lambda t: t.pop(MOE_BIAS), f"{MOE_BIAS} missing"),
        ("llada2_tiny", lambda t: t.update(extra=torch.zeros(1)), "extra surplus"),
        ("llada2_tiny", lambda t: t.update({MOE_EXPERT: torch.zeros(3, 64)}), rf"{MOE_EXPERT} is \[3, 64\]"),
        ("wedlm_qwen3style", lambda t: t.pop("model.norm.weight"), "model.norm.weight missing"),
        ("wedlm_qwen3style", lambda t: t.pop("lm_head.weight"), "lm_head.weight missing"),
        ("wedlm_qwen3style", lambda t: t.update({"model.norm.bias": torch.zeros(32)}), "model.norm.bias surplus"),
    ],
)
def test_tensors_that_do_not_fit_are_named(name, edit, message, tmp_path):
    folder = write_checkpoint(tmp_path, name)
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BadInput, match=message):
        teacher(folder)


def test_a_tied_head_may_be_in_the_file_but_must_be_the_embedding(tmp_path):
    folder = write_checkpoint(tmp_path, "wedlm_qwen3style", model_type="a2d-qwen3", tie_word_embeddings=True)
    with pytest.raises(BadInput, match="lm_head.weight differs from the embedding"):
        teacher(folder)
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    for head in ({"lm_head.weight": embedding.clone()}, {}):
        tensors.pop("lm_head.weight", None)
        save_file(tensors | head, folder / "model.safetensors")
        model = teacher(folder)
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert torch.equal(model.get_output_embeddings().weight, embedding)


def test_shards_are_read_through_their_index(tmp_path):
    folder = write_checkpoint(tmp_path, "llada2_tiny")
    tensors = load_file(folder / "model.safetensors")
    whole = teacher(folder).state_dict()
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({n: tensors[n] for n in held}, folder / shard)
    index = {"weight_map": {n: shard for shard, held in shards.items() for n in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, tensor in teacher(folder).state_dict().items():
        assert torch.equal(tensor, whole[name]), name
    (folder / "b.safetensors").write_bytes((folder / "b.safetensors").read_bytes()[:-50])
    with pytest.raises(BadInput, match="b.safetensors: not a whole safetensors file"):
        teacher(folder)
    (folder / "b.safetensors").unlink()
    with pytest.raises(BadInput, match="no b.safetensors"):
        teacher(folder)


def test_published_config_of_llada2_mini():
    config = read_config(str(launch.ROOT / "pipeline/capacity/published/inclusionAI/LLaDA2.0-mini"))
    expected = shapes(checkpoint_views(build(config, dtype=torch.bfloat16, device="meta")))
    assert config.model_type == "llada2_moe" and not hasattr(config, "auto_map")
    assert expected["model.layers.19.mlp.experts.255.down_proj.weight"] == (2048, 512)
    assert expected["model.layers.0.mlp.gate_proj.weight"] == (5120, 2048)
    assert expected["model.layers.1.attention.query_key_value.weight"] == ((16 + 2 * 4) * 128, 2048)
    assert expected["model.layers.1.mlp.gate.expert_bias"] == (256,)


def test_random_weights_need_a_config_only_and_depend_on_the_seed(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(STUDENT, folder, ignore=shutil.ignore_patterns("*.safetensors"))

    def weights(seed: int) -> dict[str, torch.Tensor]:
        return load_student(str(folder), dtype=torch.float32, weights="random", seed=seed).state_dict()

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    query = "model.layers.1.self_attn.q_proj.weight"
    assert not torch.equal(first[query], other[query])
    assert not torch.equal(first[query], first[query.replace(".1.", ".2.")])
    assert first[query].std().item() == pytest.approx(CONFIG["initializer_range"], rel=0.1)
    assert first["model.norm.weight"].eq(1).all()
    with pytest.raises(BadInput, match="no model.safetensors"):
        load_student(str(folder), dtype=torch.float32)


def test_a_padding_id_keeps_its_gradient():
    model = load_student(str(STUDENT), dtype=torch.float32, weights="random")
    pad, mask = model.config.pad_token_id, torch.ones(1, 1, 3, 3, dtype=torch.bool)
    model.model(input_ids=torch.full((1, 3), pad), attention_mask=mask).last_hidden_state.sum().backward()
    assert model.get_input_embeddings().weight.grad[pad].ne(0).any()


def test_special_tokens_come_from_the_config_then_from_the_tokenizer(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(STUDENT, folder)
    written = json.loads((folder / "config.json").read_text())
    silent = {k: v for k, v in written.items() if k not in SPECIAL}
    (folder / "config.json").write_text(json.dumps(silent | {"pad_token_id": 7}))
    config = load_student(str(folder), dtype=torch.float32, weights="random").config
    assert (config.mask_token_id, config.eos_token_id, config.pad_token_id) == (*IDS, 7)
    (folder / "tokenizer.json").unlink()
    config = load_student(str(folder), dtype=torch.float32, weights="random").config
    assert (config.mask_token_id, config.eos_token_id, config.pad_token_id) == (None, None, 7)
    given = load_tokenizer(str(STUDENT))
    config = read_named_config(str(folder), given)
    assert (config.mask_token_id, config.eos_token_id, config.pad_token_id) == (*IDS, 7)
    (folder / "config.json").write_text(json.dumps(written | {"mask_token_id": 999}))
    with pytest.raises(BadInput, match="mask token 999 is outside its"):
        load_student(str(folder), dtype=torch.float32, weights="random")


def test_tokenizers_need_a_mask_token_and_a_chat_template(tmp_path):
    folder = tmp_path / "tokenizer"
    shutil.copytree(STUDENT, folder)
    assert load_tokenizer(str(folder)).mask_token == "<|mask|>"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["mask_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(str(folder)).mask_token_id == IDS[0]  # the token is there, only undeclared
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|mask|>", "<|other|>"))
    assert load_tokenizer(str(folder)).mask_token == "<|other|>"  # by its id, which config.json names
    (folder / "config.json").unlink()
    with pytest.raises(BadInput, match="no mask token"):
        load_tokenizer(str(folder))
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(BadInput, match="no chat template"):
        load_tokenizer(str(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match="no tokenizer.json"):
        load_tokenizer(str(folder))


def test_configs_that_cannot_be_used_are_one_line(tmp_path):
    def refused(text: str) -> str:
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(BadInput) as error:
            read_config(str(tmp_path))
        assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)
        return str(error.value)

    assert "model_type 'bert' is none of llada2_moe" in refused('{"model_type": "bert"}')
    assert "not JSON" in refused("{")
    assert "not a JSON object" in refused("[]")
    assert "use_bias=True is not supported" in refused('{"model_type": "llada2_moe", "use_bias": true}')
    for size in ('"wide"', "-64", "0", "1e3", "true", "[1]"):
        assert "hidden_size is" in refused(f'{{"model_type": "qwen3", "hidden_size": {size}}}')
    assert "not JSON" in refused("[" * 100_000)


WRONG_FILES = {
    "tokenizer.json": ['{"model": ', '{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "[]", "", "\xff"],
    "tokenizer_config.json": ["{", "[]", '{"eos_token": 5}', "[" * 100_000],
    "chat_template.jinja": [
        "{% for %}",
        "\xff",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    ],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in WRONG_FILES.items() for text in texts])
def test_tokenizer_files_that_cannot_be_used_are_one_line(tmp_path, monkeypatch, name, text):
    monkeypatch.setattr("pipeline.models.chat_template.SECONDS", 0.2)
    folder = shutil.copytree(STUDENT, tmp_path / "tokenizer")
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInput) as error:
        load_tokenizer(str(folder))
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize(
    "ids", ['"mask_token_id": "x"', '"mask_token_id": -1', '"eos_token_id": "x"', '"eos_token_id": ["x"]']
)
def test_ids_that_are_none_are_one_line(tmp_path, ids):
    folder = shutil.copytree(STUDENT, tmp_path / "model")
    settings = json.loads((folder / "config.json").read_text()) | json.loads(f"{{{ids}}}")
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(BadInput, match="_token_id"):
        load_student(str(folder), dtype=torch.float32, weights="random")


def test_an_unknown_folder_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("no/such/folder", "nobody/no-such-model"):
        with pytest.raises(BadInput, match=f"{name}: no such folder, and the hub gives no model") as error:
            read_config(name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("requested", "experts", "world", "local", "size"),
    [("auto", 256, 16, 8, 8), ("auto", 12, 16, 8, 4), ("auto", 1, 8, 8, 1), ("auto", 8, 1, 1, 1), (4, 256, 8, 8, 4)],
)
def test_expert_parallel_size(requested, experts, world, local, size):
    assert resolve_expert_parallel_size(requested, experts=experts, world_size=world, local_world_size=local) == size


@pytest.mark.parametrize(
    ("requested", "experts", "world", "auto"),
    [(3, 256, 8, 8), (8, 12, 8, 4), (2, 1, 8, 1), (0, 8, 8, 8), (16, 256, 8, 8)],
)
def test_expert_parallel_sizes_that_do_not_divide_are_refused(requested, experts, world, auto):
    message = rf"expert_parallel_size {requested} must divide the ranks \({world}\) and the experts \({experts}\)"
    with pytest.raises(BadInput, match=f"^{message}; auto would take {auto}$"):
        resolve_expert_parallel_size(requested, experts=experts, world_size=world, local_world_size=world)
