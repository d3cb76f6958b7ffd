"""Policies: reference-conditioned diffusion transformers, one small file each."""
