"""Limits of a policy on its references, by numbers and sizes alone: asked before a run, and by ``encode`` itself."""

from collections.abc import Mapping, Sequence

Size = tuple[int, int]
"""(width, height) in pixels."""


class ReferenceLimits:
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
