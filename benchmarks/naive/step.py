"""The training step written plainly, with the work of the published trainer: the yardstick, not a part of the pipeline.

Padded rows, the whole [xt, x0], full logits of every position on both sides, a pass over the student's logits for either
loss, one teacher pass per view, dense matrices from tokens to chunks. Two things are cheaper than there: views are merged in
place, and a teacher that shares the tokenizer reads xt alone. Loss and gradient equal the pipeline's
(tests/test_benchmarks.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.core.rng import generator_for
from pipeline.data.batch import Sample
from pipeline.method.attention_mask import block_diffusion_mask
from pipeline.method.calm import calm
from pipeline.method.compdemo import complementary_split
from pipeline.method.kl import kl
from pipeline.method.masking import complete_chunks, draw_mask, draw_t, touched_chunks
from pipeline.method.tidal import cross_entropy_weight, tidal_lambda


class NaiveStep:
    """Loss of a micro-batch: Reverse CALM (`tidal=False`) or TIDAL over a shared vocabulary, both beside CE."""

    def __init__(self, student: nn.Module, teacher: nn.Module, *, block_size: int, tidal: bool, compdemo: bool):
        self.student, self.teacher = student, teacher
        self.block_size, self.tidal, self.compdemo = block_size, tidal, compdemo

    def loss(self, samples: Sequence[Sample], progress: float) -> Tensor:
        """CE over all maskable tokens + distillation over all masked chunks (or tokens)."""
        rows, device = [sample.row for sample in samples], next(self.student.parameters()).device

        def padded(pieces: Sequence[Tensor], value: int | bool, length: int = 0) -> Tensor:
            return _padded(pieces, value, length).to(device)

        ids, maskable = padded([r.ids for r in rows], 0), padded([r.maskable for r in rows], False)
        student_chunks = padded([r.teachers[0].student_chunks for r in rows], -1)
        teacher_ids = padded([r.teachers[0].ids for r in rows], 0)
        teacher_chunks = padded([r.teachers[0].chunks for r in rows], -1)
        teacher_real = padded([torch.ones_like(r.teachers[0].ids, dtype=torch.bool) for r in rows], False)
        real = padded([torch.ones_like(r.ids, dtype=torch.bool) for r in rows], False)
        t, masked, views = self._noise(samples, ids.shape[1])
        t, masked = t.to(device), masked.to(device)

        logits = self._student_logits(torch.where(masked, self.student.config.mask_token_id, ids), ids, real)
        token_loss = nn.functional.cross_entropy(logits.float().transpose(1, 2), ids, reduction="none")
        weight = cross_entropy_weight(t)[:, None]
        cross_entropy = (weight * token_loss)[masked].sum() / maskable.sum()

        chunks = int(student_chunks.max()) + 1
        numbers = torch.arange(chunks, device=device)
        to_student = student_chunks.unsqueeze(-1) == numbers  # [rows, length, chunks]
        to_teacher = teacher_chunks.unsqueeze(-1) == numbers
        answers = None
        for hidden_chunks in views:
            hidden = torch.einsum("bln,bn->bl", to_teacher.float(), padded(hidden_chunks, False, chunks).float()) > 0
            xt = torch.where(hidden, self.teacher.config.mask_token_id, teacher_ids)
            answer = self._teacher_logits(xt, teacher_real)
            if answers is None:
                answers = answer
            else:
                answers[hidden] = answer[hidden]
            del answer
        active = torch.einsum("bln,bl->bn", to_student.float(), masked.float()) > 0
        if self.tidal:
            at_student, at_teacher = to_student & active[:, None], to_teacher & active[:, None]
            s, z = logits[at_student.any(-1)], answers[at_teacher.any(-1)][:, : logits.shape[-1]]
            mix = tidal_lambda(progress, t[:, None].expand_as(masked)[at_student.any(-1)])
            distillation = kl(s, z, temperature=2.0, mix=mix).mean()
        else:
            teacher_logp = answers.log_softmax(-1).gather(-1, teacher_ids.unsqueeze(-1)).squeeze(-1)
            logp = logits.float().log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
            a = torch.einsum("bl,bln->bn", logp, to_student.float())
            b = torch.einsum("bl,bln->bn", teacher_logp, to_teacher.float())
            distillation = calm(a[active], b[active], temperature=2.0, direction="reverse").mean()
        return cross_entropy + distillation

    def _noise(self, samples: Sequence[Sample], length: int) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        """The pipeline's draws: t [rows], masked [rows, length], and for every view the chunks that it hides."""
        times, masks, views = [], [], []
        for sample in samples:
            row, chunks = sample.row, sample.row.teachers[0].student_chunks
            times.append(draw_t(generator_for(*sample.key, "t")))
            drawn = draw_mask(times[-1], row.maskable, generator_for(*sample.key, "mask"))
            masks.append(complete_chunks(drawn, row.maskable, [chunks]))
            touched = touched_chunks(masks[-1], chunks)
            split = generator_for(*sample.key, "compdemo", 0)
            views.append(complementary_split(touched, 0.5, split) if self.compdemo else (touched,))
        by_view = [[view[:-1] for view in per_view] for per_view in zip(*views, strict=True)]
        return torch.tensor(times), _padded(masks, False, length), by_view

    def _student_logits(self, xt: Tensor, x0: Tensor, real: Tensor) -> Tensor:
        length = xt.shape[1]
        mask = block_diffusion_mask(length, self.block_size).to(real.device) & real.repeat(1, 2)[:, None]
        mask |= torch.eye(2 * length, dtype=torch.bool, device=real.device)  # padding sees itself
        positions = torch.arange(length, device=real.device).repeat(2).expand(xt.shape[0], -1)
        whole = torch.cat([xt, x0], 1)
        return self.student(whole, attention_mask=mask.unsqueeze(1), position_ids=positions).logits[:, :length]

    @torch.no_grad()
    def _teacher_logits(self, ids: Tensor, real: Tensor) -> Tensor:
        mask = real[:, None] | torch.eye(ids.shape[1], dtype=torch.bool, device=real.device)
        return self.teacher(ids, attention_mask=mask.unsqueeze(1)).logits.float()


def _padded(rows: Sequence[Tensor], value: int | bool, length: int = 0) -> Tensor:
    longest = max(length, *(len(row) for row in rows))
    return torch.stack([torch.nn.functional.pad(row, (0, longest - len(row)), value=value) for row in rows])
