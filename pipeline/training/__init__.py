"""The training step, its loop, checkpoints, and the run put together."""
