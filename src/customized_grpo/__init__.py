"""Customized-GRPO: online reinforcement learning for subject-driven image generation.

Given reference images of a subject and a prompt, a policy is trained to keep the subject's identity *and* to
follow the prompt. The package implements Synergy-Aware Reward Shaping (SARS) and Time-Aware Dynamic Weighting
(TDW) of Customized-GRPO (arXiv 2510.18263) on flow-matching transformers.

The names below are what a notebook needs, each imported at its first use: ``import customized_grpo`` loads no model
library and takes milliseconds. ``examples/grpo_step.py`` is the whole algorithm in one file.

Example:
    >>> import customized_grpo as cg
    >>> recipe = cg.load_recipe("mini_customized", ["run.dir=runs/mine"])
    >>> run = cg.train(recipe)
    >>> policy = cg.load_policy(recipe)
    >>> cg.load_tuned(policy, run)
    >>> example = cg.load_dataset(recipe.data)[0]
    >>> images = cg.generate(policy, recipe, example.prompt, example.references, num=4)
    >>> cg.score(images, cg.load_rewards(recipe.rewards), example)
"""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors read; at run time it is ``__getattr__`` below
    from customized_grpo.data.base import load_dataset
    from customized_grpo.data.images import load_image
    from customized_grpo.policies.adapters.tuning import load_tuned
    from customized_grpo.policies.base import load_policy
    from customized_grpo.recipe.loading import load_recipe
    from customized_grpo.sampling.draw import generate
    from customized_grpo.sampling.rollout import sample_group
    from customized_grpo.scoring.score import load_rewards, score
    from customized_grpo.training.trainer import train
    from customized_grpo.types import Example

__all__ = [
    "Example",
    "__version__",
    "generate",
    "load_dataset",
    "load_image",
    "load_policy",
    "load_recipe",
    "load_rewards",
    "load_tuned",
    "sample_group",
    "score",
    "train",
]

_MODULE_OF = {
    "Example": "customized_grpo.types",
    "generate": "customized_grpo.sampling.draw",
    "load_dataset": "customized_grpo.data.base",
    "load_image": "customized_grpo.data.images",
    "load_policy": "customized_grpo.policies.base",
    "load_recipe": "customized_grpo.recipe.loading",
    "load_rewards": "customized_grpo.scoring.score",
    "load_tuned": "customized_grpo.policies.adapters.tuning",
    "sample_group": "customized_grpo.sampling.rollout",
    "score": "customized_grpo.scoring.score",
    "train": "customized_grpo.training.trainer",
}

try:
    __version__ = version("customized-grpo")
except PackageNotFoundError:  # run from a source tree that was never installed (PYTHONPATH=src)
    __version__ = "0+source"


def __getattr__(name: str) -> Any:
    """A name of ``_MODULE_OF``, imported at its first use (PEP 562)."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = vars(importlib.import_module(_MODULE_OF[name]))[name]
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
