"""Export of a trained model: a folder that plain transformers opens (LLaDA2: with the names of its published files)."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from pipeline.models.llada2_moe import LLaDA2MoeModelLM
from pipeline.models.weights import HEAD, checkpoint_views
from pipeline.run_directory import write_text

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
[batch, 1, queries, keys], True = may attend. Without it every token sees every other one; `generate()`, which decodes
from left to right, is not meant for this model.

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
logits = model(input_ids, attention_mask=mask, position_ids=positions).logits
```"""

LLADA2_USAGE = "Weights and config.json are named as in LLaDA2's published checkpoints, for the code that reads those."


def export(
    model: PreTrainedModel,
    state_dict: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerFast,
    folder: Path | str,
    *,
    provenance: dict[str, Any],
) -> None:
    """Writes safetensors, config.json, tokenizer and README.md. One process; the model gives names and config only.

    state_dict: the whole model under its own names, in the dtype to be written; gathered, buffers included.
    provenance: JSON values for config.json and the card; `recipe` is the resolved recipe. Raises ValueError when
    state_dict lacks a tensor.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = model.state_dict().keys() - ({HEAD} if model.config.tie_word_embeddings else set())
    if missing := names - state_dict.keys():
        raise ValueError(f"state_dict lacks {sorted(missing)[:3]}")
    views = checkpoint_views(model, {name: state_dict[name] for name in sorted(names)})
    # Cloned: parts of a stacked tensor share its storage, which safetensors refuses.
    save_torch_state_dict({name: view.detach().cpu().clone() for name, view in views.items()}, folder)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o644)  # safetensors lets nobody but the owner read

    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = next(iter(views.values())).dtype
    config.is_causal = False
    config.block_size = provenance["recipe"]["student"]["block_size"]
    config.provenance = provenance
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_text(folder / "README.md", _card(model, config, provenance))


def _card(model: PreTrainedModel, config: Any, provenance: dict[str, Any]) -> str:
    recipe = provenance["recipe"]
    origins = [f"- initial weights: {recipe['student']['path']}"]
    origins += [f"- teacher: {teacher['path']}" for teacher in recipe["teachers"]]
    origins += [f"- data: {s['name']} ({s['licence'] or 'licence not stated'})" for s in recipe["data"]["sources"]]
    return CARD.format(
        name=recipe["name"],
        architecture=type(model).__name__,
        block_size=config.block_size,
        mask_token_id=config.mask_token_id,
        usage=LLADA2_USAGE if isinstance(model, LLaDA2MoeModelLM) else TRANSFORMERS_USAGE,
        origins="\n".join(origins),
        provenance=json.dumps(provenance, indent=1, ensure_ascii=False),
    )
