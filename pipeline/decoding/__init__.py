"""Block-diffusion decoding and likelihoods."""

from pipeline.decoding.canvas import GenerateConfig
from pipeline.decoding.sampler import generate

__all__ = ["GenerateConfig", "generate"]
