"""Checks of weights that a library read: complete, all used where they belong to the model, and numbers.

diffusers and transformers only log what a file lacks or what has no place, and go on with random or dropped weights.
"""

import os
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

Report = Mapping[str, Any]
"""What ``from_pretrained`` says it read: ``missing_keys``, ``unexpected_keys``, ``mismatched_keys``."""

FLOATS: Final = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})
FLOAT8: Final = frozenset({torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz})


def read_model(model_class: Any, source: str, options: Mapping[str, Any]) -> tuple[Any, Report]:
    """``from_pretrained`` of a class of either library, safetensors only, with its report for ``check_whole``.

    Args:
        model_class: what to open.
        source: folder or hub id.
        options: further ones of ``from_pretrained``.
    """
    from diffusers import ModelMixin

    # transformers asks a service on the hub, with the user's token, to convert a repository without safetensors, and
    # loads that pull request in silence (``safetensors_conversion.auto_conversion``). This is its only switch.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    # Other shapes go into the report, instead of the libraries' advice to draw them at random. Not in a folder that is
    # quantised already: diffusers would leave out its packed weights, and refuses other shapes by itself.
    packed = issubclass(model_class, ModelMixin) and "quantization_config" in model_class.load_config(source)
    model, report = model_class.from_pretrained(
        source, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=not packed, **options
    )
    return model, report


def check_whole(model: nn.Module, report: Report, what: str) -> None:
    """Refuse a model of which weights were not read, or a file of which layers were not used.

    Passes: what the class itself declares as ignorable, tied weights, and of transformers' classes whole other parts of
    a checkpoint (the other tower of a CLIP, a head, a decoder), as many are published with them.

    Args:
        model: as ``read_model`` gives it.
        report: likewise.
        what: the model, for the message.

    Raises:
        ValueError: weights are missing, left over, or of another shape; the message counts and names them.
    """
    from diffusers import ModelMixin

    surplus = sorted(report["unexpected_keys"])
    unused = surplus if isinstance(model, ModelMixin) else _of_its_layers(model, surplus)
    reshaped = {name: f"{name} ({_size(found)} for {_size(own)})" for name, found, own in report["mismatched_keys"]}
    problems = (
        (sorted(set(report["missing_keys"]) - reshaped.keys()), "lacks {} that the model has"),
        (unused, "holds {} that the model has no place for"),
        (sorted(reshaped.values()), "holds {} of another shape"),
    )
    if said := [f"it {text.format(_count(names))}: {shown(names)}" for names, text in problems if names]:
        raise ValueError(
            f"{what} does not fit its config.json: {'; '.join(said)}. Download it again, whole, with the config.json "
            "that belongs to it"
        )


def check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse weights that are not numbers.

    Args:
        tensors: by the names to show.
        what: where they come from, for the message.

    Raises:
        ValueError: NaN or infinity; the message names the tensors and how many values.
    """
    broken = {name: count for name, tensor in tensors.items() if (count := _num_broken(tensor))}
    if broken:
        raise ValueError(
            f"{what} is broken: {sum(broken.values())} values are NaN or infinite, in {shown(sorted(broken))}. Such "
            "weights draw black pictures and give no scores; take an earlier checkpoint, or ask who made the file"
        )


def shown(names: list[str]) -> str:
    """The first three names and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _of_its_layers(model: nn.Module, surplus: list[str]) -> list[str]:
    """Weights without a place that are of a stack of layers shorter in the model, or biases that it doesn't add.

    A stack of which the first layer has no place either is another part's.
    """
    stacks = [f".{name}" for name, one in model.named_modules() if isinstance(one, nn.ModuleList | nn.Sequential)]
    whole = set(surplus)

    def shorter(stack: str) -> bool:
        first = f"{stack}.0."
        known = any(own.endswith(f".{stack}") or f".{stack}".endswith(own) for own in stacks)
        return known and not any(name.startswith(first) for name in surplus)

    def lost_bias(name: str) -> bool:
        layer, _, kind = name.rpartition(".")
        weight = f".{layer}.weight"
        return (
            kind == "bias"
            and f"{layer}.weight" not in whole
            and any(weight.endswith(f".{own}") or f".{own}".endswith(weight) for own, _ in model.named_parameters())
        )

    cut = {stack for stack in {one for name in surplus for one in _stacks_of(name)} if shorter(stack)}
    return [name for name in surplus if lost_bias(name) or not cut.isdisjoint(_stacks_of(name))]


def _stacks_of(name: str) -> Iterable[str]:
    """``a.layers.3.b.1.weight`` -> ``a.layers`` and ``a.layers.3.b``."""
    parts = name.split(".")
    return [".".join(parts[:at]) for at, part in enumerate(parts) if part.isdigit() and at]


def _num_broken(tensor: Tensor) -> int:
    if tensor.is_meta or tensor.dtype not in FLOATS | FLOAT8:
        return 0
    values = tensor.float() if tensor.dtype in FLOAT8 else tensor  # float8 can't be summed
    if values.sum().isfinite():  # one pass without a copy; a sum may also overflow where all values are finite
        return 0
    return int((~values.isfinite()).sum())


def _size(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape))


def _count(names: list[str]) -> str:
    return f"{len(names)} weight{'' if len(names) == 1 else 's'}"
