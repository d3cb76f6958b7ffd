"""The trainer: the objective, the loop, its checkpoints and its metrics."""
