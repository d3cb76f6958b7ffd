"""Running averages of the trained weights (one is evaluated and saved, an old policy samples), and copies of them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from customized_grpo.policies.adapters.sharding import cut_like, reshard
from customized_grpo.policies.base import Policy

Parameters = Mapping[str, nn.Parameter]


class OldPolicy(EMAModel):  # type: ignore[misc]
    """A policy that lags behind the trained one: old <- decay old + (1 - decay) new.

    Args:
        parameters: the trained weights.
        decay: decay after a number of optimizer updates; see ``objectives.old_policy``.
    """

    def __init__(self, parameters: Parameters, decay: Callable[[int], float]) -> None:
        super().__init__(list(parameters.values()))
        self._decay, self._updates = decay, 0

    def follow(self, parameters: Parameters, updates: int) -> None:
        """Take a step towards the weights as they are after ``updates`` optimizer updates."""
        self._updates = updates
        self.step(parameters.values())

    def get_decay(self, optimization_step: int) -> float:
        """Decay of this step, instead of the library's own schedule."""
        return self._decay(self._updates)


class Copy:
    """The trained weights as they were, for a rollout that lags behind them.

    Args:
        parameters: the trained weights.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.shadow_params: list[Tensor] = [one.detach().clone() for one in parameters.values()]

    def take(self, parameters: Parameters) -> None:
        """Copy the weights as they are."""
        for shadow, parameter in zip(self.shadow_params, parameters.values(), strict=True):
            shadow.copy_(parameter.detach())


@contextmanager
def in_place(average: EMAModel | Copy | None, parameters: Parameters, policy: Policy) -> Iterator[None]:
    """Context in which the trained weights are those of ``average``, if there is one, and those the average's."""
    if average is None:
        yield
        return
    _exchange(average, parameters, policy)
    try:
        yield
    finally:
        _exchange(average, parameters, policy)


def _exchange(average: EMAModel | Copy, parameters: Parameters, policy: Policy) -> None:
    """Swap the values tensor by tensor: the library would hold all trained weights on the CPU meanwhile."""
    reshard(policy.transformer)  # what FSDP2 keeps whole after a forward is no longer what its shards say
    for shadow, parameter in zip(average.shadow_params, parameters.values(), strict=True):
        held = parameter.detach().clone()
        parameter.data.copy_(shadow)
        shadow.copy_(held)


def named(average: EMAModel | Copy, parameters: Parameters) -> dict[str, Tensor]:
    """The average by the names of the trained weights."""
    return dict(zip(parameters, average.shadow_params, strict=True))


def put_back(average: EMAModel | Copy, parameters: Parameters, tensors: Mapping[str, Tensor]) -> None:
    """Restore the result of ``named``, whole, from a checkpoint."""
    average.shadow_params = [cut_like(tensors[name].to(one.device), one) for name, one in parameters.items()]
