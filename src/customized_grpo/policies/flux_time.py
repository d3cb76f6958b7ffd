"""Time and guidance in float32 on their way into FLUX's time embedding, whatever the dtype of the model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn


@dataclass(slots=True)
class ExactTime:
    """Puts float32 1000 sigma and 1000 guidance back on their way into the time embedding, for one forward.

    diffusers casts both to the hidden dtype before it multiplies by 1000, so that under bf16 sigma 0.986 becomes
    984, and steps as near become one. A hook keeps the module's parameter names and survives DDP.
    """

    time: Tensor | None = None
    guidance: Tensor | None = None

    @contextmanager
    def at(self, sigma: Float[Tensor, " n"], guidance: Float[Tensor, " n"] | None) -> Iterator[None]:
        """Inside, forwards of the hooked embedding see these values."""
        self.time = sigma * 1000
        self.guidance = None if guidance is None else guidance * 1000
        try:
            yield
        finally:
            self.time = self.guidance = None

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The forward pre-hook."""
        if self.time is None:
            return args
        exact = (self.time,) if self.guidance is None else (self.time, self.guidance)
        return (*exact, *args[len(exact) :])
