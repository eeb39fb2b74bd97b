"""The paper, in log space and float32. This package imports torch and nothing of the project."""

from pipeline.method.attention_mask import block_diffusion_mask
from pipeline.method.calm import calm
from pipeline.method.compdemo import complementary_split
from pipeline.method.kl import kl
from pipeline.method.tidal import midrange_weight, tidal_lambda

__all__ = ["block_diffusion_mask", "calm", "complementary_split", "kl", "midrange_weight", "tidal_lambda"]
