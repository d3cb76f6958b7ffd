"""Sampling: the transition of one step, the noise levels and step plan, a group's rollout."""
