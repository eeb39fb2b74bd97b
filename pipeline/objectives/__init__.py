"""Objectives, in log space and float32. This package imports torch and nothing of the project."""

from pipeline.objectives.calm import calm
from pipeline.objectives.divergence import kl
from pipeline.objectives.heads import head_rows, token_log_prob
from pipeline.objectives.schedule import cross_entropy_weight, midrange_weight, tidal_lambda

__all__ = ["calm", "cross_entropy_weight", "head_rows", "kl", "midrange_weight", "tidal_lambda", "token_log_prob"]
