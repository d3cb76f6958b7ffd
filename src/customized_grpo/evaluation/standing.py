"""Identity of rows by content, by which rows of an earlier evaluation are kept.

A row's ``stands_on`` maps parts to short hashes: what made the image (weights, noise levels, prompt, references, ...)
and what scored it (views, masks, each metric with its options and the files that these name, ...). Equal parts are
equal rows; the names of those that differ are the reason why one is made anew. A path is never a part, so a moved
folder changes nothing.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, final

from customized_grpo.data import content
from customized_grpo.data.content import Content
from customized_grpo.evaluation.metrics import AnyMetric
from customized_grpo.evaluation.summary import Row
from customized_grpo.identity.hashes import FileHashes, short_hash
from customized_grpo.identity.sections import identified
from customized_grpo.recipe.config import Evaluate
from customized_grpo.rewards.base import fingerprint_of, transport_of

StandsOn = dict[str, str]
"""Part to a hash of it."""

_UNKNOWN: Final = "rows of an earlier version, which don't say what they stand on"


@final
@dataclass(frozen=True, slots=True)
class Standing:
    """What all rows of one label have in common.

    Attributes:
        drawn: parts that decide the images.
        scored: parts that decide their scores only.
    """

    drawn: Mapping[str, str]
    scored: Mapping[str, str]

    @classmethod
    def of(
        cls, spec: Evaluate, metrics: Mapping[str, AnyMetric], made_by: Mapping[str, Any], hashes: FileHashes
    ) -> Self:
        """From a recipe's section, the metrics that are measured, and what makes the images."""
        options = {name: spec.metrics[name].model_dump(mode="json") for name in metrics}
        for name, section in options.items():
            for field in transport_of(spec.metrics[name]):
                section.pop(field, None)
        sampling = {"seed": spec.seed, "images_per_prompt": spec.images_per_prompt, "batch": spec.batch}
        return cls(
            drawn={name: short_hash(value) for name, value in {**made_by, "sampling": sampling}.items()},
            scored={
                "protocol": short_hash(spec.protocol),
                **({"products": short_hash(spec.products)} if spec.products else {}),
                **{
                    f"metrics.{name}": short_hash(
                        [identified(section, hashes), spec.runs.get(name, 1), fingerprint_of(metrics[name])]
                    )
                    for name, section in options.items()
                },
            },
        )

    def row(self, example: Content) -> StandsOn:
        """What a row of an example stands on; its place, which decides the noise, is the row's ``index``."""
        return {**self.drawn, **self.scored, **example}

    def is_drawn_alike(self, one: Mapping[str, str], other: Mapping[str, str]) -> bool:
        """True if two rows of one place have the same image."""
        return all(one.get(part) == other.get(part) for part in (*self.drawn, *content.DRAWN))


@final
class Earlier:
    """The rows of an earlier, perhaps killed, evaluation of a label, of the examples that it finished.

    Finished means that every image has its row, and its picture, unchanged, if pictures are saved.
    """

    def __init__(self, folder: Path, files: Sequence[Path], save_images: int, hashes: FileHashes) -> None:
        found: dict[tuple[int, str], dict[int, Row]] = {}
        for row in _read(files):
            token = json.dumps(row.get("stands_on"), sort_keys=True)
            found.setdefault((row["index"], token), {})[row["image"]] = row
        pictures = [row["file"] for images in found.values() for row in images.values() if row.get("file")]
        hashed = hashes.of(folder, pictures)
        self._rows: dict[int, list[list[Row]]] = {}
        for (index, _), images in found.items():
            rows = [images[i] for i in sorted(images)]
            if len(rows) == rows[0]["of"] and all(_has_picture(row, hashed, index < save_images) for row in rows):
                self._rows.setdefault(index, []).append(rows)

    def __bool__(self) -> bool:
        return bool(self._rows)

    def kept(self, index: int, stands_on: StandsOn) -> list[Row] | None:
        """The rows of an example that are those of now."""
        return next((rows for rows in self._rows.get(index, []) if rows[0].get("stands_on") == stands_on), None)

    def files(self, index: int, stands_on: StandsOn, standing: Standing) -> list[str] | None:
        """The pictures of an example, if the same weights and sampler made them for other metrics."""
        for rows in self._rows.get(index, []):
            if standing.is_drawn_alike(rows[0].get("stands_on") or {}, stands_on) and all(row["file"] for row in rows):
                return [row["file"] for row in rows]
        return None

    def news(self, now: Mapping[int, StandsOn], standing: Standing) -> str:
        """How many rows are kept, made anew and why, and dropped; empty where all are kept.

        Args:
            now: index of every example to what its row stands on.
        """
        by_key: dict[str, list[Row]] = {}
        for candidates in self._rows.values():
            for rows in candidates:
                by_key.setdefault(short_hash(rows[0]["key"]), []).append(rows[0])
        kept, drawn, scored = 0, Counter[str](), Counter[str]()
        for index, stands_on in now.items():
            if self.kept(index, stands_on) is not None:
                kept += 1
            elif stands_on["key"] in by_key:
                reasons = min((_reasons(row, index, stands_on) for row in by_key[stands_on["key"]]), key=len)
                only_scored = not {*standing.drawn, *content.DRAWN, "place", _UNKNOWN} & set(reasons)
                (scored if only_scored else drawn)[" and ".join(reasons)] += 1
        dropped = len(by_key.keys() - {stands_on["key"] for stands_on in now.values()})
        said = [
            *([f"{drawn.total()} are drawn anew ({_counted(drawn)})"] if drawn else []),
            *([f"{scored.total()} are scored anew ({_counted(scored)})"] if scored else []),
            *([f"{dropped} of examples that are no longer there are dropped"] if dropped else []),
        ]
        return f"of {len(now)} rows {kept} are kept; {', '.join(said)}" if said else ""


def _reasons(row: Row, index: int, stands_on: StandsOn) -> list[str]:
    """Names of the parts in which an earlier row differs."""
    before = row.get("stands_on")
    if before is None:
        return [_UNKNOWN]
    differing = sorted(part for part in before.keys() | stands_on.keys() if before.get(part) != stands_on.get(part))
    return [*(["place"] if row["index"] != index else []), *differing]


def _has_picture(row: Row, hashed: Mapping[str, str], needed: bool) -> bool:
    """True if a row's picture is its own, or gone where it isn't needed."""
    now = hashed[row["file"]] if row.get("file") else ""
    return now == row.get("picture", now) if now else not needed


def _counted(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in reasons.most_common())


def _read(files: Sequence[Path]) -> Iterable[Row]:
    needed = {"index", "image", "key", "of"}
    for path in files:
        if not path.is_file():
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # empty, or half written by a killed process
                continue
            if isinstance(row, dict) and needed <= row.keys():
                yield row
