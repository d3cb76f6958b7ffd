"""A recipe's policy, opened beside a function to its examples' conditioning: encoded on demand, or from a cache."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import torch

from customized_grpo.conditioning.cache import BucketCaches, release
from customized_grpo.console import OnProgress
from customized_grpo.data.base import Dataset
from customized_grpo.policies.base import Policy, load_policy
from customized_grpo.recipe.drawn import Buckets, size_of
from customized_grpo.recipe.sections import PolicySpec
from customized_grpo.types import Conditioning, Example

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState

Encode = Callable[[Example], Conditioning]
Jobs = Sequence[tuple[Dataset, int]]
"""Data sets and indices of examples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """Rank and device of this process, and its callbacks to report and to synchronise."""

    device: torch.device
    precision: Literal["no", "bf16"]
    rank: int
    world: int
    wait: Callable[[], object]
    """Barrier that waits for all processes."""
    progress: OnProgress

    @classmethod
    def of(cls, state: "Accelerator | PartialState", precision: Literal["no", "bf16"], progress: OnProgress) -> Self:
        """This process in accelerate's view of the job."""
        return cls(
            device=state.device,
            precision=precision,
            rank=state.process_index,
            world=state.num_processes,
            wait=state.wait_for_everyone,
            progress=progress,
        )


def complete(caches: BucketCaches, jobs: Jobs, process: Process) -> int:
    """Make missing entries, shared by all processes; encoders are loaded only if needed, and freed afterwards.

    Returns:
        Number of entries that this process made.
    """
    mine = jobs[process.rank :: process.world]
    missing: dict[Path, tuple[Dataset, int]] = {}
    for done, (dataset, index) in enumerate(mine, start=1):
        example = dataset[index]
        cache = caches.of(example)
        if not cache.has(example.prompt, example.references):
            missing.setdefault(cache.path(example.prompt, example.references), (dataset, index))
        process.progress("looking", done, len(mine))
    if missing:
        own = caches.buckets.sections[0]
        policy = load_policy(own, device=process.device, precision=process.precision, parts="encoders")
        encode = encoder(policy, own, caches.buckets)
        for done, (dataset, index) in enumerate(missing.values(), start=1):
            example = dataset[index]
            cache = caches.of(example)
            if not cache.has(example.prompt, example.references):  # another process may have made it by now
                cache.write(example.prompt, example.references, encode(example))
            process.progress("encoding", done, len(missing))
        del policy, encode
        release(process.device)
    process.wait()
    return len(missing)


def encoder(policy: Policy, own: PolicySpec, buckets: Buckets) -> Encode:
    """A function to the conditioning of an example for images of its bucket's size, by a policy of the size ``own``."""

    def encode(example: Example) -> Conditioning:
        section = buckets.of(example.size)
        view = policy if size_of(section) == size_of(own) else policy.resized(section)
        return view.encode(example.prompt, example.references)

    return encode


def open_policy(
    buckets: Buckets, folder: str | None, jobs: Callable[[], Jobs], process: Process
) -> tuple[Policy, Encode]:
    """A recipe's policy, and a function to its examples' conditioning: encoded on demand, or from a cache.

    With a cache, missing entries are made before the transformer is loaded, so that encoders and transformer are never
    in memory together, and errors occur before the first step and not in the middle of a run.

    Args:
        buckets: the recipe's section ``policy``, at all sizes of its images.
        folder: ``run.cache``; None: no cache.
        jobs: returns all examples that will be encoded; called only with a cache.
        process: context of this process.

    Raises:
        ValueError: as ``load_policy`` and ``ConditioningCache`` do.
    """
    own = buckets.sections[0]
    if folder is None:
        policy = load_policy(own, device=process.device, precision=process.precision)
        return policy, encoder(policy, own, buckets)
    caches = BucketCaches(folder, buckets, process.precision)
    complete(caches, jobs(), process)
    policy = load_policy(own, device=process.device, precision=process.precision, parts="all but encoders")
    return policy, lambda example: caches.of(example).read(example, process.device)


def open_beside(
    one: tuple[Buckets, Callable[[], Jobs]],
    other: tuple[Buckets, Callable[[], Jobs]],
    folder: str | None,
    process: Process,
) -> tuple[Policy, Encode, Encode]:
    """``open_policy`` by some buckets, and a function to the conditioning of images of other sizes.

    Args:
        one: sizes of the training's images, and its examples, called only with a cache.
        other: the same of the held-out images.
        folder: ``run.cache``; None: no cache.
        process: context of this process.

    Raises:
        ValueError: as ``open_policy`` does.
    """
    held, jobs = other
    if folder is None:
        policy, encode = open_policy(one[0], None, one[1], process)
        return policy, encode, encoder(policy, one[0].sections[0], held)
    # Both are completed before the transformer is there.
    caches = BucketCaches(folder, held, process.precision)
    complete(caches, jobs(), process)
    policy, encode = open_policy(one[0], folder, one[1], process)
    return policy, encode, lambda example: caches.of(example).read(example, process.device)
