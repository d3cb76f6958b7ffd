"""Opening the models of a pipeline's folder one by one: the pipeline's own ``from_pretrained`` hides what they lack."""

from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from customized_grpo.weights import Report, read_model

_LIBRARIES: Final = ("diffusers", "transformers")


def read_models(
    pipeline_class: Any,
    config: Any,
    source: str,
    *,
    given: Collection[str],
    dtypes: Mapping[str, torch.dtype],
    options: Mapping[str, Mapping[str, Any]],
    offline: bool,
) -> tuple[str, dict[str, tuple[nn.Module, Report]]]:
    """The pipeline's folder, fetched if need be, and of each model in its index the model and its report.

    Args:
        pipeline_class: of diffusers.
        config: the policy's section, which says revision and variant.
        source: folder or hub id.
        given: parts neither to fetch nor to open.
        dtypes: by the part's name, ``default`` for the others.
        options: further ones of ``from_pretrained``, by the part's name.
        offline: don't ask the hub.

    Raises:
        ValueError: the index names a class that the library doesn't have.
    """
    folder = source
    if not Path(source).is_dir():
        folder = pipeline_class.download(
            source,
            revision=config.revision,
            variant=config.variant,
            use_safetensors=True,
            local_files_only=offline,
            **dict.fromkeys(given),
        )
    found = {}
    for name, model_class in _model_classes(pipeline_class, folder):
        if name not in given:
            where = Path(folder) / name
            variant = {"variant": config.variant} if _has_variant(where, config.variant) else {}
            settings = {"dtype": dtypes.get(name, dtypes["default"]), **variant, **options.get(name, {})}
            found[name] = read_model(model_class, str(where), settings)
    return folder, found


def _model_classes(pipeline_class: Any, folder: str) -> Iterator[tuple[str, Any]]:
    """Name and class of the models in a pipeline's index: not of tokenizers, processors and schedulers."""
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    for name, entry in pipeline_class.load_config(folder).items():
        if not isinstance(entry, list) or entry[0] not in _LIBRARIES:
            continue
        library, class_name = entry
        try:
            part_class = getattr(import_module(library), class_name)
        except AttributeError as error:
            raise ValueError(
                f"its {name} is a {class_name}, which this version of {library} doesn't have; upgrade {library}"
            ) from error
        if issubclass(part_class, ModelMixin | PreTrainedModel):
            yield name, part_class


def _has_variant(folder: Path, variant: str | None) -> bool:
    marks = (f".{variant}.", f".{variant}-")
    return variant is not None and any(mark in file.name for file in folder.glob("*") for mark in marks)
