"""The section ``policy`` as something else than training draws by it: on another base, or at another size."""

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
    return _validated(policy, own | base.model_dump(exclude_none=True), "base")


def at_size(policy: P, height: int | None, width: int | None) -> P:
    """The section with ``evaluate.height`` and ``evaluate.width``; None: the policy's own.

    Raises:
        ValueError: the policy doesn't draw at this size.
    """
    size = {"height": height or policy.height, "width": width or policy.width}
    if size == {"height": policy.height, "width": policy.width}:
        return policy
    return _validated(policy, policy.model_dump() | size, "evaluate")


def _validated(policy: P, given: dict[str, Any], key: str) -> P:
    try:
        return type(policy).model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, (key, *first["loc"])))
        text = str(first.get("ctx", {}).get("error", first["msg"]))
        raise ValueError(f"{place}: {text}") from error
