"""Conditioning: the cache of encoded prompts and references."""
