"""Masked diffusion in blocks: noise, attention masks, sampler."""

from pipeline.diffusion.masks import attention_mask, block_diffusion_mask, blocks_for_flex
from pipeline.diffusion.noise import complementary_split, complete_chunks, draw_mask, draw_t, generator_for
from pipeline.diffusion.sampler import GenerateConfig, generate

__all__ = [
    "GenerateConfig",
    "attention_mask",
    "block_diffusion_mask",
    "blocks_for_flex",
    "complementary_split",
    "complete_chunks",
    "draw_mask",
    "draw_t",
    "generate",
    "generator_for",
]
