"""Conditioning: disk cache of encoded prompts and references."""
