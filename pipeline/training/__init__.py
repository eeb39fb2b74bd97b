"""The training step, its loop, checkpoints, and the run's distribution."""
