"""Block-diffusion decoding and likelihoods."""

from pipeline.decoding.sampler import GenerateConfig, generate

__all__ = ["GenerateConfig", "generate"]
