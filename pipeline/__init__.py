"""TIDE: distilling a large diffusion language model into a small one (arXiv 2604.26951)."""
