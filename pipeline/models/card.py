"""The model card of an export: how to use the model, where it comes from, and what it scores."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard
from transformers import PreTrainedConfig

from pipeline.core.files import write_text

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [diffusion-language-model, block-diffusion, distillation]
---

# {name}

A diffusion language model ({architecture}, blocks of {block_size} tokens): it fills in mask tokens (id {mask_token_id})
instead of predicting the next one. Made with TIDE ([arXiv 2604.26951](https://arxiv.org/abs/2604.26951)).

{usage}

Attention is bidirectional inside a block and goes back to all earlier blocks: pass `attention_mask` as bool
[batch, 1, queries, keys], True = may attend. Without it every token sees every other one.

## Scores

Not measured yet.

## Provenance

{origins}

```json
{provenance}
```
"""

TRANSFORMERS_USAGE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
chat = [{"role": "user", "content": "2 + 3?"}]
inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
# runs custom_generate/generate.py of the folder, which is yours to read first
ids = model.generate(**inputs, custom_generate=folder, trust_remote_code=True, max_new_tokens=256, threshold=0.9)
print(tokenizer.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True))
```

Plain `generate()`, which decodes from left to right, is not meant for this model."""

PUBLISHED_USAGE = """\
Weights and config.json are named as in {family}'s published checkpoints, for the code that reads those."""

LLADA2_USAGE = """\
Weights and config.json are named as in LLaDA2's published checkpoints. SGLang serves them (read from its source, 0.5.23; not
started):

    python -m sglang.launch_server --model-path FOLDER --trust-remote-code --dllm-algorithm LowConfidence \\
      --dllm-algorithm-config FOLDER/dllm.yaml --max-running-requests 8"""

SCORES = re.compile(r"(?<=\n## Scores\n\n).*?(?=\n## )", re.S)


def model_card(architecture: str, config: PreTrainedConfig, usage: str) -> str:
    """The text of README.md: use, origins, and the provenance with its resolved recipe. Scores: see `add_scores`."""
    provenance = config.provenance
    recipe = provenance.get("recipe")
    origins = [f"- initial weights: {recipe['student']['path'] if recipe else provenance['source']}"]
    if recipe:
        origins += [f"- teacher: {teacher['path']}" for teacher in recipe["teachers"]]
        origins += [f"- data: {s['name']} ({s['licence'] or 'licence not stated'})" for s in recipe["data"]["sources"]]
        origins += [f"- aligned dataset: manifest key {provenance['manifest_key']}"]
    return CARD.format(
        name=recipe["name"] if recipe else Path(provenance["source"]).name,
        architecture=architecture,
        block_size=config.block_size,
        mask_token_id=config.mask_token_id,
        usage=usage,
        origins="\n".join(origins),
        provenance=json.dumps(provenance, indent=1, ensure_ascii=False),
    )


@dataclass(frozen=True)
class ScoreRow:
    """One line of a card's table of scores."""

    task: str
    metric: str
    value: float | None
    """None before programs are run."""
    bounds: str
    """The 95% interval."""
    n: int
    preset: str
    preset_hash: str
    alarms: Sequence[str] = ()

    def markdown(self) -> str:
        value = "" if self.value is None else f"{self.value:.3f}"
        preset = f"{self.preset} ({self.preset_hash})"
        return f"| {self.task} | {self.metric} | {value} | {self.bounds} | {self.n} | {preset} |\n"


def add_scores(folder: Path, scores: Sequence[ScoreRow]) -> None:
    """Writes scores into the card of an export, over those that it has: a table, and the hub's `model-index`.

    A card's later change does not make its checkpoint another one: COMPLETE says nothing of README.md.
    """
    card = ModelCard.load(folder / "README.md")
    if title := re.search(r"^# (.*)$", card.text, re.M):
        card.data.model_name = title[1]
    card.data.eval_results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=score.task,
            dataset_name=score.task,
            metric_type=score.metric,
            metric_value=score.value,
            metric_args={"preset": score.preset, "preset_hash": score.preset_hash, "problems": score.n},
        )
        for score in scores
        if score.value is not None
    ]
    rows = "".join(score.markdown() for score in scores)
    alarms = "".join(f"\nAlarm, {score.task}: {alarm}.\n" for score in scores for alarm in score.alarms)
    table = f"| task | metric | value | 95% interval | n | preset |\n|---|---|---|---|---|---|\n{rows}{alarms}"
    card.text = SCORES.sub(lambda _: table, card.text, count=1)
    write_text(folder / "README.md", str(card))


def copy_scores(source: Path, folder: Path) -> None:
    """Takes the scores of another export's card over into this one's."""
    card, scored = ModelCard.load(folder / "README.md"), ModelCard.load(source / "README.md")
    card.data.model_name, card.data.eval_results = scored.data.model_name, scored.data.eval_results
    if scores := SCORES.search(scored.text):
        card.text = SCORES.sub(lambda _: scores[0], card.text, count=1)
    write_text(folder / "README.md", str(card))
