"""Masked diffusion in blocks: noise, attention masks, sampler."""

from pipeline.diffusion.masks import attention_mask, block_diffusion_mask
from pipeline.diffusion.noise import complementary_split, complete_chunks, draw_mask, draw_t, generator_for
from pipeline.diffusion.sampler import GenerateConfig, generate

__all__ = [
    "GenerateConfig",
    "attention_mask",
    "block_diffusion_mask",
    "complementary_split",
    "complete_chunks",
    "draw_mask",
    "draw_t",
    "generate",
    "generator_for",
]
