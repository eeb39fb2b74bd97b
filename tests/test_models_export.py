"""An exported folder opens again, here and with plain transformers, and gives the live model's logits."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, Qwen3ForCausalLM

from pipeline.core.checkpoint_files import inventory
from pipeline.models.card import ScoreRow, add_scores
from pipeline.models.export import export, rope_of_transformers_4
from pipeline.models.loading import load_student, load_teacher
from pipeline.models.tokenizer import load_tokenizer
from tests.test_models_llada2 import golden, pair_mask, write_checkpoint
from tests.test_models_loading import STUDENT

PROVENANCE = {
    "recipe": {
        "name": "small-student",
        "student": {"path": "demo/student", "block_size": 32},
        "teachers": [{"path": "demo/teacher"}],
        "data": {"sources": [{"name": "sums", "licence": "CC0-1.0"}, {"name": "chat", "licence": ""}]},
    },
    "manifest_key": "0123abcd",
    "step": 7,
}
SCORES = [
    ScoreRow("sums", "exact_match", 0.5, "0.400 to 0.600", 90, "demo", "abcd"),
    ScoreRow("chats", "", None, "", 3, "demo", "abcd", ["a third is cut off"]),
]


def export_student(folder: Path) -> PreTrainedModel:
    """A student as the demo's, with random weights, and its export in the folder."""
    live = load_student(str(STUDENT), dtype=torch.float32, weights="random")
    export(live, live.state_dict(), load_tokenizer(str(STUDENT)), folder, provenance=PROVENANCE)
    return live


def some_mask(batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(batch, 1, length, length, generator=generator) < 0.5) | torch.eye(length, dtype=torch.bool)


@pytest.mark.parametrize("tied", [True, False])
def test_a_student_opens_with_plain_transformers(tied, tmp_path):
    shutil.copytree(STUDENT, tmp_path / "start")
    config = json.loads((STUDENT / "config.json").read_text()) | {"tie_word_embeddings": tied}
    (tmp_path / "start" / "config.json").write_text(json.dumps(config))
    live = load_student(str(tmp_path / "start"), dtype=torch.float32, weights="random").eval()
    folder = tmp_path / "export"
    export(live, live.state_dict(), load_tokenizer(str(STUDENT)), folder, provenance=PROVENANCE)

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model) is Qwen3ForCausalLM and model.config._attn_implementation == "sdpa"
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) is not tied
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    ids, mask = torch.arange(24).view(2, 12), some_mask(2, 12)
    with torch.no_grad():
        assert torch.equal(model(ids, attention_mask=mask).logits, live(ids, attention_mask=mask).logits)
        # is_causal: false is honoured where no 4-D mask is given.
        everything = live(ids, attention_mask=torch.ones(2, 1, 12, 12, dtype=torch.bool)).logits
        assert torch.equal(model(ids).logits, everything)

    said = json.loads((folder / "config.json").read_text())  # as transformers 4 and servers read it
    assert said["rope_theta"] == said["rope_parameters"]["rope_theta"] == live.config.rope_parameters["rope_theta"]
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    written = model.config
    assert written.is_causal is False and written.block_size == 32 and written.provenance == PROVENANCE
    assert written.mask_token_id == live.config.mask_token_id and written.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "2 + 3?"}], tokenize=False)
    assert tokenizer(text).input_ids == load_tokenizer(str(STUDENT))(text).input_ids
    again = load_student(str(folder), dtype=torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), live.parameters(), strict=True))


def test_scaled_rotary_positions_are_said_as_before():
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}
    assert rope_of_transformers_4({"rope_parameters": rope}) == {
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
    }
    assert rope_of_transformers_4({"rope_theta": 1e6}) == {}


def test_the_card_names_origins(tmp_path):
    live = load_student(str(STUDENT), dtype=torch.bfloat16, weights="random")
    export(live, live.state_dict(), load_tokenizer(str(STUDENT)), tmp_path, provenance=PROVENANCE)
    card = (tmp_path / "README.md").read_text()
    origins = ("- teacher: demo/teacher", "- data: sums (CC0-1.0)", "- data: chat (licence not stated)", "key 0123abcd")
    for line in ("# small-student", *origins, json.dumps(PROVENANCE, indent=1)):
        assert line in card
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o044 == 0o044


def test_scores_come_into_the_card_and_are_replaced(tmp_path):
    export_student(tmp_path)
    before, files = ModelCard.load(tmp_path / "README.md"), inventory(tmp_path)
    assert "## Scores\n\nNot measured yet.\n\n## Provenance" in before.text
    for value in (0.25, 0.5):
        add_scores(tmp_path, [replace(score, value=score.value and value) for score in SCORES])
    card = ModelCard.load(tmp_path / "README.md")
    assert card.text.count("| sums |") == 1 and card.text.count("Alarm, chats: a third is cut off.") == 1
    assert "| sums | exact_match | 0.500 | 0.400 to 0.600 | 90 | demo (abcd) |\n| chats |  |  |  | 3 |" in card.text
    assert card.text.partition("## Provenance")[2] == before.text.partition("## Provenance")[2]
    (result,) = card.data.eval_results
    assert (card.data.model_name, result.dataset_name, result.metric_value) == ("small-student", "sums", 0.5)
    assert before.data.to_dict().items() <= card.data.to_dict().items()
    assert inventory(tmp_path) == files  # of which COMPLETE keeps checksums


def test_llada2_goes_out_under_its_official_names(tmp_path):
    start = write_checkpoint(tmp_path / "start", "llada2_tiny")
    live = load_student(str(start), dtype=torch.float32).eval()
    folder = tmp_path / "export"
    export(live, live.state_dict(), load_tokenizer(str(STUDENT)), folder, provenance=PROVENANCE)
    before, after = load_file(start / "model.safetensors"), load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    published = json.loads((folder / "config.json").read_text())
    assert published["model_type"] == "llada2_moe" and published["architectures"] == ["LLaDA2MoeModelLM"]
    assert all(published[k] == v for k, v in golden("llada2_tiny")[0]["config"].items() if k != "use_cache")

    tensors = golden("llada2_tiny")[1]
    real = tensors["attention_mask_2d"].bool()
    model = load_teacher(str(folder), dtype=torch.float32, device="cpu")
    logits = model(tensors["input_ids"], attention_mask=pair_mask(real)).logits
    torch.testing.assert_close(logits[real], tensors["logits"][real], atol=2e-5, rtol=0)


def test_a_tensor_that_was_not_gathered_is_named(tmp_path):
    live = load_student(str(STUDENT), dtype=torch.float32, weights="random")
    state = live.state_dict()
    del state["model.norm.weight"], state["lm_head.weight"]  # the head is tied: not needed
    with pytest.raises(ValueError, match=r"lacks \['model.norm.weight'\]"):
        export(live, state, load_tokenizer(str(STUDENT)), Path(tmp_path), provenance=PROVENANCE)
