"""Policies: diffusion transformers that are conditioned on references, each through one small file."""
