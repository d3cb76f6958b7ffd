"""The vision-language judge: a reward by a model behind an API, with its prompts, answers, cache and budget."""
