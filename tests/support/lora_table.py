"""The table of docs/lora-files.md: conventions of LoRA files, and what this package and diffusers make of them."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from diffusers.utils import logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from customized_grpo.policies.adapters import tuning
from customized_grpo.types import Conditioning
from lora_conventions import (
    CLOSE,
    CONVENTIONS,
    Convention,
    Family,
    add,
    by_diffusers,
    check_outcome,
    difference,
    make_model,
    open_model,
    velocity,
)
from pipeline_cases import pictures, shrink_constants


def table() -> str:
    """One row for each convention, grouped by model."""
    parts = []
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patched:
        shrink_constants(patched)
        for quiet in (logging, transformers_logging):
            quiet.set_verbosity_error()
            quiet.disable_progress_bar()
        for family in dict.fromkeys(one.family for one in CONVENTIONS):
            lines = ["| Written by | A key | Scale | Here | diffusers |", "|---|---|---|---|---|"]
            lines += rows(family, Path(name) / family)
            parts.append(f"**{family}**\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def rows(family: Family, folder: Path) -> Iterator[str]:
    """Of one model."""
    model = make_model(family, folder / "model")
    bare = open_model(family, model)
    cond = bare.encode("a red dog", pictures()[:1])
    base = velocity(bare, cond)
    for convention in (one for one in CONVENTIONS if one.family == family):
        ours, theirs = outcomes(convention, folder / convention.name, model, cond, base)
        yield f"| {convention.tool} | `{convention.example}` | {convention.alpha} | {ours} | {theirs} |"


def outcomes(convention: Convention, folder: Path, model: Path, cond: Conditioning, base: Tensor) -> tuple[str, str]:
    """Words and measured difference for both."""
    family = convention.family
    written = convention.write(folder, open_model(family, model).transformer)
    right, ours, theirs = (open_model(family, model) for _ in range(3))
    add(right, written.delta)
    true = velocity(right, cond)
    error = by_diffusers(theirs, written)
    found = velocity(theirs, cond)
    check_outcome(convention, error, found, true, base)
    words = {"same": "read", "rounds": "read", "other": "wrong", "reads": "read", "ignores": "wrong"}
    told = words.get(convention.diffusers, convention.diffusers)
    if not convention.refused and convention.diffusers != "refuses":
        told += f", {size(difference(found, true))}"
    told += f": {convention.why}" if convention.why else ""
    if convention.refused:
        with pytest.raises(ValueError, match=convention.refused):
            tuning.load_tuned(ours, written.path)
        return f"refused: {convention.refused}", told
    tuning.load_tuned(ours, written.path)
    aside = f"; {written.aside} keys left aside" if written.aside else ""
    return f"read, {size(difference(velocity(ours, cond), true))}{aside}", told


def size(apart: float) -> str:
    """A bound where it is rounding, whose last digits are a machine's own; else two digits."""
    return next((f"< {bound:.0e}".replace("e-0", "e-") for bound in (CLOSE, 1e-3) if apart < bound), f"{apart:.2f}")
