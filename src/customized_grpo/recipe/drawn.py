"""The section ``policy`` as something else draws by it: on another base, at another size, in buckets of sizes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from customized_grpo.recipe.sections import PolicySpec, Section

P = TypeVar("P", bound=PolicySpec)


class Base(Section):
    """Another base of the same architecture, on which an adapter is drawn on purpose."""

    model: str = Field(min_length=1, description="a folder or hub id, in place of policy.model")
    revision: str | None = Field(default=None, description="branch, tag or commit of a hub id")
    variant: str | None = Field(default=None, description="weights variant, such as 'fp16'")


def on_base(policy: P, base: Base | None) -> P:
    """The section with another model; what it says of its own one (``PolicySpec.of_model``) is left out.

    Raises:
        ValueError: the policy doesn't take what is given.
    """
    if base is None:
        return policy
    own = {name: value for name, value in policy.model_dump().items() if name not in policy.of_model}
    return _validated(policy, own | base.model_dump(exclude_none=True), "base.")


def at_size(policy: P, height: int | None, width: int | None, where: str = "evaluate.") -> P:
    """The section with a height and a width of images; None: the policy's own.

    Args:
        policy: the section.
        height: in pixels.
        width: in pixels.
        where: what stands before ``height`` and ``width`` in messages.

    Raises:
        ValueError: the policy doesn't draw at this size.
    """
    size = {"height": height or policy.height, "width": width or policy.width}
    if size == {"height": policy.height, "width": policy.width}:
        return policy
    return _validated(policy, policy.model_dump() | size, where)


def guided(policy: P, guidance: float | None, key: str) -> P:
    """The section with another guidance; None: its own.

    Raises:
        ValueError: the policy has none, or not this one; or its model was distilled to few steps, which leaves none.
    """
    if guidance is None:
        return policy
    if "guidance" not in type(policy).model_fields:
        raise ValueError(f"{key}: given {guidance:g}, but policy.type {policy.type} has no guidance; leave it out")
    if policy.step_distilled():
        raise ValueError(
            f"{key}: given {guidance:g}, but {policy.model} is distilled to few steps, which leaves guidance without "
            "effect; leave it out, or draw with the base that it was distilled from"
        )
    return _validated(policy, policy.model_dump() | {"guidance": guidance}, key.removesuffix("guidance"))


@dataclass(frozen=True, slots=True)
class Buckets:
    """Aspect ratio buckets: the section ``policy`` at each size that images of one run have, its own size first."""

    sections: tuple[PolicySpec, ...]

    def of(self, size: tuple[int, int] | None) -> PolicySpec:
        """The section that an example is drawn by.

        The bucket of the nearest aspect ratio, by its logarithm, and among equal ones that of the nearest area; the
        first of those that are alike.

        Args:
            size: height and width that the example asks for, of which no bucket need have either; None: it doesn't.
        """
        if size is None:
            return self.sections[0]
        return min(self.sections, key=lambda one: _distance(size_of(one), size))

    @property
    def largest(self) -> PolicySpec:
        """The section of the largest area, which memory has to do for."""
        return max(self.sections, key=lambda one: one.height * one.width)


def size_of(section: PolicySpec) -> tuple[int, int]:
    """Height and width of the images that a section draws."""
    return section.height, section.width


def buckets_of(policy: PolicySpec, sizes: Sequence[tuple[int, int]]) -> Buckets:
    """The buckets of a recipe: the policy's own size, and ``train.buckets``.

    Raises:
        ValueError: the policy doesn't draw at one of them, or at no size but its own, or one is there twice.
    """
    if sizes and not policy.resizes:
        raise ValueError(
            f"train.buckets: a policy of type {policy.type} is opened for images of one size, here {policy.height} x "
            f"{policy.width} (Policy.resized); leave train.buckets out"
        )
    known = [size_of(policy)]
    for size in sizes:
        if size in known:
            own = " (policy.height x policy.width, which is a bucket already)" if size == known[0] else ""
            raise ValueError(f"train.buckets: {size[0]} x {size[1]} is there twice{own}; leave one out")
        known.append(size)
    return Buckets((policy, *(at_size(policy, *size, "train.buckets.") for size in sizes)))


def _distance(bucket: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    """Distances of the logarithms of two sizes' ratios, rounded so that equal ones are equal, and of their areas."""
    (h, w), (height, width) = bucket, size
    return round(abs(math.log(h * width / (w * height))), 9), abs(math.log(h * w / (height * width)))


def _validated(policy: P, given: dict[str, Any], where: str) -> P:
    try:
        return type(policy).model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = where + ".".join(map(str, first["loc"]))
        text = str(first.get("ctx", {}).get("error", first["msg"]))
        raise ValueError(f"{place}: {text}") from error
