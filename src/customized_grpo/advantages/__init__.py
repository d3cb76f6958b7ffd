"""From the rewards of a group to its advantages: pure functions on (G, ...) tensors."""
