"""The base and the adapters of several runs in one process, which draw from the same noise.

A LoRA is put on the base for a drawing and taken off for the next one's; a transformer that was trained in full is a
second policy. Dimensions: n images, H x W pixels.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, final

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from customized_grpo.conditioning.drawing import check_drawing
from customized_grpo.devices import open_device
from customized_grpo.memory.needs import need_gpu
from customized_grpo.policies.adapters import full, lora, tuning
from customized_grpo.policies.adapters.full import TransformerFolder
from customized_grpo.policies.adapters.lora_files import WEIGHTS_NAME, newest_complete
from customized_grpo.policies.base import Policy, load_policy
from customized_grpo.recipe.config import EvaluateRecipe, Recipe
from customized_grpo.recipe.loading import load_any, run_config
from customized_grpo.sampling.draw import images_of
from customized_grpo.types import Conditioning

BASE: Final = "base"
"""Name of the untrained system."""


@final
@dataclass(frozen=True, slots=True)
class Shown:
    """How a drawing is made, beside its prompt and references.

    Attributes:
        seed: of the initial noise.
        steps: of the sampler; None: the recipe's.
        strength: factor on an adapter's update; without effect on the base.
        balance: b of balanced adapters, in [-1, 1]; without effect on others.
    """

    seed: int
    steps: int | None = None
    strength: float = 1.0
    balance: float = 0.0


@final
class Artist:
    """Systems that draw: the base, and each run under its name.

    Attributes:
        config: what ``generate --config`` takes for the base.
        recipe: of the first run, or what draws by the base alone; says the noise levels.
        runs: folder of each run by its name.
        systems: all names, the base first.
        balanced: names of the runs whose adapter is balanced.
    """

    def __init__(self, config: str | Path, runs: Mapping[str, Path]) -> None:
        """Load the base.

        Args:
            config: a recipe's file or name, of the first run where there is one.
            runs: see the class; all of one base.

        Raises:
            ValueError: the base can't be loaded, or a run is of another policy.
        """
        self.config, self.runs = str(config), dict(runs)
        self.recipe = recipe = load_any(config)
        recipes = {name: load_any(run_config(folder)) for name, folder in runs.items()}
        for name, other in recipes.items():
            _check_same(recipe, name, other)
        self.systems = (BASE, *self.runs)
        loras = {name: other.policy.lora for name, other in recipes.items()}
        self.balanced = frozenset(name for name, own in loras.items() if own is not None and own.balance)
        need_gpu(recipe)
        self.device = open_device(recipe.run.device)
        self._base = load_policy(recipe)
        self._whole: dict[str, tuple[str, Policy]] = {}
        self._on: tuple[str, object] | None = None
        self._encoded: tuple[tuple[str, tuple[bytes, ...]], Conditioning] | None = None
        self._one_at_a_time = threading.Lock()

    def check(self, prompt: str, references: Sequence[Image.Image]) -> list[str]:
        """Refuse what can't be drawn.

        Returns:
            What of the prompt is not read, for people.

        Raises:
            ValueError: the prompt is empty, or the policy can't take it or these references.
        """
        if not prompt.strip():
            raise ValueError("The prompt is empty; say what to draw")
        return check_drawing(self.recipe.policy, prompt, references)

    def draw(
        self, system: str, prompt: str, references: Sequence[Image.Image], shown: Shown
    ) -> UInt8[Tensor, "1 h w 3"]:
        """One image: what ``customized-grpo generate`` draws of the same adapter, strength, balance and seed.

        Args:
            system: one of ``systems``.
            prompt: what to draw.
            references: RGB images of the subject.
            shown: how.

        Raises:
            ValueError: the run has no checkpoint yet, or one that can't be used.
        """
        with self._one_at_a_time:
            policy = self._policy(system, shown)
            cond = self._encode(prompt, references)
            return images_of(policy, self.recipe, cond, seed=shown.seed, steps=shown.steps)

    def weights_of(self, system: str) -> Path | None:
        """The file or folder of a system's newest weights; None of the base, and of a run without a checkpoint."""
        if system == BASE:
            return None
        whole = full.find(self.runs[system])
        return newest_complete(self.runs[system], WEIGHTS_NAME) if whole is None else whole.path

    def _encode(self, prompt: str, references: Sequence[Image.Image]) -> Conditioning:
        """The conditioning, kept for the next drawing of the same; adapters don't reach the encoders."""
        key = prompt, tuple(one.tobytes() for one in references)
        if self._encoded is None or self._encoded[0] != key:
            self._encoded = key, self._base.encode(prompt, references)
        return self._encoded[1]

    def _policy(self, system: str, shown: Shown) -> Policy:
        """The policy with a system's weights in it."""
        if system == BASE:
            self._put(None, ())
            return self._base
        if (newest := self.weights_of(system)) is None:
            raise ValueError(f"{system}: the run has no checkpoint yet; wait for it (train.checkpoint_every)")
        stands_on = f"{newest} {newest.stat().st_mtime_ns}"  # a running training writes newer ones
        balance = shown.balance if system in self.balanced else None
        wanted = system, (stands_on, shown.strength, balance)
        if self._on == wanted:
            return self._base
        if (folder := full.find(self.runs[system])) is not None:
            return self._whole_policy(system, stands_on, folder, shown)
        (read,) = tuning.read_all(str(self.runs[system]), balance)
        self._put(wanted, (replace(read, scale=shown.strength),))
        return self._base

    def _whole_policy(self, system: str, stands_on: str, folder: TransformerFolder, shown: Shown) -> Policy:
        """A transformer that was trained in full, in a policy of its own."""
        if shown.strength != 1:
            raise ValueError(f"{system}: it was trained in full and has no strength; set that to 1")
        if self._whole.get(system, ("",))[0] != stands_on:
            self._whole.pop(system, None)  # before the next one is loaded, which takes as much memory
            policy = load_policy(self.recipe)
            tuning.apply(policy, folder)
            self._whole[system] = stands_on, policy
        return self._whole[system][1]

    def _put(self, wanted: tuple[str, object] | None, loaded: Sequence[tuning.Scaled]) -> None:
        """Take what is on the base off, and put this on."""
        if self._on is not None:
            lora.detach(self._base)
            self._on = None
        if loaded:
            try:
                tuning.apply_all(self._base, loaded)
            except BaseException:
                lora.detach(self._base)
                raise
            self._on = wanted


def _check_same(recipe: Recipe | EvaluateRecipe, name: str, other: Recipe | EvaluateRecipe) -> None:
    """Raise for a run that draws by another base, another size, or other noise levels."""

    def drawn(one: Recipe | EvaluateRecipe) -> dict[str, object]:
        policy = one.policy.model_dump(exclude=set(one.policy.not_encoded))
        return {
            **{f"policy.{key}": value for key, value in policy.items()},
            "sampling.steps": one.sampling.steps,
            "sampling.shift": one.sampling.shift,
        }

    mine, its = drawn(recipe), drawn(other)
    for key in {**mine, **its}:
        if mine.get(key) != its.get(key):
            raise ValueError(
                f"{name}: its {key} is {its.get(key)!r}, and the first run's is {mine.get(key)!r}; side by side are "
                "only runs that draw alike, so open them apart"
            )
