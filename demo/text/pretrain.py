"""Autoregressive pretraining of a model of the study on real text: `python -m demo.text.pretrain MODEL STEPS FOLDER`.

From data/text/MODEL (config and tokenizer) to FOLDER/MODEL (with weights). Block diffusion begins from it, as in Fast-dLLM v2:
from scratch a masked model of this size stays at the frequencies of its tokens for longer than two cores have time.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModelForCausalLM, get_cosine_schedule_with_warmup

from demo.text.make_data import DATA
from pipeline.core.errors import exit_code
from pipeline.core.files import read_json_lines
from pipeline.models.tokenizer import load_tokenizer

ROWS, RATE, LONGEST = 8, 2e-3, 256
IGNORED = -100


def main() -> None:
    """Trains on whole rows, requests included."""
    name, steps, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
    tokenizer = load_tokenizer(str(DATA / name))
    texts = [
        tokenizer.apply_chat_template(row["messages"], return_dict=False)
        for row in read_json_lines(DATA / "train.jsonl")
    ]
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(DATA / name), dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    order, losses = random.Random(0), []
    for step in range(1, steps + 1):
        rows = [torch.tensor(row[:LONGEST]) for row in order.sample(texts, ROWS)]
        ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        labels = pad_sequence(rows, batch_first=True, padding_value=IGNORED)
        loss = model(input_ids=ids, attention_mask=(labels != IGNORED).long(), labels=labels).loss
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 100 == 0 or step == steps:
            print(f"{name} step {step}/{steps}  loss {sum(losses[-100:]) / len(losses[-100:]):.3f}", flush=True)
    made, whole = folder / f".{name}", folder / name
    model.save_pretrained(made)
    for file in (DATA / name).iterdir():
        shutil.copy(file, made)  # the config as it was, with its diffusion's fields
    made.rename(whole)


if __name__ == "__main__":
    sys.exit(exit_code("pretrain", main))
