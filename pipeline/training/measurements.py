"""What a run measures beside its training: whether its teachers can teach, and where its student stands. Always the same rows and noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel

from pipeline.config.recipe import Teacher
from pipeline.core.files import read_json, write_json
from pipeline.core.log import log, rank
from pipeline.core.terminal import by_timestep
from pipeline.training.build import fixed_noise_rows
from pipeline.training.held_out import TIMESTEPS, FixedNoiseRows, kl_terms, teacher_kl, validation_loss
from pipeline.training.loop import Trainer
from pipeline.training.metrics import Metrics
from pipeline.training.preflight import Plan
from pipeline.training.teacher_checks import check_teachers, probe_teacher


@dataclass(frozen=True)
class Measurements:
    """Of one run; every method is collective."""

    plan: Plan
    trainer: Trainer
    metrics: Metrics

    @cached_property
    def teachers(self) -> list[tuple[Teacher, PreTrainedModel | None]]:
        models = [model for _, model in self.trainer.teachers]
        return list(zip(self.plan.recipe.teachers, models, strict=True))

    @cached_property
    def held_out(self) -> FixedNoiseRows:
        """With one view of every teacher."""
        return fixed_noise_rows(self.plan, "validation", self.trainer.topology)

    @cached_property
    def held_out_student(self) -> FixedNoiseRows:
        return fixed_noise_rows(self.plan.without_teachers(), "validation", self.trainer.topology)

    def check_teachers(self) -> None:
        """Raises BadInput for teachers that understand nothing."""
        check_teachers(self.teachers, fixed_noise_rows(self.plan, "train", self.trainer.topology))

    def probe_teachers(self) -> None:
        """Writes what the teachers know to teacher_probe.json."""
        if not self.teachers or not len(self.held_out):
            return
        ratio = self.plan.recipe.objective.compdemo.ratio
        two_views = fixed_noise_rows(self.plan, "validation", self.trainer.topology, compdemo_ratio=ratio)
        views = {"one_view": self.held_out, "two_views": two_views}
        probes = {
            teacher.name: probe_teacher(teacher.name, model, k, views).to_json()
            for k, (teacher, model) in enumerate(self.teachers)
            if model is not None
        }
        if rank() == 0:
            path = Path(self.plan.recipe.run_dir) / "teacher_probe.json"
            write_json(path, {"t": list(TIMESTEPS), "teachers": probes})

    def validate(self, step: int) -> None:
        """Adds the student's held-out loss to the metrics; at the last step, measures its KL from the teachers too."""
        student = self.trainer.engine
        if len(self.held_out_student):
            student.eval()
            loss = validation_loss(student, student.module.cross_entropy_weight, self.held_out_student)
            self.metrics.validation(step, loss)
            student.train()
        if step == self.trainer.steps:
            self.teacher_kl(step)

    def teacher_kl(self, step: int) -> None:
        """Says how far the student is from its teachers, and adds it to distance.json."""
        if not self.teachers or not len(self.held_out):
            return
        models = [model for _, model in self.teachers]
        terms = kl_terms(self.plan.recipe.teachers, self.plan.dataset.shared_vocab, models)
        student = self.trainer.engine
        student.eval()
        kl = teacher_kl(student, list(zip(terms, models, strict=True)), self.held_out)
        student.train()
        if rank() == 0:
            path = Path(self.plan.recipe.run_dir) / "distance.json"
            write_json(path, (read_json(path) or {} if step else {}) | {str(step): kl})
        for name, by_t in kl.items():
            log.info(f"KL from {name}, step {step}  {by_timestep(by_t, '.3f')}")
