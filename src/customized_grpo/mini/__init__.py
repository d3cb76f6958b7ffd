"""The miniature world: renderer, prompts, data set, oracle and checkpoints (built by ``tools/build_mini``)."""
