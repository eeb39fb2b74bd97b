"""The demo's data, tokenizers and configurations."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import PreTrainedTokenizerFast

from demo.make_data import FILES
from demo.problems import WORDINGS, chat_rows, split_pairs, wrong_number

ROOT = Path(__file__).resolve().parents[1]
TEACHER, STUDENT = ROOT / "demo" / "teacher", ROOT / "demo" / "student"
MESSAGES = [
    {"role": "user", "content": "What is 12 plus 30?"},
    {"role": "assistant", "content": "The sum is 42."},
]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {folder.name: PreTrainedTokenizerFast.from_pretrained(folder) for folder in (TEACHER, STUDENT)}


def texts(row: dict) -> tuple[str, str]:
    user, assistant = row["messages"]
    assert (user["role"], assistant["role"]) == ("user", "assistant")
    return user["content"], assistant["content"]


def operands(row: dict) -> tuple[int, ...]:
    return tuple(sorted(int(number) for number in re.findall(r"\d+", texts(row)[0])))


def test_splits_are_disjoint_and_complete():
    pairs = split_pairs()
    everything = [pair for split in pairs.values() for pair in split]
    assert (len(pairs["validation"]), len(pairs["test"])) == (256, 500)
    assert sorted(everything) == [(a, b) for a in range(10, 100) for b in range(a, 100)]


def test_rows_keep_to_their_split():
    """Neither (a, b) nor (b, a) of a held-out row occurs in any training file."""
    pairs = {split: set(p) for split, p in split_pairs().items()}
    for settings_ in FILES.values():
        rows = chat_rows(**settings_ | {"count": min(settings_["count"], 4_000)})
        assert {operands(row) for row in rows} <= pairs[settings_["split"]]
    assert len({operands(row) for row in chat_rows(**FILES["test"])}) == 300, "every test problem is another pair"


def test_rows_follow_the_seed():
    assert chat_rows("test", 50, seed=7) == chat_rows("test", 50, seed=7)
    assert chat_rows("test", 50, seed=7) != chat_rows("test", 50, seed=8)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_share_of_wrong_answers(share):
    rows = chat_rows("train", 400, seed=3, wrong_share=share)
    wrong = 0
    for row in rows:
        (stated,) = re.findall(r"\d+", texts(row)[1])
        assert int(row["answer"]) == sum(operands(row))
        wrong += stated != row["answer"]
    assert wrong == round(share * 400)


def test_dropped_carries_are_wrong_with_a_system():
    """In exactly that share of the rows, the answer is ten too low, and only where the units carry."""
    rows = chat_rows("train", 400, seed=3, no_carry_share=0.3, smallest_sum=100)
    stated = [int(re.findall(r"\d+", texts(row)[1])[0]) for row in rows]
    wrong = [row for row, number in zip(rows, stated, strict=True) if number != int(row["answer"])]
    assert len(wrong) == 120
    for row, number in zip(rows, stated, strict=True):
        assert int(row["answer"]) == sum(operands(row)) and number in (sum(operands(row)), sum(operands(row)) - 10)
    assert all(sum(n % 10 for n in operands(row)) >= 10 for row in wrong)


def test_wrong_numbers_change_one_digit():
    rng = random.Random(0)
    for number in range(20, 199):
        wrong = str(wrong_number(number, rng))
        assert len(wrong) == len(str(number)) and sum(a != b for a, b in zip(wrong, str(number), strict=True)) == 1


def test_all_wordings_occur():
    rows = chat_rows("train", 400, seed=1)
    answers = {re.sub(r"\d+|[a-z]+s\b(?! the)", "_", texts(row)[1]) for row in rows}
    assert len(answers) >= len(WORDINGS) == 4
    assert all("{" not in text for row in rows for text in texts(row))


def test_committed_data_is_what_the_generator_gives():
    for name in ("student_train", "validation", "test"):
        rows = [json.loads(line) for line in (ROOT / f"demo/data/{name}.jsonl").read_text().splitlines()]
        assert rows == chat_rows(**FILES[name])


def test_make_data_is_deterministic(tmp_path):
    """The script form; its files are the functions' rows."""
    command = [sys.executable, "demo/make_data.py", "--folder", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert {path.stem for path in tmp_path.iterdir()} == set(FILES)
    for name, settings_ in FILES.items():
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert rows == chat_rows(**settings_)


def test_make_tokenizers_gives_the_committed_files(tmp_path):
    command = [
        sys.executable,
        "demo/make_tokenizers.py",
        "--teacher",
        str(tmp_path / "t"),
        "--student",
        str(tmp_path / "s"),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for made, committed in ((tmp_path / "t", TEACHER), (tmp_path / "s", STUDENT)):
        for file in made.iterdir():
            assert file.read_bytes() == (committed / file.name).read_bytes(), file.name


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(max_examples=60, deadline=None)
def test_tokenizers_keep_every_character(tokenizers, text):
    for tokenizer in tokenizers.values():
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_digits_stand_alone(tokenizers):
    for tokenizer in tokenizers.values():
        pieces = tokenizer.convert_ids_to_tokens(tokenizer("She has 163 apples, 20 more.").input_ids)
        assert [p for p in pieces if re.search(r"\d", p) and not p.startswith("<0x")] == list("16320")


def test_the_fast_teacher_tokenizer_is_the_sentencepiece_model(tokenizers):
    model = sentencepiece.SentencePieceProcessor(str(TEACHER / "tokenizer.model"))
    for text in [t for row in chat_rows("test", 100, seed=0) for t in texts(row)] + [" é  😀\n", ""]:
        assert tokenizers["teacher"](text).input_ids == model.encode(text)


def test_tokenizers_cut_in_different_places(tokenizers):
    """There are words that the teacher cuts finer, and pieces of the teacher's that span several student tokens."""

    def ends(tokenizer, text):
        return {end for _, end in tokenizer(text, return_offsets_mapping=True).offset_mapping}

    answers = [texts(row)[1] for row in chat_rows("test", 200, seed=0)]
    both = [(ends(tokenizers["student"], text), ends(tokenizers["teacher"], text)) for text in answers]
    assert sum(len(student - teacher) > 0 for student, teacher in both) > 40
    assert sum(len(teacher - student) > 0 for student, teacher in both) > 40


def test_chat_templates(tokenizers):
    chats = {name: t.apply_chat_template(MESSAGES, tokenize=False) for name, t in tokenizers.items()}
    assert chats["teacher"] == (
        "<role>HUMAN</role>What is 12 plus 30?<|role_end|><role>ASSISTANT</role>The sum is 42.<|role_end|>"
    )
    assert chats["student"] == (
        "<|im_start|>user\nWhat is 12 plus 30?<|im_end|>\n<|im_start|>assistant\nThe sum is 42.<|im_end|>\n"
    )
    for name, tokenizer in tokenizers.items():
        prompt = tokenizer.apply_chat_template(MESSAGES[:1], tokenize=False, add_generation_prompt=True)
        assert chats[name].startswith(prompt)
        assert chats[name].removeprefix(prompt).startswith("The sum is 42." + tokenizer.eos_token)
        ids = tokenizer(chats[name], add_special_tokens=False).input_ids
        assert ids.count(tokenizer.eos_token_id) == 2 and tokenizer.mask_token_id not in ids


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_configurations_fit_their_tokenizers(tokenizers, name):
    config = json.loads((ROOT / "demo" / name / "config.json").read_text())
    tokenizer = tokenizers[name]
    assert config["vocab_size"] >= len(tokenizer)
    for role in ("mask", "eos", "pad"):
        assert config[f"{role}_token_id"] == getattr(tokenizer, f"{role}_token_id")
    longest = max(
        len(tokenizer.apply_chat_template(row["messages"]).input_ids) for row in chat_rows("train", 1_000, seed=1)
    )
    assert longest <= 80 < config["max_position_embeddings"]


def test_shipped_models_are_small():
    """At most 4 and 1 MB of safetensors, and the teacher's selection bias is in use."""
    files = list(TEACHER.glob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    assert (STUDENT / "model.safetensors").stat().st_size <= 1_000_000
    for file in files:
        with safe_open(file, "pt") as tensors:
            biases = [name for name in tensors.keys() if name.endswith("gate.expert_bias")]
            assert biases and all(tensors.get_tensor(name).abs().max() > 0 for name in biases)
