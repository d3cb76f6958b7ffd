"""From noise to images: the transition of one step, the grid and plan of steps, a group's rollout."""
