"""Builds every model of the miniature world from nothing: `python -m customized_grpo.mini.build`."""
