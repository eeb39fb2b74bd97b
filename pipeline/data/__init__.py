"""Aligned rows, their order, and the micro-batches made of them."""
