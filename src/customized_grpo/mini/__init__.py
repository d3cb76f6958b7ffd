"""The miniature world: a renderer, its prompts, its data set, the builder of its checkpoints, and the checkpoints."""
