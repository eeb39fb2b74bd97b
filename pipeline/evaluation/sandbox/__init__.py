"""Runs a generated program against its tests, with nothing to gain from either (see `run.py` for what is guaranteed)."""

from pipeline.evaluation.sandbox.run import Limits, Sandbox, Tests, Verdict

__all__ = ["Limits", "Sandbox", "Tests", "Verdict"]
