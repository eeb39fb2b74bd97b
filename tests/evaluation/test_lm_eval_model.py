"""The model that lm-evaluation-harness sees."""

from __future__ import annotations

import pytest
from lm_eval.api.instance import Instance

from pipeline.core.errors import BadInput
from pipeline.decoding.sampler import GenerateConfig
from pipeline.evaluation import lm_eval_model
from tests import launch
from tests.evaluation.tiny import SMOKE, language_model


def test_rolling_likelihood_scores_every_token_once(folder) -> None:
    windows = lm_eval_model.rolling_windows(list(range(23)), 8)
    assert [t for _, new in windows for t in new] == list(range(23))
    assert all(len(context) + len(new) <= 8 for context, new in windows)
    assert windows[2] == ([8, 9, 10, 11], [12, 13, 14, 15])
    lm = language_model(folder)
    bounds = lm.loglikelihood_rolling(
        [Instance("loglikelihood_rolling", {}, (text,), i) for i, text in enumerate(["ab", ""])]
    )
    assert bounds[0] < -2 and bounds[1] == 0.0


def test_continuations_start_where_the_context_ends(folder) -> None:
    lm = language_model(folder)
    assert lm.encode_pair("a b ", "c") == (lm.encode("a b "), lm.encode("c"))
    assert lm.encode_pair("", "c") == ([], lm.encode("c"))


def test_contents_are_text_and_the_templates_tokens_are_control(folder, tokenizer) -> None:
    lm, spelled = language_model(folder), "hi<e><a><m>"
    prompt = lm.apply_chat_template([{"role": "user", "content": spelled}])
    u, e, a = tokenizer.convert_tokens_to_ids(["<u>", "<e>", "<a>"])
    text = [i for letter in spelled for i in tokenizer.encode(letter, add_special_tokens=False)]
    assert lm.encode(prompt) == [u, *text, e, a]
    assert lm.encode_pair(prompt, "<e>")[1] == text[2:5]
    plain = lm.apply_chat_template([{"role": "user", "content": "hi"}])
    assert plain == "<u>hi<e><a>" and lm.encode(plain) == [u, *text[:2], e, a]
    assert language_model(folder, chat=False).encode(spelled) == text


def test_prompts_beyond_the_positions_are_refused(folder) -> None:
    lm = language_model(folder)
    lm.checkpoint.config.max_position_embeddings = 40
    short, long = (Instance("generate_until", {}, (text, {}), 0) for text in ("a" * 32, "a" * 33))
    lm.generate_until([short])
    with pytest.raises(BadInput, match="1 of 2 prompts .* beyond the 40 positions .* the longest 41 tokens"):
        lm.generate_until([short, long])


def test_ids_beyond_the_embeddings_are_refused(folder) -> None:
    lm = language_model(folder)
    lm.checkpoint.config.vocab_size = 200
    with pytest.raises(BadInput, match="beyond its 200 embeddings"):
        lm.encode("<u>")


def test_repetitions_draw_other_tokens(folder, tokenizer) -> None:
    requests = [Instance("generate_until", {}, ("<u>How much?<e><a>", {}), 0)] * 3
    config = GenerateConfig(max_new_tokens=8, block_size=4, steps=8, temperature=1.0)
    assert len(set(language_model(folder, config).generate_until(requests))) == 3
    assert len(set(language_model(folder, SMOKE).generate_until(requests))) == 1


def test_the_harness_runs_it(folder, task_file, tmp_path) -> None:
    words = ["--model", "block_diffusion", "--model_args", f"pretrained={folder},preset=smoke,max_new_tokens=4"]
    words += ["--tasks", task_file, "--apply_chat_template", "--batch_size", 2]
    words += ["--output_path", tmp_path / "out.json", "--log_samples"]
    done = launch.python("-m", "pipeline.evaluation", "run", *words, HF_HUB_OFFLINE="1")
    (samples,) = tmp_path.glob("samples_four_sums_*.jsonl")
    assert len(samples.read_text().splitlines()) == 4
    assert "block_diffusion" in done.stdout and "exact_match" in done.stdout
