"""Limits of a policy on references and prompts, and needs of rewards: asked before a run, without models or pixels.

``encode`` asks a policy's limits too, so that both say the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

Size = tuple[int, int]
"""(width, height) in pixels."""


Need = Literal["reference", "mask", "subject", "distinct", "view"]
"""Parts of an example: at least one reference; a mask or a class word of each; no class word for two subjects; further
pictures of its one subject."""


def _ends(tokenizer: Any) -> int:
    count: int = tokenizer.num_special_tokens_to_add()
    return count


@final
@dataclass(frozen=True, slots=True)
class PromptTokenizer:
    """A tokenizer that reads prompts.

    Attributes:
        source: gives the folder or hub id of its model; a ``ValueError`` says that it isn't on this machine.
        folder: its folder there; empty: the model's own.
        most: number of tokens at which a prompt is cut off, its frame included, or fewer if the tokenizer says so
            itself; None: it never is.
        revision: of a hub id.
        frame: number of tokens around a prompt: by default its beginning and end, else those of a template.
    """

    source: Callable[[], str]
    folder: str
    most: int | None
    revision: str | None = None
    frame: Callable[[Any], int] = _ends


class ExampleNeeds:
    """What a reward or a metric needs; its section derives from it. Without a method of its own, it needs nothing."""

    def needs(self) -> frozenset[Need]:
        """Parts that every example must have; one that lacks them is refused before a run."""
        return frozenset()

    def prompt_tokenizer(self) -> PromptTokenizer | None:
        """The tokenizer that reads a prompt; None if there is none, or it is another machine's."""
        return None


class PolicyLimits:
    """What a policy takes; a policy's section derives from it. Without any method of its own, it takes everything."""

    type: str

    def reference_counts(self) -> tuple[int, int | None]:
        """Fewest and most references of an example; None: any number."""
        return 0, None

    def count_keys(self) -> Mapping[str, int]:
        """Keys of the section that set ``reference_counts``, with their values."""
        return {}

    def fitted_size(self, size: Size, count: int) -> Size:
        """The size at which the policy reads a reference of ``size``, one of ``count``.

        Raises:
            ValueError: a shape that it can't read; the message says what to do.
        """
        return size

    def prompt_tokenizers(self) -> Sequence[PromptTokenizer]:
        """The tokenizers that read a prompt."""
        return ()

    def check_count(self, count: int) -> None:
        """Raise a ``ValueError`` if the policy doesn't take so many references."""
        low, high = self.reference_counts()
        if low <= count and (high is None or count <= high):
            return
        allowed = f"at least {low}" if high is None else str(low) if low == high else f"{low} to {high}"
        keys = ", ".join(f"policy.{key}={value}" for key, value in self.count_keys().items())
        cure = f" ({keys}); give as many, or change the recipe" if keys else "; give as many"
        raise ValueError(f"{count} references given, but policy.type={self.type} takes {allowed}{cure}")

    def check_references(self, sizes: Sequence[Size]) -> None:
        """Raise a ``ValueError`` if the policy can't be conditioned on references of these sizes."""
        self.check_count(len(sizes))
        for size in sizes:
            self.fitted_size(size, len(sizes))
