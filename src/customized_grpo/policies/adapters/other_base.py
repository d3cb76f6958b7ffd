"""Drawing an adapter on purpose on another base than it was trained on: what differs is said, the rest refused."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from customized_grpo.policies.adapters.hashes import base_hash
from customized_grpo.policies.adapters.lora_reader import LoraFile
from customized_grpo.policies.adapters.tuning import Scaled
from customized_grpo.policies.base import Policy
from customized_grpo.recipe.drawn import Base
from customized_grpo.recipe.sections import PolicySpec


@contextmanager
def explained(base: Base | None, trained: PolicySpec) -> Iterator[None]:
    """Turn errors while another base is opened, or an adapter put on it, into a message about ``base``."""
    try:
        yield
    except ValueError as error:
        if base is None:
            raise
        raise ValueError(
            f"base: {base.model!r} can't be drawn with in place of policy.model {trained.model!r}; give a model of the "
            f"same architecture: {error}"
        ) from error


def check_adapters(tuned: Sequence[Scaled]) -> None:
    """Raise a ``ValueError`` for a transformer that was trained in full, which leaves nothing of another base."""
    for one in tuned:
        if not isinstance(one.tuned, LoraFile):
            raise ValueError(
                f"base: {one.tuned.path} is a transformer that was trained in full, and would replace that of the "
                "other base; leave base out"
            )


def notices(
    tuned: Sequence[Scaled], policy: Policy, trained: PolicySpec, drawn: PolicySpec, *, steps: int
) -> list[str]:
    """What differs from the base that adapters were trained on, a line each.

    Args:
        tuned: what is drawn with.
        policy: opened on the other base, without the adapters.
        trained: the section ``policy`` of the recipe.
        drawn: the section on the other base.
        steps: of the sampler.
    """
    here = base_hash(policy.transformer)
    said = []
    for one in tuned:
        metadata = one.tuned.metadata if isinstance(one.tuned, LoraFile) else {}
        there = metadata.get("base_hash")
        if there == here:
            continue
        name = metadata.get("base_model", trained.model)
        of = f"on {name!r} (hash {there})" if there else "on a base that its file doesn't name"
        said.append(
            f"base: adapter {str(one.tuned.path)!r} was trained {of}; it is drawn on {drawn.model!r} (hash {here})"
        )
    how = f"{steps} are taken (--steps of generate, evaluate.steps)"
    if drawn.step_distilled() and not trained.step_distilled():
        number = drawn.distilled_steps or "few"
        of_these = f"{steps} are taken" if steps == number else how
        said.append(
            f"base: {drawn.model!r} is step-distilled, and {trained.model!r} is not: it was made for {number} steps "
            f"without guidance; {of_these}"
        )
    elif trained.step_distilled() and not drawn.step_distilled():
        said.append(
            f"base: {trained.model!r} is step-distilled, and {drawn.model!r} is not: it needs more steps, and guidance "
            f"where it takes any; {how}"
        )
    return said
