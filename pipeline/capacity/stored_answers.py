"""Causal teachers' answers in `plan`: those that are stored take no memory and no forward, but room on disk."""

from __future__ import annotations

from dataclasses import replace

from pipeline.capacity.inputs import DataStats
from pipeline.config.recipe import Recipe
from pipeline.training.answer_store import kept_tokens
from pipeline.training.terms import stored_temperatures

INDEX_AND_LOG_PROB = 4 + 4
"""Bytes of an answered token: its index (int32) and its log-probability (float32)"""
LIKELIEST = 4 + 4
"""Bytes of one of its likeliest tokens: id and logit"""


def without_stored_teachers(recipe: Recipe) -> Recipe:
    """The recipe as a run computes it."""
    return replace(recipe, teachers=[teacher for teacher in recipe.teachers if not teacher.stored])


def store_sizes(recipe: Recipe, data: DataStats, shared_vocab: tuple[int, ...]) -> dict[str, float]:
    """Bytes of the stored answers of every causal teacher, whether the recipe stores them or not, where the rows are known.

    Every maskable token's are stored: those outside of chunks are a few.
    """
    sizes = {}
    for teacher, shared, length in zip(recipe.teachers, shared_vocab, data.mean.teachers, strict=True):
        if teacher.causal and data.rows is not None:
            temperatures = stored_temperatures(recipe.objective.temperature, shared)
            token = INDEX_AND_LOG_PROB + 4 * len(temperatures) + LIKELIEST * kept_tokens(teacher, shared)
            sizes[teacher.name] = data.rows * length * data.maskable * token
    return sizes
