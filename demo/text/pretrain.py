"""Autoregressive pretraining of a model of the study on real text: `python -m demo.text.pretrain MODEL STEPS FOLDER`.

From data/text/MODEL (config and tokenizer) to FOLDER/MODEL (with weights). Block diffusion begins from it, as in Fast-dLLM v2:
from scratch a masked model of this size stays at the frequencies of its tokens for longer than two cores have time.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, get_cosine_schedule_with_warmup

from demo.text.make_data import DATA
from pipeline.core.errors import BadInput, exit_code
from pipeline.core.files import read_json_lines
from pipeline.models.tokenizer import load_tokenizer

ROWS, RATE, MOST_TOKENS = 8, 2e-3, 256
IGNORED = -100


def main() -> None:
    """Reads rows and model, trains, writes the weights."""
    if len(sys.argv) != 4 or not sys.argv[2].isdecimal():
        raise BadInput("give MODEL STEPS FOLDER, as student 700 runs/study/text-base")
    name, steps, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    tokenizer = load_tokenizer(str(DATA / name))
    chats = [row["messages"] for row in read_json_lines(DATA / "train.jsonl")]
    rows = [tokenizer.apply_chat_template(chat, return_dict=False)[:MOST_TOKENS] for chat in chats]
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(DATA / name), dtype=torch.float32)
    train(model, rows, steps)
    made = folder / f".{name}"
    model.save_pretrained(made)
    for file in (DATA / name).iterdir():
        shutil.copy(file, made)  # the config as it was, with its diffusion's fields
    made.rename(folder / name)


def train(model: PreTrainedModel, rows: Sequence[Sequence[int]], steps: int) -> float:
    """Next-token cross-entropy over whole rows, requests included; the mean loss of the last hundred steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    order, losses = random.Random(0), []
    for step in range(1, steps + 1):
        chosen = [torch.tensor(row) for row in order.sample(rows, ROWS)]
        ids = pad_sequence(chosen, batch_first=True)
        labels = pad_sequence(chosen, batch_first=True, padding_value=IGNORED)
        loss = model(input_ids=ids, attention_mask=(labels != IGNORED).long(), labels=labels).loss
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses = [*losses[-99:], loss.item()]
        if step % 100 == 0 or step == steps:
            print(f"step {step}/{steps}  loss {sum(losses) / len(losses):.3f}", flush=True)
    return sum(losses) / len(losses)


if __name__ == "__main__":
    sys.exit(exit_code("pretrain", main))
