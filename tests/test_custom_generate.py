"""The decoding code that exports carry: token for token our sampler, and without the repository on the path."""

from __future__ import annotations

import json
import sys
from itertools import chain

import pytest
import torch
from transformers import AutoModelForCausalLM

from pipeline.decoding.canvas import GenerateConfig
from pipeline.decoding.sampler import generate
from pipeline.models.export import export
from pipeline.models.export_files.generate import generate as exported_generate
from pipeline.models.export_formats import FORMATS, Exported
from pipeline.models.loading import load_student, load_teacher
from pipeline.models.tokenizer import load_tokenizer
from tests import launch
from tests.test_families import publish
from tests.test_models_export import PROVENANCE
from tests.test_models_loading import STUDENT
from tests.test_sampler import CONFIGS, NEVER, PAD, PROMPTS, golden_model

CUTS = {"training": "sequence", "reference": "response"}
SAMPLING = [
    GenerateConfig(max_new_tokens=12, block_size=4, steps=12, temperature=1.0, seed=seed, blocks=blocks)
    for seed, blocks in enumerate(CUTS)
]


def settings(config: GenerateConfig) -> dict:
    """The same settings as arguments of `model.generate`."""
    names = ("max_new_tokens", "block_size", "steps", "threshold", "temperature", "seed")
    return {name: getattr(config, name) for name in names} | {"blocks": CUTS[config.blocks]}


def padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    """As a tokenizer with left padding gives them."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (longest - len(prompt)) + prompt for prompt in prompts])
    return {
        "input_ids": ids,
        "attention_mask": torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
    }


class Chunks:
    """A streamer that keeps what it is given."""

    def __init__(self) -> None:
        self.chunks: list[list[int]] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.chunks.append(value.tolist())

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("end", [NEVER, 62])
@pytest.mark.parametrize("config", CONFIGS + SAMPLING, ids=str)
def test_equals_our_sampler(config: GenerateConfig, end: int) -> None:
    model, _ = golden_model("sampler")
    model.config._attn_implementation = "sdpa"
    model.config.eos_token_id = model.generation_config.eos_token_id = end
    expected = generate(model, PROMPTS, config)
    prompts = padded(PROMPTS)
    start = prompts["input_ids"].shape[1]
    rows = exported_generate(model, **prompts, **settings(config))
    longest = max(map(len, expected))
    assert torch.equal(rows[:, :start], prompts["input_ids"])
    assert rows[:, start:].tolist() == [row + [PAD] * (longest - len(row)) for row in expected]

    streamer = Chunks()
    exported_generate(model, torch.tensor([PROMPTS[0]]), streamer=streamer, **settings(config))
    prompt, *chunks = streamer.chunks
    assert prompt == PROMPTS[0] and list(chain(*chunks)) == expected[0] and streamer.ended
    assert all(len(chunk) <= config.block_size for chunk in chunks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 4}, "num_beams"),
        ({"block_size": 0}, "block_size"),
        ({"blocks": "no"}, "blocks"),
        ({"input_ids": None}, "input_ids"),
    ],
    ids=str,
)
def test_what_it_cannot_follow_is_refused(arguments: dict, message: str) -> None:
    model, _ = golden_model("sampler")
    model.config._attn_implementation = "sdpa"
    with pytest.raises(ValueError, match=message):
        exported_generate(model, **{"input_ids": torch.tensor([[5]]), "block_size": 4, **arguments})


@pytest.mark.parametrize("name", ["dream", "fast_dllm_v2"])
def test_an_export_of_a_shifted_family_says_so_and_generates_as_we_do(name: str, tmp_path) -> None:
    """Opened by plain transformers; prompts shorter and longer than a block, of unequal lengths."""
    source = publish(tmp_path / name, name, block_size=4)
    live = load_teacher(str(source), dtype=torch.float32, device="cpu")
    exported = Exported(live, live.state_dict(), load_tokenizer(str(STUDENT)))
    FORMATS["transformers"].write(exported, tmp_path / "e", {"source": str(source)})
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "e", attn_implementation="sdpa")
    read_again = load_student(str(tmp_path / "e"), dtype=torch.float32).eval()
    assert type(opened).__name__ == "Qwen2ForCausalLM" and opened.config.shifted
    prompts = [[64, 74], [9] * 8, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]
    for config in (
        GenerateConfig(10, 4, 10, blocks="training"),
        GenerateConfig(10, 4, 10, threshold=0.05, blocks="training"),
        GenerateConfig(10, 4, 5),
    ):
        for model in (opened, read_again, live):
            model.config.eos_token_id = model.generation_config.eos_token_id = NEVER
            model.config.pad_token_id = PAD
        expected = generate(live, prompts, config)
        assert generate(read_again, prompts, config) == expected
        for inputs, wanted in ((padded(prompts), expected), (padded(prompts[:1]), expected[:1])):
            rows = exported_generate(opened, **inputs, **settings(config))
            assert rows[:, inputs["input_ids"].shape[1] :].tolist() == wanted


ALONE = """
import importlib.util, json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer, TextStreamer

assert importlib.util.find_spec("pipeline") is None
folder = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
model = AutoModelForCausalLM.from_pretrained(folder)
inputs = tokenizer(["2 + 3?", "17 + 25 is what?"], return_tensors="pt", padding=True)
options = {"custom_generate": folder, "trust_remote_code": True, "max_new_tokens": 40, "threshold": 0.02}
rows = model.generate(**inputs, **options)
print(json.dumps(rows[:, inputs.input_ids.shape[1]:].tolist()))
model.generate(**tokenizer("2 + 3?", return_tensors="pt"), **options, streamer=TextStreamer(tokenizer, skip_prompt=True))
"""


def test_an_export_generates_by_itself(tmp_path) -> None:
    """In a fresh process, with plain transformers, without our code."""
    live = load_student(str(STUDENT), dtype=torch.float32, weights="random").eval()
    tokenizer = load_tokenizer(str(STUDENT))
    export(live, live.state_dict(), tokenizer, tmp_path / "export", provenance=PROVENANCE)
    prompts = [tokenizer("2 + 3?").input_ids, tokenizer("17 + 25 is what?").input_ids]
    expected = generate(
        live, prompts, GenerateConfig(max_new_tokens=40, block_size=32, steps=40, threshold=0.02, blocks="training")
    )
    alone = {"PYTHONPATH": "", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = launch.run(sys.executable, "-c", ALONE, tmp_path / "export", cwd=tmp_path, **alone)
    rows, _, text = done.stdout.partition("\n")
    longest = max(map(len, expected))
    assert json.loads(rows) == [row + [live.config.pad_token_id] * (longest - len(row)) for row in expected]
    assert text == tokenizer.decode(expected[0]) + "\n"
