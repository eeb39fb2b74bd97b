"""metrics.jsonl and the progress line on the terminal: sums stay on the device and are reduced once a logging line."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Metrics:
    """Collects the sums of each loss term over steps; `write` reduces them over the ranks (collective) and logs a line."""

    def __init__(self, path: Path, names: list[str], *, first: int, steps: int, device: torch.device):
        self.path, self.names, self.first, self.steps, self.device = path, names, first, steps, device
        self._started = time.perf_counter()
        self._clear()

    def _clear(self) -> None:
        self._sums = torch.zeros(len(self.names), dtype=torch.float64, device=self.device)
        self._tokens, self._since, self._count = 0, time.perf_counter(), 0

    def add(self, means: Tensor, tokens: int) -> None:
        """One micro-batch: this rank's share of each term's mean ([terms], no host synchronisation), and its tokens."""
        self._sums += means
        self._tokens += tokens

    def step_done(self) -> None:
        """An optimizer step is complete."""
        self._count += 1

    def write(self, step: int, *, weights: list[float], **facts: Any) -> dict[str, Any]:
        """Averages since the last line, over all ranks: appends them to metrics.jsonl and prints them (rank 0)."""
        reduced = torch.cat([self._sums, torch.tensor([self._tokens], dtype=torch.float64, device=self.device)])
        dist.all_reduce(reduced)
        *terms, tokens = reduced.tolist()
        means = [x / max(1, self._count) for x in terms]
        seconds = time.perf_counter() - self._since
        line = {
            "kind": "train",
            "step": step,
            "loss": sum(w * m for w, m in zip(weights, means, strict=True)),
            **dict(zip(self.names, means, strict=True)),
            **facts,
            "tokens": int(tokens),
            "seconds": round(seconds, 4),
            "tokens_per_second": round(tokens / seconds, 1),
        }
        self.append(line)
        left = (time.perf_counter() - self._started) / (step - self.first) * (self.steps - step)
        terms = "  ".join(f"{name} {line[name]:.4f}" for name in self.names)
        pace = f"{seconds / max(1, self._count):.3f} s/step  {left:.0f} s left"
        self.say(f"step {step}/{self.steps}  loss {line['loss']:.4f}  {terms}  {pace}")
        self._clear()
        return line

    def validation(self, step: int, by_t: dict[str, float]) -> None:
        """A validation line: held-out loss at each timestep, and their mean."""
        loss = sum(by_t.values()) / len(by_t)
        self.append({"kind": "validation", "step": step, "loss": loss, "by_t": by_t})
        self.say(f"validation at step {step}: {loss:.4f}  " + "  ".join(f"t={t}: {x:.4f}" for t, x in by_t.items()))

    def append(self, record: dict[str, Any]) -> None:
        """One line of metrics.jsonl (rank 0)."""
        if dist.get_rank() == 0:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def say(self, text: str) -> None:
        """A line on the terminal (rank 0)."""
        if dist.get_rank() == 0:
            print(text, flush=True)
