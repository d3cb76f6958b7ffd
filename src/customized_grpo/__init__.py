"""Customized-GRPO: online reinforcement learning for subject-driven image generation.

Given reference images of a subject and a prompt, a policy is trained to keep the subject's identity *and* to
follow the prompt. The package implements Synergy-Aware Reward Shaping (SARS) and Time-Aware Dynamic Weighting
(TDW) of Customized-GRPO (arXiv 2510.18263) on flow-matching transformers.

Importing this module loads no model library: ``import customized_grpo`` takes milliseconds. Start reading at
:mod:`customized_grpo.sampling.dynamics`, :mod:`customized_grpo.advantages.aggregators` and
:mod:`customized_grpo.training.trainer`.
"""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("customized-grpo")
except PackageNotFoundError:  # run from a source tree that was never installed (PYTHONPATH=src)
    __version__ = "0+source"
