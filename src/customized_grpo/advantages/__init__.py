"""Advantages from the rewards of a group: pure functions on (G, ...) tensors."""
