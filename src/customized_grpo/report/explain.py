"""Meanings of held-out metrics for people: what a column measures, which way is better, and why two may disagree.

Built-in types are explained from this table, so that a page needs no model's library; a test holds the table to the
registry. What another package brings is named with its type.
"""

from collections.abc import Mapping
from typing import Any, Final

from customized_grpo.report.folders import RunFolder

ORACLE: Final = {
    "identity_accuracy": "share of the subject's attributes that are right",
    "prompt_accuracy": "share of the prompt's attributes that are right",
    "identity_all": "share of images with all of the subject right",
    "prompt_all": "share of images with all of the prompt right",
    "both": "share of images with everything right",
    "copy": "share of images that copy the reference's scene; lower is better",
}
"""Columns of the miniature world's oracle."""

TYPES: Final = {
    "aesthetic": "predicted liking of the picture, about 1 to 10, whatever it shows",
    "clip_i": "CLIP similarity to the reference, up to 100",
    "clip_t": "CLIP similarity of picture and prompt, up to 100",
    "copy": "how much nearer a picture is to its reference than to other photos of the subject, from -1 to 1; lower is "
    "better",
    "dino": "DINO similarity to the reference, up to 100",
    "face": "similarity of faces to those of the reference, up to 100",
    "hpsv3": "HPSv3, what people would prefer for this prompt; about 10 is much",
    "mini_oracle": "attributes of the miniature world that are right",
    "pickscore": "PickScore, what people would prefer for this prompt",
    "vlm_pairwise": "share of comparisons with other images that a judge decided for this one",
    "remote": "a reward that a server gives",
    "siglip": "SigLIP similarity of picture and prompt",
    "structure_diversity": "how differently the images of a prompt are laid out; higher is more diverse",
    "style": "CSD similarity of style to the reference, up to 100",
    "subjects": "each reference's subject against the one that is found in the picture, up to 100",
    "vlm": "a vision-language model's answer to one rubric",
}
"""Type of a metric to what it measures; higher is better where nothing is said."""

_WHOLE: Final = ("dino", "clip_i")
"""Types that compare whole pictures, background included, unless they are told to cut the subject out."""


def meanings(run: RunFolder) -> dict[str, str]:
    """What each held-out column of a run measures."""
    found = {}
    for column in run.columns:
        section = _section(run, column)
        kind = str(section.get("type"))
        if not section and column in ORACLE:
            found[column] = ORACLE[column]
        elif section:
            model = f" ({section['model']})" if isinstance(section.get("model"), str) else ""
            rubric = f": {section['rubric']}" if isinstance(section.get("rubric"), str) else ""
            text = TYPES.get(kind, f"a metric of type {kind}")
            whole = ", of whole pictures, background included" if _is_whole(section) else ""
            found[column] = f"{text}{rubric[:80]}{whole}{model}"
    return found


def lower_is_better(run: RunFolder) -> set[str]:
    """Columns that are better where they are lower."""
    return {column for column in run.columns if column == "copy"}


def disagreements(run: RunFolder, change: Mapping[str, Any], axes: Mapping[str, str]) -> list[str]:
    """Why a similarity of whole pictures fell where the subject is as much itself as before, in sentences.

    Args:
        run: read from its folder.
        change: column to its paired change from the base.
        axes: axis to the column that represents it.
    """
    column, found = axes.get("identity"), []
    if column is None or column not in change or _fell(change[column]):
        return []
    for name, value in change.items():
        if name != column and _is_whole(_section(run, name)) and _fell(value):
            copies = change.get("copy")
            less = copies is not None and _fell(copies)
            why = ", and fewer pictures copy it now" if less else ""
            found.append(
                f"{name.replace('_', ' ')} fell though {column.replace('_', ' ')}, which stands for identity here, "
                f"did not: it compares whole pictures, and the reference's background counts in it{why}."
            )
    return found


def visible(run: RunFolder, rows: Mapping[str, Mapping[str, Any]], change: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Effects that anybody sees in the pictures, first the one that changed most: copies, and all that is right.

    Returns:
        ``{"text", "base", "tuned", "better"}`` of each whose interval is clear of 0.
    """
    texts = {
        "copy": "Pictures that copy the reference's scene",
        "both": "Pictures with everything of prompt and subject right",
    }
    found = []
    for column, text in texts.items():
        value, means = (
            change.get(column),
            [rows.get(name, {}).get(column, {}).get("mean") for name in ("base", "tuned")],
        )
        if value is None or value["low"] is None or None in means or _section(run, column):
            continue  # ``copy`` of other worlds is no share of the pictures
        if _fell(value) or _rose(value):
            base, tuned = means
            better = _fell(value) == (column in lower_is_better(run))
            found.append({"text": text, "base": base, "tuned": tuned, "better": better, "size": abs(value["mean"])})
    return sorted(found, key=lambda one: -one["size"])


def _section(run: RunFolder, column: str) -> Mapping[str, Any]:
    """The recipe's section of the metric that is a column by its name; empty where a metric gave it another."""
    found = run.get("evaluate", "metrics", column)
    return found if isinstance(found, dict) else {}


def _is_whole(section: Mapping[str, Any]) -> bool:
    return section.get("type") in _WHOLE and section.get("segment") in (None, "none")


def _fell(value: Mapping[str, Any]) -> bool:
    return value["high"] is not None and value["high"] < 0


def _rose(value: Mapping[str, Any]) -> bool:
    return value["low"] is not None and value["low"] > 0
