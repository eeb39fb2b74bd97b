"""Exports for servers of block diffusion hold what those read, and give the live model's logits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast, Qwen3ForCausalLM

from pipeline import export as stage
from pipeline.core.errors import BadInput
from pipeline.decoding.canvas import GenerateConfig
from pipeline.decoding.sampler import generate
from pipeline.models.card import ScoreRow, add_scores
from pipeline.models.configs import read_named_config
from pipeline.models.export import as_exported, export
from pipeline.models.export_files.generate import generate as exported_generate
from pipeline.models.export_formats import FORMATS, Exported, check_format, export_again
from pipeline.models.loading import load_student, load_teacher
from pipeline.models.tokenizer import load_tokenizer
from tests import test_families as families
from tests.alignment_tokenizers import byte_level
from tests.check_serving import MASK_ID, check_export
from tests.test_models_export import PROVENANCE, export_student, some_mask
from tests.test_models_llada2 import golden
from tests.test_models_loading import CONFIG, STUDENT

CHATML = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = 151_643  # of Qwen2's and Qwen3's vocabulary
REAL_WIDTHS = {
    "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 2, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
}  # fmt: skip
"""Qwen3-0.6B's, but for 28 layers."""
NARROW = {"hidden_size": 16, "num_hidden_layers": 1, "tie_word_embeddings": False}


def tokenizer_of(folder: Path, added: int, words: int = WORDS) -> PreTrainedTokenizerFast:
    """As many words as Qwen's, so many added tokens, and the mask token."""
    rules = json.loads(byte_level().backend_tokenizer.to_str())
    vocabulary = rules["model"]["vocab"]
    vocabulary |= {f"word {number}": number for number in range(len(vocabulary), words)}
    tokens = [*CHATML, *(f"<|added {number}|>" for number in range(added - len(CHATML))), "<|mask|>"]
    entry = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    rules["added_tokens"] = [entry | {"id": words + i, "content": token} for i, token in enumerate(tokens)]
    (folder / "words.json").write_text(json.dumps(rules))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "words.json"),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        mask_token="<|mask|>",
        chat_template=byte_level().chat_template,
    )
    assert tokenizer.mask_token_id == words + added
    return tokenizer


def write_student(folder: Path, added: int, **changes) -> PreTrainedTokenizerFast:
    """The demo's student with Qwen's vocabulary: config.json and tokenizer."""
    folder.mkdir()
    tokenizer = tokenizer_of(folder, added)
    tokenizer.save_pretrained(folder)
    special = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("mask", "eos", "pad")}
    (folder / "config.json").write_text(json.dumps(CONFIG | {"vocab_size": 151_936} | special | changes))
    return tokenizer


def serve(folder: Path, added: int, dtype: torch.dtype, **changes):
    """A random student and its export as SDAR, through the export of a checkpoint."""
    tokenizer = write_student(folder / "start", added, **changes)
    live = load_student(str(folder / "start"), dtype=dtype, weights="random").eval()
    export(live, live.state_dict(), tokenizer, folder / "export", provenance=PROVENANCE)
    add_scores(folder / "export", [ScoreRow("sums", "exact_match", 0.5, "0.400 to 0.600", 90, "demo", "abcd")])
    export_again(str(folder / "export"), "sdar", folder / "sdar")
    return live, tokenizer, folder / "sdar"


def assert_served(live, folder: Path) -> Qwen3ForCausalLM:
    """Servers take the folder, and its logits are the live model's but for the mask's place."""
    findings = check_export(folder)
    assert findings["errors"] == [] and all("block_size 32" in line for line in findings["warnings"])
    served = Qwen3ForCausalLM.from_pretrained(folder).eval()
    mask = live.config.mask_token_id
    ids, allowed = torch.arange(24).view(2, 12), some_mask(2, 12)
    there = ids.clone()
    ids[:, ::3], there[:, ::3] = mask, MASK_ID
    with torch.no_grad():
        ours, theirs = live(ids, attention_mask=allowed).logits, served(there, attention_mask=allowed).logits
    theirs[..., [mask, MASK_ID]] = theirs[..., [MASK_ID, mask]]
    assert torch.equal(ours, theirs)
    return served


@pytest.mark.parametrize(("added", "changes"), [(26, {}), (22, NARROW)], ids=["qwen3", "qwen2"])
def test_a_student_as_servers_take_it(added, changes, tmp_path):
    live, tokenizer, folder = serve(tmp_path, added, torch.float32, **changes)
    served = assert_served(live, folder)
    assert any("model_type" in line or "architectures" in line for line in check_export(tmp_path / "export")["errors"])
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    theta = CONFIG["rope_parameters"]["rope_theta"]
    assert (config.model_type, config.rope_theta, config.block_size) == ("sdar", theta, 32)
    text = "<|im_start|>user\n2 + 3?<|im_end|>\n<|added 18|>"
    moved = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert moved.mask_token_id == MASK_ID and moved(text).input_ids == tokenizer(text).input_ids
    assert "block_size: 32" in (folder / "dllm.yaml").read_text()
    card = ModelCard.load(folder / "README.md")
    assert "--dllm-block-length 32" in card.text and "| sums | exact_match | 0.500 |" in card.text
    assert card.data.eval_results[0].metric_value == 0.5

    prompt = tokenizer("2 + 3?").input_ids
    config = GenerateConfig(max_new_tokens=8, block_size=32, steps=8, blocks="training")
    rows = exported_generate(served, torch.tensor([prompt]), max_new_tokens=8)
    assert rows[0, len(prompt) :].tolist() == generate(live, [prompt], config)[0]


def test_what_is_wrong_with_a_folder_is_all_found(tmp_path):
    sizes = dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings", "head_dim"), 4)
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    config = {"architectures": ["SDARForCausalLM"], "model_type": "llama", **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    unigram = {"vocab": [[f"word {n}", -1.0] for n in range(6)]}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": unigram}))
    (tmp_path / "tokenizer_config.json").write_text("{")
    save_file({"model.norm.weight": torch.ones(4)}, tmp_path / "model-1.safetensors")
    (tmp_path / "model-2.safetensors").write_bytes((tmp_path / "model-1.safetensors").read_bytes()[:-3])
    findings = check_export(tmp_path)
    errors, warnings = "\n".join(findings["errors"]), "\n".join(findings["warnings"])
    assert "model_type is 'llama'" in errors
    assert "tokenizer_config.json: not JSON" in errors
    assert "tokenizer.json: id 5 is outside the 4 embeddings" in errors
    assert "model-2.safetensors: no whole safetensors file" in errors
    assert "2 weight files and no model.safetensors.index.json" in errors
    assert "13 missing weights" in errors
    assert "no block_size; the servers take 4" in warnings


@pytest.mark.slow
def test_a_student_of_real_widths_as_servers_take_it(tmp_path):
    live, _, folder = serve(tmp_path, 26, torch.bfloat16, **REAL_WIDTHS)
    assert_served(live, folder)


def test_a_token_in_the_place_of_the_mask_changes_with_it(tmp_path):
    live, _, folder = serve(tmp_path, 30, torch.float32, **NARROW)  # the mask behind 151669
    assert_served(live, folder)
    moved = PreTrainedTokenizerFast.from_pretrained(folder)
    assert moved.convert_ids_to_tokens([MASK_ID, WORDS + 30]) == ["<|mask|>", "<|added 23|>"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sdar", {"model_type": "llama"}, "llama's shape is not Qwen3's"),
        ("sdar", {}, "mask id is 151669, of Qwen3's tokenizer, and there are 336 embeddings: .* mask id is 325"),
        ("sdar", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_type linear"),
        ("sdar", {"hidden_act": "gelu"}, "hidden_act is gelu"),
        ("sdar", {"blocks": "response"}, "count blocks from the start of the sequence"),
        ("sdar", {"provenance": {"recipe": {"student": {"input": "full"}}}}, "student.input full"),
        ("llada2", {}, "no LLaDA2, but qwen3"),
        ("transformers", {"block_size": None}, "names no block_size"),
    ],
)
def test_a_student_that_a_format_cannot_hold(name, changes, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "block_size": 32, "provenance": {}, **changes}))
    tokenizer = load_tokenizer(str(STUDENT))
    with pytest.raises(BadInput, match=f"x cannot be exported as {name}: .*{message}"):
        check_format(name, read_named_config(str(tmp_path), tokenizer), tokenizer, "x")


def test_the_command_refuses_in_one_line_and_writes_nothing(tmp_path, run_command):
    checkpoint = tmp_path / "step-00000007"
    export_student(checkpoint / "export")
    again = tmp_path / "again"

    def run(name: str, output: Path) -> tuple[int, str, str]:
        return run_command(stage, "--checkpoint", checkpoint, "--format", name, "--output", output)

    code, _, error = run("sdar", tmp_path / "sdar")
    assert code == 2 and "another tokenizer" in error and error.count("\n") == 1 and not (tmp_path / "sdar").exists()
    assert run("transformers", again)[0] == 0
    assert (again / "config.json").read_text() == (checkpoint / "export/config.json").read_text()
    assert (again / "custom_generate/generate.py").is_file()
    code, _, error = run("transformers", again)
    assert code == 2 and "exists already" in error


@pytest.mark.parametrize("name", ["llada", "dream", "sdar", "fast_dllm_v2"])
def test_a_dense_family_goes_out_as_it_came(name, tmp_path):
    facts, tensors = families.golden(name)
    start = families.publish(tmp_path / "start", name)
    live = load_student(str(start), dtype=torch.float32)
    export(live, live.state_dict(), byte_level(), tmp_path / "out", provenance=PROVENANCE)
    before, after = load_file(start / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    kept = facts["config"].keys() - {"block_size", "torch_dtype", "dtype"}
    assert {name: written[name] for name in kept} == {name: facts["config"][name] for name in kept}
    (tmp_path / "out" / "tokenizer.json").unlink()  # of no family
    case = families.cases(tensors)["full"]
    model = load_teacher(str(tmp_path / "out"), dtype=torch.float32, device="cpu")
    logits = model(case["input_ids"], attention_mask=families.visible(case)).logits
    torch.testing.assert_close(logits, case["logits"], atol=2e-5, rtol=0)


def test_a_family_goes_out_as_transformers_class_where_that_says_all(tmp_path):
    live = load_student(str(families.publish(tmp_path / "llada", "llada")), dtype=torch.float32)
    FORMATS["transformers"].write(Exported(live, live.state_dict(), byte_level()), tmp_path / "out", PROVENANCE)
    case = families.cases(families.golden("llada")[1])["full"]
    model = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(model(case["input_ids"]).logits, case["logits"], atol=2e-5, rtol=0)


def test_llada2_as_its_server_takes_it(tmp_path):
    sizes = {
        "vocab_size": 157_184,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    }
    tokenizer = tokenizer_of(tmp_path, added=3, words=156_892)
    special = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("mask", "eos", "pad")}
    (tmp_path / "config.json").write_text(json.dumps(golden("llada2_tiny")[0]["config"] | sizes | special))
    live = load_student(str(tmp_path), dtype=torch.float32, weights="random")
    export(live, live.state_dict(), tokenizer, tmp_path / "export", provenance=PROVENANCE)
    export_again(str(tmp_path / "export"), "llada2", tmp_path / "served")
    written = json.loads((tmp_path / "served" / "config.json").read_text())
    # sglang 0.5.23, models/llada2.py: what it reads without a default, or with one that is not LLaDA2's
    wanted = {
        "moe_router_enable_expert_bias": True, "score_function": "sigmoid", "router_dtype": "fp32", "norm_topk_prob": True,
        "use_bias": False, "use_qkv_bias": False, "tie_word_embeddings": False, "embedding_dropout": 0.0,
        "hidden_act": "silu", "architectures": ["LLaDA2MoeModelLM"], "mask_token_id": 156_895, "block_size": 32,
    }  # fmt: skip
    assert wanted.items() <= written.items()
    names = ["n_group", "topk_group", "routed_scaling_factor", "num_shared_experts", "first_k_dense_replace"]
    assert all(written[name] is not None for name in (*names, "head_dim", "partial_rotary_factor", "rope_theta"))
    config = AutoConfig.from_pretrained(tmp_path / "served", trust_remote_code=True)
    assert type(config).__name__ == "LLaDA2MoeConfig" and config.n_group == live.config.n_group
    again = load_student(str(tmp_path / "served"), dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), live.parameters(), strict=True))
    with pytest.raises(BadInput, match="mask id is 156895, its own is 1"):
        live.config.mask_token_id = 1
        check_format("llada2", as_exported(live.config, PROVENANCE), byte_level(), "x")
