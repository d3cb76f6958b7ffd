"""The model card of a published folder: the hub's metadata, and what a reader has to know, from the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import jinja2

from customized_grpo import __version__
from customized_grpo.evaluation.tables import cell, markdown
from customized_grpo.policies.adapters.comfy_names import unread
from customized_grpo.publish.licences import MINI, Licence
from customized_grpo.publish.loading import KINDS, Form, program
from customized_grpo.publish.pictures import Data, what_it_is
from customized_grpo.recipe.config import Recipe
from customized_grpo.report.folders import RunFolder
from customized_grpo.weights import shown

_LIBRARIES: Final = ("torch", "diffusers", "peft", "transformers")
_FILE: Final = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True, slots=True)
class Result:
    """One evaluation.

    Attributes:
        title: what was evaluated.
        summary: see ``evaluation.summary``; without what names this machine.
        data: what it was measured on.
    """

    title: str
    summary: Mapping[str, Any]
    data: Data

    @property
    def tuned(self) -> Mapping[str, Any]:
        """Metrics of the adapter; empty where only the base was drawn."""
        return next((row["metrics"] for row in self.summary["rows"] if row["name"] == "tuned"), {})

    def markdown(self) -> str:
        """Its tables, under a heading."""
        _, _, tables = markdown(self.summary).partition("\n")
        return f"### {self.title}\n\n{tables.strip()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """All that a card is made from; no text of it names this machine."""

    title: str
    recipe: Recipe
    form: Form
    licence: Licence
    run: RunFolder
    modules: Sequence[str]
    results: Sequence[Result]
    facts: Sequence[tuple[str, str]]
    limits: Sequence[str]
    warnings: Sequence[str]
    pictures: str
    pictures_of: str
    pictures_withheld: str
    data: Data


def card(contents: Contents) -> str:
    """The card, as ``README.md``.

    Raises:
        ValueError: its metadata are none that the hub takes.
    """
    from huggingface_hub import ModelCard

    text = _environment().get_template("card.md.j2").render(**_variables(contents))
    return str(ModelCard(f"---\n{_metadata(contents).to_yaml()}\n---\n\n{text}"))


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("customized_grpo.publish"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    return environment


def _variables(one: Contents) -> dict[str, Any]:
    kind, recipe, form = str(one.run.get("policy", "type")), one.recipe, one.form
    given = program(recipe, form)
    on_hub = f"[{form.base}](https://huggingface.co/{form.base})"
    return {
        "title": one.title,
        "what": _what(one),
        "version": __version__,
        "base_text": "the miniature FLUX.1 of that package" if form.base == MINI else on_hub,
        "warnings": one.warnings,
        "program": given,
        "policy": kind,
        "repo": form.repo,
        "comfy": _comfy(kind, one),
        "results": [result.markdown() for result in one.results]
        or ["**Not evaluated**: the run has no evaluation on held-out examples, so nothing is known of its quality."],
        "pictures": one.pictures,
        "pictures_of": one.pictures_of,
        "pictures_withheld": one.pictures_withheld,
        "facts": [*one.facts, ("Versions", ", ".join(_versions()))],
        "data": one.data.text,
        "rewards": _rewards(one.run),
        "limits": one.limits,
        "licence": _licence(one),
    }


def _what(one: Contents) -> str:
    if one.form.full:
        return "A transformer that was fine-tuned in full,"
    if one.form.balanced:
        return "A balanced LoRA, dW_0 + b dW_1 for every b from -1 (the prompt) to 1 (the identity),"
    also = ", with the LoRA that its training stood on in the same file," if one.form.joined else ""
    return f"A LoRA{also}"


def _versions() -> list[str]:
    found = [f"customized-grpo {__version__}"]
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found


def _rewards(run: RunFolder) -> list[list[str]]:
    rows = []
    for name, axis in run.axes_of("rewards").items():
        kind = str(run.get("rewards", name, "type"))
        model = run.get("rewards", name, "model")
        rows.append([name, kind, axis, str(model or ""), what_it_is("rewards", kind)])
    return rows


def _comfy(kind: str, one: Contents) -> str:
    """How the folder is used in ComfyUI, or why it can't be."""
    known = KINDS.get(kind)
    if one.form.full:
        return "In ComfyUI: not in this form; it reads a transformer as one file of the original names."
    lost = unread(one.modules, known.family if known else None)
    if known is None or lost is None:
        return "In ComfyUI: not known. Which layers of this model its loader reads was not looked into."
    if one.form.base == MINI:
        return "In ComfyUI: it has no model of this size."
    text = f"In ComfyUI: put `{_FILE}` into `models/loras` and load it by `LoraLoaderModelOnly` at strength 1."
    if one.form.balanced:
        text += " `balance/` holds the second LoRA, whose strength is b."
    if lost:
        text += f" It drops {len(lost)} of the {len(one.modules)} layers ({shown(lost)}), so the images are others."
    return f"{text} References: {known.comfy}."


def _licence(one: Contents) -> str:
    licence, of = one.licence, "the miniature" if one.form.base == MINI else one.form.base
    name = f"[{licence}]({licence.link})" if licence.link else str(licence)
    text = f"{name}, as what is trained on {of} follows the licence of its weights"
    text += f": {licence.note}." if licence.note else "."
    beneath = one.run.get("policy", "base_lora", "path")
    if beneath and not one.form.joined:
        text += f" It is used with {beneath}, which has a licence of its own."
    shown_data = [result.data.licence for result in one.results if result.data.licence and one.pictures]
    return text + "".join(f" Pictures of references: {one}." for one in dict.fromkeys(shown_data))


def _metadata(one: Contents) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    kind, of_hub = str(one.run.get("policy", "type")), one.form.base != MINI
    task = "image-to-image" if one.recipe.policy.reference_counts()[1] else "text-to-image"
    results = [
        EvalResult(
            task_type=task,
            dataset_type=str(result.summary["protocol"]),
            dataset_name=result.data.name,
            metric_type=column,
            metric_name=f"{column}{_interval(value)}",
            metric_value=round(value["mean"], 4),
        )
        for result in one.results
        for column, value in result.tuned.items()
        if value["mean"] is not None
    ]
    optional: dict[str, Any] = {"eval_results": results, "model_name": one.title} if results else {}
    if of_hub:
        optional["base_model_relation"] = "finetune" if one.form.full else "adapter"
    return ModelCardData(
        base_model=one.form.base if of_hub else None,
        library_name="diffusers" if kind in KINDS else "customized-grpo",
        license=one.licence.id,
        license_name=one.licence.name,
        license_link=one.licence.link,
        pipeline_tag=task,
        tags=[*([] if one.form.full else ["lora"]), "customized-grpo", "subject-driven-generation", kind],
        **optional,
    )


def _interval(value: Mapping[str, Any]) -> str:
    if value["low"] is None:
        return f" (n = {value['n']})"
    return f" (95 % interval {value['low']:.3f} to {value['high']:.3f}, n = {value['n']})"
