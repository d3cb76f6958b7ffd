"""Evaluations of one balanced adapter at several b: their order, and pictures of one prompt and noise along it."""

from collections.abc import Sequence

import numpy as np

from customized_grpo.report.folders import RunFolder
from customized_grpo.report.gallery import RANDOM, Card, data_uri


def along(runs: Sequence[RunFolder]) -> list[RunFolder]:
    """Evaluations of the same adapter, each at a b of its own, in the order of b; empty if these runs are others."""
    of = {b: run for run in runs if isinstance(b := run.get("balance"), int | float)}
    adapters = {str(run.get("lora")) for run in runs}
    if len(runs) < 2 or len(of) < len(runs) or len(adapters) > 1 or not all(run.ends[1] for run in runs):
        return []
    return [of[b] for b in sorted(of)]


def name_of(run: RunFolder) -> str:
    """Name of an evaluation by its b."""
    return f"b = {run.get('balance'):g}".replace("-", "\N{MINUS SIGN}")


def strips(runs: Sequence[RunFolder]) -> list[Card]:
    """Examples drawn by a fixed seed, each as its reference, the base, and the adapter at every b.

    Args:
        runs: of ``along``.
    """
    found = [{row["key"]: row for row in run.ends[1] if row["image"] == 0 and row.get("file")} for run in runs]
    keys = [key for key in (found[0] if found else ()) if all(key in rows for rows in found)]
    chosen = sorted(np.random.default_rng(0).permutation(len(keys))[:RANDOM])
    base = {row["key"]: row for row in (runs[0].ends[0] if runs else ()) if row["image"] == 0}
    cards = []
    for key in (keys[at] for at in chosen):
        rows = [rows[key] for rows in found]
        images = [
            (name_of(run), data_uri(run.path / "evaluation", row["file"])) for run, row in zip(runs, rows, strict=True)
        ]
        if key in base and base[key].get("file"):
            images.insert(0, ("base", data_uri(runs[0].path / "evaluation", base[key]["file"])))
        reference = data_uri(runs[0].path / "evaluation", rows[0].get("reference"))
        cards.append(Card(str(rows[0]["prompt"]), reference, images, ()))
    return cards
