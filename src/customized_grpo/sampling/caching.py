"""Caches of rollouts: diffusers' own hooks, on a transformer only while a group is sampled.

``first_block`` (diffusers' FirstBlockCache) runs the first block at every step. Where its residual has changed by less
than a threshold since the last step that was computed whole, the other blocks' residual of that step is added instead.
``taylorseer`` (arXiv 2503.06923, in diffusers' lite form) computes some steps and extrapolates the transformer's output
at the others by a Taylor series in the number of steps. Both change what is sampled, not what is trained.
Dimensions: n batch, S latent tokens, C latent channels.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from customized_grpo.policies.adapters.sharding import base_transformer
from customized_grpo.policies.base import Policy
from customized_grpo.policies.checkpointing import repeated_blocks
from customized_grpo.recipe.keys import Cache
from customized_grpo.sampling.solver import Velocity


@final
class RolloutCache:
    """A cache of a policy's transformer for one sampling at a time, and a count of the blocks that ran.

    Args:
        section: the recipe's ``sampling.cache``.
        policy: the policy, wrapped for several processes or not.

    Raises:
        ValueError: its transformer has no caches.
    """

    def __init__(self, section: Cache, policy: Policy) -> None:
        from diffusers import CacheMixin

        self._section = section
        self._model: Any = base_transformer(policy)
        if not isinstance(self._model, CacheMixin):
            raise ValueError(
                f"sampling.cache: {type(self._model).__name__} has none of diffusers' caches (CacheMixin); leave it out"
            )
        self._blocks = [block for _, block in repeated_blocks(self._model)]
        self._run = self._all = 0

    @contextmanager
    def over(self, velocity: Velocity) -> Iterator[Velocity]:
        """Inside, the velocity that this gives may reuse what it computed at earlier steps; each call is a step.

        The forwards of one step - parts of a batch, and guidance's two - are told apart by their order, so that none
        reuses another's. Afterwards the model is as it was, and what was kept is freed.
        """
        names: Iterator[str] = iter(())
        context = ExitStack()

        def step(x: Float[Tensor, "n s c"], sigma: Float[Tensor, ""]) -> Float[Tensor, "n s c"]:
            nonlocal names
            names = (f"forward {number} of {len(x)} samples" for number in count())
            return velocity(x, sigma)

        def enter(*_: Any) -> None:
            context.enter_context(self._model.cache_context(next(names)))
            self._all += len(self._blocks)

        def leave(*_: Any) -> None:
            context.close()

        def ran(*_: Any) -> None:
            self._run += 1

        self._model.enable_cache(_of_diffusers(self._section))
        with ExitStack() as until_end:
            until_end.callback(self._model.disable_cache)
            handles = [
                self._model.register_forward_pre_hook(enter),
                self._model.register_forward_hook(leave, always_call=True),
                *(_first_layer(block).register_forward_pre_hook(ran) for block in self._blocks),
            ]
            for handle in handles:
                until_end.callback(handle.remove)
            yield step

    def drain(self) -> dict[str, float]:
        """``rollout/blocks_run``: share of the blocks' forwards that were computed since the last drain."""
        found = {"rollout/blocks_run": self._run / self._all} if self._all else {}
        self._run = self._all = 0
        return found


def _first_layer(block: nn.Module) -> nn.Module:
    """A part of a block that runs where the block itself does: diffusers puts its hooks around the whole block."""
    return next(block.children())


def _of_diffusers(section: Cache) -> Any:
    from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig

    if section.type == "first_block":
        return FirstBlockCacheConfig(threshold=section.threshold)
    return TaylorSeerCacheConfig(
        cache_interval=section.interval,
        disable_cache_before_step=section.warmup,
        max_order=section.order,
        taylor_factors_dtype=torch.float32,
        use_lite_mode=True,  # in full form it would keep the output of every attention, of every sample
    )
