"""The vision-language judge: a reward that asks a model by API, with its prompts, answers, cache and budget."""
