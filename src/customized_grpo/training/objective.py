"""Alias of ``objectives.clipped_surrogate``, kept for code that imports it from here."""

from customized_grpo.objectives.clipped_surrogate import clipped_surrogate as clipped_surrogate
